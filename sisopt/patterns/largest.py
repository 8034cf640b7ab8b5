"""The largest of many numbers, so many in all or in every row; ties go to the earlier entry."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]
Scores = npt.NDArray[np.floating[Any]]


def largest(scores: Scores, count: int) -> Mask:
    """Return True at the ``count`` largest of a vector, at fewer where fewer are 0 or more."""
    if count >= scores.size:
        return scores >= 0
    mask = scores > 0
    n_positive = int(np.count_nonzero(mask))
    if n_positive <= count:
        if n_positive < count:
            mask[np.flatnonzero(scores == 0)[: count - n_positive]] = True
        return mask
    if count == 0:
        return np.zeros_like(mask)
    with np.errstate(over="ignore"):
        coarse = scores.astype(np.float32, copy=False)  # numpy finds a threshold in float32 ten times as fast
    # Zeros are left out: many ties with the threshold cost a partition twenty times as much.
    candidates = coarse if n_positive == scores.size else np.compress(mask, coarse)
    threshold = np.partition(candidates, n_positive - count)[n_positive - count]
    above: Mask = coarse > threshold
    tied = np.flatnonzero(coarse == threshold)
    missing = count - int(np.count_nonzero(above))
    if coarse is not scores and missing < tied.size:  # perhaps tied in float32 only
        tied = tied[np.argsort(-scores[tied], kind="stable")]
    above[tied[:missing]] = True
    return above


def largest_in_rows(scores: Scores, count: int, extra: int = 0) -> Mask:
    """Return True at the ``count`` largest of every row, and one more in the ``extra`` rows where it is largest.

    Only what is 0 or more counts.
    """
    n_rows, n_columns = scores.shape
    if count >= n_columns:
        return scores >= 0
    position = n_columns - count - (extra > 0)  # of the last that may stay, in ascending order
    if position >= n_columns:
        return np.zeros(scores.shape, bool)
    ordered = np.partition(scores, position, axis=1)
    last = ordered[:, position]
    counts = np.full(n_rows, count, np.intp)
    if extra > 0:
        more = largest(last, extra)
        counts += more
        if count > 0:
            last = np.where(more, last, ordered[:, position + 1 :].min(axis=1))
    mask = scores >= np.maximum(last, 0)[:, None]
    surplus = np.count_nonzero(mask, axis=1) - counts
    rows = np.flatnonzero(surplus > 0)
    tied = scores[rows] == last[rows, None]
    from_end = np.cumsum(tied[:, ::-1], axis=1)[:, ::-1]
    mask[rows] &= ~tied | (from_end > surplus[rows, None])
    return mask
