"""Losses by group, and the Lagrangian's gradient, at given weights: what certificates with several budgets need."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from . import products
from .budgets import Budgets
from .certificate import RowSums, batch_bound, budget_bound, neuron_bound, row_sums
from .evaluation import evaluate
from .evaluation_stream import stream_parts
from .gram_statistics import input_center
from .losses import Loss, row_loss
from .problem import LayerProblem
from .threads import ordered_map

Array = npt.NDArray[np.float64]

FIRST_SCALING, SCALINGS_TRIED, SCALING_STEPS = 1e-7, 15, 6


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
    balanced: bool

    @property
    def best_losses(self) -> Array:
        """phi_j at the best bias for the duals, (J,)."""
        return self.budgets.group_losses(self.parts)

    def bound(self) -> float:
        """Return a lower bound on g under the budgets; 0 where the bias is not at its best."""
        if not self.balanced:
            return 0.0
        if self.budgets.per == "neuron":
            return neuron_bound(self.sums, self.parts[:, 0], self.duals, self.budgets.radii)
        if self.budgets.per == "layer" or self.budgets.size == 1:
            return budget_bound(self.sums, float(self.budgets.radii[0]))
        return batch_bound(self.sums, self.parts, self.duals, self.budgets.radii)


def evaluate_groups(
    problem: LayerProblem, weight: Array, bias: Array, budgets: Budgets, duals: Array, n_threads: int
) -> GroupEvaluation:
    """Evaluate W (n_out, n_in) with a given bias (n_out,), and with the best one for the duals (J,), over the data."""
    # With one budget for all its dual variable scales everything alike, and is left out.
    used = np.ones(1) if budgets.size == 1 and budgets.per != "neuron" else duals
    balanced = True
    if problem.batches is not None:
        given, best, parts, gradient, work, balanced = stream_parts(problem, weight, bias, budgets, used)
    elif problem.inputs is None:
        given, best, parts, gradient, work = _sums_parts(problem, weight, bias)
    else:
        given, best, parts, gradient, work = _data_parts(problem, weight, bias, budgets, used, n_threads)
    if budgets.per == "neuron":
        gradient, loss = used[:, None] * gradient, used * parts[:, 0]
    else:
        loss = parts @ used
    structure, coupled = problem.structure, problem.activation.couples_outputs
    sums = row_sums(weight, gradient, loss, structure, coupled)
    losses = budgets.group_losses(given)
    return GroupEvaluation(budgets, duals, losses, best, sums, gradient, parts, work, balanced)


def _data_parts(
    problem: LayerProblem, weight: Array, bias: Array, budgets: Budgets, duals: Array, n_threads: int
) -> tuple[Array, Array, Array, Array, float]:
    """Return phi_ij at the given bias; the best bias; phi_ij and the gradient there; the work."""
    X = problem.inputs
    assert X is not None
    weighted = weighted_problem(problem, budgets, duals)
    best, given = bias.copy(), np.empty((problem.n_out, len(budgets.batches)))
    parts, gradient = np.empty_like(given), np.empty(weight.shape)
    center = input_center(problem) if problem.has_bias else None

    def part(rows: slice) -> float:
        plain, phi = row_loss(problem, rows), row_loss(weighted, rows)
        z = _preactivations(problem, np.ascontiguousarray(weight[rows]), bias[rows])
        given[rows] = plain.parts(z, budgets.batches)
        work = phi.refit_bias(z, best[rows], bias[rows]) if problem.has_bias else 0.0
        out = np.empty_like(z)
        phi.gradient(z, out, np.empty(z.shape[0]))
        parts[rows] = plain.parts(z, budgets.batches)
        gradient[rows] = products.backward(out, X, center)
        return work + 4.0 * z.size * problem.n_in

    work = sum(ordered_map(part, problem.chunks(), n_threads))
    return given, best, parts, gradient, work


def _sums_parts(problem: LayerProblem, weight: Array, bias: Array) -> tuple[Array, Array, Array, Array, float]:
    """Return the same from sums over samples."""
    at, s = evaluate(problem, weight), problem.statistics
    assert s is not None
    off = 0.5 * s.total_weight * (bias - at.bias) ** 2 if problem.has_bias else np.zeros(problem.n_out)
    return (at.loss + off)[:, None], at.bias, at.loss[:, None], at.gradient, 0.0


def weighted_problem(problem: LayerProblem, budgets: Budgets, duals: Array) -> LayerProblem:
    """Return the problem whose phi is sum_j mu_j phi_j; duals of neurons are left out, as they only scale rows."""
    if budgets.per == "neuron":
        return problem
    v = np.ones(problem.n_samples) if problem.sample_weights is None else problem.sample_weights.copy()
    for batch, dual in zip(budgets.batches, duals.tolist(), strict=True):
        v[batch] *= dual
    return problem.with_sample_weights(v)


def _preactivations(problem: LayerProblem, weight: Array, bias: Array) -> Array:
    assert problem.inputs is not None
    z = np.zeros((weight.shape[0], problem.n_samples))
    if weight.any():
        products.forward(problem.inputs, weight, z)
    z += bias[:, None]
    return z


def least_scaling(
    problem: LayerProblem, weight: Array, bias: Array, budgets: Budgets, most: float, n_threads: int
) -> float | None:
    """Return the least t in [1, most] found with W t, at the same bias, inside all budgets; None if none is found.

    Losses are convex in t, so the scalings inside the budgets are an interval, maybe a narrow one: steps of growing
    length look for it, and its lower end is bisected.
    """
    chunks = problem.chunks()

    def prepare(rows: slice) -> tuple[Loss, Array]:
        return row_loss(problem, rows), _preactivations(problem, np.ascontiguousarray(weight[rows]), 0.0 * bias[rows])

    ready = list(ordered_map(prepare, chunks, n_threads))

    def excess(t: float) -> float:
        def part(item: tuple[slice, tuple[Loss, Array]]) -> Array:
            rows, (loss, z) = item
            return loss.parts(t * z + bias[rows, None], budgets.batches)

        parts = np.concatenate(list(ordered_map(part, zip(chunks, ready, strict=True), n_threads)))
        return float(np.max(np.sqrt(2.0 * budgets.group_losses(parts)) / budgets.radii))

    low = 0.0
    for high in np.geomspace(FIRST_SCALING, most - 1.0, SCALINGS_TRIED).tolist():
        if excess(1.0 + high) <= 1.0:
            break
        low = high
    else:
        return None
    for _ in range(SCALING_STEPS):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if excess(1.0 + middle) > 1.0 else (low, middle)
    return 1.0 + float(high)
