"""Net-Trim at a given sparsity: its budget is bisected, then the smallest weights become zero."""

from __future__ import annotations

import numpy as np

from .nettrim import net_trim
from .pattern import Pattern, largest

Array = np.ndarray

N_BISECTIONS = 7
LEAST = 1e-3  # the budget is sought between this and 1, times the norm of the outputs
TOLERANCE = 1e-2
MAX_ITERATIONS = 100  # twice as many find the same error to 0.2 %


def net_trim_to_sparsity(
    weight: Array, inputs: Array, bias: Array | None = None, *, sparsity: float
) -> tuple[Array, Array | None]:
    """Prune a ReLU layer with `net_trim`, and return the weight and the bias that it found with it.

    The penalty parameter is that whose threshold is the mean of ``|w|``. It takes up to 700 iterations of two products
    with the inputs, in float64: give it few samples.

    Parameters
    ----------
    weight : array, shape (n_out, n_in)
    inputs : array, shape (n_samples, n_in)
    bias : array, shape (n_out,), optional
        The dense layer's.
    sparsity : float
        What is kept: see `Pattern`. Should no budget tried leave as many weights, the largest dense ones stay.
    """
    count = Pattern(sparsity).count(weight.shape)
    if count in (0, weight.size):
        return weight * (count > 0), bias
    X, W = inputs.astype(np.float64), weight.astype(np.float64)
    b = None if bias is None else bias.astype(np.float64)
    scale = float(np.linalg.norm(np.maximum(X @ W.T + (0.0 if b is None else b), 0.0)))
    rho = 1.0 / (np.abs(W).mean() or 1.0)
    low, high = LEAST, 1.0
    found, found_bias = W, b
    for _ in range(N_BISECTIONS if scale > 0 else 0):  # a layer that gives nothing has no budget
        middle = float(np.sqrt(low * high))
        result = net_trim(X, W, b, epsilon=middle * scale, rho=rho, tol=TOLERANCE, max_iterations=MAX_ITERATIONS)
        n_left = np.count_nonzero(result.weight)
        if n_left >= count:
            found, found_bias = result.weight, result.bias
        low, high = (middle, high) if n_left > count else (low, middle)
    mask = largest(np.abs(found).ravel(), count).reshape(weight.shape)
    return (found * mask).astype(weight.dtype), None if bias is None else found_bias.astype(bias.dtype)
