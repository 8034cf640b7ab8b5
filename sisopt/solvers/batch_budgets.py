"""One budget per mini-batch: the multipliers mu_j of the mini-batches as sample weights, found by Broyden's method.

At the solution of min g(W) + sum_j mu_j phi_j with the right mu >= 0 every batch keeps its budget, and those with
mu_j > 0 attain it. With x = log mu and F_j = log(sqrt(2 phi_j) / epsilon_j), F(x) = 0 is solved by Broyden's method:
raising all mu together lowers all radii, raising one alone lowers its own batch's.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..budgets import Budgets
from ..certificate import penalized_row_gaps
from ..evaluation_groups import weighted_problem
from ..problem import LayerProblem
from .choice import row_solver
from .rows import Limits, State

Array = npt.NDArray[np.float64]

TOGETHER, ALONE = 0.7, 0.3  # guesses of -dF/dx: of all batches with all multipliers, of a batch with its own
MAX_STRIDE = 1.5
LEAST = 1e-9  # multipliers below this fraction of the largest stay there
INNER = 0.25  # of the tolerance is the gap of a round


class BatchSearch:
    """The search for the multipliers (J,); ``state`` and ``duals`` are where it starts, from one budget for all."""

    def __init__(self, problem: LayerProblem, budgets: Budgets, state: State, duals: Array, n_threads: int) -> None:
        self.problem, self.budgets, self.state, self.n_threads = problem, budgets, state, n_threads
        self.duals = duals
        size = budgets.size
        even = np.full((size, size), 1.0 / size)
        self._slopes = np.linalg.inv(-TOGETHER * even - ALONE * (np.eye(size) - even))  # of x with F
        self._last: tuple[Array, Array] | None = None
        self.weight, self.bias = state.weight, state.bias

    @property
    def iterations(self) -> int:
        """Steps of the slowest row."""
        return self.state.iterations

    @property
    def work(self) -> float:
        """Floating-point work over samples."""
        return self.state.work

    def advance(self, limits: Limits, tol: float) -> bool:
        """Solve at the present multipliers."""
        state = self.state
        solver = row_solver(weighted_problem(self.problem, self.budgets, self.duals), state, self.n_threads)
        solver.solve(1.0, np.full(state.loss.size, np.inf), limits)  # measures what the tolerances refer to
        for _ in range(3):
            objective = state.value + state.loss
            allowed = INNER * tol * state.value.sum()
            share = objective / objective.sum()
            solver.solve(1.0, 0.5 * allowed * (share + 1.0 / share.size), limits)
            if penalized_row_gaps(state.sums(), 1.0).sum() <= allowed or limits.out_of_time():
                break
        self.weight, self.bias = state.weight, state.bias
        return True

    def propose(self, losses: Array) -> None:
        """Set the next multipliers from the losses phi_j (J,) at the present ones."""
        excess = np.log(np.sqrt(2.0 * np.maximum(losses, 1e-300)) / self.budgets.radii)
        x = np.log(self.duals)
        if self._last is not None:
            dx, dF = x - self._last[0], excess - self._last[1]
            move = self._slopes @ dF
            scale = float(dx @ move)
            if abs(scale) > 1e-3 * float(dx @ dx):
                self._slopes += np.outer(dx - move, dx @ self._slopes) / scale
        self._last = (x, excess)
        step = -(self._slopes @ excess)
        x = x + np.clip(step, -MAX_STRIDE, MAX_STRIDE)
        self.duals = np.exp(np.maximum(x, x.max() + np.log(LEAST)))
