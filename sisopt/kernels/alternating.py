"""Alternating directions for many lasso problems that share a curvature matrix: one product with its inverse a step."""

from __future__ import annotations

import numpy as np
from numba import njit

FAST = {"reassoc", "contract", "nsz"}  # lets sums vectorise; NaN and infinities keep their meaning
RELAXATION = 1.6


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
def alternating_steps(inverse, root, rho, gradient, W, U, thresholds, size, n_steps):
    """Take ``n_steps`` over-relaxed steps of ADMM, in place: W and U move.

    Primal:  min over every row w of W of 1/2 w'Hw - q'w + sum_j t_j |v_j| subject to w = v; W holds the v.
    Dual:    -rho U_ij, in the units below, is the gradient at the optimum, within the thresholds.
    No stopping rule, and the objective may rise on the way: the caller's certificate tells.

    ``gradient`` = W H - Q, W, U and ``thresholds`` are (r, m), float64; ``inverse`` (m, m) is that of
    diag(root) H diag(root) + rho, float32 as the products with it; ``root`` (m,) is one over the roots of H's diagonal,
    ``size`` (r,) the scale of a row's gradients in these units. Products are taken of what is left to correct alone, so
    that the fixed point is the exact one however coarse the inverse is, and float32 does not stand in its way.
    """
    r, m = W.shape
    descent, limit = np.empty((r, m)), np.empty((r, m))
    start, X = np.empty((r, m)), np.empty((r, m))
    right, solved = np.empty((r, m), inverse.dtype), np.empty((r, m), inverse.dtype)
    for i in range(r):
        for j in range(m):
            descent[i, j] = -gradient[i, j] * root[j] / size[i]
            limit[i, j] = thresholds[i, j] * root[j] / (size[i] * rho)
            start[i, j] = W[i, j] / (root[j] * size[i])
            X[i, j] = start[i, j]
            right[i, j] = descent[i, j] - rho * U[i, j]
    for _ in range(n_steps):
        np.dot(right, inverse, solved)
        for i in range(r):
            for j in range(m):
                x = X[i, j]
                total = x + RELAXATION * (solved[i, j] - (x - start[i, j])) + U[i, j]
                u = min(max(total, -limit[i, j]), limit[i, j])
                U[i, j] = u
                X[i, j] = total - u
                right[i, j] = descent[i, j] + rho * (total - u - start[i, j] - u)
    for i in range(r):
        for j in range(m):
            W[i, j] = W[i, j] + (X[i, j] - start[i, j]) * root[j] * size[i] if X[i, j] != 0 else 0.0
