"""The l1 norm, plain and weighted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .base import broadcast_factors, positive_factors
from .structure import Array, Structure, masked

NAME = "penalty weights"


@dataclass(frozen=True, eq=False)
class WeightedL1:
    """Weighted l1 norm, ``g(W) = sum_ij a_ij |W_ij|`` with every a_ij > 0.

    Its proximity operator is soft thresholding at ``step * a_ij`` and its dual norm ``max_ij |C_ij| / a_ij``.

    Parameters
    ----------
    weights : array_like, broadcastable to (n_out, n_in)
        The factors a_ij, positive and finite.

    Raises
    ------
    InvalidInputError
        If a factor is not a positive finite number.

    Examples
    --------
    >>> import sisopt
    >>> penalty = sisopt.WeightedL1([1.0, 10.0])  # a factor per input
    >>> penalty.value([[2.0, -2.0]])
    22.0
    >>> penalty.prox([[2.0, -2.0]], 0.125)
    array([[ 1.875, -0.75 ]])
    """

    weights: Any

    def __post_init__(self) -> None:
        advice = "; use mask= to fix weights at zero"
        weights = positive_factors(NAME, " that broadcast to (n_out, n_in)", self.weights, 2, advice)
        object.__setattr__(self, "weights", weights)

    def structure(self, shape: tuple[int, int], mask: npt.NDArray[np.bool_] | None = None) -> Structure:
        """Return the factors for weights of a shape; ``mask`` is True where a weight may be non-zero."""
        return Structure(masked(broadcast_factors(NAME, self.weights, shape), mask))

    def value(self, weight: npt.ArrayLike) -> float:
        """Return g(W)."""
        return float(np.sum(self.weights * np.abs(np.asarray(weight, dtype=np.float64))))

    def prox(self, weight: npt.ArrayLike, step: float) -> Array:
        """Return the soft-thresholded weights, ``sign(W) max(|W| - step a, 0)``."""
        W = np.asarray(weight, dtype=np.float64)
        return np.asarray(np.sign(W) * np.maximum(np.abs(W) - step * self.weights, 0.0))

    def dual_norm(self, gradient: npt.ArrayLike) -> float:
        """Return ``max_ij |C_ij| / a_ij``."""
        return float(np.max(np.abs(np.asarray(gradient, dtype=np.float64)) / self.weights, initial=0.0))


@dataclass(frozen=True, eq=False)
class L1(WeightedL1):
    """The l1 norm, ``g(W) = sum_ij |W_ij|``: the weighted norm with unit factors.

    Examples
    --------
    >>> import sisopt
    >>> sisopt.L1().value([[2.0, -2.0], [0.0, 1.0]])
    5.0
    >>> sisopt.L1().prox([[2.0, -2.0], [0.0, 1.0]], 1.5)
    array([[ 0.5, -0.5],
           [ 0. ,  0. ]])
    """

    weights: Any = 1.0
