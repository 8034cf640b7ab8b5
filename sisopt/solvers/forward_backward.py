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

import numpy as np
import numpy.typing as npt

from .. import products
from ..certificate import penalized_row_gaps, row_sums
from ..gram_statistics import input_center, input_gram
from ..kernels.intervals import gradient_rows, line_search, refit_bias_rows
from ..problem import LayerProblem
from ..targets import RowTarget
from ..threads import ordered_map
from .newton import HessianKeeper, HessianSource, RowHessian, RowMemory
from .rows import Limits, State, model_step, moved, scaled_thresholds, square

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]

HESSIAN_BYTES = 256 << 20  # for the Hessians of all rows together
NEAR = 0.95  # columns with a correlation above this fraction of the threshold join a row's model
WIDE = 0.6  # and above this one its Hessian
RIDGE = 1e-9  # relative to the Gram matrix's diagonal: curvature for columns that no active sample sees
LINE_ACCURACY = 0.1
LEAST_SCALE = 0.01


@dataclass
class _Chunk:
    """The arrays of a chunk of rows while it is solved; (rows, n_samples) unless said."""

    target: RowTarget
    weight: Array  # (rows, n_in), a view of the state
    bias: Array  # (rows,), a view of the state
    z: Array
    scratch: Array  # the gradient, then the step in z
    active: npt.NDArray[np.bool_]
    loss: Array  # (rows,)
    memory: list[RowMemory]
    work: float = 0.0

    def row_weights(self, i: int) -> Array:
        weights: Array = self.target.weights[i if self.target.weights.shape[0] > 1 else 0]
        return weights


@dataclass
class DataRows:
    """Solves of all rows over the data; see the module's docstring."""

    problem: LayerProblem
    state: State
    n_threads: int
    _memory: list[list[RowMemory]] = field(init=False)

    def __post_init__(self) -> None:
        problem = self.problem
        assert problem.inputs is not None
        gram, work = input_gram(problem, self.n_threads)
        self.state.work += work
        uniform = problem.entry_weights is None
        v = np.ones(problem.n_samples) if problem.sample_weights is None else problem.sample_weights
        top = 1.0 if problem.entry_weights is None else float(problem.entry_weights.max())
        center = input_center(problem)
        weighted = not uniform or problem.sample_weights is not None
        self._source = HessianSource(problem.inputs, center, gram, v, uniform, weighted)
        self._metric = (top + problem.fidelity) * gram if top + problem.fidelity != 1.0 else gram
        self._ridge = RIDGE * top * np.diagonal(gram)
        self._structure = problem.structure
        chunks = problem.chunks()
        self._memory = [[RowMemory() for _ in range(rows.stop - rows.start)] for rows in chunks]
        self._keeper = HessianKeeper(self._source, HESSIAN_BYTES // len(chunks))

    def solve(self, multiplier: float | Array, tolerances: Array, limits: Limits) -> None:
        """Bring the penalised gap of every row to its tolerance (n_out,), or stop at a limit.

        ``multiplier`` may be an array (n_out,), one per row. With 0 (no penalty: a refit) a row stops when its model
        promises a decrease below its tolerance.
        """
        multipliers = np.broadcast_to(np.asarray(multiplier, dtype=np.float64), tolerances.shape)

        def part(item: tuple[slice, list[RowMemory]]) -> tuple[int, float]:
            return self._solve_chunk(*item, multipliers[item[0]], tolerances[item[0]], limits)

        iterations = 0
        jobs = zip(self.problem.chunks(), self._memory, strict=True)
        for count, work in ordered_map(part, jobs, self.n_threads, limits.cancelled.set):
            iterations = max(iterations, count)
            self.state.work += work
        self.state.iterations += iterations

    def _solve_chunk(
        self, rows: slice, memory: list[RowMemory], multipliers: Array, tolerances: Array, limits: Limits
    ) -> tuple[int, float]:
        structure = self._structure.rows(rows)
        thresholds = scaled_thresholds(structure.factors, multipliers)
        penalized = bool(multipliers.all())
        chunk = self._open(rows, memory)
        live = np.arange(chunk.bias.size)
        for row in memory:
            row.begin()
        for iteration in range(limits.iterations + 1):
            C = self._gradient(chunk, live)
            sums = row_sums(chunk.weight[live], C, chunk.loss[live], structure.rows(live))
            self.state.put(rows.start + live, sums)
            if penalized:
                gaps = penalized_row_gaps(sums, multipliers[live])
                gains = [memory[i].see(gap) for i, gap in zip(live.tolist(), gaps.tolist(), strict=True)]
                keep = (gaps > tolerances[live]) & np.array(gains, np.bool_)
                live, C = live[keep], C[keep]
            if live.size == 0 or iteration == limits.iterations or limits.out_of_time():
                break
            live = self._step(chunk, live, C, thresholds, tolerances, not penalized)
            if live.size == 0:
                break
        return iteration, chunk.work

    def _open(self, rows: slice, memory: list[RowMemory]) -> _Chunk:
        """Produce the target of a chunk and its pre-activations at the current weights."""
        problem, state = self.problem, self.state
        assert problem.inputs is not None
        target = problem.row_target(rows)
        W, b = state.weight[rows], state.bias[rows]
        z = np.zeros(target.lo.shape)
        chunk = _Chunk(target, W, b, z, np.empty_like(z), np.zeros(z.shape, np.bool_), np.zeros(b.size), memory)
        if W.any():
            products.forward(problem.inputs, W, z)
            chunk.work += 2.0 * z.size * problem.n_in
        z += b[:, None]
        return chunk

    def _gradient(self, chunk: _Chunk, live: Indices) -> Array:
        """Refit the bias of the live rows exactly and return (d phi / dZ)' X for them, (live, n_in)."""
        assert self.problem.inputs is not None
        if self.problem.has_bias:
            passes = refit_bias_rows(live, chunk.z, *chunk.target.sides, chunk.bias, chunk.bias.copy())
            chunk.work += 4.0 * passes * chunk.z.shape[1]
        gradient_rows(live, chunk.z, *chunk.target.sides, chunk.scratch, chunk.active, chunk.loss)
        chunk.work += 2.0 * live.size * chunk.z.shape[1] * self.problem.n_in
        every = live.size == chunk.bias.size
        gradient = chunk.scratch if every else chunk.scratch[live]
        return products.backward(gradient, self.problem.inputs, self._source.center if self.problem.has_bias else None)

    def _step(
        self, chunk: _Chunk, live: Indices, C: Array, thresholds: Array, tolerances: Array, unpenalized: bool
    ) -> Indices:
        """Move every live row along its model's direction; return the rows that moved."""
        assert self.problem.inputs is not None
        D, shift = np.zeros((live.size, self.problem.n_in)), np.zeros(live.size)
        models: list[tuple[Indices, Array]] = []
        moving = np.ones(live.size, np.bool_)
        for a, i in enumerate(live.tolist()):
            columns, d, shift[a] = self._direction(chunk, i, C[a], thresholds[i], tolerances[i], live.size)
            D[a, columns] = d
            models.append((columns, d))
            if unpenalized:
                moving[a] = -(C[a, columns] @ d) > tolerances[i]
        step = chunk.scratch[: live.size]
        products.forward(self.problem.inputs, D, step)
        step += shift[:, None]
        chunk.work += 2.0 * step.size * self.problem.n_in
        lo, hi, _, v, center, beta = chunk.target.sides
        for a in np.flatnonzero(moving).tolist():
            i, (columns, d) = int(live[a]), models[a]
            x = chunk.weight[i, columns]
            alpha, passes = line_search(
                chunk.z[i], step[a], lo[i], hi[i], chunk.row_weights(i), v, center[i if beta > 0 else 0], beta,
                x, d, thresholds[i, columns], LINE_ACCURACY,
            )  # fmt: skip
            chunk.work += 6.0 * passes * step.shape[1]
            moving[a] = alpha > 0
            row = chunk.memory[i]
            if alpha > 0 and not row.newton:
                row.scale = min(max(row.scale / alpha, LEAST_SCALE), 1.0)
            if alpha > 0:
                chunk.weight[i, columns] = moved(x, d, alpha)
                chunk.z[i] += alpha * step[a]
                chunk.bias[i] += alpha * shift[a]
        return live[moving]

    def _direction(
        self, chunk: _Chunk, i: int, c: Array, thresholds: Array, tolerance: float, n_live: int
    ) -> tuple[Indices, Array, float]:
        """Return the columns and the direction of row i's model, and the step of its bias."""
        row, w = chunk.memory[i], chunk.weight[i]
        columns = np.flatnonzero((w != 0) | (np.abs(c) > NEAR * thresholds))
        wide = np.flatnonzero((w != 0) | (np.abs(c) > WIDE * thresholds))
        if 2 * wide.size > w.size and self._keeper.fits_all(w.size, len(chunk.memory), chunk.z.shape[1]):
            wide = np.flatnonzero(np.isfinite(thresholds))
        hessian, work = self._keeper.get(
            chunk.memory, i, chunk.active[i], chunk.row_weights(i), columns, wide, tolerance, n_live
        )
        chunk.work += work
        row.newton = hessian is not None
        if hessian is None:
            H = square(self._metric, columns)
            H *= row.scale
            cross, total = np.zeros(columns.size), 1.0
        else:
            H, cross, total = self._reduced(hessian, columns)
        d, row.model_work = model_step(H, c[columns], w[columns], thresholds[columns])
        shift = 0.0
        if self.problem.has_bias:
            shift = -float(self._source.center[columns] @ d) - (float(cross @ d) / total if total > 0 else 0.0)
        return columns, d, shift

    def _reduced(self, hessian: RowHessian, columns: Indices) -> tuple[Array, Array, float]:
        """Return the curvature on ``columns``, fidelity and ridge added, the bias eliminated; its cross term, total."""
        beta, source = self.problem.fidelity, self._source
        place = np.searchsorted(hessian.columns, columns)
        H, cross, total = square(hessian.matrix, place), hessian.cross[place], hessian.total
        if beta > 0:
            H += beta * square(source.gram, columns)
            total += beta * float(source.sample_weights.sum())
        if self.problem.has_bias and total > 0:
            H -= cross[:, None] * (cross / total)
        ridge = self._ridge[columns]
        H[np.diag_indices(columns.size)] += ridge
        if not ridge.all():  # constant inputs: what their columns hold is rounding
            H[ridge == 0.0], H[:, ridge == 0.0] = 0.0, 0.0
        return H, cross, total
