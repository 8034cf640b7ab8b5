"""The active-sample Hessian of one output neuron (row), kept and updated from step to step.

The loss of a row is piecewise quadratic; on the piece at z its Hessian is the Gram matrix of the samples that lie
outside their interval (the active ones). From step to step few samples change sides, so the matrix is updated by those
alone; where most samples are active it starts from the shared Gram matrix minus the inactive ones. A float32 solver
takes part of the active samples where they are many more than the columns: a line search follows every step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..kernels.coordinate_descent import gather
from .metric import Metric

Array = npt.NDArray[np.float64]
Floats = npt.NDArray[Any]
Indices = npt.NDArray[np.intp]
Flags = npt.NDArray[np.bool_]

GATHER_BYTES = 1 << 20
NEWTON_STEPS = 4.0  # steps that Newton's method is expected to need, in the prediction of costs
HESSIAN_COST = 2.0  # an operation of building a Hessian against one of a product
GEMM_OVERHEAD = 16.0  # a product with r rows costs as much as one with r + 16 at full speed
MODEL_COST = {4: 8.0, 8: 4.0}  # an operation of the lasso kernel against one of a product, by the latter's item size
EMPTY = 1e-13  # of the total weight: active samples that weigh less are none
GAIN, MAX_IDLE = 0.9, 30  # so many steps without bringing the gap down by a tenth: rounding has the last word
FIRST_RATE = 0.3  # contraction of the gap in one step, before any was seen
FASTEST, SLOWEST = 0.05, 0.99  # contractions of the gap in one step that predictions believe
PER_COLUMN, LEAST_ACTIVE = 16, 2048  # active samples behind a thinned Hessian
ORDER_SEED = 20_210_718


@dataclass
class RowHessian:
    """``sum_k w_k a_k (x_k - m)(x_k - m)' / share`` on some columns, a_k marking the active samples of the row.

    ``matrix`` (m, m) is that sum, ``cross`` (m,) = sum_k w_k a_k (x_k - m), ``total`` = sum_k w_k a_k, ``active``
    (n_samples,) is a, for the ``share`` of the samples that are looked at; m is the centre of the inputs, ``whole`` the
    sum of w.
    """

    columns: Indices
    active: Flags
    matrix: Floats
    cross: Array
    total: float
    whole: float
    share: float

    @property
    def nbytes(self) -> int:
        """Memory that the row holds."""
        return self.matrix.nbytes + self.active.nbytes + self.columns.nbytes + self.cross.nbytes

    def covers(self, columns: Indices) -> bool:
        """Return whether all ``columns`` (sorted) are among this Hessian's."""
        place = np.searchsorted(self.columns, columns)
        return bool((place < self.columns.size).all() and (self.columns[place] == columns).all())


@dataclass(frozen=True)
class HessianSource:
    """Builds and updates row Hessians from the inputs, in the precision of the metric.

    ``uniform`` tells whether the rows' weights are the sample weights, ``weighted`` whether any weight differs from 1.
    """

    inputs: Floats
    metric: Metric
    uniform: bool
    weighted: bool
    order: Floats | None = field(init=False)  # (n_samples,) in [0, 1): who is looked at first

    def __post_init__(self) -> None:
        n = self.inputs.shape[0]
        thins = self.dtype == np.float32 and n > 2 * LEAST_ACTIVE
        order = np.random.default_rng(ORDER_SEED).random(n, np.float32) if thins else None
        object.__setattr__(self, "order", order)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Precision of the matrices."""
        return self.metric.gram.dtype

    def nbytes(self, n_columns: int) -> int:
        """Return what a Hessian on so many columns will hold."""
        return int(n_columns * (self.dtype.itemsize * n_columns + 16) + self.inputs.shape[0])

    def share(self, n_columns: int, n_active: int) -> float:
        """Return which share of the samples a Hessian needs to see."""
        wanted = max(PER_COLUMN * n_columns, LEAST_ACTIVE)
        return 1.0 if self.order is None or n_active <= 2 * wanted else wanted / n_active

    def work(self, n_columns: int, n_active: int) -> float:
        """Return the floating-point work of building a Hessian, a symmetric product."""
        n, share = self.inputs.shape[0], self.share(n_columns, n_active)
        from_gram = self.uniform and self.metric.exact and share == 1.0
        return float((min(n_active, n - n_active) if from_gram else share * n_active) * n_columns * (n_columns + 1))

    def build(self, columns: Indices, active: Flags, weights: Floats) -> tuple[RowHessian, float]:
        """Return the Hessian on ``columns`` and the work over samples."""
        m, n_active = columns.size, int(np.count_nonzero(active))
        share, whole = self.share(m, n_active), float(weights.sum(dtype=np.float64))
        if self.uniform and self.metric.exact and share == 1.0 and 2 * n_active > active.size:
            matrix, total, start = self.metric.gram[np.ix_(columns, columns)], whole, np.ones(active.shape, np.bool_)
        else:
            matrix, total, start = np.zeros((m, m), self.dtype), 0.0, np.zeros(active.shape, np.bool_)
        hessian = RowHessian(columns, start, matrix, np.zeros(m), total, whole, share)
        return hessian, self.update(hessian, active, weights)

    def update(self, hessian: RowHessian, active: Flags, weights: Floats) -> float:
        """Add the samples that became active, subtract those that left; return the work over samples."""
        if hessian.share < 1.0:
            assert self.order is not None
            active = active & (self.order < hessian.share)
        changed = np.flatnonzero(active != hessian.active)
        entered = active[changed]
        for samples, sign in ((changed[entered], 1.0), (changed[~entered], -1.0)):
            for X, w in self._gathered(hessian.columns, samples, weights):
                factor = sign / hessian.share
                hessian.cross += factor * (w @ X)
                hessian.total += factor * float(w.sum(dtype=np.float64))
                if self.weighted:
                    X *= np.sqrt(w)[:, None]
                piece = X.T @ X
                piece *= factor
                hessian.matrix += piece
        hessian.active[changed] = entered
        if hessian.total <= EMPTY * hessian.whole:  # start clean, without what rounding left behind
            hessian.matrix[:], hessian.cross[:], hessian.total = 0.0, 0.0, 0.0
        return float(changed.size * hessian.columns.size * (hessian.columns.size + 1))

    def _gathered(self, columns: Indices, samples: Indices, weights: Floats) -> Iterator[tuple[Floats, Floats]]:
        step = max(32, GATHER_BYTES // (8 * columns.size + 1))
        for start in range(0, samples.size, step):
            part = samples[start : start + step]
            X = np.empty((part.size, columns.size), self.dtype)
            gather(self.inputs, part, columns, self.metric.center, X)
            yield X, weights[part]


@dataclass
class RowMemory:
    """The best gap of one problem, and for how many steps it has not come down."""

    best: float = math.inf
    idle: int = 0

    def see(self, gap: float) -> bool:
        """Take note of the gap after a step; return whether steps still gain on it."""
        if gap <= GAIN * self.best:
            self.best, self.idle = gap, 0
        else:
            self.idle += 1
        return self.idle < MAX_IDLE


class RowsMemory:
    """What the rows of a chunk remember from step to step, arrays (rows,).

    As `RowMemory` for every row; besides the last gap and how fast gaps contract, the work of the last model, the scale
    of the Gram metric (less than 1 where part of the samples is active) and whether the last step was Newton's.
    """

    def __init__(self, n_rows: int) -> None:
        self.gap, self.best = np.full(n_rows, math.inf), np.full(n_rows, math.inf)
        self.rate = np.full(n_rows, FIRST_RATE)
        self.idle = np.zeros(n_rows, np.intp)
        self.model_work = np.zeros(n_rows)
        self.scale = np.ones(n_rows)
        self.newton = np.zeros(n_rows, np.bool_)

    def see(self, rows: Indices, gaps: Array) -> Flags:
        """Take note of the gaps of some rows after a step; return where steps still gain."""
        better = gaps <= GAIN * self.best[rows]
        self.best[rows] = np.where(better, gaps, self.best[rows])
        self.idle[rows] = np.where(better, 0, self.idle[rows] + 1)
        last = self.gap[rows]
        known = np.isfinite(last) & (last > 0)
        ratio = np.divide(gaps, last, out=np.ones(rows.size), where=known)
        rate = np.sqrt(self.rate[rows] * np.clip(ratio, FASTEST, SLOWEST))
        self.rate[rows] = np.where(known, rate, self.rate[rows])
        self.gap[rows] = gaps
        return self.idle[rows] < MAX_IDLE

    def begin(self) -> None:
        """Forget the gaps of another multiplier."""
        self.gap[:] = self.best[:] = math.inf
        self.idle[:] = 0


class HessianKeeper:
    """Decides which rows of a chunk get a Hessian, and keeps those within the chunk's ``nbytes``."""

    def __init__(self, source: HessianSource, nbytes: int, n_rows: int) -> None:
        self._source, self._nbytes = source, nbytes
        self._hessians: list[RowHessian | None] = [None] * n_rows
        self._used = np.zeros(n_rows, np.intp)  # when, in steps

    @property
    def fits_all(self) -> bool:
        """Whether all rows of the chunk may have Hessians on all columns."""
        return len(self._hessians) * self._source.nbytes(self._source.inputs.shape[1]) <= self._nbytes

    def holds(self, rows: Indices) -> Flags:
        """Return which rows have a Hessian."""
        return np.array([self._hessians[i] is not None for i in rows.tolist()], np.bool_)

    def pays(self, rows: Indices, memory: RowsMemory, wide: Indices, active: Indices, tolerances: Array) -> Flags:
        """Return which rows are predicted to need less work with a new Hessian than in the Gram metric, (rows,).

        ``wide`` (rows,) counts its columns, ``active`` the active samples.
        """
        build = np.array([self._source.work(m, a) for m, a in zip(wide.tolist(), active.tolist(), strict=True)])
        product = 4.0 * self._source.inputs.size * (1.0 + GEMM_OVERHEAD / rows.size)
        step = product + MODEL_COST[self._source.dtype.itemsize] * memory.model_work[rows]
        with np.errstate(divide="ignore"):
            to_go = np.log(memory.gap[rows]) - np.log(tolerances)
        more = np.maximum(to_go, math.log(2.0)) / -np.log(memory.rate[rows])
        return np.asarray(HESSIAN_COST * build + NEWTON_STEPS * step <= more * step)

    def get(
        self, i: int, active: Flags, weights: Floats, columns: Indices, wide: Indices, n_live: int, *, renew: bool
    ) -> tuple[RowHessian | None, float]:
        """Return row i's Hessian, up to date on (at least) ``columns``, and the work over samples that it took.

        None where there is no room for a new one, or it would have to be new but is not to be. That is made on the
        ``wide`` columns, so that it serves the next steps and multipliers too.
        """
        hessian = self._hessians[i]
        self._used[i] = 1 + self._used.max()
        if hessian is not None and hessian.covers(columns) and not self._outgrown(hessian, active):
            return hessian, self._source.update(hessian, active, weights)
        if not renew:
            return None, 0.0
        if hessian is not None:
            wide = np.union1d(wide, hessian.columns)
        if not self._room(i, self._source.nbytes(wide.size), n_live):
            return None, 0.0
        self._hessians[i], work = self._source.build(wide, active, weights)
        return self._hessians[i], work

    def _outgrown(self, hessian: RowHessian, active: Flags) -> bool:
        """Return whether a thinned Hessian sees too few of the samples that are active by now."""
        if hessian.share == 1.0:
            return False
        return self._source.share(hessian.columns.size, int(np.count_nonzero(active))) > 2.0 * hessian.share

    def _room(self, i: int, needed: int, n_live: int) -> bool:
        """Make room for a row's Hessian by dropping those not used for longest.

        Those in use by other live rows stay: rebuilding them every step would cost more than the row can win.
        """
        held = [(int(self._used[a]), a, h.nbytes) for a, h in enumerate(self._hessians) if h is not None]
        free = self._nbytes - sum(nbytes for _, _, nbytes in held)
        for used, a, nbytes in sorted(held):
            if free >= needed:
                break
            if a == i or used < self._used[i] - n_live:
                free += nbytes
                self._hessians[a] = None
        return free >= needed
