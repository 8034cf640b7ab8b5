"""Models in files: constants beside them, nothing overwritten unasked, whole or not at all."""

from __future__ import annotations

import os

import numpy as np
import onnx
import pytest

pytest.importorskip("onnxruntime")

from sisopt.adapters.onnx import sparsify_onnx, writing
from sisopt.errors import InvalidInputError, SisoptError
from tests.onnx_graphs import constants_of, inputs, mlp, run

ASK = {"sparsity": 0.7, "allocation": "uniform", "effort": "fast", "progress": False}


@pytest.fixture
def external(tmp_path):
    """A model whose constants lie in another file, all of them."""
    path = tmp_path / "in" / "model.onnx"
    path.parent.mkdir()
    onnx.save_model(mlp(), path, save_as_external_data=True, location="constants.bin", size_threshold=0)
    return path


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_file_holds_what_is_returned_without_one(tmp_path):
    onnx.save_model(mlp(), tmp_path / "model.onnx")
    before = contents(tmp_path)
    output = tmp_path / "new" / "sparse.onnx"
    path, report = sparsify_onnx(tmp_path / "model.onnx", [inputs()], output=output, **ASK)
    assert path == output == report.model
    assert [each.name for each in output.parent.iterdir()] == ["sparse.onnx"]
    assert contents(tmp_path) == before
    expected, found = constants_of(sparsify_onnx(mlp(), [inputs()], **ASK)[0]), constants_of(onnx.load_model(path))
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)


def test_constants_in_another_file_stay_in_another_file(external, tmp_path):
    before = contents(external.parent)
    expected = constants_of(sparsify_onnx(mlp(), [inputs()], **ASK)[0])
    path, _ = sparsify_onnx(str(external), [inputs()], output=tmp_path / "sparse.onnx", **ASK)
    assert contents(external.parent) == before
    assert {each.name for each in tmp_path.iterdir()} == {"in", "sparse.onnx", "sparse.onnx.data"}
    written = onnx.load_model(path, load_external_data=False)
    outside = [t for t in written.graph.initializer if onnx.external_data_helper.uses_external_data(t)]
    assert [t.name for t in outside] == ["w0", "w1"]  # those that are worth a place there
    found = onnx.load_model(path)
    for name, value in expected.items():
        np.testing.assert_array_equal(constants_of(found)[name], value)
    onnx.checker.check_model(str(path), full_check=True)
    assert np.isfinite(run(found, {"x": inputs()}, "y")[0]).all()
    returned, _ = sparsify_onnx(external, [inputs()], **ASK)  # all in one
    for name, value in expected.items():
        np.testing.assert_array_equal(constants_of(returned)[name], value)


def test_models_too_large_for_one_file_come_and_go_with_external_data(external, tmp_path, monkeypatch):
    monkeypatch.setattr("sisopt.adapters.onnx.model.MOST_BYTES", 1000)
    with pytest.raises(InvalidInputError, match="save it with external data and give its path"):
        sparsify_onnx(mlp(), [inputs()], output=tmp_path / "sparse.onnx", **ASK)
    with pytest.raises(InvalidInputError, match="too large to be returned: name a file .* with output="):
        sparsify_onnx(external, [inputs()], **ASK)
    path, _ = sparsify_onnx(external, [inputs()], output=tmp_path / "sparse.onnx", **ASK)
    assert path.stat().st_size < 1000 < (tmp_path / "sparse.onnx.data").stat().st_size


def test_constants_that_a_file_may_not_hold_are_written_to_another(tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "MOST_BYTES", 1000)
    onnx.save_model(mlp(), tmp_path / "model.onnx")
    path, _ = sparsify_onnx(tmp_path / "model.onnx", [inputs()], output=tmp_path / "sparse.onnx", **ASK)
    assert path.stat().st_size < 1000 < (tmp_path / "sparse.onnx.data").stat().st_size


@pytest.mark.parametrize("name", ["model.json", "model.textproto", "model"])
def test_the_format_does_not_follow_the_name(name, tmp_path):
    path, _ = sparsify_onnx(mlp(), [inputs()], output=tmp_path / name, **ASK)
    assert onnx.load_model(path, "protobuf").graph.node
    sparsify_onnx(path, [inputs()], output=path, overwrite=True, **ASK)


@pytest.mark.parametrize(("name", "message"), [
    ("file/sparse.onnx", "file is no folder"), ("file/below/sparse.onnx", "file is no folder"),
    ("folder", "folder is a folder; name a file"), ("pipe", "pipe is no ordinary file"),
])  # fmt: skip
def test_what_cannot_be_written_is_refused_before_the_work(name, message, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidInputError, match=message):
        sparsify_onnx(mlp(), pytest.fail, output=tmp_path / name, overwrite=True, **ASK)


def test_a_model_without_its_constants_is_refused(external):
    model = onnx.load_model(external, load_external_data=False)
    with pytest.raises(InvalidInputError, match="external data that are not loaded: give its path"):
        sparsify_onnx(model, [inputs()], **ASK)
    (external.parent / "constants.bin").unlink()
    with pytest.raises(InvalidInputError, match="model .* is not valid ONNX"):
        sparsify_onnx(external, [inputs()], **ASK)


def test_files_are_written_over_on_request_alone(external):
    folder = external.parent
    before = contents(folder)
    with pytest.raises(InvalidInputError, match="exists; name another file"):
        sparsify_onnx(external, [inputs()], output=external, **ASK)
    (folder / "other.onnx.data").write_bytes(b"of something else")
    with pytest.raises(InvalidInputError, match="other.onnx.data exists"):
        sparsify_onnx(external, [inputs()], output=folder / "other.onnx", **ASK)
    assert contents(folder) == before | {"other.onnx.data": b"of something else"}
    for _ in range(2):  # over itself, and over what that made
        path, report = sparsify_onnx(external, [inputs()], output=external, overwrite=True, **ASK)
    found = constants_of(onnx.load_model(path))
    assert sum(np.count_nonzero(found[name]) for name in ("w0", "w1")) == report.n_kept == 270


def test_a_disk_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    output = tmp_path / "sparse.onnx"
    output.write_bytes(b"an older one")

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing.os, "replace", full)
    with pytest.raises(SisoptError, match="cannot be written: No space left on device"):
        sparsify_onnx(mlp(), [inputs()], output=output, overwrite=True, **ASK)
    assert contents(tmp_path) == {"sparse.onnx": b"an older one"}


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(InvalidInputError, match="cannot be read: No such file"):
        sparsify_onnx(tmp_path / "nothing.onnx", [inputs()], **ASK)
    (tmp_path / "text.onnx").write_text("this is no model")
    with pytest.raises(InvalidInputError, match="is no ONNX model|is not valid ONNX"):
        sparsify_onnx(tmp_path / "text.onnx", [inputs()], **ASK)
    broken = mlp()
    broken.graph.node[0].input[0] = "nowhere"
    with pytest.raises(InvalidInputError, match="model is not valid ONNX"):
        sparsify_onnx(broken, [inputs()], **ASK)
