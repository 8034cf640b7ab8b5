"""One optimality check for every method, activation, penalty and goal, computed here in plain numpy."""

from __future__ import annotations

import numpy as np
import pytest

from sisopt import ErrorBudget, InvalidInputError, LayerProblem, Penalized, Sparsity, Status, solve
from sisopt.dispatch import METHODS

TOL = 1e-7
ACTIVATIONS = ["identity", "relu", "hard_tanh", "gelu", "tanh", "soft_shrink", "squared_relu"]
PENALTIES = {
    "l1": (),
    "l1, fidelity": ("fidelity",),
    "l1, weights": ("entry_weights", "sample_weights"),
    "weighted l1, mask": ("mask", "penalty"),
    "l1, shift, tolerance": ("shift", "tolerance"),
    "l1, sequential": ("preactivations",),
    "everything": ("tolerance", "fidelity", "shift", "entry_weights", "sample_weights", "mask", "penalty"),
}
GOALS = ["dense multiplier", "sparse multiplier", "tight budget", "loose budget", "sparsity"]


def make_goal(name, layer, tight):
    """Return a goal of this name, in the units of the layer."""
    nothing = np.zeros(layer.W.shape)
    gradient = layer.gradient(nothing, None if layer.b is None else layer.best_bias(nothing))
    largest = np.max(np.abs(gradient) / layer.factors)
    return {
        "dense multiplier": Penalized(0.03 * largest),
        "sparse multiplier": Penalized(0.4 * largest),
        "tight budget": ErrorBudget(relative_error=tight),
        "loose budget": ErrorBudget(relative_error=0.8),
        "sparsity": Sparsity(0.6),
    }[name]


def assert_primal_feasible(layer, solution):
    """The budget is kept and forbidden weights are zero."""
    assert (solution.weight[np.isinf(layer.factors)] == 0).all()
    if isinstance(solution.goal, ErrorBudget):
        epsilon = solution.goal.relative_error * layer.empty_radius
        assert layer.radius(solution.weight, solution.bias) <= epsilon * (1 + 1e-6)


def assert_stationary(layer, solution, tol):
    """No weight, moved on its own, can lower lambda g + phi by more than ``tol`` times lambda g + phi.

    With v the distance of -dphi/dw from lambda a d|w| and h the curvature of phi in w, moving w gains v**2 / (2 h) at
    least, or half of v |w| where w reaches zero before.
    """
    W, multiplier = solution.weight, solution.multiplier
    C, free = layer.gradient(W, solution.bias), np.isfinite(layer.factors)
    a = multiplier * np.where(free, layer.factors, 0.0)
    v = np.where(free, np.where(W == 0, np.maximum(np.abs(C) - a, 0.0), np.abs(C + a * np.sign(W))), 0.0)
    h = (layer.omega + layer.pull).T @ layer.X.astype(np.float64) ** 2
    gain = np.divide(v**2, 2 * h, out=np.zeros_like(v), where=h > 0)
    gain = np.where(W == 0, gain, np.minimum(gain, 0.5 * v * np.abs(W)))
    whole = multiplier * layer.penalty(W)
    if isinstance(solution.goal, Penalized):
        whole += layer.phi(W, solution.bias)
    assert gain.max() <= tol * whole
    assert (v[h == 0] == np.where(W == 0, 0.0, a)[h == 0]).all()  # nothing pulls a weight that acts on nothing
    assert (W[h == 0] == 0).all()


def assert_complementary(layer, solution, tol):
    """What is left of the budget, at the price 1 / lambda, is worth no more than ``tol`` of the penalty."""
    if isinstance(solution.goal, ErrorBudget):
        epsilon = solution.goal.relative_error * layer.empty_radius
        left = 0.5 * epsilon**2 - layer.phi(solution.weight, solution.bias)
        assert left <= tol * solution.multiplier * layer.penalty(solution.weight)


def assert_bias_optimal(layer, solution):
    """The slopes d phi / d z sum to zero over the samples of every neuron, up to a few roundings of z."""
    assert (solution.bias is None) == (layer.b is None)
    if layer.b is not None:
        slopes = layer.slopes(solution.weight, solution.bias)
        size = np.abs(layer.X) @ np.abs(solution.weight).T + np.abs(solution.bias) + np.abs(layer.center)
        rounding = 4 * np.finfo(np.float64).eps * np.sum((layer.omega + layer.pull) * size, axis=0)
        assert (np.abs(slopes.sum(axis=0)) <= rounding).all()


def assert_reports_itself(layer, solution, tol):
    """The numbers on a solution are those of its weights."""
    W, b = solution.weight, solution.bias
    radius, penalty = layer.radius(W, b), layer.penalty(W)
    penalized = isinstance(solution.goal, Penalized)
    objective = solution.goal.multiplier * penalty + radius**2 / 2 if penalized else penalty
    assert solution.status is Status.OPTIMAL
    assert solution.radius == pytest.approx(radius, rel=1e-9)
    assert solution.relative_error == pytest.approx(radius / layer.empty_radius, rel=1e-9)
    assert solution.objective == pytest.approx(objective, rel=1e-9)
    assert 0 < solution.lower_bound <= solution.objective
    assert solution.gap == pytest.approx(1 - solution.lower_bound / solution.objective, abs=1e-15)
    assert solution.gap <= tol
    assert solution.sparsity == pytest.approx(np.mean(W == 0), abs=1e-12)
    if penalized:
        assert solution.multiplier == solution.goal.multiplier
    scaled = layer.gradient(W, b) / layer.factors / solution.multiplier
    violation = np.where(W == 0, np.maximum(np.abs(scaled) - 1, 0), np.abs(scaled + np.sign(W))).max()
    assert solution.kkt_violation == pytest.approx(violation, rel=1e-6, abs=1e-9)


def assert_optimal(layer, solution, tol=TOL):
    assert_primal_feasible(layer, solution)
    assert_stationary(layer, solution, tol)
    assert_complementary(layer, solution, tol)
    assert_bias_optimal(layer, solution)
    assert_reports_itself(layer, solution, tol)


@pytest.mark.parametrize("goal", GOALS)
@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("method", METHODS)
def test_solution_meets_the_optimality_conditions(make_layer, method, activation, penalty, goal):
    extras = PENALTIES[penalty]
    seed = ACTIVATIONS.index(activation)
    layer = make_layer(activation, extras=extras, bias=(seed + len(extras)) % 3 > 0, n_in=12, seed=seed)
    tight = 0.6 if {"mask", "preactivations"} & set(extras) else 0.1
    assert_optimal(layer, solve(layer.problem, make_goal(goal, layer, tight), method=method, tol=TOL))


def columns(change):
    """Return inputs (80, 10) whose columns were changed by ``change(X, rng)``."""
    rng = np.random.default_rng(7)
    X = rng.standard_normal((80, 10)) + 0.3
    return change(X, rng)


def _set(X, j, values):
    X[:, j] = values
    return X


def _scaled(X, scale):
    return X * np.where(np.arange(X.shape[1]) % 3 == 0, scale, 1.0)


DATA = {
    "as it is": lambda X, rng: X,
    "integers": lambda X, rng: np.round(3 * X).astype(np.int32),
    "float32": lambda X, rng: X.astype(np.float32),
    "strided": lambda X, rng: np.repeat(np.repeat(X, 2, axis=0), 2, axis=1)[::2, ::2],
    "column by column": lambda X, rng: np.asfortranarray(X),
    "reversed": lambda X, rng: X[::-1, ::-1],
    "fewer samples than inputs": lambda X, rng: X[:7],
    "one input": lambda X, rng: X[:, :1],
    "constant column": lambda X, rng: _set(X, 2, 1.5),
    "dead column": lambda X, rng: _set(X, 2, 0.0),
    "duplicate columns": lambda X, rng: _set(X, 2, X[:, 5]),
    "opposite columns": lambda X, rng: _set(X, 2, -X[:, 5]),
    "columns times 1e6": lambda X, rng: _scaled(X, 1e6),
    "columns times 1e-6": lambda X, rng: _scaled(X, 1e-6),
    "repeated samples": lambda X, rng: X[np.arange(80) % 20],
}


@pytest.mark.parametrize("goal", ["sparse multiplier", "tight budget", "sparsity"])
@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("activation", ["identity", "relu"])
@pytest.mark.parametrize("method", METHODS)
def test_awkward_inputs_meet_the_optimality_conditions(make_layer, method, activation, data, goal):
    X = columns(DATA[data])
    layer = make_layer(activation, inputs=X, n=X.shape[0], n_in=X.shape[1], n_out=4)
    assert_optimal(layer, solve(layer.problem, make_goal(goal, layer, 0.1), method=method, tol=1e-5), 1e-5)


@pytest.mark.parametrize("goal", GOALS)
@pytest.mark.parametrize("n_out", [1, 2, 19])
@pytest.mark.parametrize("method", METHODS)
def test_layers_of_any_width_meet_the_optimality_conditions(make_layer, method, n_out, goal):
    layer = make_layer("relu", n_out=n_out)
    assert_optimal(layer, solve(layer.problem, make_goal(goal, layer, 0.1), method=method, tol=TOL))


@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_integer_layers_are_solved_in_float64(make_layer, activation):
    rng = np.random.default_rng(2)
    X, W, b = rng.integers(-4, 5, (60, 6)), rng.integers(-3, 4, (3, 6)), rng.integers(-1, 2, 3)
    goal = ErrorBudget(relative_error=0.2)
    found = solve(LayerProblem(X, W, b, activation=activation), goal, tol=TOL)
    same = solve(LayerProblem(*(a.astype(np.float64) for a in (X, W, b)), activation=activation), goal, tol=TOL)
    assert found.weight.dtype == found.bias.dtype == np.float64
    assert found.weight.tobytes() == same.weight.tobytes()
    assert found.bias.tobytes() == same.bias.tobytes()


@pytest.mark.parametrize("goal", ["tight budget", "sparse multiplier", "sparsity"])
@pytest.mark.parametrize("activation", ["identity", "relu", "gelu"])
def test_float32_solutions_report_their_rounded_weights(make_layer, activation, goal):
    layer = make_layer(activation, dtype=np.float32, n_in=12)
    solution = solve(layer.problem, make_goal(goal, layer, 0.1), tol=1e-4)
    assert solution.weight.dtype == solution.bias.dtype == np.float32
    radius, penalty = layer.radius(solution.weight, solution.bias), layer.penalty(solution.weight)
    penalized = isinstance(solution.goal, Penalized)
    assert solution.radius == pytest.approx(radius, rel=1e-9)
    assert solution.objective == pytest.approx(
        solution.goal.multiplier * penalty + radius**2 / 2 if penalized else penalty, rel=1e-9
    )
    assert solution.status is Status.OPTIMAL


def test_dead_neurons_keep_their_bias_and_no_weight(make_layer):
    layer = make_layer("relu", n_out=3)
    b = layer.b.copy()
    b[1] = -50.0  # below zero on every sample: any bias of at most 0 serves
    problem = layer.again(bias=b)
    for goal in (Penalized(1.0), ErrorBudget(relative_error=0.2), Sparsity(0.7)):
        solution = solve(problem, goal)
        assert not solution.weight[1].any()
        assert solution.bias[1] == -50.0
        assert solution.status is Status.OPTIMAL


@pytest.mark.parametrize("method", ["simplex", "", "Forward-Backward", None, 3])
def test_unknown_methods_are_refused_by_name(make_layer, method):
    with pytest.raises(InvalidInputError, match="method must be one of 'forward-backward'"):
        solve(make_layer().problem, Penalized(1.0), method=method)


@pytest.mark.parametrize("goal", [0.9, None, "Sparsity", Penalized])
def test_what_is_no_goal_is_refused(make_layer, goal):
    with pytest.raises(InvalidInputError, match="goal must be"):
        solve(make_layer().problem, goal)
