"""The cvxpy reference: hand-checkable answers and optimality conditions computed here, from the raw data."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from sisopt import reference
from sisopt.errors import (
    ConvergenceWarning,
    InfeasibleBudgetError,
    InvalidInputError,
    SisoptError,
    UnsupportedError,
)
from sisopt.goals import ErrorBudget, Penalized, Sparsity
from sisopt.penalties import WeightedL1
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
