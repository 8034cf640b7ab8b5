"""The lasso and a hard threshold: FISTAPruner's core."""

from __future__ import annotations

import numpy as np

from .pattern import Pattern
from .quadratic import damped_gram, refit

Array = np.ndarray

N_BISECTIONS = 9
LEAST = 1e-4  # the multiplier is sought between this and 1, times the least that gives no weights
SHARE = 0.3  # of the error that rounding may cause; published
SHARE_BEFORE_REFIT = 0.75  # which refitting mends: about the best on Gaussian weights at 50, 70 and 90 %
MAX_ITERATIONS = 100
TOLERANCE = 1e-4  # of the norm of the weights: a shorter step is the last


def lasso(
    weight: Array, inputs: Array, *, sparsity: float | None = None, pattern: tuple[int, int] | None = None
) -> Array:
    """Prune a linear layer with the lasso: the best of the rounded solutions that the search for the multiplier meets.

    FISTA solves ``min 1/2 ||X (W - W0)'||**2 + multiplier ||W||_1``, warm-started and in float32; then the smallest
    weights become zero. The multiplier is bisected until rounding makes up the published share of the error, 0.3.

    Parameters
    ----------
    weight : array, shape (n_out, n_in)
    inputs : array, shape (n_samples, n_in)
    sparsity, pattern
        What is kept: see `Pattern`. Groups in which the lasso has fewer weights than an N:M pattern keeps stay so.

    References
    ----------
    P. Zhao, H. Hu, P. Li, Y. Zheng, Z. Wang, X. Yuan, "A Convex-optimization-based Layer-wise Post-training Pruner for
    Large Language Models", 2024.
    """
    return _search(weight, inputs, Pattern(sparsity, pattern), SHARE)[0].astype(weight.dtype)


def lasso_refit(
    weight: Array, inputs: Array, *, sparsity: float | None = None, pattern: tuple[int, int] | None = None
) -> Array:
    """Prune a linear layer with the lasso, the values refitted: as `lasso`, the multiplier smaller."""
    mask = _search(weight, inputs, Pattern(sparsity, pattern), SHARE_BEFORE_REFIT)[1]
    return refit(weight, damped_gram(inputs), mask).astype(weight.dtype)


def _search(weight: Array, inputs: Array, goal: Pattern, share: float) -> tuple[Array, Array]:
    """Return the best rounded solution and the support of the last one, whose rounding share is about ``share``."""
    gram = damped_gram(inputs, 0.0).astype(np.float32)
    dense = weight.astype(np.float32)
    target = dense @ gram
    largest, count = float(np.abs(target).max()), goal.count(weight.shape)
    mask = goal.keep(np.abs(dense))
    best, least = dense * mask, np.inf
    if count in (0, weight.size) or largest == 0.0:
        return best, mask
    step = 1.0 / float(np.linalg.eigvalsh(gram)[-1])
    spare = np.abs(dense) - 2.0 * np.abs(dense).max()  # ranks the weights that the lasso has not behind those it has
    low, high = LEAST, 1.0
    solution = dense
    for _ in range(N_BISECTIONS):
        middle = float(np.sqrt(low * high))
        solution = _fista(solution, gram, target, step, middle * largest)
        mask = goal.keep(np.where(solution != 0, np.abs(solution), spare))
        rounded = solution * mask
        error = _squared(rounded - dense, gram)
        if error < least and (goal.pattern or np.count_nonzero(rounded) == count):
            best, least = rounded, error
        if _squared(rounded - solution, gram) > share**2 * error:
            low = middle
        else:
            high = middle
    return best, mask


def _squared(change: Array, gram: Array) -> float:
    return float(np.vdot(change @ gram, change))


def _fista(solution: Array, gram: Array, target: Array, step: float, multiplier: float) -> Array:
    """Minimise from ``solution``; the momentum is forgotten when it points uphill."""
    ahead, momentum = solution, 1.0
    threshold = np.float32(step * multiplier)
    for _ in range(MAX_ITERATIONS):
        moved = ahead - np.float32(step) * (ahead @ gram - target)
        moved -= np.clip(moved, -threshold, threshold)
        change = moved - solution
        if np.vdot(ahead - moved, change) > 0:
            momentum = 1.0
        following = (1.0 + np.sqrt(1.0 + 4.0 * momentum**2)) / 2.0
        ahead = moved + np.float32((momentum - 1.0) / following) * change
        solution, momentum = moved, following
        if np.linalg.norm(change) <= TOLERANCE * np.linalg.norm(solution):
            break
    return solution
