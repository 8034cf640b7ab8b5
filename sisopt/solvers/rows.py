"""What the solvers share: the state of all rows, the limits they work under, and the lasso step of one row."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..certificate import RowSums
from ..kernels.coordinate_descent import lasso, rescale, submatrix

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]

MODEL_ACCURACY = 0.1  # optimality of a row's model step, relative to the violation that it starts from
MAX_MODEL_ROUNDS = 100


@dataclass
class State:
    """The iterate and what was last measured of it, all in float64.

    ``weight`` (n_out, n_in), ``bias`` (n_out,); the sums of certificate.RowSums, each (n_out,); ``work`` is
    floating-point work over samples, ``iterations`` the steps that the slowest row took.
    """

    weight: Array
    bias: Array
    value: Array
    loss: Array
    slope: Array
    dual_norm: Array
    uniform: bool = False
    work: float = 0.0
    iterations: int = 0

    @classmethod
    def start(cls, weight: Array, bias: Array, sums: RowSums) -> State:
        """Return the state at given weights (n_out, n_in)."""
        value, loss, slope, dual_norm = (a.copy() for a in (sums.value, sums.loss, sums.slope, sums.dual_norm))
        return cls(weight, bias, value, loss, slope, dual_norm, sums.uniform)

    def sums(self) -> RowSums:
        """Return a copy of the sums of all rows."""
        return RowSums(self.value.copy(), self.loss.copy(), self.slope.copy(), self.dual_norm.copy(), self.uniform)

    def put(self, rows: Indices, sums: RowSums) -> None:
        """Store the sums of some rows."""
        self.value[rows], self.loss[rows] = sums.value, sums.loss
        self.slope[rows], self.dual_norm[rows] = sums.slope, sums.dual_norm


@dataclass
class Limits:
    """When to stop regardless: iterations left, a deadline, or an order to cancel."""

    iterations: int
    deadline: float = np.inf
    cancelled: threading.Event = field(default_factory=threading.Event)

    def out_of_time(self) -> bool:
        """Return whether no further step may start."""
        return self.cancelled.is_set() or time.monotonic() >= self.deadline


def model_step(curvature: Array, gradient: Array, start: Array, thresholds: Array) -> tuple[Array, float]:
    """Return the direction of one row's lasso model, and the work spent on it.

    The model is gradient'd + 1/2 d'Hd + sum_j thresholds_j |start_j + d_j|; arrays are (m,), H = ``curvature`` (m, m)
    is scaled in place.
    """
    diagonal = np.diagonal(curvature)
    unit = np.where(diagonal > 0, 1.0 / np.sqrt(np.where(diagonal > 0, diagonal, 1.0)), 1.0)
    g, t, x = gradient * unit, thresholds * unit, start / unit  # coordinates in which violations compare
    violation = np.where(start != 0, np.abs(g + np.sign(start) * t), np.maximum(np.abs(g) - t, 0.0)).max(initial=0.0)
    rescale(curvature, unit)
    work = lasso(curvature, g, x, t, MODEL_ACCURACY * violation, MAX_MODEL_ROUNDS)
    return np.where(x == 0.0, -start, x * unit - start), work


def square(matrix: Array, place: Indices) -> Array:
    """Return matrix[place][:, place], (m, m)."""
    out = np.empty((place.size, place.size))
    submatrix(matrix, place, out)
    return out


def moved(start: Array, direction: Array, alpha: float) -> Array:
    """Return start + alpha * direction, with exact zeros where a full step reaches zero."""
    if alpha == 1.0:
        return np.where(direction == -start, 0.0, start + direction)
    return start + alpha * direction


def scaled_thresholds(factors: Array, multipliers: Array) -> Array:
    """Return multipliers (r,) times factors (r, n_in); an infinite factor (a weight that a mask forbids) stays so."""
    with np.errstate(invalid="ignore"):
        scaled = multipliers[:, None] * factors
    return scaled if multipliers.all() else np.where(np.isinf(factors), np.inf, scaled)
