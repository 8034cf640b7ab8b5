"""Sums over samples that suffice where the loss is a quadratic, and the checks on those that a caller brings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .activations import Activation, get_activation
from .errors import InvalidInputError, UnsupportedError
from .validation import as_float_array, check_shape, positive_integer

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class GramStatistics:
    """Sufficient statistics of an identity layer, centred where the layer has a bias.

    ``gram`` = sum_k v_k (x_k - m)(x_k - m)', ``cross`` = sum_k v_k (z_k - t)(x_k - m)' and ``energy`` = sum_k v_k
    (z_k - t)**2, with the means m and t (zero without a bias) and the total weight V = sum_k v_k.
    """

    gram: Array  # (n_in, n_in)
    cross: Array  # (n_out, n_in)
    energy: Array  # (n_out,)
    input_mean: Array  # (n_in,)
    target_mean: Array  # (n_out,)
    total_weight: float


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
    values, vectors = np.linalg.eigh(0.5 * (gram + gram.T))
    least = float(values[0])
    tolerance = 1e-6 * max(scale, np.finfo(float).tiny) * n_in
    if least < -tolerance:
        msg = f"gram must be positive semidefinite: it is inputs.T @ inputs, but its least eigenvalue is {least:g}"
        raise InvalidInputError(msg)
    if least < 0.0:  # rounding, in float32 say: solvers rely on a Gram matrix of something
        gram = (vectors * np.maximum(values, 0.0)) @ vectors.T
    gram = 0.5 * (gram + gram.T)
    sums = _given("input_sum", input_sum, (n_in,), needed=bias is not None, because="a bias is fitted")
    if bias is not None and float(np.linalg.eigvalsh(gram - np.outer(sums, sums / count))[0]) < -tolerance:
        msg = "input_sum does not belong to gram: gram - n_samples * outer(mean, mean) must be positive semidefinite"
        raise InvalidInputError(msg)
    W = weight.astype(np.float64)
    if cross is None:
        for name, value in (("energy", energy), ("target_sum", target_sum)):
            if value is not None:
                msg = f"{name} was given without cross: the targets' sums go together"
                raise InvalidInputError(msg)
        b = np.zeros(n_out) if bias is None else bias.astype(np.float64)
        Q = W @ gram + np.outer(b, sums)
        z_sum = W @ sums + count * b
        z_square = np.einsum("ij,ij->i", W, W @ gram) + 2.0 * b * (W @ sums) + count * b * b
    else:
        Q = _given("cross", cross, (n_out, n_in), needed=True, because="")
        z_square = _given("energy", energy, (n_out,), needed=True, because="cross is given")
        z_sum = _given("target_sum", target_sum, (n_out,), needed=bias is not None, because="cross and bias are given")
    if bias is None:
        statistics = GramStatistics(gram, Q, z_square, np.zeros(n_in), np.zeros(n_out), float(count))
    else:
        center, mean = sums / count, z_sum / count
        statistics = GramStatistics(
            gram=gram - np.outer(sums, center),
            cross=Q - np.outer(mean, sums),
            energy=np.maximum(z_square - count * mean**2, 0.0),
            input_mean=center,
            target_mean=mean,
            total_weight=float(count),
        )
    if cross is not None:
        _check_energy(statistics)
    return statistics, count


def _check_energy(statistics: GramStatistics) -> None:
    """Raise unless the targets have at least the energy that their least-squares fit explains."""
    fit = np.linalg.lstsq(statistics.gram, statistics.cross.T, rcond=1e-10)[0]
    explained = np.einsum("ij,ji->i", statistics.cross, fit)
    short = explained > statistics.energy + 1e-6 * (np.abs(explained) + statistics.energy)
    if short.any():
        i = int(np.argmax(short))
        msg = (
            f"energy does not belong to cross and gram: output {i} has {statistics.energy[i]:g} about its mean, less "
            f"than the {explained[i]:g} that the inputs explain"
        )
        raise InvalidInputError(msg)


def _given(name: str, value: npt.ArrayLike | None, shape: tuple[int, ...], *, needed: bool, because: str) -> Array:
    if value is None:
        if needed:
            msg = f"{name} is needed, of shape {shape}, since {because}"
            raise InvalidInputError(msg)
        return np.zeros(shape)
    array = as_float_array(name, value, len(shape), dtype=np.float64)
    check_shape(name, array, shape, "to match weight")
    return array
