"""What Douglas-Rachford splitting does to the pre-activations on interval targets, one pass over the samples each.

For row i and the samples k of batch j, with e = t - clip(t, lo, hi) and a shrinkage c_ij in [0, 1],

    p = t - c_ij e                                                           proximal point
    2 p - t                                                                  its reflection
    t <- p + alpha c_ij e                                                    the same point, the dual variable scaled
    t <- t + alpha (q - p)                                                   relaxed step towards q

The first is the projection onto {sum_jk v_k dist(t_k, [lo_k, hi_k])^2 <= radius^2} for c = max(0, 1 - radius / norm),
and the proximity operator of dist^2 / (2 lambda rho) for c = 1 / (1 + lambda rho). Nothing iterates here. ``ends``
(batches + 1,) are the batches' ends; ``squares`` (rows, batches) receives sum_k v_k e_k^2 of the new t.
"""

from __future__ import annotations

from numba import njit

FAST = {"reassoc", "contract", "nsz"}  # lets sums vectorise; infinities, which the intervals hold, keep their meaning


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
def squared_distances(t, lo, hi, v, ends, squares):
    """Write sum_k v_k e_k^2 of every row and batch."""
    for i in range(t.shape[0]):
        for j in range(ends.size - 1):
            total = 0.0
            for k in range(ends[j], ends[j + 1]):
                e = t[i, k] - min(max(t[i, k], lo[i, k]), hi[i, k])
                total += v[k] * e * e
            squares[i, j] = total


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
def reflect(t, lo, hi, ends, shrinkage, out):
    """Write 2 p - t."""
    for i in range(t.shape[0]):
        for j in range(ends.size - 1):
            c = 2.0 * shrinkage[i, j]
            for k in range(ends[j], ends[j + 1]):
                value = t[i, k]
                out[i, k] = value - c * (value - min(max(value, lo[i, k]), hi[i, k]))


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
def advance(t, lo, hi, v, ends, shrinkage, q, alpha, squares):
    """Step from t towards q, in place."""
    for i in range(t.shape[0]):
        for j in range(ends.size - 1):
            c = shrinkage[i, j]
            total = 0.0
            for k in range(ends[j], ends[j + 1]):
                value = t[i, k]
                p = value - c * (value - min(max(value, lo[i, k]), hi[i, k]))
                value += alpha * (q[i, k] - p)
                e = value - min(max(value, lo[i, k]), hi[i, k])
                total += v[k] * e * e
                t[i, k] = value
            squares[i, j] = total


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
def scale_dual(t, lo, hi, v, ends, shrinkage, alpha, squares):
    """Scale t - p by alpha (rows,), in place."""
    for i in range(t.shape[0]):
        for j in range(ends.size - 1):
            c = (alpha[i] - 1.0) * shrinkage[i, j]
            total = 0.0
            for k in range(ends[j], ends[j + 1]):
                value = t[i, k]
                value += c * (value - min(max(value, lo[i, k]), hi[i, k]))
                e = value - min(max(value, lo[i, k]), hi[i, k])
                total += v[k] * e * e
                t[i, k] = value
            squares[i, j] = total
