"""Where the data of the benches come from."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

import sisopt

BLOCK_BYTES = 1 << 24  # samples are made block by block: in float32 nothing else is ever whole

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]


def correlated_inputs(
    n_samples: int, n_in: int, rho: float = 0.9, seed: int = 0, dtype: type = np.float64
) -> np.ndarray:
    """Return Gaussian inputs, neighbours correlated by ``rho`` (an AR(1) process along the inputs)."""
    rng = np.random.default_rng(seed)
    X = np.empty((n_samples, n_in), dtype)
    for block in _blocks(n_samples, n_in):
        A = np.ascontiguousarray(rng.standard_normal((block.stop - block.start, n_in)).T)
        for j in range(1, n_in):
            A[j] = rho * A[j - 1] + np.sqrt(1.0 - rho**2) * A[j]
        X[block] = A.T
    return X


def _blocks(n_samples: int, n_in: int) -> Iterator[slice]:
    size = max(1, BLOCK_BYTES // (8 * n_in))
    for start in range(0, n_samples, size):
        yield slice(start, min(start + size, n_samples))


def random_arrays(n_samples: int, n_in: int, n_out: int, dtype: type = np.float64) -> Arrays:
    """Return inputs, weight and bias of a layer with Gaussian weights on correlated inputs: nothing in it is sparse."""
    return correlated_inputs(n_samples, n_in, dtype=dtype), *_gaussian(n_in, n_out, dtype)


def _gaussian(n_in: int, n_out: int, dtype: type) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    W = (rng.standard_normal((n_out, n_in)) / np.sqrt(n_in)).astype(dtype)
    return W, (0.1 * rng.standard_normal(n_out)).astype(dtype)


def random_layer(
    n_samples: int, n_in: int, n_out: int, activation: str, dtype: type = np.float64
) -> sisopt.LayerProblem:
    """Return the problem of `random_arrays`."""
    return sisopt.LayerProblem(*random_arrays(n_samples, n_in, n_out, dtype), activation=activation)


def unfolded_maps(n_maps: int, height: int, width: int, channels: int, n_out: int, dtype: type = np.float32) -> Arrays:
    """Return a 3 x 3 convolution as a layer: a sample is the patch around a position of a smooth, rectified map."""
    pixels = (height + 2) * (width + 2)
    maps = correlated_inputs(n_maps * pixels, channels, dtype=dtype).reshape(n_maps, height + 2, width + 2, channels)
    for axis in (1, 2):
        maps = (np.roll(maps, 1, axis) + 2 * maps + np.roll(maps, -1, axis)) / 4
    patches = np.lib.stride_tricks.sliding_window_view(np.maximum(maps, 0), (3, 3), axis=(1, 2))
    X = np.ascontiguousarray(patches).reshape(n_maps * height * width, 9 * channels)
    return X, *_gaussian(9 * channels, n_out, dtype)
