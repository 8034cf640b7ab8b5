"""Projection onto the weights that keep every budget, one mini-batch at a time: Haugazeau's outer approximations.

The primal is min ||p - p0||**2 over points p = (W, b) with c_j(p) = 2 phi_j(p) - epsilon_j**2 <= 0 for all groups j. At
the iterate p a violated group cuts p off by the half-space D = {x : c_j(p) + <grad c_j(p), x - p> <= 0}, which holds
every point that keeps the budget, and p moves to the projection of p0 onto the intersection of D with
H = {x : <x - p, p0 - p> <= 0}, in closed form. Only p0, p and one gradient are kept, whatever the number of samples.
There is no dual point. It stops when all groups in a row, met at one and the same p, are violated by at most the
tolerance; since p projects p0 onto a set that holds every feasible point, it is then no farther from p0 than the exact
projection is. It takes about 1 / tolerance cuts.

References: Y. Haugazeau, thesis, Paris 1968; P. L. Combettes, "Strong convergence of block-iterative outer
approximation methods for convex optimization", SIAM J. Control Optim. 2000; S. Verma, J.-C. Pesquet, "Sparsifying
Networks via Subdifferential Inclusion", ICML 2021.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt

from .budget_constraints import BudgetConstraints, OutOfTime
from .rows import Limits

Array = npt.NDArray[np.float64]

PARALLEL = 1e-12  # sine of an angle that is rounding
FAR = 1e8  # times the size of the dense layer: where no point keeps the budgets, the iterates run away


class Outcome(Enum):
    """How a projection ended."""

    REACHED = "violations at most the tolerance"
    PASSES = "pass limit"
    TIME = "time limit"
    EMPTY = "no point within reach keeps the budgets"


@dataclass(frozen=True)
class Projection:
    """A projection: the point U (n_out, width), the largest violation found in the last round, and how it ended."""

    point: Array
    violation: float
    cuts: int
    outcome: Outcome


def project(
    constraints: BudgetConstraints,
    anchor: Array,
    *,
    tolerance: float,
    margin: float = 0.0,
    max_passes: int,
    limits: Limits,
) -> Projection:
    """Project a point U (n_out, width) onto the points with c_j <= -margin epsilon_j**2; see the module's docstring.

    ``tolerance`` > 0 bounds what c_j may exceed that by, relative to epsilon_j**2 (or, where that is 0, to the squared
    size of the group's pre-activations): with ``margin = tolerance`` every positive budget holds at the end. The
    ``anchor`` is not written to. A point that did not get there is the last one, and its outcome says why.
    """
    start = anchor.reshape(constraints.programs, -1)
    point = anchor.copy()
    rows = point.reshape(constraints.programs, -1)  # a view
    slack = margin * constraints.budgets.radii**2 / constraints.sizes
    violations = np.full(constraints.n_rounds, np.inf)  # when the groups were last met
    reach = FAR * (constraints.size + float(np.linalg.norm(anchor)))
    quiet = cuts = 0

    def result(outcome: Outcome) -> Projection:
        return Projection(point, float(violations.max()), cuts, outcome)

    try:
        for _ in range(max_passes):
            for j, blocks in constraints.groups(limits):
                kept = slack if constraints.separable else slack[j : j + 1]
                value, gradient = constraints.measure(j, blocks, point, tolerance - float(kept[0]))
                violations[j] = max(0.0, float(value.max()))
                violated = np.flatnonzero(value > tolerance - kept)
                if violated.size == 0:
                    quiet += 1
                    if quiet == constraints.n_rounds:
                        return result(Outcome.REACHED)
                    continue
                assert gradient is not None
                steps = gradient.reshape(rows.shape)[violated]
                moved, empty = outer_approximation(start[violated], rows[violated], steps, (value + kept)[violated])
                if empty or not np.linalg.norm(moved - start[violated]) <= reach:
                    return result(Outcome.EMPTY)
                rows[violated] = moved
                quiet, cuts = 0, cuts + 1
    except OutOfTime:
        return result(Outcome.TIME)
    return result(Outcome.PASSES)


def outer_approximation(anchor: Array, point: Array, gradient: Array, value: Array) -> tuple[Array, bool]:
    """Project anchors p0 onto the intersection of H and D at p, row by row.

    ``anchor`` p0, ``point`` p and ``gradient`` d = grad c(p) are (m, width), ``value`` c(p) > 0 is (m,). With
    delta = c d / ||d||**2, r = p0 - p, pi = <r, delta>, mu = ||r||**2, nu = ||delta||**2 and zeta = mu nu - pi**2 =
    mu ||q||**2, q = delta - (pi / mu) r (which loses no digits to cancellation):

        zeta = 0, pi >= 0        p - delta
        zeta > 0, pi nu >= zeta  p0 - (1 + pi / nu) delta
        zeta > 0, pi nu < zeta   p + nu / zeta (pi r - mu delta) = p - (nu / ||q||**2) q

    Returns the new points (m, width), and whether an intersection is empty (d = 0; zeta = 0 and pi < 0).
    """
    squares = np.einsum("ij,ij->i", gradient, gradient)
    if not (squares > 0).all():
        return point, True
    delta = (value / squares)[:, None] * gradient
    r = anchor - point
    pi = np.einsum("ij,ij->i", r, delta)
    mu = np.einsum("ij,ij->i", r, r)
    nu = value * value / squares
    ratio = np.divide(pi, mu, out=np.zeros_like(pi), where=mu > 0)
    q = delta - ratio[:, None] * r
    rest = np.einsum("ij,ij->i", q, q)
    parallel = (mu == 0) | (rest <= PARALLEL**2 * nu)
    if (parallel & (pi < 0)).any():
        return point, True
    far = ~parallel & (pi * nu >= mu * rest)
    moved = point - delta
    moved[far] = anchor[far] - (1.0 + pi[far] / nu[far])[:, None] * delta[far]
    near = ~parallel & ~far
    moved[near] = point[near] - (nu[near] / rest[near])[:, None] * q[near]
    return moved, False
