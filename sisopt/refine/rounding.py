"""Exact counts: which weights stay when exactly so many may be non-zero."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def round_to_count(
    weight: Array, dense: Array, column_norms: Array, kept: int, allowed: npt.NDArray[np.bool_]
) -> Array:
    """Return the weights with ``kept`` non-zeros.

    Too many: those with the least |w_ij| ||x_j|| become zero. Too few: the dense weights with the largest
    |w0_ij| ||x_j|| come back. Ties go to the earlier entry. Fewer than ``kept`` remain only where the dense layer has
    no more non-zero weights.

    Parameters
    ----------
    weight, dense : ndarray, shape (n_out, n_in)
    column_norms : ndarray, shape (n_in,)
        ||x_j||, in units of inputs.
    kept : int
    allowed : ndarray of bool, shape (n_out, n_in)
    """
    result = weight.copy().ravel()
    present = result != 0
    excess = int(np.count_nonzero(present)) - kept
    if excess > 0:
        score = np.where(present, np.abs(result) * np.broadcast_to(column_norms, weight.shape).ravel(), np.inf)
        order = np.argsort(score[::-1], kind="stable")[:excess]
        result[result.size - 1 - order] = 0.0
    elif excess < 0:
        size = np.abs(dense).ravel()
        candidates = np.flatnonzero(~present & allowed.ravel() & (size > 0))
        score = np.abs(dense * column_norms).ravel()
        order = np.lexsort((-size[candidates], -score[candidates]))  # by score, then by size: inputs may be dead
        chosen = candidates[order[:-excess]]
        result[chosen] = dense.ravel()[chosen]
    return result.reshape(weight.shape)
