"""sparsify(): its stages, its exact counts and budgets, and how it prints."""

from __future__ import annotations

import pickle
import re
import warnings

import numpy as np
import pytest

import sisopt
from sisopt import ConvergenceWarning, ErrorBudget, LayerProblem, Sparsity, Status, WeightedL1, solve, sparsify

N, N_IN, N_OUT = 90, 10, 6
ACTIVATIONS = ["identity", "relu", "tanh"]


def arrays(*, bias=True, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((N, N_IN)) @ (np.eye(N_IN) + 0.3 * rng.standard_normal((N_IN, N_IN)))
    W, b = rng.standard_normal((N_OUT, N_IN)), 0.3 * rng.standard_normal(N_OUT)
    return X.astype(dtype), W.astype(dtype), b.astype(dtype) if bias else None


def forward(activation, z):
    return {"identity": lambda: z, "relu": lambda: np.maximum(z, 0.0), "tanh": lambda: np.tanh(z)}[activation]()


def output_error(layer, X, W, b, activation):
    """Return ||R(Z) - Y|| / ||Y|| from the raw arrays."""
    Y = forward(activation, X @ W.T + (0.0 if b is None else b))
    new = forward(activation, X @ layer.weight.T + (0.0 if layer.bias is None else layer.bias))
    return np.linalg.norm(new - Y) / np.linalg.norm(Y)


def radius(layer, X, W, b, activation):
    """Return the distance of the layer's pre-activations to the preimage of the dense layer's outputs."""
    Z = X @ W.T + (0.0 if b is None else b)
    new = X @ layer.weight.T + (0.0 if layer.bias is None else layer.bias)
    e = np.where((Z > 0) | (new > 0), new - np.maximum(Z, 0.0), 0.0) if activation == "relu" else new - Z
    return float(np.linalg.norm(e))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.65, 0.9, 1.0])
def test_sparsity_is_exact_and_errors_are_what_they_say(sparsity, bias, activation):
    X, W, b = arrays(bias=bias)
    layer = sparsify(X, W, b, activation=activation, sparsity=sparsity)
    assert np.count_nonzero(layer.weight) == round((1 - sparsity) * W.size)
    assert layer.sparsity == pytest.approx(1 - np.count_nonzero(layer.weight) / W.size, abs=1e-15)
    assert layer.output_error == pytest.approx(output_error(layer, X, W, b, activation), rel=1e-9, abs=1e-12)
    found = radius(layer, X, W, b, activation)
    assert layer.relative_error * layer.convex.empty_radius == pytest.approx(found, rel=1e-9, abs=1e-10)
    assert (layer.bias is None) == (not bias)
    assert layer.convex.gap <= 1e-3


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("goal", [{"relative_error": 0.2}, {"eta": 0.1}], ids=str)
def test_budget_is_kept_after_the_refit(goal, activation):
    X, W, b = arrays()
    layer = sparsify(X, W, b, activation=activation, **goal)
    found = radius(layer, X, W, b, activation)
    if "eta" in goal:
        assert found**2 / N <= 0.1 * (1 + 2e-6)
    else:
        assert found <= 0.2 * layer.convex.empty_radius * (1 + 1e-6)
        assert layer.relative_error <= 0.2
    np.testing.assert_array_equal(layer.weight != 0, layer.convex.weight != 0)
    assert layer.convex.goal == ErrorBudget(**goal)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_stages_follow_each_other_and_the_refit_never_ascends(activation):
    X, W, b = arrays()
    for sparsity in (0.3, 0.6, 0.9):
        layer = sparsify(X, W, b, activation=activation, sparsity=sparsity)
        convex, exact, refit = layer.stages
        assert [stage.name for stage in layer.stages] == ["convex", "exact count", "refit"]
        assert (convex.sparsity, convex.relative_error) == (layer.convex.sparsity, layer.convex.relative_error)
        assert exact.sparsity == refit.sparsity == layer.sparsity
        assert refit.relative_error < exact.relative_error
        assert (refit.relative_error, refit.output_error) == (layer.relative_error, layer.output_error)
        assert all(stage.seconds >= 0.0 for stage in layer.stages)
    budget = sparsify(X, W, b, activation=activation, relative_error=0.3)
    assert [stage.name for stage in budget.stages] == ["convex", "refit"]
    assert budget.stages[1].relative_error < budget.stages[0].relative_error


def test_convex_stage_is_what_solve_returns():
    X, W, b = arrays()
    problem = LayerProblem(X, W, b, activation="relu")
    for goal, wanted in (
        ({"sparsity": 0.7}, Sparsity(0.7)),
        ({"relative_error": 0.1}, ErrorBudget(relative_error=0.1)),
    ):
        layer, solution = sparsify(X, W, b, activation="relu", tol=1e-5, **goal), solve(problem, wanted, tol=1e-5)
        np.testing.assert_array_equal(layer.convex.weight, solution.weight)
        np.testing.assert_array_equal(layer.convex.bias, solution.bias)
        assert layer.convex.gap == solution.gap <= 1e-5
        assert layer.convex.status is Status.OPTIMAL


def test_more_weights_are_never_worse_after_the_refit():
    X, W, b = arrays()
    errors = [sparsify(X, W, b, activation="relu", sparsity=s).relative_error for s in (1.0, 0.9, 0.7, 0.5, 0.3, 0.0)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] == pytest.approx(1.0, rel=1e-12)
    assert errors[-1] <= 1e-9


def test_every_option_reaches_the_problem():
    X, W, b = arrays()
    rng = np.random.default_rng(1)
    Z = X @ W.T + b
    options = {
        "activation": "relu",
        "preactivations": Z + 0.1 * rng.standard_normal(Z.shape),
        "shift": 0.2 * rng.standard_normal(Z.shape),
        "tolerance": 0.05,
        "fidelity": 0.2,
        "entry_weights": rng.uniform(0.5, 1.0, Z.shape),
        "sample_weights": rng.uniform(0.5, 1.0, N),
        "penalty": WeightedL1(rng.uniform(0.5, 2.0, W.shape)),
        "mask": rng.random(W.shape) < 0.8,
    }
    expected = solve(LayerProblem(X, W, b, **options), Sparsity(0.6), tol=1e-3)
    np.testing.assert_array_equal(sparsify(X, W, b, sparsity=0.6, **options).convex.weight, expected.weight)
    for name in options:
        fewer = {key: value for key, value in options.items() if key != name}
        other = sparsify(X, W, b, sparsity=0.6, **fewer).convex
        assert not np.array_equal(other.weight, expected.weight), name


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_forbidden_weights_stay_zero_in_every_stage(activation):
    X, W, b = arrays()
    mask = np.random.default_rng(1).random(W.shape) < 0.6
    for sparsity in (0.5, 0.1):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            layer = sparsify(X, W, b, activation=activation, mask=mask, sparsity=sparsity)
        assert not layer.weight[~mask].any()
        assert not layer.convex.weight[~mask].any()
        assert np.count_nonzero(layer.weight) == min(round((1 - sparsity) * W.size), np.count_nonzero(mask))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_sparsity_below_what_the_mask_forbids_is_certified(activation):
    X, W, b = arrays()
    mask = np.random.default_rng(1).random(W.shape) < 0.6
    assert mask.mean() < 0.9
    solution = solve(LayerProblem(X, W, b, activation=activation, mask=mask), Sparsity(0.1))
    assert solution.gap <= 1e-4
    assert solution.status is Status.OPTIMAL
    assert not solution.weight[~mask].any()


@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_float32_layers_come_back_as_float32_and_are_measured_as_such(activation):
    X, W, b = arrays(dtype=np.float32)
    layer = sparsify(X, W, b, activation=activation, sparsity=0.6)
    assert layer.weight.dtype == layer.bias.dtype == np.float32
    rounded = [np.asarray(array, dtype=np.float64) for array in (X, W, b)]
    assert layer.output_error == pytest.approx(output_error(layer, *rounded, activation), rel=1e-5)


def test_bits_do_not_depend_on_threads():
    X, W, b = arrays()
    one, two = (sparsify(X, W, b, activation="relu", sparsity=0.6, n_threads=n) for n in (1, 2))
    np.testing.assert_array_equal(one.weight, two.weight)
    np.testing.assert_array_equal(one.bias, two.bias)


def test_callback_sees_the_progress_and_can_stop_the_solve():
    X, W, b = arrays()
    seen = []
    sparsify(X, W, b, activation="relu", sparsity=0.6, callback=seen.append)
    assert [progress.round for progress in seen] == list(range(1, len(seen) + 1))
    with pytest.warns(ConvergenceWarning, match="callback"):
        layer = sparsify(X, W, b, activation="relu", sparsity=0.6, tol=1e-8, callback=lambda _: True)
    assert layer.convex.status is Status.CALLBACK
    assert len(layer.convex.history) == 1
    assert np.count_nonzero(layer.weight) == round(0.4 * W.size)


def test_without_time_the_layer_is_still_valid_and_honest():
    X, W, b = arrays()
    for goal in ({"sparsity": 0.6}, {"relative_error": 0.2}):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            layer = sparsify(X, W, b, activation="relu", tol=1e-8, max_seconds=0.0, **goal)
        assert [warning.category for warning in caught] == [ConvergenceWarning]
        assert "max_seconds" in str(caught[0].message)
        assert caught[0].filename == __file__
        assert layer.convex.status is Status.TIME_LIMIT
        found = radius(layer, X, W, b, "relu")
        assert layer.relative_error * layer.convex.empty_radius == pytest.approx(found, rel=1e-9, abs=1e-10)
        if "sparsity" in goal:
            assert np.count_nonzero(layer.weight) == round(0.4 * W.size)
        else:
            assert layer.relative_error <= 0.2 * (1 + 1e-6)


def test_sequential_mode_aims_at_the_dense_network():
    X, W, b = arrays()
    Z = X @ W.T + b
    changed = X + 0.3 * np.random.default_rng(1).standard_normal(X.shape)
    Y = np.maximum(Z, 0.0)

    def error(layer):
        return np.linalg.norm(np.maximum(changed @ layer.weight.T + layer.bias, 0.0) - Y) / np.linalg.norm(Y)

    sequential = sparsify(changed, W, b, activation="relu", preactivations=Z, sparsity=0.4)
    assert sequential.output_error == pytest.approx(error(sequential), rel=1e-9)
    assert error(sequential) < error(sparsify(changed, W, b, activation="relu", sparsity=0.4))


def test_layer_prints_its_stages():
    layer = sparsify(*arrays(), activation="relu", sparsity=0.6)
    lines = str(layer).splitlines()
    assert lines[0].startswith("SparseLayer 10 -> 6: 60.00% zeros, output error 0.")
    assert "OPTIMAL" in lines[1]
    assert re.search(r"gap \d\.\de-\d\d", lines[1])
    names = [re.split(r"\s{2,}", line.strip()) for line in lines[2:]]
    assert names[0] == ["stage", "zeros", "relative error", "output error", "seconds"]
    assert [row[0] for row in names[1:]] == ["convex", "exact count", "refit"]
    assert all(len(row) == 5 for row in names)
    assert len({len(line) for line in lines[2:]}) == 1
    assert repr(layer) == f"<SparseLayer (6, 10): sparsity 0.6000, output_error {layer.output_error:.4g}>"


def test_layer_survives_pickling_and_cannot_be_changed():
    layer = sparsify(*arrays(), activation="relu", sparsity=0.6)
    again = pickle.loads(pickle.dumps(layer))
    np.testing.assert_array_equal(again.weight, layer.weight)
    assert str(again) == str(layer)
    assert again.convex.status is Status.OPTIMAL
    with pytest.raises(AttributeError):
        layer.weight = None


def test_examples_of_the_public_surface_run_as_written():
    inputs, weight, bias = arrays()
    layer = sisopt.sparsify(inputs, weight, bias, activation="relu", sparsity=0.9)
    assert layer.weight.shape == weight.shape
    assert layer.bias.shape == bias.shape
    assert layer.weight.dtype == weight.dtype
    assert layer.sparsity == 0.9
    assert layer.convex.gap <= 1e-3
    problem = sisopt.LayerProblem(inputs, weight, bias, activation="relu", penalty="l1")
    goal = sisopt.ErrorBudget(relative_error=0.1)
    solution = sisopt.solve(problem, goal, method="forward-backward", tol=1e-4)
    names = "weight bias objective lower_bound gap multiplier radius relative_error kkt_violation status n_iterations"
    for name in (*names.split(), "n_products", "history", "seconds", "goal"):
        assert hasattr(solution, name)
    assert str(solution.status.name) in str(solution)
