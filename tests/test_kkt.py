"""One optimality check for every method, activation, penalty and goal, computed here in plain numpy."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy.optimize import minimize
from test_capabilities import ACROSS, INSIDE, asked_of, supported

from sisopt import ErrorBudget, InvalidInputError, LayerProblem, Penalized, Sparsity, Status, UnsupportedError, solve
from sisopt.capabilities import METHODS, check_capability

TOL = 1e-7
COUPLED = ("softmax", "log_softmax", "sparsemax")
ACTIVATIONS = [
    "identity", "relu", "hard_tanh", "gelu", "tanh", "soft_shrink", "squared_relu", "max_pool", *COUPLED
]  # fmt: skip
PENALTIES = {
    "l1": (),
    "l1, fidelity": ("fidelity",),
    "l1, weights": ("entry_weights", "sample_weights"),
    "weighted l1, mask": ("mask", "penalty"),
    "l1, shift, tolerance": ("shift", "tolerance"),
    "l1, sequential": ("preactivations",),
    "everything": ("tolerance", "fidelity", "shift", "entry_weights", "sample_weights", "mask", "penalty"),
    "columns": ("columns",),
    "weighted rows, weights": ("rows", "sample_weights"),
    "kernels, shift": ("kernels", "shift"),
    "blocks": ("blocks",),
    "sparse groups, mask": ("sparse-group", "mask"),
}
PLAIN = {  # what coupled targets take of the lists that hold more
    "l1, weights": ("sample_weights",),
    "l1, shift, tolerance": ("shift",),
    "everything": ("fidelity", "shift", "sample_weights", "mask", "penalty"),
}
GOALS = [
    "dense multiplier",
    "sparse multiplier",
    "tight budget",
    "loose budget",
    "tight budget per batch",
    "loose budget per batch",
    "tight budget per neuron",
    "loose budget per neuron",
    "sparsity",
]


def make_goal(name, layer, tight, batch_size=30):
    """Return a goal of this name, in the units of the layer."""
    largest = np.max(layer.dual_norms(layer.gradient(np.zeros(layer.W.shape), layer.empty_bias)))
    fraction = tight if "tight" in name else 0.8
    return {
        "dense multiplier": Penalized(0.03 * largest),
        "sparse multiplier": Penalized(0.4 * largest),
        "sparsity": Sparsity(0.6),
    }.get(name) or ErrorBudget(
        relative_error=fraction,
        per=name.split()[-1] if "per" in name else "layer",
        batch_size=batch_size if "batch" in name else None,
    )


def prices(layer, solution):
    """Return the dual variable mu of every entry of the pre-activations, (n, n_out)."""
    if isinstance(solution.goal, ErrorBudget):
        return layer.spread(solution.duals, solution.goal)
    return np.full(layer.center.shape, 1.0 / solution.multiplier)


def worth(layer, solution):
    """Return what gaps are relative to, in units of g."""
    if isinstance(solution.goal, Penalized):
        return solution.objective / solution.multiplier
    return solution.objective


def assert_primal_feasible(layer, solution):
    """Every budget is kept and forbidden weights are zero."""
    assert (solution.weight[np.isinf(layer.factors)] == 0).all()
    if isinstance(solution.goal, ErrorBudget):
        radii = np.sqrt(2 * layer.group_losses(solution.weight, solution.bias, solution.goal))
        epsilon = np.array([budget for _, budget in layer.budgets(solution.goal)])
        assert (radii <= epsilon * (1 + 1e-6)).all()


def assert_stationary(layer, solution, tol):
    """No weight and no group, moved on its own, can lower g + sum_j mu_j phi_j by more than ``tol`` times itself.

    With v the distance of -sum_j mu_j dphi_j/dw from the subdifferential of g and h the curvature, moving w gains
    v**2 / (2 h) at least, or half of v |w| where w reaches zero before. The norm of a group that is not zero is smooth,
    of a curvature of at most kappa / ||W_g||; a group that is zero moves as a whole.
    """
    W, mu = solution.weight, prices(layer, solution)
    free = np.isfinite(layer.factors)
    C = np.where(free, layer.gradient(W, solution.bias, mu), 0.0)
    a = np.where(free, layer.factors, 0.0)
    h = np.where(free, (mu * (layer.omega + layer.pull)).T @ layer.X.astype(np.float64) ** 2, 0.0)
    acts = h > 0
    groups_gain = [0.0]
    alone = free.copy()  # weights that may be moved on their own
    for g, norm in enumerate(layer.norms(W)):
        own, kappa = layer.labels == g, layer.kappa[g]
        if norm > 0:
            C[own] += kappa * W[own] / norm
            h[own] += kappa / norm
            continue
        alone &= ~own
        v = max(np.linalg.norm(np.maximum(np.abs(C[own]) - a[own], 0.0)) - kappa, 0.0)
        groups_gain.append(v**2 / (2 * h[own].sum()) if h[own].sum() > 0 else v)
    v = np.where(alone, np.where(W == 0, np.maximum(np.abs(C) - a, 0.0), np.abs(C + a * np.sign(W))), 0.0)
    gain = np.divide(v**2, 2 * h, out=np.zeros_like(v), where=h > 0)
    gain = np.where((W == 0) | (a == 0), gain, np.minimum(gain, 0.5 * v * np.abs(W)))
    assert max(gain.max(), *groups_gain) <= tol * worth(layer, solution)
    dead = free & ~acts & (mu > 0).any(axis=0)[:, None]
    assert (np.abs(C[dead]) <= a[dead]).all()  # nothing pulls a weight that acts on nothing
    assert (W[dead] == 0).all()


def assert_complementary(layer, solution, tol):
    """What is left of the budgets, at their prices, is worth no more than ``tol`` of the penalty."""
    if isinstance(solution.goal, ErrorBudget):
        epsilon = np.array([budget for _, budget in layer.budgets(solution.goal)])
        left = 0.5 * epsilon**2 - layer.group_losses(solution.weight, solution.bias, solution.goal)
        assert solution.duals.shape == epsilon.shape
        assert (solution.duals >= 0).all()
        assert solution.duals @ left <= tol * solution.objective


def assert_bias_optimal(layer, solution, tol):
    """The bias is the best for sum_j mu_j phi_j: a step along its slopes gains no more than ``tol``.

    Where one multiplier was searched for, the slopes even sum to zero up to a few roundings of z.
    """
    assert (solution.bias is None) == (layer.b is None)
    if layer.b is not None:
        mu = prices(layer, solution)
        slopes = layer.slopes(solution.weight, solution.bias, mu).sum(axis=0)
        h = np.sum(mu * (layer.omega + layer.pull), axis=0)
        gain = np.divide(slopes**2, 2 * h, out=np.abs(slopes), where=h > 0)
        assert gain.max() <= tol * worth(layer, solution)


def assert_bias_exact(layer, solution):
    """The slopes d phi / d z sum to zero over the samples of every neuron, up to a few roundings of z."""
    if layer.b is not None:
        slopes = layer.slopes(solution.weight, solution.bias)
        size = np.abs(layer.X) @ np.abs(solution.weight).T + np.abs(solution.bias) + np.abs(layer.center)
        rounding = 4 * np.finfo(np.float64).eps * np.sum((layer.omega + layer.pull) * size, axis=0)
        if layer.activation in COUPLED:  # the outputs' roundings reach each other
            rounding = np.full_like(rounding, rounding.sum())
        assert (np.abs(slopes.sum(axis=0)) <= rounding).all()


def lower_bound(layer, solution):
    """Return the bound that the solution's dual point proves, from the weights behind it.

    With C the gradient of sum_j mu_j phi_j there at the best bias, any s_i in [0, 1 / dual norm of C_i] gives

        g* >= -sum_i s_i (<C_i, w_i> - 2 sum_j mu_j phi_ij) - sum_j epsilon_j mu_j sqrt(2 sum_i s_i**2 phi_ij),

    and with a multiplier lambda g* + phi* >= -lambda sum_i (s_i (<C_i, w_i> - 2 mu phi_i) + s_i**2 mu phi_i). The best
    s is found numerically; where outputs or groups link neurons, all s_i are one number.
    """
    W = solution.weight if solution.dual_weight is None else solution.dual_weight
    goal, mu = solution.goal, prices(layer, solution)
    b = None if layer.b is None else layer.best_bias(W, mu)
    losses = mu * layer.entry_losses(layer.preactivations(W, b))
    C = layer.gradient(W, b, mu)
    caps = 1.0 / np.maximum(layer.dual_norms(C).max(axis=1), 0.1)
    linked = layer.activation in COUPLED or bool(set(layer.extras) & set(ACROSS))
    caps = np.full_like(caps, caps.min()) if linked else caps
    a = np.sum(C * W, axis=1) - 2 * losses.sum(axis=0)
    groups = [(np.s_[:, :], solution.radius)] if not isinstance(goal, ErrorBudget) else layer.budgets(goal)

    def bound(t):
        s = caps * np.clip(t, 0.0, 1.0)  # t: one number, or one per neuron
        if isinstance(goal, Penalized):
            return goal.multiplier * float(-s @ a - s**2 @ losses.sum(axis=0))
        lengths = sum(epsilon * np.sqrt(2 * np.sum((s**2 * mu * losses)[index])) for index, epsilon in groups)
        return float(-s @ a - lengths)

    start = np.ones(1 if linked else caps.size)
    found = minimize(lambda t: -bound(t), start, bounds=[(0.0, 1.0)] * start.size)
    return max(bound(start), bound(found.x))


def assert_proved(layer, solution, tol):
    """The dual point on the solution proves by itself that the objective is nearly the optimum."""
    bound, slack = lower_bound(layer, solution), 1e-12
    if isinstance(solution.goal, ErrorBudget):  # budgets count as kept up to a relative 1e-6
        epsilon = np.array([budget for _, budget in layer.budgets(solution.goal)])
        slack += 1e-6 * (solution.duals @ epsilon**2) / solution.objective
    assert bound <= solution.objective * (1 + slack)
    assert bound >= solution.objective * (1 - tol)


def assert_reports_itself(layer, solution, tol):
    """The numbers on a solution are those of its weights."""
    W, b = solution.weight, solution.bias
    radius, penalty = layer.radius(W, b), layer.penalty(W)
    penalized = isinstance(solution.goal, Penalized)
    objective = solution.goal.multiplier * penalty + radius**2 / 2 if penalized else penalty
    assert solution.status is Status.OPTIMAL
    assert solution.radius == pytest.approx(radius, rel=1e-9)
    assert solution.empty_radius == pytest.approx(layer.empty_radius, rel=1e-9)
    assert solution.relative_error == pytest.approx(radius / layer.empty_radius, rel=1e-9)
    assert solution.objective == pytest.approx(objective, rel=1e-9)
    assert 0 < solution.lower_bound <= solution.objective
    assert solution.gap == pytest.approx(1 - solution.lower_bound / solution.objective, abs=1e-15)
    assert solution.gap <= tol
    assert solution.sparsity == pytest.approx(np.mean(W == 0), abs=1e-12)
    if penalized:
        assert solution.multiplier == solution.goal.multiplier
    if solution.duals.size == 1:
        assert solution.duals[0] == pytest.approx(1 / solution.multiplier, rel=1e-15)
    else:
        assert np.isnan(solution.multiplier)


def assert_violation(layer, solution):
    """The violation is the largest distance of -dphi/dw from lambda a d|w|, relative to lambda a."""
    scaled = layer.gradient(solution.weight, solution.bias) / layer.factors / solution.multiplier
    distance = np.abs(scaled + np.sign(solution.weight))
    violation = np.where(solution.weight == 0, np.maximum(np.abs(scaled) - 1, 0), distance).max()
    assert solution.kkt_violation == pytest.approx(violation, rel=1e-6, abs=1e-9)


def assert_optimal(layer, solution, tol=TOL):
    assert_primal_feasible(layer, solution)
    assert_stationary(layer, solution, tol)
    assert_complementary(layer, solution, tol)
    assert_bias_optimal(layer, solution, tol)
    assert_reports_itself(layer, solution, tol)
    assert_proved(layer, solution, 2 * tol)


def assert_optimal_for_one_multiplier(layer, solution, tol=TOL):
    assert_optimal(layer, solution, tol)
    assert_bias_exact(layer, solution)
    if layer.labels is None:
        assert_violation(layer, solution)


def extras_of(activation, penalty):
    """Return the arguments behind a name of a penalty, as far as the activation takes them."""
    return PLAIN.get(penalty, PENALTIES[penalty]) if activation in COUPLED else PENALTIES[penalty]


def is_supported(method, activation, penalty, goal):
    """Return whether the table of what methods can do says that this one can do a cell."""
    kinds = {"multiplier": Penalized(1.0), "sparsity": Sparsity(0.5)}
    per = goal.split()[-1] if "per" in goal else "layer"
    wanted = kinds.get(goal.split()[-1]) or ErrorBudget(0.5, per=per, batch_size=30 if per == "batch" else None)
    return supported(method, asked_of(wanted, activation, extras_of(activation, penalty)))


def pairs(cell, dense):
    """Return what a cell (activation, penalty, goal) brings together: names with the method, or with each other."""
    activation, penalty, goal = cell
    if not dense:
        return {(activation,), (penalty,), (goal,)}
    return {(activation, penalty), (activation, goal), (penalty, goal)}


def cells(method):
    """Return cells (activation, penalty, goal) that bring together all that a method can bring together.

    Every activation meets every penalty; goals go round along both. What only refused cells would hold comes on top.
    """
    if method == "sis":  # slow: every name once
        budgets = [goal for goal in GOALS if "budget" in goal]
        activations, names = ACTIVATIONS, list(PENALTIES)
        chosen = [(activations[j % 11], name, budgets[j % 6]) for j, name in enumerate(names)]
        chosen += [("relu", "l1", goal) for goal in GOALS if goal not in budgets]
    else:
        every = product(enumerate(ACTIVATIONS), enumerate(PENALTIES))
        chosen = [(activation, name, GOALS[(i + j) % len(GOALS)]) for (i, activation), (j, name) in every]
    dense = method != "sis"
    met = set().union(*(pairs(cell, dense) for cell in chosen if is_supported(method, *cell)))
    for cell in product(ACTIVATIONS, PENALTIES, GOALS):
        if is_supported(method, *cell) and not pairs(cell, dense) <= met:
            chosen.append(cell)
            met |= pairs(cell, dense)
    return chosen


@pytest.mark.parametrize("method", METHODS)
def test_the_cells_bring_together_all_that_a_method_can_do(method):
    chosen, dense = cells(method), method != "sis"
    able = [cell for cell in product(ACTIVATIONS, PENALTIES, GOALS) if is_supported(method, *cell)]
    met = set().union(*(pairs(cell, dense) for cell in chosen if cell in able))
    assert met == set().union(*(pairs(cell, dense) for cell in able))
    assert {name for cell in chosen for name in cell} == {*ACTIVATIONS, *PENALTIES, *GOALS}


def tolerance(method, activation, extras):
    """Return the gap to ask a method for."""
    if method == "forward-backward":
        return 1e-6 if activation in COUPLED or set(extras) & {*INSIDE, *ACROSS} else TOL
    return {"douglas-rachford": 1e-5, "sis": 2e-2}[method]


def check_cell(make_layer, method, activation, penalty, goal, **size):
    """Solve a cell and check the solution, or check that it is refused as the table says."""
    extras = extras_of(activation, penalty)
    seed = ACTIVATIONS.index(activation)
    layer = make_layer(activation, extras=extras, bias=(seed + len(extras)) % 3 > 0, seed=seed, **size)
    tight = 0.1
    if {"mask", "preactivations"} & set(extras):  # there is a least error; single neurons may have a larger one
        tight = 0.75 if "neuron" in goal else 0.6
    wanted = make_goal(goal, layer, tight)
    if not supported(method, asked_of(wanted, activation, extras)):
        with pytest.raises(UnsupportedError, match="method"):
            solve(layer.problem, wanted, method=method)
        return
    check_capability(layer.problem, wanted, method)
    tol = tolerance(method, activation, extras)
    solution = solve(layer.problem, wanted, method=method, tol=tol)
    if method == "forward-backward" and solution.duals.size == 1:
        assert_optimal_for_one_multiplier(layer, solution, tol)
    else:
        assert_optimal(layer, solution, tol)


@pytest.mark.parametrize(("activation", "penalty", "goal"), cells("forward-backward"))
def test_forward_backward_meets_the_optimality_conditions(make_layer, activation, penalty, goal):
    check_cell(make_layer, "forward-backward", activation, penalty, goal, n_in=12)


@pytest.mark.parametrize(("activation", "penalty", "goal"), cells("douglas-rachford"))
def test_douglas_rachford_meets_the_optimality_conditions(make_layer, activation, penalty, goal):
    check_cell(make_layer, "douglas-rachford", activation, penalty, goal, n_in=12)


@pytest.mark.parametrize(("activation", "penalty", "goal"), cells("sis"))
def test_the_papers_scheme_meets_the_optimality_conditions(make_layer, activation, penalty, goal):
    check_cell(make_layer, "sis", activation, penalty, goal, n=40, n_in=6, n_out=2)


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
def test_awkward_inputs_meet_the_optimality_conditions(make_layer, activation, data, goal):
    X = columns(DATA[data])
    layer = make_layer(activation, inputs=X, n=X.shape[0], n_in=X.shape[1], n_out=4)
    assert_optimal_for_one_multiplier(layer, solve(layer.problem, make_goal(goal, layer, 0.1), tol=1e-5), 1e-5)


@pytest.mark.parametrize("goal", GOALS)
@pytest.mark.parametrize("n_out", [1, 2, 19])
def test_layers_of_any_width_meet_the_optimality_conditions(make_layer, n_out, goal):
    layer = make_layer("relu", n_out=n_out)
    assert_optimal(layer, solve(layer.problem, make_goal(goal, layer, 0.1), tol=TOL))


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
