"""Rounds: penalised solves at one multiplier each, warm-started, logged and stopped at limits."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ..certificate import RowSums, penalized_row_gaps, relative_gap
from ..solution import Progress, Status
from .rows import Limits, State

Array = npt.NDArray[np.float64]

MAX_STALLS = 10


class RowSolver(Protocol):
    """What solves the penalised program of all rows at one multiplier."""

    state: State

    def solve(self, multiplier: float | Array, tolerances: Array, limits: Limits) -> None:
        """Bring the gap of every row to its tolerance, or stop at a limit."""
        ...


class Stopped(Exception):
    """A limit or the callback ended the solve."""

    def __init__(self, status: Status) -> None:
        super().__init__(status.value)
        self.status = status


@dataclass(frozen=True)
class Controls:
    """What the caller of a solve set: limits, callback, threads; ``started`` and ``deadline`` are monotonic seconds."""

    max_iterations: int
    started: float
    deadline: float
    callback: Callable[[Progress], object] | None
    n_threads: int


@dataclass(frozen=True)
class Iterate:
    """A copy of the weights (n_out, n_in) at the end of a round, and the round's multiplier."""

    weight: Array
    multiplier: float


@dataclass
class Rounds:
    """Runs rounds, keeps their history, the best iterate and the best bound.

    ``score`` turns an iterate's sums and multiplier into (objective, lower bound, whether it meets the goal);
    ``work_unit`` is the floating-point work of one product with the inputs. With ``keep_last`` the best iterate is the
    latest, and so is the bound: objectives of different iterates do not compare.
    """

    solver: RowSolver
    controls: Controls
    score: Callable[[RowSums, float], tuple[float, float, bool]]
    work_unit: float
    keep_last: bool
    history: list[Progress] = field(default_factory=list)
    best: Iterate | None = None
    best_objective: float = np.inf
    bound: float = 0.0
    bound_from: Array | None = None
    stalls: int = 0  # rounds in a row that rounding kept from what was asked of them

    @property
    def gap(self) -> float:
        """Relative gap between the best iterate that meets the goal and the best bound; infinite without one."""
        return relative_gap(self.best_objective, self.bound) if self.best is not None else np.inf

    def run(self, multiplier: float, total_gap: float) -> RowSums:
        """Solve at ``multiplier`` until the rows' gaps add up to at most ``total_gap``; return the sums."""
        state, controls = self.solver.state, self.controls
        objectives = multiplier * state.value + state.loss
        share = objectives / objectives.sum() if objectives.sum() > 0 else np.full(objectives.size, 1 / objectives.size)
        tolerances = total_gap * 0.5 * (share + 1.0 / objectives.size)
        limits = Limits(controls.max_iterations - state.iterations, controls.deadline)
        self.solver.solve(multiplier, tolerances, limits)
        sums = state.sums()
        self._record(sums, multiplier)
        reached = penalized_row_gaps(sums, multiplier).sum() <= total_gap
        self.stalls = 0 if reached else self.stalls + 1
        if self.stalls >= MAX_STALLS:
            raise Stopped(Status.STALLED)
        return sums

    def replace_solver(self, solver: RowSolver) -> None:
        """Go on with a sharper solver of the same state; what the last one measured no longer counts."""
        self.solver, self.stalls = solver, 0
        self.best, self.best_objective = None, np.inf
        self.bound, self.bound_from = 0.0, None

    def latest(self) -> Iterate:
        """Return the present weights."""
        return Iterate(self.solver.state.weight.copy(), self.history[-1].multiplier)

    def offer(self, weight: Array, objective: float) -> None:
        """Take weights that meet the goal, found otherwise, if they are the best so far."""
        if self.best is None or objective < self.best_objective or self.keep_last:
            self.best, self.best_objective = Iterate(weight, self.history[-1].multiplier), objective

    def _record(self, sums: RowSums, multiplier: float) -> None:
        state, controls = self.solver.state, self.controls
        objective, bound, meets = self.score(sums, multiplier)
        if self.keep_last or bound > self.bound:
            self.bound, self.bound_from = bound, state.weight.copy()
        if meets and (self.keep_last or objective < self.best_objective):
            self.best, self.best_objective = Iterate(state.weight.copy(), multiplier), objective
        progress = Progress(
            round=len(self.history) + 1,
            multiplier=multiplier,
            objective=objective,
            lower_bound=self.bound,
            gap=relative_gap(objective, self.bound) if meets else np.inf,
            radius=sums.radius,
            n_nonzero=int(np.count_nonzero(state.weight)),
            n_iterations=state.iterations,
            n_products=state.work / self.work_unit,
            seconds=time.monotonic() - controls.started,
        )
        self.history.append(progress)
        if controls.callback is not None and controls.callback(progress):
            raise Stopped(Status.CALLBACK)
        if time.monotonic() >= controls.deadline:
            raise Stopped(Status.TIME_LIMIT)
        if state.iterations >= controls.max_iterations:
            raise Stopped(Status.ITERATION_LIMIT)
