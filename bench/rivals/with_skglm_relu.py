"""skglm on a ReLU layer: its coordinate descent with a datafit of our own, one output neuron at a time."""

from __future__ import annotations

import numpy as np
from skglm.datafits.base import BaseDatafit
from skglm.penalties import L1
from skglm.solvers import AndersonCD


class ReluDistance(BaseDatafit):
    """Squared distance to the preimage of what a ReLU gave, ``sum_k e_k**2 / (2 n_samples)``.

    ``e = z - y`` where the output y is positive and ``max(z, 0)`` where it is zero, z being the model's fit. skglm
    compiles the class when it first solves.
    """

    def __init__(self):
        pass  # numba asks for one

    def get_spec(self):
        """Name the types of the attributes: there are none."""
        return ()

    def params_to_dict(self):
        """Give the arguments of the constructor: there are none."""
        return {}

    def get_lipschitz(self, X, y):
        """Return a bound on the second derivative along every coordinate: that of least squares."""
        lipschitz = np.zeros(X.shape[1])
        for j in range(X.shape[1]):
            lipschitz[j] = (X[:, j] ** 2).sum() / len(y)
        return lipschitz

    def value(self, y, w, Xw):
        """Return the loss at the fit."""
        total = 0.0
        for k in range(len(y)):
            e = Xw[k] - y[k]
            if e > 0.0 or y[k] > 0.0:
                total += e * e
        return 0.5 * total / len(y)

    def gradient_scalar(self, X, y, w, Xw, j):
        """Return the derivative along coordinate j."""
        total = 0.0
        for k in range(len(y)):
            e = Xw[k] - y[k]
            if e > 0.0 or y[k] > 0.0:
                total += X[k, j] * e
        return total / len(y)

    def intercept_update_step(self, y, Xw):
        """Return the step of the intercept: the derivative, whose Lipschitz constant is 1."""
        total = 0.0
        for k in range(len(y)):
            e = Xw[k] - y[k]
            if e > 0.0 or y[k] > 0.0:
                total += e
        return total / len(y)


def solve_rows(inputs: np.ndarray, outputs: np.ndarray, multiplier: float, tol: float) -> tuple[np.ndarray, np.ndarray]:
    """Return W and b that minimise ``multiplier ||W||_1 + 1/2 dist(inputs W' + b, preimage of outputs)**2``.

    The working set starts with every input (``p0``) and ``tol`` is the violation of the optimality conditions, as in
    `bench.rivals.with_skglm`. Shapes (n_samples, n_in), (n_samples, n_out); answers (n_out, n_in), (n_out,).
    """
    solver = AndersonCD(p0=inputs.shape[1], tol=tol, fit_intercept=True, max_iter=1000)
    datafit, penalty = ReluDistance(), L1(multiplier / len(inputs))
    X = np.asfortranarray(inputs)
    found = np.array([solver.solve(X, y, datafit, penalty)[0] for y in np.ascontiguousarray(outputs.T)])
    return found[:, :-1], found[:, -1]
