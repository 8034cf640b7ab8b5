"""What every penalty offers, and the checks that penalties share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..errors import InvalidInputError
from .structure import Array, Structure


class Penalty(Protocol):
    """What solvers and certificates need of a penalty.

    Every penalty has the form ``g(W) = sum_ij a_ij |W_ij| + sum_g kappa_g ||W_g||_2`` over a partition of the weights
    into groups; its `Structure` for a shape is all that they work with.
    """

    def structure(self, shape: tuple[int, int], mask: npt.NDArray[np.bool_] | None = None) -> Structure:
        """Return the penalty's numbers for weights of a shape; ``mask`` is True where a weight may be non-zero."""
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


class GroupPenalty(ABC):
    """Value, proximity operator and dual norm of a penalty on groups of weights, from its structure."""

    @abstractmethod
    def structure(self, shape: tuple[int, int], mask: npt.NDArray[np.bool_] | None = None) -> Structure:
        """Return the penalty's numbers for weights of a shape; ``mask`` is True where a weight may be non-zero."""

    def value(self, weight: npt.ArrayLike) -> float:
        """Return g(W)."""
        W = _matrix("weight", weight)
        return float(self.structure(W.shape).values(W).sum())

    def prox(self, weight: npt.ArrayLike, step: float) -> Array:
        """Return argmin_V step * g(V) + 1/2 ||V - W||**2: soft thresholding, then every group shrinks as a whole."""
        W = _matrix("weight", weight)
        return self.structure(W.shape).prox(W, step)

    def dual_norm(self, gradient: npt.ArrayLike) -> float:
        """Return max <C, W> over g(W) <= 1."""
        C = _matrix("gradient", gradient)
        return float(self.structure(C.shape).dual_norms(C).max(initial=0.0))


def _matrix(name: str, value: npt.ArrayLike) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    array = np.asarray(value, dtype=np.float64)
    if array.ndim != 2:
        msg = f"{name} must have 2 dimensions (n_out, n_in) for a penalty on groups, got shape {array.shape}"
        raise InvalidInputError(msg)
    return array


def positive_factors(name: str, wanted: str, value: Any, ndim: int, advice: str = "") -> Array:
    """Return a read-only copy of at most ``ndim`` dimensions, brought to ``ndim`` by leading axes of length 1.

    Raises
    ------
    InvalidInputError
        If an entry is not a positive finite number.
    """
    wanted = f"{name} must be positive finite numbers{wanted}"
    try:
        array = np.array(value, ndmin=ndim)
        found = f"shape {array.shape}" if array.ndim != ndim else f"dtype {array.dtype}"
    except ValueError as error:
        msg = f"{wanted}, got what is no array: {error}"
        raise InvalidInputError(msg) from None
    usable = array.ndim == ndim and array.dtype.kind in "fiu"
    if usable:
        array = array.astype(np.float64)
        bad = ~(np.isfinite(array) & (array > 0))
        usable = not bad.any()
        found = "" if usable else f"{array[bad][0]:g}"
    if not usable:
        msg = f"{wanted}, got {found}{advice}"
        raise InvalidInputError(msg)
    array.flags.writeable = False
    return array


def broadcast_factors(name: str, factors: Array, shape: tuple[int, int]) -> Array:
    """Return the factors as a view of weight's shape."""
    if any(have not in (1, want) for have, want in zip(factors.shape, shape, strict=True)):
        msg = f"{name} of shape {factors.shape} do not broadcast to weight's shape {shape}"
        raise InvalidInputError(msg)
    return np.broadcast_to(factors, shape)
