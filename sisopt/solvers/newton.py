"""The active-sample Hessian of one output neuron (row), kept and updated from step to step.

The loss of a row is piecewise quadratic; on the piece at z its Hessian is the Gram matrix of the samples that lie
outside their interval (the active ones). From step to step few samples change sides, so the matrix is updated by those
alone; where most samples are active it starts from the shared Gram matrix minus the inactive ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..kernels.coordinate_descent import gather
from .rows import square

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]
Flags = npt.NDArray[np.bool_]

GATHER_BYTES = 1 << 20
NEWTON_STEPS = 4.0  # steps that Newton's method is expected to need, in the prediction of costs
GEMM_OVERHEAD = 16.0  # a product with r rows costs as much as one with r + 16 at full speed
MODEL_COST = 4.0  # an operation of the lasso kernel against one of a product
EMPTY = 1e-13  # of the total weight: active samples that weigh less are none
GAIN, MAX_IDLE = 0.9, 30  # so many steps without bringing the gap down by a tenth: rounding has the last word
FASTEST, SLOWEST = 0.05, 0.99  # contractions of the gap in one step that predictions believe


@dataclass
class RowHessian:
    """``sum_k w_k a_k (x_k - m)(x_k - m)'`` on some columns, where a_k marks the active samples of the row.

    ``matrix`` (m, m) is that sum, ``cross`` (m,) = sum_k w_k a_k (x_k - m), ``total`` = sum_k w_k a_k, ``active``
    (n_samples,) is a; m is the centre of the inputs.
    """

    columns: Indices
    active: Flags
    matrix: Array
    cross: Array
    total: float

    @property
    def nbytes(self) -> int:
        """Memory that the row holds."""
        return self.matrix.nbytes + self.active.nbytes + self.columns.nbytes + self.cross.nbytes

    @staticmethod
    def bytes_for(n_columns: int, n_samples: int) -> int:
        """Return what a Hessian on so many columns will hold."""
        return 8 * n_columns * (n_columns + 2) + n_samples

    def covers(self, columns: Indices) -> bool:
        """Return whether all ``columns`` (sorted) are among this Hessian's."""
        place = np.searchsorted(self.columns, columns)
        return bool((place < self.columns.size).all() and (self.columns[place] == columns).all())


@dataclass(frozen=True)
class HessianSource:
    """Builds and updates row Hessians from the inputs.

    ``center`` (n_in,) is m above, the weighted mean (zeros without a bias); ``gram`` (n_in, n_in) is the sum over all
    samples with ``sample_weights``; ``uniform`` tells whether the rows' weights are the sample weights, ``weighted``
    whether any weight differs from 1.
    """

    inputs: npt.NDArray[Any]
    center: Array
    gram: Array
    sample_weights: Array
    uniform: bool
    weighted: bool

    def work(self, n_columns: int, n_active: int) -> float:
        """Return the floating-point work of building a Hessian, a symmetric product."""
        n = self.sample_weights.size
        return float((min(n_active, n - n_active) if self.uniform else n_active) * n_columns * (n_columns + 1))

    def build(self, columns: Indices, active: Flags, weights: Array) -> tuple[RowHessian, float]:
        """Return the Hessian on ``columns`` and the work over samples."""
        m = columns.size
        if self.uniform and 2 * np.count_nonzero(active) > active.size:
            matrix, total = square(self.gram, columns), float(self.sample_weights.sum())
            hessian = RowHessian(columns, np.ones(active.shape, np.bool_), matrix, np.zeros(m), total)
        else:
            hessian = RowHessian(columns, np.zeros(active.shape, np.bool_), np.zeros((m, m)), np.zeros(m), 0.0)
        return hessian, self.update(hessian, active, weights)

    def update(self, hessian: RowHessian, active: Flags, weights: Array) -> float:
        """Add the samples that became active, subtract those that left; return the work over samples."""
        changed = np.flatnonzero(active != hessian.active)
        entered = active[changed]
        for samples, sign in ((changed[entered], 1.0), (changed[~entered], -1.0)):
            for X, w in self._gathered(hessian.columns, samples, weights):
                hessian.cross += sign * (w @ X)
                hessian.total += sign * float(w.sum())
                if self.weighted:
                    X *= np.sqrt(w)[:, None]
                hessian.matrix += sign * (X.T @ X)
        hessian.active[changed] = entered
        if hessian.total <= EMPTY * float(weights.sum()):  # start clean, without what rounding left behind
            hessian.matrix[:], hessian.cross[:], hessian.total = 0.0, 0.0, 0.0
        return float(changed.size * hessian.columns.size * (hessian.columns.size + 1))

    def _gathered(self, columns: Indices, samples: Indices, weights: Array) -> Iterator[tuple[Array, Array]]:
        step = max(32, GATHER_BYTES // (8 * columns.size + 1))
        for start in range(0, samples.size, step):
            part = samples[start : start + step]
            X = np.empty((part.size, columns.size))
            gather(self.inputs, part, columns, self.center, X)
            yield X, weights[part]


@dataclass
class RowMemory:
    """What a row remembers from step to step.

    Its Hessian and when that was used last, its gap and how fast gaps contract, the work of its last model, the scale
    of the Gram metric (less than 1 where part of the samples is active), whether the last step was Newton's, and for
    how many steps the best gap has not come down.
    """

    hessian: RowHessian | None = None
    used: int = 0
    gap: float = math.inf
    rate: float = 0.5
    model_work: float = 0.0
    scale: float = 1.0
    newton: bool = False
    best: float = math.inf
    idle: int = 0

    def see(self, gap: float) -> bool:
        """Take note of the gap after a step; return whether steps still gain on it."""
        if gap <= GAIN * self.best:
            self.best, self.idle = gap, 0
        else:
            self.idle += 1
        if math.isfinite(self.gap) and self.gap > 0:
            self.rate = math.sqrt(self.rate * min(max(gap / self.gap, FASTEST), SLOWEST))
        self.gap = gap
        return self.idle < MAX_IDLE

    def begin(self) -> None:
        """Forget the gaps of another multiplier."""
        self.gap = self.best = math.inf
        self.idle = 0


@dataclass(frozen=True)
class HessianKeeper:
    """Decides which rows of a chunk get a Hessian, and keeps those within the chunk's ``nbytes``."""

    source: HessianSource
    nbytes: int

    def fits_all(self, n_columns: int, n_rows: int, n_samples: int) -> bool:
        """Return whether all rows of a chunk may have Hessians on so many columns."""
        return n_rows * RowHessian.bytes_for(n_columns, n_samples) <= self.nbytes

    def get(
        self, memory: list[RowMemory], i: int, active: Flags, weights: Array, columns: Indices, wide: Indices,
        tolerance: float, n_live: int,
    ) -> tuple[RowHessian | None, float]:  # fmt: skip
        """Return row i's Hessian, up to date on (at least) ``columns``, and the work over samples that it took.

        None where more steps in the Gram metric are predicted to be cheaper, or where there is no room. A new one is
        made on the ``wide`` columns, so that it serves the next steps and multipliers too.
        """
        row = memory[i]
        row.used = 1 + max(other.used for other in memory)
        if row.hessian is not None and row.hessian.covers(columns):
            return row.hessian, self.source.update(row.hessian, active, weights)
        if row.hessian is not None:
            wide = np.union1d(wide, row.hessian.columns)
        build = self.source.work(wide.size, int(np.count_nonzero(active)))
        product = 4.0 * self.source.inputs.size * (1.0 + GEMM_OVERHEAD / n_live)
        step = product + MODEL_COST * row.model_work
        more = math.log(max(row.gap / tolerance, 2.0)) / -math.log(row.rate) if tolerance > 0 else math.inf
        if build + NEWTON_STEPS * step > more * step:
            return None, 0.0
        if not self._room(memory, row, RowHessian.bytes_for(wide.size, active.size), n_live):
            return None, 0.0
        row.hessian, work = self.source.build(wide, active, weights)
        return row.hessian, work

    def _room(self, memory: list[RowMemory], row: RowMemory, needed: int, n_live: int) -> bool:
        """Make room for a row's Hessian by dropping those not used for longest.

        Those in use by other live rows stay: rebuilding them every step would cost more than the row can win.
        """
        held = sorted((other for other in memory if other.hessian is not None), key=lambda other: other.used)
        free = self.nbytes - sum(other.hessian.nbytes for other in held if other.hessian is not None)
        for other in held:
            if free >= needed:
                break
            if other is row or other.used < row.used - n_live:
                assert other.hessian is not None
                free += other.hessian.nbytes
                other.hessian = None
        return free >= needed
