"""Forward-backward in a variable metric: the fast solver of the penalised program on interval targets.

phi is 1-smooth in the metric of the Gram matrix G of the inputs, so for any weights V

    lambda g(W) + phi(V) + <grad phi(V), W - V> + 1/2 ||X (W - V)'||**2

lies above the objective and splits into one lasso per output neuron (row). The direction to its minimiser descends, and
an exact line search on the piecewise quadratic objective takes it as far as it goes. A row may replace G by the Hessian
of its own active samples (Newton's method); each row takes whichever is predicted to need fewer operations. The best
bias is eliminated from the model and refitted exactly after each step. A row stops on its own certified gap.

References: P. L. Combettes, V. R. Wajs, "Signal recovery by proximal forward-backward splitting", 2005; J. D. Lee,
Y. Sun, M. A. Saunders, "Proximal Newton-type methods for minimizing composite functions", 2014.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import products
from ..certificate import penalized_row_gaps, row_sums
from ..kernels.coordinate_descent import model_rows
from ..kernels.intervals import gradient_rows, refit_bias_rows, search_rows
from ..problem import LayerProblem
from ..targets import RowTarget
from ..threads import ordered_map
from .metric import Metric, input_metric
from .newton import HessianKeeper, HessianSource, RowHessian, RowsMemory
from .rows import MAX_MODEL_ROUNDS, MODEL_ACCURACY, Limits, State, model_step, scaled_thresholds, square

Array = npt.NDArray[np.float64]
Floats = npt.NDArray[Any]
Flags = npt.NDArray[np.bool_]
Indices = npt.NDArray[np.intp]

INPUT_BYTES = 64 << 20  # inputs of another precision are copied up to this size
HESSIAN_BYTES = 256 << 20  # for the Hessians of all rows together
CHUNK_BYTES = 64 << 20  # for the chunks of all rows, where they are kept from one solve to the next
NEAR = 0.95  # columns with a correlation above this fraction of the threshold join a row's model
WIDE = 0.6  # and above this one its Hessian
LINE_ACCURACY = 0.1
LEAST_SCALE = 0.01


@dataclass
class _Chunk:
    """The arrays of a chunk of rows while it is solved; (rows, n_samples) unless said."""

    target: RowTarget
    weight: Array  # (rows, n_in), a view of the state
    bias: Array  # (rows,), a view of the state
    thresholds: Array  # (rows, n_in)
    z: Floats
    scratch: Floats  # the gradient, then the step in z
    active: Flags
    loss: Array  # (rows,)
    memory: RowsMemory
    keeper: HessianKeeper
    left: tuple[Array, Array] | None = None  # weight and bias at which the last solve left z
    work: float = 0.0

    def row_weights(self, i: int) -> Floats:
        weights: Floats = self.target.weights[i if self.target.weights.shape[0] > 1 else 0]
        return weights


@dataclass
class DataRows:
    """Solves of all rows over the data, in a precision; see the module's docstring."""

    problem: LayerProblem
    state: State
    n_threads: int
    dtype: np.dtype[Any] = np.dtype(np.float64)
    _metric: Metric = field(init=False)

    def __post_init__(self) -> None:
        problem = self.problem
        assert problem.inputs is not None
        self._metric, work = input_metric(problem, self.dtype, self.n_threads)
        self.state.work += work
        uniform = problem.entry_weights is None
        weighted = not uniform or problem.sample_weights is not None
        X = problem.inputs
        copied = X.dtype != self.dtype and self.dtype.itemsize * X.size <= INPUT_BYTES
        self._inputs = np.ascontiguousarray(X, self.dtype) if copied else X  # else products cast block by block
        self._source = HessianSource(self._inputs, self._metric, uniform, weighted)
        self._top = 1.0 if problem.entry_weights is None else float(problem.entry_weights.max())
        self._ridge = self._metric.ridge * self._top * np.diagonal(self._metric.gram).astype(np.float64)
        self._structure = problem.structure
        chunks = problem.chunks()
        sizes = [rows.stop - rows.start for rows in chunks]
        self._chunks: list[_Chunk | None] = [None] * len(chunks)
        entry = 4 * self.dtype.itemsize + 1
        self._keeps = entry * problem.n_samples * problem.n_out <= CHUNK_BYTES
        self._memory = [RowsMemory(n) for n in sizes]
        self._keepers = [HessianKeeper(self._source, HESSIAN_BYTES // len(chunks), n) for n in sizes]

    def solve(self, multiplier: float | Array, tolerances: Array, limits: Limits) -> None:
        """Bring the penalised gap of every row to its tolerance (n_out,), or stop at a limit.

        ``multiplier`` may be an array (n_out,), one per row. With 0 (no penalty: a refit) a row stops when its model
        promises a decrease below its tolerance.
        """
        multipliers = np.broadcast_to(np.asarray(multiplier, dtype=np.float64), tolerances.shape)

        def part(item: tuple[int, slice]) -> tuple[int, float]:
            number, rows = item
            chunk = self._open(number, rows, multipliers[rows])
            iterations = self._solve_chunk(chunk, rows, multipliers[rows], tolerances[rows], limits)
            if self._keeps:
                chunk.left = chunk.weight.copy(), chunk.bias.copy()
                self._chunks[number] = chunk
            return iterations, chunk.work

        iterations = 0
        for count, work in ordered_map(part, enumerate(self.problem.chunks()), self.n_threads, limits.cancelled.set):
            iterations = max(iterations, count)
            self.state.work += work
        self.state.iterations += iterations

    def _solve_chunk(self, chunk: _Chunk, rows: slice, multipliers: Array, tolerances: Array, limits: Limits) -> int:
        structure = self._structure.rows(rows)
        penalized = bool(multipliers.all())
        live = np.arange(chunk.bias.size)
        chunk.memory.begin()
        iteration = 0
        for iteration in range(limits.iterations + 1):
            C = self._gradient(chunk, live)
            sums = row_sums(chunk.weight[live], C, chunk.loss[live], structure.rows(live))
            self.state.put(rows.start + live, sums)
            if penalized:
                gaps = penalized_row_gaps(sums, multipliers[live])
                keep = (gaps > tolerances[live]) & chunk.memory.see(live, gaps)
                live, C = live[keep], C[keep]
            if live.size == 0 or iteration == limits.iterations or limits.out_of_time():
                break
            live = self._step(chunk, live, C, tolerances, not penalized)
            if live.size == 0:
                break
        return iteration

    def _open(self, number: int, rows: slice, multipliers: Array) -> _Chunk:
        """Return a chunk with its target and its pre-activations at the current weights."""
        problem, state, chunk = self.problem, self.state, self._chunks[number]
        W, b = state.weight[rows], state.bias[rows]
        if chunk is None:
            target = problem.row_target(rows, self.dtype.type)
            z = np.zeros(target.lo.shape, self.dtype)
            active, loss = np.zeros(z.shape, np.bool_), np.zeros(b.size)
            memory, keeper = self._memory[number], self._keepers[number]
            chunk = _Chunk(target, W, b, np.empty(W.shape), z, np.empty_like(z), active, loss, memory, keeper)
        chunk.thresholds, chunk.work = scaled_thresholds(self._structure.rows(rows).factors, multipliers), 0.0
        if chunk.left is None or not (np.array_equal(chunk.left[0], W) and np.array_equal(chunk.left[1], b)):
            chunk.z[:] = 0.0
            if W.any():
                products.forward(self._inputs, W, chunk.z)
                chunk.work += 2.0 * chunk.z.size * problem.n_in
            chunk.z += b[:, None].astype(self.dtype)
        return chunk

    def _gradient(self, chunk: _Chunk, live: Indices) -> Array:
        """Refit the bias of the live rows exactly and return (d phi / dZ)' X for them, (live, n_in)."""
        if self.problem.has_bias:
            passes = refit_bias_rows(live, chunk.z, *chunk.target.sides, chunk.bias, chunk.bias.copy())
            chunk.work += 4.0 * passes * chunk.z.shape[1]
        gradient_rows(live, chunk.z, *chunk.target.sides, chunk.scratch, chunk.active, chunk.loss)
        chunk.work += 2.0 * live.size * chunk.z.shape[1] * self.problem.n_in
        every = live.size == chunk.bias.size
        gradient = chunk.scratch if every else chunk.scratch[live]
        return products.backward(gradient, self._inputs, self._metric.center if self.problem.has_bias else None)

    def _step(self, chunk: _Chunk, live: Indices, C: Array, tolerances: Array, unpenalized: bool) -> Indices:
        """Move every live row along its model's direction; return the rows that moved."""
        D, shift = self._directions(chunk, live, C, tolerances)
        slopes = np.einsum("ij,ij->i", C, D)
        if unpenalized:
            going = -slopes > tolerances[live]
            live, D, shift, slopes = live[going], np.ascontiguousarray(D[going]), shift[going], slopes[going]
        step = chunk.scratch[: live.size]
        products.forward(self._inputs, D, step)
        step += shift[:, None].astype(self.dtype)
        chunk.work += 2.0 * step.size * self.problem.n_in
        alphas = np.empty(live.size)
        passes = search_rows(
            live, chunk.z, step, shift, *chunk.target.sides, slopes, chunk.weight, D, chunk.thresholds,
            LINE_ACCURACY, chunk.bias, alphas,
        )  # fmt: skip
        chunk.work += 6.0 * passes * step.shape[1]
        moved, memory = alphas > 0, chunk.memory
        in_gram = moved & ~memory.newton[live]
        rows = live[in_gram]
        memory.scale[rows] = np.clip(memory.scale[rows] / alphas[in_gram], LEAST_SCALE, 1.0)
        return live[moved]

    def _directions(self, chunk: _Chunk, live: Indices, C: Array, tolerances: Array) -> tuple[Array, Array]:
        """Return the directions of the live rows' models, (live, n_in), and the steps of their biases, (live,)."""
        memory, keeper, metric = chunk.memory, chunk.keeper, self._metric
        W, T = chunk.weight[live], chunk.thresholds[live]
        size, kept = np.abs(C), W != 0
        wide = kept | (size > WIDE * T)
        if keeper.fits_all:
            wide[2 * wide.sum(axis=1) > W.shape[1]] = True
            wide &= np.isfinite(T)
        active = np.count_nonzero(chunk.active[live], axis=1)
        renew = keeper.pays(live, memory, wide.sum(axis=1), active, tolerances[live])
        D, shift = np.zeros(W.shape), np.zeros(live.size)
        memory.newton[live] = False
        for a in np.flatnonzero(renew | keeper.holds(live)).tolist():
            i = int(live[a])
            columns = np.flatnonzero(kept[a] | (size[a] > NEAR * T[a]))
            hessian, work = keeper.get(
                i, chunk.active[i], chunk.row_weights(i), columns, np.flatnonzero(wide[a]), live.size, renew=renew[a]
            )
            chunk.work += work
            if hessian is not None:
                H, cross, total = self._reduced(hessian, columns)
                D[a, columns], memory.model_work[i] = model_step(H, C[a, columns], W[a, columns], T[a, columns])
                memory.newton[i] = True
                if self.problem.has_bias and total > 0:
                    shift[a] = -float(cross @ D[a, columns]) / total
        gram = np.flatnonzero(~memory.newton[live])
        d, model_work = np.empty((gram.size, W.shape[1])), np.empty(gram.size)
        scales = (self._top + self.problem.fidelity) * memory.scale[live[gram]]
        model_rows(
            live[gram], chunk.weight, np.ascontiguousarray(C[gram]), chunk.thresholds, metric.gram, scales, NEAR,
            metric.ridge if self.dtype == np.float32 else 0.0, MODEL_ACCURACY, MAX_MODEL_ROUNDS, d, model_work,
        )  # fmt: skip
        D[gram], memory.model_work[live[gram]] = d, model_work
        if self.problem.has_bias:
            shift -= D @ metric.center
        return D, shift

    def _reduced(self, hessian: RowHessian, columns: Indices) -> tuple[Array, Array, float]:
        """Return the curvature on ``columns``, fidelity and ridge added, the bias eliminated; its cross term, total."""
        beta = self.problem.fidelity
        place = np.searchsorted(hessian.columns, columns)
        H, cross, total = square(hessian.matrix, place), hessian.cross[place], hessian.total
        if beta > 0:
            H += beta * square(self._metric.gram, columns)
            total += beta * self.problem.total_weight
        if self.problem.has_bias and total > 0:
            H -= cross[:, None] * (cross / total)
        ridge = self._ridge[columns]
        H[np.diag_indices(columns.size)] += ridge
        if not ridge.all():  # constant inputs: what their columns hold is rounding
            H[ridge == 0.0], H[:, ridge == 0.0] = 0.0, 0.0
        return H, cross, total
