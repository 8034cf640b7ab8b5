"""solve(): checks what is asked, runs the solver, certifies what it returns."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from .budget_pursuit import BudgetPursuit, Outcome
from .campaign import single_multiplier
from .capabilities import METHODS, check_capability
from .certificate import INVALID, budget_bound, penalized_bound, relative_gap
from .errors import ConvergenceWarning, InvalidInputError
from .evaluation import Evaluation, evaluate
from .goals import ErrorBudget, Goal, Penalized, Sparsity
from .judge import gap
from .problem import LayerProblem
from .pursuit import Pursuit, starting_point
from .solution import Progress, Solution, Status
from .solvers.multiplier import SAFETY
from .solvers.rounds import Controls, Iterate
from .threads import resolve_threads, serial_blas
from .validation import number, positive_integer

Array = npt.NDArray[np.float64]

MAX_ITERATIONS = 10_000
LEAST_TOL = {np.dtype(np.float64): 1e-9, np.dtype(np.float32): 1e-5}
ATTEMPTS = 3  # rounding to float32 may cost a little of the gap: then the solver is asked for more


def solve(
    problem: LayerProblem,
    goal: Goal,
    *,
    method: str = METHODS[0],
    tol: float = 1e-4,
    max_iterations: int = MAX_ITERATIONS,
    max_seconds: float | None = None,
    warm_start: Solution | tuple[npt.ArrayLike, npt.ArrayLike | None] | None = None,
    callback: Callable[[Progress], object] | None = None,
    n_threads: int | None = None,
) -> Solution:
    """Solve a layer's convex program and certify the answer.

    Depending on the goal, with g the problem's penalty and phi its loss (see `LayerProblem`):

    * ``Penalized(multiplier)``: minimise ``multiplier * g(W) + phi(W, b)``.
    * ``ErrorBudget(...)``: minimise ``g(W)`` subject to ``sqrt(2 phi(W, b)) <= epsilon``.
    * ``Sparsity(s)``: the solution of the above at the epsilon for which a fraction s of the weights is zero.

    Parameters
    ----------
    problem : LayerProblem
    goal : Penalized, ErrorBudget or Sparsity
    method : {"forward-backward", "douglas-rachford", "sis"}
        Variable-metric forward-backward with Newton steps where they are cheaper, the fastest; Douglas-Rachford in
        graph form, which keeps budgets of any grouping without a search for multipliers; or the scheme of the SIS
        paper, which touches one mini-batch at a time: faithful, slow, and for data larger than memory.
    tol : float, default 1e-4
        Relative gap (objective - lower bound) / objective at which to stop; at least 1e-9, for float32 layers 1e-5.
    max_iterations : int
        Most steps of the slowest output neuron, over the whole search for the multiplier; or of the splitting.
    max_seconds : float, optional
        Wall-clock limit, looked at between steps.
    warm_start : Solution or (weight, bias), optional
        Where to start: a solution of a neighbouring problem also tells its multiplier. Never modified.
    callback : callable, optional
        Called with a `Progress` after every round; a true value stops the solve.
    n_threads : int, optional
        Default: all cores that the process may use. The bits of the answer do not depend on it.

    Returns
    -------
    Solution
        At a limit, the best iterate that meets the goal (the dense layer at worst), with its gap and an honest status.

    Raises
    ------
    InvalidInputError
        If an argument is not what it should be.
    UnsupportedError
        If the method cannot do what is asked; says which can.
    InfeasibleBudgetError
        If no weights keep the budget; says the least relative error that can be had.

    Warns
    -----
    ConvergenceWarning
        If the gap did not reach ``tol``.

    Examples
    --------
    >>> import numpy as np, sisopt
    >>> rng = np.random.default_rng(0)
    >>> problem = sisopt.LayerProblem(rng.normal(size=(200, 8)), rng.normal(size=(3, 8)), activation="relu")
    >>> solution = sisopt.solve(problem, sisopt.ErrorBudget(relative_error=0.2), tol=1e-4)
    >>> solution.lower_bound <= solution.objective <= solution.lower_bound / (1 - 1e-4)
    True
    >>> tighter = sisopt.solve(problem, sisopt.ErrorBudget(relative_error=0.1), warm_start=solution)
    >>> tighter.objective > solution.objective
    True

    References
    ----------
    S. Verma, J.-C. Pesquet, "Sparsifying Networks via Subdifferential Inclusion", ICML 2021.
    """
    solution = solve_silently(problem, goal, method, tol, max_iterations, max_seconds, warm_start, callback, n_threads)
    warn_unless_optimal(solution, tol, stacklevel=3)
    return solution


def solve_silently(
    problem: LayerProblem,
    goal: Goal,
    method: str,
    tol: float,
    max_iterations: int,
    max_seconds: float | None,
    warm_start: Solution | tuple[npt.ArrayLike, npt.ArrayLike | None] | None,
    callback: Callable[[Progress], object] | None,
    n_threads: int | None,
) -> Solution:
    """Solve as `solve` does, and leave the warning to the caller."""
    _check(problem, goal, method)
    tol = check_tol(tol, problem)
    started = time.monotonic()
    deadline = math.inf if max_seconds is None else started + number("max_seconds", max_seconds, low=0.0)
    iterations = positive_integer("max_iterations", max_iterations)
    check_callback(callback)
    controls = Controls(iterations, started, deadline, callback, resolve_threads(n_threads))
    if not _is_single_search(problem, goal, method):
        assert not isinstance(goal, Sparsity)
        with serial_blas():
            start = starting_point(problem, warm_start, goal)
            return _report(problem, goal, BudgetPursuit(problem, goal, controls, start).run(method, tol), tol, started)
    if isinstance(goal, ErrorBudget) and goal.per == "batch":  # a single one
        goal = ErrorBudget(goal.relative_error, goal.eta, goal.radius)
    with serial_blas():
        pursuit = Pursuit(problem, goal, controls, warm_start)
        accuracy = tol
        for _ in range(ATTEMPTS):
            iterate, stopped = pursuit.run(accuracy)
            solution = _certify(pursuit, iterate, stopped, tol)
            if stopped not in (None, Status.STALLED) or solution.status is Status.OPTIMAL:
                break
            accuracy *= 0.3
            pursuit.sharpen()
    return solution


def warn_unless_optimal(solution: Solution, tol: float, stacklevel: int) -> None:
    """Warn that a solve fell short, with advice; ``stacklevel`` as in `warnings.warn`, seen from here."""
    if solution.status is not Status.OPTIMAL:
        compared = f"gap {solution.gap:.2e} {'>' if solution.gap > tol else '<='} tol {tol:.0e}"
        msg = (
            f"{solution.status.value}: {compared}, sparsity {solution.sparsity:.4f} after {solution.n_iterations} "
            f"iterations and {solution.seconds:.3g} s; {_ADVICE[solution.status]}"
        )
        warnings.warn(msg, ConvergenceWarning, stacklevel=stacklevel)


_ADVICE = {
    Status.ITERATION_LIMIT: "raise max_iterations or tol, or warm-start from this solution",
    Status.TIME_LIMIT: "raise max_seconds or tol, or warm-start from this solution",
    Status.CALLBACK: "the callback returned a true value",
    Status.STALLED: "raise tol, pass float64 data, or scale the inputs; a dense layer asked for may have no proof",
    Status.OPTIMAL: "",
}


def _check(problem: LayerProblem, goal: Goal, method: str) -> None:
    if not isinstance(problem, LayerProblem):
        msg = f"problem must be a LayerProblem, got {type(problem).__name__}"
        raise InvalidInputError(msg)
    if not isinstance(goal, Penalized | ErrorBudget | Sparsity):
        msg = f"goal must be Penalized(...), ErrorBudget(...) or Sparsity(...), got {goal!r}"
        raise InvalidInputError(msg)
    if method not in METHODS:
        msg = f"method must be one of {', '.join(map(repr, METHODS))}, got {method!r}"
        raise InvalidInputError(msg)
    check_capability(problem, goal, method)


def _is_single_search(problem: LayerProblem, goal: Goal, method: str) -> bool:
    """Return whether the goal is one multiplier's, or a search for one, by the fast method."""
    if method != "forward-backward":
        return False
    if not isinstance(goal, ErrorBudget) or goal.per == "layer":
        return True
    return goal.per == "batch" and goal.batch_size is not None and goal.batch_size >= problem.n_samples


def check_tol(tol: float, problem: LayerProblem) -> float:
    """Return the tolerance, at least what the layer's dtype can certify."""
    tol = number("tol", tol, above=0.0)
    least = LEAST_TOL[problem.weight.dtype]
    if tol < least:
        msg = f"tol must be at least {least:g} for {problem.weight.dtype} weights, got {tol:g}"
        if least > LEAST_TOL[np.dtype(np.float64)]:
            msg += "; pass float64 weights for more"
        raise InvalidInputError(msg)
    return tol


def check_callback(callback: object) -> None:
    """Raise unless there is no callback or it can be called."""
    if callback is not None and not callable(callback):
        msg = f"callback must be callable, got {callback!r}"
        raise InvalidInputError(msg)


def _certify(pursuit: Pursuit, iterate: Iterate, stopped: Status | None, tol: float) -> Solution:
    """Round the iterate to the layer's dtype, evaluate it and the best dual point afresh, and say what that proves."""
    problem, goal, controls = pursuit.problem, pursuit.goal, pursuit.controls
    dtype = problem.weight.dtype
    weight = iterate.weight.astype(dtype)
    structure = pursuit.structure
    at = evaluate(problem, weight.astype(np.float64), controls.n_threads)
    pursuit.work += at.work
    radius = math.sqrt(2.0 * float(at.rounded_loss.sum()))
    penalty = float(structure.values(weight.astype(np.float64)).sum())
    objective = penalty
    if isinstance(goal, Penalized):
        objective = goal.multiplier * penalty + float(at.rounded_loss.sum())

    def bound(point: Array, where: Evaluation) -> float:
        sums = where.sums(problem, point)
        if isinstance(goal, Penalized):
            return penalized_bound(sums, goal.multiplier)
        return budget_bound(sums, pursuit.epsilon if isinstance(goal, ErrorBudget) else radius)

    lower = bound(weight.astype(np.float64), at)
    other = pursuit.best_dual_point
    dual_weight = None
    if other is not None and relative_gap(objective, lower) > SAFETY * tol:  # a start from here must count as solved
        elsewhere = evaluate(problem, other, controls.n_threads)
        pursuit.work += elsewhere.work
        if bound(other, elsewhere) > lower:
            lower, dual_weight = bound(other, elsewhere), other
    gap = relative_gap(objective, lower) if pursuit.empty_radius > 0 else 0.0  # a dead layer: all else is rounding
    if isinstance(goal, ErrorBudget) and radius > pursuit.feasible_radius and pursuit.empty_radius > 0:
        gap = math.inf
    short = stopped is not None and not pursuit.count_is_right(weight)
    if lower > objective * (1.0 + INVALID) and 0.0 < objective and gap < math.inf:
        gap = math.inf  # no bound lies above what is attained: say so, and do not hide it
    status = Status.OPTIMAL if gap <= tol and not short else stopped or Status.STALLED
    return Solution(
        weight=weight,
        bias=at.bias.astype(dtype) if problem.has_bias else None,
        goal=goal,
        objective=objective,
        lower_bound=min(lower, objective) if gap < math.inf else lower,
        dual_weight=dual_weight,
        gap=gap,
        multiplier=math.inf if isinstance(goal, ErrorBudget) and not weight.any() else iterate.multiplier,
        duals=np.array([_dual(goal, weight, iterate.multiplier)]),
        radius=radius,
        relative_error=radius / pursuit.empty_radius if pursuit.empty_radius > 0 else 0.0,
        empty_radius=pursuit.empty_radius,
        kkt_violation=structure.kkt_violation(weight.astype(np.float64), at.gradient, iterate.multiplier),
        status=status,
        n_iterations=pursuit.n_iterations,
        n_products=pursuit.work / pursuit.work_unit,
        seconds=time.monotonic() - controls.started,
        history=tuple(pursuit.history),
    )


def _dual(goal: Goal, weight: npt.NDArray[Any], multiplier: float) -> float:
    """Return mu = 1 / lambda, and 0 where a budget asks for nothing."""
    if multiplier == 0.0 or (isinstance(goal, ErrorBudget) and not weight.any()):
        return 0.0
    return 1.0 / multiplier


def _report(
    problem: LayerProblem, goal: ErrorBudget | Penalized, outcome: Outcome, tol: float, started: float
) -> Solution:
    """Say what a pursuit by engine and judge came to: the judge has rounded and evaluated everything afresh."""
    judge, dtype = outcome.judge, problem.weight.dtype
    best = judge.best or judge.nearest
    assert best is not None
    reached = gap(judge)
    proof_weight, proof_duals = (None, best.duals) if judge.proof is None else judge.proof
    if isinstance(goal, ErrorBudget) and not best.weight.any():
        proof_duals = np.zeros_like(proof_duals)  # no budget binds
    if proof_weight is not None and np.array_equal(proof_weight, best.weight):
        proof_weight = None
    radius = math.sqrt(2.0 * float(best.losses.sum()))
    dead = outcome.empty_radius == 0.0
    gap_found = 0.0 if dead else reached
    return Solution(
        weight=best.weight.astype(dtype),
        bias=best.bias.astype(dtype) if problem.has_bias else None,
        goal=goal,
        objective=best.objective,
        lower_bound=min(judge.bound, best.objective) if gap_found < math.inf else judge.bound,
        dual_weight=proof_weight,
        gap=gap_found,
        multiplier=goal.multiplier if isinstance(goal, Penalized) else single_multiplier(proof_duals),
        duals=proof_duals,
        radius=radius,
        relative_error=0.0 if dead else radius / outcome.empty_radius,
        empty_radius=outcome.empty_radius,
        kkt_violation=best.kkt_violation,
        status=Status.OPTIMAL if gap_found <= tol else outcome.stopped or Status.STALLED,
        n_iterations=outcome.iterations,
        n_products=outcome.work / (2.0 * problem.n_samples * problem.n_in * problem.n_out),
        seconds=time.monotonic() - started,
        history=outcome.history,
    )
