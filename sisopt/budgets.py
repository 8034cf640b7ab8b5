"""Budgets: which entries share one, and how large it is, once a goal meets a problem."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from .errors import InvalidInputError
from .goals import ErrorBudget
from .problem import LayerProblem

Array = npt.NDArray[np.float64]

Per = Literal["layer", "batch", "neuron"]


@dataclass(frozen=True, eq=False)
class Budgets:
    """Budgets ``sqrt(2 phi_j) <= epsilon_j`` of groups j of entries of the pre-activations.

    A group is the whole layer (one), a mini-batch of consecutive samples, or an output neuron. ``batches`` holds the
    mini-batches, or all samples as one; ``radii`` the epsilon_j, (J,), in units of pre-activations.
    """

    per: Per
    radii: Array
    batches: tuple[slice, ...]

    @property
    def size(self) -> int:
        """Number J of groups."""
        return int(self.radii.size)

    def group_losses(self, losses: Array) -> Array:
        """Return the loss of every group, (J,), from the losses of the neurons on the batches, (n_out, batches)."""
        if self.per == "neuron":
            return np.asarray(losses.sum(axis=1))
        return np.asarray(losses.sum(axis=0))


def mini_batches(n_samples: int, batch_size: int) -> tuple[slice, ...]:
    """Return consecutive batches of ``batch_size`` samples; the last one may be shorter."""
    return tuple(slice(i, min(i + batch_size, n_samples)) for i in range(0, n_samples, batch_size))


def budgets_of(goal: ErrorBudget, problem: LayerProblem, empty_losses: Array) -> Budgets:
    """Return the budgets of a goal on a problem, given the loss of every neuron at W = 0 and the best b, (n_out,).

    With eta the mean squared distance per sample that the goal allows the layer, a mini-batch of total weight T gets
    ``epsilon**2 = T eta``; a neuron the asked fraction of its own epsilon_max, or an equal share of the layer's.
    """
    n = problem.n_samples
    empty, total = float(np.sqrt(2.0 * empty_losses.sum())), problem.total_weight
    everything = (slice(0, n),)
    if goal.per == "layer":
        return Budgets("layer", np.array([goal.epsilon(empty, total)]), everything)
    if goal.per == "neuron":
        if goal.relative_error is not None:
            return Budgets("neuron", goal.relative_error * np.sqrt(2.0 * empty_losses), everything)
        share = 1.0 if goal.radius is not None else 1.0 / np.sqrt(problem.n_out)
        return Budgets("neuron", np.full(problem.n_out, share * goal.epsilon(empty, total)), everything)
    batches = _batches(goal, problem)
    if goal.radius is not None:
        return Budgets("batch", np.full(len(batches), goal.radius), batches)
    v = problem.sample_weights
    weights = np.array([s.stop - s.start if v is None else v[s].sum() for s in batches], dtype=np.float64)
    return Budgets("batch", goal.epsilon(empty, total) * np.sqrt(weights / total), batches)


def _batches(goal: ErrorBudget, problem: LayerProblem) -> tuple[slice, ...]:
    """Return the goal's mini-batches of the samples, or those that a stream comes in."""
    if problem.batches is not None:
        if goal.batch_size is not None:
            msg = f"batch_size must be left out where the problem comes in mini-batches, got {goal.batch_size}"
            raise InvalidInputError(msg)
        return problem.batches.slices
    if goal.batch_size is None:
        msg = "batch_size must be given with per='batch': the number of samples of a mini-batch"
        raise InvalidInputError(msg)
    return mini_batches(problem.n_samples, goal.batch_size)
