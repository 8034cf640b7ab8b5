"""Campaigns: solvers that never judge themselves, run until a judge's gap reaches the tolerance or a limit is met."""

from __future__ import annotations

import math
import time
from typing import Protocol

import numpy as np
import numpy.typing as npt

from .budgets import Budgets
from .errors import InfeasibleBudgetError
from .judge import Candidate, Judge, gap
from .solution import Progress, Status
from .solvers.batch_budgets import BatchSearch
from .solvers.douglas_rachford import GraphSplitting
from .solvers.haugazeau import Outcome
from .solvers.neuron_budgets import NeuronSearch
from .solvers.rounds import Controls
from .solvers.rows import Limits
from .solvers.sis import SubdifferentialInclusion

Array = npt.NDArray[np.float64]

SAFETY = 0.9  # of the tolerance is aimed at
SHRINK = 0.3  # of the tolerance is what aiming inside the budgets may cost
LOOKING_AHEAD = 0.1  # of the gap is how exact the next round of a search is
LEAST_ACCURACY = 0.02  # of the tolerance
FIRST_LOOK, MOST_STEPS = 8, 25  # steps of the splitting between two looks
GAIN, PATIENCE = 0.95, 300  # so many looks without bringing the gap down by a twentieth: rounding has the last word


class Counted(Protocol):
    """What makes iterates and counts what that takes."""

    @property
    def iterations(self) -> int:
        """Iterations so far."""
        ...

    @property
    def work(self) -> float:
        """Floating-point work over samples so far."""
        ...


class Engine(Protocol):
    """A solver, and how its iterates are shown to a judge."""

    @property
    def solver(self) -> Counted:
        """What makes the iterates."""
        ...

    def advance(self, judge: Judge, limits: Limits, tol: float) -> tuple[Candidate, bool]:
        """Go on a little and show the judge what came of it; return what it saw, and whether there is more to do."""
        ...


class SplittingEngine:
    """Steps of the graph-form splitting; the point on the graph is the better dual candidate."""

    def __init__(self, splitting: GraphSplitting) -> None:
        self.solver = splitting
        self._budgets = splitting.target if isinstance(splitting.target, Budgets) else None
        self._steps = FIRST_LOOK

    def advance(self, judge: Judge, limits: Limits, tol: float) -> tuple[Candidate, bool]:
        """See `Engine`."""
        splitting = self.solver
        for _ in range(min(self._steps, limits.iterations)):
            if limits.out_of_time():
                break
            splitting.step()
        self._steps = min(self._steps + 2, MOST_STEPS)
        seen = judge.look(splitting.weight, splitting.bias, splitting.duals)
        self._tighten(seen, tol)
        if gap(judge) > SAFETY * tol:
            judge.prove(splitting.graph_weight, splitting.bias, splitting.duals)
        return seen, True

    def _tighten(self, seen: Candidate, tol: float) -> None:
        """Aim a little inside the budgets, which iterates reach from without; d g*/d log eps_j = -mu_j eps_j**2."""
        if self._budgets is not None and seen.objective > 0.0:
            price = float(seen.duals @ self._budgets.radii**2) / seen.objective
            shrunk = (1.0 - SHRINK * tol / max(price, 1.0)) * self._budgets.radii
            self.solver.target = Budgets(self._budgets.per, shrunk, self._budgets.batches)


class InclusionEngine:
    """Iterations of the SIS paper's scheme."""

    def __init__(self, scheme: SubdifferentialInclusion) -> None:
        self.solver = scheme

    def advance(self, judge: Judge, limits: Limits, tol: float) -> tuple[Candidate, bool]:
        """See `Engine`."""
        scheme = self.solver
        outcome = scheme.step(limits)
        if outcome is Outcome.EMPTY and judge.best is None:
            msg = "the error budget cannot be attained: no weights keep it on all mini-batches; raise the budget"
            raise InfeasibleBudgetError(msg, math.nan)
        duals = scheme.duals()
        seen = judge.look(scheme.weight, scheme.bias, duals)
        judge.prove(scheme.projected_weight, scheme.projected_bias, duals)
        return seen, outcome is Outcome.REACHED


class BatchEngine:
    """The search for the multipliers of mini-batches over fast penalised solves."""

    def __init__(self, search: BatchSearch) -> None:
        self.solver = search
        self._accuracy = LOOKING_AHEAD

    def advance(self, judge: Judge, limits: Limits, tol: float) -> tuple[Candidate, bool]:
        """See `Engine`."""
        search = self.solver
        accuracy = max(self._accuracy, LEAST_ACCURACY * tol)
        search.advance(limits, accuracy)
        seen = judge.look(search.weight, search.bias, search.duals)
        search.propose(seen.losses, seen.objective, accuracy * seen.objective)
        self._accuracy = LOOKING_AHEAD * min(gap(judge), accuracy)
        return seen, True


class NeuronEngine:
    """The searches of all neurons for their own multipliers."""

    def __init__(self, search: NeuronSearch) -> None:
        self.solver = search

    def advance(self, judge: Judge, limits: Limits, tol: float) -> tuple[Candidate, bool]:
        """See `Engine`."""
        search = self.solver
        more = search.advance(limits, SAFETY * tol)
        seen = judge.look(search.weight, search.bias, search.duals)
        judge.prove(search.dual_weight, search.bias, search.duals)
        return seen, more


def run(
    engine: Engine, judge: Judge, controls: Controls, tol: float, unit: float
) -> tuple[list[Progress], Status | None]:
    """Run an engine until the judge's gap is at most ``tol``.

    ``unit`` is the work of one product with the inputs. Returns the history and why it was cut short, if it was.
    """
    history: list[Progress] = []
    best, idle = math.inf, 0
    while True:
        limits = Limits(max(controls.max_iterations - engine.solver.iterations, 0), controls.deadline)
        seen, more = engine.advance(judge, limits, tol)
        now = gap(judge)
        history.append(
            Progress(
                round=len(history) + 1,
                multiplier=single_multiplier(seen.duals),
                objective=seen.objective,
                lower_bound=judge.bound,
                gap=judge.gap_of(seen),
                radius=float(np.sqrt(2.0 * seen.losses.sum())),
                n_nonzero=int(np.count_nonzero(seen.weight)),
                n_iterations=engine.solver.iterations,
                n_products=(engine.solver.work + judge.work) / unit,
                seconds=time.monotonic() - controls.started,
            )
        )
        if controls.callback is not None and controls.callback(history[-1]):
            return history, Status.CALLBACK
        if now <= tol:
            return history, None
        if time.monotonic() >= controls.deadline:
            return history, Status.TIME_LIMIT
        if engine.solver.iterations >= controls.max_iterations:
            return history, Status.ITERATION_LIMIT
        best, idle = (now, 0) if now < GAIN * best else (best, idle + 1)
        if not more or idle >= PATIENCE:
            return history, Status.STALLED


def single_multiplier(duals: Array) -> float:
    """Return lambda = 1 / mu where there is one budget; NaN with several."""
    if duals.size != 1:
        return math.nan
    return math.inf if duals[0] == 0.0 else 1.0 / float(duals[0])
