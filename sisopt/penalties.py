"""Penalties g that make the weights sparse: value, proximity operator, dual norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .errors import InvalidInputError

Array = npt.NDArray[np.float64]


class Penalty(Protocol):
    """What solvers and certificates need of a penalty that separates over the entries of W."""

    def thresholds(self, shape: tuple[int, int]) -> Array:
        """Return the factor of every |W_ij|, an array that broadcasts to ``shape``."""
        ...

    def value(self, weight: npt.ArrayLike) -> float:
        """Return g(W)."""
        ...

    def prox(self, weight: npt.ArrayLike, step: float) -> Array:
        """Return argmin_V step * g(V) + 1/2 ||V - W||**2."""
        ...

    def dual_norm(self, gradient: npt.ArrayLike) -> float:
        """Return max <C, W> over g(W) <= 1."""
        ...


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
    """

    weights: Any

    def __post_init__(self) -> None:
        wanted = "penalty weights must be positive finite numbers that broadcast to (n_out, n_in)"
        try:
            weights = np.array(self.weights, ndmin=2)
            found = f"shape {weights.shape}" if weights.ndim != 2 else f"dtype {weights.dtype}"
        except ValueError as error:
            msg = f"{wanted}, got what is no array: {error}"
            raise InvalidInputError(msg) from None
        usable = weights.ndim == 2 and weights.dtype.kind in "fiu"
        if usable:
            weights = weights.astype(np.float64)
            bad = ~(np.isfinite(weights) & (weights > 0))
            usable = not bad.any()
            found = "" if usable else f"{weights[bad][0]:g}"
        if not usable:
            msg = f"{wanted}, got {found}; use mask= to fix weights at zero"
            raise InvalidInputError(msg)
        weights.flags.writeable = False
        object.__setattr__(self, "weights", weights)

    def thresholds(self, shape: tuple[int, int]) -> Array:
        """Return the factors a_ij as an array that broadcasts to ``shape``."""
        if any(have not in (1, want) for have, want in zip(self.weights.shape, shape, strict=True)):
            msg = f"penalty weights of shape {self.weights.shape} do not broadcast to weight's shape {shape}"
            raise InvalidInputError(msg)
        return self.weights  # type: ignore[no-any-return]

    def value(self, weight: npt.ArrayLike) -> float:
        """Return g(W)."""
        return float(np.sum(self.weights * np.abs(np.asarray(weight, dtype=np.float64))))

    def prox(self, weight: npt.ArrayLike, step: float) -> Array:
        """Return the soft-thresholded weights sign(W) max(|W| - step a, 0)."""
        W = np.asarray(weight, dtype=np.float64)
        return np.asarray(np.sign(W) * np.maximum(np.abs(W) - step * self.weights, 0.0))

    def dual_norm(self, gradient: npt.ArrayLike) -> float:
        """Return max_ij |C_ij| / a_ij."""
        return float(np.max(np.abs(np.asarray(gradient, dtype=np.float64)) / self.weights, initial=0.0))


@dataclass(frozen=True, eq=False)
class L1(WeightedL1):
    """The l1 norm, ``g(W) = sum_ij |W_ij|``: the weighted norm with unit factors."""

    weights: Any = 1.0


def get_penalty(penalty: str | Penalty) -> Penalty:
    """Return the penalty object for a name ("l1") or an object."""
    if isinstance(penalty, str):
        if penalty.lower() == "l1":
            return L1()
        msg = f"penalty must be 'l1' or a penalty object such as sisopt.WeightedL1, got {penalty!r}"
        raise InvalidInputError(msg)
    if isinstance(penalty, type) or not hasattr(penalty, "thresholds"):
        msg = f"penalty must be 'l1' or a penalty object such as sisopt.WeightedL1, got {type(penalty).__name__}"
        raise InvalidInputError(msg)
    return penalty
