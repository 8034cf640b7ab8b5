"""Products with the inputs, over fixed blocks of samples, in float64, counted.

Every block is upcast on its own, so float32 inputs are never copied whole, and partial sums are added in block order.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from .threads import available_threads, ordered_map
from .validation import check_size

Array = npt.NDArray[np.float64]

BLOCK_BYTES = 1 << 22  # one block of samples in float64
CHUNK_BYTES = 1 << 23  # one array (rows of outputs) x (all samples) of a chunk in float64
CHUNKS = 8  # that a layer is cut into, where its size allows
MIN_CHUNK_ROWS, MAX_CHUNK_ROWS = 8, 64


def row_chunks(n_rows: int, n_samples: int, chunks: int = CHUNKS) -> list[slice]:
    """Return the chunks of output neurons (rows) that work is cut into, ``chunks`` at least where sizes allow."""
    wanted = max(MIN_CHUNK_ROWS, -(-n_rows // chunks))
    size = min(MAX_CHUNK_ROWS, wanted, max(1, CHUNK_BYTES // (8 * n_samples)))
    return [slice(i, min(i + size, n_rows)) for i in range(0, n_rows, size)]


def sample_blocks(n_samples: int, n_in: int, most: int | None = None) -> Iterator[slice]:
    """Yield the blocks of samples that a product runs over, at most ``most`` samples each."""
    size = max(64, BLOCK_BYTES // (8 * n_in))
    size = size if most is None else min(size, max(64, most))
    for start in range(0, n_samples, size):
        yield slice(start, min(start + size, n_samples))


def forward(inputs: npt.NDArray[Any], rows: Array, out: Array) -> Array:
    """Write ``rows @ inputs.T`` to ``out``: (r, n_in) times (n_in, n_samples)."""
    for block in sample_blocks(*inputs.shape):
        np.matmul(rows, inputs[block].astype(np.float64, copy=False).T, out=out[:, block])
    return out


def backward(gradient: Array, inputs: npt.NDArray[Any], center: Array | None = None) -> Array:
    """Return ``gradient @ (inputs - center)``: (r, n_samples) times (n_samples, n_in).

    Rows of ``gradient`` that add up to zero need no centre but for rounding: there it keeps the digits that inputs far
    from zero would cost.
    """
    total = np.zeros((gradient.shape[0], inputs.shape[1]))
    for block in sample_blocks(*inputs.shape):
        total += gradient[:, block] @ inputs[block].astype(np.float64, copy=False)
    if center is not None:
        total -= gradient.sum(axis=1)[:, None] * center
    return total


def gram(inputs: npt.NDArray[Any], center: Array | None, sample_weights: Array | None, n_threads: int) -> Array:
    """Return ``sum_k v_k (x_k - center)(x_k - center)'``, centred before it is summed: offsets then cost no digits."""

    def part(block: slice) -> Array:
        X = inputs[block].astype(np.float64, copy=False)
        if center is not None:
            X = X - center
        if sample_weights is not None:
            X = X * np.sqrt(sample_weights[block, None])
        return X.T @ X

    total = np.zeros((inputs.shape[1], inputs.shape[1]))
    every_core = -(-inputs.shape[0] // CHUNKS)  # a single block would leave the other cores idle
    for piece in ordered_map(part, sample_blocks(inputs.shape[0], inputs.shape[1], every_core), n_threads):
        total += piece
    return total


def column_means(inputs: npt.NDArray[Any], sample_weights: Array | None) -> Array:
    """Return the (weighted) mean of every input."""
    total, weight = np.zeros(inputs.shape[1]), 0.0
    for block in sample_blocks(*inputs.shape):
        X = inputs[block].astype(np.float64, copy=False)
        v = np.ones(X.shape[0]) if sample_weights is None else sample_weights[block]
        total += v @ X
        weight += v.sum()
    return total / weight


def dense_preactivations(
    X: npt.NDArray[Any], W: npt.NDArray[Any], b: npt.NDArray[Any] | None, s: npt.NDArray[Any] | None
) -> npt.NDArray[Any]:
    """Return X W' + b + s as (n_samples, n_out) float64, stored neuron by neuron."""
    z = np.empty((W.shape[0], X.shape[0]))

    def part(rows: slice) -> None:
        with np.errstate(over="ignore", invalid="ignore"):
            forward(X, W[rows].astype(np.float64), z[rows])

    for _ in ordered_map(part, row_chunks(*z.shape), available_threads()):
        pass
    if b is not None:
        z += b[:, None]
    if s is not None:
        z += s.T
    check_size("inputs, or their products with weight,", z)
    z.flags.writeable = False
    return z.T
