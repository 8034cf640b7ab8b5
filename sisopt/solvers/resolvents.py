"""Solves with I + omega G, G a Gram matrix: the projections on a graph {(W, X W')}."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


class Resolvent(Protocol):
    """Solves with I + omega_i G for every row i."""

    def set_ratio(self, ratio: Array) -> None:
        """Set omega, (n_out,)."""
        ...

    def solve(self, rows: slice, right: Array) -> Array:
        """Return the solution for every row of ``right`` (r, n_in)."""
        ...


class CholeskyResolvent:
    """One omega for all rows: its inverse, so that a step costs a plain product."""

    def __init__(self, gram: Array) -> None:
        self._gram = gram

    def set_ratio(self, ratio: Array) -> None:
        """See `Resolvent`."""
        matrix = ratio[0] * self._gram
        matrix[np.diag_indices_from(matrix)] += 1.0
        from scipy.linalg import cho_factor, cho_solve  # noqa: PLC0415  slow to import, and seldom needed

        factor = cho_factor(matrix, overwrite_a=True, check_finite=False)
        self._inverse = cho_solve(factor, np.eye(matrix.shape[0]), overwrite_b=True, check_finite=False)

    def solve(self, rows: slice, right: Array) -> Array:
        """See `Resolvent`."""
        return np.asarray(right @ self._inverse)


class EigenResolvent:
    """Any omega for any row, from G = Q diag(values) Q'."""

    def __init__(self, gram: Array) -> None:
        values, self._vectors = np.linalg.eigh(gram)
        self._values = np.maximum(values, 0.0)

    def set_ratio(self, ratio: Array) -> None:
        """See `Resolvent`."""
        self._ratio = ratio

    def solve(self, rows: slice, right: Array) -> Array:
        """See `Resolvent`."""
        rotated = right @ self._vectors
        rotated /= 1.0 + self._ratio[rows, None] * self._values
        return np.asarray(rotated @ self._vectors.T)
