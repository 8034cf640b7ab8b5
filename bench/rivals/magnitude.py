"""Magnitude pruning: the largest weights stay, as they are or refitted."""

from __future__ import annotations

import numpy as np

from .pattern import Pattern
from .quadratic import damped_gram, refit

Array = np.ndarray


def magnitude(
    weight: Array, inputs: Array, *, sparsity: float | None = None, pattern: tuple[int, int] | None = None
) -> Array:
    """Keep the largest ``|w|``, (n_out, n_in). The inputs are not used; what is kept: see `Pattern`."""
    return weight * Pattern(sparsity, pattern).keep(np.abs(weight))


def magnitude_refit(
    weight: Array, inputs: Array, *, sparsity: float | None = None, pattern: tuple[int, int] | None = None
) -> Array:
    """Keep the largest ``|w|`` and give them the values that least squares finds on ``inputs`` (n_samples, n_in)."""
    mask = Pattern(sparsity, pattern).keep(np.abs(weight))
    return refit(weight, damped_gram(inputs), mask).astype(weight.dtype)
