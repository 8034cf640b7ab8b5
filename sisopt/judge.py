"""Judges: what an iterate is worth. They round it, evaluate it afresh, and keep the best one and the best bound."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from .budgets import Budgets
from .certificate import FEASIBILITY, INVALID, penalized_bound, relative_gap
from .evaluation import Evaluation, evaluate
from .evaluation_groups import GroupEvaluation, evaluate_groups, least_scaling
from .problem import LayerProblem

Array = npt.NDArray[np.float64]

MOST_SCALING = 2.0  # of weights that miss their budgets a little


@dataclass(frozen=True)
class Candidate:
    """Weights (n_out, n_in) and a bias (n_out,), rounded to the layer's dtype, with the duals (J,) they came with."""

    weight: Array
    bias: Array
    duals: Array
    objective: float
    losses: Array  # (J,), phi of every group
    kkt_violation: float


class Judge(Protocol):
    """Keeps the best of the iterates that it is shown."""

    best: Candidate | None
    nearest: Candidate | None  # what comes closest to the budgets, for a solve that was cut short
    bound: float
    proof: tuple[Array, Array] | None  # the weights (n_out, n_in) and the duals (J,) behind the bound
    work: float

    def look(self, weight: Array, bias: Array, duals: Array) -> Candidate:
        """Evaluate an iterate and return what was seen, whether it is any good or not."""
        ...

    def prove(self, weight: Array, bias: Array, duals: Array) -> None:
        """Take weights for the sake of their dual point alone."""
        ...

    def settle(self) -> None:
        """Bring the best candidate into the form that is returned."""
        ...

    def gap_of(self, seen: Candidate) -> float:
        """Return the relative gap of what was seen; infinite if it does not meet the goal."""
        ...


def gap(judge: Judge) -> float:
    """Return the relative gap between the best candidate and the best bound; infinite without a candidate."""
    if judge.best is None:
        return np.inf
    if judge.bound > judge.best.objective * (1.0 + INVALID) and judge.best.objective > 0.0:
        return np.inf
    return relative_gap(judge.best.objective, judge.bound)


class BudgetJudge:
    """Judges iterates under budgets.

    An iterate that misses them a little is scaled up, at its bias, to the least multiple that keeps them.
    """

    def __init__(self, problem: LayerProblem, budgets: Budgets, allowed: Array, n_threads: int) -> None:
        self.problem, self.budgets, self.n_threads = problem, budgets, n_threads
        self.allowed = allowed  # (J,): the radii up to which a budget counts as kept
        self.best: Candidate | None = None
        self.nearest: Candidate | None = None
        self.bound, self.work = 0.0, 0.0
        self.proof: tuple[Array, Array] | None = None
        self._least_excess = np.inf

    def look(self, weight: Array, bias: Array, duals: Array) -> Candidate:
        """Evaluate an iterate at its bias and at the best one for the duals; keep what is better than the best."""
        seen = self._consider(weight, bias, duals)
        promising = self.problem.inputs is not None and seen.objective > 0.0
        if self.best is not None and seen.objective >= self.best.objective:
            promising = False
        if promising and not self._keeps(seen.losses):
            inside = Budgets(self.budgets.per, (1.0 - 1e-9) * self.budgets.radii, self.budgets.batches)
            t = least_scaling(self.problem, seen.weight, seen.bias, inside, MOST_SCALING, self.n_threads)
            self.work += 2.0 * self.problem.n_samples * seen.weight.size
            if t is not None and (self.best is None or t * seen.objective < self.best.objective):
                self._consider(t * seen.weight, seen.bias, duals)
        return seen

    def _consider(self, weight: Array, bias: Array, duals: Array) -> Candidate:
        problem, dtype = self.problem, self.problem.weight.dtype
        W, b = weight.astype(dtype).astype(np.float64), bias.astype(dtype).astype(np.float64)
        at = self._evaluate(W, b, duals)
        objective = float(problem.structure.values(W).sum())
        price = 1.0 if duals.size > 1 or self.budgets.per == "neuron" else float(duals[0])
        violation = problem.structure.kkt_violation(W, at.gradient, 1.0 / price if price > 0 else 0.0)
        self._raise(at, W)
        seen = Candidate(W, b, duals, objective, at.losses, violation)
        if self._keeps(at.losses):
            self._keep(seen)
        elif problem.has_bias and self._keeps(at.best_losses):
            b = at.bias.astype(dtype).astype(np.float64)
            losses = at.best_losses if np.array_equal(b, at.bias) else self._evaluate(W, b, duals).losses
            if self._keeps(losses):
                self._keep(replace(seen, bias=b, losses=losses))
        excess = float(np.max(seen.losses / self.budgets.radii**2))
        if excess < self._least_excess:
            self.nearest, self._least_excess = seen, excess
        return seen

    def prove(self, weight: Array, bias: Array, duals: Array) -> None:
        """See `Judge`."""
        W = self.problem.masked(weight)  # what a mask forbids would not be a dual point
        self._raise(self._evaluate(W, bias, duals), W)

    def gap_of(self, seen: Candidate) -> float:
        """See `Judge`."""
        return relative_gap(seen.objective, self.bound) if self._keeps(seen.losses) else np.inf

    def settle(self) -> None:
        """Give the best candidate the best bias that is nearest the dense one, where it keeps the budgets with it."""
        best = self.best
        if best is None or not self.problem.has_bias:
            return
        bias = self._evaluate(best.weight, self.problem.dense_bias, best.duals).bias
        bias = bias.astype(self.problem.weight.dtype).astype(np.float64)
        at = self._evaluate(best.weight, bias, best.duals)
        if self._keeps(at.losses):
            self.best = replace(best, bias=bias, losses=at.losses)

    def _evaluate(self, weight: Array, bias: Array, duals: Array) -> GroupEvaluation:
        at = evaluate_groups(self.problem, weight, bias, self.budgets, duals, self.n_threads)
        self.work += at.work
        return at

    def _raise(self, at: GroupEvaluation, weight: Array) -> None:
        bound = at.bound()
        if bound > self.bound:
            self.bound, self.proof = bound, (weight, at.duals.copy())

    def _keeps(self, losses: Array) -> bool:
        return bool((np.sqrt(2.0 * losses) <= self.allowed).all())

    def _keep(self, candidate: Candidate) -> None:
        if self.best is None or candidate.objective < self.best.objective:
            self.best = candidate


class PenalizedJudge:
    """Judges iterates of the penalised program."""

    def __init__(self, problem: LayerProblem, multiplier: float, n_threads: int) -> None:
        self.problem, self.multiplier, self.n_threads = problem, multiplier, n_threads
        self.best: Candidate | None = None
        self.nearest: Candidate | None = None
        self.bound, self.work = 0.0, 0.0
        self.proof: tuple[Array, Array] | None = None

    def look(self, weight: Array, bias: Array, duals: Array) -> Candidate:
        """Evaluate an iterate at its best bias."""
        problem, dtype = self.problem, self.problem.weight.dtype
        W = weight.astype(dtype).astype(np.float64)
        at = evaluate(problem, W, self.n_threads)
        self.work += at.work
        loss = float(at.rounded_loss.sum())
        objective = self.multiplier * float(problem.structure.values(W).sum()) + loss
        violation = problem.structure.kkt_violation(W, at.gradient, self.multiplier)
        self._raise(at, W)
        seen = Candidate(W, at.bias.astype(dtype).astype(np.float64), duals, objective, np.array([loss]), violation)
        if self.best is None or objective < self.best.objective:
            self.best = seen
        return seen

    def prove(self, weight: Array, bias: Array, duals: Array) -> None:
        """See `Judge`."""
        W = self.problem.masked(weight)  # what a mask forbids would not be a dual point
        at = evaluate(self.problem, W, self.n_threads)
        self.work += at.work
        self._raise(at, W)

    def settle(self) -> None:
        """See `Judge`: candidates are at their best bias already."""

    def gap_of(self, seen: Candidate) -> float:
        """See `Judge`."""
        return relative_gap(seen.objective, self.bound)

    def _raise(self, at: Evaluation, weight: Array) -> None:
        bound = penalized_bound(at.sums(self.problem, weight), self.multiplier)
        if bound > self.bound:
            self.bound, self.proof = bound, (weight, np.array([1.0 / self.multiplier]))


def allowed_radii(budgets: Budgets, dtype: np.dtype[np.generic], exact: bool) -> Array:
    """Return the radii up to which budgets count as kept; ``exact``: they stand for 0, at half of what is allowed."""
    return 2.0 * budgets.radii if exact else budgets.radii * (1.0 + FEASIBILITY[np.dtype(dtype)])
