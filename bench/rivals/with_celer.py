"""celer: coordinate descent with dual extrapolation, one output neuron at a time."""

from __future__ import annotations

import numpy as np
from celer import celer_path


def solve_rows(inputs: np.ndarray, preactivations: np.ndarray, multiplier: float, tol: float) -> np.ndarray:
    """Return the minimiser of ``multiplier ||W||_1 + 1/2 ||inputs W' - preactivations||**2``, (n_out, n_in).

    The working set starts with every input (``p0``): where half of the weights stay, growing it costs more than it
    saves. ``tol`` is the gap of a neuron over its ``||preactivations_i||**2``. Shapes (n_samples, n_in),
    (n_samples, n_out).
    """
    options = {"alphas": [multiplier / len(inputs)], "tol": tol, "p0": inputs.shape[1], "max_epochs": 1_000_000}
    X = np.asfortranarray(inputs)
    columns = np.ascontiguousarray(preactivations.T)
    return np.array([celer_path(X, z, pb="lasso", **options)[1][:, 0] for z in columns])
