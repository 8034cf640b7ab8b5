"""sparsify_onnx: exact zeros that do what the solver promised, in graphs of all shapes; the model itself stays."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

pytest.importorskip("onnxruntime")

import sisopt
from sisopt.adapters.onnx import folding, sparsify_onnx
from sisopt.errors import InvalidInputError, SisoptError, UnsupportedError
from tests.onnx_graphs import constants_of, graph_model, inputs, mlp, run

FAST = {"effort": "fast", "progress": False}


def halved(W_in, weight, bias, goal):
    """A layer solver whose answer is known: half the weight, without its first column, and one more in the bias."""
    found = 0.5 * weight
    found[:, 0] = 0
    return found, None if bias is None else bias + 1


def weights(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_zeros_are_exact_in_number_and_the_model_given_stays():
    model = mlp()
    before = model.SerializeToString(deterministic=True)
    sparse, report = sparsify_onnx(model, [inputs(), inputs(seed=2)], sparsity=0.8, **FAST)
    assert model.SerializeToString(deterministic=True) == before
    found = constants_of(sparse)
    assert report.n_weights == 900
    assert sum(np.count_nonzero(found[name]) for name in ("w0", "w1")) == report.n_kept == 180
    assert [(layer.name, layer.kind, layer.activation) for layer in report.layers] == [
        ("w0", "Gemm", "relu"), ("w1", "MatMul", "identity"),
    ]  # fmt: skip
    assert [layer.flops for layer in report.layers] == [600, 300]
    assert report.model is sparse
    assert set(found) == set(constants_of(model))
    onnx.checker.check_model(sparse, full_check=True)


def test_a_layer_gets_what_sparsify_finds():
    x = inputs()
    model = mlp()
    dense = constants_of(model)
    sparse, _ = sparsify_onnx(model, [x[:120], x[120:]], sparsity=0.7, include="w0", mode="parallel", progress=False)
    layer = sisopt.sparsify(x, dense["w0"], dense["b0"], activation="relu", sparsity=0.7)
    found = constants_of(sparse)
    np.testing.assert_array_equal(found["w0"], layer.weight)
    np.testing.assert_allclose(found["b0"], layer.bias, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(found["w1"], dense["w1"])
    np.testing.assert_allclose(run(sparse, {"x": x}, "h")[0], x @ layer.weight.T + layer.bias, rtol=1e-3, atol=1e-3)


def test_targets_are_the_dense_networks_and_inputs_those_of_the_sparse_one():
    seen = []

    def solver(X, weight, bias, goal):
        seen.append(X.copy())
        return halved(X, weight, bias, goal)

    x = inputs(50)
    model = mlp()
    sparse, _ = sparsify_onnx(model, [x], sparsity=0.5, layer_solver=solver, progress=False)
    np.testing.assert_array_equal(seen[0], x)
    np.testing.assert_allclose(seen[1], run(sparse, {"x": x}, "a")[0], rtol=1e-4, atol=1e-4)
    seen.clear()
    sparsify_onnx(model, [x], sparsity=0.5, mode="parallel", layer_solver=solver, progress=False)
    np.testing.assert_allclose(seen[1], run(model, {"x": x}, "a")[0], rtol=1e-4, atol=1e-4)


FOLDED = {
    "bias of its own": "p = Conv <pads = [1, 1, 1, 1]> (x, w, b) y = Relu(p)",
    "batch norm": "p = Conv <pads = [1, 1, 1, 1]> (x, w, b) q = BatchNormalization(p, k, s, m, v) y = Relu(q)",
    "batch norm for a bias": "p = Conv <group = 2> (x, g) q = BatchNormalization(p, k, s, m, v) y = Relu(q)",
    "addition": "p = Conv <group = 2> (x, g) q = Add(p, c) y = Clip(q)",
    "scalars": "p = Conv(x, w) q = Mul(p, one) r = Add(q, one) y = HardSwish(r)",
    "Paddle's": "p = Conv(x, w, b) q = Mul(one, p) y = HardSigmoid <alpha = 0.2> (q)",
}


@pytest.mark.parametrize("name", FOLDED)
def test_what_is_found_for_a_layer_is_what_its_nodes_compute(name):
    rng = np.random.default_rng(3)
    text = FOLDED[name]
    every = {
        "w": rng.normal(size=(4, 2, 3, 3)), "g": rng.normal(size=(4, 1, 3, 3)), "b": rng.normal(size=4),
        "k": rng.normal(size=4), "s": rng.normal(size=4), "m": rng.normal(size=4), "v": rng.random(4),
        "c": rng.normal(size=(4, 1, 1)), "one": np.array([0.3]),
    }  # fmt: skip
    used = {key: value.astype(np.float32) for key, value in every.items() if f" {key}," in text or f" {key})" in text}
    used |= {"one": np.float32([0.3])} if "one" in text else {}
    model = graph_model(text, {"x": ("n", 2, 6, 6)}, opset=17, **used)
    x = rng.normal(size=(5, 2, 6, 6)).astype(np.float32)
    end = "r" if name == "scalars" else "q" if " q =" in text else "p"
    before = run(model, {"x": x}, end)[0]
    sparse, report = sparsify_onnx(model, [x], sparsity=0.5, layer_solver=halved, progress=False)
    # half the matrix, less its first column, and a bias larger by 1: in units of what the activation gets
    weight = "g" if "group" in text else "w"
    kept = used[weight].copy()
    kept.reshape(4, -1)[:, 0] = 0
    known = {key: value for key, value in used.items() if key != weight}
    half = run(graph_model(text, {"x": ("n", 2, 6, 6)}, opset=17, **known, **{weight: 0.5 * kept}), {"x": x}, end)[0]
    slope = 1.2 if name == "Paddle's" else 1.0  # to hard-sigmoid's usual inputs
    np.testing.assert_allclose(run(sparse, {"x": x}, end)[0], half + 1.0 / slope, rtol=1e-3, atol=1e-3)
    assert report.n_kept == np.count_nonzero(kept)
    assert before.shape == half.shape


def test_a_wrong_model_is_never_given_out(tmp_path, monkeypatch):
    right = folding.Affine.unfolded
    monkeypatch.setattr(folding.Affine, "unfolded", lambda self, matrix, rows: 1.01 * right(self, matrix, rows))
    with pytest.raises(SisoptError, match="layer 'w0': .* are not those of the matrix that was found"):
        sparsify_onnx(mlp(), [inputs()], sparsity=0.5, output=tmp_path / "sparse.onnx", **FAST)
    assert list(tmp_path.iterdir()) == []


def test_a_layer_that_is_called_twice_is_one_layer_on_all_of_its_inputs():
    seen = []

    def solver(X, weight, bias, goal):
        seen.append(X)
        return halved(X, weight, bias, goal)

    text = "a = Gemm(x, w, b) r = Relu(a) y = Gemm(r, w, b)"
    model = graph_model(text, {"x": ("n", 6)}, w=weights((6, 6)), b=weights(6, 1))
    x = inputs(40, 6)
    sparse, report = sparsify_onnx(model, [x], sparsity=0.5, layer_solver=solver, progress=False)
    assert [(layer.name, layer.activation, layer.flops) for layer in report.layers] == [("w", "identity", 72)]
    np.testing.assert_array_equal(seen[0][:40], x)
    np.testing.assert_allclose(seen[0][40:], run(model, {"x": x}, "r")[0], rtol=1e-4, atol=1e-5)
    assert len(constants_of(sparse)) == 2


DENSE = {
    "tied to an embedding": (
        "t = Transpose(w) i = Cast <to = 7> (x) a = Gather(w, i) s = ReduceSum(a) z = MatMul(x, t) y = Add(z, s)",
        "shares its weight with Gather of a",
    ),
    "tied to another": ("z = MatMul(x, w) a = Relu(z) c = Transpose(w) y = MatMul(a, c)", "shares its weight with"),
    "an output": ("z = MatMul(x, w) y = Relu(z) v = Identity(w)", "shares its weight with Identity of v"),
    "computed": ("a = Abs(w) z = MatMul(x, a) y = Relu(z)", "its weight is computed by Abs"),
    "three axes": ("u = Constant <value_ints = [0]> () a = Unsqueeze(w, u) y = MatMul(x, a)", "its weight has 3 axes"),
    "the first factor": ("y = Gemm <transA = 1, transB = 1> (w, x)", "its constant is the first factor"),
    "quantized": (
        """s = Constant <value = float {0.1}> () q = QuantizeLinear(w, s) d = DequantizeLinear(q, s)
        y = MatMul(x, d)""",
        "quantized: make the float model sparse",
    ),
    "inside of a branch": (
        """t = ReduceSum <keepdims = 0> (x) o = Constant <value = float {0}> () c = Greater(t, o)
        y = If (c) <then_branch = g1 () => (float[n, 6] p) { p = MatMul(x, w) },
                    else_branch = g2 () => (float[n, 6] q) { q = Identity(x) }>""",
        "inside of If of y",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DENSE)
def test_what_cannot_be_made_sparse_stays_dense_and_says_why(name):
    text, reason = DENSE[name]
    outputs = "y v" if "v =" in text else "y"
    shape = (6, 6) if "first" in name else ("n", 6)
    model = graph_model(f"{text} e = Relu(y) f = MatMul(e, w2)", {"x": shape}, f"{outputs} f",
                        w=weights((6, 6)), w2=weights((6, 6), 1))  # fmt: skip
    x = np.abs(inputs(6, 6)) % 5
    sparse, report = sparsify_onnx(model, [x], sparsity=0.5, **FAST)
    first = report.layers[0]
    assert first.status.startswith(f"kept dense: {reason}")
    assert [layer.name for layer in report.included] == ["w2"]
    np.testing.assert_array_equal(constants_of(sparse)["w"], weights((6, 6)))
    with pytest.raises(UnsupportedError, match="no layer of the model can be made sparse"):
        sparsify_onnx(model, [x], sparsity=0.5, exclude="w2", **FAST)


def test_other_kinds_that_hold_weights_are_named():
    text = "a = ConvTranspose(x, t) b = Relu(a) y = Conv(b, w)"
    model = graph_model(text, {"x": (2, 2, 5, 5)}, t=weights((2, 3, 2, 2)), w=weights((3, 3, 1, 1)))
    _, report = sparsify_onnx(model, [weights((2, 2, 5, 5))], sparsity=0.5, **FAST)
    assert [layer.status for layer in report.layers][0] == "kept dense: ConvTranspose stays dense here"
    quantized = graph_model(
        "z = MatMulInteger(q, w) y = Cast <to = 1> (z)", {}, w=np.ones((2, 2), np.uint8), q=np.ones((2, 2), np.uint8)
    )
    with pytest.raises(UnsupportedError, match="quantized: make the float model sparse"):
        sparsify_onnx(quantized, [{}], sparsity=0.5)


def test_products_of_two_values_are_no_layers():
    text = "a = Transpose(x) s = MatMul(x, a) y = MatMul(s, w)"
    _, report = sparsify_onnx(graph_model(text, {"x": (6, 6)}, w=weights((6, 6))), [inputs(6, 6)], sparsity=0.5, **FAST)
    assert [layer.name for layer in report.layers] == ["w"]


def test_weights_in_constant_nodes_and_behind_views_are_written_back():
    values = " , ".join(map(str, weights(24).round(3)))
    text = f"""c = Constant <value = float[4, 6] {{{values}}}> () a = Gemm <transB = 1> (x, c) r = Relu(a)
        t = Transpose <perm = [1, 0]> (w) s = Constant <value_ints = [1, 5]> () h = Reshape(b, s)
        p = MatMul(r, t) q = Add(p, h) y = Relu(q)"""
    model = graph_model(text, {"x": ("n", 6)}, w=weights((5, 4)), b=weights(5, 1))
    sparse, report = sparsify_onnx(model, [inputs(60, 6)], sparsity=0.5, allocation="uniform", **FAST)
    assert [layer.name for layer in report.layers] == ["c", "w"]
    held = onnx.numpy_helper.to_array(sparse.graph.node[0].attribute[0].t)
    assert np.count_nonzero(held) == report.layers[0].n_kept == 12
    # the transposed weight and the reshaped bias are constants of their own now, and what they came from is gone
    assert {name: value.shape for name, value in constants_of(sparse).items()} == {
        "w_sparse": (4, 5),
        "b_sparse": (1, 5),
    }
    assert {"Transpose", "Reshape"}.isdisjoint(node.op_type for node in sparse.graph.node)
    assert np.count_nonzero(constants_of(sparse)["w_sparse"]) == report.layers[1].n_kept


def test_a_bias_that_others_use_is_left_to_them():
    text = "p = MatMul(x, w) q = Add(p, b) r = Relu(q) y = Mul(r, b)"
    model = graph_model(text, {"x": ("n", 6)}, w=weights((6, 6)), b=weights(6, 1))
    sparse, _ = sparsify_onnx(model, [inputs(60, 6)], sparsity=0.5, layer_solver=halved, progress=False)
    found = constants_of(sparse)
    np.testing.assert_array_equal(found["b"], weights(6, 1))
    np.testing.assert_allclose(found["b_sparse"], weights(6, 1) + 1, rtol=1e-6)


def test_old_models_declare_new_constants_as_inputs():
    text = "p = MatMul(x, w) q = Add(p, b) r = Relu(q) y = Mul(r, b)"
    model = graph_model(text, {"x": ("n", 6), "w": (6, 6), "b": (6,)}, ir=3, w=weights((6, 6)), b=weights(6, 1))
    sparse, _ = sparsify_onnx(model, [inputs(60, 6)], sparsity=0.5, **FAST)
    assert [value.name for value in sparse.graph.input] == ["x", "w", "b", "b_sparse"]


def test_patterns_budgets_and_goals_of_layers():
    x = inputs()
    sparse, _ = sparsify_onnx(mlp(), [x], pattern="2:4", include="w0", **FAST)
    kept = constants_of(sparse)["w0"].reshape(30, 5, 4) != 0
    assert np.all(kept.sum(axis=2) <= 2)
    _, report = sparsify_onnx(mlp(), [x], relative_error=0.2, **FAST)
    assert all(0 < layer.relative_error <= 0.2 * (1 + 1e-5) for layer in report.layers)
    _, report = sparsify_onnx(mlp(), [x], goals={"w1": 0.5}, allocation="uniform", **FAST)
    assert [layer.n_kept for layer in report.layers] == [600, 150]
    _, report = sparsify_onnx(mlp(), [x], sparsity=0.7, allocation="error", **FAST)
    assert report.n_kept == 270


def test_layers_are_chosen_by_name_and_by_type_of_node():
    for options, named in (
        ({"include": "Gemm"}, ["w0"]), ({"exclude": "Gemm"}, ["w1"]), ({"include": ["w?"], "exclude": "w0"}, ["w1"]),
    ):  # fmt: skip
        _, report = sparsify_onnx(mlp(), [inputs()], sparsity=0.5, **options, **FAST)
        assert [layer.name for layer in report.included] == named
        assert len(report.layers) == 2
    _, report = sparsify_onnx(mlp(), [inputs()], sparsity=0.5, activations={"w1": "softmax"}, **FAST)
    assert report.layers[1].activation == "softmax"


@pytest.mark.parametrize("name", ["include", "exclude", "activations"])
def test_a_glob_that_matches_nothing_is_an_error(name):
    given = {"w9": "relu"} if name == "activations" else "w9"
    with pytest.raises(InvalidInputError, match=f"{name}: 'w9' matches no layer; the model's layers are w0, w1"):
        sparsify_onnx(mlp(), [inputs()], sparsity=0.5, **{name: given})
