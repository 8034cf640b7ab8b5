"""solve(): a goal through cvxpy, and what comes back."""

from __future__ import annotations

import math
import time
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import (
    ConvergenceWarning,
    InfeasibleBudgetError,
    InvalidInputError,
    SisoptError,
    UnsupportedError,
)
from ..goals import ErrorBudget, Penalized
from ..problem import LayerProblem
from .engine import Engine
from .groups import Groups, budget_groups, mini_batches, multiplier
from .losses import group_losses, refit_biases
from .pieces import NeuronProgram, coordinates, neuron_programs
from .programs import ball_radii, pose, solve_budgets, solve_least, solve_penalized

Array = npt.NDArray[np.float64]

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
        The best bias for ``weight``, the nearest to the dense one where several are; None where none is fitted. With
        mini-batches or coupled outputs, the program's own.
    objective : float
        ``multiplier * g(W) + phi(W, b)`` or ``g(W)``, computed from ``weight`` and ``bias``.
    radius, relative_error : float
        ``sqrt(2 phi)`` of ``weight`` and ``bias``, and the same over the radius of the best constant layer.
    multiplier : float
        lambda of the penalised program that has this solution. For a budget epsilon it is 1 / mu, so
        ``d g / d epsilon = -epsilon / lambda``; ``inf`` where the budget does not bind (W = 0), 0 where it is the least
        that can be kept, ``nan`` where there are several budgets.
    duals : ndarray, shape (J,)
        The dual variables mu_j >= 0 of the J budgets, in ``g + sum_j mu_j/2 (2 phi_j - epsilon_j**2)``: 0 where a
        budget does not bind, ``inf`` where it is the least that can be kept. ``[1 / lambda]`` for `Penalized`.
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
    duals: Array
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

    With ``g(W) = sum_ij a_ij |W_ij| + sum_g kappa_g ||W_g||`` and phi as in `LayerProblem` it solves::

        minimise  lambda g(W) + phi(W, b)                          for Penalized(lambda)
        minimise  g(W)  s.t.  sqrt(2 phi_j) <= epsilon_j  for all j  for ErrorBudget, phi_j the part of group j

    neuron by neuron where these separate, else as one program. The loss is written with one slack per interval entry,
    ``e >= z - hi`` and ``e >= lo - z``, and no slack for points; softmax and sparsemax have one more variable for every
    sample. None of it uses the solvers or the kernels of sisopt, epsilon included.

    Parameters
    ----------
    problem : LayerProblem
        ``inputs`` (n_samples, n_in), ``weight`` (n_out, n_in); also one made by `LayerProblem.from_gram`.
    goal : Penalized or ErrorBudget
        lambda in units of phi / g, or the budget: see there.
    solver : str, default "CLARABEL"
        A solver that cvxpy has installed and that takes second-order cones (quadratic programs for `Penalized` with an
        l1 norm).
    compress : bool, default True
        Replace the part of the loss that is quadratic everywhere (points, fidelity) by its triangular factor: the same
        program, with n_in + 1 squares instead of n_samples, of every neuron and mini-batch. Not for softmax and
        sparsemax. False poses the program as it is written, but for the inputs, which are centred and scaled always.
    **solver_options
        Passed to the solver. Tolerances are 1e-9 for CLARABEL and 1e-6 for SCS unless given here.

    Returns
    -------
    ReferenceSolution
        Weights, bias, objective, attained radius, dual variables.

    Raises
    ------
    InfeasibleBudgetError
        If no weights keep the budgets; ``least_relative_error`` is sqrt(sum_j epsilon_j**2) / epsilon_max of the least
        budgets in the same proportions that could be kept. Radii below 1e-7 of those of W = 0 count as 0.
    InvalidInputError
        If the solver is not installed or refuses an option.
    UnsupportedError
        For a `Sparsity` goal, which is not one convex program, and budgets that the problem cannot be split for.
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
    search = _Search(problem, goal, Engine(solver, solver_options), compress)
    start = time.perf_counter()  # importing cvxpy, once per process, is not counted
    search.find_empty()
    duals = search.penalized(goal.multiplier) if isinstance(goal, Penalized) else search.budget(goal)
    engine, weight = search.engine, search.weight
    if engine.status != "optimal":
        msg = f"{engine.solver} stopped with status {engine.status!r}: allow more iterations or a looser tolerance"
        warnings.warn(msg, ConvergenceWarning, stacklevel=2)
    losses = search.losses()
    radius, empty_radius = (math.sqrt(2.0 * x.sum()) for x in (losses, search.empty))
    objective = problem.penalty.value(weight)
    if isinstance(goal, Penalized):
        objective = goal.multiplier * objective + float(losses.sum())
    return ReferenceSolution(
        weight=weight,
        bias=search.bias if problem.has_bias else None,
        objective=objective,
        radius=radius,
        relative_error=radius / empty_radius if empty_radius > 0 else 0.0,
        multiplier=multiplier(duals),
        duals=duals,
        status=engine.status,
        seconds=time.perf_counter() - start,
        solver=engine.solver,
    )


class _Search:
    """One problem on its way to a solution: ``weight`` and ``bias`` are the best known so far."""

    def __init__(self, problem: LayerProblem, goal: Penalized | ErrorBudget, engine: Engine, compress: bool) -> None:
        self.problem, self.engine, self.compress = problem, engine, compress
        self.structure = problem.penalty.structure((problem.n_out, problem.n_in), problem.mask)
        self.free = np.isfinite(self.structure.factors)
        self.batches = mini_batches(problem, goal)
        self.means = coordinates(problem).means
        self.weight = np.zeros(problem.weight.shape)
        self.bias = problem.dense_bias
        self.empty = np.zeros((1, 1))  # losses of the best constant layer: (n_out or 1, batches)

    def losses(self) -> Array:
        """Return phi by neurons and mini-batches, at the best bias where that is a matter of one neuron alone."""
        if not self.problem.activation.couples_outputs and len(self.batches) == 1:
            self.bias, losses = refit_biases(self.problem, self.weight)
            return losses[:, None]
        return group_losses(self.problem, self.weight, self.bias, self.batches)

    def find_empty(self) -> None:
        """Find the best constant layer."""
        problem = self.problem
        if problem.activation.couples_outputs:
            everything = [slice(0, problem.n_samples)]
            self.empty = group_losses(problem, self.weight, self.bias, everything)
            if problem.has_bias and self.empty.any():
                unit = np.sqrt(2.0 * self.empty[0])
                rows = list(neuron_programs(problem, np.zeros_like(self.free), None, everything, False))
                self._least(rows, Groups(False, everything, unit, unit))
        else:
            self.bias = refit_biases(problem, self.weight)[0]
        self.empty = group_losses(problem, self.weight, self.bias, self.batches)

    def penalized(self, factor: float) -> Array:
        """Solve the penalised program; return [1 / lambda]."""
        joint = self.problem.activation.couples_outputs or self.structure.couples_rows
        rows = self._rows()
        everything = Groups(False, self.batches, np.ones(1), np.ones(1))
        for part in [rows] if joint else [[row] for row in rows]:
            loss = self.empty.sum() if joint else self.empty[part[0].index].sum()
            if not part or loss == 0.0:
                continue
            unit = np.array([math.sqrt(2.0 * loss)])  # objectives of order 1, whatever the units
            posed = pose(self.engine.cp, part, everything, unit, self._length(part))
            solve_penalized(self.engine, posed, self.structure, factor)
            self._take(posed)
        return np.array([1.0 / factor])

    def budget(self, goal: ErrorBudget) -> Array:
        """Solve the program with budgets; return their dual variables mu, (J,)."""
        groups = budget_groups(self.problem, goal, self.batches, self.empty)
        binding = np.sqrt(2.0 * groups.totals(self.empty)) > groups.radii
        if not binding.any():
            return np.zeros(groups.radii.size)
        rows = self._rows()
        self._check_feasible(rows, groups)
        self.weight[:] = 0.0
        if groups.per_neuron:  # W_i = 0 is best where it keeps the budget of neuron i
            rows = [row for row in rows if binding[row.index]]
        chosen = np.zeros(self.empty.shape[0], np.bool_)
        chosen[[row.index for row in rows] if self.empty.shape[0] > 1 else slice(None)] = True
        radii, exact = ball_radii(groups, rows, groups.totals(np.where(chosen[:, None], 0.0, self.empty)))
        apart = groups.per_neuron and not self.structure.couples_rows
        duals = np.zeros(groups.radii.size)
        for part in [[row] for row in rows] if apart else [rows] if rows else []:
            mine = np.isin(np.arange(duals.size), [row.index for row in part]) if groups.per_neuron else duals == 0.0
            try:
                duals[mine] = self._within(part, groups, radii, exact)[mine]
            except InvalidInputError:
                raise
            except SisoptError:
                if not exact[mine].any():
                    raise
                # Equations that hold up to rounding alone may have no solution; the smallest balls do.
                duals[mine] = self._within(part, groups, radii, np.zeros_like(exact))[mine]
                duals[mine & exact] = np.inf
        return duals

    def _within(self, rows: list[NeuronProgram], groups: Groups, radii: Array, exact: npt.NDArray[np.bool_]) -> Array:
        """Minimise g over some neurons with what is left of the budgets; return mu, (J,)."""
        units = np.where(exact, groups.scales, radii)
        posed = pose(self.engine.cp, rows, groups, np.where(units > 0, units, 1.0), self._length(rows))
        size = self.problem.penalty.value(self.problem.weight) or 1.0
        duals = solve_budgets(self.engine, posed, self.structure, exact, size)
        self._take(posed)
        return duals

    def _rows(self) -> list[NeuronProgram]:
        coupled = self.problem.activation.couples_outputs
        losses = None if coupled else self.empty.sum(axis=1)
        return list(neuron_programs(self.problem, self.free, losses, self.batches, self.compress))

    def _length(self, rows: list[NeuronProgram]) -> float:
        """Return how far an output of some neurons is from its set at W = 0, the root of the mean square."""
        size = self.empty.shape[0]
        square = self.empty.sum() if size == 1 else self.empty[[row.index for row in rows]].sum()
        return math.sqrt(2.0 * square / (len(rows) * self.problem.total_weight))

    def _take(self, posed: Any) -> None:
        posed.write(self.weight, self.bias)
        for row in posed.rows if self.problem.has_bias else ():
            self.bias[row.index] -= self.weight[row.index] @ self.means
        if self.problem.activation.couples_outputs and self.problem.has_bias and self.problem.fidelity == 0.0:
            self.bias += np.mean(self.problem.dense_bias - self.bias)  # a common shift of all outputs is free

    def _least(self, rows: list[NeuronProgram], groups: Groups) -> None:
        """Find weights and biases of the least loss, or the least largest one relative to the groups' scales."""
        if rows:
            units = np.where(groups.scales > 0, groups.scales, 1.0)
            posed = pose(self.engine.cp, rows, groups, units, self._length(rows))
            solve_least(self.engine, posed)
            self._take(posed)

    def _check_feasible(self, rows: list[NeuronProgram], groups: Groups) -> None:
        """Raise if no weights keep the budgets; the dense ones, where the mask allows them, mostly do."""
        empty_bias, allowed = self.bias.copy(), np.maximum(groups.radii, groups.resolution)
        self.weight[:] = np.where(self.free, self.problem.weight, 0.0)
        self.bias[:] = self.problem.dense_bias
        if (np.sqrt(2.0 * groups.totals(self.losses())) <= allowed).all():
            self.bias[:] = empty_bias
            return
        self.weight[:], self.bias[:] = 0.0, empty_bias
        if self.problem.activation.couples_outputs or len(self.batches) > 1:
            shape = groups.radii if groups.radii.any() else groups.scales
            self._least(rows, Groups(groups.per_neuron, self.batches, groups.radii, shape))
        else:
            for row in rows:
                unit = np.sqrt(2.0 * self.empty[row.index])
                self._least([row], Groups(False, self.batches, unit, unit))
        least = np.sqrt(2.0 * groups.totals(self.losses()))
        if (least > allowed * (1.0 + FEASIBLE)).any():
            error = groups.least(least)
            msg = (
                f"no weights keep the error budget: its relative error is {groups.relative(groups.radii):.6g}, "
                f"the least that the mask and the inputs admit is {error:.6g}"
            )
            raise InfeasibleBudgetError(msg, error)
        self.bias[:] = empty_bias
