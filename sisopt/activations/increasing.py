"""Strictly increasing activations: their preimages are points, or by a tolerance intervals between inverses."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from . import special
from .base import Array, Elementwise, check_parameter, inward


@dataclass(frozen=True)
class Increasing(Elementwise):
    """A strictly increasing R onto the open interval (infimum, supremum), with its inverse.

    The preimage of y = R(z0) is {z0}. With a tolerance it is ``[R^-1(y - tolerance), R^-1(y + tolerance)]``, and a
    half-line (or the whole line) where ``y -+ tolerance`` leaves the range.
    """

    nondecreasing: ClassVar[bool] = True

    infimum: float = field(repr=False)
    supremum: float = field(repr=False)

    @abstractmethod
    def _inverse(self, y: Array) -> Array:
        """Return R^-1(y) for infimum < y < supremum."""

    def _edges(self, z: Array, tolerance: float) -> tuple[Array, Array]:
        if tolerance == 0.0:
            return z, z
        y = self._forward(z)
        slack = inward(tolerance, y)
        # Levels beyond the range get their half-line below; until then keep them where the inverse is finite.
        least, largest = np.nextafter(self.infimum, math.inf), np.nextafter(self.supremum, -math.inf)
        lo = np.where(slack > 0, self._inverse(np.clip(y - slack, least, largest)), z)
        hi = np.where(slack > 0, self._inverse(np.clip(y + slack, least, largest)), z)
        return (
            np.where(y - tolerance <= self.infimum, -np.inf, lo),
            np.where(y + tolerance >= self.supremum, np.inf, hi),
        )


@dataclass(frozen=True)
class Elementary(Increasing):
    """An increasing activation without parameters, given by its function and the inverse of it."""

    function: Callable[[Array], Array] = field(repr=False)
    inverse: Callable[[Array], Array] = field(repr=False)

    def _forward(self, z: Array) -> Array:
        return self.function(z)

    def _inverse(self, y: Array) -> Array:
        return self.inverse(y)


def _softsign(z: Array) -> Array:
    return np.asarray(z / (1.0 + np.abs(z)))


def _softsign_inverse(y: Array) -> Array:
    return np.asarray(y / (1.0 - np.abs(y)))


def _arctan(z: Array) -> Array:
    return np.asarray(2.0 / np.pi * np.arctan(z))


def _arctan_inverse(y: Array) -> Array:
    return np.asarray(np.tan(np.pi / 2.0 * y))


def _isru(z: Array) -> Array:
    return np.asarray(z / np.hypot(1.0, z))


def _isru_inverse(y: Array) -> Array:
    return np.asarray(y / np.sqrt((1.0 - y) * (1.0 + y)))


def _log_sigmoid_inverse(y: Array) -> Array:
    return np.asarray(y - np.log(-np.expm1(y)))


ELEMENTARY = (
    Elementary("tanh", 1.0, -1.0, 1.0, np.tanh, np.arctanh),
    Elementary("sigmoid", 0.25, 0.0, 1.0, special.expit, special.logit),
    Elementary("log_sigmoid", 1.0, -math.inf, 0.0, special.log_expit, _log_sigmoid_inverse),
    Elementary("softsign", 1.0, -1.0, 1.0, _softsign, _softsign_inverse),
    # Scaled to (-1, 1), as the proximity operator of -(2/pi) log cos(pi y / 2) - y**2 / 2.
    Elementary("arctan", 2.0 / math.pi, -1.0, 1.0, _arctan, _arctan_inverse),
    # z / sqrt(1 + z**2)
    Elementary("isru", 1.0, -1.0, 1.0, _isru, _isru_inverse),
)


@dataclass(frozen=True)
class Softplus(Increasing):
    """``R(z) = log(1 + exp(beta z)) / beta``.

    Parameters
    ----------
    beta : float
        The sharpness, positive: R tends to ReLU as it grows.

    Raises
    ------
    InvalidInputError
        If beta is not a positive finite number.

    Examples
    --------
    >>> from sisopt.activations import Softplus
    >>> Softplus(beta=10.0).forward([-2.0, 0.0, 2.0]).round(3)
    array([0.   , 0.069, 2.   ])
    """

    beta: float = 1.0
    name: str = field(default="softplus", init=False, repr=False)
    lipschitz: float = field(default=1.0, init=False, repr=False)
    infimum: float = field(default=0.0, init=False, repr=False)
    supremum: float = field(default=math.inf, init=False, repr=False)

    def __post_init__(self) -> None:
        check_parameter(self.name, "beta", self.beta)

    def _forward(self, z: Array) -> Array:
        return np.asarray(np.maximum(z, 0.0) + np.log1p(np.exp(-self.beta * np.abs(z))) / self.beta)

    def _inverse(self, y: Array) -> Array:
        return np.asarray(y + np.log(-np.expm1(-self.beta * y)) / self.beta)


@dataclass(frozen=True)
class ExponentialLinear(Increasing):
    """``R(z) = scale * z`` for z >= 0 and ``depth * (exp(z / width) - 1)`` below."""

    supremum: float = field(default=math.inf, init=False, repr=False)

    @property
    @abstractmethod
    def _shape(self) -> tuple[float, float, float]:
        """The constants (scale, depth, width)."""

    def _forward(self, z: Array) -> Array:
        scale, depth, width = self._shape
        return np.where(z >= 0, scale * z, depth * np.expm1(np.minimum(z, 0.0) / width))

    def _inverse(self, y: Array) -> Array:
        scale, depth, width = self._shape
        return np.where(y >= 0, y / scale, width * np.log1p(np.minimum(y, 0.0) / depth))


@dataclass(frozen=True)
class ELU(ExponentialLinear):
    """``R(z) = z`` for z >= 0 and ``alpha * (exp(z) - 1)`` below.

    Parameters
    ----------
    alpha : float
        Minus the limit at -inf, positive. Above 1 the Lipschitz constant is alpha.

    Raises
    ------
    InvalidInputError
        If alpha is not a positive finite number.

    Examples
    --------
    >>> from sisopt.activations import ELU
    >>> ELU(alpha=0.5).forward([-2.0, 2.0]).round(3)
    array([-0.432,  2.   ])
    """

    alpha: float = 1.0
    name: str = field(default="elu", init=False, repr=False)
    lipschitz: float = field(init=False, repr=False)
    infimum: float = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_parameter(self.name, "alpha", self.alpha)
        object.__setattr__(self, "lipschitz", max(1.0, self.alpha))
        object.__setattr__(self, "infimum", -self.alpha)

    @property
    def _shape(self) -> tuple[float, float, float]:
        return 1.0, self.alpha, 1.0


@dataclass(frozen=True)
class CELU(ExponentialLinear):
    """``R(z) = z`` for z >= 0 and ``alpha * (exp(z / alpha) - 1)`` below: ELU with a continuous derivative.

    Parameters
    ----------
    alpha : float
        Minus the limit at -inf, positive.

    Raises
    ------
    InvalidInputError
        If alpha is not a positive finite number.

    Examples
    --------
    >>> from sisopt.activations import CELU
    >>> CELU(alpha=0.5).forward([-2.0, 2.0]).round(3)
    array([-0.491,  2.   ])
    """

    alpha: float = 1.0
    name: str = field(default="celu", init=False, repr=False)
    lipschitz: float = field(default=1.0, init=False, repr=False)
    infimum: float = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_parameter(self.name, "alpha", self.alpha)
        object.__setattr__(self, "infimum", -self.alpha)

    @property
    def _shape(self) -> tuple[float, float, float]:
        return 1.0, self.alpha, self.alpha


_SELU_SCALE = 1.0507009873554804934193349852946
_SELU_DEPTH = _SELU_SCALE * 1.6732632423543772848170429916717


@dataclass(frozen=True)
class SELU(ExponentialLinear):
    """``R(z) = 1.0507 z`` for z >= 0 and ``1.0507 * 1.6733 * (exp(z) - 1)`` below, the self-normalising ELU.

    Examples
    --------
    >>> from sisopt.activations import SELU
    >>> SELU().forward([-2.0, 2.0]).round(3)
    array([-1.52 ,  2.101])
    """

    name: str = field(default="selu", init=False, repr=False)
    lipschitz: float = field(default=_SELU_DEPTH, init=False, repr=False)
    infimum: float = field(default=-_SELU_DEPTH, init=False, repr=False)

    @property
    def _shape(self) -> tuple[float, float, float]:
        return _SELU_SCALE, _SELU_DEPTH, 1.0
