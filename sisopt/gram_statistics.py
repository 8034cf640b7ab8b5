"""Sufficient statistics: where every target is a point, the loss is a quadratic and the data are needed only once."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from . import products
from .activations import Activation, get_activation
from .errors import InvalidInputError, UnsupportedError
from .problem import GramStatistics, LayerProblem
from .threads import ordered_map
from .validation import as_float_array, check_shape, positive_integer

Array = npt.NDArray[np.float64]


def is_quadratic(problem: LayerProblem) -> bool:
    """Return whether all targets are points with one weight per sample: phi is then a quadratic in (W, b)."""
    if problem.statistics is not None:
        return True
    if problem.entry_weights is not None:
        return False
    if "quadratic" not in problem._cache:
        problem._cache["quadratic"] = all(
            np.array_equal(target.lo, target.hi) for target in map(problem.row_target, problem.chunks())
        )
    return bool(problem._cache["quadratic"])


def input_center(problem: LayerProblem) -> Array:
    """Return the mean of every input, about which Gram matrices are taken; zeros where no bias is fitted."""
    if not problem.has_bias:
        return np.zeros(problem.n_in)
    if "center" not in problem._cache:
        assert problem.inputs is not None
        problem._cache["center"] = products.column_means(problem.inputs, problem.sample_weights)
    return problem._cache["center"]  # type: ignore[no-any-return]


def input_gram(problem: LayerProblem, n_threads: int) -> tuple[Array, float]:
    """Return the (centred, weighted) Gram matrix of the inputs and the work of forming it, 0 where it was cached."""
    if "gram" in problem._cache:
        return problem._cache["gram"], 0.0
    assert problem.inputs is not None
    center = input_center(problem) if problem.has_bias else None
    problem._cache["gram"] = products.gram(problem.inputs, center, problem.sample_weights, n_threads)
    return problem._cache["gram"], 2.0 * problem.n_samples * problem.n_in**2


def column_norms(problem: LayerProblem, n_threads: int) -> Array:
    """Return how far every input reaches, sqrt(sum_k v_k (x_kj - m_j)**2), shape (n_in,)."""
    statistics = problem.statistics
    gram = statistics.gram if statistics is not None else input_gram(problem, n_threads)[0]
    return np.sqrt(np.maximum(np.diagonal(gram), 0.0))


def gram_statistics(problem: LayerProblem, n_threads: int) -> tuple[GramStatistics, float]:
    """Return the statistics of a quadratic problem and the work over samples of computing them."""
    if problem.statistics is not None:
        return problem.statistics, 0.0
    if "statistics" in problem._cache:
        return problem._cache["statistics"], 0.0
    gram, work = input_gram(problem, n_threads)
    center = input_center(problem)
    assert problem.inputs is not None
    cross = np.empty((problem.n_out, problem.n_in))
    energy, mean = np.empty(problem.n_out), np.zeros(problem.n_out)
    total = problem.total_weight

    def part(rows: slice) -> None:
        assert problem.inputs is not None
        target = problem.row_target(rows)
        z = target.lo.copy()
        v = target.sample_weights
        if problem.has_bias:
            mean[rows] = z @ v / total
            z -= mean[rows, None]
        energy[rows] = (z * z) @ v
        z *= v
        cross[rows] = products.backward(z, problem.inputs) - np.outer(z.sum(axis=1), center)

    for _ in ordered_map(part, problem.chunks(), n_threads):
        pass
    statistics = GramStatistics(gram, cross, energy, center, mean, total)
    problem._cache["statistics"] = statistics
    return statistics, work + 2.0 * problem.n_samples * problem.n_in * problem.n_out


def statistics_from_sums(
    activation: Activation,
    gram: Array,
    cross: npt.ArrayLike | None,
    weight: npt.NDArray[Any],
    bias: npt.NDArray[Any] | None,
    n_samples: int,
    energy: npt.ArrayLike | None,
    input_sum: npt.ArrayLike | None,
    target_sum: npt.ArrayLike | None,
) -> tuple[GramStatistics, int]:
    """Check the sums behind `LayerProblem.from_gram` and centre them."""
    if activation != get_activation("identity"):
        msg = (
            f"from_gram serves identity layers only, got activation {activation.name!r}: the set of pre-activations "
            "that keep its output depends on every sample, so pass the inputs to LayerProblem"
        )
        raise UnsupportedError(msg)
    n_out, n_in = weight.shape
    count = positive_integer("n_samples", n_samples)
    scale = float(np.max(np.abs(np.diag(gram)), initial=0.0))
    if not np.allclose(gram, gram.T, rtol=1e-6, atol=1e-9 * scale):
        msg = "gram must be symmetric: it is inputs.T @ inputs"
        raise InvalidInputError(msg)
    least = float(np.linalg.eigvalsh(gram)[0])
    if least < -1e-6 * max(scale, np.finfo(float).tiny) * n_in:
        msg = f"gram must be positive semidefinite: it is inputs.T @ inputs, but its least eigenvalue is {least:g}"
        raise InvalidInputError(msg)
    sums = _given("input_sum", input_sum, (n_in,), needed=bias is not None, because="a bias is fitted")
    W = weight.astype(np.float64)
    if cross is None:
        b = np.zeros(n_out) if bias is None else bias.astype(np.float64)
        Q = W @ gram + np.outer(b, sums)
        z_sum = W @ sums + count * b
        z_square = np.einsum("ij,ij->i", W, W @ gram) + 2.0 * b * (W @ sums) + count * b * b
    else:
        Q = _given("cross", cross, (n_out, n_in), needed=True, because="")
        z_square = _given("energy", energy, (n_out,), needed=True, because="cross is given")
        z_sum = _given("target_sum", target_sum, (n_out,), needed=bias is not None, because="cross and bias are given")
    if bias is None:
        return GramStatistics(gram, Q, z_square, np.zeros(n_in), np.zeros(n_out), float(count)), count
    center, mean = sums / count, z_sum / count
    return (
        GramStatistics(
            gram=gram - np.outer(sums, center),
            cross=Q - np.outer(mean, sums),
            energy=np.maximum(z_square - count * mean**2, 0.0),
            input_mean=center,
            target_mean=mean,
            total_weight=float(count),
        ),
        count,
    )


def _given(name: str, value: npt.ArrayLike | None, shape: tuple[int, ...], *, needed: bool, because: str) -> Array:
    if value is None:
        if needed:
            msg = f"{name} is needed, of shape {shape}, since {because}"
            raise InvalidInputError(msg)
        return np.zeros(shape)
    array = as_float_array(name, value, len(shape), dtype=np.float64)
    check_shape(name, array, shape, "to match weight")
    return array
