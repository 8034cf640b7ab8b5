"""Targets that are points: the loss is a quadratic, so every row is a lasso on one shared Gram matrix.

One step in the Gram metric is then exact (method: forward-backward with one iteration), and the data are not needed
beyond their sums.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..certificate import penalized_row_gaps, row_sums
from ..gram_statistics import gram_statistics
from ..kernels.coordinate_descent import block_sweeps
from ..problem import LayerProblem
from ..threads import ordered_map
from .newton import RowMemory
from .rows import Limits, State, model_step, moved, scaled_thresholds, square

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]

NEAR = 0.9  # columns whose correlation is within this fraction of the threshold join the model
EXACTNESS = 0.1  # of the tolerance is what rows are solved to: searches over multipliers go straighter
CHUNKS, MIN_ROWS, MAX_ROWS = 8, 32, 64  # rows that are swept together
SWEEPS = 4  # of all live rows between two looks at their gaps

# Operations of sweeps and of a model step, those of a product at full speed counting 1
PRODUCT_OVERHEAD = 8  # a product with r rows costs as much as one with r + 8 at full speed
SWEEP_OVERHEAD = 450  # a coordinate costs as much as a product with m + 450 coordinates
MODEL_COST = 10.0
MODEL_OVERHEAD = 20.0


class QuadraticRows:
    """Penalised solves of all rows in Gram space.

    Rows with many weights are first swept together (`block_sweeps`); each is finished by steps to the minimiser of its
    own model (`lasso`), where sweeps have cost as much as these are predicted to.
    """

    def __init__(self, problem: LayerProblem, state: State, n_threads: int) -> None:
        self.problem = problem
        self.state = state
        self._n_threads = n_threads
        statistics, work = gram_statistics(problem, n_threads)
        self._statistics = statistics
        self._scale = 1.0 + problem.fidelity
        self._gram = self._scale * statistics.gram if problem.fidelity > 0 else statistics.gram
        self._structure = problem.structure
        state.work += work

    def solve(self, multiplier: float | Array, tolerances: Array, limits: Limits) -> None:
        """Bring the penalised gap of every row to its tolerance (n_out,), or stop at a limit.

        ``multiplier`` may be an array (n_out,), one per row. With 0 a row stops when its model promised a decrease
        below its tolerance.
        """
        multipliers = np.broadcast_to(np.asarray(multiplier, dtype=np.float64), tolerances.shape)

        def part(rows: slice) -> int:
            return self._solve_chunk(rows, multipliers[rows], EXACTNESS * tolerances[rows], limits)

        self.state.iterations += max(ordered_map(part, self._chunks(), self._n_threads, limits.cancelled.set))

    def _chunks(self) -> list[slice]:
        n = self.problem.n_out
        size = min(max(MIN_ROWS, -(-n // CHUNKS)), MAX_ROWS)
        return [slice(i, min(i + size, n)) for i in range(0, n, size)]

    def _solve_chunk(self, rows: slice, multipliers: Array, tolerances: Array, limits: Limits) -> int:
        state, statistics = self.state, self._statistics
        W = state.weight[rows]
        cross, energy = self._scale * statistics.cross[rows], self._scale * statistics.energy[rows]
        structure = self._structure.rows(rows)
        thresholds = scaled_thresholds(structure.factors, multipliers)
        penalized = bool(multipliers.all())
        live = np.arange(W.shape[0])
        memory = [RowMemory() for _ in live]
        swept = 0.0 if penalized else np.inf
        for iteration in range(limits.iterations + 1):
            C = W[live] @ self._gram - cross[live]
            loss = 0.5 * (np.einsum("ij,ij->i", W[live], C - cross[live]) + energy[live])
            sums = row_sums(W[live], C, np.maximum(loss, 0.0), structure.rows(live))
            state.put(rows.start + live, sums)
            if penalized:
                gaps = penalized_row_gaps(sums, multipliers[live])
                gains = [memory[i].see(gap) for i, gap in zip(live.tolist(), gaps.tolist(), strict=True)]
                keep = (gaps > tolerances[live]) & np.array(gains, np.bool_)
                live, C = live[keep], C[keep]
            if live.size == 0 or iteration == limits.iterations or limits.out_of_time():
                break
            swept += _sweeps_work(live.size, W.shape[1])
            if swept <= _models_work(W[live], C, thresholds[live]):
                W[live] = self._sweep(W[live], cross[live], thresholds[live])
                continue
            swept = np.inf
            moving = np.ones(live.size, np.bool_)
            for a, i in enumerate(live):
                columns = _near(W[i], C[a], thresholds[i])
                H = square(self._gram, columns)
                d, _ = model_step(H, C[a, columns], W[i, columns], thresholds[i, columns])
                W[i, columns] = moved(W[i, columns], d, 1.0)
                moving[a] = d.any() and (penalized or -(C[a, columns] @ d) > tolerances[i])
            live = live[moving]
        state.bias[rows] = statistics.target_mean[rows] - W @ statistics.input_mean
        return iteration

    def _sweep(self, W: Array, cross: Array, thresholds: Array) -> Array:
        """Return the weights (r, n_in) after some sweeps."""
        columns = np.array(W.T, order="C")
        block_sweeps(self._gram, np.array(cross.T, order="C"), columns, np.array(thresholds.T, order="C"), SWEEPS)
        return columns.T


def _near(w: Array, c: Array, thresholds: Array) -> Indices:
    """Return the columns of a row's model."""
    return np.flatnonzero((w != 0) | (np.abs(c) > NEAR * thresholds))


def _sweeps_work(n_rows: int, n_in: int) -> float:
    return 2.0 * SWEEPS * (n_rows + PRODUCT_OVERHEAD) * n_in * (n_in + SWEEP_OVERHEAD)


def _models_work(W: Array, C: Array, thresholds: Array) -> float:
    """Return the predicted work of a model step of every row."""
    size = np.count_nonzero((W != 0) | (np.abs(C) > thresholds), axis=1).astype(np.float64)
    return MODEL_COST * float((size**2 * (size / 3.0 + MODEL_OVERHEAD)).sum())
