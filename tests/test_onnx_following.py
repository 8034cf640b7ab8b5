"""What follows a layer is read from the graph: activations however they are spelled, constants that are affine."""

from __future__ import annotations

import math

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

from sisopt.activations.increasing import ELU
from sisopt.activations.piecewise import Clip, LeakyReLU, SoftShrink
from sisopt.adapters.onnx.following import follow
from sisopt.adapters.onnx.graph import Graph
from sisopt.adapters.onnx.sites import find_sites
from tests.onnx_graphs import graph_model, run

SPELLINGS = {
    "relu": ["y = Relu(z)", "c = Constant <value = float {0}> () y = Max(z, c)", "a = Identity(z) y = Relu(a)"],
    "relu6": [
        "l = Constant <value = float {0}> () h = Constant <value = float {6}> () y = Clip(z, l, h)",
        "h = Constant <value_float = 6.0> () a = Relu(z) y = Min(a, h)",
    ],
    "hard_swish": [
        "y = HardSwish(z)",
        "a = HardSigmoid <alpha = 0.16666667, beta = 0.5> (z) y = Mul(z, a)",
        """t = Constant <value = float {3}> () l = Constant <value = float {0}> () h = Constant <value = float {6}> ()
        a = Add(z, t) b = Clip(a, l, h) c = Mul(z, b) y = Div(c, h)""",
    ],
    "silu": ["a = Sigmoid(z) y = Mul(z, a)"],
    "mish": ["y = Mish(z)", "a = Softplus(z) b = Tanh(a) y = Mul(z, b)"],
    "gelu": [
        "y = Gelu(z)",
        """r = Constant <value = float {1.4142135}> () o = Constant <value = float {1}> ()
        f = Constant <value = float {0.5}> () a = Div(z, r) b = Erf(a) c = Add(b, o) d = Mul(z, c) y = Mul(d, f)""",
        """r = Constant <value = float {0.70710677}> () o = Constant <value = float {1}> ()
        f = Constant <value = float {0.5}> () g = Mul(z, f) a = Mul(z, r) b = Erf(a) c = Add(o, b) y = Mul(g, c)""",
    ],
    "gelu_tanh": [
        'y = Gelu <approximate = "tanh"> (z)',
        """e = Constant <value = float {3}> () k = Constant <value = float {0.044715}> ()
        s = Constant <value = float {0.7978846}> () o = Constant <value = float {1}> ()
        f = Constant <value = float {0.5}> () a = Pow(z, e) b = Mul(a, k) c = Add(z, b) d = Mul(c, s) t = Tanh(d)
        u = Add(t, o) v = Mul(z, u) y = Mul(v, f)""",
    ],
    "sigmoid": ["y = Sigmoid(z)"],
    "tanh": ["y = Tanh(z)"],
    "softplus": ["y = Softplus(z)"],
    "softsign": ["y = Softsign(z)"],
    "selu": ["y = Selu(z)"],
    "arctan": ["k = Constant <value = float {0.63661975}> () a = Atan(z) y = Mul(a, k)"],
    "softmax": ["y = Softmax <axis = -1> (z)", "y = Softmax <axis = 1> (z)"],
    "log_softmax": ["y = LogSoftmax(z)"],
    "hard_sigmoid": ["y = HardSigmoid <alpha = 0.16666667> (z)", "y = HardSigmoid(z)"],
    "identity": [
        "y = Identity(z)",
        "y = Add(z, z)",
        "y = Softmax <axis = 0> (z)",
        "k = Constant <value = float {1.702}> () a = Mul(z, k) b = Sigmoid(a) y = Mul(z, b)",  # no known one
        "a = Relu(z) b = Sigmoid(z) y = Add(a, b)",
        "a = Transpose(z) y = MatMul(z, a)",
        "y = Sin(z)",
    ],
}
PARAMETERS = {
    "l = Constant <value = float {-2}> () h = Constant <value = float {3}> () y = Clip(z, l, h)": Clip(-2, 3),
    "l = Constant <value = float {0.5}> () y = Clip(z, l)": Clip(0.5, math.inf),
    "y = LeakyRelu <alpha = 0.2> (z)": LeakyReLU(0.2),
    "s = Constant <value = float {0.25}> () y = PRelu(z, s)": LeakyReLU(0.25),
    "k = Constant <value = float {0.1}> () a = Mul(z, k) y = Max(z, a)": LeakyReLU(0.1),
    "y = Elu <alpha = 0.7> (z)": ELU(0.7),
    "y = Shrink <lambd = 0.3, bias = 0.3> (z)": SoftShrink(0.3),
}


def followed(nodes, outputs="y", shape=("n", 4), opset=20, rank=2, **constants):
    rng = np.random.default_rng(0)
    w, b = rng.normal(size=(4, 5)).astype(np.float32), rng.normal(size=5).astype(np.float32)
    bias = {"bias": b} if "bias)" in nodes else {}
    graph = Graph(graph_model(nodes, {"x": shape}, outputs, opset, w=w, **bias, **constants))
    (site,) = [site for site in find_sites(graph) if not site.reason]
    return follow(graph, site, rank)


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in SPELLINGS.items() for text in texts])
def test_an_activation_is_known_by_what_it_computes(name, text):
    assert followed(f"z = Gemm(x, w, bias) {text}").activation.name == name


@pytest.mark.parametrize("text", PARAMETERS)
def test_parameters_of_activations_are_those_of_the_nodes(text):
    assert followed(f"z = Gemm(x, w, bias) {text}").activation == PARAMETERS[text]


def test_softmax_of_old_models_is_over_all_axes_from_its_own():
    tokens = {"shape": ("n", 6, 4), "opset": 11, "rank": 3}
    assert followed("z = MatMul(x, w) y = Softmax <axis = 2> (z)", **tokens).activation.name == "softmax"
    assert followed("z = MatMul(x, w) y = Softmax <axis = 1> (z)", **tokens).activation.name == "identity"
    assert followed("z = MatMul(x, w) y = Softmax(z)", **tokens).activation.name == "identity"


def test_shapes_on_the_way_do_not_matter_and_asking_for_one_is_no_use():
    moved = "s = Constant <value_ints = [1, -1]> () m = Reshape(z, s) a = Relu(m) t = Transpose(a)"
    assert followed(f"z = Gemm(x, w, bias) k = Shape(z) {moved} y = Reshape(t, k)").activation.name == "relu"
    # where entries meet others, it is no function of one entry
    assert (
        followed("z = Gemm(x, w, bias) t = Transpose(z) s = Sigmoid(t) y = MatMul(z, s)").activation.name == "identity"
    )


@pytest.mark.parametrize("text", ["a = Relu(z) y = Neg(a) v = Exp(z)", "y = Relu(z)"])
def test_a_value_that_is_used_elsewhere_is_kept_as_it_is(text):
    outputs = "y v" if "v =" in text else "y z"
    assert followed(f"z = Gemm(x, w, bias) {text}", outputs).activation.name == "identity"


AFFINE = {
    "Gemm": "z = Gemm <alpha = 0.5, beta = 2.0> (x, w, b)",
    "Gemm without bias": "z = Gemm <alpha = -1.5> (x, w)",
    "MatMul": "p = MatMul(x, w) z = Add(p, b)",
    "MatMul with the bias first": "p = MatMul(x, w) z = Add(b, p)",
    "subtraction": "p = MatMul(x, w) z = Sub(p, b)",
    "subtraction from a constant": "p = MatMul(x, w) z = Sub(b, p)",
    "product": "p = MatMul(x, w) q = Mul(p, k) z = Add(q, b)",
    "quotient": "p = MatMul(x, w) q = Add(p, b) z = Div(q, k)",
    "scalars": "p = Gemm(x, w, b) q = Mul(s, p) z = Add(q, s)",
    "scalar bias": "p = MatMul(x, w) z = Add(p, s)",
    "batch normalisation": "p = Gemm(x, w, b) z = BatchNormalization(p, k, b, m, v)",
    "batch normalisation alone": "p = MatMul(x, w) z = BatchNormalization <epsilon = 0.1> (p, k, b, m, v)",
}


@pytest.mark.parametrize("name", AFFINE)
def test_what_is_affine_is_folded_in_and_taken_out_again(name):
    rng = np.random.default_rng(1)
    k, m = rng.normal(size=(2, 5)).astype(np.float32)
    constants = {
        "w": rng.normal(size=(4, 5)).astype(np.float32),
        "b": rng.normal(size=5).astype(np.float32),
        "k": k, "m": m, "v": rng.random(5).astype(np.float32), "s": np.float32([0.7]),
    }  # fmt: skip
    x = rng.normal(size=(6, 4)).astype(np.float32)
    used = {key: value for key, value in constants.items() if f"{key}," in AFFINE[name] or f"{key})" in AFFINE[name]}
    model = graph_model(f"{AFFINE[name]} y = Relu(z)", {"x": ("n", 4)}, w=constants["w"],
                        **{key: value for key, value in used.items() if key != "w"})  # fmt: skip
    graph = Graph(model)
    (site,) = find_sites(graph)
    found = follow(graph, site, 2)
    assert (found.end, found.activation.name) == ("z", "relu")
    (matrix,) = site.kind.matrices(constants["w"])
    rows = slice(0, 5)
    Z = x @ found.affine.folded(matrix, rows).T + found.affine.offset
    np.testing.assert_allclose(Z, run(model, {"x": x}, "z")[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.affine.unfolded(found.affine.folded(matrix, rows), rows), matrix, rtol=1e-5)
    if name == "Gemm without bias":
        assert found.affine.bias is None
    else:  # the constant that takes up a bias gives the old one back for the old one
        place = found.affine.slot.places[0]
        old = graph.constant(graph.nodes[place.node].input[place.input])
        same = found.affine.slot_value(graph, found.affine.offset)
        np.testing.assert_allclose(same, np.broadcast_to(old, same.shape), rtol=1e-6)
        assert same.dtype == np.float32


def test_what_is_added_by_no_constant_stays_outside():
    found = followed("z = Gemm(x, w, e) y = Relu(z)", shape=("n", 4), e=np.ones((7, 5), np.float32))
    assert (found.affine.bias, found.activation.name, found.end) == (None, "identity", "")
    found = followed("p = MatMul(x, w) z = Add(p, e) y = Relu(z)", shape=("n", 4), e=np.ones((7, 5), np.float32))
    assert (found.affine.bias, found.activation.name, found.end) == (None, "identity", "p")
