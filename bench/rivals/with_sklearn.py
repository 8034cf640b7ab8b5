"""scikit-learn: coordinate descent on a Gram matrix that all output neurons share."""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import Lasso


def solve_rows(inputs: np.ndarray, preactivations: np.ndarray, multiplier: float, tol: float) -> np.ndarray:
    """Return the minimiser of ``multiplier ||W||_1 + 1/2 ||inputs W' - preactivations||**2``, (n_out, n_in).

    ``tol`` is the gap of a neuron over its ``||preactivations_i||**2``. Shapes (n_samples, n_in), (n_samples, n_out).
    """
    model = Lasso(multiplier / len(inputs), precompute=True, fit_intercept=False, tol=tol, max_iter=100_000)
    return model.fit(inputs, preactivations).coef_
