"""Constants in every precision, held in every way; outputs that are no numbers any more are never given out."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

pytest.importorskip("onnxruntime")

from sisopt.adapters.onnx import network, sparsify_onnx
from sisopt.errors import SisoptError, UnsupportedError
from tests.onnx_graphs import constants_of, graph_model, inputs, mlp, run
from tests.test_onnx_model import halved, weights


def mlp_in(dtype):
    """Return a small network in a precision of its own."""
    model = mlp()
    for tensor in model.graph.initializer:
        tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype(dtype), tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return model


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_every_precision_comes_back_as_it_was(dtype):
    x = np.random.default_rng(3).normal(size=(200, 20))  # in float64: float32 has no room for all of it
    sparse, report = sparsify_onnx(mlp_in(dtype), [x], sparsity=0.6, effort="fast", progress=False)
    assert {value.dtype for value in constants_of(sparse).values()} == {np.dtype(dtype)}
    assert report.sparsity == pytest.approx(0.6)
    assert run(sparse, {"x": x.astype(dtype)}, "y")[0].dtype == dtype


@pytest.mark.parametrize("place", ["weight", "bias"])
def test_what_float16_cannot_hold_is_refused_by_name(place):
    def far(X, weight, bias, goal):
        found, moved = halved(X, weight, bias, goal)
        return (found * np.float32(1e6), bias) if place == "weight" else (found, moved + np.float32(1e6))

    with pytest.raises(UnsupportedError, match="layer 'w0': .* do not fit into float16: leave it out with exclude="):
        sparsify_onnx(mlp_in(np.float16), [inputs()], sparsity=0.5, layer_solver=far, progress=False)


@pytest.mark.parametrize(("bias", "n_bias"), [("value_float = 0.5", 1), ("value_floats = [0.5, 1.0, -1.0]", 3)])
def test_constants_held_as_plain_numbers_are_written_back(bias, n_bias):
    text = f"b = Constant <{bias}> () z = MatMul(x, w) q = Add(z, b) y = Relu(q)"
    model = graph_model(text, {"x": ("n", 6)}, w=weights((6, 3)))
    sparse, _ = sparsify_onnx(model, [inputs(60, 6)], sparsity=0.5, layer_solver=halved, progress=False)
    found = onnx.numpy_helper.to_array(next(n for n in sparse.graph.node if n.op_type == "Constant").attribute[0].t)
    np.testing.assert_allclose(found, np.resize([0.5, 1.0, -1.0] if n_bias == 3 else 0.5, 3) + 1)


def test_outputs_that_are_no_numbers_any_more_are_an_error():
    text = "z = MatMul(x, w) a = Relu(z) s = ReduceSum <keepdims = 1> (a, axes) y = Div(a, s)"
    model = graph_model(text, {"x": ("n", 6)}, w=np.abs(weights((6, 3))) + 1, axes=np.array([1]))

    def empty(X, weight, bias, goal):
        return np.zeros_like(weight), bias

    with pytest.raises(SisoptError, match="output 'y' holds NaN or infinite values, the dense one's does not"):
        sparsify_onnx(model, [np.abs(inputs(60, 6)) + 1], sparsity=0.5, layer_solver=empty, progress=False)


def test_a_model_with_nan_in_it_is_never_given_out(monkeypatch):
    monkeypatch.setattr(network, "_in_dtype", lambda name, values, dtype: np.full_like(values, np.nan, dtype))
    with pytest.raises(
        SisoptError, match="layer 'w0': 100.0% of the pre-activations in the sparse model are not those"
    ):
        sparsify_onnx(mlp(), [inputs()], sparsity=0.5, include="w0", effort="fast", progress=False)


def test_padding_may_come_as_nan():
    model = graph_model(
        "u = Unsqueeze(attention_mask, last) l = Log(u) t = Mul(x, l) y = MatMul(t, w)",  # 0 * -inf where the mask is 0
        {"x": ("n", 3, 4), "attention_mask": ("n", 3)}, w=weights((4, 5)), last=np.array([2]),
    )  # fmt: skip
    mask = np.array([[2, 2, 0], [2, 0, 0], [2, 2, 2]] * 9, np.float32)
    x = inputs(27, 12).reshape(27, 3, 4) * (mask > 0)[..., None]
    _, report = sparsify_onnx(model, [(x, mask)], sparsity=0.5, effort="fast", progress=False)
    assert report.sparsity == 0.5
