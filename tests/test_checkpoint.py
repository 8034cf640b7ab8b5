"""Checkpoints: what is there is whole, whatever killed the run or filled the disk; nothing foreign is touched."""

import errno
import hashlib
import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from sisopt.errors import CheckpointError, InvalidInputError
from sisopt.network import atomic_files
from sisopt.network.checkpoint import Checkpoint

load_file = pytest.importorskip("safetensors.numpy").load_file
FINGERPRINT = {"sparsity": 0.8, "layers": ["a", "b"], "seed": 0}


def arrays(number):
    rng = np.random.default_rng(number)
    return {"weight": rng.normal(size=(40, 30)).astype(np.float32), "bias": rng.normal(size=40)}


def assert_same(found, wanted):
    assert set(found) == set(wanted)
    for key, value in wanted.items():
        assert found[key].dtype == value.dtype
        np.testing.assert_array_equal(found[key], value)


def snapshot(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def store(tmp_path):
    store = Checkpoint(tmp_path / "run", FINGERPRINT)
    store.save(0, "conv.0", arrays(0), {"n_kept": 3})
    store.save(1, "head", arrays(1), {"n_kept": 4})
    return store


def test_layers_come_back_as_they_were(store):
    again = Checkpoint(store.directory, dict(reversed(FINGERPRINT.items())))
    for number, name in enumerate(("conv.0", "head")):
        found, record = again.load(number, name)
        assert_same(found, arrays(number))
        assert record == {"n_kept": 3 + number}
    assert again.finished() == 2
    assert again.load(2, "other") is None
    assert again.load(0, "other") is None
    assert repr(again).endswith("2 finished>")


@pytest.mark.parametrize(
    "array",
    [
        np.array(1.5),
        np.zeros((0, 3), np.float32),
        np.arange(24, dtype=np.float16).reshape(2, 3, 4),
        np.arange(12.0).reshape(3, 4).T,
        np.arange(12.0)[::-2],
        np.array([[True, False]]),
        np.arange(3, dtype=">f4"),
        np.array([np.nan, np.inf, -0.0]),
        np.arange(3, dtype=np.int64),
    ],
)
def test_arrays_of_any_shape(tmp_path, array):
    store = Checkpoint(tmp_path, {})
    before = array.copy()
    array.flags.writeable = False
    store.save(3, "x", {"a": array}, {})
    found = store.load(3, "x")[0]["a"]
    assert found.shape == array.shape
    assert found.dtype == array.dtype.newbyteorder("=")
    assert found.flags.writeable
    np.testing.assert_array_equal(found, before)
    np.testing.assert_array_equal(np.signbit(found.astype(float)), np.signbit(before.astype(float)))


def test_a_layer_without_arrays(tmp_path):
    store = Checkpoint(tmp_path, {})
    store.save(0, "x", {}, {"why": "dense", "gap": np.inf, "shape": (np.int64(3), 4)})
    assert store.load(0, "x") == ({}, {"why": "dense", "gap": None, "shape": [3, 4]})


@pytest.mark.parametrize("array", [np.array([1j]), np.array(["a"]), np.array([None]), np.zeros(2, np.longdouble)])
def test_arrays_that_the_format_has_not_are_refused(store, array):
    before = snapshot(store.directory)
    with pytest.raises(InvalidInputError, match=r"arrays\['a'\] must be"):
        store.save(2, "x", {"a": array}, {})
    with pytest.raises(InvalidInputError, match=r"record\['b'\] must be what JSON can hold"):
        store.save(2, "x", {}, {"b": object()})
    assert snapshot(store.directory) == before


def test_the_layout_is_plain(store):
    names = sorted(path.name for path in store.directory.iterdir())
    assert names == [
        "0000-conv.0.json", "0000-conv.0.safetensors", "0001-head.json", "0001-head.safetensors", "manifest.json",
    ]  # fmt: skip
    manifest = json.loads((store.directory / "manifest.json").read_text())
    assert manifest == {"format": "sisopt checkpoint", "version": 1, "fingerprint": FINGERPRINT}
    entry = json.loads((store.directory / "0001-head.json").read_text())
    data = (store.directory / "0001-head.safetensors").read_bytes()
    assert (entry["number"], entry["name"], entry["record"]) == (1, "head", {"n_kept": 4})
    assert entry["sha256"] == hashlib.sha256(data).hexdigest()
    assert_same(load_file(store.directory / "0001-head.safetensors"), arrays(1))


@pytest.mark.parametrize("name", ["", "a/b\\c:*?", "../../x", "ünï\ncode", "n" * 500, ".", "con"])
def test_names_of_any_kind(tmp_path, name):
    store = Checkpoint(tmp_path / "run", {})
    store.save(12345, name, arrays(0), {"a": 1})
    assert_same(Checkpoint(tmp_path / "run", {}).load(12345, name)[0], arrays(0))
    assert store.finished() == 1
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_layer_can_be_saved_again(store):
    store.save(1, "head", arrays(7), {"n_kept": 5})
    found, record = store.load(1, "head")
    assert_same(found, arrays(7))
    assert record == {"n_kept": 5}
    assert store.finished() == 2


def test_folders_are_made(tmp_path, monkeypatch):
    Checkpoint(tmp_path / "a" / "b" / "c", {}).save(0, "x", arrays(0), {})
    monkeypatch.chdir(tmp_path)
    assert Checkpoint("a/b/c", {}).finished() == 1
    (tmp_path / "empty").mkdir()
    assert Checkpoint(tmp_path / "empty", {}).finished() == 0


# Foreign, different or damaged: refused, and nothing is written


@pytest.mark.parametrize("file", ["notes.txt", "0000-a.json", "model.safetensors"])
def test_foreign_folders_are_left_alone(tmp_path, file):
    (tmp_path / file).write_text("mine")
    (tmp_path / ".sisopt-unfinished-0").write_text("mine")
    before = snapshot(tmp_path)
    with pytest.raises(CheckpointError, match=r"is no checkpoint: it is not empty and has no manifest\.json"):
        Checkpoint(tmp_path, {})
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ('{"name": "web app"}', "of something else"),
        ('{"format": "sisopt checkpoint", "version": 2}', "of version 2, this sisopt reads 1"),
        ('{"format": "sisopt checkpoint", "version": 1}', r"manifest\.json is damaged; restore it or name"),
        ("[]", "is damaged"),
        ("", "is damaged"),
        ("\xff\xfe", "is damaged"),
        ("[" * 100_000, "is damaged"),
    ],
)
def test_other_manifests_are_refused(tmp_path, manifest, message):
    (tmp_path / "manifest.json").write_bytes(manifest.encode("latin1"))
    before = snapshot(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint(tmp_path, {})
    assert snapshot(tmp_path) == before


def test_half_a_manifest_is_refused(store):
    path = store.directory / "manifest.json"
    text = path.read_bytes()
    for end in range(len(text) - 2):
        path.write_bytes(text[:end])
        with pytest.raises(CheckpointError, match="is damaged"):
            Checkpoint(store.directory, FINGERPRINT)


def test_another_fingerprint_is_refused_and_says_where_it_differs(store):
    (store.directory / ".sisopt-unfinished-0").write_text("")
    before = snapshot(store.directory)
    other = {"sparsity": 0.9, "layers": ["a", "b"], "weights": "x" * 500}
    with pytest.raises(CheckpointError) as caught:
        Checkpoint(store.directory, other)
    message = str(caught.value)
    assert "sparsity: 0.8 there, 0.9 here; seed: 0 there, absent here; weights: absent there" in message
    assert "layers" not in message
    assert "..." in message
    assert len(message) < 500 + len(str(store.directory))
    assert snapshot(store.directory) == before


def test_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CheckpointError, match="cannot be read: Not a directory"):
        Checkpoint(tmp_path / "file", {})
    with pytest.raises(CheckpointError, match="cannot be"):
        Checkpoint(tmp_path / "file" / "below", {})
    assert (tmp_path / "file").read_text() == "mine"


def test_every_flipped_byte_of_a_layer_is_noticed(store):
    for file in ("0000-conv.0.json", "0000-conv.0.safetensors"):
        path = store.directory / file
        data = path.read_bytes()
        for at in {*range(0, len(data), 97), *range(0, min(len(data), 300), 3)}:
            path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
            with pytest.raises(CheckpointError, match=r"0000-conv\.0\.(json|safetensors) is damaged.*remove 0000-conv"):
                store.load(0, "conv.0")
        path.write_bytes(data)
    assert_same(store.load(0, "conv.0")[0], arrays(0))
    assert_same(store.load(1, "head")[0], arrays(1))


@pytest.mark.parametrize("file", ["0000-conv.0.json", "0000-conv.0.safetensors"])
def test_truncated_files_are_noticed(store, file):
    path = store.directory / file
    data = path.read_bytes()
    for end in range(0, len(data) - 2, 53):
        path.write_bytes(data[:end])
        with pytest.raises(CheckpointError, match="is damaged"):
            store.load(0, "conv.0")


def test_missing_arrays_are_noticed(store):
    (store.directory / "0000-conv.0.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"cannot be read, 0000-conv\.0\.safetensors: No such file"):
        store.load(0, "conv.0")


def test_a_removed_record_is_an_unfinished_layer(store):
    (store.directory / "0000-conv.0.json").unlink()
    assert store.load(0, "conv.0") is None
    assert store.finished() == 1
    store.save(0, "conv.0", arrays(0), {})
    assert_same(store.load(0, "conv.0")[0], arrays(0))


def test_without_safetensors_nothing_is_begun(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(CheckpointError, match=r"pip install safetensors"):
        Checkpoint(tmp_path / "run", {})
    assert not (tmp_path / "run").exists()


# Disk full


def full_after(monkeypatch, n_bytes):
    """Let a file take so many bytes, then none."""

    def write(path, data):
        with path.open("xb") as file:
            file.write(data[:n_bytes])
        if len(data) > n_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(atomic_files, "_write", write)


@pytest.mark.parametrize("n_bytes", [0, 100, 1000])
@pytest.mark.parametrize(("number", "name"), [(2, "next"), (1, "head")])
def test_a_full_disk_loses_nothing(store, monkeypatch, n_bytes, number, name):
    before = snapshot(store.directory)
    with monkeypatch.context() as patch:
        full_after(patch, n_bytes)
        with pytest.raises(CheckpointError, match=rf"layer {number} \({name}\): No space left.*are intact: make room"):
            store.save(number, name, arrays(9), {})
    assert snapshot(store.directory) == before
    store.save(number, name, arrays(9), {})
    assert_same(Checkpoint(store.directory, FINGERPRINT).load(number, name)[0], arrays(9))


def test_a_record_that_finds_no_room_leaves_no_arrays(store, monkeypatch):
    before = snapshot(store.directory)
    full_after(monkeypatch, 10_000)  # the arrays fit, the record does not
    with pytest.raises(CheckpointError, match="No space left"):
        store.save(2, "next", arrays(9), {"text": "x" * 20_000})
    assert snapshot(store.directory) == before


def test_a_full_disk_from_the_beginning(tmp_path, monkeypatch):
    full_after(monkeypatch, 10)
    with pytest.raises(CheckpointError, match="cannot be written to: No space left"):
        Checkpoint(tmp_path / "run", FINGERPRINT)
    assert list((tmp_path / "run").iterdir()) == []
    monkeypatch.undo()
    assert Checkpoint(tmp_path / "run", FINGERPRINT).finished() == 0


def test_files_that_the_system_does_not_let_grow(store):
    resource = pytest.importorskip("resource")
    before = snapshot(store.directory)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(CheckpointError, match="File too large"):
            store.save(2, "next", arrays(2), {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert snapshot(store.directory) == before


def test_an_interrupted_save_leaves_nothing_behind(store, monkeypatch):
    before = snapshot(store.directory)

    def interrupt(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(atomic_files.os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        store.save(2, "next", arrays(2), {})
    assert snapshot(store.directory) == before


# Killed

DRIVER = """
    import os, random, signal, sys, time
    from pathlib import Path
    import numpy as np
    from sisopt.network import atomic_files
    from sisopt.network.checkpoint import Checkpoint

    def arrays(number, edition):
        return {"weight": np.random.default_rng([number, edition]).normal(size=(60, 50)), "edition": np.array(edition)}

    def begin(n, edition, pause):
        "Save layers, or save them again, in a child that is killed: after a time or before a step of the system."
        pid = os.fork()
        if pid:
            return pid
        try:
            left = [pause]
            def counted(step):
                def call(*arguments, **others):
                    if isinstance(pause, int):
                        left[0] -= 1
                        if left[0] < 0:
                            os.kill(os.getpid(), signal.SIGKILL)
                    return step(*arguments, **others)
                return call
            for name in ("replace", "fsync", "open"):
                setattr(atomic_files.os, name, counted(getattr(atomic_files.os, name)))
            Path.unlink, Path.open = counted(Path.unlink), counted(Path.open)
            store = Checkpoint(folder, {"seed": 1})
            for number in range(n):
                store.save(number, f"layer.{number}", arrays(number, edition), {"edition": edition})
        finally:
            os._exit(0)

    def check(n):
        "Every layer there is whole, of one edition; nothing else is there."
        store = Checkpoint(folder, {"seed": 1})
        found = [store.load(number, f"layer.{number}") for number in range(n)]
        assert sum(layer is not None for layer in found) == store.finished()
        assert not list(folder.glob(".*"))
        for number, layer in enumerate(found):
            if layer is not None:
                held, record = layer
                assert np.array_equal(held["weight"], arrays(number, record["edition"])["weight"])
                assert held["edition"] == record["edition"]
        return [layer and layer[1]["edition"] for layer in found]

    folder, mode = Path(sys.argv[1]), sys.argv[2]
    killed = 0
    if mode == "steps":
        for edition in (1, 2):  # the layers' first time, and once more over those
            for pause in range(1000):
                pid = begin(2, edition, pause)
                killed_now = os.WIFSIGNALED(os.waitpid(pid, 0)[1])
                editions = check(2)
                if not killed_now:
                    assert editions == [edition, edition], editions
                    break
                killed += 1
    else:
        dice = random.Random(0)
        for edition in range(20):
            pid = begin(3000, edition, None)
            time.sleep(dice.uniform(0.001, 0.15))
            os.kill(pid, signal.SIGKILL)
            killed += os.WIFSIGNALED(os.waitpid(pid, 0)[1])
            counts = check(3000)
        assert any(edition is not None for edition in counts)
    print(killed)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes cannot be forked here")
@pytest.mark.parametrize(("mode", "least"), [("steps", 30), ("times", 20)])
def test_what_a_killed_run_left_is_whole(tmp_path, mode, least):
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(DRIVER), str(tmp_path / "run"), mode],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) >= least
