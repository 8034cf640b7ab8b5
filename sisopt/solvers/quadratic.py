"""Targets that are points: the loss is a quadratic, so every row is a lasso on one shared Gram matrix.

One step in the Gram metric is then exact (method: forward-backward with one iteration), and the data are not needed
beyond their sums.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..certificate import penalized_row_gaps, row_sums
from ..gram_statistics import gram_statistics
from ..problem import LayerProblem
from ..threads import ordered_map
from .newton import RowMemory
from .rows import Limits, State, model_step, moved, scaled_thresholds, square

Array = npt.NDArray[np.float64]

NEAR = 0.9  # columns whose correlation is within this fraction of the threshold join the model

EXACTNESS = 1e-2  # in Gram space more digits than asked for cost little, and searches over multipliers go straighter


class QuadraticRows:
    """Penalised solves of all rows in Gram space."""

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

        self.state.iterations += max(ordered_map(part, self.problem.chunks(), self._n_threads, limits.cancelled.set))

    def _solve_chunk(self, rows: slice, multipliers: Array, tolerances: Array, limits: Limits) -> int:
        state, statistics = self.state, self._statistics
        W = state.weight[rows]
        structure = self._structure.rows(rows)
        thresholds = scaled_thresholds(structure.factors, multipliers)
        penalized = bool(multipliers.all())
        live = np.arange(W.shape[0])
        memory = [RowMemory() for _ in live]
        for iteration in range(limits.iterations + 1):
            cross = statistics.cross[rows][live]
            C = self._scale * (W[live] @ statistics.gram - cross)
            energy = self._scale * statistics.energy[rows][live]
            loss = 0.5 * (np.einsum("ij,ij->i", W[live], C - self._scale * cross) + energy)
            sums = row_sums(W[live], C, np.maximum(loss, 0.0), structure.rows(live))
            state.put(rows.start + live, sums)
            if penalized:
                gaps = penalized_row_gaps(sums, multipliers[live])
                gains = [memory[i].see(gap) for i, gap in zip(live.tolist(), gaps.tolist(), strict=True)]
                keep = (gaps > tolerances[live]) & np.array(gains, np.bool_)
                live, C = live[keep], C[keep]
            if live.size == 0 or iteration == limits.iterations or limits.out_of_time():
                break
            moving = np.ones(live.size, np.bool_)
            for a, i in enumerate(live):
                columns = np.flatnonzero((W[i] != 0) | (np.abs(C[a]) > NEAR * thresholds[i]))
                H = square(self._gram, columns)
                d, _ = model_step(H, C[a, columns], W[i, columns], thresholds[i, columns])
                W[i, columns] = moved(W[i, columns], d, 1.0)
                moving[a] = d.any() and (penalized or -(C[a, columns] @ d) > tolerances[i])
            live = live[moving]
        state.bias[rows] = statistics.target_mean[rows] - W @ statistics.input_mean
        return iteration
