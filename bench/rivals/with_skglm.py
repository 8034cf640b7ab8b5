"""skglm: coordinate descent with Anderson extrapolation, one output neuron at a time."""

from __future__ import annotations

import numpy as np
from skglm.datafits import Quadratic
from skglm.penalties import L1
from skglm.solvers import AndersonCD


def solve_rows(inputs: np.ndarray, preactivations: np.ndarray, multiplier: float, tol: float) -> np.ndarray:
    """Return the minimiser of ``multiplier ||W||_1 + 1/2 ||inputs W' - preactivations||**2``, (n_out, n_in).

    The working set starts with every input (``p0``), as with celer. ``tol`` is the violation of the optimality
    conditions in units of ``||.||**2 / n_samples``. Shapes (n_samples, n_in), (n_samples, n_out).
    """
    solver = AndersonCD(p0=inputs.shape[1], tol=tol, fit_intercept=False, max_iter=1000)
    datafit, penalty = Quadratic(), L1(multiplier / len(inputs))
    X = np.asfortranarray(inputs)
    columns = np.ascontiguousarray(preactivations.T)
    return np.array([solver.solve(X, z, datafit, penalty)[0] for z in columns])
