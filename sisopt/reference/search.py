"""The way from a goal to weights: the best constant layer, whether the budgets can be kept, the programs in turn."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from ..errors import InfeasibleBudgetError, InvalidInputError, SisoptError, UnsupportedError
from ..goals import ErrorBudget, Penalized
from ..problem import LayerProblem
from .engine import Engine
from .groups import Groups, budget_groups, mini_batches
from .losses import group_losses, refit_biases
from .pieces import NeuronProgram, coordinates, neuron_programs
from .programs import Posed, ball_radii, pose, solve_budgets, solve_least, solve_penalized

Array = npt.NDArray[np.float64]

FEASIBLE = 1e-6  # relative accuracy to which the least radius is known


class Search:
    """One problem on its way to a solution: ``weight`` and ``bias`` are the best known so far.

    Raises
    ------
    UnsupportedError
        If the problem's data cannot be split as the goal wants it, or are not in memory.
    """

    def __init__(self, problem: LayerProblem, goal: Penalized | ErrorBudget, engine: Engine, compress: bool) -> None:
        if problem.inputs is None and problem.statistics is None:
            msg = "the reference needs all inputs in memory, and this problem streams mini-batches; use LayerProblem"
            raise UnsupportedError(msg)
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
            mine = [row.index for row in part] if groups.per_neuron else slice(None)
            try:
                duals[mine] = self._within(part, groups, radii, exact)[mine]
            except SisoptError as error:
                if isinstance(error, InvalidInputError) or not exact[mine].any():
                    raise
                # Equations that hold up to rounding alone may have no solution; the smallest balls do.
                inside = self._within(part, groups, radii, np.zeros_like(exact))
                duals[mine] = np.where(exact & (inside > 0), np.inf, inside)[mine]
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

    def _take(self, posed: Posed) -> None:
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
