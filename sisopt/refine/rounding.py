"""Exact counts: which weights stay when exactly so many may be non-zero, or only those that a pattern lets stay."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..patterns import Pattern

Array = npt.NDArray[np.float64]

_TINY = 1e-30  # of the largest column norm: among weights of dead inputs size decides


def round_to_pattern(
    weight: Array,
    dense: Array,
    column_norms: Array,
    allowed: npt.NDArray[np.bool_],
    pattern: Pattern,
    sparsity: float | None = None,
) -> Array:
    """Return the weights with the non-zeros that a pattern lets stay, as many as it does.

    Too many: those with the least |w_ij| ||x_j|| become zero. Too few: where the pattern allows, the dense weights with
    the largest |w0_ij| ||x_j|| come back. Ties go to the earlier entry. Fewer than the pattern's count remain only
    where it allows no more of the dense layer's non-zero weights. Where whole groups stay, those with the largest sum
    of squared |w_ij| ||x_j|| do, and their zeros come back too.

    Parameters
    ----------
    weight, dense : ndarray, shape (n_out, n_in)
    column_norms : ndarray, shape (n_in,)
        ||x_j||, in units of inputs.
    allowed : ndarray of bool, shape (n_out, n_in)
    pattern : Pattern
    sparsity : float, optional
        As the pattern needs it.
    """
    largest = np.max(column_norms)
    norms = np.maximum(column_norms, _TINY * largest) if largest > 0 else np.ones_like(column_norms)
    present = (weight != 0) & allowed
    stays = present & pattern.select(np.where(present, np.abs(weight) * norms, -1.0), sparsity)
    # What stays comes first, by infinite scores: the pattern allows it, so that all of it is selected again.
    may_return = allowed & (dense != 0) & ~present
    scores = np.where(stays, np.inf, np.where(may_return, np.abs(dense) * norms, -1.0))
    returns = pattern.select(scores, sparsity) & ~stays
    return np.where(stays, weight, np.where(returns, dense, 0.0))
