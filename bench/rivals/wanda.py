"""Wanda: the weights with the largest |w| ||x|| of each output stay, as they are."""

from __future__ import annotations

import numpy as np

from .pattern import Pattern, largest

Array = np.ndarray


def wanda(
    weight: Array, inputs: Array, *, sparsity: float | None = None, pattern: tuple[int, int] | None = None
) -> Array:
    """Prune a linear layer with Wanda.

    Every output keeps as many weights as the others. Where the count of the whole matrix leaves a rest, it goes to the
    outputs whose next score is the largest.

    Parameters
    ----------
    weight : array, shape (n_out, n_in)
    inputs : array, shape (n_samples, n_in)
    sparsity, pattern
        What is kept: see `Pattern`.

    References
    ----------
    M. Sun, Z. Liu, A. Bair, J. Z. Kolter, "A Simple and Effective Pruning Approach for Large Language Models", ICLR
    2024.
    """
    goal = Pattern(sparsity, pattern)
    scores = np.abs(weight) * np.linalg.norm(inputs, axis=0)
    return weight * (goal.keep(scores) if goal.pattern else _keep_evenly(scores, goal.count(weight.shape)))


def _keep_evenly(scores: Array, count: int) -> Array:
    """Return True where the largest of each row are; the rows' counts differ by one at most and add up to ``count``."""
    each, rest = divmod(count, len(scores))
    ranks = np.argsort(np.argsort(-scores, axis=1, kind="stable"), axis=1)
    mask = ranks < each
    if rest:
        upcoming = ranks == each
        mask |= upcoming & largest(scores[upcoming], rest)[:, None]
    return mask
