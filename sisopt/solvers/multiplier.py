"""From a goal to a multiplier: bracketed secants in logarithms over warm-started rounds.

The radius rises with the multiplier and the number of non-zero weights mostly falls. Both are followed in logarithms,
loosely while far from the target and to the tolerance of the gap when near. The outcome is ``rounds.best``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..certificate import RowSums, penalized_row_gaps
from ..solution import Status
from .quadratic import QuadraticRows
from .rounds import Rounds, Stopped

SAFETY = 0.8  # of the tolerance is what solvers aim at: rounding and the final certificate take their share
LOOSE = 0.1  # gap of rounds far from the target
NEAR = 0.01  # of that, of rounds that are near
TIGHT = 0.3  # of the tolerance is what a round near the target is solved to; later ones tighten by this factor
SLOPE = 0.7  # of log(radius) over log(multiplier), until two rounds tell
LOOSENESS = 0.1  # of the square of the radius that a round's gap may move
EXPECTED = 0.3  # distance from the target that a secant step is expected to leave
LEAST_LOG_RATIO = math.log(1e-16)  # multipliers below this fraction of the largest count as zero
LEAST_ACCURACY = 1e-12
LEAST_TIGHTENING = 1e-8
NEGLIGIBLE = 1e-4
EXACT = 1e-2  # of the tolerance: rounds on whose count a bracket may rest
SCALINGS = 4
MAX_STRIDE = math.log(30.0)
MAX_ROUNDS = 60

# In Gram space rounds cost less than a look at the data, and radii settle long before gaps do
GRAM_LOOSENESS = 20.0
GRAM_SLOPE = 0.5
GRAM_SCALING = 0.03  # share of what the gap can bear that a scaling may cost: the iterate then proves itself


@dataclass
class LogSecant:
    """Bracketed secant for the root of a monotone function of x = log(multiplier).

    ``slope`` is the guess of the function's slope before two points are known; its sign is trusted throughout.
    ``low`` and ``high`` are points on either side of the root. Slopes flatter than ``flattest`` are taken for an effect
    of loose rounds.
    """

    slope: float
    low: float = -math.inf
    high: float = math.inf
    last: tuple[float, float] | None = None
    flattest: float = 0.02

    def propose(self, x: float, excess: float) -> float:
        """Return the next x, given the function's value at this one."""
        if self.last is not None and abs(x - self.last[0]) > 1e-12:
            slope = (excess - self.last[1]) / (x - self.last[0])
            if slope * self.slope > 0:
                self.slope = math.copysign(min(max(abs(slope), self.flattest), 20.0), self.slope)
        self.last = (x, excess)
        if (excess > 0) == (self.slope > 0):
            self.high = x
        else:
            self.low = x
        proposal = x + min(max(-excess / self.slope, -MAX_STRIDE), MAX_STRIDE)
        return proposal if self.low < proposal < self.high else 0.5 * (self.low + self.high)

    def forget(self, high: float) -> None:
        """Drop a bracket that rests on loose rounds."""
        self.low, self.high = -math.inf, high

    @property
    def width(self) -> float:
        """Width of the bracket."""
        return self.high - self.low


def accuracy_for(distance: float, tol: float) -> float:
    """Return how exact a round should be whose outcome is expected at this distance (in logarithms) from the target."""
    if distance > 0.1:
        return max(LOOSE, TIGHT * tol)
    return max(NEAR * LOOSE, TIGHT * tol) if distance > 0.01 else TIGHT * tol


def solve_penalized(rounds: Rounds, multiplier: float, tol: float) -> None:
    """Bring the gap of the penalised program to ``tol``."""
    state = rounds.solver.state
    accuracy = SAFETY * tol
    for _ in range(MAX_ROUNDS):
        allowed = accuracy * (multiplier * state.value.sum() + state.loss.sum())
        before = state.iterations
        sums = rounds.run(multiplier, allowed)
        if rounds.gap <= SAFETY * tol:
            return
        if penalized_row_gaps(sums, multiplier).sum() <= allowed or state.iterations == before:
            accuracy *= TIGHT


def solve_budget(
    rounds: Rounds,
    epsilon: float,
    start: float,
    largest: float,
    tol: float,
    empty_radius: float,
    least: Callable[[], None],
    *,
    near: bool,
) -> None:
    """Find the multiplier whose radius is ``epsilon``; ``near`` tells that it starts close to it.

    Rounds are only as exact as the gap needs, which leaves the radius a little off; scaling the weights then meets the
    budget, at a cost of second order. ``least`` is called where no multiplier is small enough: it raises if the budget
    cannot be had at all.
    """
    state = rounds.solver.state
    top = math.log(largest)
    in_gram_space = isinstance(rounds.solver, QuadraticRows)
    looseness = GRAM_LOOSENESS if in_gram_space else LOOSENESS
    search = LogSecant(slope=GRAM_SLOPE if in_gram_space else SLOPE, high=top)
    x, distance, tighten, steps = math.log(start), 0.1 if near else 1.0, TIGHT, -1
    for _ in range(MAX_ROUNDS):
        multiplier = math.exp(x)
        # A penalised gap G moves the radius by a factor of about 1 +- sqrt(G / phi): stay below the distance expected,
        # and near the target below what scaling can mend.
        objective = multiplier * float(state.value.sum())
        needed = tighten * tol * objective * min(1.0, (objective / (epsilon * empty_radius)) ** 2)
        sums = rounds.run(multiplier, max(needed, looseness * min(EXPECTED * distance, 1.0) ** 2 * epsilon**2))
        if rounds.gap <= SAFETY * tol:
            return
        # dg/d(epsilon**2 / 2) = -1 / multiplier: aim inside the budget by what the gap can bear
        bearable = tol * multiplier * sums.objective
        aim = epsilon * (1.0 - min(0.1 * bearable / epsilon**2, 0.02))
        excess = math.log(max(sums.radius, 1e-300) / aim)
        spendable = GRAM_SCALING * bearable if in_gram_space else bearable
        if _scale_to(rounds, sums, multiplier, aim, empty_radius, spendable, SAFETY * tol):
            return
        proposal = search.propose(x, excess)
        if proposal < top + LEAST_LOG_RATIO:
            least()
            return
        if state.iterations == steps or search.width < 1e-3:  # the bracket rests on rounds that were too loose
            search.forget(top)
            tighten *= TIGHT
            distance *= TIGHT
        else:
            distance = abs(excess)
        if tighten < LEAST_TIGHTENING:
            return
        x, steps = proposal, state.iterations


def _scale_to(
    rounds: Rounds,
    sums: RowSums,
    multiplier: float,
    radius: float,
    empty_radius: float,
    bearable: float,
    gap: float,
) -> bool:
    """Scale the weights to the given radius where that is expected to cost less than ``bearable``.

    At W(1 + t) the loss is phi + t <C, W> + O(t**2), and the Lagrangian's minimum makes the cost of second order too:
    about t**2 / 2 times the energy of the pre-activations, for which epsilon_max**2 stands in. Returns whether the gap
    of the rounds came down to ``gap``.
    """
    state = rounds.solver.state
    for _ in range(SCALINGS):
        slope = float(sums.slope.sum())
        t = (0.5 * radius**2 - float(sums.loss.sum())) / slope if slope < 0 else math.inf
        if not t * t * empty_radius**2 <= bearable:
            return False
        state.weight *= 1.0 + t
        sums = rounds.run(multiplier, math.inf)
        if rounds.gap <= gap:
            return True
        if abs(sums.radius / radius - 1.0) * radius**2 <= 0.05 * bearable:
            return False
    return False


def count_slack(size: int) -> float:
    """Return how far the number of non-zero weights, of ``size``, may be from the one asked for."""
    return max(1.0, 0.002 * size)


def solve_sparsity(
    rounds: Rounds, kept: int, size: int, start: float, largest: float, tol: float, empty_radius: float, *, near: bool
) -> None:
    """Find a multiplier with ``kept`` non-zero weights of ``size``, up to `count_slack`.

    ``near`` tells that the search starts close to it. At a jump of the path it is the sparser side's. The best iterate
    of the rounds is the last one.
    """
    state = rounds.solver.state
    top = math.log(largest)
    search = LogSecant(slope=-0.9, high=top, flattest=0.3)
    x, accuracy, last, beyond = math.log(start), TIGHT * tol if near else LOOSE, False, 1e-6
    for _ in range(MAX_ROUNDS):
        multiplier = math.exp(x)
        objective = multiplier * float(state.value.sum())
        sums = rounds.run(multiplier, accuracy * (objective if objective > 0 else float(state.loss.sum())))
        count = int(np.count_nonzero(state.weight))
        tight = accuracy <= TIGHT * tol
        if last and count - kept > count_slack(size) and x < top:  # the denser side still passes as solved
            x, beyond = min(x + beyond, top), 3.0 * beyond
            continue
        if last or abs(count - kept) <= count_slack(size):
            if rounds.history[-1].gap <= SAFETY * tol or accuracy < LEAST_ACCURACY:
                return
            accuracy = TIGHT * accuracy if tight else TIGHT * tol
            continue
        if count < kept and sums.radius <= NEGLIGIBLE * empty_radius:
            last = True  # hardly any error is left: more weights have nothing to do
            continue
        excess = math.log(max(count, 0.5) / kept)
        proposal = search.propose(x, excess)
        exact = accuracy < EXACT * tol or rounds.history[-1].gap < EXACT * tol
        if proposal < top + LEAST_LOG_RATIO or (search.width < 1e-6 and exact):
            last = True  # no multiplier has more weights, or the path jumps over the count: take the sparser side
            proposal = search.high if count > kept else x
        elif (search.width < 1e-3 and not exact) or (not tight and EXPECTED * abs(excess) <= 0.01):
            search.forget(top)  # it rests on looser rounds
            accuracy = min(TIGHT * accuracy, TIGHT * tol)
        elif not tight:  # counts lag behind a multiplier that moves little: two rounds near the target do not tell more
            wanted = TIGHT * tol if accuracy <= NEAR * LOOSE else accuracy_for(EXPECTED * abs(excess), tol)
            if wanted < accuracy:
                search.forget(top)
            accuracy = wanted
        x = proposal
    raise Stopped(Status.STALLED)
