"""The squared error of a linear layer: its damped Gram matrix, and the weights that minimise it on a support."""

from __future__ import annotations

import numpy as np
from scipy.linalg import cho_factor, cho_solve

Array = np.ndarray

DAMPING = 0.01  # of the mean of the diagonal: what SparseGPT and ALPS publish


def damped_gram(inputs: Array, damping: float = DAMPING) -> Array:
    """Return ``X'X`` in float64, ``damping`` times the mean of its diagonal added to the diagonal."""
    gram = (inputs.T @ inputs).astype(np.float64)
    gram.flat[:: len(gram) + 1] += damping * (gram.trace() / len(gram) or 1.0)
    return gram


def refit(weight: Array, gram: Array, mask: Array) -> Array:
    """Return the minimiser of ``(W - weight) gram (W - weight)'`` over matrices that are zero where not ``mask``."""
    target = weight @ gram
    refitted = np.zeros(weight.shape)
    for row, right, support in zip(refitted, target, mask, strict=True):
        kept = np.flatnonzero(support)
        if kept.size:
            row[kept] = cho_solve(cho_factor(gram[np.ix_(kept, kept)], check_finite=False), right[kept])
    return refitted
