"""What a pruned layer may keep: so many weights in all, or so many of every few inputs of a row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Array = np.ndarray


@dataclass(frozen=True)
class Pattern:
    """How many weights are KEPT; exactly one of the two is given.

    Attributes
    ----------
    sparsity : float, optional
        Share of zeros in the whole matrix: ``round((1 - sparsity) * size)`` weights are kept.
    pattern : (int, int), optional
        ``(kept, group)``: of every ``group`` consecutive inputs of a row, ``kept`` are kept; of a shorter last group of
        r, ``round(r * kept / group)``.
    """

    sparsity: float | None = None
    pattern: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if (self.sparsity is None) == (self.pattern is None):
            raise ValueError("give sparsity or pattern, and not both")
        if self.sparsity is not None and not 0.0 <= self.sparsity <= 1.0:
            raise ValueError(f"sparsity must lie between 0 and 1, got {self.sparsity}")
        if self.pattern is not None and not 0 <= self.pattern[0] <= self.pattern[1]:
            raise ValueError(f"of a group of {self.pattern[1]}, {self.pattern[0]} cannot be kept")

    def count(self, shape: tuple[int, int]) -> int:
        """Return how many weights of a matrix of this shape are kept."""
        if self.pattern is None:
            return round((1.0 - self.sparsity) * (shape[0] * shape[1]))
        return shape[0] * sum(kept * (stop - start) // size for start, stop, size, kept in self._parts(shape[1]))

    def keep(self, scores: Array) -> Array:
        """Return True where the largest scores are, as many as are kept; ties go to the earlier entry."""
        if self.pattern is None:
            return largest(scores.ravel(), self.count(scores.shape)).reshape(scores.shape)
        mask = np.empty(scores.shape, bool)
        for start, stop, size, kept in self._parts(scores.shape[1]):
            groups = scores[:, start:stop].reshape(-1, size)
            mask[:, start:stop] = (_ranks(groups) < kept).reshape(len(scores), -1)
        return mask

    def _parts(self, n_in: int) -> list[tuple[int, int, int, int]]:
        """Return (start, stop, size of a group, kept of a group): the whole groups and then what remains."""
        kept, size = self.pattern
        whole = n_in - n_in % size
        parts = [(0, whole, size, kept), (whole, n_in, n_in - whole, round((n_in - whole) * kept / size))]
        return [part for part in parts if part[0] < part[1]]


def largest(scores: Array, count: int) -> Array:
    """Return True where the ``count`` largest of a vector of scores are; ties go to the earlier entry."""
    if not 0 < count < scores.size:
        return np.full(scores.size, count > 0)
    threshold = np.partition(scores, scores.size - count)[scores.size - count]
    mask = scores >= threshold
    surplus = np.count_nonzero(mask) - count
    if surplus:
        mask[np.flatnonzero(scores == threshold)[-surplus:]] = False
    return mask


def _ranks(groups: Array) -> Array:
    """Return how many of its group (a row) are ahead of each score: larger, or as large and earlier."""
    ranks = np.zeros(groups.shape, np.int16)
    for i in range(groups.shape[1]):
        for j in range(i):
            behind = groups[:, i] > groups[:, j]
            ranks[:, j] += behind
            ranks[:, i] += ~behind
    return ranks
