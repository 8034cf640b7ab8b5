"""The cvxpy reference: hand-checkable answers and optimality conditions computed here, from the raw data."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from sisopt import reference
from sisopt.activations import MaxPool
from sisopt.errors import (
    ConvergenceWarning,
    InfeasibleBudgetError,
    InvalidInputError,
    SisoptError,
    UnsupportedError,
)
from sisopt.goals import ErrorBudget, Penalized, Sparsity
from sisopt.penalties import L1, GroupL2, SparseGroup, WeightedL1
from sisopt.problem import LayerProblem

pytest.importorskip("cvxpy")

N, N_IN, N_OUT = 60, 8, 3


@dataclass
class Case:
    """A problem together with the raw data that the checks below are computed from."""

    problem: LayerProblem
    X: np.ndarray  # (n, n_in)
    lo: np.ndarray  # (n, n_out)
    hi: np.ndarray  # (n, n_out)
    center: np.ndarray  # (n, n_out)
    omega: np.ndarray  # (n, n_out)
    v: np.ndarray  # (n,)
    beta: float
    a: np.ndarray  # (n_out, n_in), inf where masked

    def gradient(self, W, b):
        """Return d phi / d Z, (n, n_out), and phi."""
        Z = self.X @ W.T + b
        e = Z - np.clip(Z, self.lo, self.hi)
        v, pull = self.v[:, None], self.beta * (Z - self.center)
        phi = 0.5 * np.sum(v * self.omega * e**2) + 0.5 * np.sum(v * pull * (Z - self.center))
        return v * (self.omega * e + pull), float(phi)


def make(activation="relu", *, bias=True, extras=(), seed=0, dtype=np.float64):
    """Build a case; the intervals of the two activations in use are written out here."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((N, N_IN)).astype(dtype) + 0.3
    W = rng.standard_normal((N_OUT, N_IN)).astype(dtype)
    b = 0.3 * rng.standard_normal(N_OUT).astype(dtype) if bias else None
    shift = rng.standard_normal((N, N_OUT)) if "shift" in extras else None
    omega = rng.uniform(0.2, 1.0, (N, N_OUT)) if "entry_weights" in extras else np.ones((N, N_OUT))
    v = rng.uniform(0.0, 2.0, N) if "sample_weights" in extras else np.ones(N)
    if "sample_weights" in extras:
        v[:5] = 0.0
    beta = 0.2 if "fidelity" in extras else 0.0
    mask = rng.random((N_OUT, N_IN)) < 0.7 if "mask" in extras else None
    a = rng.uniform(0.5, 2.0, (N_OUT, N_IN)) if "penalty" in extras else np.ones((N_OUT, N_IN))
    s = 0.0 if shift is None else shift
    Z = X @ W.T + (0.0 if b is None else b) + s
    if activation == "relu":
        lo, hi = np.where(Z > 0, Z, -np.inf), np.maximum(Z, 0.0)
    elif activation == "hardtanh":
        lo, hi = np.where(Z > -1, np.minimum(Z, 1.0), -np.inf), np.where(Z < 1, np.maximum(Z, -1.0), np.inf)
    else:
        lo, hi = Z, Z
    problem = LayerProblem(
        X,
        W,
        b,
        activation=activation,
        shift=shift,
        fidelity=beta,
        entry_weights=omega if "entry_weights" in extras else None,
        sample_weights=v if "sample_weights" in extras else None,
        penalty=WeightedL1(a) if "penalty" in extras else "l1",
        mask=mask,
    )
    return Case(problem, X, lo - s, hi - s, Z - s, omega, v, beta, a if mask is None else np.where(mask, a, np.inf))


def assert_optimal(case, solution, multiplier, rtol=1e-4):
    """0 must lie in multiplier * dg(W) + dphi/dW, and dphi/db must vanish."""
    b = np.zeros(N_OUT) if solution.bias is None else solution.bias
    gradient, phi = case.gradient(solution.weight, b)
    assert solution.radius == pytest.approx(math.sqrt(2 * phi), rel=1e-9)
    C = gradient.T @ case.X
    if solution.bias is not None:
        np.testing.assert_allclose(gradient.sum(axis=0), 0.0, atol=1e-9 * np.abs(gradient).sum())
    free = np.isfinite(case.a)
    assert (solution.weight[~free] == 0).all()
    bound = multiplier * np.where(free, case.a, 0.0)
    assert (np.abs(C) <= bound * (1 + rtol))[free].all()
    kept = np.abs(solution.weight) > 1e-4
    np.testing.assert_allclose(C[kept], (-bound * np.sign(solution.weight))[kept], rtol=rtol)


EXTRAS = [
    (),
    ("fidelity",),
    ("entry_weights", "sample_weights"),
    ("mask", "penalty"),
    ("shift",),
    ("fidelity", "entry_weights", "sample_weights", "mask", "penalty", "shift"),
]


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("extras", EXTRAS, ids="+".join)
@pytest.mark.parametrize("activation", ["identity", "relu", "hardtanh"])
def test_penalized_solution_meets_the_optimality_conditions(activation, extras, compress):
    case = make(activation, extras=extras)
    solution = reference.solve(case.problem, Penalized(4.0), compress=compress)
    assert_optimal(case, solution, 4.0)
    assert 0 < (np.abs(solution.weight) < 1e-6).sum() < solution.weight.size
    g = np.sum(np.where(np.isfinite(case.a), case.a, 0.0) * np.abs(solution.weight))
    assert solution.objective == pytest.approx(4.0 * g + solution.radius**2 / 2)
    assert solution.multiplier == 4.0
    assert solution.status == "optimal"


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("extras", EXTRAS, ids="+".join)
@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_budget_solution_is_that_of_the_penalised_program_at_its_multiplier(activation, extras, compress):
    case = make(activation, extras=extras)
    share = 0.8 if "mask" in extras else 0.3
    solution = reference.solve(case.problem, ErrorBudget(relative_error=share), compress=compress)
    assert solution.relative_error == pytest.approx(share, rel=1e-6)
    assert_optimal(case, solution, solution.multiplier)


@pytest.mark.parametrize("bias", [True, False])
def test_multiplier_predicts_the_change_of_the_optimum_with_the_budget(bias):
    case = make("relu", bias=bias)
    solution = reference.solve(case.problem, ErrorBudget(relative_error=0.3))
    step = 1e-3 * solution.radius
    looser = reference.solve(case.problem, ErrorBudget(radius=solution.radius + step)).objective
    tighter = reference.solve(case.problem, ErrorBudget(radius=solution.radius - step)).objective
    assert (looser - tighter) / (2 * step) == pytest.approx(-solution.radius / solution.multiplier, rel=1e-3)


@pytest.mark.parametrize("compress", [True, False])
def test_identity_with_orthonormal_inputs_is_soft_thresholding(compress):
    rng = np.random.default_rng(1)
    X = np.linalg.qr(rng.standard_normal((40, 6)))[0]
    W = rng.standard_normal((4, 6))
    solution = reference.solve(LayerProblem(X, W), Penalized(0.5), compress=compress)
    np.testing.assert_allclose(solution.weight, np.sign(W) * np.maximum(np.abs(W) - 0.5, 0.0), atol=1e-6)
    assert solution.bias is None


def test_budget_of_one_neuron_and_one_input_is_met_by_hand():
    # z = 2 x: e = (w - 2) x, so |w - 2| |x| = epsilon with |x| = 5.
    solution = reference.solve(LayerProblem([[3.0], [4.0]], [[2.0]]), ErrorBudget(radius=2.5))
    np.testing.assert_allclose(solution.weight, [[1.5]], rtol=1e-7)
    assert solution.relative_error == pytest.approx(0.25)
    # phi = 25/2 (w - 2)**2, so lambda = 25 (2 - w).
    assert solution.multiplier == pytest.approx(12.5, rel=1e-6)


@pytest.mark.parametrize("goal", [ErrorBudget(relative_error=1.0), ErrorBudget(relative_error=3.0)])
def test_budget_of_the_empty_layer_gives_no_weights(goal):
    case = make("relu")
    solution = reference.solve(case.problem, goal)
    assert not solution.weight.any()
    assert solution.objective == 0.0
    assert solution.relative_error == pytest.approx(1.0)
    assert solution.multiplier == math.inf


@pytest.mark.parametrize("extras", [(), ("shift", "fidelity"), ("entry_weights", "sample_weights")], ids="+".join)
@pytest.mark.parametrize("activation", ["identity", "relu", "hardtanh"])
def test_empty_radius_is_the_least_over_constant_layers(activation, extras):
    case = make(activation, extras=extras)
    solution = reference.solve(case.problem, ErrorBudget(relative_error=1.0))

    def phi(b, i):
        bias = np.zeros(N_OUT)
        bias[i] = b
        one = Case(
            case.problem,
            case.X,
            *(np.copy(x) for x in (case.lo, case.hi, case.center, case.omega)),
            case.v,
            case.beta,
            case.a,
        )
        for j in set(range(N_OUT)) - {i}:
            one.lo[:, j], one.hi[:, j], one.center[:, j] = 0.0, 0.0, 0.0
        return one.gradient(np.zeros((N_OUT, N_IN)), bias)[1]

    least = sum(minimize_scalar(phi, bounds=(-20, 20), args=(i,), method="bounded").fun for i in range(N_OUT))
    assert solution.radius == pytest.approx(math.sqrt(2 * least), rel=1e-6)


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("activation", ["identity", "relu", "hardtanh"])
def test_zero_budget_returns_the_dense_outputs_with_no_larger_weights(activation, compress):
    case = make(activation)
    solution = reference.solve(case.problem, ErrorBudget(relative_error=0.0), compress=compress)
    assert solution.relative_error < 1e-7
    assert solution.objective <= np.abs(case.problem.weight).sum() * (1 + 1e-7)
    assert solution.multiplier == 0.0


@pytest.mark.parametrize("goal", [Penalized(3.0), ErrorBudget(relative_error=0.25)])
@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_clarabel_and_scs_agree(activation, goal):
    problem = make(activation).problem
    one, other = reference.solve(problem, goal), reference.solve(problem, goal, solver="scs")
    assert other.solver == "SCS"
    assert other.objective == pytest.approx(one.objective, rel=1e-4)
    assert other.radius == pytest.approx(one.radius, rel=1e-4)
    assert other.multiplier == pytest.approx(one.multiplier, rel=1e-3)
    np.testing.assert_allclose(other.weight, one.weight, atol=1e-3)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("goal", [Penalized(3.0), ErrorBudget(relative_error=0.8), ErrorBudget(eta=9.0)])
def test_problem_from_sums_has_the_solution_of_the_problem_with_data(goal, bias):
    case = make("identity", bias=bias, extras=("mask",))
    X, problem = case.X, case.problem
    sums = LayerProblem.from_gram(
        X.T @ X, weight=problem.weight, bias=problem.bias, n_samples=N, input_sum=X.sum(axis=0), mask=problem.mask
    )
    one, other = reference.solve(problem, goal), reference.solve(sums, goal)
    np.testing.assert_allclose(other.weight, one.weight, atol=1e-4)
    assert other.objective == pytest.approx(one.objective, rel=1e-6)
    assert other.relative_error == pytest.approx(one.relative_error, rel=1e-6)
    assert other.multiplier == pytest.approx(one.multiplier, rel=1e-4)
    if bias:
        np.testing.assert_allclose(other.bias, one.bias, atol=1e-4)


def test_zero_budget_is_feasible_for_sums_despite_their_rounding():
    case = make("identity")
    sums = LayerProblem.from_gram(
        case.X.T @ case.X, weight=case.problem.weight, bias=case.problem.bias, n_samples=N, input_sum=case.X.sum(axis=0)
    )
    solution = reference.solve(sums, ErrorBudget(relative_error=0.0))
    np.testing.assert_allclose(solution.weight, case.problem.weight, atol=1e-6)


def test_eta_is_the_mean_squared_distance_in_units_of_sample_weight():
    case = make("relu", extras=("sample_weights",))
    solution = reference.solve(case.problem, ErrorBudget(eta=0.2))
    assert solution.radius**2 / case.v.sum() == pytest.approx(0.2, rel=1e-6)


def test_solution_scales_with_the_units_of_the_inputs():
    rng = np.random.default_rng(3)
    X, W = rng.standard_normal((N, N_IN)), rng.standard_normal((N_OUT, N_IN))
    goal = ErrorBudget(relative_error=0.3)
    one = reference.solve(LayerProblem(X, W, np.zeros(N_OUT), activation="relu"), goal)
    other = reference.solve(LayerProblem(1e5 * X, 1e-2 * W, np.zeros(N_OUT), activation="relu"), goal)
    assert other.objective == pytest.approx(1e-2 * one.objective, rel=1e-6)
    assert other.multiplier == pytest.approx(1e8 * one.multiplier, rel=1e-4)


def test_tolerance_makes_intervals_with_two_ends():
    rng = np.random.default_rng(4)
    X, W = rng.standard_normal((N, N_IN)), rng.standard_normal((N_OUT, N_IN))
    Z = X @ W.T
    problem = LayerProblem(X, W, tolerance=0.5)
    case = Case(problem, X, Z - 0.5, Z + 0.5, Z, np.ones_like(Z), np.ones(N), 0.0, np.ones_like(W))
    solution = reference.solve(problem, ErrorBudget(relative_error=0.2))
    assert_optimal(case, solution, solution.multiplier)


def test_dead_neuron_keeps_its_bias_and_no_weight():
    X = np.random.default_rng(5).uniform(0.5, 1.0, (30, 4))
    W = np.vstack([-np.ones(4), np.array([1.0, -2.0, 0.5, 1.0])])
    b = np.array([-7.0, 0.1])
    for goal in (Penalized(0.1), ErrorBudget(relative_error=0.3)):
        solution = reference.solve(LayerProblem(X, W, b, activation="relu"), goal)
        assert not solution.weight[0].any()
        assert solution.bias[0] == -7.0
    dead = reference.solve(LayerProblem(X, W[:1], b[:1], activation="relu"), ErrorBudget(relative_error=0.5))
    assert dead.relative_error == 0.0


def test_float32_layers_are_solved_in_double_precision():
    solution = reference.solve(make("relu", dtype=np.float32).problem, ErrorBudget(relative_error=0.3))
    assert solution.weight.dtype == np.float64
    assert solution.relative_error == pytest.approx(0.3, rel=1e-7)


@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_budget_that_the_mask_forbids_names_the_least_error(activation):
    case = make(activation, extras=("mask",))
    with pytest.raises(InfeasibleBudgetError, match="least") as caught:
        reference.solve(case.problem, ErrorBudget(relative_error=0.05))
    least = caught.value.least_relative_error
    assert 0.05 < least < 1.0
    solution = reference.solve(case.problem, ErrorBudget(relative_error=least * 1.001))
    assert solution.relative_error == pytest.approx(least * 1.001, rel=1e-6)
    if activation == "identity":
        total = residual = 0.0
        for i in range(N_OUT):
            columns = np.hstack([case.X[:, case.problem.mask[i]], np.ones((N, 1))])
            residual += float(np.linalg.lstsq(columns, case.lo[:, i])[1][0])
            total += float(np.sum((case.lo[:, i] - case.lo[:, i].mean()) ** 2))
        assert least == pytest.approx(math.sqrt(residual / total), rel=1e-6)


def test_fully_masked_layer_is_the_empty_one():
    case = make("relu")
    problem = case.problem.with_mask(np.zeros((N_OUT, N_IN), dtype=bool))
    assert not reference.solve(problem, Penalized(1.0)).weight.any()
    with pytest.raises(InfeasibleBudgetError) as caught:
        reference.solve(problem, ErrorBudget(relative_error=0.5))
    assert caught.value.least_relative_error == pytest.approx(1.0)


def test_sparsity_is_refused_with_what_to_do_instead():
    with pytest.raises(UnsupportedError, match="radius"):
        reference.solve(make().problem, Sparsity(0.5))  # type: ignore[arg-type]


def test_unknown_solvers_and_options_are_named():
    problem = make().problem
    with pytest.raises(InvalidInputError, match="CLARABEL"):
        reference.solve(problem, Penalized(1.0), solver="MAGIC")
    with pytest.raises(InvalidInputError, match="no_such_option"):
        reference.solve(problem, Penalized(1.0), no_such_option=1)


def test_solver_without_cones_is_an_error_with_advice():
    with pytest.raises(SisoptError, match="CLARABEL and SCS"):
        reference.solve(make().problem, ErrorBudget(relative_error=0.3), solver="OSQP")


def test_missing_cvxpy_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cvxpy", None)
    with pytest.raises(SisoptError, match=r'pip install "sisopt\[reference\]"'):
        reference.solve(make().problem, Penalized(1.0))


def test_iteration_limit_is_reported_and_warned_of():
    with pytest.warns(ConvergenceWarning, match="SCS stopped"):
        solution = reference.solve(make().problem, ErrorBudget(relative_error=0.3), solver="SCS", max_iters=10)
    assert solution.status == "inaccurate"


# Several budgets, groups of weights, targets that couple the outputs of a sample.

BLOCKS = np.arange(N_OUT)[:, None] // 2 * 4 + np.arange(N_IN) // 2  # labels of blocks of 2 rows and 2 columns
PENALTIES = {  # by name: the penalty, its factors a_ij and its labels
    "l1": (L1(), 1.0, None),
    "columns": (GroupL2("columns"), 0.0, np.tile(np.arange(N_IN), (N_OUT, 1))),
    "blocks": (GroupL2("blocks", block=(2, 2)), 0.0, BLOCKS),
    "sparse rows": (SparseGroup("rows", l1=0.5), 0.5, np.tile(np.arange(N_OUT)[:, None], N_IN)),
}
BUDGETS = {
    "penalized": Penalized(2.0),
    "layer": ErrorBudget(relative_error=0.4),
    "batch": ErrorBudget(relative_error=0.4, per="batch", batch_size=25),
    "neuron": ErrorBudget(relative_error=0.4, per="neuron"),
}


def coupled_residual(activation, Z, Z0):
    """Return Z less its projection onto the preimage of the outputs at Z0, by bisection on the common shift."""
    support, anchor = np.ones(Z.shape, dtype=bool), Z0
    if activation == "sparsemax":
        low, high = Z0.max(axis=1, keepdims=True) - 1.0, Z0.max(axis=1, keepdims=True)
        for _ in range(100):
            middle = 0.5 * (low + high)
            above = np.maximum(Z0 - middle, 0.0).sum(axis=1, keepdims=True) > 1.0
            low, high = np.where(above, middle, low), np.where(above, high, middle)
        support = low < Z0
        anchor = np.where(support, Z0, low)
    v = Z - anchor
    low, high = v.min(axis=1, keepdims=True), v.max(axis=1, keepdims=True)
    for _ in range(100):
        c = 0.5 * (low + high)
        pull = np.where(support, v - c, np.maximum(v - c, 0.0)).sum(axis=1, keepdims=True)
        low, high = np.where(pull > 0, c, low), np.where(pull > 0, high, c)
    return np.where(support, v - low, np.maximum(v - low, 0.0))


def make_any(activation, *, bias=True, seed=0, **options):
    """Return a problem, its inputs, and its residual E(Z), (n, n_out), from the raw data."""
    rng = np.random.default_rng([seed, 9])
    X = rng.standard_normal((N, N_IN)) * np.linspace(0.3, 2.0, N_IN) + 0.3
    W, b = 0.7 * rng.standard_normal((N_OUT, N_IN)), 0.3 * rng.standard_normal(N_OUT) if bias else None
    Z0 = X @ W.T + (0.0 if b is None else b)
    problem = LayerProblem(X, W, b, activation=activation, **options)
    if activation in ("softmax", "sparsemax"):
        return problem, X, lambda Z: coupled_residual(activation, Z, Z0)
    lo, hi = (np.where(Z0 > 0, Z0, -np.inf), np.maximum(Z0, 0.0)) if activation == "relu" else (Z0, Z0)
    return problem, X, lambda Z: Z - np.clip(Z, lo, hi)


def mini_batch_entries(goal):
    """Return the entries (n, n_out) of every group of a goal, as booleans (J, n, n_out)."""
    if goal == BUDGETS["batch"]:
        of = np.broadcast_to(np.arange(N)[:, None] // 25, (N, N_OUT))
    else:
        of = np.broadcast_to(np.arange(N_OUT) if goal == BUDGETS["neuron"] else 0, (N, N_OUT))
    return np.stack([of == j for j in range(of.max() + 1)])


def assert_subgradient(minus_C, W, factors, labels, rtol):
    """Minus the gradient must lie in the subdifferential of g, group by group."""
    if labels is None:
        labels, kappas = np.arange(W.size).reshape(W.shape), np.zeros(W.size)
    else:
        kappas = np.sqrt(np.bincount(labels.ravel()))
    for label in np.unique(labels):
        w, c, kappa = W[labels == label], minus_C[labels == label], kappas[label]
        size, zero = np.linalg.norm(w), np.abs(w) < 1e-4
        if zero.all():
            assert np.linalg.norm(np.maximum(np.abs(c) - factors, 0.0)) <= kappa + rtol
        else:
            smooth = kappa * w / size
            np.testing.assert_allclose(c[~zero], (smooth + factors * np.sign(w))[~zero], atol=rtol * (1 + kappa))
            assert (np.abs(c - smooth)[zero] <= factors + rtol).all()


@pytest.mark.parametrize("name", BUDGETS)
@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("activation", ["relu", "softmax", "sparsemax"])
def test_dual_variables_prove_every_budget_penalty_and_target_optimal(activation, penalty, name):
    if (activation, name) in (("softmax", "neuron"), ("sparsemax", "neuron")):
        with pytest.raises(UnsupportedError, match="neuron"):
            reference.solve(make_any(activation)[0], BUDGETS[name])
        return
    g, factors, labels = PENALTIES[penalty]
    rng = np.random.default_rng(7)
    v = rng.uniform(0.5, 1.5, N)
    problem, X, residual = make_any(activation, bias=penalty != "blocks", penalty=g, sample_weights=v)
    goal = BUDGETS[name]
    solution = reference.solve(problem, goal)
    W, entries = solution.weight, mini_batch_entries(goal)
    e = residual(X @ W.T + (0.0 if solution.bias is None else solution.bias))
    squares = np.array([np.sum((v[:, None] * e**2)[group]) for group in entries])
    assert solution.status == "optimal"
    assert solution.radius == pytest.approx(math.sqrt(squares.sum()), rel=1e-6)
    assert solution.duals.shape == squares.shape
    if isinstance(goal, ErrorBudget):
        empty = reference.solve(problem, ErrorBudget(relative_error=1.0)).radius
        if name == "neuron":
            radii = np.array([0.4 * one_neuron(problem, i, 1.0).radius for i in range(N_OUT)])
        else:
            radii = 0.4 * empty * np.sqrt([np.sum(v[group[:, 0]]) / v.sum() for group in entries])
        assert (np.sqrt(squares) <= radii * (1 + 1e-6)).all()
        binding = solution.duals * radii**2 > 1e-4 * solution.objective
        np.testing.assert_allclose(np.sqrt(squares)[binding], radii[binding], rtol=1e-6)
        assert binding.any()
    slopes = v[:, None] * e * np.einsum("j,jki->ki", solution.duals, entries)
    if solution.bias is not None:
        np.testing.assert_allclose(slopes.sum(axis=0), 0.0, atol=1e-4 * np.abs(slopes).sum())
    assert_subgradient(-slopes.T @ X, W, factors, labels, 3e-3)
    assert (np.abs(W) < 1e-6).any() or penalty in ("blocks", "sparse rows")


def one_neuron(problem, i, relative_error):
    """Solve the layer that consists of neuron i alone."""
    bias = None if problem.bias is None else problem.bias[i : i + 1]
    alone = LayerProblem(
        problem.inputs,
        problem.weight[i : i + 1],
        bias,
        activation=problem.activation,
        sample_weights=problem.sample_weights,
    )
    return reference.solve(alone, ErrorBudget(relative_error=relative_error))


@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_budgets_of_the_neurons_are_those_of_layers_of_one_neuron(activation):
    problem = make(activation).problem
    alone = [one_neuron(problem, i, 0.3) for i in range(N_OUT)]
    together = reference.solve(problem, ErrorBudget(relative_error=0.3, per="neuron"))
    assert together.objective == pytest.approx(sum(one.objective for one in alone), rel=1e-7)
    np.testing.assert_allclose(together.duals, [1.0 / one.multiplier for one in alone], rtol=1e-4)
    assert math.isnan(together.multiplier)


@pytest.mark.parametrize("activation", ["relu", "softmax"])
def test_one_batch_of_all_samples_is_the_layer(activation):
    problem = make_any(activation)[0]
    layer = reference.solve(problem, ErrorBudget(eta=0.3))
    batch = reference.solve(problem, ErrorBudget(eta=0.3, per="batch", batch_size=N + 5))
    assert batch.objective == pytest.approx(layer.objective, rel=1e-8)
    assert batch.multiplier == pytest.approx(layer.multiplier, rel=1e-6)
    assert batch.duals == pytest.approx([1.0 / layer.multiplier], rel=1e-6)


def test_eta_and_radius_are_shared_among_groups_as_documented():
    case = make("relu", extras=("sample_weights",))
    v = case.v
    by_batch = reference.solve(case.problem, ErrorBudget(eta=0.05, per="batch", batch_size=25))

    def squares(solution):
        Z = case.X @ solution.weight.T + solution.bias
        return v[:, None] * (Z - np.clip(Z, case.lo, case.hi)) ** 2

    parts = [squares(by_batch)[start : start + 25].sum() for start in (0, 25, 50)]
    allowed = [0.05 * v[start : start + 25].sum() for start in (0, 25, 50)]
    assert all(part <= limit * (1 + 1e-6) for part, limit in zip(parts, allowed, strict=True))
    by_neuron = reference.solve(case.problem, ErrorBudget(eta=0.05, per="neuron"))
    np.testing.assert_allclose(squares(by_neuron).sum(axis=0), 0.05 * v.sum() / N_OUT, rtol=1e-6)
    same = reference.solve(case.problem, ErrorBudget(radius=1.3, per="neuron"))
    np.testing.assert_allclose(np.sqrt(squares(same).sum(axis=0)), 1.3, rtol=1e-6)


@pytest.mark.parametrize("groups", ["rows", "columns"])
def test_groups_with_orthonormal_inputs_shrink_as_a_whole(groups):
    rng = np.random.default_rng(1)
    X = np.linalg.qr(rng.standard_normal((40, 6)))[0]
    W = rng.standard_normal((4, 6))
    W[1] *= 0.1
    W[:, 2] *= 0.1
    axis = 1 if groups == "rows" else 0
    norms = np.linalg.norm(W, axis=axis, keepdims=True)
    wanted = np.maximum(1.0 - 0.5 * math.sqrt(W.shape[axis]) / norms, 0.0) * W
    solution = reference.solve(LayerProblem(X, W, penalty=GroupL2(groups)), Penalized(0.5))
    np.testing.assert_allclose(solution.weight, wanted, atol=1e-4)
    assert (wanted == 0).all(axis=axis).any()


def test_masked_weights_leave_their_group():
    problem, X, _ = make_any("identity", bias=False, penalty=GroupL2("columns", weights=1.0))
    mask = np.ones((N_OUT, N_IN), dtype=bool)
    mask[1:, -1] = False
    masked = reference.solve(problem.with_mask(mask), Penalized(5.0))
    assert not masked.weight[1:, -1].any()
    C = (X @ (masked.weight - problem.weight).T).T @ X
    assert abs(C[0, -1]) == pytest.approx(5.0, rel=1e-3)  # what is left of the group pays like an l1 norm
    W = masked.weight[:, :-1]
    np.testing.assert_allclose(-C[:, :-1] * np.linalg.norm(W, axis=0), 5.0 * W, atol=1e-2)


@pytest.mark.parametrize("activation", ["softmax", "log_softmax", "sparsemax"])
def test_radius_of_coupled_outputs_ignores_a_common_shift(activation):
    problem, X, _ = make_any(activation if activation != "log_softmax" else "softmax")
    rng = np.random.default_rng(4)
    common = rng.standard_normal((1, N_IN))
    shifted = LayerProblem(
        X,
        problem.weight + common,
        problem.bias + 3.0,
        activation=activation,
        preactivations=problem.preactivations + rng.standard_normal((N, 1)) if activation != "sparsemax" else None,
    )
    one, other = (reference.solve(p, ErrorBudget(radius=2.0)) for p in (problem, shifted))
    assert other.objective == pytest.approx(one.objective, rel=1e-6)
    assert np.mean(other.bias - shifted.bias) == pytest.approx(0.0, abs=1e-9)


def test_max_pool_is_a_box_that_holds_the_pooled_outputs():
    rng = np.random.default_rng(6)
    X, W, b = rng.standard_normal((N, N_IN)), rng.standard_normal((N_OUT, N_IN)), rng.standard_normal(N_OUT)
    windows = np.arange(N).reshape(-1, 4)
    Z0 = X @ W.T + b
    lo, hi = np.full(Z0.shape, -np.inf), np.empty(Z0.shape)
    for window in windows:
        for i in range(N_OUT):
            first = window[np.argmax(Z0[window, i])]
            hi[window, i] = max(Z0[first, i], 0.0)
            if Z0[first, i] > 0:
                lo[first, i] = Z0[first, i]
    problem = LayerProblem(X, W, b, activation=MaxPool(windows))
    case = Case(problem, X, lo, hi, Z0, np.ones_like(Z0), np.ones(N), 0.0, np.ones_like(W))
    solution = reference.solve(problem, ErrorBudget(relative_error=0.3))
    assert_optimal(case, solution, solution.multiplier)
    exact = reference.solve(problem, ErrorBudget(relative_error=0.0))
    pooled = np.maximum((X @ exact.weight.T + exact.bias)[windows].max(axis=1), 0.0)
    np.testing.assert_allclose(pooled, np.maximum(Z0[windows].max(axis=1), 0.0), atol=1e-5)
    assert exact.objective <= np.abs(W).sum() * (1 + 1e-7)


@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_budgets_of_batches_that_cannot_be_kept_name_the_least_that_can(activation):
    problem = make(activation, extras=("mask",)).problem
    with pytest.raises(InfeasibleBudgetError, match="least") as caught:
        reference.solve(problem, ErrorBudget(relative_error=0.05, per="batch", batch_size=25))
    least = caught.value.least_relative_error
    for factor in (1.001, 0.999):
        goal = ErrorBudget(relative_error=factor * least, per="batch", batch_size=25)
        if factor < 1.0:
            with pytest.raises(InfeasibleBudgetError):
                reference.solve(problem, goal)
        else:
            assert reference.solve(problem, goal).relative_error <= factor * least * (1 + 1e-6)


def test_budgets_of_neurons_that_cannot_be_kept_name_the_least_that_can():
    case = make("identity", extras=("mask",))
    with pytest.raises(InfeasibleBudgetError) as caught:
        reference.solve(case.problem, ErrorBudget(relative_error=0.05, per="neuron"))
    errors = []
    for i in range(N_OUT):
        columns = np.hstack([case.X[:, case.problem.mask[i]], np.ones((N, 1))])
        left = float(np.linalg.lstsq(columns, case.lo[:, i])[1].sum())
        errors.append(math.sqrt(left / np.sum((case.lo[:, i] - case.lo[:, i].mean()) ** 2)))
    assert caught.value.least_relative_error == pytest.approx(max(errors), rel=1e-6)


@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_inputs_of_very_different_sizes_are_no_obstacle(activation):
    rng = np.random.default_rng(0)
    X, W = rng.standard_normal((N, 6)), rng.standard_normal((2, 6))
    sizes = 10.0 ** np.linspace(-3, 3, 6)
    mask = np.ones((2, 6), dtype=bool)
    mask[:, 4] = False
    wild = LayerProblem(X * sizes, W, activation=activation, mask=mask)
    with pytest.raises(InfeasibleBudgetError) as caught:
        reference.solve(wild, ErrorBudget(relative_error=1e-4))
    tame = LayerProblem(X, W * sizes, activation=activation, mask=mask, penalty=WeightedL1(1.0 / sizes))
    with pytest.raises(InfeasibleBudgetError) as expected:
        reference.solve(tame, ErrorBudget(relative_error=1e-4))
    assert caught.value.least_relative_error == pytest.approx(expected.value.least_relative_error, rel=1e-6)
    goal = ErrorBudget(relative_error=2.0 * caught.value.least_relative_error)
    one, other = reference.solve(wild, goal), reference.solve(tame, goal)
    assert one.objective == pytest.approx(other.objective, rel=1e-6)


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ["identity", "relu", "hardtanh"])
def test_zero_budget_is_feasible_where_other_weights_replace_the_forbidden_ones(activation, bias, compress):
    rng = np.random.default_rng(1)
    X, W = rng.standard_normal((40, 8)), rng.standard_normal((3, 8))
    mask = np.ones((3, 11), dtype=bool)
    mask[:, 8:] = False  # copies of the first three inputs
    b = rng.standard_normal(3) if bias else None
    problem = LayerProblem(
        np.hstack([X, X[:, :3]]), np.hstack([W, -0.5 * W[:, :3]]), b, activation=activation, mask=mask
    )
    solution = reference.solve(problem, ErrorBudget(relative_error=0.0), compress=compress)
    merged = W.copy()
    merged[:, :3] *= 0.5
    assert solution.relative_error < 1e-7
    assert solution.objective <= np.abs(merged).sum() * (1 + 1e-6)
    if activation == "identity":
        np.testing.assert_allclose(solution.weight[:, :8], merged, atol=1e-5)


def test_sums_serve_budgets_of_neurons_but_not_of_batches():
    case = make("identity")
    sums = LayerProblem.from_gram(
        case.X.T @ case.X, weight=case.problem.weight, bias=case.problem.bias, n_samples=N, input_sum=case.X.sum(axis=0)
    )
    goal = ErrorBudget(relative_error=0.3, per="neuron")
    wanted = reference.solve(case.problem, goal)
    assert reference.solve(sums, goal).objective == pytest.approx(wanted.objective, rel=1e-6)
    with pytest.raises(UnsupportedError, match="batch"):
        reference.solve(sums, ErrorBudget(relative_error=0.3, per="batch", batch_size=25))


@pytest.mark.parametrize("per", ["layer", "neuron", "batch"])
def test_neurons_that_need_no_weights_do_not_spoil_budgets(per):
    case = make("relu")
    W, b = case.problem.weight.copy(), case.problem.bias.copy()
    W[1], b[1] = 0.0, 1.0 / 3.0  # constant
    W[2], b[2] = -1e-3, -9.0  # dead
    size = {"batch_size": 25} if per == "batch" else {}
    for share in (0.0, 0.3):
        goal = ErrorBudget(relative_error=share, per=per, **size)
        solution = reference.solve(LayerProblem(case.X, W, b, activation="relu"), goal)
        assert not solution.weight[1:].any()
        np.testing.assert_allclose(solution.bias[1:], b[1:], rtol=1e-12)
        assert solution.relative_error <= max(share * (1 + 1e-6), 1e-7)
