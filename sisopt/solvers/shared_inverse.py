"""Steps of ADMM that take all rows of a quadratic problem along: one inverse of the Gram matrix serves them all."""

from __future__ import annotations

import threading

import numpy as np
import numpy.typing as npt

from ..kernels.alternating import alternating_steps

Array = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]
Indices = npt.NDArray[np.intp]

FLAT = 1e-6  # of the largest curvature: the least that a coordinate is scaled by
LEAST, MOST = 1e-4, 1e4  # rho, relative to the curvature: what float32 can invert
KEPT = 3.0  # an inverse serves while rho is within this factor of the one wanted
TYPICAL = 2.0  # thresholds over rho are half of what weights of one size would be


class SharedInverse:
    """The inverse of the Gram matrix plus rho times its diagonal, in float32, made when it is first needed."""

    def __init__(self, gram: Array, energy: Array) -> None:
        diagonal = np.diagonal(gram)
        self._gram = gram
        self._root = 1.0 / np.sqrt(np.maximum(diagonal, FLAT * diagonal.max()))
        self._size = np.where(energy > 0, np.sqrt(energy), 1.0)
        self._weights = np.sqrt(diagonal.mean() / diagonal.size) * self._size  # curvature times a typical weight
        self._rho, self._inverse = 0.0, np.empty((0, 0), np.float32)
        self._lock = threading.Lock()

    def aim(self, thresholds: Array) -> None:
        """Choose rho for typical thresholds (n_out,), one per row."""
        wanted = float(np.clip(TYPICAL * np.median(thresholds / self._weights), LEAST, MOST))
        if not 1.0 / KEPT <= wanted / max(self._rho, LEAST / KEPT**2) <= KEPT:
            self._rho, self._inverse = wanted, np.empty((0, 0), np.float32)

    def duals(self, rows: Indices, gradient: Array, thresholds: Array) -> Array:
        """Return the scaled duals (r, n_in) that the gradients of some rows suggest."""
        unit = self._root / (self._rho * self._size[rows, None])
        limit = thresholds * unit
        return np.asarray(np.clip(-gradient * unit, -limit, limit))

    def steps(self, rows: Indices, gradient: Array, W: Array, U: Array, thresholds: Array, n: int) -> None:
        """Take n steps with ``rows``: W and the duals U move; all arrays are (r, n_in)."""
        with self._lock:
            if self._inverse.size == 0:
                self._inverse = self._invert()
        alternating_steps(self._inverse, self._root, self._rho, gradient, W, U, thresholds, self._size[rows], n)

    def _invert(self) -> Singles:
        from scipy.linalg.lapack import spotrf, spotri  # noqa: PLC0415

        scaled = (self._gram * self._root * self._root[:, None]).astype(np.float32)
        np.fill_diagonal(scaled, scaled.diagonal() + self._rho)
        factor, failed = spotrf(scaled.T, lower=1, overwrite_a=1)
        if failed:
            msg = "rho is above what rounding can take from a Gram matrix"
            raise AssertionError(msg)
        lower = np.tril(spotri(factor, lower=1, overwrite_c=1)[0])
        return np.ascontiguousarray(lower + np.tril(lower, -1).T)
