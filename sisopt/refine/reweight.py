"""Reweighted l1: the convex program again, with weights that let large weights be and press small ones to zero.

The penalty of round t is sum_ij |w_ij| / (|w_ij^(t-1)| + delta_j), its multiplier found for the sparsity again.

Reference: E. Candes, M. Wakin, S. Boyd, "Enhancing sparsity by reweighted l1 minimization", 2008.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..goals import Sparsity
from ..penalties import WeightedL1
from ..problem import LayerProblem
from ..solution import Solution

ROUNDS = 2
DELTA = 0.1  # of the root mean square of the dense weights, all in units of outputs


def reweighted(
    problem: LayerProblem,
    first: Solution,
    reach: np.ndarray,
    solve: Callable[[LayerProblem, Solution], Solution],
) -> Solution:
    """Return the solution after ROUNDS rounds, or the last that kept the sparsity; ``reach`` (n_in,) is ||x_j||.

    ``solve`` solves a problem for the sparsity from a warm start.
    """
    live = reach > 0
    if not isinstance(first.goal, Sparsity) or not first.weight.any() or not live.any():
        return first
    scale = np.where(live, reach, reach[live].min())
    delta = DELTA * float(np.sqrt(np.mean((problem.weight.astype(np.float64) * scale) ** 2)))
    found = first
    for _ in range(ROUNDS):
        size = np.abs(found.weight.astype(np.float64)) * scale
        penalty = WeightedL1(scale / (size + delta))
        found = solve(problem.with_mask(problem.mask, penalty), found)
    return found
