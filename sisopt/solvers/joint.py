"""Forward-backward in the Gram metric where weights or targets tie neurons together, or weights form groups.

For any weights V, with E = d phi / d Z at V and C = E' X,

    lambda g(W) + phi(V) + <C, W - V> + 1/2 sum_i s_i |X (w_i - v_i)|**2,      s_i = 1,

lies above the objective. Its minimiser (block coordinate descent on the Gram matrix) gives a direction that descends,
and a line search on the convex objective takes it as far as it goes. Factors s_i < 1 follow the curvature that the last
step met in row i, as neurons with few samples outside of their intervals are flatter than the Gram matrix says.

A piece of the layer is solved at a time: a chunk of neurons, or all of them where groups span rows or the activation
couples outputs; such a piece takes one step length, otherwise every neuron takes its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from .. import products
from ..certificate import penalized_row_gaps, row_sums
from ..gram_statistics import input_center, input_gram
from ..losses import row_loss
from ..penalties import Structure
from ..problem import LayerProblem
from ..threads import ordered_map
from .group_model import GroupModel
from .newton import RowMemory
from .rows import Limits, State, model_step, scaled_thresholds, square

Array = npt.NDArray[np.float64]

NEAR = 0.95  # columns with a correlation above this fraction of the threshold join a row's model
MODEL_ACCURACY = 0.03  # optimality of a model step, relative to the violation that it starts from
LINE_ACCURACY = 0.1
MAX_LINE_STEPS = 30
MAX_EXTRAPOLATION = 32.0
LEAST_SCALE = 0.01
NEARLY = 2.0  # times the tolerance: from there on without extrapolation, which blurs the zeros


def pieces(problem: LayerProblem) -> list[slice]:
    """Return the parts of the layer that can be solved on their own."""
    return [slice(0, problem.n_out)] if problem.structure.couples_rows else problem.chunks()


@dataclass
class JointRows:
    """Solves of all rows over the data; see the module's docstring."""

    problem: LayerProblem
    state: State
    n_threads: int
    _models: dict[int, GroupModel] = field(default_factory=dict)

    def __post_init__(self) -> None:
        problem = self.problem
        gram, work = input_gram(problem, self.n_threads)
        self.state.work += work
        top = 1.0 if problem.entry_weights is None else float(problem.entry_weights.max())
        self._metric = (top + problem.fidelity) * gram if top + problem.fidelity != 1.0 else gram
        self._center = input_center(problem)
        self._pieces = pieces(problem)
        self._uniform = problem.activation.couples_outputs
        self._joint = self._uniform or problem.structure.couples_rows
        self._scale = np.ones(problem.n_out)

    def solve(self, multiplier: float | Array, tolerances: Array, limits: Limits) -> None:
        """Bring the penalised gap of every row to its tolerance (n_out,), or stop at a limit.

        Rows that are tied share theirs. With ``multiplier`` 0 (no penalty: a refit) a piece stops when its model
        promises a decrease below the sum of them.
        """
        multipliers = np.broadcast_to(np.asarray(multiplier, dtype=np.float64), tolerances.shape)

        def part(piece: slice) -> tuple[int, float]:
            return self._solve_piece(piece, multipliers[piece], tolerances[piece], limits)

        iterations = 0
        for count, work in ordered_map(part, self._pieces, self.n_threads, limits.cancelled.set):
            iterations = max(iterations, count)
            self.state.work += work
        self.state.iterations += iterations

    def _solve_piece(self, piece: slice, multipliers: Array, tolerances: Array, limits: Limits) -> tuple[int, float]:
        problem, state = self.problem, self.state
        structure, loss = problem.structure.rows(piece), row_loss(problem, piece)
        W, b, scale = state.weight[piece], state.bias[piece], self._scale[piece]
        z = self._forward(W) + b[:, None]
        work = 2.0 * z.size * problem.n_in
        out, phi, memory, ahead = np.empty_like(z), np.empty(b.size), RowMemory(), Momentum()
        penalized = bool(multipliers.all())
        for iteration in range(limits.iterations + 1):
            if problem.has_bias:
                work += loss.refit_bias(z, b, b.copy())
            loss.gradient(z, out, phi)
            C = self._backward(out)
            work += 2.0 * z.size * problem.n_in
            sums = row_sums(W, C, phi, structure, self._uniform)
            state.put(np.arange(piece.start, piece.stop), sums)
            if penalized:
                gaps = penalized_row_gaps(sums, multipliers)
                if self._joint:
                    gaps, wanted = gaps.sum(keepdims=True), tolerances.sum(keepdims=True)
                else:
                    wanted = tolerances
                if (gaps <= wanted).all() or not memory.see(float(gaps[gaps > wanted].sum())):
                    break
                near = bool((gaps <= NEARLY * wanted).all())
            if iteration == limits.iterations or limits.out_of_time():
                break
            moved, model_work = self._model(piece, structure, C, W, scale, multipliers)
            D = moved - W
            if not D.any() or (not penalized and -float(np.vdot(C, D)) <= tolerances.sum()):
                break
            step = self._forward(D)
            shift = -(D @ self._center) if problem.has_bias else np.zeros(b.size)
            step += shift[:, None]
            work += 2.0 * z.size * problem.n_in + model_work
            search = Search(loss, structure, multipliers, z, step, W, D, self._joint)
            alpha = search.run(np.einsum("ij,ij->i", C, D))
            work += 4.0 * search.passes * z.size
            if not alpha.any():
                break
            if not self._uniform:  # where outputs are tied the curvature of a row alone says little
                scale[:] = search.curvature_ratios(alpha, self._sample_norms(step))
            start = W.copy()
            W[:] = np.where(alpha[:, None] == 1.0, moved, W + alpha[:, None] * D)
            z += alpha[:, None] * step
            b += alpha * shift
            if penalized:
                ahead.extrapolate(start, W, z, b, stop=near)
        return iteration, work

    def _model(
        self, piece: slice, structure: Structure, C: Array, W: Array, scale: Array, multipliers: Array
    ) -> tuple[Array, float]:
        """Return the minimiser of the model, (r, n_in), and the work on it."""
        if structure.labels is not None and multipliers.all():
            if piece.start not in self._models:
                self._models[piece.start] = GroupModel(self._metric, structure)
            m = multipliers  # lambda_i g + phi_i has the minimiser of g + phi_i / lambda_i
            return self._models[piece.start].step(C / m[:, None], W, scale / m, 1.0, MODEL_ACCURACY)
        return row_models(self._metric, structure, C, W, scale, multipliers, self._inner_threads)

    @property
    def _inner_threads(self) -> int:
        return self.n_threads if len(self._pieces) == 1 else 1

    def _forward(self, rows: Array) -> Array:
        """Return rows times the inputs, (r, n_samples)."""
        X = self.problem.inputs
        assert X is not None
        out = np.empty((rows.shape[0], self.problem.n_samples))
        chunks = products.row_chunks(out.shape[0], out.shape[1], self.problem.n_in)
        for _ in ordered_map(lambda chunk: products.forward(X, rows[chunk], out[chunk]), chunks, self._inner_threads):
            pass
        return out

    def _backward(self, gradient: Array) -> Array:
        X, center = self.problem.inputs, self._center if self.problem.has_bias else None
        assert X is not None
        chunks = products.row_chunks(gradient.shape[0], gradient.shape[1], self.problem.n_in)
        parts = ordered_map(lambda chunk: products.backward(gradient[chunk], X, center), chunks, self._inner_threads)
        return np.concatenate(list(parts))

    def _sample_norms(self, step: Array) -> Array:
        """Return sum_k v_k step_k**2 of every row."""
        v = self.problem.sample_weights
        return np.asarray(np.einsum("ik,ik->i", step, step if v is None else step * v))


class Slopes(Protocol):
    """What a search needs of a loss."""

    def slopes(self, z: Array, step: Array, alpha: Array) -> Array:
        """Return d/d alpha of phi(z + alpha step) of every row, (r,), at alpha (r,)."""
        ...


def row_models(
    metric: Array, structure: Structure, C: Array, W: Array, scale: Array, multipliers: Array, n_threads: int
) -> tuple[Array, float]:
    """Return the minimiser of the model without groups, row by row, (r, n_in), and the work on it."""
    thresholds = scaled_thresholds(structure.factors, multipliers)
    moved = W.copy()

    def part(i: int) -> float:
        columns = np.flatnonzero((W[i] != 0) | (np.abs(C[i]) > NEAR * thresholds[i]))
        H = square(metric, columns)
        H *= scale[i]
        d, work = model_step(H, C[i, columns], W[i, columns], thresholds[i, columns])
        moved[i, columns] = np.where(d == -W[i, columns], 0.0, W[i, columns] + d)
        return work

    return moved, float(sum(ordered_map(part, range(W.shape[0]), n_threads)))


@dataclass
class Momentum:
    """Nesterov's extrapolation of the iterates, restarted where it points away from where the last step went."""

    t: float = 1.0
    last: tuple[Array, ...] | None = None

    def extrapolate(self, start: Array, *iterate: Array, stop: bool) -> None:
        """Move the iterate, whose weights come first, on along the way since the last one, in place.

        A step from the weights ``start`` led to it; ``stop`` makes a new beginning.
        """
        kept = tuple(part.copy() for part in iterate)
        if self.last is not None and not stop and np.vdot(start - iterate[0], iterate[0] - self.last[0]) <= 0.0:
            t = 0.5 * (1.0 + math.sqrt(1.0 + 4.0 * self.t**2))
            beta, self.t = (self.t - 1.0) / t, t
            for now, before in zip(iterate, self.last, strict=True):
                now += beta * (now - before)
        else:
            self.t = 1.0
        self.last = kept


@dataclass
class Search:
    """Search for the step lengths: roots of the slope of phi(z + alpha step) + lambda g(W + alpha D).

    One alpha for all rows where they are tied (``joint``), one per row otherwise. Slopes never decrease in alpha.
    """

    loss: Slopes
    structure: Structure
    multipliers: Array
    z: Array
    step: Array
    weight: Array
    direction: Array
    joint: bool
    passes: int = 0

    def run(self, start: Array) -> Array:
        """Return alpha of every row, (r,), 0 where the step does not descend; ``start`` is the slope of phi at 0."""
        self._first = start
        whole = self._sum(start + self._penalty_slopes(np.zeros(start.size))[1])
        alpha, self._last = np.ones(start.size), start
        low, high = np.zeros(start.size), np.full(start.size, np.inf)
        low_slope, high_slope = whole.copy(), np.full(start.size, np.inf)
        done = whole >= 0.0
        alpha[done] = 0.0
        accuracy = -LINE_ACCURACY * whole
        for _ in range(MAX_LINE_STEPS):
            smooth = self.loss.slopes(self.z, self.step, alpha)
            self.passes += 1
            self._last = np.where(done, self._last, smooth)
            left, right = (self._sum(smooth + part) for part in self._penalty_slopes(alpha))
            done |= (left <= accuracy) & (right >= -accuracy) | ((alpha >= MAX_EXTRAPOLATION) & (right < 0))
            if done.all():
                break
            rising = right < 0
            low, low_slope = np.where(rising & ~done, alpha, low), np.where(rising & ~done, right, low_slope)
            high, high_slope = np.where(~rising & ~done, alpha, high), np.where(~rising & ~done, left, high_slope)
            with np.errstate(invalid="ignore", divide="ignore"):
                inside = low + (high - low) * low_slope / (low_slope - high_slope)  # regula falsi
                width = high - low
                inside = np.clip(inside, low + 0.1 * width, high - 0.1 * width)
            alpha = np.where(done, alpha, np.where(np.isfinite(high), inside, np.minimum(3.0 * low, MAX_EXTRAPOLATION)))
        return alpha

    def curvature_ratios(self, alpha: Array, norms: Array) -> Array:
        """Return how curved phi was along the step, relative to the Gram matrix, in [LEAST_SCALE, 1]."""
        rise, whole = self._last - self._first, alpha * norms
        ratios = np.divide(rise, whole, out=np.ones_like(rise), where=whole > 0)
        return np.clip(ratios, LEAST_SCALE, 1.0)

    def _sum(self, slopes: Array) -> Array:
        return np.full(slopes.size, slopes.sum()) if self.joint else slopes

    def _penalty_slopes(self, alpha: Array) -> tuple[Array, Array]:
        """Return the left and the right derivative of lambda g(W + alpha D) row by row."""
        if not self.multipliers.all():
            return np.zeros(alpha.size), np.zeros(alpha.size)
        W = self.weight + alpha[:, None] * self.direction
        W[(alpha[:, None] == 1.0) & (self.direction == -self.weight)] = 0.0  # rounding may not keep a group alive
        left, right = self.structure.slopes(W, self.direction)
        return self.multipliers * left, self.multipliers * right
