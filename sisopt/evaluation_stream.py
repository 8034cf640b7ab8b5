"""Losses by group over mini-batches that are read again and again: memory for one of them at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from .batches import BatchStream
from .budgets import Budgets
from .losses import row_loss
from .problem import LayerProblem

Array = npt.NDArray[np.float64]

MAX_BIAS_PASSES = 40
BALANCED = 1e-10  # of the sum of |d phi / d z|: what its sum over all samples may be at the best bias
CURVED = 1e-6  # least curvature in the bias, per sample, that a Newton step divides by


def stream_parts(
    problem: LayerProblem, weight: Array, bias: Array, budgets: Budgets, duals: Array
) -> tuple[Array, Array, Array, Array, float, npt.NDArray[np.bool_]]:
    """Return what `evaluate_groups` needs, at the cost of some passes over the batches.

    That is: phi_ij at the given bias; the best bias for the duals, found by safeguarded Newton steps on the sums of
    d phi / d z, a pass each; there phi_ij, both (n_out, batches), and the gradient (n_out, n_in); the work; and which
    of those sums came out as zero, without which a row's gradient proves nothing.
    """
    b = bias.copy()
    low, high = np.full(b.size, -np.inf), np.full(b.size, np.inf)
    given: Array = np.empty(0)
    work = 0.0
    for passes in range(MAX_BIAS_PASSES):
        parts = np.empty((problem.n_out, len(budgets.batches)))
        gradient = np.zeros((problem.n_out, problem.n_in))
        total, size, curvature = np.zeros(b.size), np.zeros(b.size), np.zeros(b.size)
        for j, (piece, dual) in enumerate(_pieces(problem, budgets, duals)):
            loss = row_loss(piece, slice(0, problem.n_out))
            X = np.asarray(piece.inputs, dtype=np.float64)
            z = weight @ X.T + b[:, None]
            slope, phi = np.empty_like(z), np.empty(b.size)
            loss.gradient(z, slope, phi)
            if budgets.per != "batch" and j > 0:
                parts[:, 0] += phi
            else:
                parts[:, j] = phi
            gradient += dual * (slope @ X)
            total += dual * slope.sum(axis=1)
            size += dual * np.abs(slope).sum(axis=1)
            curvature += dual * (np.count_nonzero(slope, axis=1) + problem.fidelity * slope.shape[1])
        work += 4.0 * problem.n_samples * weight.size
        given = given if passes else parts
        off = np.abs(total) > BALANCED * size
        if not problem.has_bias or not off.any():
            return given, b, parts, gradient, work, ~off | (not problem.has_bias)
        low, high = np.where(total < 0, b, low), np.where(total > 0, b, high)
        proposal = b - total / np.maximum(curvature, CURVED * problem.n_samples)
        middle = 0.5 * (low + high)
        inside = (low < proposal) & (proposal < high)
        b = np.where(off, np.where(inside, proposal, np.where(np.isfinite(middle), middle, proposal)), b)
    return given, b, parts, gradient, work, ~off


def _pieces(problem: LayerProblem, budgets: Budgets, duals: Array) -> Iterator[tuple[LayerProblem, float]]:
    """Yield every batch as a problem of its own, and its dual."""
    assert isinstance(problem.batches, BatchStream)
    for j, (_, inputs, preactivations) in enumerate(problem.batches):
        piece = LayerProblem(
            inputs,
            problem.weight,
            problem.bias,
            activation=problem.activation,
            preactivations=preactivations,
            tolerance=problem.tolerance,
            fidelity=problem.fidelity,
        )
        yield piece, float(duals[j if budgets.per == "batch" else 0]) if budgets.per != "neuron" else 1.0
