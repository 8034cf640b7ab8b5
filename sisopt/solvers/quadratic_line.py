"""Softmax and log-softmax, whose targets are lines: the loss is a quadratic of the weights, in Gram space.

With P = I - 11'/n_out, which takes the common shift of all outputs away, and G, Q, c the centred sums of inputs and
targets, the loss is 1/2 tr(P (W G W' - 2 Q W' + c) ), beta times the same without P added. It needs the data only once;
steps are those of `joint`: the lasso of every row on G lies above the loss, and all rows take one step length.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .. import products
from ..certificate import penalized_row_gaps, row_sums
from ..gram_statistics import input_center, input_gram
from ..kernels.coordinate_descent import block_sweeps
from ..problem import LayerProblem
from .joint import Momentum, Search
from .newton import RowMemory
from .rows import Limits, State, scaled_thresholds

Array = npt.NDArray[np.float64]

SWEEPS = 4  # over the model between two steps
NEARLY = 2.0  # times the tolerance: from there on without extrapolation, which blurs the zeros


@dataclass(frozen=True)
class _Slopes:
    """The slopes of a quadratic along a step, row by row: start + alpha rise."""

    start: Array
    rise: Array

    def slopes(self, z: Array, step: Array, alpha: Array) -> Array:
        """Return them at alpha (n_out,)."""
        return self.start + alpha * self.rise


class QuadraticLine:
    """Penalised solves in Gram space where targets are lines."""

    def __init__(self, problem: LayerProblem, state: State, n_threads: int) -> None:
        self.problem, self.state = problem, state
        self._gram, work = input_gram(problem, n_threads)
        self._center = input_center(problem)
        self._beta = problem.fidelity
        self._metric = (1.0 + self._beta) * self._gram if self._beta > 0 else self._gram
        X, Z = problem.inputs, problem.preactivations
        assert X is not None
        assert Z is not None
        v = np.ones(problem.n_samples) if problem.sample_weights is None else problem.sample_weights
        z = np.array((Z if problem.shift is None else Z - problem.shift).T, dtype=np.float64, order="C")
        self._mean = z @ v / problem.total_weight if problem.has_bias else np.zeros(problem.n_out)
        z -= self._mean[:, None]
        self._energy = (z * z) @ v
        self._energy_between = (_less_mean(z) ** 2) @ v
        z *= v
        self._cross = products.backward(z, X, self._center)
        state.work += work + 2.0 * z.size * problem.n_in

    def solve(self, multiplier: float | Array, tolerances: Array, limits: Limits) -> None:
        """Bring the penalised gap of the layer to the sum of the tolerances (n_out,), or stop at a limit.

        With ``multiplier`` 0 it stops when the model promises a decrease below that.
        """
        multipliers = np.broadcast_to(np.asarray(multiplier, dtype=np.float64), tolerances.shape)
        state, structure, tolerance = self.state, self.problem.structure, float(tolerances.sum())
        W, penalized = state.weight, bool(multipliers.all())
        thresholds = np.array(scaled_thresholds(structure.factors, multipliers).T, order="C")
        memory, ahead, near = RowMemory(), Momentum(), False
        for iteration in range(limits.iterations + 1):
            C, loss = self._gradient(W)
            sums = row_sums(W, C, loss, structure, uniform=True)
            state.put(np.arange(W.shape[0]), sums)
            if penalized:
                gap = float(penalized_row_gaps(sums, multipliers).sum())
                if gap <= tolerance or not memory.see(gap):
                    break
                near = gap <= NEARLY * tolerance
            if iteration == limits.iterations or limits.out_of_time():
                break
            moved = self._model(C, W, thresholds)
            D = moved - W
            if not D.any() or (not penalized and -float(np.vdot(C, D)) <= tolerance):
                break
            start = np.einsum("ij,ij->i", C, D)
            rise = np.einsum("ij,ij->i", self._curved(D), D)
            search = Search(_Slopes(start, rise), structure, multipliers, D, D, W, D, joint=True)
            alpha = search.run(start)
            if not alpha.any():
                break
            before = W.copy()
            W[:] = np.where(alpha[:, None] == 1.0, moved, W + alpha[:, None] * D)
            if penalized:
                ahead.extrapolate(before, W, stop=near)
        state.iterations += iteration
        state.bias[:] = self._mean - W @ self._center

    def _model(self, C: Array, W: Array, thresholds: Array) -> Array:
        """Return the weights after some sweeps over the lasso models of all rows; ``thresholds`` are (n_in, n_out)."""
        moved = np.array(W.T, order="C")
        block_sweeps(self._metric, np.array((W @ self._metric - C).T, order="C"), moved, thresholds, SWEEPS)
        return moved.T

    def _curved(self, D: Array) -> Array:
        """Return the Hessian times D, (n_out, n_in)."""
        product = D @ self._gram
        return _less_mean(product) + self._beta * product

    def _gradient(self, W: Array) -> tuple[Array, Array]:
        """Return d phi / d W (n_out, n_in) and phi of every row, (n_out,)."""
        off = W @ self._gram - self._cross
        between, V = _less_mean(off), _less_mean(W)
        squares = np.einsum("ij,ij->i", V, between - _less_mean(self._cross)) + self._energy_between
        loss = 0.5 * np.maximum(squares, 0.0)
        if self._beta > 0:
            squares = np.einsum("ij,ij->i", W, off - self._cross) + self._energy
            loss += 0.5 * self._beta * np.maximum(squares, 0.0)
        return between + self._beta * off, loss


def _less_mean(rows: Array) -> Array:
    return np.asarray(rows - rows.mean(axis=0))
