"""Monotone activations made of lines (and one parabola), whose preimages are exact."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from ..errors import InvalidInputError
from .base import Array, Elementwise, check_parameter

_CLIP_NAMES = {
    (-math.inf, math.inf): "identity",
    (0.0, math.inf): "relu",
    (0.0, 6.0): "relu6",
    (-1.0, 1.0): "hard_tanh",
}


@dataclass(frozen=True)
class Clip(Elementwise):
    """``R(z) = min(max(z, low), high)``: identity, ReLU, ReLU6, hard tanh, by their bounds.

    The preimage of an inner output y is {y}; of ``low`` it is (-inf, low], of ``high`` [high, inf).

    Parameters
    ----------
    low, high : float
        The bounds, ``low < high``; either may be infinite.

    Raises
    ------
    InvalidInputError
        If ``low < high`` fails.

    Examples
    --------
    >>> from sisopt.activations import Clip
    >>> Clip(0.0, 4.0).forward([-1.0, 2.0, 5.0])
    array([0., 2., 4.])
    >>> Clip(0.0, 4.0).preimage([-1.0, 2.0, 5.0]).lo
    array([-inf,   2.,   4.])
    """

    nondecreasing: ClassVar[bool] = True

    low: float
    high: float
    name: str = field(init=False, repr=False)
    lipschitz: float = field(default=1.0, init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.low < self.high:
            msg = f"Clip needs low < high, got low={self.low!r} and high={self.high!r}"
            raise InvalidInputError(msg)
        object.__setattr__(self, "name", _CLIP_NAMES.get((self.low, self.high), "clip"))

    def _forward(self, z: Array) -> Array:
        return np.asarray(np.clip(z, self.low, self.high))

    def _edges(self, z: Array, tolerance: float) -> tuple[Array, Array]:
        y = self._forward(z)
        below, above = y - tolerance, y + tolerance
        return np.where(below <= self.low, -np.inf, below), np.where(above >= self.high, np.inf, above)


@dataclass(frozen=True)
class HardSigmoid(Elementwise):
    """``R(z) = min(max(z + 3, 0), 6) / 6``, the piecewise linear sigmoid of PyTorch.

    The preimage of 0 is (-inf, -3], of 1 it is [3, inf), of any other y {6y - 3}.

    Examples
    --------
    >>> from sisopt.activations import HardSigmoid
    >>> HardSigmoid().forward([-4.0, 0.0, 4.0])
    array([0. , 0.5, 1. ])
    >>> HardSigmoid().preimage([-4.0, 0.0, 4.0]).hi
    array([-3.,  0., inf])
    """

    nondecreasing: ClassVar[bool] = True

    name: str = field(default="hard_sigmoid", init=False, repr=False)
    lipschitz: float = field(default=1.0 / 6.0, init=False, repr=False)

    def _forward(self, z: Array) -> Array:
        return np.asarray(np.clip(z + 3.0, 0.0, 6.0) / 6.0)

    def _edges(self, z: Array, tolerance: float) -> tuple[Array, Array]:
        return Clip(-3.0, 3.0)._edges(z, 6.0 * tolerance)


@dataclass(frozen=True)
class LeakyReLU(Elementwise):
    """``R(z) = z`` for z >= 0 and ``slope * z`` below; the preimage of y is {y} or {y / slope}.

    Parameters
    ----------
    negative_slope : float
        The slope on the negative side, positive; above 1 too.

    Raises
    ------
    InvalidInputError
        If the slope is not a positive finite number.

    Examples
    --------
    >>> from sisopt.activations import LeakyReLU
    >>> LeakyReLU(0.5).forward([-2.0, 2.0])
    array([-1.,  2.])
    """

    nondecreasing: ClassVar[bool] = True

    negative_slope: float = 0.01
    name: str = field(default="leaky_relu", init=False, repr=False)
    lipschitz: float = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_parameter(self.name, "negative_slope", self.negative_slope)
        object.__setattr__(self, "lipschitz", max(1.0, self.negative_slope))

    def _forward(self, z: Array) -> Array:
        return np.where(z >= 0, z, self.negative_slope * z)

    def _edges(self, z: Array, tolerance: float) -> tuple[Array, Array]:
        if tolerance == 0.0:
            return z, z
        y = self._forward(z)
        return self._inverse(y - tolerance), self._inverse(y + tolerance)

    def _inverse(self, y: Array) -> Array:
        return np.where(y >= 0, y, y / self.negative_slope)


@dataclass(frozen=True)
class PReLU(LeakyReLU):
    """Leaky ReLU with a learned slope, one for the whole layer; 0.25 is the slope that training starts from.

    Examples
    --------
    >>> from sisopt.activations import PReLU
    >>> PReLU(0.5).forward([-2.0, 2.0])
    array([-1.,  2.])
    """

    negative_slope: float = 0.25
    name: str = field(default="prelu", init=False, repr=False)


@dataclass(frozen=True)
class SoftShrink(Elementwise):
    """``R(z) = sign(z) max(|z| - threshold, 0)``, the proximity operator of ``threshold * |y|``.

    The preimage of 0 is [-threshold, threshold], of any other y {y + threshold * sign(y)}.

    Parameters
    ----------
    threshold : float
        The half-width of the dead zone, at least 0.

    Raises
    ------
    InvalidInputError
        If the threshold is not a finite number of at least 0.

    Examples
    --------
    >>> from sisopt.activations import SoftShrink
    >>> SoftShrink(0.5).forward([-2.0, 0.25])
    array([-1.5,  0. ])
    >>> SoftShrink(0.5).preimage([-2.0, 0.25]).lo
    array([-2. , -0.5])
    """

    nondecreasing: ClassVar[bool] = True

    threshold: float = 0.5
    name: str = field(default="soft_shrink", init=False, repr=False)
    lipschitz: float = field(default=1.0, init=False, repr=False)

    def __post_init__(self) -> None:
        check_parameter(self.name, "threshold", self.threshold, allow_zero=True)

    def _forward(self, z: Array) -> Array:
        return np.asarray(np.sign(z) * np.maximum(np.abs(z) - self.threshold, 0.0))

    def _edges(self, z: Array, tolerance: float) -> tuple[Array, Array]:
        return -self._upper_edge(-z, tolerance), self._upper_edge(z, tolerance)

    def _upper_edge(self, z: Array, tolerance: float) -> Array:
        above = self._forward(z) + tolerance
        # On either side of the dead zone R has slope 1: move z itself, which adding the threshold back would round.
        same_side = np.where(z > 0, z > self.threshold, above < 0)
        return np.where(same_side, z + tolerance, above + self.threshold)


@dataclass(frozen=True)
class SquaredReLU(Elementwise):
    """``R(z) = max(z, 0)**2``; the preimage of 0 is (-inf, 0], of y > 0 {sqrt(y)}. It has no Lipschitz constant.

    Examples
    --------
    >>> from sisopt.activations import SquaredReLU
    >>> SquaredReLU().forward([-2.0, 3.0])
    array([0., 9.])
    """

    nondecreasing: ClassVar[bool] = True

    name: str = field(default="squared_relu", init=False, repr=False)
    lipschitz: float = field(default=math.inf, init=False, repr=False)

    def _forward(self, z: Array) -> Array:
        return np.asarray(np.square(np.maximum(z, 0.0)))

    def _edges(self, z: Array, tolerance: float) -> tuple[Array, Array]:
        active = np.maximum(z, 0.0)
        if tolerance == 0.0:
            return np.where(z > 0, z, -np.inf), active
        # sqrt(z**2 -+ tolerance) without squaring z, which may overflow.
        step = math.sqrt(tolerance)
        lo = np.sqrt(np.maximum(active - step, 0.0)) * np.sqrt(active + step)
        return np.where(active <= step, -np.inf, lo), np.hypot(active, step)
