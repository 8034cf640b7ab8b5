"""Runs that are killed, interrupted or out of room, and go on from their checkpoint to the same bits."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from torch import nn  # noqa: E402

from sisopt.adapters.torch import sparsify_model  # noqa: E402
from sisopt.errors import CheckpointError  # noqa: E402
from sisopt.network import atomic_files  # noqa: E402


class Net(nn.Module):
    """Convolution, normalisation, attention and a head."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.conv, self.norm = nn.Conv1d(2, 8, 3, bias=False), nn.BatchNorm1d(8)
        self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 5)
        self.eval()

    def forward(self, x):
        x = torch.relu(self.norm(self.conv(x))).transpose(1, 2)
        return self.head(x + self.attention(x, x, x)[0])


def batches(seed=1):
    return list(torch.randn(2, 30, 2, 8, generator=torch.Generator().manual_seed(seed)))


class Solver:
    """Keeps the largest weights; counts its calls, and after some of them raises an exception."""

    def __init__(self, most=99, error=KeyboardInterrupt):
        self.state = SimpleNamespace(calls=0, most=most, error=error)  # as a cache would be: no part of what it is

    @property
    def calls(self):
        return self.state.calls

    def __call__(self, inputs, weight, bias, goal):
        if self.calls == self.state.most:
            raise self.state.error
        self.state.calls += 1
        order = np.argsort(-np.abs(weight) * np.linalg.norm(inputs, axis=0), axis=None, kind="stable")
        sparse = np.zeros_like(weight)
        at = order[: round((1 - goal.sparsity) * weight.size)]
        sparse.flat[at] = weight.flat[at]
        return sparse, bias + np.float32(inputs.mean())


def run(model, folder=None, data=None, solver=None, **options):
    data = batches() if data is None else data
    options = {"sparsity": 0.6, **options}
    return sparsify_model(model, data, layer_solver=solver or Solver(), checkpoint=folder, **options)


def bits(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def assert_bits(model, wanted):
    assert [key for key, value in model.state_dict().items() if not torch.equal(value, wanted[key])] == []


def snapshot(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


N_PROGRAMS = 1 + 4 + 1  # of Net's layers: attention has four


@pytest.fixture(scope="module")
def whole():
    model = Net()
    return run(model), bits(model)


@pytest.mark.parametrize("mode", ["sequential", "parallel"])
@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("most", [0, 1, 3, 5])
def test_after_ctrl_c_layers_done_stay_and_the_same_call_goes_on(mode, inplace, most, tmp_path):
    plain = Net()
    wanted = run(plain, mode=mode)
    model, dense = Net(), bits(Net())
    model.train()
    model.norm.eval()
    training = [module.training for module in model.modules()]
    with pytest.warns(UserWarning, match="train mode"), pytest.raises(KeyboardInterrupt):
        run(model, tmp_path, solver=Solver(most), mode=mode, inplace=inplace)
    assert [module.training for module in model.modules()] == training
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    assert torch.is_grad_enabled()
    assert torch.backends.mha.get_fastpath_enabled()
    done = [] if most == 0 or not inplace else ["conv.weight", "norm.bias"]
    if most == 5 and inplace:
        done += [key for key in dense if key.startswith("attention")]
    for key, value in model.state_dict().items():
        assert torch.equal(value, dense[key]) is (key not in done), key
    assert torch.isfinite(model.eval()(batches()[0])).all()

    again, solver = Net(), Solver()
    report = run(again, tmp_path, solver=solver, mode=mode, inplace=inplace)
    assert_bits(report.model, bits(plain))
    assert solver.calls == N_PROGRAMS - {0: 0, 1: 1, 3: 1, 5: 5}[most]
    assert [layer.n_kept for layer in report.layers] == [layer.n_kept for layer in wanted.layers]


def test_a_finished_checkpoint_restores_at_once(tmp_path, whole):
    run(Net(), tmp_path)
    before, solver, model = snapshot(tmp_path), Solver(most=0, error=AssertionError("solved again")), Net()
    report = run(model, tmp_path, solver=solver)
    assert_bits(model, whole[1])
    assert snapshot(tmp_path) == before
    assert [layer.output_error for layer in report.layers] == [layer.output_error for layer in whole[0].layers]
    assert [layer.status for layer in report.layers] == ["done"] * 3
    assert run(model := Net(), tmp_path, max_memory=1, n_threads=1, strict=True).model is model
    assert_bits(model, whole[1])


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"model": Net(seed=1)}, "weights"),
        ({"data": batches(seed=2)}, "batches"),
        ({"data": batches()[:1]}, "batches"),
        ({"sparsity": 0.5}, "sparsity"),
        ({"seed": 1}, "seed"),
        ({"mode": "parallel"}, "mode"),
        ({"effort": "fast"}, "effort"),
        ({"max_samples": 50}, "max_samples"),
        ({"exclude": "head"}, "layers"),
        ({"activations": {"head": "relu"}}, "layers"),
        ({"goals": {"head": "2:4"}}, "goals"),
        ({"allocation": "error"}, "allocation"),
    ],
)
def test_a_checkpoint_of_another_call_is_refused(options, key, tmp_path):
    options = dict(options)
    with pytest.raises(KeyboardInterrupt):
        run(Net(), tmp_path, solver=Solver(1))
    before, model = snapshot(tmp_path), options.pop("model", None) or Net()
    dense = bits(model)
    with pytest.raises(CheckpointError, match=rf"another call \((the )?{key}"):
        run(model, tmp_path, **options)
    assert snapshot(tmp_path) == before
    assert_bits(model, dense)


@pytest.mark.parametrize(
    "change", [lambda b: b["text"].reverse(), lambda b: b["array"].fill(1.0), lambda b: b.pop("n")]
)
def test_data_that_are_no_tensors_count(change, tmp_path):
    def forward(model, batch):
        return model(batches()[0])

    batch = {"text": ["a", "b"], "array": np.zeros(3), "n": 1, "none": None, "other": object()}
    run(Net(), tmp_path, data=[batch], forward=forward)
    run(Net(), tmp_path, data=[batch | {"other": object()}], forward=forward, solver=Solver(0))
    change(batch)
    with pytest.raises(CheckpointError, match="another call"):
        run(Net(), tmp_path, data=[batch], forward=forward)


class Frame:
    __slots__ = ("rows",)

    def __init__(self, rows):
        self.rows = rows


class Table(Frame):
    def __array__(self, dtype=None, copy=None):
        return np.array(self.rows, dtype)


@pytest.mark.parametrize("kind", [Frame, Table])
def test_data_in_objects_count(kind, tmp_path):
    forward = read_rows
    for _ in range(2):
        run(Net(), tmp_path, data=[kind(batches()[0].tolist())], forward=forward)
    with pytest.raises(CheckpointError, match="another call"):
        run(Net(), tmp_path, data=[kind(batches(seed=3)[0].tolist())], forward=forward)


def read_rows(model, batch):
    return model(torch.tensor(batch.rows))


def test_another_forward_or_other_settings_of_modules_are_another_call(tmp_path):
    def forward(scale):
        return lambda model, batch: model(scale * batch)

    for _ in range(2):
        run(Net(), tmp_path, forward=forward(1.0))
    with pytest.raises(CheckpointError, match=r"another call \(the forward differ"):
        run(Net(), tmp_path, forward=forward(2.0))
    strided, heads = Net(), Net()
    strided.conv.stride, heads.attention.num_heads = (2,), 1
    for model in (strided, heads):
        with pytest.raises(CheckpointError, match=r"another call \(the modules differ"):
            run(model, tmp_path, forward=forward(1.0))


@pytest.mark.parametrize("mode", ["sequential", "parallel"])
def test_a_checkpoint_whose_later_layer_is_damaged_changes_nothing(mode, tmp_path):
    run(Net(), tmp_path, mode=mode)
    data = tmp_path / "0002-head.safetensors"
    data.write_bytes(data.read_bytes()[:-1])
    model, dense = Net(), bits(Net())
    with pytest.raises(CheckpointError, match="damaged.* or remove 0002-head.json to do that layer again"):
        run(model, tmp_path, mode=mode)
    assert_bits(model, dense)
    (tmp_path / "0002-head.json").unlink()
    run(model, tmp_path, mode=mode)
    assert (model.head.weight == 0).any()


def test_a_model_that_is_sparse_in_part_by_now_is_another_model(tmp_path):
    model = Net()
    with pytest.raises(KeyboardInterrupt):
        run(model, tmp_path, solver=Solver(1))
    with pytest.raises(CheckpointError, match=r"another call \(the weights differ"):
        run(model, tmp_path)


@pytest.mark.parametrize("n_writes", [0, 1, 2, 3, 4])
def test_a_full_disk_loses_nothing(n_writes, tmp_path, monkeypatch, whole):
    write, written = atomic_files._write, []

    def full(path, data):
        if len(written) == n_writes:
            path.write_bytes(data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path)
        write(path, data)

    monkeypatch.setattr(atomic_files, "_write", full)
    model, dense = Net(), bits(Net())
    with pytest.raises(CheckpointError, match="No space left on device"):
        run(model, tmp_path / "run")
    if n_writes <= 2:  # the manifest, then two files a layer
        assert_bits(model, dense)
    monkeypatch.undo()
    model, solver = Net(), Solver()
    run(model, tmp_path / "run", solver=solver)
    assert_bits(model, whole[1])
    assert solver.calls == N_PROGRAMS - (1 if n_writes > 2 else 0)


DRIVER = """
    import itertools, json, os, random, signal, sys, time
    from pathlib import Path

    sys.path.insert(0, sys.argv[1])
    import torch

    torch.set_num_threads(1)  # no pool of threads that a fork would lose
    from sisopt.adapters.torch.digest import digest
    from sisopt.network import atomic_files
    from test_torch_resume import Net, batches, sparsify_model

    def solve(folder):
        model = Net()
        sparsify_model(
            model, batches(), sparsity=0.6, allocation="error", effort="fast", checkpoint=folder, n_threads=1,
            activations={"head": "relu"},
        )
        return digest(model.state_dict())

    def child(folder, after=None, seconds=None):
        # Solve in a child that is killed before its file number `after` takes its place, or after some seconds.
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            replace, count = os.replace, [0]

            def killing(source, target):
                count[0] += 1
                if count[0] == after:
                    os.kill(os.getpid(), signal.SIGKILL)
                replace(source, target)

            atomic_files.os.replace = killing
            os.write(write, solve(folder).encode())
            os._exit(0)
        os.close(write)
        if seconds is not None:
            time.sleep(seconds)
            os.kill(pid, signal.SIGKILL)
        with os.fdopen(read) as pipe:
            found = pipe.read()
        os.waitpid(pid, 0)
        return found

    folder = Path(sys.argv[2])
    solve(None)
    started = time.perf_counter()
    wanted = child(folder / "whole")
    whole = time.perf_counter() - started
    n_files = []
    for after in itertools.cycle((1, 2, 3)):  # before the manifest or a layer's first file, or between its two
        found = child(folder / "files", after=after)
        n_files.append(len(list((folder / "files").glob("*.safetensors"))))
        if found:
            break
    rng = random.Random(int(sys.argv[3]))
    for _ in range(10):
        child(folder / "times", seconds=rng.uniform(0.0, whole))
    print(json.dumps({
        "wanted": wanted, "found": found, "n_files": n_files, "last": child(folder / "times"),
        "again": child(folder / "files"), "left": sorted(p.name for p in folder.glob("*/.sisopt*")),
    }))
"""


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="forks")
def test_a_run_killed_at_any_moment_goes_on_to_the_same_bits(tmp_path, request):
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(DRIVER), str(request.path.parent), str(tmp_path), "7"],
        capture_output=True, text=True, timeout=150, check=False, cwd=request.config.rootpath,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    answer = json.loads(found.stdout.splitlines()[-1])
    assert len(answer["wanted"]) == 64
    assert answer["found"] == answer["again"] == answer["last"] == answer["wanted"]
    assert answer["n_files"][-1] == 6  # three layers, and their curves
    assert len(answer["n_files"]) > 4
    assert answer["left"] == []


def test_another_model_is_told_without_hashes(tmp_path):
    sparsify_model(Net(), batches(), sparsity=0.5, effort="fast", checkpoint=tmp_path, progress=False)
    other = Net()
    with torch.no_grad():
        next(other.parameters()).add_(1.0)
    with pytest.raises(CheckpointError, match=r"of another call \(the weights differ\)"):
        sparsify_model(other, batches(), sparsity=0.5, effort="fast", checkpoint=tmp_path, progress=False)
