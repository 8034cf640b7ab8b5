"""Commands that read and write files: what they write, what they refuse, and with which exit status."""

from __future__ import annotations

import io
import json
import os
import sys
import zipfile

import numpy as np
import pytest

pytest.importorskip("click")
pytest.importorskip("rich")

import sisopt
from sisopt import cli
from sisopt.network.report import LayerReport, NetworkReport

RNG = np.random.default_rng(0)
LAYER = {
    "inputs": RNG.normal(size=(90, 10)).astype(np.float32),
    "weight": RNG.normal(size=(6, 10)).astype(np.float32),
    "bias": RNG.normal(size=6).astype(np.float32),
}
REPORT = NetworkReport((LayerReport("fc", "Linear", (6, 10), "relu", 60, 12, 60, 0.1, None, None, None, "done", 0.1),))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("data.npz", **LAYER)
    (tmp_path / "report.json").write_text(REPORT.to_json())
    return tmp_path


def layer(*more, data="data.npz", output="out.npz"):
    return cli.main(["layer", data, "-o", output, "--effort", "fast", *more])


def archive(path, compression=zipfile.ZIP_STORED, *, flags=0, method=None, spoilt=False):
    """Return an archive with one array, what its headers or its compressed bytes say changed."""
    stream = io.BytesIO()
    np.save(stream, LAYER["weight"])
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("weight.npy", stream.getvalue())
    found = bytearray(path.read_bytes())
    central = found.index(b"PK\x01\x02")
    for start in (6, central + 8):
        found[start] |= flags
        if method is not None:
            found[start + 2] = method
    if spoilt:
        found[60:central] = b"\xff" * (central - 60)
    return bytes(found)


def add_member(path):
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("notes.txt", "mine")


def names(folder):
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("options", "keywords"),
    [
        (["--activation", "relu", "--sparsity", "0.8"], {"activation": "relu", "sparsity": 0.8}),
        (["--pattern", "2:4", "--seed", "3"], {"pattern": "2:4", "seed": 3}),
        (["--relative-error", "0.3", "--tol", "0.01"], {"relative_error": 0.3, "tol": 0.01}),
    ],
)
def test_a_layer_comes_out_as_sparsify_makes_it(options, keywords, folder, capsys):
    assert layer(*options) == 0
    wanted = sisopt.sparsify(**LAYER, effort="fast", **keywords)
    with np.load("out.npz", allow_pickle=False) as found:
        assert set(found.files) == {"weight", "bias"}
        for name in ("weight", "bias"):
            assert found[name].dtype == np.float32
            np.testing.assert_array_equal(found[name], getattr(wanted, name))
    told = capsys.readouterr()
    assert f"{wanted.sparsity:.2%} zeros" in told.out
    assert told.out.rstrip().endswith("Written: out.npz")
    assert names(folder) == {"data.npz", "report.json", "out.npz"}


def test_a_layer_without_bias_has_none_after(folder):
    np.savez("plain.npz", inputs=LAYER["inputs"], weight=LAYER["weight"])
    assert layer("--sparsity", "0.5", data="plain.npz") == 0
    with np.load("out.npz") as found:
        assert found.files == ["weight"]


def test_preactivations_are_what_is_kept(folder):
    Z = np.maximum(LAYER["inputs"], 0) @ LAYER["weight"].T
    np.savez("both.npz", **LAYER, preactivations=Z)
    assert layer("--sparsity", "0.5", data="both.npz") == 0
    wanted = sisopt.sparsify(**LAYER, preactivations=Z, sparsity=0.5, effort="fast")
    with np.load("out.npz") as found:
        np.testing.assert_array_equal(found["weight"], wanted.weight)


def test_quiet_says_nothing_and_json_says_it_to_programs(folder, capfd):
    assert layer("--sparsity", "0.8", "--quiet") == 0
    assert capfd.readouterr() == ("", "")
    assert layer("--sparsity", "0.8", "--json", "--quiet", output="again.npz") == 0
    told = capfd.readouterr()
    assert told.err == ""
    tree = json.loads(told.out)
    assert (tree["output"], tree["n_kept"], tree["sparsity"], tree["shape"]) == ("again.npz", 12, 0.8, [6, 10])
    assert 0.0 < tree["output_error"] < 1.0
    assert (folder / "out.npz").read_bytes() == (folder / "again.npz").read_bytes()


@pytest.mark.parametrize(
    "arguments",
    [
        ["layer", "data.npz", "--sparsity", "0.5", "-o", "there"],
        ["show", "report.json", "--html", "there"],
    ],
)
def test_nothing_is_replaced_unless_that_is_wanted(arguments, folder, capsys):
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    (folder / "there").write_text("mine")
    assert cli.main(arguments) == 2
    assert "there is there already; --force replaces it" in capsys.readouterr().err
    assert (folder / "there").read_text() == "mine"
    assert cli.main([*arguments, "--force"]) == 0
    assert (folder / "there").read_bytes() != b"mine"


def test_what_is_no_ordinary_file_is_never_replaced(folder, capsys):
    os.mkfifo("pipe")
    assert layer("--sparsity", "0.5", "--force", output="pipe") == 2
    assert "pipe is no ordinary file" in capsys.readouterr().err
    assert (folder / "pipe").is_fifo()


def test_a_link_stays_one(folder):
    (folder / "below").mkdir()
    (folder / "out.npz").symlink_to(folder / "below" / "real.npz")
    for more in ([], ["--force"]):  # the file that it leads to is not there, and is
        assert layer("--sparsity", "0.5", *more) == 0
    assert (folder / "out.npz").is_symlink()
    with np.load(folder / "below" / "real.npz") as found:
        assert set(found.files) == {"weight", "bias"}


def test_a_report_is_not_replaced_by_its_page(folder, capsys):
    before = (folder / "report.json").read_bytes()
    assert cli.main(["show", "report.json", "--html", "./report.json", "--force"]) == 2
    assert "is the file of REPORT too" in capsys.readouterr().err
    assert (folder / "report.json").read_bytes() == before


def test_names_of_layers_give_a_terminal_no_orders(folder, capsys):
    named = NetworkReport((LayerReport("a\x1b[2Jb", "Linear", (2, 2), "", 4, 4, 0, 0.0, None, None, None, "", 0.0),))
    (folder / "named.json").write_text(named.to_json())
    assert cli.main(["show", "named.json"]) == 0
    told = capsys.readouterr().out
    assert "\x1b" not in told
    assert "a\\x1b[2Jb" in told


def test_a_file_that_comes_up_meanwhile_stays(folder, monkeypatch):
    real = sisopt.sparsify

    def slow(*args, **kwargs):
        (folder / "out.npz").write_text("mine")
        return real(*args, **kwargs)

    monkeypatch.setattr(sisopt, "sparsify", slow)
    assert layer("--sparsity", "0.5") == 2
    assert (folder / "out.npz").read_text() == "mine"


def test_a_disk_that_is_full_leaves_nothing_half_written(folder, monkeypatch, capsys):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sisopt.network.atomic_files._write", full)
    assert layer("--sparsity", "0.5") == 1
    assert capsys.readouterr().err == "sisopt: out.npz could not be written: No space left on device\n"
    assert names(folder) == {"data.npz", "report.json"}


@pytest.mark.parametrize(
    ("more", "output", "message"),
    [
        ([], "out.npz", "--sparsity 0.8, --relative-error 0.1, or --pattern 2:4"),
        (["--sparsity", "0.5", "--relative-error", "0.1"], "out.npz", "do not go together"),
        (["--sparsity", "1.5"], "out.npz", "1.5 is not in the range"),
        (["--sparsity", "0.5", "--activation", "rellu"], "out.npz", "did you mean 'relu'"),
        (["--pattern", "3:2"], "out.npz", "3:2"),
        (["--sparsity", "0.5"], "none/out.npz", "there is no folder none"),
        (["--sparsity", "0.5"], ".", "is a folder"),
    ],
)
def test_wrong_calls_are_refused_in_words(more, output, message, folder, capsys):
    assert layer(*more, output=output) == 2
    told = capsys.readouterr()
    assert message in told.err
    assert told.out == ""
    assert "Traceback" not in told.err
    assert names(folder) == {"data.npz", "report.json"}


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("object.npz", lambda p: np.savez(p, inputs=np.array([{}], dtype=object)), "allow_pickle"),
        ("half.npz", lambda p: p.write_bytes((p.parent / "data.npz").read_bytes()[:900]), "cannot be read"),
        ("text.npz", lambda p: p.write_text("1,2,3"), "cannot be read"),
        ("empty.npz", lambda p: p.write_bytes(b""), "cannot be read"),
        ("array.npy", lambda p: np.save(p, np.ones(3)), "a single array"),
        ("misspelt.npz", lambda p: np.savez(p, **LAYER, biases=1), "'biases', which is none of"),
        ("short.npz", lambda p: np.savez(p, weight=LAYER["weight"]), "holds no 'inputs' but 'weight'"),
        ("nan.npz", lambda p: np.savez(p, **LAYER | {"bias": np.full(6, np.nan)}), "bias must be finite"),
        ("shape.npz", lambda p: np.savez(p, **LAYER | {"bias": np.ones(5)}), "bias"),
        ("missing.npz", lambda p: None, "does not exist"),
        ("encrypted.npz", lambda p: p.write_bytes(archive(p, flags=1)), "encrypted"),
        ("unknown.npz", lambda p: p.write_bytes(archive(p, method=99)), "not supported"),
        ("lzma.npz", lambda p: p.write_bytes(archive(p, zipfile.ZIP_LZMA, spoilt=True)), "cannot be read"),
        ("more.npz", lambda p: np.savez(p, **LAYER) or add_member(p), "'notes.txt', which is no array"),
    ],
)
def test_files_that_hold_no_layer_are_refused(name, write, message, folder, capsys):
    write(folder / name)
    assert layer("--sparsity", "0.5", data=name) == 2
    told = capsys.readouterr().err
    assert message in told
    assert "Traceback" not in told
    assert not (folder / "out.npz").exists()


def test_a_budget_that_cannot_be_kept_is_a_failure(folder, capsys):
    np.savez("far.npz", **LAYER, preactivations=RNG.normal(size=(90, 6)))
    assert layer("--relative-error", "0.01", data="far.npz") == 1
    assert "least" in capsys.readouterr().err
    assert not (folder / "out.npz").exists()


def test_warnings_are_a_line_each(folder, capsys):
    assert layer("--relative-error", "0.1", "--tol", "1e-5", "--max-seconds", "0") == 0
    told = capsys.readouterr()
    assert told.err.startswith("sisopt: warning: stopped at max_seconds")
    assert len(told.err.splitlines()) == 1
    assert "TIME_LIMIT" in told.out


def test_a_report_is_shown_and_made_a_page(folder, capsys):
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    assert cli.main(["show", "report.json"]) == 0
    assert capsys.readouterr().out == REPORT.table() + "\n"
    assert cli.main(["show", "report.json", "--html", "page.html", "--quiet"]) == 0
    assert capsys.readouterr().out == ""
    assert (folder / "page.html").read_text(encoding="utf-8") == REPORT.to_html()


@pytest.mark.parametrize("text", ["", "{}", REPORT.to_json()[:200], "\udcff"])
def test_what_is_no_report_is_refused(text, folder, capsys):
    (folder / "bad.json").write_text(text, encoding="utf-8", errors="surrogateescape")
    assert cli.main(["show", "bad.json"]) == 2
    told = capsys.readouterr().err
    assert "bad.json" in told
    assert "Traceback" not in told


def test_a_page_needs_its_extra(folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert cli.main(["show", "report.json", "--html", "page.html"]) == 2
    assert 'pip install "sisopt[report]"' in capsys.readouterr().err
    assert not (folder / "page.html").exists()
