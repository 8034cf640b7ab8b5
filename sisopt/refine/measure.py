"""How good a layer is, in one product with the inputs: its best bias, its radius and the error of its outputs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import products
from ..evaluation import evaluate, output_error
from ..kernels.intervals import gradient_rows, refit_bias_rows
from ..problem import LayerProblem
from ..threads import ordered_map

Array = npt.NDArray[np.float64]

FLOAT64 = np.dtype(np.float64)


@dataclass(frozen=True, eq=False)
class Measured:
    """Weights as they are handed out, in the layer's dtype, and what they do on a problem's samples.

    ``losses`` are phi of every neuron, ``output_error`` is ||R(Z) - Y||_F / ||Y||_F; at the rounded weights and bias.
    """

    weight: npt.NDArray[Any]  # (n_out, n_in)
    bias: npt.NDArray[Any] | None  # (n_out,)
    losses: Array  # (n_out,)
    output_error: float

    @property
    def radius(self) -> float:
        """sqrt(2 phi)."""
        return math.sqrt(2.0 * float(self.losses.sum()))

    @property
    def sparsity(self) -> float:
        """Fraction of zeros."""
        return 1.0 - int(np.count_nonzero(self.weight)) / self.weight.size


def measure(problem: LayerProblem, weight: Array, n_threads: int, precision: np.dtype[Any] = FLOAT64) -> Measured:
    """Round weights (n_out, n_in) to the layer's dtype, give them their best bias, and measure them."""
    dtype = problem.weight.dtype
    rounded = weight.astype(dtype)
    W = rounded.astype(np.float64)
    if problem.activation.couples_outputs:
        at = evaluate(problem, W, n_threads)
        b = at.bias.astype(dtype) if problem.has_bias else None
        return Measured(rounded, b, at.rounded_loss, output_error(problem, rounded, b, n_threads))
    bias, losses, R = problem.dense_bias, np.empty(problem.n_out), problem.activation
    assert problem.inputs is not None
    X = problem.inputs

    def part(rows: slice) -> tuple[float, float]:
        target = problem.row_target(rows, precision.type)
        z = np.zeros(target.lo.shape, precision)
        if W[rows].any():
            products.forward(X, W[rows], z)
        b = bias[rows]  # a view
        z += b[:, None].astype(precision)
        every = np.arange(b.size)
        if problem.has_bias:
            refit_bias_rows(every, z, *target.sides, b, b.copy())
            off = b.astype(dtype).astype(np.float64) - b
            z += off[:, None].astype(precision)
            b += off
        gradient_rows(every, z, *target.sides, np.empty_like(z), np.empty(z.shape, np.bool_), losses[rows])
        if problem.shift is not None:
            z += problem.shift.T[rows]
        dense, difference, reference = problem.dense_rows(rows), 0.0, 0.0
        for piece in problem.pieces(z.shape):
            outputs, goal = R.forward(z[piece]), R.forward(dense[piece])
            outputs -= goal
            difference += float(np.vdot(outputs, outputs))
            reference += float(np.vdot(goal, goal))
        return difference, reference

    parts = np.array(list(ordered_map(part, problem.chunks(), n_threads)))
    difference, reference = parts.sum(axis=0).tolist()
    error = math.sqrt(difference / reference) if reference > 0.0 else (0.0 if difference == 0.0 else math.inf)
    return Measured(rounded, bias.astype(dtype) if problem.has_bias else None, losses, error)
