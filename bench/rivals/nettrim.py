"""Net-Trim, the nearest convex relative of our program, written from its equations and solved by its own ADMM."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_factor, cho_solve

Array = np.ndarray

CHECK_EVERY = 10  # iterations; a check costs no more than one


@dataclass(frozen=True)
class NetTrimResult:
    """What Net-Trim's ADMM found: the sparse copy of the weights.

    Attributes
    ----------
    weight : ndarray, shape (n_out, n_in)
    bias : ndarray, shape (n_out,), or None
    objective : float
        ``||W||_1``.
    violation : float
        Distance of ``X W' + b`` to Net-Trim's set, over epsilon: how much the sparse copy misses the constraints by.
    lower_bound : float
        The best bound on the optimum that the ADMM's dual variable has proved; 0 where the optimum was given.
    n_iterations : int
    seconds : float
        Factorisation included.
    converged : bool
        Whether the stopping rule was met within the iterations.
    """

    weight: Array
    bias: Array | None
    objective: float
    violation: float
    lower_bound: float
    n_iterations: int
    seconds: float
    converged: bool


def net_trim(
    inputs: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    epsilon: float,
    rho: float = 100.0,
    tol: float = 1e-3,
    max_iterations: int = 10_000,
    optimum: float | None = None,
) -> NetTrimResult:
    """Prune a ReLU layer with Net-Trim.

    With Y = max(X W0' + b0, 0) it solves

        min ||W||_1   s.t.   ||(X W' + b - Y) where Y > 0||_F <= epsilon,   X W' + b <= 0 where Y = 0,

    by ADMM on U = X W' + b and a copy of W: a projection, a soft threshold and a least-squares problem with one
    Cholesky factor, the data divided by ``0.3 sqrt(max |X'X|)`` and rho fixed, as in the authors' code. Their stopping
    rule (small steps, or 2000 iterations) is replaced by one that says what is reached: ``violation <= tol`` and the
    objective within ``tol`` of the best dual bound, or of ``optimum`` where that is known. The bias, which they
    penalise as one more weight, is not penalised here, as in our program.

    Parameters
    ----------
    inputs : array, shape (n_samples, n_in)
    weight : array, shape (n_out, n_in)
        The dense layer's.
    bias : array, shape (n_out,), optional
        The dense layer's. None fits no bias.
    epsilon : float
        Budget on the active entries, in units of outputs.
    rho : float
        Penalty parameter; the threshold of the weights is 1 / rho.
    tol : float
    max_iterations : int
    optimum : float, optional

    References
    ----------
    A. Aghasi, A. Abdi, N. Nguyen, J. Romberg, "Net-Trim: Convex Pruning of Deep Neural Networks with Performance
    Guarantee", NeurIPS 2017; ADMM of the same authors' "Fast Convex Pruning of Deep Neural Networks", SIMODS 2020.
    """
    start = time.perf_counter()
    n_samples, n_in = inputs.shape
    V = weight.T if bias is None else np.vstack([weight.T, bias])  # (n_in or n_in + 1, n_out)
    A = inputs if bias is None else np.column_stack([inputs, np.ones(n_samples)])
    Y = np.maximum(A @ V, 0.0)
    gram = A.T @ A
    scale = 0.3 * np.sqrt(gram.max())
    A, Y, radius = A / scale, Y / scale, epsilon / scale
    copied = np.zeros(len(V))
    copied[:n_in] = 1.0  # the bias is not penalised, so it needs no copy
    factor = cho_factor(gram / scale**2 + np.diag(copied))
    active = Y > 0
    V = np.zeros(V.shape)
    U = np.zeros(Y.shape)  # A @ V
    dual, dual_copy = np.zeros(Y.shape), np.zeros((n_in, V.shape[1]))  # scaled; A' dual = -dual_copy after an iteration
    bound, converged, iteration = 0.0, False, 0
    while iteration < max_iterations and not converged:
        iteration += 1
        target = _project(U - dual, Y, active, radius)
        copy = V[:n_in] - dual_copy
        copy -= np.clip(copy, -1.0 / rho, 1.0 / rho)
        target += dual
        dual_copy += copy
        right = A.T @ target
        right[:n_in] += dual_copy
        V = cho_solve(factor, right, overwrite_b=True, check_finite=False)
        U = A @ V
        dual = target - U
        dual_copy -= V[:n_in]
        if iteration % CHECK_EVERY == 0 or iteration == max_iterations:
            reached = A[:, :n_in] @ copy if bias is None else A @ np.vstack([copy, V[n_in:]])
            violation = float(np.linalg.norm(reached - _project(reached, Y, active, radius))) / radius
            objective = float(np.abs(copy).sum())
            if optimum is None:
                bound = max(bound, _dual_bound(dual, A, n_in, Y, active, radius))
            best = bound if optimum is None else optimum
            converged = violation <= tol and abs(objective - best) <= tol * objective
    return NetTrimResult(
        weight=copy.T,
        bias=None if bias is None else V[n_in],
        objective=objective,
        violation=violation,
        lower_bound=bound,
        n_iterations=iteration,
        seconds=time.perf_counter() - start,
        converged=converged,
    )


def _project(U: Array, Y: Array, active: Array, radius: float) -> Array:
    """Project U onto {||(U - Y) where active||_F <= radius, U <= 0 elsewhere}; Y is 0 where not active."""
    error = np.where(active, U - Y, 0.0)
    norm = float(np.linalg.norm(error))
    if norm > radius:
        error *= radius / norm
    error += Y
    return np.where(active, error, np.minimum(U, 0.0))


def _dual_bound(dual: Array, A: Array, n_in: int, Y: Array, active: Array, radius: float) -> float:
    """Return (<L, Y> - radius ||L where active||_F) / max |X' L|: at most ||W||_1 for every W that Net-Trim allows.

    It holds for every L <= 0 where not active, with 1' L = 0 where there is a bias: L is ``dual``, made so.
    """
    L = np.where(active, dual, np.minimum(dual, 0.0))
    if A.shape[1] > n_in:
        n_active = active.sum(axis=0)
        L -= active * (L.sum(axis=0) / np.maximum(n_active, 1))
        L[:, n_active == 0] = 0.0
    largest = float(np.abs(A[:, :n_in].T @ L).max())
    if largest == 0.0:
        return 0.0
    return (float(np.vdot(L, Y)) - radius * float(np.linalg.norm(L[active]))) / largest
