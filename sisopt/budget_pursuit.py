"""Pursuit of a goal by engines and judges: corner cases, feasibility, the engine of a method, the run."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from .budgets import Budgets, budgets_of
from .campaign import BatchEngine, Engine, InclusionEngine, NeuronEngine, SplittingEngine, run
from .certificate import FEASIBILITY, RowSums
from .errors import InfeasibleBudgetError
from .evaluation import empty_radius
from .evaluation_groups import GroupEvaluation, evaluate_groups, weighted_problem
from .goals import ErrorBudget, Penalized
from .judge import BudgetJudge, Judge, PenalizedJudge, allowed_radii
from .problem import LayerProblem
from .pursuit import Pursuit
from .solution import Progress, Status
from .solvers.batch_budgets import BatchSearch
from .solvers.choice import row_solver
from .solvers.douglas_rachford import GraphSplitting
from .solvers.neuron_budgets import NeuronSearch
from .solvers.rounds import Controls
from .solvers.rows import Limits, State
from .solvers.sis import SubdifferentialInclusion

Array = npt.NDArray[np.float64]

NEARLY = 1.5  # times the budgets: a constant layer that misses them by more is not tried with other biases
BIAS_ROUNDS, FEASIBLE_ROUNDS = 60, 30
FIRST_GAP = 0.1  # of the search with one budget that the one with several starts from
LEAST_ERROR_ACCURACY, LEAST_ERROR_STEPS = 1e-7, 300


@dataclass(frozen=True)
class Outcome:
    """What a pursuit came to."""

    judge: Judge
    history: tuple[Progress, ...]
    stopped: Status | None
    iterations: int
    work: float
    empty_radius: float


class BudgetPursuit:
    """One call of solve.

    ``start`` holds weights (n_out, n_in), a bias (n_out,) and, where they come from a solution, its duals (J,).
    """

    def __init__(
        self,
        problem: LayerProblem,
        goal: ErrorBudget | Penalized,
        controls: Controls,
        start: tuple[Array, Array, Array | None],
    ) -> None:
        self.problem, self.goal, self.controls, self.start = problem, goal, controls, start
        everything = Budgets("layer", np.full(1, np.inf), (slice(0, problem.n_samples),))
        nothing = np.zeros((problem.n_out, problem.n_in))
        empty = evaluate_groups(problem, nothing, problem.dense_bias, everything, np.ones(1), controls.n_threads)
        self._empty, self._work, self._iterations, self._asked = empty, empty.work, 0, 0.0
        self.empty_radius = empty_radius(problem, empty.sums)
        self.judge: Judge
        if isinstance(goal, Penalized):
            self.budgets = everything
            self.judge = PenalizedJudge(problem, goal.multiplier, controls.n_threads)
        else:
            asked = budgets_of(goal, problem, empty.parts[:, 0])
            self._asked = float(np.sqrt((asked.radii**2).sum()))
            self.budgets, exact = self._positive(asked)
            allowed = allowed_radii(self.budgets, problem.weight.dtype, exact)
            self.judge = BudgetJudge(problem, self.budgets, allowed, controls.n_threads)

    def _positive(self, budgets: Budgets) -> tuple[Budgets, bool]:
        """Return budgets that can be divided by, and whether they stand for budgets of 0.

        A budget of 0 becomes half of what counts as kept. Groups without any loss, dead neurons and mini-batches
        without weight, get budgets that ask for nothing.
        """
        empty = self._empty.parts[:, 0]
        exact = not budgets.radii.any()
        radii = budgets.radii.copy()
        if exact:
            part = 0.5 * FEASIBILITY[self.problem.weight.dtype]
            if budgets.per == "neuron":
                radii = part * np.sqrt(2.0 * empty)
            else:
                radii[:] = part * self.empty_radius / np.sqrt(radii.size)
        radii[radii == 0.0] = self.empty_radius if self.empty_radius > 0 else 1.0
        return Budgets(budgets.per, radii, budgets.batches), exact

    def run(self, method: str, tol: float) -> Outcome:
        """Pursue the goal to a gap of ``tol``."""
        history: list[Progress] = []
        stopped, engine = None, None
        if not self._constant_layer_will_do():
            self._look_for_feasible_weights()
            engine = self._engine(method)
            history, stopped = run(engine, self.judge, self.controls, tol, self._unit)
        self.judge.settle()
        work = self._work + self.judge.work + (engine.solver.work if engine is not None else 0.0)
        iterations = self._iterations + (engine.solver.iterations if engine is not None else 0)
        return Outcome(self.judge, tuple(history), stopped, iterations, work, self.empty_radius)

    @property
    def _unit(self) -> float:
        return 2.0 * self.problem.n_samples * self.problem.n_in * self.problem.n_out

    def _constant_layer_will_do(self) -> bool:
        """Look at W = 0; under budgets of mini-batches also with other biases than the layer's best."""
        nothing, duals = np.zeros((self.problem.n_out, self.problem.n_in)), np.ones(self.budgets.size)
        largest = float(self._empty.sums.dual_norm.max())
        if isinstance(self.goal, Penalized):
            self.judge.look(nothing, self._empty.bias, np.array([1.0 / self.goal.multiplier]))
            return self.goal.multiplier >= largest or self.empty_radius == 0.0
        duals *= 1.0 / largest if largest > 0 else 0.0
        seen = self.judge.look(nothing, self._empty.bias, duals)
        excess = np.sqrt(2.0 * seen.losses) / self.budgets.radii
        if self.judge.best is None and self.budgets.per == "batch" and self.problem.has_bias and excess.max() <= NEARLY:
            for _ in range(BIAS_ROUNDS):
                at = self._evaluate(nothing, self._empty.bias, duals)
                excess = np.sqrt(2.0 * at.best_losses) / self.budgets.radii
                if excess.max() <= 1.0:
                    self.judge.look(nothing, at.bias, duals)
                    break
                duals = duals * excess
        return self.judge.best is not None

    def _look_for_feasible_weights(self) -> None:
        """Find weights that keep the budgets, the dense ones to begin with; raise if there are provably none."""
        problem = self.problem
        dense = problem.masked(problem.weight)
        largest = float(self._empty.sums.dual_norm.max())
        duals = np.full(self.budgets.size, 1.0 / largest if largest > 0 else 0.0)
        seen = self.judge.look(dense, problem.dense_bias, duals)
        if self.judge.best is not None or problem.batches is not None:
            return
        duals = np.ones(self.budgets.size)
        state = State.start(dense.copy(), problem.dense_bias, _no_sums(problem.n_out))
        deadline = self.controls.deadline
        for _ in range(FEASIBLE_ROUNDS if self.budgets.per == "batch" else 1):
            solver = row_solver(weighted_problem(problem, self.budgets, duals), state, self.controls.n_threads)
            solver.solve(0.0, np.zeros(problem.n_out), Limits(0, deadline))  # measures what the tolerances refer to
            limits, before = Limits(LEAST_ERROR_STEPS, deadline), state.iterations
            solver.solve(0.0, LEAST_ERROR_ACCURACY * state.loss, limits)
            seen = self.judge.look(state.weight, state.bias, duals)
            if self.judge.best is not None or limits.out_of_time():
                return
            if state.iterations - before >= LEAST_ERROR_STEPS:
                continue  # what was found is not the least error
            excess = 2.0 * seen.losses / self.budgets.radii**2
            # No weights do better than these on the weighted sum: its budget is a bound for all.
            need = float(2.0 * (duals @ seen.losses) / (duals @ self.budgets.radii**2))
            if self.budgets.per == "neuron":
                need = float(excess.max())
            if need > 1.0 + FEASIBILITY[problem.weight.dtype]:
                raise self._infeasible(float(np.sqrt(need)))
            duals = duals * np.sqrt(excess) / (duals * np.sqrt(excess)).max()

    def _infeasible(self, factor: float) -> InfeasibleBudgetError:
        asked = self._asked / self.empty_radius
        least = factor * asked
        what = {"layer": "the error budget", "batch": "a mini-batch's budget", "neuron": "a neuron's budget"}
        msg = (
            f"{what[self.budgets.per]} cannot be attained: relative_error {asked:.6g} was asked for, and all budgets "
            f"would have to be {factor:.6g} times as large at least, relative_error {least:.6g}; raise the budget"
        )
        return InfeasibleBudgetError(msg, least)

    def _evaluate(self, weight: Array, bias: Array, duals: Array) -> GroupEvaluation:
        at = evaluate_groups(self.problem, weight, bias, self.budgets, duals, self.controls.n_threads)
        self._work += at.work
        return at

    def _engine(self, method: str) -> Engine:
        problem, structure, threads = self.problem, self.problem.structure, self.controls.n_threads
        weight, bias, duals = self.start
        if duals is not None and duals.size != self.budgets.size:  # of as many budgets as other data had
            duals = None
        if method == "sis":
            return InclusionEngine(SubdifferentialInclusion(problem, structure, self.budgets, (weight, bias)))
        if method == "douglas-rachford":
            target = self.goal.multiplier if isinstance(self.goal, Penalized) else self.budgets
            return SplittingEngine(GraphSplitting(problem, structure, target, threads, (weight, bias), duals))
        if self.budgets.per == "neuron":
            sums = self._empty.sums
            state = State.start(weight.copy(), bias.copy(), sums)
            solver = row_solver(problem, state, threads)
            return NeuronEngine(NeuronSearch(solver, self.budgets.radii, sums.radius_rows, sums.dual_norm, duals))
        return BatchEngine(self._batch_search(duals))

    def _batch_search(self, duals: Array | None) -> BatchSearch:
        """Start from the solution with one budget for all, or from a warm start that knows its duals."""
        problem, budgets = self.problem, self.budgets
        weight, bias, _ = self.start
        if duals is None:
            together = ErrorBudget(radius=self._asked or float(budgets.radii.min()))
            pursuit = Pursuit(problem, together, replace(self.controls, callback=None), None)
            iterate, _ = pursuit.run(FIRST_GAP)
            self._work += pursuit.work
            self._iterations += pursuit.n_iterations
            weight, duals = iterate.weight, np.full(budgets.size, 1.0 / iterate.multiplier)
        state = State.start(weight.copy(), bias.copy(), _no_sums(problem.n_out))
        return BatchSearch(problem, budgets, state, duals, self.controls.n_threads)


def _no_sums(n_out: int) -> RowSums:
    none = np.zeros(n_out)
    return RowSums(none, none, none, none)
