"""The problem that refinements solve in place of the layer's: with the fidelity and weights that were chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..activations import get_activation
from ..activations.base import Elementwise
from ..evaluation import ROUNDING, target_size
from ..gram_statistics import is_quadratic
from ..problem import LayerProblem
from ..solvers.precision import working_dtype
from ..sparse_layer import Settings
from .measure import measure

STEP = 1e-4  # of a central difference, in pre-activations over 1 + |z|
FLOOR = 0.1  # of a slope weight: no entry is given up
TOL = 1e-3  # of refinements: what float32 has to serve
STORED = 4.0  # times the spacing of numbers in the dtype of weight and bias
SMALL = 1 << 22  # multiplications of a product with the inputs up to which float64 costs nothing


def posed(problem: LayerProblem, settings: Settings) -> LayerProblem:
    """Return the problem under the settings, sharing the data."""
    changes: dict[str, Any] = {}
    if settings.fidelity != problem.fidelity:
        changes["fidelity"] = settings.fidelity
    if settings.tolerance > problem.tolerance:
        changes["tolerance"] = settings.tolerance
    if settings.slopes:
        changes["entry_weights"] = _slope_weights(problem)
    return problem.with_loss(**changes) if changes else problem


def has_slopes(problem: LayerProblem) -> bool:
    """Return whether weights by slope say anything: every target is a point, and the activation bends."""
    smooth = isinstance(problem.activation, Elementwise) and problem.activation != get_activation("identity")
    return smooth and problem.entry_weights is None and is_quadratic(problem)


def _slope_weights(problem: LayerProblem) -> npt.NDArray[np.float32]:
    """Return R'(z)**2 over its largest, at least FLOOR, (n_samples, n_out): to first order, distances in outputs."""
    weights = np.empty((problem.n_out, problem.n_samples), np.float32)
    for rows in problem.chunks():
        z = problem.dense_rows(rows)
        h = STEP * (1.0 + np.abs(z))
        weights[rows] = ((problem.activation.forward(z + h) - problem.activation.forward(z - h)) / (2.0 * h)) ** 2
    largest = float(weights.max())
    if largest > 0:
        weights /= largest
    return np.maximum(weights, np.float32(FLOOR)).T


def precision(problem: LayerProblem, radius: float) -> np.dtype[Any]:
    """Return the precision of refinements; ``radius`` is that of W = 0."""
    if problem.n_samples * problem.weight.size <= SMALL:
        return np.dtype(np.float64)
    return working_dtype(problem, TOL, 1.0, radius, target_size(problem))


@dataclass(frozen=True, eq=False)
class Nothing:
    """What W = 0 with the best bias leaves: epsilon_max, 0 for a dead layer; the neurons that do without weights."""

    radius: float
    idle: npt.NDArray[np.bool_]  # (n_out,)
    rounding: float  # a radius that is mere rounding of the pre-activations, or of what is stored


def without_weights(problem: LayerProblem, n_threads: int) -> Nothing:
    """Return what W = 0 leaves; what is mere rounding of the pre-activations counts as nothing."""
    losses = measure(problem, np.zeros(problem.weight.shape), n_threads).losses
    least = max(ROUNDING, STORED * float(np.finfo(problem.weight.dtype).eps)) * target_size(problem)
    radius = float(np.sqrt(2.0 * losses.sum()))
    return Nothing(radius if radius > least else 0.0, np.sqrt(2.0 * losses) <= least, least)
