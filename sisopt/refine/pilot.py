"""Trial runs that choose a layer's settings: some neurons, four fifths of the samples, judged on the last fifth.

What a calibration set forgives depends on how large it is, so how closely to hold on to the dense layer is not guessed
but tried: the ridge, the fidelity and, for smooth activations, weights by slope, one after the other; then whether the
last refit pays.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..activations.base import Elementwise
from ..evaluation import output_error
from ..gram_statistics import is_quadratic
from ..patterns import NM, Pattern, PerRow, Unstructured
from ..problem import LayerProblem
from ..sparse_layer import Settings
from ..thinning import thinned, thinned_samples
from .damped import damped_refit
from .measure import measure
from .metric import most_samples
from .model import LossModel
from .posing import has_slopes, posed
from .swap import DEFAULT, FAST, swap

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]

RIDGES = (1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1)
FIDELITIES = (0.0, 0.05, 0.2, 1.0)
FIDELITY = 0.05  # to start from where a target is a set
TOLERANCE = 0.2  # of the root mean square of the error that the outputs have anyway
BETTER = 0.998  # of the held-out error: a setting that gains less is not worth leaving the one before
HELD_OUT = 5  # one sample in so many
LEAST_SAMPLES = 20  # fewer tell nothing
LEAST_ROWS, ROWS = 24, 16  # neurons of a trial: one in ROWS, LEAST_ROWS at least
MOST_SAMPLES, PER_INPUT = 1 << 13, 8  # of a trial: the larger of MOST_SAMPLES and PER_INPUT for every input
REFIT_STEPS = 1
SCARCE = 4  # samples per input below which the ridge matters wherever values are free


@dataclass(frozen=True)
class Trial:
    """What a trial run came to; ``error`` is the output error on the samples held out, ``seen`` that on the others."""

    settings: Settings
    error: float
    seen: float
    weights: tuple[Array, Array]  # after the swap and after the refit


@dataclass(frozen=True, eq=False)
class Pilot:
    """A part of a layer to try settings on, and the samples that it is judged on."""

    part: LayerProblem
    held_out: LayerProblem
    pattern: Pattern
    sparsity: float | None
    dtype: np.dtype[Any]
    n_threads: int
    deadline: float
    _models: list[LossModel] = field(default_factory=list)  # the last: what came of the inputs serves the next

    def choose(self, start: Settings, *, fidelity: bool) -> Trial:
        """Return the best trial, settings changed one after the other; ``fidelity`` says whether that one may be."""
        quadratic = is_quadratic(self.part)
        best = self._run(start)
        if quadratic or scarce(self.part):
            best = self._climb(best, "ridge", RIDGES)
        if fidelity and not quadratic:
            best = self._climb(best, "fidelity", FIDELITIES)
        if has_slopes(self.part):
            best = self._better(best, replace(best.settings, slopes=True))
            tolerance = TOLERANCE * best.error * self._size()
            if tolerance > 0.0:
                wide = best.settings.having("tolerance", tolerance)
                best = self._better(best, wide.having("fidelity", FIDELITY) if fidelity else wide)
        return self._judged(best)

    def _size(self) -> float:
        """Return the root mean square of the dense layer's outputs on the samples held out."""
        Y = self.held_out.activation.forward(np.asarray(self.held_out.preactivations, dtype=np.float64))
        return math.sqrt(float(np.mean(Y**2)))

    def _climb(self, best: Trial, name: str, ladder: tuple[float, ...]) -> Trial:
        """Return the best trial among neighbouring values of a setting, going on in the first direction that pays."""
        start, at = best, ladder.index(getattr(best.settings, name))
        for values in (ladder[at + 1 :], ladder[:at][::-1]):
            for value in values:
                trial = self._better(best, best.settings.having(name, value))
                if trial is best:
                    break
                best = trial
            if best is not start:
                break
        return best

    def _better(self, best: Trial, settings: Settings) -> Trial:
        if time.monotonic() >= self.deadline:  # what is cut short tells nothing
            return best
        trial = self._run(settings)
        return trial if trial.error < BETTER * best.error else best

    def _run(self, settings: Settings) -> Trial:
        problem = posed(self.part, settings)
        model = LossModel(problem, self.dtype, self.n_threads, self._models[-1] if self._models else None)
        self._models[:] = [model]
        # beside trials on a quadratic, which are slow to grow rho, one on sets has to be as slow
        schedule = replace(FAST, growth=math.sqrt(FAST.growth), follow=DEFAULT.follow) if settings.tolerance else FAST
        U, _ = swap(model, model.dense, self._select, schedule, settings.ridge, self.deadline)
        V = damped_refit(model, U, settings.ridge, REFIT_STEPS, self.deadline)
        W = model.weights(V)
        return Trial(
            settings, output_error(self.held_out, W, model.bias(W), self.n_threads), math.nan, (model.weights(U), W)
        )

    def _judged(self, best: Trial) -> Trial:
        """Return a trial with the error on the samples that it saw, and with its refit only where that paid."""
        made = [measure(self.part, weight, self.n_threads, self.dtype) for weight in best.weights]
        errors = [output_error(self.held_out, each.weight, each.bias, self.n_threads) for each in made]
        at = int(BETTER * errors[1] <= errors[0])
        return Trial(replace(best.settings, refit=bool(at)), errors[at], made[at].output_error, best.weights)

    def _select(self, scores: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        return self.pattern.select(scores, self.sparsity)


def scarce(problem: LayerProblem) -> bool:
    """Return whether samples are few for the inputs."""
    return problem.n_samples < SCARCE * problem.n_in


def make_pilot(
    problem: LayerProblem,
    pattern: Pattern,
    sparsity: float | None,
    seed: int,
    dtype: np.dtype[Any],
    n_threads: int,
    deadline: float,
) -> Pilot | None:
    """Return a part of the layer to try settings on; None where samples are too few, or cannot be parted."""
    if problem.n_samples < LEAST_SAMPLES or not _can_be_parted(problem):
        return None
    samples = thinned_samples(problem.n_samples, most_samples(problem, MOST_SAMPLES, PER_INPUT))
    samples = np.arange(problem.n_samples) if samples is None else samples
    held = np.zeros(samples.size, np.bool_)
    edges = np.arange(0, samples.size - HELD_OUT + 1, HELD_OUT)
    held[edges + np.random.default_rng(seed).integers(HELD_OUT, size=edges.size)] = True  # one of every HELD_OUT
    rows = _rows(problem, pattern)
    if not all(_has_weight(problem, rows, samples[where]) for where in (~held, held)):
        return None
    part, held_out = (_part(problem, rows, samples[where]) for where in (~held, held))
    if not _has_outputs(held_out):
        return None
    return Pilot(part, held_out, pattern, sparsity, dtype, n_threads, deadline)


def _can_be_parted(problem: LayerProblem) -> bool:
    """Return whether samples are independent of one another: windows of a pooling are not."""
    return isinstance(problem.activation, Elementwise) or problem.activation.couples_outputs


def _has_weight(problem: LayerProblem, rows: Indices, samples: Indices) -> bool:
    """Return whether anything counts on some neurons and samples."""
    v, omega = problem.sample_weights, problem.entry_weights
    return (v is None or bool(v[samples].any())) and (omega is None or bool(omega[np.ix_(samples, rows)].any()))


def _has_outputs(problem: LayerProblem) -> bool:
    """Return whether the dense layer does anything that an error could be relative to."""
    assert problem.preactivations is not None
    return bool(problem.activation.forward(problem.preactivations).any())


def _rows(problem: LayerProblem, pattern: Pattern) -> Indices:
    """Return the neurons of a trial: all of them where they, or the groups of a pattern, hang together."""
    n_out = problem.n_out
    if problem.activation.couples_outputs or not isinstance(pattern, Unstructured | PerRow | NM):
        return np.arange(n_out)
    count = min(n_out, max(LEAST_ROWS, n_out // ROWS))
    return (np.arange(count) * n_out) // count


def _part(problem: LayerProblem, rows: Indices, samples: Indices) -> LayerProblem:
    return thinned(problem, samples) if rows.size == problem.n_out else thinned(problem, samples).with_rows(rows)
