"""Calibration data of ONNX models: batches as they come, padding, memory, threads, and what is refused."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest

pytest.importorskip("onnxruntime")

from sisopt.adapters.onnx import sessions, sparsify_onnx
from sisopt.adapters.onnx.digest import digest, digest_of_graph
from sisopt.adapters.onnx.graph import Graph
from sisopt.errors import CheckpointError, InvalidInputError, UnsupportedError
from tests.onnx_graphs import constants_of, graph_model, inputs, mlp

FAST = {"effort": "fast", "progress": False}


def two_inputs():
    rng = np.random.default_rng(0)
    w, v = rng.normal(size=(2, 6, 5)).astype(np.float32)
    return graph_model(
        "a = MatMul(tokens, w) m = Unsqueeze(attention_mask, last) b = Mul(a, m) y = MatMul(b, v)",
        {"tokens": ("n", "length", 6), "attention_mask": ("n", "length")},
        w=w, v=v[:5], last=np.array([2]),
    )  # fmt: skip


def seen_by(model, batches, **options):
    found = []

    def solver(X, weight, bias, goal):
        found.append(X.copy())
        return weight * (np.arange(weight.size).reshape(weight.shape) % 2), bias

    sparsify_onnx(model, batches, sparsity=0.5, layer_solver=solver, progress=False, **options)
    return found


def test_batches_are_arrays_tuples_or_mappings():
    x = inputs()
    expected = constants_of(sparsify_onnx(mlp(), [x, x + 1], sparsity=0.5, **FAST)[0])
    for batches in (np.stack([x, x + 1]), ((x,), [x + 1]), [{"x": x}, {"x": x + 1}], iter([x, x + 1])):
        found = constants_of(sparsify_onnx(mlp(), batches, sparsity=0.5, **FAST)[0])
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value)
    tokens, mask = np.ones((2, 3, 6), np.float32), np.ones((2, 3), np.float32)
    by_place, by_name = (
        seen_by(two_inputs(), [b]) for b in ((tokens, mask), {"attention_mask": mask, "tokens": tokens})
    )
    np.testing.assert_array_equal(by_place[0], by_name[0])


def test_other_precisions_are_cast_and_other_types_refused():
    x = np.random.default_rng(0).integers(-3, 4, size=(30, 20))
    np.testing.assert_array_equal(seen_by(mlp(), [x.astype(np.float64)])[0], x)
    np.testing.assert_array_equal(seen_by(mlp(), [x])[0], x)
    with pytest.raises(InvalidInputError, match="input 'x' of batch 0 must be float32, got complex128"):
        seen_by(mlp(), [x * 1j])


WRONG = {
    "batches holds none": [],
    "batches must be an iterable": 3,
    "batches must be an iterable of batches, got a mapping": {"x": inputs()},
    "batch 1 must have the model's inputs 'x'; it comes without 'x', with 'z'": [inputs(), {"z": inputs()}],
    "batch 0 must have the model's inputs 'x'; it comes without 'x'": [()],
    "batch 0 has 40 entries for 1 inputs; a tuple or list holds one per input": [list(inputs(40))],
    "input 'x' of batch 1 must be (n, 20), got (200, 7)": [inputs(), inputs(width=7)],
    "input 'x' of batch 0 must be (n, 20), got (20,)": [inputs()[0]],
    "hold NaN or infinite": [inputs() * np.float32(np.nan)],
}


@pytest.mark.parametrize("message", WRONG)
def test_batches_that_do_not_fit_are_refused(message):
    with pytest.raises(InvalidInputError, match=re.escape(message)):
        sparsify_onnx(mlp(), WRONG[message], sparsity=0.5, **FAST)


def test_integers_do_not_wrap_around():
    model = graph_model("e = Gather(t, ids) y = MatMul(e, w)", {"ids": ("n",)}, t=np.eye(6, dtype=np.float32),
                        w=np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32))  # fmt: skip
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.INT32
    ids = np.arange(6)
    np.testing.assert_array_equal(seen_by(model, [ids])[0], np.eye(6))
    with pytest.raises(
        InvalidInputError, match="input 'ids' of batch 0 must be int32, got values from .* to 4294967299"
    ):
        seen_by(model, [ids + 2**32 - 2])


def test_sizes_that_a_model_leaves_open_are_any():
    model = graph_model("y = MatMul(x, w)", {"x": ("n", 20)}, w=constants_of(mlp())["w1"][:20])
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1  # as Paddle writes it
    assert len(seen_by(model, [inputs()])[0]) == 200


def test_arguments_that_make_no_sense_are_refused():
    for options, message in (
        ({}, "nothing is asked for"),
        ({"sparsity": 1.5}, "sparsity"),
        ({"sparsity": 0.5, "max_samples": 0}, "max_samples must be at least 1"),
        ({"sparsity": 0.5, "max_samples": 10**12}, "at most 100,000,000, got 1,000,000,000,000"),
        ({"sparsity": 0.5, "include": 3}, "include takes globs"),
        ({"sparsity": 0.5, "activations": "relu"}, "activations must be a mapping"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            sparsify_onnx(mlp(), [inputs()], **options)
    with pytest.raises(InvalidInputError, match=r"model must be an onnx.ModelProto or a path, got int"):
        sparsify_onnx(3, [inputs()], sparsity=0.5)
    with pytest.raises(UnsupportedError, match="model has no layers that can be made sparse"):
        sparsify_onnx(graph_model("y = Relu(x)", {"x": (3,)}), [np.ones(3)], sparsity=0.5)


def test_tokens_of_padding_count_nowhere():
    tokens = np.random.default_rng(0).normal(size=(2, 4, 6)).astype(np.float32)
    mask = np.array([[1, 1, 0, 0], [1, 1, 1, 0]], np.float32)
    first, second = seen_by(two_inputs(), [{"tokens": tokens, "attention_mask": mask}])
    np.testing.assert_array_equal(first, tokens[mask == 1])
    assert len(second) == 5
    everywhere, _ = seen_by(two_inputs(), [(tokens, np.ones((2, 4), np.float32))])
    np.testing.assert_array_equal(everywhere, tokens.reshape(-1, 6))


def test_samples_are_drawn_from_all_batches_by_seed():
    batches = [inputs(seed=i) for i in range(3)]
    first = seen_by(mlp(), batches, max_samples=31, seed=4)[0]
    assert len(first) == 31
    assert [sum((row == batch).all(axis=1).any() for row in first) for batch in batches] == [10, 10, 11]
    np.testing.assert_array_equal(seen_by(mlp(), batches, max_samples=31, seed=4)[0], first)
    assert not np.array_equal(seen_by(mlp(), batches, max_samples=31, seed=5)[0], first)


def branched():
    """Two convolutions whose outputs meet again: passes hold one value while the other layer is made sparse."""
    rng = np.random.default_rng(0)
    return graph_model(
        """a = Conv <pads = [1, 1, 1, 1]> (x, w0, b) r = Relu(a) c = Conv <group = 2> (r, w1) d = Sigmoid(c)
        e = Conv(r, w2, b) s = Mul(d, e) y = Conv(s, w0)""",
        {"x": ("n", 4, 5, 5)},
        w0=rng.normal(size=(4, 4, 3, 3)).astype(np.float32),
        w1=rng.normal(size=(4, 2, 3, 3)).astype(np.float32),
        w2=rng.normal(size=(4, 4, 3, 3)).astype(np.float32),
        b=rng.normal(size=4).astype(np.float32),
    )


def bits(model):
    return {name: value.tobytes() for name, value in constants_of(model).items()}


def test_threads_and_memory_do_not_change_a_bit():
    rng = np.random.default_rng(1)
    batches = [rng.normal(size=(6, 4, 5, 5)).astype(np.float32) for _ in range(3)]
    model = branched()
    sparse, report = sparsify_onnx(model, batches, sparsity=0.6, n_threads=1, **FAST)
    assert [layer.status[:4] for layer in report.layers] == ["kept", "done", "done", "kept"]  # w0 is in two layers
    for options in ({"n_threads": 2}, {"max_memory": 0}):  # the second: passes run again, data in files
        found, _ = sparsify_onnx(model, batches, sparsity=0.6, **options, **FAST)
        assert bits(found) == bits(sparse)


def test_huge_constants_are_lent(monkeypatch):
    expected, _ = sparsify_onnx(mlp(), [inputs()], sparsity=0.6, **FAST)
    monkeypatch.setattr(sessions, "HUGE", 0)
    found, _ = sparsify_onnx(mlp(), [inputs()], sparsity=0.6, **FAST)
    for name, value in constants_of(expected).items():
        np.testing.assert_allclose(constants_of(found)[name], value, rtol=1e-4, atol=1e-5)


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(tmp_path):
    pytest.importorskip("safetensors")
    batches = [inputs(), inputs(seed=2)]
    whole, report = sparsify_onnx(mlp(), batches, sparsity=0.7, **FAST)

    class Stop(Exception):
        pass

    def until_the_second():
        yield from batches

    folder = tmp_path / "run"
    import sisopt.network.run as run_module

    solve, calls = run_module._Run._layer, []

    def stops(self, number, info, programs):
        calls.append(number)
        if len(calls) == 2:
            raise Stop
        return solve(self, number, info, programs)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        patch.setattr(run_module._Run, "_layer", stops)
        sparsify_onnx(mlp(), until_the_second(), sparsity=0.7, checkpoint=folder, **FAST)
    for _ in range(2):  # the rest, then nothing any more
        found, again = sparsify_onnx(mlp(), batches, sparsity=0.7, checkpoint=folder, **FAST)
        assert bits(found) == bits(whole)
        assert [layer.n_kept for layer in again.layers] == [layer.n_kept for layer in report.layers]
    for other in ({"model": mlp(seed=5)}, {"batches": [inputs()]}, {"sparsity": 0.6}):
        given = {"model": mlp(), "batches": batches, "sparsity": 0.7} | other
        with pytest.raises(CheckpointError, match="another call"):
            sparsify_onnx(**given, checkpoint=folder, **FAST)


def test_what_nodes_mean_tells_models_apart():
    def fingerprint(**given):
        return digest_of_graph(Graph(graph_model("y = MatMul(x, w)", {"x": ("n", 2)}, w=np.eye(2), **given)))

    assert fingerprint() == fingerprint() != fingerprint(opset=16)
    model = graph_model("y = MatMul(x, w)", {"x": ("n", 2)}, w=np.eye(2))
    model.functions.append(onnx.helper.make_function("own", "f", ["a"], ["b"], [], model.opset_import))
    assert digest_of_graph(Graph(model)) != fingerprint()


def test_long_arrays_of_text_are_told_apart_whole():
    words = np.array(["a"] * 2000, dtype=object)
    other = words.copy()
    other[1000] = "b"
    assert digest(words) == digest(words.copy()) != digest(other)
    assert digest(words) != digest(words.reshape(2, 1000))
