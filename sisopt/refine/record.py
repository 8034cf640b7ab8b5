"""What a call of `sparsify` keeps book of: the time, the stages and their errors, and what is worked out once."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ..evaluation import output_error
from ..problem import LayerProblem
from ..solution import Solution
from ..sparse_layer import Settings, SparseLayer, Stage
from .measure import FLOAT64, Measured, measure
from .pilot import Trial
from .posing import Nothing, precision, without_weights

Array = npt.NDArray[np.float64]

FITTED = 0.01  # an output error that says nothing where samples are fewer than inputs
PART_WAYS, LEAST_ERROR = 2.0, 0.01  # held-out error over that on the calibration data, and the least, worth a warning


@dataclass
class Record:
    """The layer to be made sparse, and what has come of it; ``validation`` is its problem on other samples."""

    problem: LayerProblem
    validation: LayerProblem | None
    max_seconds: float | None
    n_threads: int
    stages: list[Stage] = field(default_factory=list, kw_only=True)
    warning: str | None = field(default=None, kw_only=True)  # what to tell of the layer that was made

    def __post_init__(self) -> None:
        self._started = time.monotonic()
        self._deadline = math.inf if self.max_seconds is None else self._started + self.max_seconds
        self._clock = self._started

    @cached_property
    def _nothing(self) -> Nothing:
        return without_weights(self.problem, self.n_threads)

    @cached_property
    def _dtype(self) -> np.dtype[Any]:
        return precision(self.problem, self._nothing.radius)

    @cached_property
    def _busy(self) -> LayerProblem:
        """The problem in which neurons that do without weights, dead ones above all, get none."""
        idle = self._nothing.idle
        if not idle.any():
            return self.problem
        return self.problem.with_mask(self.problem.allowed() & ~idle[:, None])

    @property
    def ran_out(self) -> bool:
        """Whether the time is over."""
        return time.monotonic() >= self._deadline

    def _measured(self, weight: Array, dtype: np.dtype[Any] = FLOAT64) -> Measured:
        return measure(self.problem, weight, self.n_threads, dtype)

    def _note(self, name: str, made: Measured, note: str = "") -> None:
        held = (
            None if self.validation is None else output_error(self.validation, made.weight, made.bias, self.n_threads)
        )
        now = time.monotonic()
        relative = self._relative(made)
        self.stages.append(Stage(name, made.sparsity, relative, made.output_error, held, now - self._clock, note))
        self._clock = now

    def _relative(self, made: Measured) -> float:
        empty = self._nothing.radius
        return made.radius / empty if empty > 0 else 0.0

    def _layer(self, made: Measured, convex: Solution | None, settings: Settings, trial: Trial | None) -> SparseLayer:
        held, seen = self.stages[-1].held_out_error, made.output_error
        if self.validation is None and trial is not None and trial.seen > 0.0:
            held = seen * trial.error / trial.seen  # the trial's neurons may have larger errors than all, or smaller
        if held is not None and held > PART_WAYS * seen and held > LEAST_ERROR:
            self.warning = (
                f"the output error on held-out samples is {held:.3g}, that on the calibration samples {seen:.3g}: "
                "give more samples, ask for fewer zeros or raise fidelity"
            )
        elif held is None and 0 < self.problem.n_samples < self.problem.n_in and made.sparsity > 0.0 and seen < FITTED:
            self.warning = (
                f"{self.problem.n_samples} samples for {self.problem.n_in} inputs can be fitted whatever the weights "
                f"are: the output error of {seen:.3g} says nothing of others, give more or validation_inputs"
            )
        relative = self.stages[-1].relative_error
        return SparseLayer(
            made.weight, made.bias, made.sparsity, relative, made.output_error, held, convex, settings,
            tuple(self.stages),
        )  # fmt: skip
