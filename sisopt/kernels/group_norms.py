"""The dual norm of sums of weighted l1 and group norms."""

from __future__ import annotations

import numpy as np
from numba import njit

FAST = {"reassoc", "contract", "nsz"}  # lets sums vectorise; NaN and infinities keep their meaning
MAX_ROOT_STEPS = 100
ROOT_ACCURACY = 4e-16


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
def mixed_dual_norms(size, factors, labels, group_weights):
    """Return, for every group g, the least t with ||max(|C_g| - t a_g, 0)||_2 <= t kappa_g, shape (n_groups,).

    Primal: max <C_g, W_g> subject to sum_j a_j |W_j| + kappa_g ||W_g||_2 <= 1.
    Dual: the t above: |C_g| splits into t a_g s + t kappa_g v with |s_j| <= 1 and ||v||_2 <= 1.

    ``size`` = |C| and ``factors`` = a >= 0 have shape (rows, columns), like ``labels``; entries whose factor is
    infinite are in no group. The function ||max(|C| - t a, 0)|| - t kappa is convex and falls, so that Newton's
    method from t = max_j |C_j| / (a_j + kappa), where it is not negative, rises to the root. Stops at rounding.
    """
    n_groups = group_weights.size
    t = np.zeros(n_groups)
    squares = np.empty(n_groups)
    slopes = np.empty(n_groups)
    rows, columns = size.shape
    for i in range(rows):
        for j in range(columns):
            g = labels[i, j]
            t[g] = max(t[g], size[i, j] / (factors[i, j] + group_weights[g]))
    for _ in range(MAX_ROOT_STEPS):
        squares[:] = 0.0
        slopes[:] = 0.0
        for i in range(rows):
            for j in range(columns):
                g = labels[i, j]
                excess = size[i, j] - t[g] * factors[i, j]
                if excess > 0.0:
                    squares[g] += excess * excess
                    slopes[g] += excess * factors[i, j]
        moved = False
        for g in range(n_groups):
            if squares[g] > 0.0:
                norm = np.sqrt(squares[g])
                step = (norm - t[g] * group_weights[g]) / (slopes[g] / norm + group_weights[g])
                if step > ROOT_ACCURACY * t[g]:
                    t[g] += step
                    moved = True
        if not moved:
            break
    return t
