"""The loss in scaled weights, the swap and the damped refit: against finite differences, closed forms, brute force."""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
import pytest

import sisopt
from sisopt import LayerProblem, WeightedL1, get_pattern
from sisopt.refine import metric, pipeline
from sisopt.refine.damped import damped_refit
from sisopt.refine.model import LossModel
from sisopt.refine.swap import DEFAULT, FAST, FULL, swap

pytestmark = pytest.mark.filterwarnings("ignore::sisopt.GeneralizationWarning")

sparsify = functools.partial(sisopt.sparsify, n_threads=1)  # layers are too small for more
F64, F32 = np.dtype(np.float64), np.dtype(np.float32)
EXTRAS = [
    (),
    ("fidelity",),
    ("tolerance",),
    ("shift", "preactivations"),
    ("entry_weights", "sample_weights"),
    ("entry_weights", "sample_weights", "fidelity", "shift", "preactivations", "mask"),
]


@pytest.fixture(autouse=True)
def reach_as_it_is(monkeypatch):
    """What is checked here goes by ||x_j - m_j||; what rare inputs get on top is checked in test_metric."""
    monkeypatch.setattr(metric, "FLOOR", 0.0)


def settled(model, U):
    """Return the gradient and the loss at scaled weights once the bias has settled: every call moves it on."""
    before = math.inf
    for _ in range(400):
        gradient, loss = model.gradient(U)
        if abs(before - loss) <= 1e-13 * loss:
            break
        before = loss
    return gradient, loss


def losses(layer, model, U):
    """Return phi / L of the raw arrays at scaled weights and their best bias."""
    top = layer.options.get("entry_weights", np.ones(1)).max()
    W = U / reach(layer)
    return layer.phi(W, None if layer.b is None else layer.best_bias(W)) / (top + layer.options.get("fidelity", 0.0))


def reach(layer):
    """Return the norms of the inputs, about their means where a bias is fitted."""
    v = layer.options.get("sample_weights", np.ones(len(layer.X)))
    center = v @ layer.X / v.sum() if layer.b is not None else 0.0
    return np.sqrt(v @ (layer.X - center) ** 2)


# --- the loss --------------------------------------------------------------------------------------------------------


COUPLED = [(), ("fidelity",), ("shift", "preactivations"), ("sample_weights", "fidelity", "shift", "mask")]
GRADIENTS = [
    *itertools.product(["identity", "relu", "gelu", "max_pool"], [True], EXTRAS),
    *itertools.product(["identity", "relu"], [False], [EXTRAS[0], EXTRAS[-1]]),
    *itertools.product(["softmax", "sparsemax"], [True], COUPLED),
    *itertools.product(["softmax", "sparsemax"], [False], COUPLED[:1]),
]


@pytest.mark.parametrize(("activation", "bias", "extras"), GRADIENTS, ids=str)
def test_gradient_is_that_of_finite_differences(make_layer, activation, bias, extras):
    layer = make_layer(activation, bias=bias, extras=extras, n_in=6)
    model = LossModel(layer.problem, F64, 1)
    np.testing.assert_allclose(model.scale, reach(layer), rtol=1e-10)
    rng = np.random.default_rng(0)
    U = model.dense * rng.uniform(0.3, 1.2, model.dense.shape)
    gradient, loss = settled(model, U)
    assert loss == pytest.approx(losses(layer, model, U), rel=1e-6)
    for _ in range(3):
        direction = rng.standard_normal(U.shape)
        step = 1e-4
        slope = (losses(layer, model, U + step * direction) - losses(layer, model, U - step * direction)) / (2 * step)
        assert np.vdot(gradient, direction) == pytest.approx(slope, rel=1e-4, abs=1e-6 * np.linalg.norm(gradient))


@pytest.mark.parametrize("extras", EXTRAS, ids=str)
@pytest.mark.parametrize("activation", ["identity", "relu", "gelu"])
def test_the_quadratic_lies_above_the_loss(make_layer, activation, extras):
    layer = make_layer(activation, extras=extras, n_in=6)
    model = LossModel(layer.problem, F64, 1)
    rng = np.random.default_rng(0)
    V = model.dense * rng.uniform(0.3, 1.2, model.dense.shape)
    gradient, loss = settled(model, V)
    for size in (0.01, 0.3, 3.0):
        D = size * np.linalg.norm(V) * rng.standard_normal(V.shape) / math.sqrt(V.size)
        above = loss + np.vdot(gradient, D) + 0.5 * np.vdot(D @ model.metric.gram, D)
        assert losses(layer, model, V + D) <= above * (1 + 1e-6)
    np.testing.assert_allclose(np.diagonal(model.metric.gram), 1.0, rtol=1e-12)


@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_float32_is_close_to_float64(make_layer, activation):
    layer = make_layer(activation, n=400, n_in=24, n_out=8)
    pattern = get_pattern("per-row")
    found = []
    for dtype in (F64, F32):
        model = LossModel(layer.problem, dtype, 1)
        U, _ = swap(model, model.dense, lambda scores: pattern.select(scores, 0.6), DEFAULT, 1e-3, math.inf)
        V = damped_refit(model, U, 1e-3, 5, math.inf)
        assert U.dtype == V.dtype == dtype
        W = model.weights(V)
        assert W.dtype == np.float64
        found.append(layer.radius(W, layer.best_bias(W)) / layer.empty_radius)
        np.testing.assert_allclose(model.weights(model.dense), layer.W, rtol=1e-6 if dtype == F32 else 1e-14)
    assert found[1] == pytest.approx(found[0], rel=1e-2)


def test_weights_of_constant_inputs_are_the_dense_ones_or_none(make_layer):
    X = np.random.default_rng(0).standard_normal((50, 5))
    X[:, 2] = 0.7
    layer = make_layer("relu", inputs=X, n=50, n_in=5)
    model = LossModel(layer.problem, F64, 1)
    assert model.scale[2] == 0.0
    assert np.isfinite(model.weights(model.dense)).all()
    gradient, _ = settled(model, 0.5 * model.dense)
    np.testing.assert_array_equal(gradient[:, 2], 0.0)


# --- the swap --------------------------------------------------------------------------------------------------------


def against_the_largest(layer, name, schedule):
    """Return the loss after swap and refit over that of the largest weights and their refit; check the pattern."""
    pattern, sparsity = get_pattern(name), None if name == "2:4" else 0.5

    def select(scores):
        return pattern.select(scores, sparsity)

    model = LossModel(layer.problem, F64, 1)
    U, steps = swap(model, model.dense, select, schedule, 1e-3, math.inf)
    assert steps < 600
    assert np.count_nonzero(U) == pattern.count(U.shape, sparsity)
    assert pattern.holds(U, sparsity)
    largest = np.where(select(np.abs(model.dense)), model.dense, 0.0)
    ours, theirs = (losses(layer, model, damped_refit(model, V, 0.0, 30, math.inf)) for V in (U, largest))
    return ours / theirs


@pytest.mark.parametrize("schedule", [FAST, DEFAULT, FULL], ids=["fast", "default", "full"])
@pytest.mark.parametrize("name", ["unstructured", "per-row", "2:4"])
@pytest.mark.parametrize("activation", ["identity", "relu", "softmax"])
def test_swap_keeps_to_the_pattern_and_is_better_than_the_largest_weights(make_layer, activation, name, schedule):
    for seed in range(2):
        layer = make_layer(activation, n=150, n_in=16, n_out=6, seed=seed)
        assert against_the_largest(layer, name, schedule) < 0.9


@pytest.mark.parametrize("name", ["2x4 blocks", "columns"])
@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_swap_of_groups_is_better_than_the_largest_groups_on_average(make_layer, activation, name):
    # of a dozen groups the largest may well be the best
    layers = (make_layer(activation, n=150, n_in=16, n_out=6, seed=seed) for seed in range(10))
    ratios = [against_the_largest(layer, name, DEFAULT) for layer in layers]
    assert np.exp(np.mean(np.log(ratios))) < 0.95


@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_swap_never_gives_a_forbidden_weight_and_does_not_write_to_its_start(make_layer, activation):
    layer = make_layer(activation, extras=("mask",))
    model = LossModel(layer.problem, F64, 1)
    start = model.dense.copy()
    U, _ = swap(model, start, lambda scores: get_pattern(None).select(scores, 0.3), DEFAULT, 1e-3, math.inf)
    assert not U[~layer.options["mask"]].any()
    np.testing.assert_array_equal(start, model.dense)


def test_a_large_ridge_keeps_the_largest_weights(make_layer):
    layer = make_layer("identity", n=300, n_in=16)
    model = LossModel(layer.problem, F64, 1)
    pattern = get_pattern("per-row")
    U, _ = swap(model, model.dense, lambda scores: pattern.select(scores, 0.5), DEFAULT, 1e4, math.inf)
    np.testing.assert_array_equal(U != 0, pattern.select(np.abs(model.dense), 0.5))


def best_of_all(X, W, b, kept):
    """Return the least output error of an identity layer with one output over all supports, by least squares."""
    z = X @ W[0] + b[0]
    least = math.inf
    for support in itertools.combinations(range(W.shape[1]), kept):
        columns = np.column_stack([X[:, support], np.ones(len(z))])
        least = min(least, float(np.linalg.norm(z - columns @ np.linalg.lstsq(columns, z)[0])))
    return least / np.linalg.norm(z)


def tiny(seed):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((60, 6)) @ (np.eye(6) + 0.4 * rng.standard_normal((6, 6)))
    return X, rng.standard_normal((1, 6)), rng.standard_normal(1)


def test_tiny_linear_layers_are_near_the_best_of_all_supports_and_ahead_of_the_convex_program():
    found = {effort: [] for effort in ("fast", "default", "full", "convex")}
    for seed in range(20):
        X, W, b = tiny(seed)
        best = best_of_all(X, W, b, 3)
        for name, errors in found.items():
            how = {"penalty": WeightedL1(1.0)} if name == "convex" else {"effort": name}
            layer = sparsify(X, W, b, sparsity=0.5, **how)
            assert np.count_nonzero(layer.weight) == 3
            errors.append(layer.output_error / best)
            assert errors[-1] >= 1 - 1e-9
    means = {name: np.exp(np.mean(np.log(errors))) for name, errors in found.items()}
    assert max(means[effort] for effort in ("fast", "default", "full")) <= 1.15
    assert max(means[effort] for effort in ("fast", "default", "full")) <= means["convex"]


@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_the_layer_is_better_than_convex_program_count_and_refit(activation):
    ratios = []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        X = rng.standard_normal((200, 12)) @ (np.eye(12) + 0.3 * rng.standard_normal((12, 12)))
        W, b = rng.standard_normal((4, 12)), 0.3 * rng.standard_normal(4)
        ours, convex = (
            sparsify(X, W, b, activation=activation, sparsity=0.6, **how)
            for how in ({}, {"penalty": WeightedL1(1.0)})  # by its own name the convex program has no swap
        )
        assert [stage.name for stage in convex.stages] == ["convex", "exact count", "refit"]
        assert convex.sparsity == ours.sparsity
        ratios.append(ours.output_error / convex.output_error)
    assert np.exp(np.mean(np.log(ratios))) < 0.95
    assert max(ratios) <= 1.05


# --- the damped refit ------------------------------------------------------------------------------------------------


def objective(layer, model, U, ridge):
    return losses(layer, model, U) + 0.5 * ridge * float(np.sum((U - model.dense) ** 2))


@pytest.mark.parametrize("ridge", [0.0, 1e-2])
@pytest.mark.parametrize("extras", [EXTRAS[0], *EXTRAS[3:]], ids=str)
@pytest.mark.parametrize("activation", ["identity", "relu", "gelu"])
def test_refit_never_ends_above_its_start_and_stays_on_its_support(make_layer, activation, extras, ridge):
    layer = make_layer(activation, extras=extras)
    model = LossModel(layer.problem, F64, 1)
    rng = np.random.default_rng(1)
    start = np.where(rng.random(model.dense.shape) < 0.5, model.dense, 0.0)
    settled(model, start)
    before = objective(layer, model, start, ridge)
    after = [objective(layer, model, damped_refit(model, start, ridge, s, math.inf), ridge) for s in (0, 1, 5)]
    assert max(after) <= before * (1 + 1e-9)
    assert after[-1] < 0.99 * before
    U = damped_refit(model, start, ridge, 3, math.inf)
    assert not U[start == 0].any()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("ridge", [0.0, 1e-2, 1.0])
def test_refit_of_a_linear_layer_is_ridge_regression_on_the_support(make_layer, ridge, bias):
    layer = make_layer("identity", n=60, n_in=8, n_out=4, bias=bias)
    model = LossModel(layer.problem, F64, 1)
    rng = np.random.default_rng(1)
    start = np.where(rng.random(model.dense.shape) < 0.5, model.dense, 0.0)
    found = damped_refit(model, start, ridge, 1, math.inf)
    A = (layer.X - layer.X.mean(axis=0) * bias) / reach(layer)
    Z = layer.X @ layer.W.T
    Z = Z - Z.mean(axis=0) * bias
    for u, u0, z in zip(found, model.dense, Z.T, strict=True):
        on = u != 0
        G = A[:, on].T @ A[:, on] + ridge * np.eye(on.sum())
        expected = np.linalg.solve(G, A[:, on].T @ z + ridge * u0[on])
        np.testing.assert_allclose(u[on], expected, rtol=1e-6, atol=1e-8 * np.abs(u0).max())


@pytest.mark.parametrize("ridge", [1e-3, 0.1])
def test_refit_of_a_relu_layer_comes_to_rest_where_nothing_descends(make_layer, ridge):
    layer = make_layer("relu", n=100, n_in=8)
    model = LossModel(layer.problem, F64, 1)
    rng = np.random.default_rng(1)
    start = np.where(rng.random(model.dense.shape) < 0.5, model.dense, 0.0)
    found = damped_refit(model, start, ridge, 400, math.inf)
    gradient, _ = settled(model, found)
    slope = np.where(start != 0, gradient + ridge * (found - model.dense), 0.0)
    first, _ = settled(model, start)
    assert np.linalg.norm(slope) <= 1e-4 * np.linalg.norm(np.where(start != 0, first, 0.0))


def test_refit_of_the_dense_layer_is_the_dense_layer(make_layer):
    for activation in ("identity", "relu", "softmax"):
        layer = make_layer(activation)
        problem = LayerProblem(layer.X, layer.W, layer.b, activation=activation)
        model = LossModel(problem, F64, 1)
        np.testing.assert_allclose(damped_refit(model, model.dense, 1e-3, 5, math.inf), model.dense, rtol=1e-10)


@pytest.mark.parametrize("where", [1e6, np.nan])
def test_a_swap_that_goes_astray_gives_way_to_the_dense_weights_cut_to_the_pattern(monkeypatch, where):
    rng = np.random.default_rng(5)
    X, W = rng.standard_normal((200, 12)).astype(np.float32), rng.standard_normal((6, 12)).astype(np.float32)
    good = sparsify(X, W, None, activation="relu", sparsity=0.5, effort="fast")

    def astray(model, start, select, *_):
        return np.where(select(np.abs(start)), start * model.dtype.type(where), model.dtype.type(0)), 1

    monkeypatch.setattr(pipeline, "swap", astray)
    layer = sparsify(X, W, None, activation="relu", sparsity=0.5, effort="fast")
    assert np.count_nonzero(layer.weight) == W.size // 2
    assert np.isfinite(layer.weight).all()
    assert layer.output_error <= 1.5 * good.output_error
    assert [stage.name for stage in layer.stages] == ["swap", "cut", "refit"]


def test_a_refit_that_ends_worse_than_no_weights_is_shortened(monkeypatch):
    rng = np.random.default_rng(5)
    X, W = rng.standard_normal((200, 12)), rng.standard_normal((6, 12))
    good = sparsify(X, W, None, activation="hard_tanh", sparsity=0.5, effort="fast")
    fitted = pipeline.damped_refit
    monkeypatch.setattr(pipeline, "damped_refit", lambda *args: 5.0 * fitted(*args))
    layer = sparsify(X, W, None, activation="hard_tanh", sparsity=0.5, effort="fast")
    assert [stage.name for stage in layer.stages] == ["swap", "refit", "shortened"]
    assert layer.stages[1].relative_error > 1.0 > layer.relative_error == layer.stages[2].relative_error
    np.testing.assert_array_equal(layer.weight != 0, good.weight != 0)


def test_weights_that_the_samples_say_nothing_of_are_not_shortened_for_rounding():
    rng = np.random.default_rng(5)
    X = np.tile(rng.standard_normal((1, 12)), (200, 1)).astype(np.float32)  # one sample, again and again
    W, b = rng.standard_normal((6, 12)).astype(np.float32), rng.standard_normal(6).astype(np.float32)
    layer = sparsify(X, W, b, activation="relu", sparsity=0.5, effort="fast")
    assert "shortened" not in [stage.name for stage in layer.stages]
    np.testing.assert_allclose(np.maximum(X @ layer.weight.T + layer.bias, 0), np.maximum(X @ W.T + b, 0), atol=1e-5)
