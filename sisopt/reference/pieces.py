"""What one output neuron adds to a program, written for a general conic solver; compressed where that loses nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..problem import LayerProblem
from ..sums import GramStatistics
from .losses import CoupledSets, NeuronTarget, coupled_sets, neuron_target

Array = npt.NDArray[np.float64]

DEAD = 1e-9  # neurons whose empty loss has a radius below this part of the layer's need no weights: it is rounding
CONSTANT = 1e-13  # relative spread of an input below which it counts as constant

_Factors = dict[bytes, tuple[Array, Array]]  # the last factorisation, which neurons with one pattern share


@dataclass(frozen=True)
class Piece:
    """A neuron on one mini-batch, in its unknowns u and slacks e, with 2 phi = squares + constant.

    ``squares`` = |design u - aim|**2 + |e|**2,  e >= side u - high  and  e >= low - side u  where these are finite.
    For coupled outputs c, one number for every sample, adds -shift c to ``design u`` and -side_shift c to ``side u``.
    """

    design: Array  # (m, n_free + 1 or 0)
    aim: Array  # (m,)
    constant: float
    side: Array  # (k, n_free + 1 or 0)
    low: Array  # (k,)
    high: Array  # (k,)
    shift: Any = None  # sparse, (m, n_samples)
    side_shift: Any = None  # sparse, (k, n_samples)


@dataclass(frozen=True)
class NeuronProgram:
    """The unknowns u = (scales * free weights, bias at the mean input if any) of one neuron, and its pieces."""

    index: int
    columns: npt.NDArray[np.intp]  # (n_free,): which weights are free
    scales: Array  # (n_free,)
    pieces: tuple[Piece, ...]  # one for every mini-batch


@dataclass(frozen=True)
class Coordinates:
    """Inputs about their means, in units of their standard deviation: conic solvers want columns of one size."""

    design: Array  # (n_samples, n_in), the last column all ones where a bias is fitted
    means: Array  # (n_in,), zero without a bias
    scales: Array  # (n_in,)


def coordinates(problem: LayerProblem) -> Coordinates:
    """Return the scaled inputs of a problem; from sums, the scales alone."""
    s = problem.statistics
    if s is not None:
        spread = np.sqrt(np.maximum(np.diagonal(s.gram), 0.0) / s.total_weight)
        return Coordinates(np.empty((0, problem.n_in)), s.input_mean, np.where(spread > 0, spread, 1.0))
    X = np.asarray(problem.inputs, dtype=np.float64)
    v = problem.sample_weights if problem.sample_weights is not None and problem.total_weight > 0 else np.ones(len(X))
    v = v / v.sum()
    means = v @ X if problem.has_bias else np.zeros(problem.n_in)
    X = X - means
    spread = np.sqrt(v @ X**2)
    constant = spread <= CONSTANT * np.abs(means)
    scales = np.where(constant, 1.0, spread)
    X = np.where(constant, 0.0, X / scales)
    return Coordinates(np.hstack([X, np.ones((len(X), 1))]) if problem.has_bias else X, means, scales)


def neuron_programs(
    problem: LayerProblem, free: npt.NDArray[np.bool_], empty: Array | None, batches: Sequence[slice], compress: bool
) -> Iterator[NeuronProgram]:
    """Yield the program of every neuron that has something to decide.

    That is a free weight, or a bias that has to serve several mini-batches or all outputs, where the loss ``empty``
    (n_out,) at W = 0 is not 0; None leaves no neuron out.
    """
    inputs, s, n_in = coordinates(problem), problem.statistics, problem.n_in
    coupled = coupled_sets(problem) if problem.activation.couples_outputs else None
    factors: list[_Factors] = [{} for _ in batches]
    for i in range(problem.n_out):
        columns = np.flatnonzero(free[i])
        if columns.size == 0 and coupled is None and not (problem.has_bias and len(batches) > 1):
            continue
        if empty is not None and empty[i] <= DEAD**2 * empty.max():
            continue
        scales = inputs.scales[columns]
        if s is not None:
            piece = _gram_piece(s, i, columns, scales, 1.0 + problem.fidelity, factors[0])
            yield NeuronProgram(i, columns, scales, (piece,))
            continue
        design = inputs.design[:, [*columns, *range(n_in, inputs.design.shape[1])]]
        if coupled is not None:
            pieces = [_coupled_piece(coupled, i, design, batch) for batch in batches]
        else:
            target, name = neuron_target(problem, i), columns.tobytes() if compress else None
            pieces = [_interval_piece(target, design, batch, name, factors[j]) for j, batch in enumerate(batches)]
        yield NeuronProgram(i, columns, scales, tuple(pieces))


def _gram_piece(
    s: GramStatistics, i: int, columns: npt.NDArray[np.intp], scales: Array, factor: float, factors: _Factors
) -> Piece:
    """Return the piece of neuron i from the eigenvectors of the scaled Gram matrix."""
    key = columns.tobytes()
    if key not in factors:
        values, vectors = np.linalg.eigh(factor * s.gram[np.ix_(columns, columns)] / np.outer(scales, scales))
        used = values > values[-1] * columns.size * np.finfo(float).eps
        factors.clear()
        factors[key] = vectors[:, used], np.sqrt(values[used])[:, None] * vectors[:, used].T
    V, root = factors[key]  # root' root = gram
    aim = (V.T @ (factor * s.cross[i, columns] / scales)) / np.sqrt(np.sum(root**2, axis=1))
    none = np.empty(0)
    constant = max(factor * s.energy[i] - float(aim @ aim), 0.0)
    return Piece(root, aim, constant, np.empty((0, columns.size)), none, none)


def _interval_piece(target: NeuronTarget, design: Array, batch: slice, name: bytes | None, factors: _Factors) -> Piece:
    """Return the piece of a neuron on a batch; compressed where the name of its columns is given."""
    lo, hi, weights, pull = target.lo[batch], target.hi[batch], target.weights[batch], target.pull[batch]
    design = design[batch]
    point = lo == hi
    scale = np.concatenate([np.sqrt(weights) * point, np.sqrt(pull)])
    used = np.flatnonzero(scale)  # two squares for every sample, at most
    square = scale[used, None] * design[used % point.size]
    aim = scale[used] * np.concatenate([np.where(point, lo, 0.0), target.center[batch]])[used]
    constant = 0.0
    if name is not None and used.size > design.shape[1]:
        key = name + scale.tobytes()
        if key not in factors:
            factors.clear()
            factors[key] = np.linalg.qr(square)
        Q, square = factors[key]
        reduced = Q.T @ aim
        constant = float(np.sum((aim - Q @ reduced) ** 2))
        aim = reduced
    sided = ~point & (weights > 0) & (np.isfinite(lo) | np.isfinite(hi))
    omega = np.sqrt(weights[sided])
    return Piece(square, aim, constant, omega[:, None] * design[sided], omega * lo[sided], omega * hi[sided])


def _coupled_piece(sets: CoupledSets, i: int, design: Array, batch: slice) -> Piece:
    """Return the piece of a neuron whose output is coupled with others: exact on the support, from above off it."""
    from scipy import sparse  # noqa: PLC0415

    def scaled(weights: Array, at: Array, chosen: npt.NDArray[np.bool_]) -> tuple[Array, Array, Any]:
        rows = np.arange(batch.start, batch.stop)[(chosen & (weights > 0))[batch]]
        root = np.sqrt(weights[rows])
        return root[:, None] * design[rows], root * at[rows, i], (root, rows)

    def shift(root: Array, rows: npt.NDArray[np.intp]) -> Any:
        return sparse.csr_array((root, (np.arange(rows.size), rows)), shape=(rows.size, sets.weights.size))

    on = sets.support[:, i]
    square, aim, place = scaled(sets.weights, sets.anchor, on)
    side, high, side_place = scaled(sets.weights, sets.anchor, ~on)
    pulled, center, (none, rows) = scaled(sets.pull, sets.center, np.ones(on.shape, np.bool_))
    moved = sparse.vstack([shift(*place), shift(0.0 * none, rows)], format="csr")
    low = np.full(high.size, -np.inf)
    return Piece(
        np.vstack([square, pulled]), np.concatenate([aim, center]), 0.0, side, low, high, moved, shift(*side_place)
    )
