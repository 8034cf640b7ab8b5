"""Groups of entries that share a budget, and the budgets, from what an `ErrorBudget` says of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import UnsupportedError
from ..goals import ErrorBudget, Penalized
from ..problem import LayerProblem

Array = npt.NDArray[np.float64]

EXACT = 1e-7  # budgets below this part of the empty layer's radius cannot be told from 0, nor kept more exactly
ROUNDING = 1e-9  # the same of one group, as a part of all groups together


@dataclass(frozen=True)
class Groups:
    """Budgets ``sqrt(2 phi_j) <= radii_j`` of J groups: the layer, its mini-batches, or its neurons.

    ``scales`` (J,) are the radii that relative_error 1 stands for.
    """

    per_neuron: bool
    batches: Sequence[slice]
    radii: Array
    scales: Array

    @property
    def resolution(self) -> Array:
        """Radii below which a budget asks for the least loss there is, (J,)."""
        return np.maximum(EXACT * self.scales, ROUNDING * np.linalg.norm(self.scales))

    def of(self, neuron: int, batch: int) -> int:
        """Return the group of a neuron on a mini-batch."""
        return neuron if self.per_neuron else batch

    def totals(self, losses: Array) -> Array:
        """Return phi_j, (J,), from the losses of neurons on mini-batches."""
        return np.asarray(losses.sum(axis=1 if self.per_neuron else 0))

    def relative(self, radii: Array) -> float:
        """Return radii (J,) as one relative error, sqrt(sum_j radii_j**2) / epsilon_max: all groups together."""
        return float(np.linalg.norm(radii) / np.linalg.norm(self.scales))

    def least(self, radii: Array) -> float:
        """Return the least relative error of budgets in these proportions, none of them below ``radii`` (J,)."""
        wanted = self.radii if self.radii.any() else self.scales
        ratio = np.divide(radii, wanted, out=np.zeros_like(radii), where=wanted > 0)
        return float(ratio.max(initial=0.0)) * self.relative(wanted)


def mini_batches(problem: LayerProblem, goal: Penalized | ErrorBudget) -> list[slice]:
    """Return the samples of every mini-batch; one batch of all samples where the goal has no batches.

    Raises
    ------
    UnsupportedError
        If the problem or its target cannot be split as the goal wants it.
    """
    if isinstance(goal, Penalized) or goal.per == "layer":
        return [slice(0, problem.n_samples)]
    if goal.per == "neuron":
        if problem.activation.couples_outputs:
            msg = f"per='neuron' has no meaning for {problem.activation.name}, whose outputs are coupled; use 'batch'"
            raise UnsupportedError(msg)
        return [slice(0, problem.n_samples)]
    if problem.statistics is not None:
        msg = "per='batch' needs the inputs of every sample, which a problem made by from_gram does not have"
        raise UnsupportedError(msg)
    assert goal.batch_size is not None
    starts = range(0, problem.n_samples, goal.batch_size)
    return [slice(start, min(start + goal.batch_size, problem.n_samples)) for start in starts]


def budget_groups(problem: LayerProblem, goal: ErrorBudget, batches: list[slice], empty: Array) -> Groups:
    """Return the budgets of a goal, given the losses (n_out, batches) of the best constant layer."""
    per_neuron = goal.per == "neuron"
    v = problem.sample_weights
    weights = [float(batch.stop - batch.start if v is None else v[batch].sum()) for batch in batches]
    total = problem.total_weight
    if per_neuron:
        scales = np.sqrt(2.0 * empty.sum(axis=1))
        shares = np.full(scales.size, total / scales.size)
    else:
        shares = np.array(weights) if len(batches) > 1 else np.array([total])
        scales = np.sqrt(2.0 * empty.sum() * (shares / total if total > 0 else shares))
    if goal.relative_error is not None:
        radii = goal.relative_error * scales
    elif goal.eta is not None:
        radii = np.sqrt(goal.eta * shares)
    else:
        assert goal.radius is not None
        radii = np.full(scales.size, goal.radius)
    return Groups(per_neuron, batches, radii, scales)


def multiplier(duals: Array) -> float:
    """Return lambda = 1 / mu, nan where there are several budgets."""
    if duals.size != 1:
        return math.nan
    return 1.0 / float(duals[0]) if duals[0] > 0 else math.inf
