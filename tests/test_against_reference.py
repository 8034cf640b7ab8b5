"""The solver's answers are those of cvxpy's CLARABEL, and its lower bounds never exceed CLARABEL's optimum."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest

import sisopt
from sisopt import (
    ErrorBudget,
    LayerProblem,
    Penalized,
    Sparsity,
    Status,
    UnsupportedError,
    WeightedL1,
    reference,
    solve,
)
from sisopt.activations import MaxPool
from sisopt.dispatch import METHODS
from sisopt.penalties import L1, GroupL2, SparseGroup

pytest.importorskip("cvxpy")

EXTRAS = [
    ("tolerance",),
    ("fidelity",),
    ("shift",),
    ("entry_weights",),
    ("sample_weights",),
    ("mask",),
    ("penalty",),
    ("preactivations",),
    ("fidelity", "entry_weights", "sample_weights"),
    ("tolerance", "fidelity", "shift", "entry_weights", "sample_weights", "mask", "penalty", "preactivations"),
]
ENTRYWISE = [name for name in sisopt.activation_names() if not sisopt.get_activation(name).couples_outputs]


def largest_multiplier(layer):
    """Return the multiplier from which on W = 0 is optimal."""
    nothing = np.zeros(layer.W.shape)
    return np.max(np.abs(layer.gradient(nothing, layer.best_bias(nothing))) / layer.factors)


def goals(layer, tight):
    """Return a penalised goal and a budget; ``tight`` is the budget's relative error."""
    return {"Penalized": Penalized(0.1 * largest_multiplier(layer)), "ErrorBudget": ErrorBudget(relative_error=tight)}


def assert_same_optimum(layer, goal, *, tol, rtol):
    """Solve by both and compare what both know."""
    found, wanted = solve(layer.problem, goal, tol=tol), reference.solve(layer.problem, goal)
    assert found.status is Status.OPTIMAL
    assert wanted.status == "optimal"
    assert found.objective == pytest.approx(wanted.objective, rel=rtol)
    assert found.lower_bound <= wanted.objective * (1 + 1e-7)
    if isinstance(goal, ErrorBudget):
        epsilon = goal.relative_error * layer.empty_radius
        assert layer.radius(found.weight, found.bias) <= epsilon * (1 + 1e-6)
        assert 0 < found.objective
    return found, wanted


@pytest.mark.parametrize("goal", ["Penalized", "ErrorBudget"])
@pytest.mark.parametrize("activation", ENTRYWISE)
def test_every_activation_reaches_the_optimum_of_the_reference(make_layer, activation, goal):
    seed = ENTRYWISE.index(activation)
    layer = make_layer(activation, n=60 + seed, n_in=8 + seed % 5, n_out=3 + seed % 2, bias=seed % 4 != 3, seed=seed)
    assert_same_optimum(layer, goals(layer, 0.2)[goal], tol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("goal", ["Penalized", "ErrorBudget"])
@pytest.mark.parametrize("extras", EXTRAS, ids="+".join)
@pytest.mark.parametrize("activation", ["identity", "relu", "gelu"])
def test_every_argument_of_the_problem_is_obeyed(make_layer, activation, extras, goal):
    layer = make_layer(activation, extras=extras, bias=len(extras) != 3, seed=len(extras))
    tight = 0.6 if {"mask", "preactivations"} & set(extras) else 0.15
    found, _ = assert_same_optimum(layer, goals(layer, tight)[goal], tol=1e-7, rtol=1e-6)
    assert (found.weight[np.isinf(layer.factors)] == 0).all()


@pytest.mark.parametrize("relative_error", [0.003, 0.5, 0.97])
@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_budgets_of_every_size_reach_the_optimum_of_the_reference(make_layer, activation, relative_error):
    layer = make_layer(activation, n=120, n_in=12)
    assert_same_optimum(layer, ErrorBudget(relative_error=relative_error), tol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("share", [1e-4, 0.01, 0.9])
@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_multipliers_of_every_size_reach_the_optimum_of_the_reference(make_layer, activation, share):
    layer = make_layer(activation, n=120, n_in=12)
    assert_same_optimum(layer, Penalized(share * largest_multiplier(layer)), tol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_multiplier_of_a_budget_is_that_of_the_reference(make_layer, activation):
    layer = make_layer(activation)
    found, wanted = assert_same_optimum(layer, ErrorBudget(relative_error=0.2), tol=1e-8, rtol=1e-7)
    assert found.multiplier == pytest.approx(wanted.multiplier, rel=1e-3)


@pytest.mark.parametrize("measure", ["eta", "radius"])
def test_budgets_in_other_units_reach_the_optimum_of_the_reference(make_layer, measure):
    layer = make_layer("relu", extras=("sample_weights",))
    epsilon = 0.2 * layer.empty_radius
    total = layer.options["sample_weights"].sum()
    goal = ErrorBudget(eta=epsilon**2 / total) if measure == "eta" else ErrorBudget(radius=epsilon)
    found = solve(layer.problem, goal, tol=1e-7)
    assert found.objective == pytest.approx(reference.solve(layer.problem, goal).objective, rel=1e-6)
    assert epsilon * (1 - 1e-4) <= layer.radius(found.weight, found.bias) <= epsilon * (1 + 1e-6)


@pytest.mark.parametrize("activation", ["identity", "relu", "gelu"])
def test_sparsity_is_the_budget_problem_at_the_radius_that_it_attains(make_layer, activation):
    layer = make_layer(activation, n_in=12, n_out=4)
    found = solve(layer.problem, Sparsity(0.6), tol=1e-6)
    wanted = reference.solve(layer.problem, ErrorBudget(radius=layer.radius(found.weight, found.bias)))
    assert found.objective == pytest.approx(wanted.objective, rel=2e-6)
    assert found.lower_bound <= wanted.objective * (1 + 1e-7)
    assert abs(np.count_nonzero(found.weight) - round(0.4 * 48)) <= 1


@pytest.mark.parametrize("goal", ["Penalized", "ErrorBudget"])
@pytest.mark.parametrize("activation", ["identity", "relu", "gelu"])
def test_float32_layers_reach_the_optimum_of_the_reference(make_layer, activation, goal):
    layer = make_layer(activation, dtype=np.float32)
    goal = goals(layer, 0.2)[goal]
    found, wanted = solve(layer.problem, goal, tol=1e-4), reference.solve(layer.problem, goal)
    assert found.weight.dtype == found.bias.dtype == np.float32
    assert found.status is Status.OPTIMAL
    assert found.objective == pytest.approx(wanted.objective, rel=1e-4)
    assert found.lower_bound <= wanted.objective * (1 + 1e-7)
    if isinstance(goal, ErrorBudget):
        assert layer.radius(found.weight, found.bias) <= 0.2 * layer.empty_radius * (1 + 1e-5)


@pytest.mark.parametrize("goal", ["Penalized", "ErrorBudget"])
@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_neurons_whose_weights_are_all_forbidden_do_not_spoil_the_certificate(make_layer, activation, goal):
    layer = make_layer(activation)
    mask = np.ones(layer.W.shape, dtype=bool)
    mask[1] = False
    problem = layer.again(mask=mask)
    goal = goals(layer, 0.9)[goal]
    found, wanted = solve(problem, goal), reference.solve(problem, goal)
    assert found.objective == pytest.approx(wanted.objective, rel=1e-4)
    assert found.status is Status.OPTIMAL


def from_sums(layer, *, explicit):
    """Pose the layer from sums alone; ``explicit`` gives the target's sums, the default takes the dense layer's."""
    X, Z = layer.X, layer.center
    target = {"cross": Z.T @ X, "energy": (Z**2).sum(axis=0)} if explicit else {}
    if layer.b is not None:
        target["input_sum"] = X.sum(axis=0)
        if explicit:
            target["target_sum"] = Z.sum(axis=0)
    return LayerProblem.from_gram(
        X.T @ X,
        weight=layer.W,
        bias=layer.b,
        n_samples=len(X),
        penalty=layer.options.get("penalty", "l1"),
        mask=layer.options.get("mask"),
        **target,
    )


@pytest.mark.parametrize(
    "goal",
    [Penalized(5.0), ErrorBudget(relative_error=0.6), Sparsity(0.7)],
    ids=["Penalized", "ErrorBudget", "Sparsity"],
)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize(
    ("extras", "explicit"), [((), False), (("mask", "penalty"), False), (("preactivations",), True)], ids=str
)
def test_sums_give_the_solution_of_the_data_behind_them(make_layer, extras, explicit, bias, goal):
    layer = make_layer("identity", extras=extras, bias=bias)
    data, sums = solve(layer.problem, goal, tol=1e-7), solve(from_sums(layer, explicit=explicit), goal, tol=1e-7)
    np.testing.assert_allclose(sums.weight, data.weight, atol=1e-6)
    assert sums.objective == pytest.approx(data.objective, rel=1e-6)
    assert sums.radius == pytest.approx(layer.radius(sums.weight, sums.bias), rel=1e-6)
    assert sums.relative_error == pytest.approx(data.relative_error, rel=1e-6)
    assert sums.status is Status.OPTIMAL
    if bias:
        np.testing.assert_allclose(sums.bias, data.bias, atol=1e-6)
    else:
        assert sums.bias is None


def test_weighted_penalty_of_one_row_broadcasts(make_layer):
    layer = make_layer("relu")
    factors = np.linspace(0.5, 2.0, layer.W.shape[1])
    goal = ErrorBudget(relative_error=0.3)
    row = solve(layer.again(penalty=WeightedL1(factors)), goal, tol=1e-7)
    full = reference.solve(layer.again(penalty=WeightedL1(np.tile(factors, (layer.W.shape[0], 1)))), goal)
    assert row.objective == pytest.approx(full.objective, rel=1e-6)
    assert row.objective == pytest.approx(float(np.sum(factors * np.abs(row.weight))), rel=1e-12)


def test_no_weights_are_needed_from_a_relative_error_of_one_on(make_layer):
    layer = make_layer("relu")
    for goal in (ErrorBudget(relative_error=1.0), ErrorBudget(radius=2.0 * layer.empty_radius)):
        found, wanted = solve(layer.problem, goal), reference.solve(layer.problem, goal)
        assert found.objective == wanted.objective == 0.0
        assert found.gap == 0.0
        assert math.isclose(found.radius, wanted.radius, rel_tol=1e-9)


# Every method on budgets, penalties and targets of every kind.

ACTIVATIONS = {name: name for name in ("identity", "relu", "gelu", "softmax", "log_softmax", "sparsemax")} | {
    "max_pool": MaxPool(np.arange(60).reshape(-1, 4))
}
PENALTIES = {
    "l1": L1(),
    "columns": GroupL2("columns"),
    "rows": GroupL2("rows"),
    "blocks": GroupL2("blocks", block=(2, 2)),
    "sparse columns": SparseGroup("columns", l1=0.5),
    "sparse kernels": SparseGroup("kernels", l1=0.5, kernel_size=(2,)),
}
BUDGETS = {
    "penalized": Penalized(2.0),
    "layer": ErrorBudget(relative_error=0.4),
    "batch": ErrorBudget(relative_error=0.4, per="batch", batch_size=25),
    "neuron": ErrorBudget(relative_error=0.4, per="neuron"),
}
CELLS = [
    ("identity", "l1", "batch"),
    ("identity", "l1", "neuron"),
    ("identity", "columns", "layer"),
    ("identity", "blocks", "penalized"),
    ("identity", "sparse kernels", "layer"),
    ("relu", "l1", "layer"),
    ("relu", "l1", "batch"),
    ("relu", "l1", "neuron"),
    ("relu", "columns", "layer"),
    ("relu", "columns", "neuron"),
    ("relu", "rows", "penalized"),
    ("relu", "rows", "neuron"),
    ("relu", "blocks", "batch"),
    ("relu", "sparse columns", "penalized"),
    ("gelu", "sparse kernels", "batch"),
    ("max_pool", "l1", "layer"),
    ("max_pool", "columns", "batch"),
    ("softmax", "l1", "layer"),
    ("softmax", "l1", "batch"),
    ("softmax", "columns", "penalized"),
    ("log_softmax", "rows", "layer"),
    ("sparsemax", "l1", "penalized"),
    ("sparsemax", "l1", "batch"),
    ("sparsemax", "sparse columns", "layer"),
]
UNSUPPORTED = {  # by method: cells that it may refuse, None standing for anything
    "forward-backward": [(None, "columns", "neuron"), (None, "blocks", "neuron"), (None, "sparse columns", "neuron")],
    "douglas-rachford": [],
    "sis": [(None, None, "penalized")],
}
TOL = {"forward-backward": 1e-4, "douglas-rachford": 1e-4, "sis": 1e-2}


@functools.cache
def cell_problem(activation, penalty, bias):
    """Return a small layer, its weights of the size that the activation bends."""
    rng = np.random.default_rng(11)
    X = rng.standard_normal((60, 8)) * np.linspace(0.4, 1.6, 8) + 0.2
    W, b = 0.7 * rng.standard_normal((3, 8)), 0.3 * rng.standard_normal(3)
    v = rng.uniform(0.5, 1.5, 60)
    return LayerProblem(
        X, W, b if bias else None, activation=ACTIVATIONS[activation], penalty=PENALTIES[penalty], sample_weights=v
    )


@functools.cache
def wanted_solution(activation, penalty, budget, bias):
    """Return the reference's solution of a cell."""
    return reference.solve(cell_problem(activation, penalty, bias), BUDGETS[budget])


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: "-".join(cell).replace(" ", "_"))
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.filterwarnings("ignore::sisopt.ConvergenceWarning")
def test_every_method_reaches_the_optimum_of_the_reference(method, cell):
    bias = CELLS.index(cell) % 4 != 3
    problem, goal, tol = cell_problem(*cell[:2], bias), BUDGETS[cell[2]], TOL[method]
    try:
        found = solve(problem, goal, method=method, tol=tol)
    except UnsupportedError:
        assert any(all(a in (None, b) for a, b in zip(row, cell, strict=True)) for row in UNSUPPORTED[method])
        return
    wanted = wanted_solution(*cell, bias)
    if method != "sis":  # the bound of the paper's scheme trails behind its iterates
        assert found.status is Status.OPTIMAL
    assert wanted.objective * (1 - 1e-5) <= found.objective <= wanted.objective / (1 - tol) * (1 + 1e-6)
    assert found.lower_bound <= wanted.objective * (1 + 1e-6)
    if isinstance(goal, ErrorBudget):  # all groups together: sum_j epsilon_j**2 = (0.4 epsilon_max)**2
        assert found.relative_error <= 0.4 * (1 + 1e-5)


@pytest.mark.parametrize(
    ("method", "activation", "penalty", "budget"),
    [
        ("forward-backward", "identity", "columns", "layer"),
        ("douglas-rachford", "relu", "l1", "batch"),
        ("douglas-rachford", "relu", "rows", "neuron"),
        ("douglas-rachford", "softmax", "l1", "batch"),
    ],
)
def test_dual_variables_of_budgets_are_those_of_the_reference(method, activation, penalty, budget):
    found = solve(cell_problem(activation, penalty, True), BUDGETS[budget], method=method, tol=1e-5)
    wanted = wanted_solution(activation, penalty, budget, True)
    np.testing.assert_allclose(found.duals, wanted.duals, rtol=2e-2, atol=2e-3 * wanted.duals.max())
