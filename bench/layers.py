"""Single layers to prune, by group: of the trained networks, and random ones as the hard cases."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from bench.data import correlated_inputs, random_arrays
from bench.datasets import image_dataset
from bench.networks import inputs_of
from bench.training import trained

Array = np.ndarray

POSITIONS = 10_000  # of the unfolded inputs of a convolution, among all images
SIZE, TEST_SAMPLES = 256, 4096  # of the random layers
DEAD = 5  # inputs that are always zero
DECAY = 0.5  # the k-th standard deviation of the power law is k ** -DECAY
TRAINED = {  # kind, activation and indices of layers; all inputs come from the dense network
    "trained ReLU": (("mlp", "relu", (0, 1)), ("cnn", "relu", (1, 2, 3, 4))),
    "trained linear": (("mlp", "identity", (0, 1)), ("mlp", "relu", (2,)), ("cnn", "relu", (5,))),
    "GELU": (("mlp", "gelu", (0, 1)),),
    "tanh": (("mlp", "tanh", (0, 1)),),
}


@dataclass(frozen=True, eq=False)
class BenchLayer:
    """A layer, the inputs to prune it with and others, of the same law, to judge the result with."""

    group: str
    name: str
    weight: Array  # (n_out, n_in) float32
    bias: Array  # (n_out,)
    activation: str
    inputs: Array  # (n_samples, n_in)
    test_inputs: Array  # (n_test, n_in)


def trained_layers() -> Iterator[BenchLayer]:
    """Yield the layers of the trained networks, one at a time in memory."""
    return (build() for (group, _), build in LAYERS.items() if group in TRAINED)


def random_layers() -> Iterator[BenchLayer]:
    """Yield the layers with Gaussian weights."""
    return (build() for (group, _), build in LAYERS.items() if group not in TRAINED)


def _of_network(group: str, name: str, kind: str, activation: str, index: int) -> BenchLayer:
    network, images = trained(kind, activation), image_dataset()
    layer = network.layers[index]
    inputs, test_inputs = (
        inputs_of(network, index, part.pixels, POSITIONS, seed)
        for seed, part in enumerate((images.calibration, images.test))
    )
    return BenchLayer(group, name, layer.weight, layer.bias, layer.activation, inputs, test_inputs)


def _random(group: str, name: str, inputs: Callable[[int, int], Array], n_samples: int, activation: str) -> BenchLayer:
    _, weight, bias = random_arrays(1, SIZE, SIZE, np.float32)
    return BenchLayer(group, name, weight, bias, activation, inputs(n_samples, 0), inputs(TEST_SAMPLES, 2))


def autoregressive(n_samples: int, seed: int) -> Array:
    """Return AR(1) inputs."""
    return correlated_inputs(n_samples, SIZE, seed=seed, dtype=np.float32)


def rectified_power_law(n_samples: int, seed: int) -> Array:
    """Return the ReLU of Gaussian inputs whose standard deviations along random directions fall like a power."""
    directions = np.linalg.qr(np.random.default_rng(3).standard_normal((SIZE, SIZE)))[0]
    samples = np.random.default_rng(seed).standard_normal((n_samples, SIZE)) * np.arange(1.0, SIZE + 1) ** -DECAY
    return np.maximum(samples @ directions.T, 0).astype(np.float32)


def autoregressive_with_dead(n_samples: int, seed: int) -> Array:
    """Return AR(1) inputs, some of which are dead."""
    inputs = autoregressive(n_samples, seed)
    inputs[:, np.random.default_rng(4).choice(SIZE, DEAD, replace=False)] = 0
    return inputs


def _builders() -> dict[tuple[str, str], Callable[[], BenchLayer]]:
    builders: dict[tuple[str, str], Callable[[], BenchLayer]] = {}
    for group, parts in TRAINED.items():
        for kind, activation, indices in parts:
            for index in indices:
                name = f"{kind}-{activation} layer {index + 1}"
                builders[group, name] = partial(_of_network, group, name, kind, activation, index)
    laws = {
        "AR(1)": (autoregressive, 2048),
        "power law": (rectified_power_law, 2048),
        "128 samples": (autoregressive_with_dead, 128),
    }
    for activation in ("identity", "relu"):
        for law, (inputs, n_samples) in laws.items():
            name = f"{law}, {activation}"
            builders["random", name] = partial(_random, "random", name, inputs, n_samples, activation)
    return builders


LAYERS = _builders()  # by group and name; each is built when it is called
