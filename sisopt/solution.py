"""What a solve returns."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .goals import Goal


class Status(enum.Enum):
    """How a solve ended; the value is a sentence for people.

    Examples
    --------
    >>> import sisopt
    >>> problem = sisopt.LayerProblem([[1.0, 0.0], [0.0, 1.0]], [[2.0, 1.0]])
    >>> sisopt.solve(problem, sisopt.ErrorBudget(relative_error=0.5)).status
    <Status.OPTIMAL: 'the certified gap reached the tolerance'>
    """

    OPTIMAL = "the certified gap reached the tolerance"
    ITERATION_LIMIT = "stopped at max_iterations before the goal was reached"
    TIME_LIMIT = "stopped at max_seconds before the goal was reached"
    CALLBACK = "stopped by the callback before the goal was reached"
    STALLED = "stopped at the precision of the arithmetic before the gap reached the tolerance"


@dataclass(frozen=True)
class Progress:
    """State after one round: what callbacks receive and ``Solution.history`` keeps.

    Attributes
    ----------
    round : int
        Number of the round, from 1: a penalised program at one multiplier, or at one per budget, solved to some
        accuracy, or a look at the iterate of a splitting.
    multiplier : float
        lambda of that program; NaN with several budgets.
    objective : float
        Of the iterate, as in `Solution`.
    lower_bound : float
        Best bound known on the goal's optimum.
    gap : float
        Relative gap of the iterate; infinite while it misses the budget.
    radius : float
        sqrt(2 phi) of the iterate.
    n_nonzero : int
        Non-zero weights of the iterate.
    n_iterations : int
        Iterations so far.
    n_products : float
        Products with the inputs so far.
    seconds : float
        Wall-clock seconds so far.

    Examples
    --------
    >>> import numpy as np, sisopt
    >>> rng = np.random.default_rng(0)
    >>> problem = sisopt.LayerProblem(rng.normal(size=(200, 8)), rng.normal(size=(3, 8)), activation="relu")
    >>> seen = []
    >>> solution = sisopt.solve(problem, sisopt.Sparsity(0.5), callback=seen.append)
    >>> seen[0].round, len(seen) > 1, seen[-1].gap < 1e-4
    (1, True, True)
    """

    round: int
    multiplier: float
    objective: float
    lower_bound: float
    gap: float
    radius: float
    n_nonzero: int
    n_iterations: int
    n_products: float
    seconds: float


@dataclass(frozen=True, eq=False)
class Solution:
    """Sparse weights and the proof of how good they are.

    Attributes
    ----------
    weight : ndarray, shape (n_out, n_in)
        In the dtype of the dense layer, with exact zeros.
    bias : ndarray, shape (n_out,), or None
        Best bias for ``weight``, nearest to the dense one; None where the problem has none.
    goal : Goal
        What was asked for.
    objective : float
        g(W) for a budget or a sparsity; lambda g(W) + phi(W, b) for `Penalized`.
    lower_bound : float
        Certified: no (W, b) that meets the goal has a smaller objective. For `Sparsity`, none within the radius that
        was attained.
    dual_weight : ndarray, shape (n_out, n_in), or None
        The weights whose residuals, at their best bias, prove ``lower_bound``; None where ``weight`` does itself.
    gap : float
        (objective - lower_bound) / objective; 0 if the objective is 0, infinite if the budget is missed.
    multiplier : float
        lambda of the penalised program that ``weight`` solves, where there is one budget; NaN with several, infinite
        where W = 0 keeps them.
    duals : ndarray, shape (J,)
        mu_j >= 0 of the Lagrangian ``g + 1/2 sum_j mu_j (2 phi_j - epsilon_j**2)`` for the J budgets of the goal, so
        that ``d g* / d epsilon_j = -mu_j epsilon_j`` and, with one budget, ``multiplier = 1 / mu``; 0 where a budget
        does not bind, ``[1 / lambda]`` for `Penalized` and `Sparsity`. They are as exact as the gap lets them be.
    radius : float
        sqrt(2 phi(W, b)), attained by the returned (rounded) weights, in units of pre-activations.
    relative_error : float
        radius / epsilon_max, attained; 0 for a dead layer (epsilon_max = 0).
    empty_radius : float
        epsilon_max, the radius of the best constant layer (W = 0, best b), in units of pre-activations.
    kkt_violation : float
        Largest distance of -grad phi from lambda dg(W), relative to lambda.
    status : Status
    n_iterations : int
        Steps taken by the slowest output neuron.
    n_products : float
        Floating-point work over samples divided by 2 n_samples n_in n_out, certificate included.
    seconds : float
        Wall-clock seconds.
    history : tuple of Progress

    Examples
    --------
    >>> import numpy as np, sisopt
    >>> rng = np.random.default_rng(0)
    >>> problem = sisopt.LayerProblem(rng.normal(size=(200, 8)), rng.normal(size=(3, 8)), activation="relu")
    >>> solution = sisopt.solve(problem, sisopt.ErrorBudget(relative_error=0.3))
    >>> solution.weight.shape, f"{solution.relative_error:.3f}", solution.gap < 1e-4
    ((3, 8), '0.300', True)
    >>> bool(np.isclose(solution.objective, np.abs(solution.weight).sum()))
    True
    """

    weight: npt.NDArray[Any]
    bias: npt.NDArray[Any] | None
    goal: Goal
    objective: float
    lower_bound: float
    dual_weight: npt.NDArray[Any] | None
    gap: float
    multiplier: float
    duals: npt.NDArray[np.float64]
    radius: float
    relative_error: float
    empty_radius: float
    kkt_violation: float
    status: Status
    n_iterations: int
    n_products: float
    seconds: float
    history: tuple[Progress, ...]

    @property
    def sparsity(self) -> float:
        """Fraction of zero weights."""
        return 1.0 - int(np.count_nonzero(self.weight)) / self.weight.size

    def __str__(self) -> str:
        lines = (
            ("goal", str(self.goal)),
            ("status", f"{self.status.name}: {self.status.value}"),
            ("sparsity", f"{self.sparsity:.2%} zeros in {self.weight.shape[0]} x {self.weight.shape[1]}"),
            ("relative error", f"{self.relative_error:.4g} (radius {self.radius:.4g})"),
            ("objective", f"{self.objective:.6g}, certified within {self.gap:.2e} (bound {self.lower_bound:.6g})"),
            ("multiplier", f"{self._prices()} (KKT violation {self.kkt_violation:.1e})"),
            ("effort", f"{self.n_iterations} iterations, {self.n_products:.1f} products, {self.seconds:.3g} s"),
        )
        return "Solution\n" + "\n".join(f"  {name:<15} {text}" for name, text in lines)

    def _prices(self) -> str:
        if self.duals.size == 1:
            return f"{self.multiplier:.6g}"
        return f"{self.duals.size} budgets, duals from {self.duals.min():.3g} to {self.duals.max():.3g}"

    def __repr__(self) -> str:
        return (
            f"<Solution {self.status.name}: sparsity {self.sparsity:.4f}, relative_error {self.relative_error:.4g}, "
            f"gap {self.gap:.1e}>"
        )
