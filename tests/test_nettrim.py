"""Net-Trim, the rival: its program is solved right, and ours finds weights of no larger l1 norm at the same budget."""

from __future__ import annotations

import numpy as np
import pytest

import sisopt
from bench.rivals.nettrim import net_trim

SIZES = [(60, 8, 4), (150, 12, 6), (40, 15, 3)]  # samples, inputs, outputs


def relu_layer(size, bias, seed):
    n, n_in, n_out = size
    rng = np.random.default_rng([seed, n])
    X = rng.standard_normal((n, n_in)) @ (np.eye(n_in) + 0.4 * rng.standard_normal((n_in, n_in)))
    W = rng.standard_normal((n_out, n_in))
    return X, W, 0.5 * rng.standard_normal(n_out) if bias else None


def outputs(X, W, b):
    return np.maximum(X @ W.T + (0.0 if b is None else b), 0.0)


def budget(X, W, b, relative):
    Y = outputs(X, W, b)
    return relative * float(np.linalg.norm(Y - Y.mean(axis=0)))


def exact_net_trim(X, W, b, epsilon):
    """Return the optimum of Net-Trim's program, by cvxpy."""
    cp = pytest.importorskip("cvxpy")
    Y = outputs(X, W, b)
    V = cp.Variable(W.T.shape)
    U = X @ V
    if b is not None:
        U = U + np.ones((len(X), 1)) @ cp.reshape(cp.Variable(len(b)), (1, len(b)), order="C")
    active = (Y > 0).astype(float)
    near = cp.norm(cp.vec(cp.multiply(active, U - Y), order="C")) <= epsilon
    low = cp.multiply(1.0 - active, U) <= 0
    program = cp.Problem(cp.Minimize(cp.sum(cp.abs(V))), [near, low])
    program.solve(solver="CLARABEL", tol_gap_rel=1e-9, tol_gap_abs=1e-9, tol_feas=1e-9)
    assert program.status == "optimal"
    return float(program.value)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_admm_reaches_the_optimum_of_net_trims_program(size, bias):
    X, W, b = relu_layer(size, bias, 0)
    epsilon = budget(X, W, b, 0.2)
    result = net_trim(X, W, b, epsilon=epsilon, rho=5.0, tol=2e-6, max_iterations=50_000)
    assert result.converged
    assert result.objective == np.abs(result.weight).sum()
    assert (result.bias is None) == (b is None)
    optimum = exact_net_trim(X, W, b, epsilon)
    assert result.objective == pytest.approx(optimum, rel=1e-4)
    assert result.lower_bound <= optimum * (1 + 1e-7)
    assert result.lower_bound == pytest.approx(optimum, rel=1e-4)
    Y = outputs(X, W, b)
    U = X @ result.weight.T + (0.0 if b is None else result.bias)
    assert np.linalg.norm((U - Y)[Y > 0]) <= epsilon * (1 + 1e-5)
    assert np.linalg.norm(np.maximum(U, 0.0)[Y == 0]) <= epsilon * 1e-5


def test_lower_bound_holds_however_early_the_admm_stops():
    X, W, b = relu_layer(SIZES[1], True, 1)
    epsilon = budget(X, W, b, 0.3)
    optimum = exact_net_trim(X, W, b, epsilon)
    for iterations in (1, 5, 20, 100, 400):
        result = net_trim(X, W, b, epsilon=epsilon, rho=5.0, tol=0.0, max_iterations=iterations)
        assert not result.converged
        assert result.n_iterations == iterations
        assert 0.0 <= result.lower_bound <= optimum * (1 + 1e-7)


def test_arguments_are_not_written_to():
    X, W, b = relu_layer(SIZES[0], True, 2)
    copies = [a.copy() for a in (X, W, b)]
    net_trim(X, W, b, epsilon=budget(X, W, b, 0.2), rho=5.0)
    for now, before in zip((X, W, b), copies, strict=True):
        np.testing.assert_array_equal(now, before)


@pytest.mark.parametrize("relative", [0.1, 0.4])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_our_l1_norm_is_never_above_net_trims_at_the_same_budget(size, bias, relative):
    """Where Net-Trim's constraints hold, the distance to the preimage is that of the active entries: within budget."""
    X, W, b = relu_layer(size, bias, 3)
    epsilon = budget(X, W, b, relative)
    problem = sisopt.LayerProblem(X, W, b, activation="relu")
    ours = sisopt.solve(problem, sisopt.ErrorBudget(radius=epsilon), tol=1e-6)
    assert ours.gap <= 1e-6
    theirs = exact_net_trim(X, W, b, epsilon)
    assert ours.objective <= theirs * (1 + 2e-6)
    admm = net_trim(X, W, b, epsilon=epsilon, rho=5.0, tol=1e-5, max_iterations=50_000)
    assert admm.converged
    assert ours.lower_bound <= admm.objective * (1 + 1e-4)


def test_our_l1_norm_is_proved_to_be_well_below_net_trims():
    """A strict gap, certified on both sides: what ours attains is below the bound on theirs."""
    X, W, b = relu_layer(SIZES[1], True, 3)
    epsilon = budget(X, W, b, 0.4)
    ours = sisopt.solve(sisopt.LayerProblem(X, W, b, activation="relu"), sisopt.ErrorBudget(radius=epsilon), tol=1e-6)
    theirs = net_trim(X, W, b, epsilon=epsilon, rho=5.0, tol=1e-4, max_iterations=50_000)
    assert ours.gap <= 1e-6
    assert theirs.converged
    assert ours.objective < 0.95 * theirs.lower_bound
