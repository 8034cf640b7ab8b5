"""The same programs through cvxpy: an independent answer to check the solvers against, and a rival to time."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import ConvergenceWarning, InfeasibleBudgetError, InvalidInputError, SisoptError, UnsupportedError
from .goals import ErrorBudget, Penalized
from .problem import LayerProblem
from .reference_rows import EXACT, NeuronProgram, neuron_programs, refit_biases

Array = npt.NDArray[np.float64]

STATUS: Mapping[str, str] = MappingProxyType(
    {"optimal": "optimal", "optimal_inaccurate": "inaccurate", "user_limit": "limit"}
)
"""The statuses of cvxpy that come with a solution, best first, and what `ReferenceSolution.status` calls them."""

DEFAULT_OPTIONS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "CLARABEL": {"tol_gap_abs": 1e-9, "tol_gap_rel": 1e-9, "tol_feas": 1e-9},
        "SCS": {"eps_abs": 1e-6, "eps_rel": 1e-6},
    }
)
EXACT_SUMS = 1e-7  # the same where the squared radius is a difference of given sums
FEASIBLE = 1e-6  # relative accuracy to which the least radius is known


@dataclass(frozen=True)
class ReferenceSolution:
    """What cvxpy found.

    Attributes
    ----------
    weight : ndarray, shape (n_out, n_in)
        W in float64, whatever the dtype of the layer. Zeros are only as exact as the solver's tolerance, save those of
        the mask.
    bias : ndarray, shape (n_out,), or None
        The best bias for ``weight``, the nearest to the dense one where several are; None where none is fitted.
    objective : float
        ``multiplier * g(W) + phi(W, b)`` or ``g(W)``, computed from ``weight`` and ``bias``.
    radius, relative_error : float
        ``sqrt(2 phi)`` of ``weight`` and ``bias``, and the same over the radius of the best constant layer.
    multiplier : float
        lambda of the penalised program that has this solution. For a budget epsilon it is 1 / mu, with mu the dual
        variable in ``g + mu/2 (2 phi - epsilon**2)``, so ``d g / d epsilon = -epsilon / lambda``; ``inf`` where the
        budget does not bind (W = 0), 0 where it is the least that can be kept.
    status : str
        "optimal", "inaccurate" or "limit": see `STATUS`.
    seconds : float
        Wall-clock time of the call, the time that cvxpy takes to compile the program included.
    solver : str
        Name of the solver that cvxpy called.
    """

    weight: Array
    bias: Array | None
    objective: float
    radius: float
    relative_error: float
    multiplier: float
    status: str
    seconds: float
    solver: str


def solve(
    problem: LayerProblem,
    goal: Penalized | ErrorBudget,
    *,
    solver: str = "CLARABEL",
    compress: bool = True,
    **solver_options: Any,
) -> ReferenceSolution:
    """Solve a layer problem with a general-purpose convex solver, through cvxpy.

    With ``g(W) = sum_ij a_ij |W_ij|`` and phi as in `LayerProblem` it solves the penalised or the constrained program::

        minimise  lambda g(W) + phi(W, b)            for Penalized(lambda); neuron by neuron
        minimise  g(W)  s.t.  sqrt(2 phi) <= epsilon   for ErrorBudget; one program for the whole layer

    The loss is written with one slack per interval entry, ``e >= z - hi`` and ``e >= lo - z``, and no slack for points.
    None of it uses the solvers or the kernels of sisopt, epsilon included.

    Parameters
    ----------
    problem : LayerProblem
        ``inputs`` (n_samples, n_in), ``weight`` (n_out, n_in); also one made by `LayerProblem.from_gram`.
    goal : Penalized or ErrorBudget
        lambda in units of phi / g, or the budget: see there.
    solver : str, default "CLARABEL"
        A solver that cvxpy has installed and that takes second-order cones (quadratic programs for `Penalized`).
    compress : bool, default True
        Replace the part of the loss that is quadratic everywhere (points, fidelity) by its triangular factor: the same
        program, with n_in + 1 squares instead of n_samples. False poses the program as it is written.
    **solver_options
        Passed to the solver. Tolerances are 1e-9 for CLARABEL and 1e-6 for SCS unless given here.

    Returns
    -------
    ReferenceSolution
        Weights, bias, objective, attained radius, multiplier.

    Raises
    ------
    InfeasibleBudgetError
        If no weights keep the budget; ``least_relative_error`` tells which budget could be kept.
    InvalidInputError
        If the solver is not installed or refuses an option.
    UnsupportedError
        For a `Sparsity` goal, which is not one convex program.
    SisoptError
        If cvxpy is missing or the solver fails.

    Warns
    -----
    ConvergenceWarning
        If the solver stopped before it reached its tolerance.

    References
    ----------
    S. Diamond, S. Boyd, "CVXPY: A Python-Embedded Modeling Language for Convex Optimization", JMLR 2016.
    """
    if not isinstance(goal, Penalized | ErrorBudget):
        msg = (
            f"the reference solves Penalized and ErrorBudget goals, got {type(goal).__name__}: a sparsity is not one "
            "convex program; solve it with sisopt.solve and certify ErrorBudget(radius=solution.radius)"
        )
        raise UnsupportedError(msg)
    engine = _Engine(solver, solver_options)
    start = time.perf_counter()  # importing cvxpy, once per process, is not counted
    W = np.zeros(problem.weight.shape)
    bias, empty = refit_biases(problem, W)
    empty_radius = math.sqrt(2.0 * empty.sum())
    multiplier = goal.multiplier if isinstance(goal, Penalized) else math.inf
    if isinstance(goal, Penalized):
        _solve_penalized(engine, problem, empty, multiplier, compress, W)
    else:
        epsilon = goal.epsilon(empty_radius, problem.total_weight)
        if epsilon < empty_radius:
            _check_feasible(engine, problem, empty, epsilon, compress)
            multiplier = _solve_budget(engine, problem, empty, epsilon, compress, W)
    if engine.status != "optimal":
        msg = f"{engine.solver} stopped with status {engine.status!r}: allow more iterations or a looser tolerance"
        warnings.warn(msg, ConvergenceWarning, stacklevel=2)
    bias, loss = refit_biases(problem, W)
    radius = math.sqrt(2.0 * loss.sum())
    objective = problem.penalty.value(W)
    if isinstance(goal, Penalized):
        objective = multiplier * objective + float(loss.sum())
    return ReferenceSolution(
        weight=W,
        bias=bias if problem.has_bias else None,
        objective=objective,
        radius=radius,
        relative_error=radius / empty_radius if empty_radius > 0 else 0.0,
        multiplier=multiplier,
        status=engine.status,
        seconds=time.perf_counter() - start,
        solver=engine.solver,
    )


class _Engine:
    """cvxpy with one solver and its options; remembers the worst status that it met."""

    def __init__(self, solver: str, options: Mapping[str, Any]) -> None:
        try:
            import cvxpy  # noqa: PLC0415  an extra
        except ImportError as error:
            msg = 'the reference solver needs cvxpy: pip install "sisopt[reference]"'
            raise SisoptError(msg) from error
        self.cp: Any = cvxpy
        self.solver = str(solver).upper()
        installed = self.cp.installed_solvers()
        if self.solver not in installed:
            msg = f"solver must be one that cvxpy has installed ({', '.join(installed)}), got {solver!r}"
            raise InvalidInputError(msg)
        # "eps" is cvxpy's short name for both tolerances of SCS; it would lose against the defaults.
        defaults = {} if "eps" in options else DEFAULT_OPTIONS.get(self.solver, {})
        self.options = {**defaults, **options}
        self.status = "optimal"

    def run(self, objective: Any, constraints: Sequence[Any]) -> None:
        program = self.cp.Problem(self.cp.Minimize(objective), list(constraints))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # cvxpy's word on accuracy comes back as our own warning
                program.solve(solver=self.solver, **self.options)
        except TypeError as error:
            msg = f"{self.solver} refused the options {self.options}: {error}"
            raise InvalidInputError(msg) from error
        except self.cp.error.SolverError as error:
            msg = f"{self.solver} did not solve the program: {error} CLARABEL and SCS take every program posed here"
            raise SisoptError(msg) from error
        if program.status not in STATUS:
            msg = (
                f"{self.solver} called the program {program.status}, though it has a solution: "
                "try another solver, looser tolerances, or inputs scaled to unit variance"
            )
            raise SisoptError(msg)
        self.status = max(self.status, STATUS[program.status], key=list(STATUS.values()).index)


@dataclass(frozen=True)
class _Posed:
    """Rows in the words of cvxpy; the squared norms of ``residuals`` sum to 2 phi less the constants."""

    variables: list[Any]
    penalty: Any
    residuals: list[Any]
    constraints: list[Any]


def _pose(cp: Any, rows: Sequence[NeuronProgram], scale: float, exact: bool = False) -> _Posed:
    """Write rows down, the residual in units of ``scale``; ``exact`` leaves the one-sided entries no slack."""
    variables, penalties, residuals, constraints = [], [], [], []
    for row in rows:
        u = cp.Variable(row.design.shape[1])
        variables.append(u)
        penalties.append(row.thresholds @ cp.abs(u[: row.columns.size]))
        if row.aim.size:
            residuals.append((row.design / scale) @ u - row.aim / scale)
        if row.low.size:
            slack = np.zeros(row.low.size) if exact else cp.Variable(row.low.size)
            for bounded, sign, end in ((np.isfinite(row.high), 1.0, row.high), (np.isfinite(row.low), -1.0, row.low)):
                if bounded.any():
                    side = (sign * row.side[bounded] / scale) @ u - sign * end[bounded] / scale
                    constraints.append(slack[bounded] >= side)
            if not exact:
                residuals.append(slack)
    return _Posed(variables, cp.sum(cp.hstack(penalties)), residuals, constraints)


def _write(weight: Array, rows: Sequence[NeuronProgram], posed: _Posed) -> None:
    for row, u in zip(rows, posed.variables, strict=True):
        weight[row.index, row.columns] = u.value[: row.columns.size]


def _solve_penalized(
    engine: _Engine, problem: LayerProblem, empty: Array, multiplier: float, compress: bool, weight: Array
) -> None:
    """Write the solution of the penalised program to ``weight``; a multiplier of 0 gives the least phi."""
    for row in neuron_programs(problem, empty, compress):
        scale = math.sqrt(2.0 * empty[row.index])  # objectives of order 1, whatever the units
        posed = _pose(engine.cp, [row], scale)
        squares = sum(map(engine.cp.sum_squares, posed.residuals))  # one by one: a slack then needs no copy of itself
        engine.run(multiplier / scale**2 * posed.penalty + 0.5 * squares, posed.constraints)
        _write(weight, [row], posed)


def _resolution(problem: LayerProblem, empty: Array) -> float:
    """Return the radius below which a budget asks for equality."""
    return (EXACT if problem.statistics is None else EXACT_SUMS) * math.sqrt(2.0 * empty.sum())


def _check_feasible(engine: _Engine, problem: LayerProblem, empty: Array, epsilon: float, compress: bool) -> None:
    """Raise if no weights keep the budget; the dense ones, where the mask allows them, mostly do."""
    empty_radius = math.sqrt(2.0 * empty.sum())
    W = np.where(np.isfinite(problem.thresholds()), problem.weight, 0.0).astype(np.float64)
    allowed = max(epsilon, _resolution(problem, empty))
    if math.sqrt(2.0 * refit_biases(problem, W)[1].sum()) <= allowed:
        return
    W[:] = 0.0
    _solve_penalized(engine, problem, empty, 0.0, compress, W)
    least = math.sqrt(2.0 * refit_biases(problem, W)[1].sum())
    if least > allowed * (1.0 + FEASIBLE):
        msg = (
            f"no weights keep the error budget: its relative error is {epsilon / empty_radius:.6g}, "
            f"the least that the mask and the inputs admit is {least / empty_radius:.6g}"
        )
        raise InfeasibleBudgetError(msg, least / empty_radius)


def _solve_budget(
    engine: _Engine, problem: LayerProblem, empty: Array, epsilon: float, compress: bool, weight: Array
) -> float:
    """Write the solution of the constrained program to ``weight`` and return its lambda."""
    cp, resolution = engine.cp, _resolution(problem, empty)
    rows = list(neuron_programs(problem, empty, compress))
    decided = 2.0 * (empty.sum() - sum(empty[row.index] for row in rows))  # neurons whose weights are all masked
    square = epsilon**2 - decided - sum(row.constant for row in rows)
    exact = square <= resolution**2
    radius = math.sqrt(2.0 * empty.sum() if exact else square)
    posed = _pose(cp, rows, radius, exact)
    if exact:
        engine.run(posed.penalty, posed.constraints + [residual == 0 for residual in posed.residuals])
        _write(weight, rows, posed)
        return 0.0
    ball = cp.norm(cp.hstack(posed.residuals), 2) <= 1.0
    size = problem.penalty.value(problem.weight) or 1.0  # an objective of order 1, whatever the units
    engine.run(posed.penalty / size, [*posed.constraints, ball])
    _write(weight, rows, posed)
    # Loosening the ball by the factor 1 + t lowers g / size by dual t and raises 2 phi by 2 radius**2 t, while
    # d g / d (2 phi) = -mu / 2: hence mu = dual size / radius**2.
    dual = float(ball.dual_value)
    return radius**2 / (dual * size) if dual > 0 else math.inf
