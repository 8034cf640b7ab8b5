"""``sisopt onnx``: the adapter's result in files, calibration data cut into batches as the model takes them."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

pytest.importorskip("click")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import sisopt  # noqa: E402  after the skips
from sisopt import cli  # noqa: E402
from sisopt.adapters import onnx as adapter  # noqa: E402
from sisopt.network.report import LayerReport, NetworkReport  # noqa: E402

PIXELS = np.random.default_rng(1).normal(size=(70, 8)).astype(np.float32)


def save_model(path, size):
    """Save two matrices with a ReLU between them, for batches of a size, any where it is a name."""
    rng = np.random.default_rng(0)
    shapes = {"w1": (8, 12), "b1": (12,), "w2": (12, 3), "b2": (3,)}
    values = [onnx.numpy_helper.from_array(rng.normal(size=s).astype(np.float32), name) for name, s in shapes.items()]
    nodes = [
        onnx.helper.make_node("Gemm", ["pixels", "w1", "b1"], ["h"], name="first"),
        onnx.helper.make_node("Relu", ["h"], ["a"]),
        onnx.helper.make_node("Gemm", ["a", "w2", "b2"], ["scores"], name="second"),
    ]
    ends = [onnx.helper.make_tensor_value_info(n, 1, [size, k]) for n, k in (("pixels", 8), ("scores", 3))]
    graph = onnx.helper.make_graph(nodes, "graph", ends[:1], ends[1:], values)
    opset = onnx.helper.make_opsetid("", 17)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=9), path)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_model("model.onnx", "n")
    np.savez("data.npz", pixels=PIXELS)
    return tmp_path


def run(*more, model="model.onnx", data="data.npz"):
    return cli.main(["onnx", model, data, "-o", "sparse.onnx", "--effort", "fast", *more])


def test_the_model_that_is_written_is_the_adapters(folder, capsys):
    assert run("--sparsity", "0.75", "--report", "report.json", "--exclude", "second") == 0
    batches = [{"pixels": PIXELS[i : i + 32]} for i in (0, 32, 64)]
    model, report = adapter.sparsify_onnx("model.onnx", batches, sparsity=0.75, exclude="second", effort="fast")
    assert (folder / "sparse.onnx").read_bytes() == model.SerializeToString()
    written = NetworkReport.from_json((folder / "report.json").read_text())
    assert [layer.n_kept for layer in written.layers] == [layer.n_kept for layer in report.layers] == [24, 36]
    out = capsys.readouterr().out
    assert out.startswith("NetworkReport: 2 layers")
    assert out.endswith("Written: sparse.onnx\nWritten: report.json\n")


@pytest.mark.parametrize(("size", "more", "lengths"), [
    ("n", [], [32, 32, 6]), ("n", ["--batch-size", "50"], [50, 20]), (16, [], [16] * 4)
])  # fmt: skip
def test_batches_are_of_the_models_size(size, more, lengths, folder, monkeypatch):
    seen = []

    def look(model, batches, **given):
        seen.extend(len(batch["pixels"]) for batch in batches)
        return None, NetworkReport(())

    monkeypatch.setattr(adapter, "sparsify_onnx", look)
    save_model("model.onnx", size)
    assert run("--sparsity", "0.5", *more) == 0
    assert seen == lengths


def test_json_is_the_report(folder, capfd):
    assert run("--pattern", "2:4", "--json", "--quiet") == 0
    told = capfd.readouterr()
    assert json.loads(told.out)["totals"]["sparsity"] == 0.5
    assert told.err == ""


def test_a_layer_that_misses_its_budget_is_a_failure_but_written(folder, monkeypatch, capsys):
    missed = LayerReport("fc", "Gemm", (2, 2), "", 4, 4, 0, 0.1, None, 0.3, None, "budget unattainable", 0.1)
    monkeypatch.setattr(adapter, "sparsify_onnx", lambda *args, **given: (None, NetworkReport((missed,))))
    assert run("--relative-error", "0.1", "--report", "report.json") == 1
    assert "could not be kept by fc" in capsys.readouterr().err
    assert (folder / "report.json").exists()


@pytest.mark.parametrize("option", ["--output", "--report", "--html"])
def test_files_that_are_there_stay(option, folder, monkeypatch, capsys):
    monkeypatch.setattr(adapter, "sparsify_onnx", lambda *args, **given: pytest.fail("it worked first"))
    (folder / "there").write_text("mine")
    assert run("--sparsity", "0.5", option, "there") == 2
    assert f"Invalid value for {option}: there is there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"image": PIXELS}, "the model's inputs 'pixels'"),
        ({"pixels": PIXELS, "more": PIXELS[:3]}, "pixels: 70, more: 3"),
        ({"pixels": np.float32(1.0)}, "at least one"),
        ({}, "no arrays"),
    ],
)
def test_calibration_data_that_do_not_fit_are_refused(arrays, message, folder, capsys):
    np.savez("bad.npz", **arrays)
    assert run("--sparsity", "0.5", data="bad.npz") == 2
    told = capsys.readouterr().err
    assert message in told
    assert "Traceback" not in told
    assert not (folder / "sparse.onnx").exists()


def test_too_few_samples_for_the_models_batches_are_refused(folder, capsys):
    save_model("model.onnx", 80)
    assert run("--sparsity", "0.5") == 2
    assert "70 samples, and the model takes 80 at a time" in capsys.readouterr().err


def test_what_is_no_model_is_refused(folder, capsys):
    assert run("--sparsity", "0.5", model="data.npz") == 2
    assert "no ONNX model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--report", "./sparse.onnx"], "is the file of --output too"),
        (["--html", "report", "--report", "report"], "is the file of --report too"),
        (["--report", "model.onnx"], "is the file of MODEL too"),
        (["--output", "data.npz"], "is the file of CALIBRATION too"),
        (["--output", "model.onnx", "--report", "model.onnx"], "is the file of --output too"),
    ],
)
def test_no_file_is_written_twice_or_over_what_is_read(more, message, folder, monkeypatch, capsys):
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(adapter, "sparsify_onnx", lambda *args, **given: pytest.fail("it worked first"))
    assert run("--sparsity", "0.5", "--force", *more) == 2
    assert message in capsys.readouterr().err


def test_constants_beside_the_model_are_a_file_like_others(folder, monkeypatch, capsys):
    monkeypatch.setattr(adapter, "sparsify_onnx", lambda *args, **given: pytest.fail("it worked first"))
    model = onnx.load("model.onnx")
    onnx.save(model, "model.onnx", save_as_external_data=True, location="constants", size_threshold=0)
    (folder / "sparse.onnx.data").write_text("mine")
    assert run("--sparsity", "0.5") == 2
    assert "sparse.onnx.data is there already; --force replaces it" in capsys.readouterr().err
    assert run("--sparsity", "0.5", "--force", "--report", "sparse.onnx.data") == 2
    assert "is the file of --output too" in capsys.readouterr().err


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_a_page_that_cannot_be_made_is_refused_before_the_work(package, folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(adapter, "sparsify_onnx", lambda *args, **given: pytest.fail("it worked first"))
    assert run("--sparsity", "0.5", "--html", "page.html") == 2
    assert 'pip install "sisopt[report]"' in capsys.readouterr().err


def test_a_model_that_fails_its_checks_is_a_failure(folder, monkeypatch, capsys):
    def fails(*args):
        raise sisopt.SisoptError("the sparse model does not run")

    monkeypatch.setattr("sisopt.adapters.onnx.model.verify_model", fails)
    assert run("--sparsity", "0.5") == 1
    assert capsys.readouterr().err.endswith("sisopt: the sparse model does not run\n")


def test_a_file_for_a_checkpoint_is_a_wrong_call(folder, capsys):
    assert run("--sparsity", "0.5", "--checkpoint", "data.npz") == 2
    assert "'data.npz' is a file" in capsys.readouterr().err


def test_samples_that_make_no_whole_batch_are_told_of(folder, capsys):
    save_model("model.onnx", 16)
    assert run("--sparsity", "0.5", "--quiet") == 0
    assert "the last 6 samples are left out: the model takes 16 at a time" in capsys.readouterr().err
