"""The pre-activations that Douglas-Rachford splitting moves, a chunk of output neurons each, on either kind of target.

`sisopt.kernels.splitting` says what is done to them; arrays are (r, n_samples), shrinkages and the sums of squared
residuals ``squares`` (r, batches), factors of rows (r,).
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from .. import products
from ..kernels.splitting import advance, reflect, scale_dual, squared_distances
from ..targets import CoupledTarget

Array = npt.NDArray[np.float64]


class Part(Protocol):
    """Rows of the point t that are moved together."""

    rows: slice
    t: Array  # (r, n_samples)

    def measure(self, squares: Array) -> None:
        """Write the weighted sums of squared residuals of t."""
        ...

    def reflect(self, shrinkage: Array, out: Array) -> None:
        """Write 2 p - t."""
        ...

    def advance(self, shrinkage: Array, q: Array, alpha: float, squares: Array) -> None:
        """Add alpha (q - p) to t."""
        ...

    def scale_dual(self, shrinkage: Array, alpha: Array, squares: Array) -> None:
        """Scale t - p by alpha, row by row."""
        ...


class IntervalPart:
    """Rows of targets that act entry by entry."""

    def __init__(self, rows: slice, t: Array, lo: Array, hi: Array, v: Array, batches: tuple[slice, ...]) -> None:
        ends = np.array([0, *(batch.stop for batch in batches)], dtype=np.int64)
        self.rows, self.t, self._lo, self._hi, self._v, self._ends = rows, t, lo, hi, v, ends

    def measure(self, squares: Array) -> None:
        """See `Part`."""
        squared_distances(self.t, self._lo, self._hi, self._v, self._ends, squares)

    def reflect(self, shrinkage: Array, out: Array) -> None:
        """See `Part`."""
        reflect(self.t, self._lo, self._hi, self._ends, shrinkage, out)

    def advance(self, shrinkage: Array, q: Array, alpha: float, squares: Array) -> None:
        """See `Part`."""
        advance(self.t, self._lo, self._hi, self._v, self._ends, shrinkage, q, alpha, squares)

    def scale_dual(self, shrinkage: Array, alpha: Array, squares: Array) -> None:
        """See `Part`."""
        scale_dual(self.t, self._lo, self._hi, self._v, self._ends, shrinkage, alpha, squares)


class CoupledPart:
    """All rows, whose residuals are taken sample by sample; groups are batches."""

    def __init__(self, rows: slice, t: Array, target: CoupledTarget, v: Array, batches: tuple[slice, ...]) -> None:
        self.rows, self.t, self._target, self._v, self._batches = rows, t, target, v, batches

    def _blocks(self) -> list[tuple[int, slice]]:
        """Return blocks of samples, each inside the batch whose number comes first."""
        blocks = []
        for j, batch in enumerate(self._batches):
            for block in products.sample_blocks(batch.stop - batch.start, self.t.shape[0]):
                blocks.append((j, slice(batch.start + block.start, batch.start + block.stop)))
        return blocks

    def _residual(self, block: slice) -> Array:
        """Return e of a block of samples, (n_out, block)."""
        return self._target[block].residual(np.ascontiguousarray(self.t[:, block].T)).T

    def measure(self, squares: Array) -> None:
        """See `Part`."""
        squares[:] = 0.0
        for j, block in self._blocks():
            e = self._residual(block)
            squares[:, j] += (e * e) @ self._v[block]

    def reflect(self, shrinkage: Array, out: Array) -> None:
        """See `Part`."""
        for j, block in self._blocks():
            out[:, block] = self.t[:, block] - 2.0 * shrinkage[:, j, None] * self._residual(block)

    def advance(self, shrinkage: Array, q: Array, alpha: float, squares: Array) -> None:
        """See `Part`."""
        for j, block in self._blocks():
            p = self.t[:, block] - shrinkage[:, j, None] * self._residual(block)
            self.t[:, block] += alpha * (q[:, block] - p)
        self.measure(squares)

    def scale_dual(self, shrinkage: Array, alpha: Array, squares: Array) -> None:
        """See `Part`."""
        for j, block in self._blocks():
            self.t[:, block] += ((alpha - 1.0)[:, None] * shrinkage[:, j, None]) * self._residual(block)
        self.measure(squares)
