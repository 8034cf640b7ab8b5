"""Where the zeros go: the layers' shares of what a network may keep."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import InvalidInputError

LEAST = 0.01  # of a layer's weights: what it keeps while the budget allows, however little it seems to matter
LARGEST = 1e70  # an error whose square can still be reckoned with


@dataclass(frozen=True, eq=False)
class Curve:
    """What zeros cost a layer: its error at some sparsities.

    Attributes
    ----------
    n_weights : int
    cost_per_weight : float
        What a weight that is kept takes from the budget: 1 where parameters count, the number of its positions where
        multiply-adds do.
    sparsities : ndarray, shape (k,)
        In any order; 0 with no error is always among them, 1 with an error of 1 is where it is not given.
    errors : ndarray, shape (k,)
        Relative errors of the layer at these, noise included.
    """

    n_weights: int
    cost_per_weight: float
    sparsities: npt.NDArray[Any]
    errors: npt.NDArray[Any]

    def __post_init__(self) -> None:
        s, e = np.asarray(self.sparsities, dtype=np.float64), np.asarray(self.errors, dtype=np.float64)
        if s.ndim != 1 or s.shape != e.shape:
            msg = f"sparsities and errors of a curve must be two lists of one length, got shapes {s.shape}, {e.shape}"
        elif not np.all((s >= 0) & (s <= 1)):
            msg = f"sparsities of a curve must be in [0, 1], got {s}"
        elif not np.all((e >= 0) & (e <= LARGEST)):
            msg = f"errors of a curve must be at least 0 and at most {LARGEST:g}, got {e}"
        elif self.n_weights < 1:
            msg = f"n_weights of a curve must be at least 1, got {self.n_weights}"
        elif not (self.cost_per_weight > 0 and math.isfinite(self.cost_per_weight)):
            msg = f"cost_per_weight of a curve must be positive and finite, got {self.cost_per_weight}"
        else:
            for name, value in (("sparsities", s), ("errors", e), ("n_weights", int(self.n_weights))):
                object.__setattr__(self, name, value)
            object.__setattr__(self, "cost_per_weight", float(self.cost_per_weight))
            return
        raise InvalidInputError(msg)


class _Step(NamedTuple):
    """Some weights of a layer: steps of lower ``rank`` are taken earlier, then those of larger ``worth``."""

    rank: int
    worth: float
    layer: int
    size: int


def allocate(curves: Sequence[Curve], sparsity: float, *, least: float = LEAST) -> list[int]:
    """Return how many weights each layer keeps, so that the sum of squared relative errors is least.

    Squared, because the layers' errors add up like independent noise. Each layer's squared errors count as their lower
    convex hull, which makes the program a linear one: weights are kept where a unit of the budget saves most, layers
    of equal merit share in proportion.

    Parameters
    ----------
    curves : sequence of Curve
        Of all layers that the sparsity is over.
    sparsity : float
        In [0, 1]: ``(1 - sparsity) * sum(cost * n_weights)`` is the budget. If every weight costs 1, exactly the
        nearest whole number of weights is kept; else as many as the budget has room for.
    least : float
        Fraction of its weights, one at the least, that a layer keeps while the budget allows.

    Returns
    -------
    list of int

    Raises
    ------
    InvalidInputError
        If a fraction is not in [0, 1].
    """
    if not 0.0 <= sparsity <= 1.0:
        msg = f"sparsity must be in [0, 1], got {sparsity!r}"
        raise InvalidInputError(msg)
    if not 0.0 <= least <= 1.0:
        msg = f"least must be in [0, 1], got {least!r}"
        raise InvalidInputError(msg)
    kept = [0] * len(curves)
    budget = _budget(curves, sparsity)
    steps = sorted(
        (step for number, curve in enumerate(curves) for step in _steps(number, curve, least)),
        key=lambda step: (step.rank, -step.worth, step.layer),
    )
    for _, equal in itertools.groupby(steps, key=lambda step: (step.rank, step.worth)):
        budget = _take(list(equal), curves, kept, budget)
    return kept


def _budget(curves: Sequence[Curve], sparsity: float) -> Fraction:
    """Return what the layers may cost together, exactly: sums of floats would be off by a weight at times."""
    costs = [Fraction(curve.cost_per_weight) for curve in curves]
    total = sum((cost * curve.n_weights for cost, curve in zip(costs, curves, strict=True)), Fraction(0))
    if all(cost == 1 for cost in costs):
        return Fraction(round((1.0 - sparsity) * int(total)))
    return (1 - _decimal(sparsity)) * total


def _decimal(value: float) -> Fraction:
    """Return what a number says in decimals: 0.9 means nine tenths, not the float next to it."""
    return Fraction(str(float(value)))


def _steps(number: int, curve: Curve, least: float) -> list[_Step]:
    """Return a layer's weights in the order in which they are kept: one, its least share, then along the hull."""
    n = curve.n_weights
    at = min(n, max(1, math.ceil(_decimal(least) * n)))
    steps = [_Step(0, 0.0, number, 1)]
    if at > 1:
        steps.append(_Step(1, 0.0, number, at - 1))
    for (left, low), (right, high) in reversed(list(itertools.pairwise(_hull(curve)))):
        end = round(n * (1.0 - left))
        if end > at:
            steps.append(_Step(2, (high - low) / ((right - left) * n * curve.cost_per_weight), number, end - at))
            at = end
    return steps


def _hull(curve: Curve) -> list[tuple[float, float]]:
    """Return the corners of the lower convex hull of a layer's squared errors over its sparsity."""
    points = [(0.0, 0.0), *zip(curve.sparsities.tolist(), (curve.errors**2).tolist(), strict=True)]
    if not np.any(curve.sparsities == 1.0):
        points.append((1.0, 1.0))
    hull: list[tuple[float, float]] = []
    for x, y in sorted(points):
        if hull and x == hull[-1][0]:  # sorted: the lower one came first
            continue
        while len(hull) > 1 and _above(hull[-2], hull[-1], (x, y)):
            hull.pop()
        hull.append((x, y))
    return hull


def _above(left: tuple[float, float], middle: tuple[float, float], right: tuple[float, float]) -> bool:
    """Return whether a point is on or above the line through its neighbours."""
    rise, run = middle[1] - left[1], middle[0] - left[0]
    return rise * (right[0] - left[0]) >= (right[1] - left[1]) * run


def _take(steps: Sequence[_Step], curves: Sequence[Curve], kept: list[int], budget: Fraction) -> Fraction:
    """Keep the weights of steps of equal worth, or what the budget has room for, in proportion; return what is left.

    What proportion leaves over goes to the largest remainders, the first of equal ones; what is too little for a weight
    of one layer goes to others.
    """
    costs = [Fraction(curves[step.layer].cost_per_weight) for step in steps]
    whole = sum((cost * step.size for cost, step in zip(costs, steps, strict=True)), Fraction(0))
    share = min(Fraction(1), budget / whole)
    counts = [math.floor(share * step.size) for step in steps]
    budget -= sum((cost * count for cost, count in zip(costs, counts, strict=True)), Fraction(0))
    by_remainder = sorted(range(len(steps)), key=lambda j: counts[j] - share * steps[j].size)
    for most in (1, max(step.size for step in steps)):  # one weight each, then whatever fits
        for j in by_remainder:
            more = min(most, steps[j].size - counts[j], math.floor(budget / costs[j]))
            counts[j] += more
            budget -= more * costs[j]
    for step, count in zip(steps, counts, strict=True):
        kept[step.layer] += count
    return budget
