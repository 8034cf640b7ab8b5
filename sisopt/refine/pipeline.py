"""From a layer and a goal to a sparse layer: the stages of `sparsify`, one after the other."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..activations.base import Elementwise
from ..capabilities import METHODS
from ..dispatch import MAX_ITERATIONS, solve_silently
from ..evaluation import output_error
from ..goals import ErrorBudget, Sparsity
from ..gram_statistics import column_norms, is_quadratic
from ..patterns import Pattern
from ..problem import LayerProblem
from ..solution import Progress, Solution
from ..sparse_layer import Settings, SparseLayer
from ..thinning import thinned, useful_samples
from .damped import damped_refit
from .measure import FLOAT64, Measured, measure
from .metric import is_wide, most_samples
from .model import LossModel
from .pilot import FIDELITY, Trial, make_pilot, scarce
from .posing import posed
from .power_law import predicted_count
from .record import Record
from .refit import refit
from .reweight import reweighted
from .rounding import round_to_pattern
from .swap import DEFAULT, FAST, FULL, swap

Array = npt.NDArray[np.float64]
Floats = npt.NDArray[Any]

EFFORTS = ("fast", "default", "full")
SCHEDULES = dict(zip(EFFORTS, (FAST, DEFAULT, FULL), strict=True))
REFIT_STEPS = dict(zip(EFFORTS, (1, 3, 10), strict=True))
RIDGE, SCARCE_RIDGE = 1e-3, 1e-2  # to start from, the second where samples are few
BUDGET_RIDGE = 1e-4  # under a budget, which the calibration samples are to keep
LEAST_SAMPLES, PER_INPUT = 1 << 13, 16  # of a swap: the larger of the two, PER_INPUT for every input
SEARCH_STEPS, NARROW = 10, 0.005  # of the search for the fewest weights that keep a budget
AIM, CLOSE = 0.997, 0.99  # of the radius allowed: what a step aims at, and what is near enough
SHARE = 0.3  # of the time that a limit leaves, for trial runs
ASTRAY = 2.0  # times the radius without any weights: a swap that ends there has diverged, no refit mends it


@dataclass
class Pipeline(Record):
    """One call of `sparsify`."""

    effort: str
    pattern: Pattern
    free: bool  # whether the fidelity is to be chosen
    seed: int
    tol: float
    callback: Callable[[Progress], object] | None

    # --- goals -------------------------------------------------------------------------------------------------------

    def to_sparsity(self, sparsity: float | None) -> SparseLayer:
        """Return the layer with the zeros asked for, by number or by pattern."""
        settings, trial = self._choose(sparsity)
        work = posed(self._busy, settings)
        convex: Solution | None = None
        starts: list[Array] = []
        model = self._model(work)
        if self.effort == "full":
            # with all neurons: the penalty clears the dead ones, and a mask that leaves too few weights has no proof
            convex, starts = self._convex_starts(posed(self.problem, settings), sparsity)
        U = self._swapped(model, starts, sparsity, settings)
        weight = self._exact(model.weights(U), model.scale, sparsity)
        made = self._measured(weight, model.dtype if settings.refit else FLOAT64)
        self._note("swap", made)
        if not np.isfinite(U).all() or made.radius > ASTRAY * (self._nothing.radius + self._nothing.rounding):
            made = self._or_cut(made, model, sparsity)
            weight = made.weight.astype(np.float64)
        if settings.refit:
            made = self._refitted(work, model, weight, settings, made)
        return self._layer(self._shortened(made), convex, settings, trial)

    def by_convex_program(self, goal: Sparsity | ErrorBudget) -> SparseLayer:
        """Return the convex program's layer with its values refitted, and fewer weights where they keep the budget."""
        convex = self._convex(self.problem, goal)
        weight = convex.weight.astype(np.float64)
        plain = self.problem.structure.labels is None  # else a count would break groups up
        before = self._measured(weight)
        if plain and isinstance(goal, Sparsity):
            weight = self._exact(weight, column_norms(self.problem, self.n_threads), goal.sparsity)
            before = self._measured(weight)
            self._note("exact count", before)
        after = self._measured(refit(self.problem, weight, self._deadline, self.n_threads))
        settings = Settings(self.problem.fidelity, 0.0)
        if isinstance(goal, Sparsity):
            return self._layer(self._better(before, after), convex, settings, None)
        self._note("refit", after)
        if self.effort == "fast" or not plain or not after.weight.any():
            return self._layer(after, convex, settings, None)
        allowed = max(goal.epsilon(convex.empty_radius, self.problem.total_weight), after.radius)
        damped = settings.having("ridge", BUDGET_RIDGE)
        found = self._fewest(after, allowed, damped)
        if found is None:
            return self._layer(after, convex, settings, None)
        self._note("swap", found)
        return self._layer(found, convex, damped, None)

    # --- stages ------------------------------------------------------------------------------------------------------

    def _choose(self, sparsity: float | None) -> tuple[Settings, Trial | None]:
        """Return the settings and the trial that chose them, if any."""
        free = self.free and not is_quadratic(self.problem)
        settings = Settings(
            FIDELITY if free else self.problem.fidelity, SCARCE_RIDGE if scarce(self.problem) else RIDGE
        )
        if self.effort == "fast":
            return settings, None
        until = self._clock + SHARE * (self._deadline - self._clock)
        pilot = make_pilot(self._busy, self.pattern, sparsity, self.seed, self._dtype, self.n_threads, until)
        if pilot is None or self.ran_out:
            return settings, None
        trial = pilot.choose(settings, fidelity=self.free)
        return trial.settings, trial

    def _model(self, work: LayerProblem) -> LossModel:
        """Return the loss to swap on: of part of the samples where these are many more than the inputs."""
        samples, most = None, most_samples(work, LEAST_SAMPLES, PER_INPUT)
        if isinstance(work.activation, Elementwise) and (most < work.n_in or not is_quadratic(work)):
            samples = useful_samples(work, most)
        part = work if samples is None else thinned(work, samples)
        return LossModel(part, self._dtype, self.n_threads)

    def _convex_starts(self, work: LayerProblem, sparsity: float | None) -> tuple[Solution, list[Array]]:
        """Return the convex program's certified solution, and weights to start a swap from, after the reweighting."""
        share = 1.0 - self.pattern.count((work.n_out, work.n_in), sparsity) / work.weight.size
        goal = Sparsity(share)
        convex = self._convex(work, goal)
        if self.ran_out:
            return convex, []
        reach = column_norms(work, self.n_threads)
        last = reweighted(work, convex, reach, lambda problem, warm: self._solve(problem, goal, warm))
        self._note("reweighted", self._measured(last.weight.astype(np.float64)))
        return convex, [last.weight.astype(np.float64)]

    def _swapped(self, model: LossModel, starts: list[Array], sparsity: float | None, settings: Settings) -> Floats:
        """Return scaled weights that keep to the pattern: from the dense start or another, the better of them."""
        dense = model.dense

        def select(scores: Floats) -> npt.NDArray[np.bool_]:
            return self.pattern.select(scores, sparsity)

        if not dense[~select(np.abs(dense))].any():
            return dense

        found = []
        for start in [dense, *map(model.scaled, starts)]:
            U, _ = swap(model, start, select, SCHEDULES[self.effort], settings.ridge, self._deadline)
            found.append(U)
        for start in map(model.scaled, starts):  # and as it is, cut to the pattern
            cut = np.where(select(np.abs(start)), start, model.dtype.type(0.0))
            found.append(damped_refit(model, cut, settings.ridge, REFIT_STEPS[self.effort], self._deadline))
        if len(found) == 1:
            return found[0]
        judge = self.problem if self.validation is None else self.validation
        errors = []
        for U in found:
            made = measure(self.problem, model.weights(U), self.n_threads)
            errors.append(output_error(judge, made.weight, made.bias, self.n_threads))
        return found[int(np.argmin(errors))]

    def _or_cut(self, made: Measured, model: LossModel, sparsity: float | None) -> Measured:
        """Return the dense weights cut to the pattern where a swap that went astray ended worse than they are."""
        cut = self._measured(self._exact(model.weights(model.dense), model.scale, sparsity))
        if made.radius <= cut.radius:
            return made
        self._note("cut", cut, "the swap went astray: the dense weights of most reach instead")
        return cut

    def _shortened(self, made: Measured) -> Measured:
        """Return the layer, its values nearer to 0 where it is worse than none: the loss is convex on the way there."""
        if made.radius <= self._nothing.radius + self._nothing.rounding:
            return made
        shorter = (self._measured(made.weight.astype(np.float64) * 0.5**k) for k in range(1, 11))
        made = min(shorter, key=lambda each: each.radius)
        self._note("shortened", made)
        return made

    def _exact(self, weight: Array, norms: Array, sparsity: float | None) -> Array:
        """Return the weights with exactly the zeros asked for; ``norms`` (n_in,) is the reach of the inputs."""
        problem = self.problem
        dense, allowed = problem.weight.astype(np.float64), problem.allowed()
        return round_to_pattern(weight, dense, norms, allowed, self.pattern, sparsity)

    def _refitted(
        self, work: LayerProblem, model: LossModel, weight: Array, settings: Settings, before: Measured
    ) -> Measured:
        """Return the layer with its values fitted on the support, or as it was where that raises the held-out error."""
        if model.problem is not work and not is_wide(model.problem):
            model = LossModel(work, model.dtype, self.n_threads)
        after = self._measured(self._fitted(model, weight, settings))
        return self._better(before, after)

    def _better(self, before: Measured, after: Measured) -> Measured:
        """Return the layer after its refit, or the one before where that raises the held-out error."""
        if self.validation is not None:
            errors = [output_error(self.validation, each.weight, each.bias, self.n_threads) for each in (before, after)]
            if errors[1] > errors[0]:
                self._note("refit", before, "skipped: it would raise the held-out error")
                return before
        self._note("refit", after)
        return after

    def _fitted(self, model: LossModel, weight: Array, settings: Settings) -> Array:
        """Return weights with the same zeros, their values fitted where the data tell something."""
        steps = REFIT_STEPS[self.effort]
        U = damped_refit(model, model.scaled(weight), settings.ridge, steps, self._deadline)
        fitted = model.weights(U)
        tells = (fitted.astype(self.problem.weight.dtype) != 0) & (model.scale > 0) & model.problem.allowed()
        return np.where((weight != 0) & tells, fitted, weight)

    def _fewest(self, first: Measured, allowed: float, settings: Settings) -> Measured | None:
        """Return the layer with the fewest weights found that keeps the radius, None where ``first`` has the fewest.

        Between counts that keep it and counts that miss it, radii are taken for powers of the count.
        """
        model, found = self._model(self._busy), None
        most, least = int(np.count_nonzero(first.weight)), 0
        seen = [(most, first.radius)]
        for _ in range(SEARCH_STEPS):
            if most - least <= max(1.0, NARROW * most) or self.ran_out:
                break
            count = predicted_count(seen[-2:], AIM * allowed)
            if not least < count < most:
                count = round(math.sqrt(max(least, 1) * most))
            made = self._with_count(model, count, settings)
            if made.radius <= allowed:
                found, most = made, int(np.count_nonzero(made.weight))
                if made.radius >= CLOSE * allowed:
                    break
            else:
                least = count
            seen.append((count, made.radius))
        return found

    def _with_count(self, model: LossModel, count: int, settings: Settings) -> Measured:
        sparsity = 1.0 - count / self.problem.weight.size
        U = self._swapped(model, [], sparsity, settings)
        weight = self._exact(model.weights(U), model.scale, sparsity)
        return self._measured(self._fitted(model, weight, settings))

    def _convex(self, problem: LayerProblem, goal: Sparsity | ErrorBudget) -> Solution:
        convex = self._solve(problem, goal, None)
        if problem is self.problem:
            error = output_error(problem, convex.weight, convex.bias, self.n_threads)
            self._note("convex", Measured(convex.weight, convex.bias, np.array([0.5 * convex.radius**2]), error))
        else:
            self._note("convex", self._measured(convex.weight.astype(np.float64)))
        return convex

    def _solve(self, problem: LayerProblem, goal: Sparsity | ErrorBudget, warm: Solution | None) -> Solution:
        seconds = None if self.max_seconds is None else max(0.0, self._deadline - time.monotonic())
        return solve_silently(
            problem, goal, METHODS[0], self.tol, MAX_ITERATIONS, seconds, warm, self.callback, self.n_threads
        )
