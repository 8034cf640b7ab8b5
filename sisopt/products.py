"""Products with the inputs, over fixed blocks of samples.

A product is made in the precision of the array that it is asked with: float64, or float32 where a solver works in it.
Every block is cast on its own, so inputs are never copied whole, and partial sums are added in block order, in float64.
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
MIN_BLOCK = 256  # samples: fewer leave BLAS short of work
TILE, GRAM_BLOCK = 512, 1024  # columns, and samples, of what a Gram matrix is added up from
CHUNK_BYTES = 1 << 23  # one array (rows of outputs) x (all samples) of a chunk in float64
INPUTS_PER_ROW = 32  # inputs for which a chunk may hold a row, however many samples there are
CHUNKS = 8  # that a layer is cut into, where its size allows
MIN_CHUNK_ROWS, MAX_CHUNK_ROWS = 8, 64


def row_chunks(n_rows: int, n_samples: int, n_in: int, chunks: int = CHUNKS) -> list[slice]:
    """Return the chunks of output neurons (rows) that work is cut into, ``chunks`` at least where sizes allow.

    An array (rows of a chunk) x (all samples) takes CHUNK_BYTES, or a fraction of what the inputs take.
    """
    wanted = max(MIN_CHUNK_ROWS, -(-n_rows // chunks))
    size = min(MAX_CHUNK_ROWS, wanted, max(1, CHUNK_BYTES // (8 * n_samples), n_in // INPUTS_PER_ROW))
    return [slice(i, min(i + size, n_rows)) for i in range(0, n_rows, size)]


def sample_blocks(n_samples: int, n_in: int, most: int | None = None) -> Iterator[slice]:
    """Yield the blocks of samples that a product runs over, at most ``most`` samples each."""
    size = max(MIN_BLOCK, BLOCK_BYTES // (8 * n_in))
    size = size if most is None else min(size, max(64, most))
    for start in range(0, n_samples, size):
        yield slice(start, min(start + size, n_samples))


def forward(inputs: npt.NDArray[Any], rows: npt.NDArray[Any], out: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Write ``rows @ inputs.T`` to ``out``: (r, n_in) times (n_in, n_samples), all in the precision of ``out``."""
    rows = rows.astype(out.dtype, copy=False)
    for block in sample_blocks(*inputs.shape):
        np.matmul(rows, inputs[block].astype(out.dtype, copy=False).T, out=out[:, block])
    return out


def backward(gradient: npt.NDArray[Any], inputs: npt.NDArray[Any], center: Array | None = None) -> Array:
    """Return ``gradient @ (inputs - center)``: (r, n_samples) times (n_samples, n_in), in the gradient's precision.

    Rows of ``gradient`` that add up to zero need no centre but for rounding: there it keeps the digits that inputs far
    from zero would cost.
    """
    total = np.zeros((gradient.shape[0], inputs.shape[1]))
    for block in sample_blocks(*inputs.shape):
        total += gradient[:, block] @ inputs[block].astype(gradient.dtype, copy=False)
    if center is not None:
        total -= gradient.sum(axis=1, dtype=np.float64)[:, None] * center
    return total


def gram(
    inputs: npt.NDArray[Any],
    center: Array | None,
    sample_weights: Array | None,
    n_threads: int,
    dtype: type[np.floating[Any]] = np.float64,
) -> npt.NDArray[Any]:
    """Return ``sum_k v_k (x_k - center)(x_k - center)'``, centred before it is summed: offsets then cost no digits.

    Products of a block of samples are made in ``dtype``, added up in float64 and returned in ``dtype``. Wide inputs are
    cut into tiles of columns, of which those on and above the diagonal are formed; narrow ones into parts of samples.
    """
    n_samples, n_in = inputs.shape
    tiles = [slice(i, min(i + TILE, n_in)) for i in range(0, n_in, TILE)]
    pairs = [(i, j) for i in range(len(tiles)) for j in range(i, len(tiles))]
    parts = max(1, -(-CHUNKS // len(pairs)))
    edges = np.linspace(0, n_samples, parts + 1).astype(np.intp)

    def columns(samples: slice, tile: slice) -> npt.NDArray[Any]:
        X = inputs[samples, tile].astype(dtype)
        if center is not None:
            X -= center[tile].astype(dtype)
        if sample_weights is not None:
            X *= np.sqrt(sample_weights[samples, None]).astype(dtype)
        return X

    def piece(job: tuple[tuple[int, int], int]) -> Array:
        (i, j), part = job
        total = np.zeros((tiles[i].stop - tiles[i].start, tiles[j].stop - tiles[j].start))
        for start in range(edges[part], edges[part + 1], GRAM_BLOCK):
            samples = slice(start, min(start + GRAM_BLOCK, edges[part + 1]))
            left = columns(samples, tiles[i])
            total += left.T @ (left if i == j else columns(samples, tiles[j]))
        return total

    out = np.zeros((n_in, n_in), dtype)
    jobs = [(pair, part) for pair in pairs for part in range(parts)]
    for ((i, j), _), total in zip(jobs, ordered_map(piece, jobs, n_threads), strict=True):
        out[tiles[i], tiles[j]] += total.astype(dtype, copy=False)
    for i, j in pairs:
        if i != j:
            out[tiles[j], tiles[i]] = out[tiles[i], tiles[j]].T
    return out


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
    z = dense_rows(X, W, b, s, slice(None), available_threads())
    check_size("inputs, or their products with weight,", z)
    z.flags.writeable = False
    return z.T


def dense_rows(
    X: npt.NDArray[Any],
    W: npt.NDArray[Any],
    b: npt.NDArray[Any] | None,
    s: npt.NDArray[Any] | None,
    rows: slice,
    n_threads: int = 1,
) -> Array:
    """Return rows of (X W' + b + s)', (rows, n_samples) float64, with the same bits whichever are asked for together.

    For that products are made for whole chunks of `row_chunks`.
    """
    start, stop, _ = rows.indices(W.shape[0])
    chunks = [chunk for chunk in row_chunks(W.shape[0], X.shape[0], 0) if chunk.start < stop and start < chunk.stop]
    weights = [W[chunk].astype(np.float64) for chunk in chunks]
    z = np.empty((stop - start, X.shape[0]))

    def part(block: slice) -> None:
        columns = X[block].astype(np.float64, copy=False).T
        with np.errstate(over="ignore", invalid="ignore"):
            for chunk, weight in zip(chunks, weights, strict=True):
                low, high = max(start, chunk.start), min(stop, chunk.stop)
                out = z[low - start : high - start, block]
                out[:] = (weight @ columns)[low - chunk.start : high - chunk.start]
                if b is not None:
                    out += b[low:high, None]
                if s is not None:
                    out += s.T[low:high, block]

    for _ in ordered_map(part, sample_blocks(*X.shape), n_threads):
        pass
    return z
