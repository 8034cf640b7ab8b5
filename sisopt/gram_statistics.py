"""Sufficient statistics: where every target is a point, the loss is a quadratic and the data are needed only once."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from . import products
from .activations import get_activation
from .problem import LayerProblem
from .sums import GramStatistics
from .threads import ordered_map

Array = npt.NDArray[np.float64]

WIDE = 2  # chunks of rows are enough where all that is done to them are products
CONSTANT = 1e-13  # relative spread of an input below which it counts as constant
CANCELLATION = 32.0  # times what comes of them may the terms of a dense pre-activation be: a digit or two are lost then


def is_quadratic(problem: LayerProblem) -> bool:
    """Return whether all targets are points with one weight per sample: phi is then a quadratic in (W, b)."""
    if problem.statistics is not None:
        return True
    if problem.entry_weights is not None or problem.activation.couples_outputs:
        return False
    if _is_identity(problem):
        return True
    if "quadratic" not in problem._cache:
        problem._cache["quadratic"] = all(
            np.array_equal(target.lo, target.hi) for target in map(problem.row_target, problem.chunks())
        )
    return bool(problem._cache["quadratic"])


def _is_identity(problem: LayerProblem) -> bool:
    """Return whether targets are the dense pre-activations, less the shift."""
    return problem.tolerance == 0.0 and problem.activation == get_activation("identity")


def _points(problem: LayerProblem, rows: slice) -> Array:
    """Return the targets of a chunk of output neurons of a quadratic problem, (rows, n_samples), in a new array.

    As `LayerProblem.row_target` makes them, which looks at every entry.
    """
    if not _is_identity(problem):
        return problem.row_target(rows).lo
    z = problem.dense_rows(rows)
    return z.copy() if problem.shift is None else z - problem.shift.T[rows]


def input_center(problem: LayerProblem) -> Array:
    """Return the mean of every input, about which Gram matrices are taken; zeros where no bias is fitted."""
    if not problem.has_bias:
        return np.zeros(problem.n_in)
    if "center" not in problem._cache:
        assert problem.inputs is not None
        problem._cache["center"] = products.column_means(problem.inputs, problem.sample_weights)
    return problem._cache["center"]  # type: ignore[no-any-return]


def forget_constants(gram: npt.NDArray[Any], center: Array, total_weight: float, spread: float) -> None:
    """Zero what a centred Gram matrix holds of inputs that are constant up to rounding: the bias does what they can do.

    ``spread`` is their standard deviation over their mean up to which they count as such.
    """
    constant = constant_inputs(np.diagonal(gram), center, total_weight, spread)
    gram[constant], gram[:, constant] = 0.0, 0.0


def constant_inputs(
    squares: npt.NDArray[Any], center: Array, total_weight: float, spread: float
) -> npt.NDArray[np.bool_]:
    """Return which inputs are constant up to rounding, (n_in,); ``squares`` are those of their centred norms."""
    constant: npt.NDArray[np.bool_] = squares <= total_weight * (spread * np.abs(center)) ** 2
    return constant


def input_gram(problem: LayerProblem, n_threads: int) -> tuple[Array, float]:
    """Return the (centred, weighted) Gram matrix of the inputs and the work of forming it, 0 where it was cached."""
    if "gram" in problem._cache:
        return problem._cache["gram"], 0.0
    assert problem.inputs is not None
    center = input_center(problem) if problem.has_bias else None
    gram = products.gram(problem.inputs, center, problem.sample_weights, n_threads)
    if center is not None:
        forget_constants(gram, center, problem.total_weight, CONSTANT)
    problem._cache["gram"] = gram
    return problem._cache["gram"], 2.0 * problem.n_samples * problem.n_in**2


def column_norms(problem: LayerProblem, n_threads: int) -> Array:
    """Return how far every input reaches, sqrt(sum_k v_k (x_kj - m_j)**2), shape (n_in,)."""
    statistics = problem.statistics
    gram = statistics.gram if statistics is not None else input_gram(problem, n_threads)[0]
    return np.sqrt(np.maximum(np.diagonal(gram), 0.0))


def gram_statistics(problem: LayerProblem, n_threads: int) -> tuple[GramStatistics, float]:
    """Return the statistics of a quadratic problem and the work over samples of computing them."""
    if problem.statistics is not None:
        return problem.statistics, 0.0
    if "statistics" in problem._cache:
        return problem._cache["statistics"], 0.0
    gram, work = input_gram(problem, n_threads)
    center = input_center(problem)
    assert problem.inputs is not None
    dense = _dense_statistics(problem, gram, center)
    if dense is not None:
        problem._cache["statistics"] = dense
        return dense, work + 2.0 * problem.n_in**2 * problem.n_out
    cross = np.empty((problem.n_out, problem.n_in))
    energy, mean = np.empty(problem.n_out), np.zeros(problem.n_out)
    total = problem.total_weight

    def part(rows: slice) -> None:
        assert problem.inputs is not None
        z, v = _points(problem, rows), problem.sample_weights
        if problem.has_bias:
            mean[rows] = (z.sum(axis=1) if v is None else z @ v) / total
            z -= mean[rows, None]
        weighted = z if v is None else v * z
        energy[rows] = np.einsum("ik,ik->i", weighted, z)
        cross[rows] = products.backward(weighted, problem.inputs, center)

    for _ in ordered_map(part, problem.chunks(WIDE), n_threads):
        pass
    statistics = GramStatistics(gram, cross, energy, center, mean, total)
    problem._cache["statistics"] = statistics
    return statistics, work + 2.0 * problem.n_samples * problem.n_in * problem.n_out


def _dense_statistics(problem: LayerProblem, gram: Array, center: Array) -> GramStatistics | None:
    """Return the statistics of targets that are the dense layer's own, from its weights and the Gram matrix.

    None where targets are others', or where the terms of a dense pre-activation cancel: that would cost digits.
    """
    if not (_is_identity(problem) and problem.own_targets and problem.shift is None):
        return None
    W = problem.weight.astype(np.float64)
    cross = W @ gram
    energy = np.einsum("ij,ij->i", cross, W)
    reach = np.abs(W) @ np.sqrt(np.diagonal(gram))
    if not (reach <= CANCELLATION * np.sqrt(np.maximum(energy, 0.0))).all():
        return None
    mean = W @ center + problem.dense_bias if problem.has_bias else np.zeros(problem.n_out)
    return GramStatistics(gram, cross, energy, center, mean, problem.total_weight)
