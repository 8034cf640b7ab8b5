"""Where the data of the benches come from."""

from __future__ import annotations

import numpy as np

import sisopt


def correlated_inputs(n_samples: int, n_in: int, rho: float = 0.9, seed: int = 0) -> np.ndarray:
    """Return Gaussian inputs, neighbours correlated by ``rho`` (an AR(1) process along the inputs)."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n_samples, n_in))
    for j in range(1, n_in):
        X[:, j] = rho * X[:, j - 1] + np.sqrt(1.0 - rho**2) * X[:, j]
    return X


def random_layer(
    n_samples: int, n_in: int, n_out: int, activation: str, dtype: type = np.float64
) -> sisopt.LayerProblem:
    """Return a layer with Gaussian weights on correlated inputs: nothing in it favours sparsity."""
    rng = np.random.default_rng(1)
    X = correlated_inputs(n_samples, n_in).astype(dtype)
    W = (rng.standard_normal((n_out, n_in)) / np.sqrt(n_in)).astype(dtype)
    b = (0.1 * rng.standard_normal(n_out)).astype(dtype)
    return sisopt.LayerProblem(X, W, b, activation=activation)
