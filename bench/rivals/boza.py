"""Boža's ADMM: twenty fixed steps towards a mask that grows in the first fifteen."""

from __future__ import annotations

import numpy as np

from .pattern import Pattern, largest
from .quadratic import damped_gram

Array = np.ndarray

N_STEPS = 20
N_CHOICES = 15  # steps in which the mask is chosen anew
DAMPING = 0.1  # of the Gram matrix's diagonal, ones here
RHO = 1.0


def boza(
    weight: Array, inputs: Array, *, sparsity: float | None = None, pattern: tuple[int, int] | None = None
) -> Array:
    """Prune a linear layer with Boža's ADMM and gradual mask.

    The inputs are scaled to one norm. Step t of the first 15 zeroes the share ``s (1 - (1 - t/15)**3)`` of the weights,
    s that of the pattern: of an N:M pattern, the smallest among those that it does not keep. One matrix is inverted.

    Parameters
    ----------
    weight : array, shape (n_out, n_in)
    inputs : array, shape (n_samples, n_in)
    sparsity, pattern
        What is kept: see `Pattern`.

    References
    ----------
    V. Boža, "Fast and Effective Weight Update for Pruned Large Language Models", TMLR 2024.
    """
    goal = Pattern(sparsity, pattern)
    gram = damped_gram(inputs, 0.0)
    scale = np.sqrt(gram.diagonal())
    scale = np.maximum(scale, 1e-8 * (scale.max() or 1.0))  # the weights of dead inputs go first
    gram /= np.outer(scale, scale)
    np.fill_diagonal(gram, 1.0 + DAMPING)
    inverse = np.linalg.inv(gram + RHO * np.eye(len(gram))).astype(np.float32)
    iterate = (weight * scale).astype(np.float32)
    target = iterate @ gram.astype(np.float32)
    dual = np.zeros_like(iterate)
    n_zeros = weight.size - goal.count(weight.shape)
    for step in range(1, N_STEPS + 1):
        shifted = iterate + dual
        if step <= N_CHOICES:
            scores = np.abs(shifted)
            if goal.pattern:
                scores[goal.keep(scores)] = np.inf
            now = round(n_zeros * (1.0 - (1.0 - step / N_CHOICES) ** 3))
            mask = largest(scores.ravel(), weight.size - now).reshape(weight.shape)
        sparse = shifted * mask
        dual = shifted - sparse
        iterate = (target + RHO * (sparse - dual)) @ inverse
    return ((iterate + dual) * mask / scale).astype(weight.dtype)
