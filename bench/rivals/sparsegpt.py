"""SparseGPT: optimal brain surgeon from the first input to the last, with one Hessian for all outputs."""

from __future__ import annotations

import numpy as np
from scipy.linalg import cholesky

from .pattern import Pattern, largest
from .quadratic import damped_gram

Array = np.ndarray

BLOCK = 128  # inputs among which one choice is made


def sparsegpt(
    weight: Array, inputs: Array, *, sparsity: float | None = None, pattern: tuple[int, int] | None = None
) -> Array:
    """Prune a linear layer with SparseGPT.

    Input by input, the weights that go are made up for by those of the inputs still to come. Which go is decided for a
    block of inputs when it is reached, every block keeping the same share, or for every group of an N:M pattern.

    Parameters
    ----------
    weight : array, shape (n_out, n_in)
    inputs : array, shape (n_samples, n_in)
    sparsity, pattern
        What is kept: see `Pattern`.

    References
    ----------
    E. Frantar, D. Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot", ICML 2023.
    """
    goal = Pattern(sparsity, pattern)
    W = weight.T.astype(np.float64)  # (n_in, n_out): an input's weights lie together
    alive = inputs.any(axis=0)[:, None]  # the weights of the other inputs go first
    factor = cholesky(np.linalg.inv(damped_gram(inputs)))  # upper; row i serves once the inputs before i are fixed
    pivots = factor.diagonal()[:, None]
    n_in, n_out = W.shape
    group = goal.pattern[1] if goal.pattern else BLOCK
    block = max(1, BLOCK // group) * group
    for first in range(0, n_in, block):
        last = min(first + block, n_in)
        errors = np.empty((last - first, n_out))
        for i in range(first, last):
            if (i - first) % group == 0:
                end = min(i + group, last)
                mask = _keep(alive[i:end] * (W[i:end] / pivots[i:end]) ** 2, goal, i, end)
            errors[i - first] = np.where(mask[i - end], 0.0, W[i]) / pivots[i]
            W[i] *= mask[i - end]
            W[i + 1 : last] -= np.outer(factor[i, i + 1 : last], errors[i - first])
        W[last:] -= factor[first:last, last:].T @ errors
    return W.T.astype(weight.dtype, order="C")


def _keep(scores: Array, goal: Pattern, first: int, last: int) -> Array:
    """Return which weights of the inputs from ``first`` to ``last`` are kept, (inputs, n_out).

    The counts of the blocks up to any input add up to the count for that many inputs, so the last sum is exact.
    """
    if goal.pattern:
        return goal.keep(scores.T).T
    n_out = scores.shape[1]
    count = goal.count((n_out, last)) - goal.count((n_out, first))
    return largest(scores.T.ravel(), count).reshape(n_out, -1).T
