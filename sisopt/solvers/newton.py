"""The active-sample Hessian of one output neuron (row), kept and updated from step to step.

The loss of a row is piecewise quadratic; on the piece at z its Hessian is the Gram matrix of the samples that lie
outside their interval (the active ones). From step to step few samples change sides, so the matrix is updated by those
alone; where most samples are active it starts from the shared Gram matrix minus the inactive ones.
"""

from __future__ import annotations

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

    ``center`` (n_in,) is m above (zeros without a bias), ``gram`` (n_in, n_in) and ``gram_cross`` (n_in,) are the sums
    over all samples with ``sample_weights``; ``uniform`` tells whether the rows' weights are the sample weights,
    ``weighted`` whether any weight differs from 1.
    """

    inputs: npt.NDArray[Any]
    center: Array
    gram: Array
    gram_cross: Array
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
            matrix, cross = square(self.gram, columns), self.gram_cross[columns]
            total = float(self.sample_weights.sum())
            hessian = RowHessian(columns, np.ones(active.shape, np.bool_), matrix, cross, total)
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
        if not hessian.active.any():  # start clean, without what rounding left behind
            hessian.matrix[:], hessian.cross[:], hessian.total = 0.0, 0.0, 0.0
        return float(changed.size * hessian.columns.size * (hessian.columns.size + 1))

    def _gathered(self, columns: Indices, samples: Indices, weights: Array) -> Iterator[tuple[Array, Array]]:
        step = max(32, GATHER_BYTES // (8 * columns.size + 1))
        for start in range(0, samples.size, step):
            part = samples[start : start + step]
            X = np.empty((part.size, columns.size))
            gather(self.inputs, part, columns, self.center, X)
            yield X, weights[part]
