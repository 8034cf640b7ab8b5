"""Activations that dip below zero once: GELU, SiLU, Mish, hard-swish. Their preimages are found by bracketing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from . import special
from .base import Array, Elementwise, inward
from .branches import branch

_LINEAR_FROM = 40.0  # From here on R(z) = z in double precision.


@dataclass(frozen=True)
class Dipping(Elementwise):
    """An R that falls from 0 at -inf to one minimum and then rises, and soon ``R(z) = z`` in double precision.

    Not monotone, so no proximity operator, and its preimages need not be convex. The target is the connected part
    that contains z0 of ``{u : |R(u) - R(z0)| <= tolerance}``: an interval, and a convex subset of the preimage.

    Parameters
    ----------
    function : callable
        R itself, on float64 arrays.
    minimiser : float
        Where R is least.
    tail : float
        R is 0 in double precision on (-inf, tail].
    flat : bool
        Whether R is 0 there exactly, so that (-inf, tail] is a preimage even without tolerance.
    """

    function: Callable[[Array], Array] = field(repr=False)
    minimiser: float = field(repr=False)
    tail: float = field(repr=False)
    flat: bool = field(default=False, repr=False)

    def _forward(self, z: Array) -> Array:
        return self.function(z)

    def _edges(self, z: Array, tolerance: float) -> tuple[Array, Array]:
        resting = z <= self.tail if self.flat else np.zeros(z.shape, dtype=bool)
        lo, hi = np.where(resting, -np.inf, z), np.where(resting, self.tail, z)
        if tolerance == 0.0:
            return lo, hi
        y = self.function(z)
        slack = inward(tolerance, y)
        top, bottom = y + slack, y - slack
        moves = slack > 0
        # Either the dip is too deep to be crossed from z's side, or it is crossed and the top level ends it over there.
        uncrossed = y - tolerance > self.function(np.array(self.minimiser))
        stops_left, stops_right = uncrossed & (z >= self.minimiser), uncrossed & (z < self.minimiser)
        # The falling branch stays below 0: no level from 0 up ends it on the left.
        endless = (y + tolerance >= 0.0) & ~stops_left
        falling = branch(self.function, self.minimiser, self.tail)
        rising = branch(self.function, self.minimiser, _LINEAR_FROM)
        for edge, where, levels, piece in (
            (lo, stops_left, bottom, rising),
            (hi, stops_right, bottom, falling),
            (lo, ~stops_left & ~endless, top, falling),
            (hi, ~stops_right, top, rising),
        ):
            part = where & moves
            edge[part] = piece.solve(levels[part], above=levels is bottom)
        lo[endless] = -np.inf
        return lo, hi


def _gelu(z: Array) -> Array:
    return np.asarray(z * special.ndtr(z))


def _gelu_tanh(z: Array) -> Array:
    # (1 + tanh(x)) / 2 = expit(2x) keeps the left tail; beyond +-50 it is saturated, and the cube could overflow.
    inner = np.clip(z, -50.0, 50.0)
    return np.asarray(z * special.expit(math.sqrt(8.0 / math.pi) * (inner + 0.044715 * inner**3)))


def _silu(z: Array) -> Array:
    return np.asarray(z * special.expit(z))


def _mish(z: Array) -> Array:
    return np.asarray(z * np.tanh(np.logaddexp(0.0, z)))


def _hard_swish(z: Array) -> Array:
    return np.asarray(z * (np.clip(z + 3.0, 0.0, 6.0) / 6.0))


# Lipschitz constants (the slope at the right inflection point) and minimisers were solved for with 60 digits; the
# constants are rounded up.
DIPPING = (
    Dipping("gelu", 1.1289041451851548, _gelu, -0.75179152469356446, -40.0),
    Dipping("gelu_tanh", 1.1289930686587718, _gelu_tanh, -0.75246142207101626, -40.0),
    Dipping("silu", 1.0998393201288670, _silu, -1.2784645427610738, -800.0),
    Dipping("mish", 1.0884981612517279, _mish, -1.1924312145154952, -800.0),
    Dipping("hard_swish", 1.5, _hard_swish, -1.5, -3.0, flat=True),
)
