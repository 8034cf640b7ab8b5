"""sparsify(): its stages, its exact counts and budgets, and how it prints."""

from __future__ import annotations

import functools
import itertools
import pickle
import re
import warnings

import numpy as np
import pytest

import sisopt
from sisopt import (
    ConvergenceWarning,
    ErrorBudget,
    GroupL2,
    LayerProblem,
    Sparsity,
    Status,
    WeightedL1,
    solve,
)

pytestmark = pytest.mark.filterwarnings("ignore::sisopt.GeneralizationWarning")  # samples are few here

sparsify = functools.partial(sisopt.sparsify, n_threads=1)  # layers are too small for more
N, N_IN, N_OUT = 90, 10, 6
ACTIVATIONS = ["identity", "relu", "tanh"]
EFFORTS = ["fast", "default", "full"]


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


def empty_radius(X, W, b, activation):
    """Return the radius of the best constant layer: that of a ReLU neuron is its mean output."""
    goal = X @ W.T + (0.0 if b is None else b)
    goal = np.maximum(goal, 0.0) if activation == "relu" else goal
    return float(np.linalg.norm(goal - (0.0 if b is None else goal.mean(axis=0))))


@pytest.mark.parametrize("effort", EFFORTS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_sparsity_is_exact_and_errors_are_what_they_say(bias, activation, effort):
    X, W, b = arrays(bias=bias)
    for sparsity in (0.3, 0.65, 0.9):  # for all and none see below
        layer = sparsify(X, W, b, activation=activation, sparsity=sparsity, effort=effort)
        assert np.count_nonzero(layer.weight) == round((1 - sparsity) * W.size)
        assert layer.sparsity == pytest.approx(1 - np.count_nonzero(layer.weight) / W.size, abs=1e-15)
        assert layer.output_error == pytest.approx(output_error(layer, X, W, b, activation), rel=1e-9, abs=1e-12)
        found = radius(layer, X, W, b, activation)
        empty = empty_radius(X, W, b, activation)
        assert layer.relative_error * empty == pytest.approx(found, rel=1e-9, abs=1e-10)
        assert (layer.bias is None) == (not bias)
        assert (layer.convex is None) == (effort != "full")
        assert layer.convex is None or layer.convex.gap <= 1e-3


@pytest.mark.parametrize("effort", EFFORTS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_without_zeros_the_layer_is_the_dense_one_and_without_weights_the_best_constant(bias, activation, effort):
    X, W, b = arrays(bias=bias)
    dense, empty = (sparsify(X, W, b, activation=activation, sparsity=s, effort=effort) for s in (0.0, 1.0))
    np.testing.assert_allclose(dense.weight, W, rtol=0, atol=1e-12)
    assert dense.output_error <= 1e-13
    assert dense.relative_error <= 1e-13
    assert not empty.weight.any()
    assert empty.relative_error == pytest.approx(1.0, rel=1e-12)
    if bias and activation == "identity":
        np.testing.assert_allclose(empty.bias, (X @ W.T + b).mean(axis=0), rtol=1e-12)


@pytest.mark.parametrize("effort", EFFORTS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("goal", [{"relative_error": 0.2}, {"eta": 0.1}], ids=str)
def test_budget_is_kept_after_the_refit(goal, activation, effort):
    X, W, b = arrays()
    layer = sparsify(X, W, b, activation=activation, effort=effort, **goal)
    found = radius(layer, X, W, b, activation)
    if "eta" in goal:
        assert found**2 / N <= 0.1 * (1 + 2e-6)
    else:
        assert found <= 0.2 * empty_radius(X, W, b, activation) * (1 + 1e-6)
        assert layer.relative_error <= 0.2
    if effort == "fast":
        np.testing.assert_array_equal(layer.weight != 0, layer.convex.weight != 0)
    assert np.count_nonzero(layer.weight) <= np.count_nonzero(layer.convex.weight)
    assert layer.convex.goal == ErrorBudget(**goal)
    assert layer.convex.gap <= 1e-3


@pytest.mark.parametrize("effort", EFFORTS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_stages_follow_each_other_and_the_last_is_the_layer(activation, effort):
    X, W, b = arrays()
    for sparsity in (0.3, 0.6, 0.9):
        layer = sparsify(X, W, b, activation=activation, sparsity=sparsity, effort=effort)
        names = [stage.name for stage in layer.stages]
        assert names == ["convex", "reweighted"] * (effort == "full") + ["swap"] + ["refit"] * layer.settings.refit
        if effort == "full":
            assert layer.stages[0].sparsity == layer.convex.sparsity
        for stage in layer.stages[names.index("swap") :]:
            assert stage.sparsity == layer.sparsity
        last = layer.stages[-1]
        assert (last.relative_error, last.output_error) == (layer.relative_error, layer.output_error)
        assert all(stage.seconds >= 0.0 and stage.held_out_error is None for stage in layer.stages)
        if layer.settings.refit:  # of what it lowers: distances to sets of one's own are errors of outputs
            lowered = "output_error" if layer.settings.tolerance > 0 else "relative_error"
            assert getattr(last, lowered) <= getattr(layer.stages[-2], lowered)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_stages_of_a_budget_have_fewer_and_fewer_weights(activation):
    X, W, b = arrays()
    budget = sparsify(X, W, b, activation=activation, relative_error=0.3)
    assert [stage.name for stage in budget.stages] in (["convex", "refit"], ["convex", "refit", "swap"])
    convex, refit, last = budget.stages[0], budget.stages[1], budget.stages[-1]
    assert convex.sparsity == budget.convex.sparsity
    assert convex.relative_error == pytest.approx(budget.convex.relative_error, rel=1e-12)
    assert refit.relative_error < convex.relative_error
    assert refit.sparsity >= convex.sparsity
    assert last.sparsity > refit.sparsity or last is refit
    assert last.relative_error <= 0.3
    fast = sparsify(X, W, b, activation=activation, relative_error=0.3, effort="fast")
    assert [stage.name for stage in fast.stages] == ["convex", "refit"]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_penalties_other_than_l1_keep_their_program_and_its_refit(activation):
    X, W, b = arrays()
    for effort in EFFORTS:
        keywords = {"activation": activation, "sparsity": 0.6, "effort": effort}
        weighted = sparsify(X, W, b, penalty=WeightedL1(np.linspace(0.5, 2.0, N_IN)), **keywords)
        assert [stage.name for stage in weighted.stages] == ["convex", "exact count", "refit"]
        assert np.count_nonzero(weighted.weight) == round(0.4 * W.size)
        columns = sparsify(X, W, b, penalty=GroupL2("columns"), **keywords)
        assert [stage.name for stage in columns.stages] == ["convex", "refit"]
        np.testing.assert_array_equal(columns.weight != 0, columns.convex.weight != 0)
        assert set(np.count_nonzero(columns.weight, axis=0)) == {0, N_OUT}
        for layer in (weighted, columns):
            assert layer.stages[-1].relative_error < layer.stages[-2].relative_error
            assert layer.convex.gap <= 1e-3


def test_convex_stage_is_what_solve_returns():
    X, W, b = arrays()
    problem = LayerProblem(X, W, b, activation="relu")
    for goal, wanted in (
        ({"sparsity": 0.7, "effort": "full", "fidelity": 0.0}, Sparsity(0.7)),
        ({"relative_error": 0.1}, ErrorBudget(relative_error=0.1)),
    ):
        layer, solution = sparsify(X, W, b, activation="relu", tol=1e-5, **goal), solve(problem, wanted, tol=1e-5)
        np.testing.assert_array_equal(layer.convex.weight, solution.weight)
        np.testing.assert_array_equal(layer.convex.bias, solution.bias)
        assert layer.convex.gap == solution.gap <= 1e-5
        assert layer.convex.status is Status.OPTIMAL
        assert layer.stages[0].relative_error == pytest.approx(solution.relative_error, rel=1e-12)


@pytest.mark.parametrize("effort", EFFORTS)
def test_more_weights_are_never_worse_after_the_refit(effort):
    X, W, b = arrays()
    errors = [
        sparsify(X, W, b, activation="relu", sparsity=s, effort=effort).relative_error
        for s in (1.0, 0.9, 0.7, 0.5, 0.3, 0.0)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] == pytest.approx(1.0, rel=1e-12)
    assert errors[-1] <= 1e-9


def options_of_a_problem(X, W, b):
    rng = np.random.default_rng(1)
    Z = X @ W.T + b
    return {
        "activation": "relu",
        "preactivations": Z + 0.1 * rng.standard_normal(Z.shape),
        "shift": 0.2 * rng.standard_normal(Z.shape),
        "tolerance": 0.05,
        "fidelity": 0.17,
        "entry_weights": rng.uniform(0.5, 1.0, Z.shape),
        "sample_weights": rng.uniform(0.5, 1.0, N),
        "mask": rng.random(W.shape) < 0.8,
    }


def test_every_option_reaches_the_convex_program():
    X, W, b = arrays()
    options = options_of_a_problem(X, W, b)
    options["penalty"] = WeightedL1(np.random.default_rng(2).uniform(0.5, 2.0, W.shape))
    expected = solve(LayerProblem(X, W, b, **options), Sparsity(0.6), tol=1e-3)
    np.testing.assert_array_equal(sparsify(X, W, b, sparsity=0.6, **options).convex.weight, expected.weight)
    for name in options:
        fewer = {key: value for key, value in options.items() if key != name}
        other = sparsify(X, W, b, sparsity=0.6, effort="full", **fewer).convex
        assert not np.array_equal(other.weight, expected.weight), name


@pytest.mark.parametrize("effort", ["fast", "default"])
def test_every_option_reaches_the_refinements(effort):
    X, W, b = arrays()
    options = options_of_a_problem(X, W, b)
    expected = sparsify(X, W, b, sparsity=0.6, effort=effort, **options)
    assert expected.settings.fidelity == 0.17
    for name in options:
        fewer = {key: value for key, value in options.items() if key != name}
        other = sparsify(X, W, b, sparsity=0.6, effort=effort, **fewer)
        assert not np.array_equal(other.weight, expected.weight), name


@pytest.mark.parametrize("effort", EFFORTS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_forbidden_weights_stay_zero_in_every_stage(activation, effort):
    X, W, b = arrays()
    mask = np.random.default_rng(1).random(W.shape) < 0.6
    for sparsity in (0.5, 0.1):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            layer = sparsify(X, W, b, activation=activation, mask=mask, sparsity=sparsity, effort=effort)
        assert not layer.weight[~mask].any()
        assert layer.convex is None or not layer.convex.weight[~mask].any()
        assert np.count_nonzero(layer.weight) == min(round((1 - sparsity) * W.size), np.count_nonzero(mask))
    budget = sparsify(X, W, b, activation=activation, mask=mask, relative_error=0.9, effort=effort)
    assert not budget.weight[~mask].any()
    assert not budget.convex.weight[~mask].any()


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


@pytest.mark.parametrize("effort", EFFORTS)
@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_float32_layers_come_back_as_float32_and_are_measured_as_such(activation, effort):
    X, W, b = arrays(dtype=np.float32)
    layer = sparsify(X, W, b, activation=activation, sparsity=0.6, effort=effort)
    assert layer.weight.dtype == layer.bias.dtype == np.float32
    rounded = [np.asarray(array, dtype=np.float64) for array in (X, W, b)]
    assert layer.output_error == pytest.approx(output_error(layer, *rounded, activation), rel=1e-5)


@pytest.mark.parametrize("goal", [{"sparsity": 0.6}, {"pattern": "2:4"}, {"relative_error": 0.2}], ids=str)
@pytest.mark.parametrize("effort", EFFORTS)
def test_bits_do_not_depend_on_threads(goal, effort):
    X, W, b = arrays()
    one, two = (sparsify(X, W, b, activation="relu", effort=effort, n_threads=n, **goal) for n in (1, 2))
    np.testing.assert_array_equal(one.weight, two.weight)
    np.testing.assert_array_equal(one.bias, two.bias)
    assert (one.held_out_error, one.settings) == (two.held_out_error, two.settings)


def test_callback_sees_the_progress_of_convex_programs_and_can_stop_them():
    X, W, b = arrays()
    for keywords, programs in (
        ({"sparsity": 0.6}, 0),
        ({"sparsity": 0.6, "effort": "full"}, 3),  # the program and two rounds of reweighting
        ({"relative_error": 0.2}, 1),
    ):
        seen = []
        sparsify(X, W, b, activation="relu", callback=seen.append, **keywords)
        rounds = [progress.round for progress in seen]
        assert rounds.count(1) == programs
        assert rounds[:1] == [1] * min(programs, 1)
        assert all(b in (a + 1, 1) for a, b in itertools.pairwise(rounds))
    keywords = {"sparsity": 0.6, "effort": "full", "tol": 1e-8}
    with pytest.warns(ConvergenceWarning, match="callback"):
        layer = sparsify(X, W, b, activation="relu", callback=lambda _: True, **keywords)
    assert layer.convex.status is Status.CALLBACK
    assert len(layer.convex.history) == 1
    assert np.count_nonzero(layer.weight) == round(0.4 * W.size)


@pytest.mark.parametrize(
    "goal",
    [{"sparsity": 0.6}, {"sparsity": 0.6, "effort": "fast"}, {"sparsity": 0.6, "effort": "full"}]
    + [{"pattern": "2:4"}, {"relative_error": 0.2}],
    ids=str,
)
def test_without_time_the_layer_is_still_valid_and_honest(goal):
    X, W, b = arrays()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        layer = sparsify(X, W, b, activation="relu", tol=1e-8, max_seconds=0.0, **goal)
    warned = [warning for warning in caught if warning.category is ConvergenceWarning]
    assert len(warned) == 1
    assert "max_seconds" in str(warned[0].message)
    assert warned[0].filename == __file__
    assert (layer.convex is not None) == ("relative_error" in goal or goal.get("effort") == "full")
    if layer.convex is not None:
        assert layer.convex.status is Status.TIME_LIMIT
    found = radius(layer, X, W, b, "relu")
    assert layer.relative_error * empty_radius(X, W, b, "relu") == pytest.approx(found, rel=1e-9, abs=1e-10)
    if "relative_error" in goal:
        assert layer.relative_error <= 0.2 * (1 + 1e-6)
    else:
        kept = round(0.4 * W.size) if "sparsity" in goal else N_OUT * (4 + 1)  # of 2 inputs that remain 1
        assert np.count_nonzero(layer.weight) == kept
        assert layer.relative_error < 1.0


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


@pytest.mark.parametrize("effort", EFFORTS)
def test_layer_prints_its_stages(effort):
    layer = sparsify(*arrays(), activation="relu", sparsity=0.6, effort=effort)
    first, *lines = str(layer).splitlines()
    assert first.startswith("SparseLayer 10 -> 6: 60.00% zeros, output error 0.")
    assert (f", held out {layer.held_out_error:.4f}" in first) if effort != "fast" else "held out" not in first
    if effort == "full":
        assert "OPTIMAL" in lines[0]
        assert re.search(r"gap \d\.\de-\d\d", lines[0])
        lines = lines[1:]
    assert lines[0] == f"  settings: {layer.settings}"
    assert f"fidelity {layer.settings.fidelity:g}, ridge {layer.settings.ridge:g}" in lines[0]
    names = [re.split(r"\s{2,}", line.strip()) for line in lines[1:]]
    assert names[0] == ["stage", "zeros", "relative error", "output error", "seconds"]
    assert [row[0] for row in names[1:]] == [stage.name for stage in layer.stages]
    assert all(len(row) == 5 for row in names)
    assert len({len(line) for line in lines[1:]}) == 1
    assert repr(layer) == f"<SparseLayer (6, 10): sparsity 0.6000, output_error {layer.output_error:.4g}>"


@pytest.mark.parametrize("effort", EFFORTS)
def test_layer_survives_pickling_and_cannot_be_changed(effort):
    layer = sparsify(*arrays(), activation="relu", sparsity=0.6, effort=effort)
    again = pickle.loads(pickle.dumps(layer))
    np.testing.assert_array_equal(again.weight, layer.weight)
    assert str(again) == str(layer)
    assert (again.settings, again.stages) == (layer.settings, layer.stages)
    assert again.convex is None if effort != "full" else again.convex.status is Status.OPTIMAL
    with pytest.raises(AttributeError):
        layer.weight = None


def test_examples_of_the_public_surface_run_as_written():
    inputs, weight, bias = arrays()
    layer = sisopt.sparsify(inputs, weight, bias, activation="relu", sparsity=0.9)
    assert layer.weight.shape == weight.shape
    assert layer.bias.shape == bias.shape
    assert layer.weight.dtype == weight.dtype
    assert layer.sparsity == 0.9
    assert sisopt.sparsify(inputs, weight, bias, activation="relu", relative_error=0.1).convex.gap <= 1e-3
    problem = sisopt.LayerProblem(inputs, weight, bias, activation="relu", penalty="l1")
    goal = sisopt.ErrorBudget(relative_error=0.1)
    solution = sisopt.solve(problem, goal, method="forward-backward", tol=1e-4)
    names = "weight bias objective lower_bound gap multiplier radius relative_error kkt_violation status n_iterations"
    for name in (*names.split(), "n_products", "history", "seconds", "goal"):
        assert hasattr(solution, name)
    assert str(solution.status.name) in str(solution)
