"""Many lasso problems on one Gram matrix: steps that all rows share, and what sums over samples can stand for."""

from __future__ import annotations

import numpy as np
import pytest

import sisopt
from sisopt import problem as posing
from sisopt.evaluation import _evaluate_data, _evaluate_gram, _is_exact, evaluate
from sisopt.gram_statistics import gram_statistics
from sisopt.kernels.alternating import RELAXATION, alternating_steps
from sisopt.solvers.shared_inverse import SharedInverse

INF = np.inf


def lasso_rows(seed=0, n_samples=200, m=30, r=7, correlation=0.6):
    """Return H (m, m), Q (r, m), energies (r,) and thresholds (r, m) of least squares problems of different sizes."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n_samples, m)) + correlation * rng.standard_normal((n_samples, 1))
    X *= 10.0 ** rng.uniform(-1, 1, m)
    Z = 10.0 ** rng.uniform(-2, 2, r) * rng.standard_normal((n_samples, r))
    Q = Z.T @ X
    thresholds = np.repeat(0.2 * np.abs(Q).max(axis=1)[:, None], m, axis=1)
    thresholds[:, 3] = INF
    return X.T @ X, Q, (Z**2).sum(axis=0), thresholds


def plain_steps(H, Q, W, U, thresholds, weights, n_steps):
    """ADMM as in the books, in float64: U are the scaled duals of W = v, ``weights`` (m,) the penalties' curvature."""
    for _ in range(n_steps):
        V = np.linalg.solve(H + np.diag(weights), (Q + weights * (W - U)).T).T
        total = RELAXATION * V + (1.0 - RELAXATION) * W + U
        U = np.clip(total, -thresholds / weights, thresholds / weights)
        W = total - U
    return W, U


def scaled_inverse(H, rho):
    root = 1.0 / np.sqrt(np.diagonal(H))
    return np.linalg.inv(H * root * root[:, None] + rho * np.eye(root.size)).astype(np.float32), root


@pytest.mark.parametrize("n_steps", [1, 2, 7])
def test_alternating_steps_are_those_of_admm(n_steps):
    H, Q, energy, thresholds = lasso_rows()
    size, rho = np.sqrt(energy), 0.3
    inverse, root = scaled_inverse(H, rho)
    rng = np.random.default_rng(1)
    start = np.where(np.isinf(thresholds), 0.0, 0.1 * rng.standard_normal(Q.shape) * root * size[:, None])
    U = 0.1 * rng.standard_normal(Q.shape)
    unit = root * size[:, None]
    expected, duals = plain_steps(H, Q, start, U * unit, thresholds, rho / root**2, n_steps)
    W = start.copy()
    alternating_steps(inverse, root, rho, start @ H - Q, W, U, thresholds, size, n_steps)
    np.testing.assert_allclose(W / unit, expected / unit, atol=1e-5)
    np.testing.assert_allclose(U, duals / unit, atol=1e-5)
    assert np.array_equal(W[:, 3], np.zeros(len(W)))


def test_shared_inverse_solves_a_lasso_to_the_accuracy_of_float32_and_beyond():
    H, Q, energy, thresholds = lasso_rows()
    shared = SharedInverse(H, energy)
    shared.aim(thresholds[:, 0])
    rows, unit = np.arange(len(Q)), np.sqrt(np.diagonal(H)) * np.sqrt(energy)[:, None]
    W = np.zeros(Q.shape)
    duals = shared.duals(rows, W @ H - Q, thresholds)
    for _ in range(60):
        shared.steps(rows, W @ H - Q, W, duals, thresholds, 20)
    C = W @ H - Q
    allowed = np.isfinite(thresholds)
    bars = np.where(allowed, thresholds, 0.0)
    violation = np.where(W != 0, np.abs(C + np.sign(W) * bars), np.maximum(np.abs(C) - bars, 0.0))
    assert np.count_nonzero(W) > 10
    assert (violation / unit)[allowed].max() <= 1e-6
    assert not W[~allowed].any()


def test_duals_that_a_solution_suggests_leave_it_where_it_is():
    H, Q, energy, thresholds = lasso_rows()
    shared = SharedInverse(H, energy)
    shared.aim(thresholds[:, 0])
    rows, W = np.arange(len(Q)), np.zeros(Q.shape)
    duals = shared.duals(rows, -Q, thresholds)
    for _ in range(60):
        shared.steps(rows, W @ H - Q, W, duals, thresholds, 20)
    before = W.copy()
    shared.steps(rows, W @ H - Q, W, shared.duals(rows, W @ H - Q, thresholds), thresholds, 20)
    unit = np.sqrt(np.diagonal(H)) / np.sqrt(energy)[:, None]
    assert np.abs(W * unit).max() > 0.1
    np.testing.assert_allclose(W * unit, before * unit, atol=1e-6)


def test_shared_inverse_takes_inputs_without_curvature():
    H, Q, energy, thresholds = lasso_rows()
    H[5], H[:, 5], Q[:, 5] = 0.0, 0.0, 0.0
    shared = SharedInverse(H, energy)
    shared.aim(thresholds[:, 0])
    W = np.zeros(Q.shape)
    duals = shared.duals(np.arange(len(Q)), W @ H - Q, thresholds)
    for _ in range(20):
        shared.steps(np.arange(len(Q)), W @ H - Q, W, duals, thresholds, 20)
    assert np.isfinite(W).all()
    assert not W[:, 5].any()


def layer(dtype=np.float64, offset=0.0, noise=1.0, **options):
    rng = np.random.default_rng(2)
    X = rng.standard_normal((400, 20)) + 0.5 * rng.standard_normal((400, 1)) + offset
    W = rng.standard_normal((80, 20))
    Z = noise * rng.standard_normal((400, 80)) + X @ W.T
    return sisopt.LayerProblem(X.astype(dtype), W.astype(dtype), np.zeros(80, dtype), preactivations=Z, **options)


@pytest.mark.parametrize("options", [{}, {"fidelity": 0.5}, {"sample_weights": np.linspace(0.1, 2.0, 400)}])
def test_sums_over_samples_stand_for_the_data_where_they_are_exact(options):
    problem = layer(**options)
    gram_statistics(problem, 1)
    W = np.where(np.random.default_rng(3).random(problem.weight.shape) < 0.5, problem.weight, 0.0)
    at, exact = _evaluate_gram(problem, W, 1), _evaluate_data(problem, W, 1)
    assert _is_exact(problem, W, at)
    assert np.array_equal(evaluate(problem, W).gradient, at.gradient)
    np.testing.assert_allclose(at.loss, exact.loss, rtol=1e-11)
    np.testing.assert_allclose(at.bias, exact.bias, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(at.gradient, exact.gradient, atol=1e-11 * np.abs(exact.gradient).max())
    np.testing.assert_allclose(at.rounded_loss, exact.rounded_loss, rtol=1e-11)


def test_the_data_are_asked_where_sums_have_lost_the_digits():
    problem = layer(noise=1e-6)  # at the given weights losses are 1e-12 of the energies
    gram_statistics(problem, 1)
    W = problem.weight
    assert not _is_exact(problem, W, _evaluate_gram(problem, W, 1))
    assert np.array_equal(evaluate(problem, W, 1).gradient, _evaluate_data(problem, W, 1).gradient)


@pytest.mark.parametrize("goal", [sisopt.ErrorBudget(relative_error=0.1), sisopt.Sparsity(0.6), sisopt.Penalized(30.0)])
@pytest.mark.parametrize("tol", [1e-4, 1e-8])
def test_rows_solved_together_are_solved(goal, tol):
    solution = sisopt.solve(layer(noise=0.3), goal, tol=tol)
    assert solution.status is sisopt.Status.OPTIMAL
    assert solution.gap <= tol
    assert solution.kkt_violation <= 30 * np.sqrt(tol)


@pytest.mark.parametrize("shifted", [False, True])
def test_identity_targets_are_those_that_every_other_activation_goes_by(shifted):
    rng = np.random.default_rng(4)
    X, W, b = rng.standard_normal((300, 12)), rng.standard_normal((6, 12)), rng.standard_normal(6)
    v = rng.uniform(0.5, 2.0, 300)
    shift = rng.standard_normal((300, 6)) if shifted else None
    plain = sisopt.LayerProblem(X, W, b, sample_weights=v, shift=shift)
    points = sisopt.LayerProblem(X, W, b, activation="arctan", sample_weights=v, shift=shift)
    ours, theirs = gram_statistics(plain, 1)[0], gram_statistics(points, 1)[0]
    for name in ("cross", "energy", "target_mean", "gram"):
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("weights", [None, np.linspace(0.5, 2.0, 300)])
@pytest.mark.parametrize("has_bias", [False, True])
def test_targets_that_are_the_dense_layers_need_no_look_at_the_data(monkeypatch, weights, has_bias):
    rng = np.random.default_rng(5)
    X, W, b = rng.standard_normal((300, 12)) + 3.0, rng.standard_normal((20, 12)), rng.standard_normal(20)
    X[:, 4] = 7.0
    b = b if has_bias else None
    expected = gram_statistics(
        sisopt.LayerProblem(X, W, b, preactivations=X @ W.T + (0 if b is None else b), sample_weights=weights), 1
    )[0]
    monkeypatch.setattr(posing, "KEPT_BYTES", 0)
    problem = sisopt.LayerProblem(X, W, b, sample_weights=weights)
    monkeypatch.setattr(sisopt.LayerProblem, "dense_rows", None)
    ours = gram_statistics(problem, 1)[0]
    for name in ("cross", "energy", "target_mean", "input_mean", "gram"):
        size = np.abs(getattr(expected, name)).max()
        np.testing.assert_allclose(getattr(ours, name), getattr(expected, name), atol=1e-12 * size)


def test_dense_weights_whose_terms_cancel_are_summed_over_the_data(monkeypatch):
    rng = np.random.default_rng(6)
    X = rng.standard_normal((300, 1)) + 1e-6 * rng.standard_normal((300, 2))
    W = np.repeat([[1.0, -1.0]], 20, axis=0)
    monkeypatch.setattr(posing, "KEPT_BYTES", 0)
    at = gram_statistics(sisopt.LayerProblem(X, W), 1)[0]
    np.testing.assert_allclose(at.energy, ((X @ W.T) ** 2).sum(axis=0), rtol=1e-9)
