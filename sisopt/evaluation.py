"""The loss and its gradient at given weights, with the best bias: what certificates are computed from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from . import products
from .certificate import RowSums, balanced, row_sums
from .gram_statistics import WIDE, gram_statistics, input_center, is_quadratic
from .losses import row_loss
from .problem import LayerProblem
from .thinning import thinned, useful_samples
from .threads import ordered_map, resolve_threads

Array = npt.NDArray[np.float64]

SIZED = 4096  # samples that tell the size of pre-activations
ROUNDING = 1e-13  # of the size of the targets: a radius below it is none
SUMMATION = 8.0 * np.finfo(float).eps  # relative error of an entry of the sums over samples, whose terms vary in sign
EXACT = 1e-9  # relative error of losses and gradients up to which the sums can stand for the data


@dataclass(frozen=True)
class Evaluation:
    """phi and its gradient at weights W and their best bias.

    ``loss`` (n_out,) and ``gradient`` (n_out, n_in) = (d phi / d Z)' X are taken at ``bias`` (n_out,), the best bias
    nearest to the dense one; ``rounded_loss`` at that bias rounded to the layer's dtype. ``balanced`` (n_out,) says
    where d phi / d Z adds up to zero over the samples, as a dual point has to. ``work`` counts operations.
    """

    loss: Array
    gradient: Array
    bias: Array
    rounded_loss: Array
    balanced: npt.NDArray[np.bool_]
    work: float

    def sums(self, problem: LayerProblem, weight: Array) -> RowSums:
        """Return what certificates need of these weights, the ones that were evaluated.

        Rows whose gradient is no dual point take no part.
        """
        gradient, loss = np.where(self.balanced[:, None], self.gradient, 0.0), np.where(self.balanced, self.loss, 0.0)
        return row_sums(weight, gradient, loss, problem.structure, problem.activation.couples_outputs)


def evaluate(problem: LayerProblem, weight: Array, n_threads: int | None = None) -> Evaluation:
    """Evaluate W (n_out, n_in), float64, over the data or, for problems made from a Gram matrix, over the sums."""
    if problem.inputs is None:
        return _evaluate_gram(problem, weight, 1)
    if "statistics" in problem._cache and problem.structure.is_plain:
        at = _evaluate_gram(problem, weight, 1)
        if _is_exact(problem, weight, at):
            return at
    return _evaluate_data(problem, weight, resolve_threads(n_threads))


def _evaluate_data(problem: LayerProblem, weight: Array, n_threads: int) -> Evaluation:
    X = problem.inputs
    assert X is not None
    shape = (problem.n_out, problem.n_in)
    loss, rounded, gradient = np.empty(shape[0]), np.empty(shape[0]), np.empty(shape)
    bias = problem.dense_bias
    anchor, good = bias.copy(), np.ones(shape[0], np.bool_)

    def part(rows: slice) -> float:
        phi = row_loss(problem, rows)
        W = np.ascontiguousarray(weight[rows])
        z = np.zeros((W.shape[0], problem.n_samples))
        work = 2.0 * z.size * shape[1]
        if W.any():
            products.forward(X, W, z)
            work *= 2.0
        b = bias[rows]  # a view: the refit below moves it
        z += b[:, None]
        if problem.has_bias:
            work += phi.refit_bias(z, b, anchor[rows])
        out = np.empty_like(z)
        phi.gradient(z, out, loss[rows])
        if problem.has_bias:
            good[rows] = balanced(out, problem.activation.couples_outputs)
        gradient[rows] = products.backward(out, X, input_center(problem) if problem.has_bias else None)
        off = b.astype(problem.weight.dtype).astype(np.float64) - b
        if off.any():
            z += off[:, None]
            phi.gradient(z, out, rounded[rows])
        else:
            rounded[rows] = loss[rows]
        return float(work)

    chunks = problem.chunks(WIDE) if is_quadratic(problem) else problem.chunks()
    if len(chunks) > 1:  # more arrays live here than in a solver, which spreads the cost of reading the inputs instead
        chunks = [part for rows in chunks for part in _split(rows, problem.n_samples)]
    work = sum(ordered_map(part, chunks, n_threads))
    return Evaluation(loss, gradient, bias, rounded, good, work)


def _split(rows: slice, n_samples: int) -> list[slice]:
    """Return a chunk in parts whose arrays over all samples take no more than CHUNK_BYTES, or hold one neuron."""
    size = max(1, products.CHUNK_BYTES // (8 * n_samples))
    return [slice(i, min(i + size, rows.stop)) for i in range(rows.start, rows.stop, size)]


def _evaluate_gram(problem: LayerProblem, weight: Array, n_threads: int) -> Evaluation:
    statistics, work = gram_statistics(problem, n_threads)
    scale = 1.0 + problem.fidelity
    product = weight @ statistics.gram
    loss = np.einsum("ij,ij->i", weight, product - 2.0 * statistics.cross) + statistics.energy
    loss = 0.5 * scale * np.maximum(loss, 0.0)
    bias = statistics.target_mean - weight @ statistics.input_mean
    rounded = loss
    if problem.has_bias:
        off = bias.astype(problem.weight.dtype).astype(np.float64) - bias
        rounded = loss + 0.5 * scale * statistics.total_weight * off**2
    gradient = scale * (product - statistics.cross)
    return Evaluation(loss, gradient, bias, rounded, np.ones(problem.n_out, np.bool_), work)


def _is_exact(problem: LayerProblem, weight: Array, at: Evaluation) -> bool:
    """Return whether the sums over samples give all losses and gradients to many more digits than certificates need.

    An entry of the Gram matrix is off by at most SUMMATION sqrt(G_jj G_kk), one of the cross products by SUMMATION
    sqrt(G_jj e_i); with a_i = sum_j |w_ij| sqrt(G_jj) + sqrt(e_i) the squared residual is then off by SUMMATION a_i**2
    and the gradient by SUMMATION sqrt(G_jj) a_i. Both are compared with what they are an error of.
    """
    statistics, _ = gram_statistics(problem, 1)
    scale = 1.0 + problem.fidelity
    length = np.sqrt(np.diagonal(statistics.gram))
    reach = np.abs(weight) @ length + np.sqrt(statistics.energy)
    loss_error, slope_error = 0.5 * scale * SUMMATION * reach**2, scale * SUMMATION * reach * length.max()
    largest = np.abs(at.gradient).max(axis=1)
    total, busy = float(at.loss.sum()), at.loss > 0.0
    return bool(loss_error.sum() <= EXACT * total and (slope_error <= EXACT * largest)[busy].all())


def empty_evaluation(problem: LayerProblem, n_threads: int | None = None) -> Evaluation:
    """Evaluate the best constant layer: W = 0 with the best bias (b = 0 where none is fitted)."""
    nothing = np.zeros(problem.weight.shape)
    if is_quadratic(problem):  # the solver needs the sums anyway, and they cost no further product
        return _evaluate_gram(problem, nothing, resolve_threads(n_threads))
    return evaluate(problem, nothing, n_threads)


def target_size(problem: LayerProblem) -> float:
    """Return the (weighted) norm of the dense pre-activations, against which a radius may be mere rounding.

    An estimate from part of the samples where they would have to be computed for it.
    """
    if problem.statistics is not None or "statistics" in problem._cache:
        s = gram_statistics(problem, 1)[0]
        return float(np.sqrt(s.energy.sum() + s.total_weight * (s.target_mean**2).sum()))
    samples = useful_samples(problem, SIZED) if problem._dense is None else None
    if samples is not None:
        return target_size(thinned(problem, samples)) * float(np.sqrt(problem.n_samples / samples.size))
    total = 0.0
    v = np.ones(problem.n_samples) if problem.sample_weights is None else problem.sample_weights
    for rows in problem.chunks():
        z = problem.dense_rows(rows)
        if problem.entry_weights is None:
            total += float(np.einsum("ik,ik,k->", z, z, v))
        else:
            total += float(np.einsum("ik,ik,ik,k->", z, z, problem.entry_weights.T[rows], v))
    return float(np.sqrt(total))


def empty_radius(problem: LayerProblem, sums: RowSums) -> float:
    """Return epsilon_max from the sums at W = 0 and the best b: 0 for a dead layer, whose radius is mere rounding."""
    size = target_size(problem) if problem.batches is None else 0.0  # a stream would have to be read for it
    return sums.radius if sums.radius > ROUNDING * size else 0.0


def output_error(
    problem: LayerProblem, weight: npt.ArrayLike, bias: npt.ArrayLike | None, n_threads: int | None = None
) -> float:
    """Return ||R(Z) - Y||_F / ||Y||_F for weights (n_out, n_in) and bias (n_out,), Y the dense layer's outputs."""
    difference, reference = output_energies(problem, weight, bias, n_threads)
    if reference == 0.0:
        return 0.0 if difference == 0.0 else float("inf")
    return float(np.sqrt(difference / reference))


def output_energies(
    problem: LayerProblem, weight: npt.ArrayLike, bias: npt.ArrayLike | None, n_threads: int | None = None
) -> tuple[float, float]:
    """Return ||R(Z) - Y||_F**2 and ||Y||_F**2, of which `output_error` is the root of the quotient."""
    assert problem.inputs is not None
    X, R = problem.inputs, problem.activation
    W = np.asarray(weight, dtype=np.float64)
    b = np.zeros(problem.n_out) if bias is None else np.asarray(bias, dtype=np.float64)

    def part(rows: slice) -> tuple[float, float]:
        z = products.forward(X, W[rows], np.empty((W[rows].shape[0], problem.n_samples)))
        z += b[rows, None]
        if problem.shift is not None:
            z += problem.shift.T[rows]
        dense, difference, reference = problem.dense_rows(rows), 0.0, 0.0
        for piece in problem.pieces(z.shape):
            outputs, goal = z[piece], dense[piece]
            if R.couples_outputs:  # over the outputs of a sample, along the last axis
                outputs, goal = outputs.T, goal.T
            goal = R.forward(goal)
            difference += float(np.sum((R.forward(outputs) - goal) ** 2))
            reference += float(np.sum(goal**2))
        return difference, reference

    errors = np.array(list(ordered_map(part, problem.chunks(), resolve_threads(n_threads))))
    difference, reference = errors.sum(axis=0).tolist()
    return difference, reference
