"""Nodes as matrices: their inputs times the matrices are what onnxruntime computes, whatever the node's attributes."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

from sisopt.adapters.onnx.graph import Graph
from sisopt.adapters.onnx.sites import find_sites
from tests.onnx_graphs import graph_model, run

CONVOLUTIONS = {
    "plain": ("", (2, 3, 7, 6), (4, 3, 3, 2)),
    "pads": ("pads = [1, 0, 2, 1]", (2, 3, 7, 6), (4, 3, 3, 2)),
    "strides": ("strides = [2, 3], pads = [1, 1, 1, 1]", (2, 3, 9, 8), (4, 3, 3, 3)),
    "dilations": ("dilations = [2, 1], pads = [2, 0, 2, 0]", (2, 3, 7, 6), (4, 3, 3, 2)),
    "groups": ("group = 2", (2, 4, 6, 6), (6, 2, 3, 3)),
    "depthwise": ("group = 4, pads = [1, 1, 1, 1], strides = [2, 1]", (2, 4, 6, 6), (4, 1, 3, 3)),
    "same upper": ('auto_pad = "SAME_UPPER", strides = [2, 2]', (2, 3, 7, 6), (4, 3, 3, 2)),
    "same lower": ('auto_pad = "SAME_LOWER"', (2, 3, 7, 6), (4, 3, 4, 2)),
    "valid": ('auto_pad = "VALID"', (2, 3, 7, 6), (4, 3, 3, 2)),
    "one axis": ("pads = [2, 0], strides = [2]", (2, 3, 11), (5, 3, 4)),
    "three axes": ("pads = [1, 0, 0, 0, 1, 0]", (1, 2, 4, 5, 3), (3, 2, 2, 3, 2)),
}
MATRICES = {
    "MatMul": ("y = MatMul(x, w)", (5, 7), (7, 3)),
    "MatMul of tokens": ("y = MatMul(x, w)", (2, 5, 7), (7, 3)),
    "MatMul of a vector": ("y = MatMul(x, w)", (7,), (7, 3)),
    "MatMul from the left": ("y = MatMul(w, x)", (2, 7, 5), (3, 7)),
    "MatMul of a vector from the left": ("y = MatMul(w, x)", (7,), (3, 7)),
    "Gemm": ("y = Gemm(x, w)", (5, 7), (7, 3)),
    "Gemm transposed": ("y = Gemm <transA = 1, transB = 1> (x, w)", (7, 5), (3, 7)),
}


def agrees(nodes, shape, stored):
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=shape).astype(np.float32), rng.normal(size=stored).astype(np.float32)
    model = graph_model(nodes, {"x": shape}, w=w)
    (site,) = find_sites(Graph(model))
    assert site.reason == ""
    call, matrices = site.kind.call(x), site.kind.matrices(w)
    at = np.arange(call.n_positions)
    found = np.concatenate([call.inputs(p, at) @ matrix.T for p, matrix in enumerate(matrices)], axis=1)
    expected = site.kind.outputs(run(model, {"x": x}, "y")[0])
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(site.kind.weight(matrices), w)
    some = at[1::2]  # positions drawn are those of the whole
    np.testing.assert_array_equal(call.inputs(0, some), call.inputs(0, at)[some])


@pytest.mark.parametrize(
    ("nodes", "shape", "stored", "real"),
    [
        ("y = MatMul(x, w)", (2, 3, 4, 5), (5, 2), [0, 1, 2, 3, 4, 5, 6, 7, 12, 13, 14, 15]),  # heads of tokens
        ("y = MatMul(x, w)", (2, 4, 5), (5, 2), None),
        ("y = MatMul(x, w)", (2, 3, 3, 5), (5, 2), None),
        ("y = Conv <pads = [1, 1]> (x, w)", (2, 5, 3), (2, 5, 3), [0, 1, 3]),
        ("y = Conv(x, w)", (2, 5, 3), (2, 5, 3), None),
    ],
)
def test_padding_of_tokens(nodes, shape, stored, real):
    (site,) = find_sites(Graph(graph_model(nodes, {"x": shape}, w=np.ones(stored, np.float32))))
    found = site.kind.call(np.ones(shape, np.float32)).real(np.array([[True, True, False], [True, False, False]]))
    assert found is None if real is None else found.tolist() == real


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_is_matrices_on_patches(name):
    attributes, shape, stored = CONVOLUTIONS[name]
    agrees(f"y = Conv <{attributes}> (x, w)" if attributes else "y = Conv(x, w)", shape, stored)


@pytest.mark.parametrize("name", MATRICES)
def test_a_product_is_a_matrix_on_vectors(name):
    agrees(*MATRICES[name])
