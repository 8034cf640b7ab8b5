"""Targets that are points: the loss is a quadratic, so every row is a lasso on one shared Gram matrix.

One step in the Gram metric is then exact (method: forward-backward with one iteration), and the data are not needed
beyond their sums.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..certificate import penalized_row_gaps, row_sums
from ..gram_statistics import gram_statistics
from ..kernels.coordinate_descent import block_sweeps, model_rows
from ..problem import LayerProblem
from ..threads import ordered_map
from .newton import RowsMemory
from .rows import MAX_MODEL_ROUNDS, MODEL_ACCURACY, Limits, State, moved, scaled_thresholds
from .shared_inverse import SharedInverse

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]

NEAR = 0.9  # columns whose correlation is within this fraction of the threshold join the model
EXACTNESS = 0.1  # of the tolerance is what rows are solved to: searches over multipliers go straighter
TELLING = 3e-3  # gap of a row, relative to its objective, from which on its radius and its zeros mean something
CHUNKS, MIN_ROWS, MAX_ROWS = 4, 32, 128  # rows that are moved together
SWEEPS, STEPS = 4, 8  # of all live rows between two looks at their gaps
MODELS = 8  # rows between two looks at the clock
WIDE = 16  # times as many inputs as outputs: an inverse would cost more than it saves

# Operations of sweeps and of a model step, those of a product at full speed counting 1
SINGLE = 0.5  # a product in float32
PRODUCT_OVERHEAD = 8  # a product with r rows costs as much as one with r + 8 at full speed
SWEEP_OVERHEAD = 450  # a coordinate costs as much as a product with m + 450 coordinates
STEP_OVERHEAD = 60
MODEL_COST = 3.0
MODEL_OVERHEAD = 20.0


class QuadraticRows:
    """Penalised solves of all rows in Gram space.

    Rows with many weights are first moved together, by `SharedInverse` or, where inputs are many more than rows, by
    `block_sweeps`; each is finished by steps to the minimiser of its own model (`model_rows`), where that has cost as
    much as these are predicted to.
    """

    def __init__(self, problem: LayerProblem, state: State, n_threads: int) -> None:
        self.problem = problem
        self.state = state
        self._n_threads = n_threads
        statistics, work = gram_statistics(problem, n_threads)
        self._statistics = statistics
        self._scale = 1.0 + problem.fidelity
        gram = np.ascontiguousarray(statistics.gram)
        self._gram = self._scale * gram if problem.fidelity > 0 else gram
        self._ones = np.ones(MODELS)
        self._structure = problem.structure
        factors = self._structure.factors
        self._factor = float(np.median(factors[np.isfinite(factors)])) if np.isfinite(factors).any() else 1.0
        pays = problem.n_in <= WIDE * problem.n_out and bool(np.diagonal(gram).any())
        self._shared = SharedInverse(self._gram, self._scale * statistics.energy) if pays else None
        state.work += work

    def solve(self, multiplier: float | Array, tolerances: Array, limits: Limits) -> None:
        """Bring the penalised gap of every row to its tolerance (n_out,), or stop at a limit.

        ``multiplier`` may be an array (n_out,), one per row. With 0 a row stops when its model promised a decrease
        below its tolerance.
        """
        multipliers = np.broadcast_to(np.asarray(multiplier, dtype=np.float64), tolerances.shape)
        if self._shared is not None and multipliers.all():
            self._shared.aim(self._factor * multipliers)

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
        memory = RowsMemory(live.size)
        spent = 0.0 if penalized else np.inf
        duals: Array | None = None
        for iteration in range(limits.iterations + 1):
            C = W[live] @ self._gram - cross[live]
            loss = 0.5 * (np.einsum("ij,ij->i", W[live], C - cross[live]) + energy[live])
            sums = row_sums(W[live], C, np.maximum(loss, 0.0), structure.rows(live))
            state.put(rows.start + live, sums)
            if penalized:
                gaps = penalized_row_gaps(sums, multipliers[live])
                telling = TELLING * (multipliers[live] * sums.value + sums.loss)
                enough = np.where(tolerances[live] < np.inf, np.minimum(tolerances[live], telling), np.inf)
                keep = (gaps > enough) & memory.see(live, gaps)
                live, C = live[keep], C[keep]
                duals = None if duals is None else duals[keep]
            if live.size == 0 or iteration == limits.iterations or limits.out_of_time():
                break
            spent += self._work(live.size)
            if spent <= _models_work(W[live], C, thresholds[live]):
                if self._shared is None:
                    W[live] = self._sweep(W[live], cross[live], thresholds[live])
                    continue
                duals = self._shared.duals(rows.start + live, C, thresholds[live]) if duals is None else duals
                weight = W[live]
                self._shared.steps(rows.start + live, C, weight, duals, thresholds[live], STEPS)
                W[live] = weight
                continue
            spent = np.inf
            D = self._models(live, W, C, thresholds, limits)
            W[live] = moved(W[live], D, 1.0)
            going = D.any(axis=1)
            if not penalized:
                going &= -np.einsum("ij,ij->i", C, D) > tolerances[live]
            live = live[going]
        state.bias[rows] = statistics.target_mean[rows] - W @ statistics.input_mean
        return iteration

    def _models(self, live: Indices, W: Array, C: Array, thresholds: Array, limits: Limits) -> Array:
        """Return the directions of the live rows' models, (live, n_in); zero for those that no time is left for."""
        D, work = np.zeros(C.shape), np.empty(live.size)
        for start in range(0, live.size, MODELS):
            if limits.out_of_time():
                break
            part = slice(start, min(start + MODELS, live.size))
            model_rows(
                live[part], W, C[part], thresholds, self._gram, self._ones[: part.stop - start], NEAR, 0.0,
                MODEL_ACCURACY, MAX_MODEL_ROUNDS, D[part], work[part],
            )  # fmt: skip
        return D

    def _work(self, n_rows: int) -> float:
        """Return the work of moving some rows together, until the next look at their gaps."""
        m, rows = self.problem.n_in, n_rows + PRODUCT_OVERHEAD
        if self._shared is None:
            return 2.0 * SWEEPS * rows * m * (m + SWEEP_OVERHEAD)
        return 2.0 * STEPS * rows * m * (SINGLE * m + STEP_OVERHEAD)

    def _sweep(self, W: Array, cross: Array, thresholds: Array) -> Array:
        """Return the weights (r, n_in) after some sweeps."""
        columns = np.array(W.T, order="C")
        block_sweeps(self._gram, np.array(cross.T, order="C"), columns, np.array(thresholds.T, order="C"), SWEEPS)
        return columns.T


def _models_work(W: Array, C: Array, thresholds: Array) -> float:
    """Return the predicted work of a model step of every row."""
    size = np.count_nonzero((W != 0) | (np.abs(C) > thresholds), axis=1).astype(np.float64)
    return MODEL_COST * float((size**2 * (size / 3.0 + MODEL_OVERHEAD)).sum())
