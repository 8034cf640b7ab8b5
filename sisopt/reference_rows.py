"""The program of one output neuron, written for a general conic solver; compressed where that loses nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .problem import LayerProblem
from .sums import GramStatistics

Array = npt.NDArray[np.float64]

EXACT = 1e-9  # radii below this part of the empty layer's are rounding: such a budget asks for equality

_Factors = dict[bytes, tuple[Array, Array]]  # the last factorisation, which neurons with one pattern share


@dataclass(frozen=True)
class NeuronTarget:
    """One neuron on all samples: phi = 1/2 sum weights dist(z, [lo, hi])**2 + 1/2 sum pull (z - center)**2."""

    lo: Array
    hi: Array
    weights: Array
    center: Array
    pull: Array

    def loss(self, z: Array) -> float:
        """Return phi at pre-activations z (n_samples,)."""
        e = z - np.clip(z, self.lo, self.hi)
        return 0.5 * float(self.weights @ (e * e) + self.pull @ (z - self.center) ** 2)

    def best_bias(self, z: Array, anchor: float) -> float:
        """Return the b nearest to ``anchor`` among the minimisers of phi(z + b), a root of its slope."""
        used, pulled = self.weights > 0, self.pull > 0
        low = float(np.max((self.lo - z)[used], initial=-np.inf))
        high = float(np.min((self.hi - z)[used], initial=np.inf))
        if low <= high and not pulled.any():
            return min(max(anchor, low), high)

        def slope(b: float) -> float:
            y = z + b
            return float(self.weights @ (y - np.clip(y, self.lo, self.hi)) + self.pull @ (y - self.center))

        ends = np.concatenate([(self.lo - z)[used], (self.hi - z)[used], (self.center - z)[pulled]])
        ends = ends[np.isfinite(ends)]
        left, right = float(ends.min()), float(ends.max())
        if slope(left) >= 0.0 or slope(right) <= 0.0:  # one end is the root, up to rounding
            return left if slope(left) >= 0.0 else right
        from scipy.optimize import brentq  # noqa: PLC0415  slow to import, and seldom needed

        return float(brentq(slope, left, right, xtol=1e-16 * (right - left), rtol=4 * np.finfo(float).eps))


@dataclass(frozen=True)
class NeuronProgram:
    """The program of one neuron in u = (free weights, bias if any) and slacks e, with phi = (squares + constant) / 2.

    ``squares`` = |design u - aim|**2 + |e|**2,  e >= side u - high  and  e >= low - side u  where these are finite.
    """

    index: int
    thresholds: Array  # (n_free,)
    columns: npt.NDArray[np.intp]  # (n_free,): which weights are free
    design: Array  # (m, n_free + 1 or 0)
    aim: Array  # (m,)
    constant: float
    side: Array  # (k, n_free + 1 or 0)
    low: Array  # (k,)
    high: Array  # (k,)


def neuron_target(problem: LayerProblem, i: int) -> NeuronTarget:
    """Return the target of neuron i on all samples."""
    target = problem.row_target(slice(i, i + 1))
    pull = problem.fidelity * target.sample_weights
    center = target.center[0] if problem.fidelity > 0 else np.zeros(pull.shape)
    return NeuronTarget(target.lo[0], target.hi[0], target.weights[0], center, pull)


def refit_biases(problem: LayerProblem, weight: Array) -> tuple[Array, Array]:
    """Return the best bias and the loss phi of every neuron at ``weight``, each (n_out,)."""
    if problem.statistics is not None:
        s = problem.statistics
        squares = np.einsum("ij,ij->i", weight, weight @ s.gram - 2.0 * s.cross) + s.energy
        return s.target_mean - weight @ s.input_mean, 0.5 * (1.0 + problem.fidelity) * np.maximum(squares, 0.0)
    bias, loss = problem.dense_bias, np.empty(problem.n_out)
    X = np.asarray(problem.inputs, dtype=np.float64)
    for i in range(problem.n_out):
        target, z = neuron_target(problem, i), X @ weight[i]
        if problem.has_bias:
            bias[i] = target.best_bias(z, bias[i])
        loss[i] = target.loss(z + bias[i])
    return bias, loss


def neuron_programs(problem: LayerProblem, empty: Array, compress: bool) -> Iterator[NeuronProgram]:
    """Yield the program of every neuron that has something to decide: a free weight, and a loss at W = 0."""
    s, n_in = problem.statistics, problem.n_in
    factors: _Factors = {}
    if s is None:
        X = np.asarray(problem.inputs, dtype=np.float64)
        design = np.hstack([X, np.ones((problem.n_samples, 1))]) if problem.has_bias else X
    for i, thresholds in enumerate(problem.thresholds()):
        columns = np.flatnonzero(np.isfinite(thresholds))
        if columns.size == 0 or empty[i] <= EXACT**2 * empty.max():
            continue
        if s is None:
            free = design if columns.size == n_in else design[:, [*columns, *range(n_in, design.shape[1])]]
            parts = _data_parts(neuron_target(problem, i), free, columns.tobytes() if compress else None, factors)
        else:
            parts = _gram_parts(s, i, columns, 1.0 + problem.fidelity, factors)
        yield NeuronProgram(i, thresholds[columns], columns, *parts)


def _gram_parts(
    s: GramStatistics, i: int, columns: npt.NDArray[np.intp], factor: float, factors: _Factors
) -> tuple[Array, Array, float, Array, Array, Array]:
    """Return what `NeuronProgram` holds from ``design`` on, from the eigenvectors of the Gram matrix."""
    key = columns.tobytes()
    if key not in factors:
        values, vectors = np.linalg.eigh(factor * s.gram[np.ix_(columns, columns)])
        used = values > values[-1] * columns.size * np.finfo(float).eps
        factors.clear()
        factors[key] = vectors[:, used], np.sqrt(values[used])[:, None] * vectors[:, used].T
    V, root = factors[key]  # root' root = gram
    aim = (V.T @ (factor * s.cross[i, columns])) / np.sqrt(np.sum(root**2, axis=1))
    none = np.empty(0)
    return root, aim, max(factor * s.energy[i] - float(aim @ aim), 0.0), np.empty((0, columns.size)), none, none


def _data_parts(
    target: NeuronTarget, design: Array, columns: bytes | None, factors: _Factors
) -> tuple[Array, Array, float, Array, Array, Array]:
    """Return what `NeuronProgram` holds from ``design`` on; compressed where the name of the ``columns`` is given."""
    point = target.lo == target.hi
    scale = np.concatenate([np.sqrt(target.weights) * point, np.sqrt(target.pull)])
    used = np.flatnonzero(scale)  # two squares for every sample, at most
    square = scale[used, None] * design[used % point.size]
    aim = scale[used] * np.concatenate([np.where(point, target.lo, 0.0), target.center])[used]
    constant = 0.0
    if columns is not None and used.size > design.shape[1]:
        key = columns + scale.tobytes()
        if key not in factors:
            factors.clear()
            factors[key] = np.linalg.qr(square)
        Q, square = factors[key]
        reduced = Q.T @ aim
        constant = float(np.sum((aim - Q @ reduced) ** 2))
        aim = reduced
    sided = ~point & (target.weights > 0) & (np.isfinite(target.lo) | np.isfinite(target.hi))
    omega = np.sqrt(target.weights[sided])
    return square, aim, constant, omega[:, None] * design[sided], omega * target.lo[sided], omega * target.hi[sided]
