"""Networks as arrays: dense and convolutional layers one after another, run by NumPy alone, pruned or not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

import sisopt

Array = np.ndarray

CHUNK_BYTES = 1 << 23  # that the unfolded inputs of some images may take


@dataclass(frozen=True, eq=False)
class Layer:
    """A layer and what follows it: an activation, then perhaps max-pooling.

    A convolution (``kernel`` > 0, square, on a padded square grid of zeros) is a dense layer on unfolded positions: its
    inputs run over channels, rows and columns of the kernel, columns fastest, as in torch.
    """

    name: str
    weight: Array  # (n_out, n_in) float32
    bias: Array  # (n_out,) float32
    activation: str
    kernel: int = 0  # 0: dense
    stride: int = 1
    padding: int = 0
    pooling: int = 1  # side of the windows, which do not overlap; what is left over at the edges is dropped


@dataclass(frozen=True, eq=False)
class Network:
    """Layers from the images (channels, height, width) to the scores of the classes."""

    name: str
    shape: tuple[int, int, int]
    layers: tuple[Layer, ...]


def replaced(network: Network, index: int, weight: Array, bias: Array) -> Network:
    """Return the network with another weight and bias in one of its layers."""
    layers = list(network.layers)
    layers[index] = replace(layers[index], weight=weight, bias=bias)
    return replace(network, layers=tuple(layers))


def scores(network: Network, pixels: Array) -> Array:
    """Return the outputs of the last layer, (n_images, n_classes), for images as rows of pixels."""
    return np.concatenate([_after(network.layers, maps) for _, maps in _chunks(network, pixels)])


def accuracy(network: Network, pixels: Array, labels: Array) -> float:
    """Return the fraction of the images that get their label."""
    return float(np.mean(scores(network, pixels).argmax(axis=1) == labels))


def inputs_of(network: Network, index: int, pixels: Array, n_positions: int | None = None, seed: int = 0) -> Array:
    """Return what reaches a layer, (n_samples, n_in).

    A sample is an image or, before a convolution, a position of one: all of them, image by image and row by row, or
    ``n_positions`` drawn from them, in that order. Networks of one shape get the same positions for one seed.
    """
    layer, before = network.layers[index], network.layers[:index]
    if not layer.kernel:
        return np.concatenate([_flat(_after(before, maps)) for _, maps in _chunks(network, pixels)])
    height, width = _positions(layer, shapes(network)[index])
    chosen = np.arange(len(pixels) * height * width)
    if n_positions is not None and n_positions < chosen.size:
        chosen = np.sort(np.random.default_rng(seed).choice(chosen.size, n_positions, replace=False))
    parts = []
    for rows, maps in _chunks(network, pixels):
        ends = np.searchsorted(chosen, (rows.start * height * width, rows.stop * height * width))
        image, row, column = np.unravel_index(chosen[slice(*ends)], (len(pixels), height, width))
        windows = _windows(layer, _after(before, maps))
        parts.append(windows[image - rows.start, row, column].reshape(len(image), -1))
    return np.concatenate(parts)


def activate(name: str, preactivations: Array) -> Array:
    """Return R(Z) in the dtype of Z."""
    if name == "relu":
        return np.maximum(preactivations, 0)
    if name == "identity":
        return preactivations
    return sisopt.get_activation(name).forward(preactivations).astype(preactivations.dtype)


def _chunks(network: Network, pixels: Array) -> Iterator[tuple[slice, Array]]:
    """Yield images few enough for their unfolded inputs, and which they are."""
    unfolded = [
        4 * layer.weight.shape[1] * int(np.prod(_positions(layer, shape)))
        for layer, shape in zip(network.layers, shapes(network), strict=False)
    ]
    size = max(1, CHUNK_BYTES // max(unfolded))
    for start in range(0, len(pixels), size):
        rows = slice(start, min(start + size, len(pixels)))
        yield rows, pixels[rows].reshape(-1, *network.shape)


def shapes(network: Network) -> list[tuple[int, ...]]:
    """Return the shapes of what reaches the layers and of what leaves the last one.

    They are (channels, height, width), behind a dense layer (n_in,).
    """
    found: list[tuple[int, ...]] = [network.shape]
    for layer in network.layers:
        n_out = len(layer.weight)
        positions = (size // layer.pooling for size in _positions(layer, found[-1]))
        found.append((n_out, *positions) if layer.kernel else (n_out,))
    return found


def _positions(layer: Layer, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return height and width of the outputs before pooling; nothing for a dense layer."""
    if not layer.kernel:
        return ()
    return tuple((size + 2 * layer.padding - layer.kernel) // layer.stride + 1 for size in shape[1:])


def _after(layers: tuple[Layer, ...], maps: Array) -> Array:
    """Return what comes out of the layers."""
    for layer in layers:
        maps = _forward(layer, maps)
    return maps


def _forward(layer: Layer, maps: Array) -> Array:
    if not layer.kernel:
        return activate(layer.activation, _flat(maps) @ layer.weight.T + layer.bias)
    windows = _windows(layer, maps)
    n, height, width = windows.shape[:3]
    # inputs x samples: this way rows of the maps are copied, not columns of the kernel
    unfolded = windows.transpose(3, 4, 5, 0, 1, 2).reshape(-1, n * height * width)
    outputs = activate(layer.activation, layer.weight @ unfolded + layer.bias[:, None])
    return _pooled(outputs.reshape(-1, n, height, width).transpose(1, 0, 2, 3), layer.pooling)


def _flat(maps: Array) -> Array:
    return maps.reshape(len(maps), -1)


def _windows(layer: Layer, maps: Array) -> Array:
    """Return a view (n, height, width, channels, kernel, kernel) of the padded maps."""
    k, s, p = layer.kernel, layer.stride, layer.padding
    padded = np.pad(maps, ((0, 0), (0, 0), (p, p), (p, p)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (k, k), axis=(2, 3))
    return windows[:, :, ::s, ::s].transpose(0, 2, 3, 1, 4, 5)


def _pooled(maps: Array, side: int) -> Array:
    height, width = (size // side for size in maps.shape[2:])
    corners = [maps[:, :, i : i + side * height : side, j : j + side * width : side] for i, j in np.ndindex(side, side)]
    return np.maximum.reduce(corners)
