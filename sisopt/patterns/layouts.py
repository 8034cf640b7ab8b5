"""Sums over groups of weights, and groups back to weights: for grids of blocks, and for labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Grid:
    """Blocks of a matrix of the given shape, in row-major order, smaller at its ends where they do not fit."""

    shape: tuple[int, int]
    block: tuple[int, ...]

    @property
    def n_groups(self) -> int:
        """The number of blocks."""
        return len(self._starts(0)) * len(self._starts(1))

    def sizes(self) -> npt.NDArray[np.intp]:
        """Return the number of weights of every block."""
        down, across = (np.diff(self._starts(axis), append=self.shape[axis]) for axis in (0, 1))
        return np.multiply.outer(down, across).ravel()

    def sums(self, values: Array) -> Array:
        """Return the sum over every block."""
        for axis in (0, 1):
            if self.block[axis] > 1:
                values = np.add.reduceat(values, self._starts(axis), axis=axis)
        return values.ravel()

    def spread(self, chosen: Mask) -> Mask:
        """Return True at the weights of the chosen blocks."""
        n_out, n_in = self.shape
        grid = chosen.reshape(len(self._starts(0)), -1)
        wide = np.repeat(grid, self.block[1], axis=1)[:, :n_in]
        return np.repeat(wide, self.block[0], axis=0)[:n_out]

    def _starts(self, axis: int) -> npt.NDArray[np.intp]:
        return np.arange(0, self.shape[axis], self.block[axis], dtype=np.intp)


@dataclass(frozen=True, eq=False)
class Labelled:
    """Groups by the label of every weight, numbered from 0."""

    labels: npt.NDArray[np.intp]  # (n_out, n_in)
    n_groups: int

    def sizes(self) -> npt.NDArray[np.intp]:
        """Return the number of weights of every group."""
        return np.bincount(self.labels.ravel(), minlength=self.n_groups)

    def sums(self, values: Array) -> Array:
        """Return the sum over every group."""
        totals = np.bincount(self.labels.ravel(), weights=values.ravel(), minlength=self.n_groups)
        return totals.astype(np.float64, copy=False)  # no copy: float64 is what sums of weights are

    def spread(self, chosen: Mask) -> Mask:
        """Return True at the weights of the chosen groups."""
        mask: Mask = chosen[self.labels]
        return mask
