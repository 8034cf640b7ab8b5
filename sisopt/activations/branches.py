"""The inverse of a function on a piece where it is monotone, for many levels at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from .base import Array

Function = Callable[[Array], Array]

_NODES = 4096
_SECANT_STEPS = 3
_EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True, eq=False)
class Branch:
    """A monotone piece of a function, tabulated from its least value to its largest.

    A level is bracketed by two nodes of the table; secant steps then find most of the points to rounding, and bisection
    the few that are left, as near the minimum, where the slope vanishes.

    Parameters
    ----------
    function : callable
        The function, on float64 arrays.
    nodes, values : ndarray, shape (n_nodes,)
        Points and the values there, which do not decrease.
    """

    function: Function
    nodes: Array
    values: Array

    def solve(self, levels: Array, *, above: bool) -> Array:
        """Return points u with R(u) = level, by rounding R(u) >= level if ``above`` and else R(u) <= level."""
        i = np.clip(np.searchsorted(self.values, levels) - 1, 0, self.nodes.size - 2)
        least, most = self.nodes[i], self.nodes[i + 1]
        value = self.values[i]
        # Levels that underflow make slopes of 0 * inf; such points are left to bisection.
        with np.errstate(invalid="ignore"):
            slope = (most - least) / (self.values[i + 1] - value)
            u = least + (levels - value) * slope
            rounding = 8.0 * _EPS * (np.abs(levels) + np.abs(u / slope))
            goals = levels + (rounding if above else -rounding)
            excess = self.function(u) - goals
            left, right = np.minimum(least, most), np.maximum(least, most)
            for _ in range(_SECANT_STEPS):
                last_u, last_excess = u, excess
                u = np.clip(u - excess * slope, left, right)
                excess = self.function(u) - goals
                step, gain = u - last_u, excess - last_excess
                np.divide(step, gain, out=slope, where=(step != 0) & (gain != 0))
            open_ = ~(np.abs(excess) <= rounding)
        ends = (most, least) if above else (least, most)
        u[open_] = self._bisect(goals[open_], ends[0][open_], ends[1][open_], above=above)
        return u

    def _bisect(self, goals: Array, kept: Array, lost: Array, *, above: bool) -> Array:
        """Return the last points from ``kept`` towards ``lost`` with R(u) on the wanted side of the goals."""
        while True:
            middle = 0.5 * kept + 0.5 * lost
            if not ((middle != kept) & (middle != lost)).any():
                return kept
            values = self.function(middle)
            fits = values >= goals if above else values <= goals
            kept, lost = np.where(fits, middle, kept), np.where(fits, lost, middle)


@lru_cache(maxsize=32)
def branch(function: Function, minimiser: float, end: float) -> Branch:
    """Tabulate the branch from the minimum to ``end``, on its left or right; beyond a right end it is the identity."""
    # (n_nodes,), dense where the slope vanishes
    nodes = minimiser + (end - minimiser) * np.linspace(0.0, 1.0, _NODES) ** 2
    if end > minimiser:
        nodes = np.append(nodes, np.finfo(np.float64).max)
    return Branch(function, nodes, np.maximum.accumulate(function(nodes)))
