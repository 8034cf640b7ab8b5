"""Whole networks pruned layer by layer, without retraining: what is left of their accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from bench.datasets import Dataset
from bench.layers import POSITIONS
from bench.networks import Layer, Network, accuracy, inputs_of, scores, shapes
from bench.quality import OURS, RIVALS, code_stamp, prune
from bench.quality_results import NetworkResult, Results, digest
from bench.training import parameters

Array = np.ndarray

DENSE = "dense"  # as a method and as its level
LEVELS = ("80 %", "90 %", "95 %")
LEFT_OUT = ("lasso", "lasso + refit", "Net-Trim")  # behind ALPS on nearly every layer, at many times its cost
METHODS = (*(rival for rival in RIVALS if rival not in LEFT_OUT), *OURS)


@dataclass(frozen=True, eq=False)
class Step:
    """A layer of a network, alone; ``preactivations`` are those of the dense network on the calibration images."""

    layer: Layer
    shape: tuple[int, ...]  # of what reaches it
    preactivations: Array

    def inputs(self, maps: Array) -> Array:
        """Return the layer's inputs, positions drawn from them, from what reaches it."""
        return inputs_of(Network(self.layer.name, self.shape, (self.layer,)), 0, maps, POSITIONS)

    def outputs(self, maps: Array, layer: Layer) -> Array:
        """Return what leaves the layer, or another one in its place, an image a row."""
        return scores(Network(layer.name, self.shape, (layer,)), maps).reshape(len(maps), -1)


def measure_network(
    kind: str, seed: int, network: Network, images: Dataset, results: Results, methods: Sequence[str] = METHODS
) -> None:
    """Prune the network by every method to every level, unless the results have it already; test what comes out."""
    arrays = (*parameters(network), images.calibration.pixels, images.test.pixels, images.test.labels)
    data = digest((), arrays)
    with threadpool_limits(1):
        steps = dense_steps(network, images.calibration.pixels)
        for level, method in [(DENSE, DENSE), *((level, method) for level in LEVELS for method in methods)]:
            stamp = f"{code_stamp(method, Path(__file__))} {data}"
            if results.has((kind, str(seed), level, method), stamp):
                continue
            pruned = network if method == DENSE else pruned_network(network, steps, method, level, images)
            found = accuracy(pruned, images.test.pixels, images.test.labels)
            results.add(NetworkResult(kind, seed, level, method, found, stamp))


def dense_steps(network: Network, pixels: Array) -> list[Step]:
    """Return the layers with their preactivations on these images."""
    steps, maps = [], pixels
    for layer, shape in zip(network.layers, shapes(network), strict=False):
        step = Step(layer, shape, np.empty(0))
        steps.append(replace(step, preactivations=step.inputs(maps) @ layer.weight.T + layer.bias))
        maps = step.outputs(maps, layer)
    return steps


def pruned_network(network: Network, steps: list[Step], method: str, level: str, images: Dataset) -> Network:
    """Return the network with all layers pruned, first to last, each on inputs from those pruned before it."""
    layers, maps = [], images.calibration.pixels
    for step in steps:
        layer, inputs = step.layer, step.inputs(maps)
        weight, bias = prune(method, inputs, layer.weight, layer.bias, layer.activation, level, step.preactivations)
        layers.append(replace(layer, weight=weight, bias=bias))
        maps = step.outputs(maps, layers[-1])
    return replace(network, layers=tuple(layers))
