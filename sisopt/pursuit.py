"""Pursuit of a goal: the corner cases that need no search, the search, and what to return when it is cut short."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from .activations.base import Elementwise
from .certificate import FEASIBILITY, RowSums, budget_bound, penalized_bound
from .errors import InfeasibleBudgetError, InvalidInputError
from .evaluation import empty_evaluation, empty_radius, evaluate, target_size
from .goals import ErrorBudget, Goal, Penalized, Sparsity
from .gram_statistics import is_quadratic
from .problem import LayerProblem
from .solution import Progress, Solution, Status
from .solvers.choice import data_solver, row_solver
from .solvers.forward_backward import DataRows
from .solvers.multiplier import (
    SAFETY,
    count_slack,
    solve_budget,
    solve_penalized,
    solve_sparsity,
)
from .solvers.precision import working_dtype
from .solvers.quadratic import QuadraticRows
from .solvers.quadratic_groups import QuadraticGroups
from .solvers.quadratic_line import QuadraticLine
from .solvers.rounds import Controls, Iterate, Rounds, RowSolver, Stopped
from .solvers.rows import Limits, State
from .thinning import thinned, useful_samples
from .validation import as_float_array, check_shape

Array = npt.NDArray[np.float64]

WarmStart = Solution | tuple[npt.ArrayLike, npt.ArrayLike | None]

SAME = 1e-7  # relative error up to which a layer counts as the dense one
LEAST_ERROR_ACCURACY = 1e-9  # of a solve without penalty, relative to the loss
SMALL_MULTIPLIER = 1e-6  # relative to the largest: where a dual point for a budget of 0 is taken
DENSE_ACCURACY = 0.1  # of the tolerance
COARSE_PER_INPUT, COARSENING = 32, 8  # samples to start on: so many per input at least, and this part of all
COARSE_TOL = 2e-3  # gap of the answer on them


class Pursuit:
    """One call of solve: holds the solver's state between attempts at rising accuracy.

    ``largest`` is the multiplier from which on W = 0 is optimal, ``epsilon`` the budget as a radius.
    """

    def __init__(
        self,
        problem: LayerProblem,
        goal: Goal,
        controls: Controls,
        warm_start: WarmStart | None,
    ) -> None:
        self.problem, self.goal, self.controls = problem, goal, controls
        self.structure = problem.structure
        self.work_unit = 2.0 * problem.n_samples * problem.n_in * problem.n_out
        empty = empty_evaluation(problem, controls.n_threads)
        nothing = np.zeros(problem.weight.shape)
        sums = empty.sums(problem, nothing)
        self.empty_radius = empty_radius(problem, sums)
        self.largest = float(sums.dual_norm.max())
        self.epsilon = 0.0
        if isinstance(goal, ErrorBudget):
            self.epsilon = goal.epsilon(self.empty_radius, problem.total_weight)
        self._exact = self.epsilon == 0.0
        if self._exact:  # half of what counts as kept: a budget that can be certified
            self.epsilon = 0.5 * FEASIBILITY[problem.weight.dtype] * self.empty_radius
        self._warm = warm_start
        self._state = State.start(nothing, empty.bias.copy(), sums)
        self._state.work = empty.work
        if warm_start is not None:
            self._warm_up(warm_start)
        self._rounds: Rounds | None = None
        self._solver: RowSolver | None = None
        self._near: float | None = None  # multiplier of an answer to nearly the same problem

    @property
    def history(self) -> list[Progress]:
        """Progress of all rounds so far."""
        return self._rounds.history if self._rounds is not None else []

    @property
    def best_dual_point(self) -> Array | None:
        """Weights whose gradient gave the best bound, if they are not those returned."""
        return self._rounds.bound_from if self._rounds is not None else None

    @property
    def n_iterations(self) -> int:
        """Steps of the slowest row so far."""
        return self._state.iterations

    @property
    def work(self) -> float:
        """Floating-point work over samples so far."""
        return self._state.work

    @work.setter
    def work(self, value: float) -> None:
        self._state.work = value

    @property
    def feasible_radius(self) -> float:
        """The radius up to which the budget counts as kept."""
        return 2.0 * self.epsilon if self._exact else self.epsilon * (1.0 + FEASIBILITY[self.problem.weight.dtype])

    def run(self, tol: float) -> tuple[Iterate, Status | None]:
        """Return the best iterate at a gap of ``tol``, and why the search was cut short if it was."""
        if self._empty_is_optimal():
            multiplier = self.goal.multiplier if isinstance(self.goal, Penalized) else self.largest
            return Iterate(np.zeros(self.problem.weight.shape), multiplier), None
        if self._solver is None or self._rounds is None:
            if self._warm is None:
                self._start_coarse()
            self._solver = row_solver(self.problem, self._state, self.controls.n_threads, self._dtype(tol))
            score = partial(_score, self.goal, self.epsilon)  # no bound method: a cycle would outlive the solve
            self._rounds = Rounds(
                self._solver, self.controls, score, self.work_unit, keep_last=isinstance(self.goal, Sparsity)
            )
        rounds, stopped = self._rounds, None
        try:
            self._search(rounds, tol if self._warm is None else tol / 0.9)  # so that a solution restarts as solved
        except Stopped as reason:
            stopped = reason.status
        if rounds.best is None and stopped is Status.STALLED:
            self._least_error(rounds)
        if rounds.best is None:
            self._offer_dense(rounds)
        return rounds.best or rounds.latest(), stopped

    def sharpen(self) -> None:
        """Go on over the data in float64: that keeps digits which differences of sums, and float32, lose."""
        if not isinstance(self._solver, QuadraticRows | QuadraticGroups | QuadraticLine | DataRows):
            return
        exact = isinstance(self._solver, DataRows) and self._solver.dtype == np.float64
        if not exact and self.problem.inputs is not None:
            self._solver = data_solver(self.problem, self._state, self.controls.n_threads)
            if self._rounds is not None:
                self._rounds.replace_solver(self._solver)

    def _dtype(self, tol: float) -> np.dtype[Any]:
        """Return the precision in which to begin."""
        if self.problem.inputs is None or is_quadratic(self.problem):
            return np.dtype(np.float64)
        goal = self.goal
        if isinstance(goal, ErrorBudget):
            error = self.epsilon / self.empty_radius
        elif isinstance(goal, Sparsity):
            error = 0.1 * goal.sparsity**2
        else:
            error = goal.multiplier / self.largest
        return working_dtype(self.problem, tol, error, self.empty_radius, target_size(self.problem))

    def _start_coarse(self) -> None:
        """Start from the answer on part of the samples, where these are many."""
        problem, exact = self.problem, self._exact and isinstance(self.goal, ErrorBudget)
        if problem.inputs is None or exact or not isinstance(problem.activation, Elementwise) or is_quadratic(problem):
            return
        samples = useful_samples(problem, max(COARSE_PER_INPUT * problem.n_in, problem.n_samples // COARSENING))
        if samples is None:
            return
        part = thinned(problem, samples)
        share = part.total_weight / problem.total_weight
        goal: Goal = self.goal
        if isinstance(goal, Penalized):
            goal = Penalized(share * goal.multiplier)
        elif isinstance(goal, ErrorBudget):
            goal = ErrorBudget(relative_error=self.epsilon / self.empty_radius)
        left = replace(self.controls, callback=None)
        try:
            coarse = Pursuit(part, goal, left, None)
            iterate, _ = coarse.run(COARSE_TOL)
        except InfeasibleBudgetError:
            return
        self.work += coarse.work
        state = self._state
        state.iterations += coarse.n_iterations
        state.weight[:], state.bias[:] = iterate.weight, coarse._state.bias
        state.value[:] = self.structure.values(state.weight)
        self._near = min(iterate.multiplier / share, self.largest)

    def _empty_is_optimal(self) -> bool:
        if self.empty_radius == 0.0:
            return True
        if isinstance(self.goal, Penalized):
            return self.goal.multiplier >= self.largest
        if isinstance(self.goal, Sparsity):
            return self._kept == 0 or self.largest == 0.0
        if self.epsilon >= self.empty_radius:
            return True
        if self.largest == 0.0:
            raise self._infeasible(self.empty_radius)
        return False

    @property
    def _kept(self) -> int:
        assert isinstance(self.goal, Sparsity)
        return self.goal.kept(self.problem.weight.size)

    def _infeasible(self, radius: float) -> InfeasibleBudgetError:
        least = radius / self.empty_radius
        msg = (
            f"the error budget cannot be attained: relative_error {self.epsilon / self.empty_radius:.6g} (radius "
            f"{self.epsilon:.6g}) was asked for, the least attainable relative_error is {least:.6g} (radius "
            f"{radius:.6g}); raise the budget"
        )
        return InfeasibleBudgetError(msg, least)

    def _warm_up(self, warm_start: WarmStart) -> None:
        state = self._state
        state.weight[:] = starting_point(self.problem, warm_start, self.goal)[0]
        state.value[:] = self.structure.values(state.weight)

    def _start(self) -> float:
        """Return the multiplier to start from: the goal's, the warm start's, or a guess."""
        if isinstance(self.goal, Penalized):
            return self.goal.multiplier
        if isinstance(self._warm, Solution) and 0.0 < self._warm.multiplier < self.largest:
            return self._warm.multiplier
        if self._near is not None:
            return self._near
        if isinstance(self.goal, Sparsity):
            return self.largest * max(0.02, 0.25 * self.goal.sparsity**2)
        relative = self.epsilon / self.empty_radius
        return self.largest * max(relative**3, 0.2 * relative**2, 1e-8)

    def count_is_right(self, weight: npt.NDArray[Any]) -> bool:
        """Return whether the weights have as many non-zeros as a goal of a sparsity asks for, up to its slack."""
        if not isinstance(self.goal, Sparsity):
            return True
        return abs(int(np.count_nonzero(weight)) - self._kept) <= count_slack(weight.size)

    def _search(self, rounds: Rounds, tol: float) -> None:
        goal, size = self.goal, self.problem.weight.size
        start = rounds.history[-1].multiplier if rounds.history else self._start()
        if self._warm is not None and not rounds.history:
            self._measure_warm_start(rounds, start)
            if rounds.gap <= SAFETY * tol and self.count_is_right(self._state.weight):
                return
        near = self._near is not None
        if isinstance(goal, Penalized):
            solve_penalized(rounds, goal.multiplier, tol)
        elif isinstance(goal, Sparsity):
            if self._kept >= int(self.problem.allowed().sum()):
                self._dense(rounds, tol)
            else:
                solve_sparsity(rounds, self._kept, size, start, self.largest, tol, self.empty_radius, near=near)
        elif not (self._exact and self._dense(rounds, tol)):
            solve_budget(
                rounds, self.epsilon, start, self.largest, tol, self.empty_radius, lambda: self._least_error(rounds),
                near=near,
            )  # fmt: skip
            if rounds.best is None:
                self._least_error(rounds)

    def _measure_warm_start(self, rounds: Rounds, multiplier: float) -> None:
        """Measure the warm start, and the weights that proved its bound: they may be good enough as they are."""
        weight = self._state.weight
        if isinstance(self._warm, Solution) and self._warm.dual_weight is not None:
            kept = weight.copy()
            weight[:] = self.problem.masked(self._warm.dual_weight)
            rounds.run(multiplier, math.inf)
            weight[:] = kept
        rounds.run(multiplier, math.inf)

    def _dense(self, rounds: Rounds, tol: float) -> bool:
        """Offer the dense layer, after a round at a small multiplier for the sake of its dual point.

        Returns whether that is good enough.
        """
        multiplier = SMALL_MULTIPLIER * self.largest
        W = self.problem.masked(self.problem.weight)
        rounds.run(multiplier, DENSE_ACCURACY * tol * multiplier * float(self.structure.values(W).sum()))
        return self._offer_dense(rounds) and rounds.gap <= SAFETY * tol

    def _offer_dense(self, rounds: Rounds) -> bool:
        """Offer the dense weights, which meet every budget unless the inputs changed or the mask forbids some."""
        W = self.problem.masked(self.problem.weight)
        at = evaluate(self.problem, W, self.controls.n_threads)
        self.work += at.work
        radius = float(np.sqrt(2.0 * at.loss.sum()))
        exact = 2.0 * SAME * self.empty_radius  # for goals without a budget: only where it is the dense layer indeed
        meets = radius <= (self.feasible_radius if isinstance(self.goal, ErrorBudget) else exact)
        if meets:
            rounds.offer(W, float(self.structure.values(W).sum()))
        return meets

    def _least_error(self, rounds: Rounds) -> None:
        """Solve without a penalty, unless the dense layer will do; raise if even that misses the budget."""
        if isinstance(self.goal, ErrorBudget) and self._offer_dense(rounds):
            return
        state, controls = self._state, self.controls
        tolerances = LEAST_ERROR_ACCURACY * state.loss + 1e-16 * self.empty_radius**2 / state.loss.size
        limits = Limits(max(0, controls.max_iterations - state.iterations), controls.deadline)
        rounds.solver.solve(0.0, tolerances, limits)
        sums = state.sums()
        if limits.out_of_time():
            raise Stopped(Status.TIME_LIMIT)
        if state.iterations >= controls.max_iterations:
            raise Stopped(Status.ITERATION_LIMIT)
        if isinstance(self.goal, ErrorBudget) and sums.radius > self.feasible_radius:
            raise self._infeasible(sums.radius)
        rounds.offer(state.weight.copy(), sums.objective)


def _score(goal: Goal, epsilon: float, sums: RowSums, multiplier: float) -> tuple[float, float, bool]:
    """Return the goal's objective, a lower bound on its optimum, and whether the iterate meets it."""
    if isinstance(goal, Penalized):
        return multiplier * sums.objective + float(sums.loss.sum()), penalized_bound(sums, multiplier), True
    if isinstance(goal, Sparsity):
        return sums.objective, budget_bound(sums, sums.radius), True
    return sums.objective, budget_bound(sums, epsilon), sums.radius <= epsilon * (1.0 + 1e-9)


def starting_point(
    problem: LayerProblem, warm_start: WarmStart | None, goal: Goal
) -> tuple[Array, Array, Array | None]:
    """Return weights (n_out, n_in), zero where the mask says so, a bias (n_out,) and, from a solution, its duals (J,).

    Without a warm start these are the dense layer's; duals are those of budgets of the same groups.
    """
    given: npt.ArrayLike
    b: npt.ArrayLike | None
    duals = None
    if warm_start is None:
        given, b = problem.weight, problem.bias
    elif isinstance(warm_start, Solution):
        given, b = warm_start.weight, warm_start.bias
        other = warm_start.goal
        if isinstance(goal, ErrorBudget) and isinstance(other, ErrorBudget):
            same = (goal.per, goal.batch_size) == (other.per, other.batch_size)
            duals = warm_start.duals if same and warm_start.duals.any() else None
    elif isinstance(warm_start, tuple | list) and len(warm_start) == 2:
        given, b = warm_start
    else:
        msg = f"warm_start must be a Solution or a pair (weight, bias), got {type(warm_start).__name__}"
        raise InvalidInputError(msg)
    W = as_float_array("warm_start weight", given, 2, dtype=np.float64)
    check_shape("warm_start weight", W, problem.weight.shape, "(that of weight)")
    bias = problem.dense_bias
    if b is not None:
        bias = np.array(as_float_array("warm_start bias", b, 1, dtype=np.float64))
        check_shape("warm_start bias", bias, (problem.n_out,), "(one per output)")
    if not problem.has_bias:
        bias = np.zeros(problem.n_out)
    return problem.masked(W), bias, duals
