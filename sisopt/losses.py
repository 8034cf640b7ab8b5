"""The loss phi of some output neurons on all samples: best bias, gradient, slopes along a step, parts by mini-batch.

Arrays of pre-activations are (r, n_samples). `IntervalLoss` serves targets that act entry by entry, on any rows;
`CoupledLoss` those that couple the outputs of a sample (softmax, sparsemax), on all rows at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from . import products
from .kernels.intervals import gradient_rows, refit_bias_rows, slope_rows
from .problem import LayerProblem
from .targets import CoupledTarget, RowTarget

Array = npt.NDArray[np.float64]


class Loss(Protocol):
    """phi of r rows."""

    def refit_bias(self, z: Array, bias: Array, anchor: Array) -> float:
        """Move z (r, n_samples) and ``bias`` (r,) to the best bias, nearest to ``anchor``; return the work."""
        ...

    def gradient(self, z: Array, out: Array, loss: Array) -> None:
        """Write d phi / d z to ``out`` (r, n_samples) and phi of every row to ``loss`` (r,)."""
        ...

    def slopes(self, z: Array, step: Array, alpha: Array) -> Array:
        """Return d/d alpha of phi(z + alpha step) of every row, (r,), at alpha (r,)."""
        ...

    def parts(self, z: Array, batches: Sequence[slice]) -> Array:
        """Return phi of every row on every mini-batch, (r, batches)."""
        ...


@dataclass(frozen=True, eq=False)
class IntervalLoss:
    """phi = 1/2 sum_k w_k e_k**2 + beta/2 sum_k v_k (z_k - c_k)**2, e_k the distance from an interval."""

    target: RowTarget

    def refit_bias(self, z: Array, bias: Array, anchor: Array) -> float:
        """See `Loss`."""
        passes = refit_bias_rows(np.arange(bias.size), z, *self.target.sides, bias, anchor)
        return float(4.0 * passes * z.shape[1])

    def gradient(self, z: Array, out: Array, loss: Array) -> None:
        """See `Loss`."""
        active = np.empty(z.shape, np.bool_)
        gradient_rows(np.arange(loss.size), z, *self.target.sides, out, active, loss)

    def slopes(self, z: Array, step: Array, alpha: Array) -> Array:
        """See `Loss`."""
        out = np.empty(z.shape[0])
        slope_rows(z, step, alpha, *self.target.sides, out)
        return out

    def parts(self, z: Array, batches: Sequence[slice]) -> Array:
        """See `Loss`."""
        t = self.target
        out = np.empty((z.shape[0], len(batches)))
        for j, batch in enumerate(batches):
            y = z[:, batch]
            e = y - np.clip(y, t.lo[:, batch], t.hi[:, batch])
            out[:, j] = 0.5 * np.einsum("ik,ik,ik->i", np.broadcast_to(t.weights[:, batch], e.shape), e, e)
            if t.fidelity > 0:
                off = y - t.center[:, batch]
                out[:, j] += 0.5 * t.fidelity * np.einsum("k,ik,ik->i", t.sample_weights[batch], off, off)
        return out


@dataclass(frozen=True, eq=False)
class CoupledLoss:
    """phi = 1/2 sum_k v_k (dist(z_k, S_k)**2 + beta |z_k - c_k|**2), S_k a set of all outputs of sample k."""

    target: CoupledTarget
    sample_weights: Array  # (n_samples,)
    center: Array | None  # c, (n_samples, n_out): the dense pre-activations less the shift, where beta > 0
    fidelity: float

    def refit_bias(self, z: Array, bias: Array, anchor: Array) -> float:
        """See `Loss`."""
        step = self.target.best_bias(z.T, self.sample_weights, anchor - bias, self.center, self.fidelity)
        z += step[:, None]
        bias += step
        return 8.0 * z.size

    def gradient(self, z: Array, out: Array, loss: Array) -> None:
        """See `Loss`."""
        loss[:] = 0.0
        for block in products.sample_blocks(z.shape[1], z.shape[0]):
            slope, squares = self._block(z, block)
            loss += 0.5 * (self.sample_weights[block] @ squares)
            out[:, block] = (self.sample_weights[block, None] * slope).T

    def _block(self, z: Array, block: slice) -> tuple[Array, Array]:
        """Return e + beta (z - c) and e**2 + beta (z - c)**2, (block, n_out), before the sample weights."""
        y = np.ascontiguousarray(z[:, block].T)
        e = self.target[block].residual(y)
        if self.center is None:
            return e, e * e
        off = y - self.center[block]
        return e + self.fidelity * off, e * e + self.fidelity * off * off

    def slopes(self, z: Array, step: Array, alpha: Array) -> Array:
        """See `Loss`."""
        out, loss = np.empty_like(z), np.empty(z.shape[0])
        self.gradient(z + alpha[:, None] * step, out, loss)
        return np.asarray(np.einsum("ik,ik->i", out, step))

    def parts(self, z: Array, batches: Sequence[slice]) -> Array:
        """See `Loss`."""
        out = np.empty((z.shape[0], len(batches)))
        for j, batch in enumerate(batches):
            out[:, j] = 0.5 * (self.sample_weights[batch] @ self._block(z, batch)[1])
        return out


def row_loss(problem: LayerProblem, rows: slice) -> Loss:
    """Return the loss of a chunk of output neurons: of all of them where the activation couples outputs."""
    if not problem.activation.couples_outputs:
        return IntervalLoss(problem.row_target(rows))
    v = np.ones(problem.n_samples) if problem.sample_weights is None else problem.sample_weights
    center = None
    if problem.fidelity > 0:
        assert problem.preactivations is not None
        center = problem.preactivations - (0.0 if problem.shift is None else problem.shift)
    return CoupledLoss(problem.coupled_target(), v, center, problem.fidelity)
