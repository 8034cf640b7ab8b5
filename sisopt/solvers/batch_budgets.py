"""One budget per mini-batch: the multipliers mu_j as sample weights, found by a quasi-Newton method on the dual.

The dual function D(mu) = min_W g(W) + sum_j mu_j (phi_j - epsilon_j**2 / 2) is concave with the slopes
phi_j - epsilon_j**2 / 2 at its minimiser, a penalised program with weighted samples. It is maximised over mu >= 0 from
a point of reference, the best so far: a quadratic model, its curvature by the BFGS formula, is maximised within a trust
region in the logarithms of mu; multipliers whose budget has slack may become zero, and leave it again.
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

TOGETHER, ALONE = 1.4, 0.6  # guesses of -d log phi / d log mu: of all batches with all mu, of a batch with its own
FIRST_REGION, MOST_REGION, LEAST_REGION = 1.0, 2.0, 1e-3
INNER = 0.25  # of the tolerance is the gap of a round
RETURNING = 0.1  # of the mean is what smaller multipliers count as in the trust region
RIDGE = 1e-10
LEAST_LOSS = 1e-12  # of a budget's: mini-batches without weight have none


class BatchSearch:
    """The search for the multipliers (J,); ``state`` and ``duals`` are where it starts, from one budget for all."""

    def __init__(self, problem: LayerProblem, budgets: Budgets, state: State, duals: Array, n_threads: int) -> None:
        self.problem, self.budgets, self.state, self.n_threads = problem, budgets, state, n_threads
        self.duals = duals
        self._curvature: Array | None = None  # of -D, (J, J)
        self._best: tuple[Array, Array, float, float] | None = None  # mu, the slopes of D, D, how much too high
        self._region = FIRST_REGION
        self.weight, self.bias = state.weight, state.bias

    @property
    def iterations(self) -> int:
        """Steps of the slowest row."""
        return self.state.iterations

    @property
    def work(self) -> float:
        """Floating-point work over samples."""
        return self.state.work

    def advance(self, limits: Limits, tol: float) -> None:
        """Solve at the present multipliers, to a penalised gap of a part of ``tol`` times g."""
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

    def propose(self, losses: Array, value: float, noise: float) -> None:
        """Set the next multipliers from the losses phi_j (J,) and g at the present ones; D is off by ``noise``."""
        mu, losses = self.duals, np.maximum(losses, LEAST_LOSS * self.budgets.radii**2)
        slopes = losses - 0.5 * self.budgets.radii**2
        dual = value + float(mu @ slopes)
        if self._curvature is None:
            self._curvature = self._first_curvature(losses)
        if self._best is None:
            self._best = mu, slopes, dual, noise
        else:
            self._learn(mu - self._best[0], self._best[1] - slopes)
            if dual >= self._best[2] - self._best[3] - noise:
                self._best = mu, slopes, dual, noise
                self._region = min(2.0 * self._region, MOST_REGION)
            else:
                self._region *= 0.3
        if self._region < LEAST_REGION:  # the model is no good
            self._curvature, self._region = self._first_curvature(losses), FIRST_REGION
        self.duals = self._step(*self._best[:2])

    def _first_curvature(self, losses: Array) -> Array:
        """Guess the curvature from elasticities."""
        size = losses.size
        even = np.full((size, size), 1.0 / size)
        positive = np.maximum(self.duals, RETURNING * self.duals.mean() or 1.0)
        root = np.sqrt(losses / positive)
        return np.asarray(root[:, None] * (TOGETHER * even + ALONE * (np.eye(size) - even)) * root)

    def _learn(self, step: Array, change: Array) -> None:
        """Update the curvature by the BFGS formula, which wants step'change > 0 as it is for a concave D."""
        B = self._curvature
        assert B is not None
        along, curved = float(step @ change), B @ step
        whole = float(step @ curved)
        if along > 1e-3 * whole and whole > 0:
            B += np.outer(change, change) / along - np.outer(curved, curved) / whole

    def _step(self, mu: Array, slopes: Array) -> Array:
        """Return the maximiser of the model over mu >= 0, brought back into the trust region."""
        B = self._curvature
        assert B is not None
        scale = 1.0 / np.sqrt(np.diagonal(B))
        L = np.linalg.cholesky(B * scale[:, None] * scale + RIDGE * np.eye(mu.size))
        right = L.T @ (mu / scale) + np.linalg.solve(L, slopes * scale)
        from scipy.optimize import nnls  # noqa: PLC0415  slow to import, and seldom needed

        best = nnls(L.T, right)[0] * scale
        low = np.where((best == 0.0) & (slopes < 0.0), 0.0, mu * np.exp(-self._region))
        high = mu + np.expm1(self._region) * np.maximum(mu, RETURNING * mu.mean())
        return np.asarray(np.clip(best, low, high))
