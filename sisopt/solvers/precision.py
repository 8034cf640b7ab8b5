"""Whether float32 serves a solve: its products and passes over samples cost half, and answers are judged in float64.

Nothing rests on this choice but time. Where an answer in float32 does not hold, the solver goes on in float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..problem import LayerProblem
from ..thinning import thinned_samples

LEAST_TOL = 1e-5  # of the gap
LEAST_ERROR = 0.01  # of the relative error: residuals below it are differences of numbers much larger
SAMPLES = 512  # that are looked at
RANGE = 1e15  # of magnitudes, either way
SCALES = 1e4  # between the inputs' scales
OFFSET = 30.0  # standard deviations that an input's mean may lie from zero
SIZE = 100.0  # pre-activations over their residuals at W = 0
UNEVEN = 1e4  # largest weight of a sample or entry over the mean


def working_dtype(problem: LayerProblem, tol: float, error: float, empty_radius: float, size: float) -> np.dtype[Any]:
    """Return the precision in which to solve over the data.

    ``error`` is the relative error that is expected, ``empty_radius`` that of W = 0, ``size`` the norm of the dense
    pre-activations.
    """
    fine = tol >= LEAST_TOL and error >= LEAST_ERROR and size <= min(SIZE * empty_radius, RANGE)
    return np.dtype(np.float32 if fine and _well_scaled(problem) else np.float64)


def _well_scaled(problem: LayerProblem) -> bool:
    for weights in (problem.sample_weights, problem.entry_weights):
        if weights is not None and not weights.max() <= UNEVEN * weights.mean():
            return False
    assert problem.inputs is not None
    samples = thinned_samples(problem.n_samples, SAMPLES)
    X = problem.inputs if samples is None else problem.inputs[samples]
    X = X.astype(np.float64, copy=False)
    mean, deviation = X.mean(axis=0), X.std(axis=0)
    varies = deviation > 1e-6 * np.abs(mean)
    if not varies.any():
        return False
    scales = deviation[varies]
    return bool(
        scales.max() <= SCALES * scales.min()
        and 1.0 / RANGE <= scales.min()
        and np.abs(X).max() <= RANGE
        and (np.abs(mean) <= OFFSET * np.where(varies, deviation, scales.max())).all()
    )
