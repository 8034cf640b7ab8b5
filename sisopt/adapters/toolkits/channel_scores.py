"""How much a layer needs each of its channels: scores from a program whose penalty is on their weights as groups."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ...dispatch import solve
from ...goals import Sparsity
from ...penalties import GroupL2
from ...problem import LayerProblem

Array = npt.NDArray[Any]

LEAST = 1e-3  # of the largest price of a group: channels that hardly vary are not free
TOL = 1e-2  # of the program: an order is all that is asked
TINY = np.finfo(np.float64).tiny


def group_scores(X: Array, W: Array, b: Array | None, axis: int, groups: Array, goal: Sparsity) -> tuple[Array, Array]:
    """Return labels of groups, in order, and the scores of what they name.

    The program keeps the layer's outputs. Groups that its solution keeps score in (1, 2], by their norms times their
    prices; others in [0, 1], by the share of their price that they would be worth, which is 1 for one about to enter.
    The price of columns is the standard deviation of their inputs: what counts is what they add to the outputs.

    Parameters
    ----------
    X, W, b : ndarray, shapes (n_samples, n_in), (n_out, n_in), (n_out,) or None
        Inputs and the dense layer.
    axis : {0, 1}
        Whether groups are of rows or of columns.
    groups : ndarray of int
        The label of each channel: of a row, of a column or of as many consecutive columns as the kernel of a
        convolution has taps.
    goal : Sparsity
        Zeros of the program's solution.
    """
    names, labels = np.unique(np.repeat(groups, W.shape[axis] // len(groups)), return_inverse=True)
    each = np.ascontiguousarray(np.broadcast_to(labels if axis else labels[:, None], W.shape))
    prices = np.sqrt(np.bincount(labels, X.var(axis=0, dtype=np.float64) if axis else None))
    prices = np.maximum(prices, LEAST * prices.max() or 1.0)
    solution = solve(LayerProblem(X, W, b, penalty=GroupL2(each, weights=prices)), goal, tol=TOL)

    def norms(matrix: Array) -> Array:
        return np.sqrt(np.bincount(each.ravel(), np.square(matrix, dtype=np.float64).ravel()))

    residual = X @ (solution.weight - W).T
    if b is not None:
        residual += solution.bias - b
    kept, pull = prices * norms(solution.weight), norms(residual.T @ X) / prices
    near = np.minimum(pull / max(solution.multiplier, TINY), 1.0)
    return names, np.where(kept > 0, 1.0 + kept / max(kept.max(), TINY), near)
