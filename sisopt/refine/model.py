"""The layer's loss as refinements see it: its gradient over the data, and a quadratic above it in the Gram metric.

Weights are in units of outputs here, u_ij = w_ij s_j with s_j = ||x_j - m_j|| the reach of input j, so that scaling an
input changes nothing; rare inputs reach a little further (see `metric`). With the Gram matrix G of such inputs and
L = top + beta (the largest entry weight and the fidelity)

    phi(U) <= phi(V) + <grad phi(V), U - V> + L/2 tr (U - V) G (U - V)'.

What refinements minimise is phi(U) / L + ridge/2 ||U - U0||**2 with U0 the dense weights: what the calibration samples
cannot tell stays as it was.
"""

from __future__ import annotations

from dataclasses import InitVar, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import products
from ..gram_statistics import gram_statistics, input_center, is_quadratic
from ..kernels.intervals import gradient_rows
from ..losses import row_loss
from ..problem import LayerProblem
from ..targets import RowTarget
from ..threads import ordered_map
from .metric import DenseMetric, Metric, is_wide, mean_squares, metric_of

Array = npt.NDArray[np.float64]
Floats = npt.NDArray[Any]

TARGET_BYTES = 512 << 20  # of targets that are kept from one gradient to the next
CHUNK_ROWS = 64  # output neurons whose gradients are made together, at most


@dataclass
class LossModel:
    """The loss of a layer in scaled weights; see the module's docstring.

    ``dtype`` is that of products and passes over samples. What came of the inputs is taken from ``like`` where it can.
    """

    problem: LayerProblem
    dtype: np.dtype[Any]
    n_threads: int
    like: InitVar[LossModel | None] = None  # of a problem with the same inputs and sample weights
    metric: Metric = field(init=False)  # of scaled inputs
    scale: Floats = field(init=False)  # s, (n_in,): 0 for an input that is constant
    dense: Floats = field(init=False)  # U0, (n_out, n_in)
    is_quadratic: bool = field(init=False)  # the model is the loss itself, and its gradient costs no pass over the data

    def __post_init__(self, like: LossModel | None) -> None:
        problem = self.problem
        self.is_quadratic = is_quadratic(problem) and not is_wide(problem)
        self._center = np.zeros(problem.n_in) if self.is_quadratic else input_center(problem)
        if like is not None and like.dtype == self.dtype and not (like.is_quadratic or self.is_quadratic):
            self.metric = like.metric
        elif self.is_quadratic:
            gram = gram_statistics(problem, self.n_threads)[0].gram
            self.metric = DenseMetric(gram, mean_squares(problem), self.dtype, self.n_threads)
        else:
            self.metric = metric_of(problem, self._center, self.dtype, self.n_threads)
        self.scale, self._inverse = self.metric.reach.astype(self.dtype), self.metric.inverse
        self.dense = self.scaled(problem.masked(problem.weight))
        top = 1.0 if problem.entry_weights is None else float(problem.entry_weights.max())
        self._curvature = max(top, np.finfo(float).tiny) + problem.fidelity
        self._offset = problem.dense_bias + problem.masked(problem.weight) @ self._center  # b + W m, (n_out,)
        self._chunks = self._cut()
        self._targets: list[RowTarget | None] = [None] * len(self._chunks)
        self._keeps = 2 * self.dtype.itemsize * problem.n_samples * problem.n_out <= TARGET_BYTES

    def _cut(self) -> list[slice]:
        """Return the chunks of output neurons whose gradients are made together."""
        problem = self.problem
        if problem.activation.couples_outputs:
            return [slice(0, problem.n_out)]
        size = min(CHUNK_ROWS, max(1, products.CHUNK_BYTES // (8 * problem.n_samples)))
        return [slice(i, min(i + size, problem.n_out)) for i in range(0, problem.n_out, size)]

    def scaled(self, weight: Array) -> Floats:
        """Return scaled weights of W, (n_out, n_in)."""
        return np.asarray((weight * self.scale).astype(self.dtype))

    def weights(self, scaled: Floats) -> Array:
        """Return W of scaled weights, (n_out, n_in), 0 for inputs that are constant."""
        return np.asarray(scaled * self._inverse)

    def bias(self, weight: Array) -> Array:
        """Return the bias (n_out,) that goes with W: that which the gradients so far have come to."""
        if self.is_quadratic:
            statistics = gram_statistics(self.problem, self.n_threads)[0]
            return statistics.target_mean - weight @ statistics.input_mean
        return self._offset - weight @ self._center

    def gradient(self, scaled: Floats) -> tuple[Floats, float]:
        """Return the gradient of phi / L at scaled weights, (n_out, n_in), and phi / L there.

        The bias takes a step of its own quadratic, whose curvature is that of all samples, with every call.
        """
        if self.is_quadratic:
            statistics, _ = gram_statistics(self.problem, self.n_threads)
            W = scaled * self._inverse
            product = W @ statistics.gram
            square = np.einsum("ij,ij->", W, product - 2.0 * statistics.cross) + statistics.energy.sum()
            return ((product - statistics.cross) * self._inverse).astype(self.dtype), 0.5 * max(float(square), 0.0)
        W = scaled * self._inverse
        gradient = np.empty(W.shape, self.dtype)
        part = self._coupled_part if self.problem.activation.couples_outputs else self._interval_part
        jobs = enumerate(self._chunks)
        loss = sum(ordered_map(lambda job: part(*job, W, gradient), jobs, self.n_threads))
        return gradient, loss / self._curvature

    def _interval_part(self, number: int, rows: slice, W: Array, gradient: Floats) -> float:
        problem, target = self.problem, self._targets[number]
        assert problem.inputs is not None
        if target is None:
            target = problem.row_target(rows, self.dtype.type)
            if self._keeps:
                self._targets[number] = target
        z = np.empty(target.lo.shape, self.dtype)
        products.forward(problem.inputs, W[rows], z)
        z += (self._offset[rows] - W[rows] @ self._center)[:, None].astype(self.dtype)
        slopes, active, loss = np.empty_like(z), np.empty(z.shape, np.bool_), np.empty(z.shape[0])
        gradient_rows(np.arange(loss.size), z, *target.sides, slopes, active, loss)
        self._put(rows, slopes, gradient)
        return float(loss.sum())

    def _coupled_part(self, number: int, rows: slice, W: Array, gradient: Floats) -> float:
        problem = self.problem
        assert problem.inputs is not None
        del number
        z = products.forward(problem.inputs, W, np.empty((problem.n_out, problem.n_samples)))
        z += (self._offset - W @ self._center)[:, None]
        slopes, loss = np.empty_like(z), np.empty(problem.n_out)
        row_loss(problem, rows).gradient(z, slopes, loss)
        self._put(rows, slopes, gradient)
        return float(loss.sum())

    def _put(self, rows: slice, slopes: Floats, gradient: Floats) -> None:
        problem = self.problem
        assert problem.inputs is not None
        C = products.backward(slopes, problem.inputs)
        if problem.has_bias:
            total = slopes.sum(axis=1, dtype=np.float64)
            C -= total[:, None] * self._center
            self._offset[rows] -= total / (self._curvature * problem.total_weight)
        gradient[rows] = C * (self._inverse / self._curvature)
