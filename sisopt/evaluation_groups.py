"""Losses by group, and the Lagrangian's gradient, at given weights: what certificates with several budgets need."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from . import products
from .budgets import Budgets
from .certificate import RowSums, balanced, batch_bound, budget_bound, neuron_bound, row_sums
from .evaluation import evaluate
from .evaluation_stream import stream_parts
from .gram_statistics import input_center
from .losses import row_loss
from .problem import LayerProblem
from .threads import ordered_map

Array = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

FIRST_SCALING, SCALINGS_TRIED, SCALINGS_REFINED, REFINEMENTS = 1e-7, 15, 8, 3


@dataclass(frozen=True)
class GroupEvaluation:
    """The Lagrangian's smooth part sum_j mu_j phi_j, with one budget phi itself, at weights W and its best bias.

    ``losses`` (J,) are the phi_j at the given bias; ``bias`` (n_out,) is the best one for the ``duals`` mu (J,), where
    ``sums`` and ``gradient`` (n_out, n_in) belong to the weighted sum, ``parts`` are the phi_ij of neuron i on batch j
    and ``best_losses`` (J,) the phi_j.
    """

    budgets: Budgets
    duals: Array
    losses: Array
    bias: Array
    sums: RowSums
    gradient: Array
    parts: Array
    work: float
    balanced: npt.NDArray[np.bool_]

    @property
    def best_losses(self) -> Array:
        """phi_j at the best bias for the duals, (J,)."""
        return self.budgets.group_losses(self.parts)

    def bound(self) -> float:
        """Return a lower bound on g under the budgets."""
        parts = np.where(self.balanced[:, None], self.parts, 0.0)
        if self.budgets.per == "neuron":
            return neuron_bound(self.sums, parts[:, 0], self.duals, self.budgets.radii)
        if self.budgets.per == "layer" or self.budgets.size == 1:
            return budget_bound(self.sums, float(self.budgets.radii[0]))
        return batch_bound(self.sums, parts, self.duals, self.budgets.radii)


def evaluate_groups(
    problem: LayerProblem, weight: Array, bias: Array, budgets: Budgets, duals: Array, n_threads: int
) -> GroupEvaluation:
    """Evaluate W (n_out, n_in) with a given bias (n_out,), and with the best one for the duals (J,), over the data."""
    # With one budget for all its dual variable scales everything alike, and is left out.
    used = np.ones(1) if budgets.size == 1 and budgets.per != "neuron" else duals
    good = np.ones(problem.n_out, np.bool_)
    if problem.batches is not None:
        given, best, parts, gradient, work, good = stream_parts(problem, weight, bias, budgets, used)
    elif problem.inputs is None:
        given, best, parts, gradient, work = _sums_parts(problem, weight, bias)
    else:
        given, best, parts, gradient, work, good = _data_parts(problem, weight, bias, budgets, used, n_threads)
    if budgets.per == "neuron":
        gradient, loss = used[:, None] * gradient, used * parts[:, 0]
    else:
        loss = parts @ used
    structure, coupled = problem.structure, problem.activation.couples_outputs
    proving = np.where(good, 1.0, 0.0)
    sums = row_sums(weight, proving[:, None] * gradient, proving * loss, structure, coupled)
    losses = budgets.group_losses(given)
    return GroupEvaluation(budgets, duals, losses, best, sums, gradient, parts, work, good)


def _data_parts(
    problem: LayerProblem, weight: Array, bias: Array, budgets: Budgets, duals: Array, n_threads: int
) -> tuple[Array, Array, Array, Array, float, Flags]:
    """Return phi_ij at the given bias; the best bias; phi_ij and the gradient there; the work; which rows balance."""
    X = problem.inputs
    assert X is not None
    weighted = weighted_problem(problem, budgets, duals)
    best, given = bias.copy(), np.empty((problem.n_out, len(budgets.batches)))
    parts, gradient, good = np.empty_like(given), np.empty(weight.shape), np.ones(problem.n_out, np.bool_)
    center = input_center(problem) if problem.has_bias else None

    def part(rows: slice) -> float:
        plain = row_loss(problem, rows)
        phi = plain if weighted is problem else row_loss(weighted, rows)
        z = _preactivations(problem, np.ascontiguousarray(weight[rows]))
        z += bias[rows, None]
        given[rows] = plain.parts(z, budgets.batches)
        work = phi.refit_bias(z, best[rows], bias[rows]) if problem.has_bias else 0.0
        out = np.empty_like(z)
        phi.gradient(z, out, np.empty(z.shape[0]))
        parts[rows] = plain.parts(z, budgets.batches)
        if problem.has_bias:
            good[rows] = balanced(out, problem.activation.couples_outputs)
        gradient[rows] = products.backward(out, X, center)
        return work + 4.0 * z.size * problem.n_in

    work = sum(ordered_map(part, problem.chunks(), n_threads))
    return given, best, parts, gradient, work, good


def _sums_parts(problem: LayerProblem, weight: Array, bias: Array) -> tuple[Array, Array, Array, Array, float]:
    """Return the same from sums over samples."""
    at, s = evaluate(problem, weight), problem.statistics
    assert s is not None
    off = 0.5 * s.total_weight * (bias - at.bias) ** 2 if problem.has_bias else np.zeros(problem.n_out)
    return (at.loss + off)[:, None], at.bias, at.loss[:, None], at.gradient, 0.0


def weighted_problem(problem: LayerProblem, budgets: Budgets, duals: Array) -> LayerProblem:
    """Return the problem whose phi is sum_j mu_j phi_j; duals of neurons are left out, as they only scale rows."""
    if budgets.per == "neuron" or (duals == 1.0).all():
        return problem
    v = np.ones(problem.n_samples) if problem.sample_weights is None else problem.sample_weights.copy()
    for batch, dual in zip(budgets.batches, duals.tolist(), strict=True):
        v[batch] *= dual
    return problem.with_sample_weights(v)


def _preactivations(problem: LayerProblem, weight: Array) -> Array:
    assert problem.inputs is not None
    z = np.zeros((weight.shape[0], problem.n_samples))
    if weight.any():
        products.forward(problem.inputs, weight, z)
    return z


def least_scaling(
    problem: LayerProblem, weight: Array, bias: Array, budgets: Budgets, most: float, n_threads: int
) -> float | None:
    """Return the least t in [1, most] found with W t, at the same bias, inside all budgets; None if none is found.

    Losses are convex in t, so the scalings inside the budgets are an interval, maybe a narrow one: steps of growing
    length look for it, and shorter ones for its lower end.
    """

    def first_inside(trials: Array) -> int | None:
        """Return which of the trial scalings is the first inside the budgets."""

        def part(rows: slice) -> Array:
            loss, z = row_loss(problem, rows), _preactivations(problem, np.ascontiguousarray(weight[rows]))
            return np.stack([loss.parts(t * z + bias[rows, None], budgets.batches) for t in trials.tolist()])

        parts = np.concatenate(list(ordered_map(part, problem.chunks(), n_threads)), axis=1)
        inside = [bool((2.0 * budgets.group_losses(losses) <= budgets.radii**2).all()) for losses in parts]
        return inside.index(True) if any(inside) else None

    trials, low = 1.0 + np.geomspace(FIRST_SCALING, most - 1.0, SCALINGS_TRIED), 1.0
    found = first_inside(trials)
    if found is None:
        return None
    for _ in range(REFINEMENTS):
        low, high = (float(trials[found - 1]) if found > 0 else low), float(trials[found])
        trials = np.linspace(low, high, SCALINGS_REFINED + 1)[1:]
        inside = first_inside(trials)
        if inside is None:  # up to rounding the last one is inside, as it was
            return high
        found = inside
    return float(trials[found])
