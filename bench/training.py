"""The networks that the benches prune: trained here with torch, kept in the cache, run without torch afterwards."""

from __future__ import annotations

import hashlib
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice
from typing import Any

import numpy as np

from bench.cache import cache_dir, store
from bench.datasets import Dataset, Images, image_dataset
from bench.networks import Layer, Network, shapes

Array = np.ndarray

STEPS = {"mlp": 3000, "cnn": 2500}
RATES = {"mlp": 2e-3, "cnn": 4e-3}  # of learning, at their peaks


@dataclass(frozen=True)
class Recipe:
    """What a network is and how it is trained. Another entry is another network; ``version`` is for changes of code."""

    kind: str  # "mlp" or "cnn"
    activation: str
    seed: int
    steps: int
    rate: float
    batch: int = 128
    weight_decay: float = 1e-4
    version: int = 1

    @property
    def name(self) -> str:
        """Return a name for tables."""
        return f"{self.kind}-{self.activation}-{self.seed}"


@cache
def trained(kind: str, activation: str = "relu", seed: int = 0) -> Network:
    """Return an "mlp" or a "cnn" for the images of `image_dataset`: trained at the first call, later read."""
    return load_or_train(Recipe(kind, activation, seed, STEPS[kind], RATES[kind]), image_dataset())


def load_or_train(recipe: Recipe, dataset: Dataset) -> Network:
    """Return the network of a recipe for a data set, from the cache if it is there and whole."""
    digest = hashlib.sha256(repr(recipe).encode()).hexdigest()[:8]
    name = f"networks/{dataset.name}-{recipe.name}-{digest}.npz"
    network = untrained(recipe, dataset.shape, int(dataset.train.labels.max()) + 1)
    try:
        with np.load(cache_dir() / name, allow_pickle=False) as saved:
            return with_parameters(network, [saved[key] for key in _keys(network)])
    except FileNotFoundError:
        pass
    except (OSError, ValueError, LookupError, EOFError, zipfile.BadZipFile) as error:
        warnings.warn(f"{cache_dir() / name} cannot be read ({error}): trained again", stacklevel=2)
    network = train(network, dataset.train, recipe)

    def write(folder: Any) -> None:
        (folder / name).parent.mkdir()
        np.savez(folder / name, **dict(zip(_keys(network), parameters(network), strict=True)))

    store(write, name)
    return network


def untrained(recipe: Recipe, shape: tuple[int, int, int], n_classes: int) -> Network:
    """Return the network of a recipe with random weights, which depend on its seed alone."""
    empty, R = np.empty((0, 0), np.float32), recipe.activation
    plan = {  # sizes, and everything else but the weights
        "mlp": [(512, Layer("dense 1", empty, empty, R)), (256, Layer("dense 2", empty, empty, R))],
        "cnn": [
            (32, Layer("conv 1", empty, empty, R, kernel=3, stride=2, padding=1)),
            (64, Layer("conv 2", empty, empty, R, kernel=3, stride=2, padding=1)),
            (64, Layer("conv 3", empty, empty, R, kernel=3, padding=1, pooling=2)),
            (64, Layer("conv 4", empty, empty, R, kernel=3, padding=1)),
            (128, Layer("dense", empty, empty, R)),
        ],
    }[recipe.kind]
    rng = np.random.default_rng(recipe.seed)
    network = Network(recipe.name, shape, ())
    for n_out, layer in [*plan, (n_classes, Layer("head", empty, empty, "identity"))]:
        reaching = shapes(network)[-1]
        n_in = reaching[0] * layer.kernel**2 if layer.kernel else int(np.prod(reaching))
        reach = 1 / np.sqrt(n_in)
        weight, bias = (rng.uniform(-reach, reach, size).astype(np.float32) for size in ((n_out, n_in), n_out))
        network = replace(network, layers=(*network.layers, replace(layer, weight=weight, bias=bias)))
    return network


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread: the same bits on any number of cores, and none that wait for each other."""
    import torch

    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


def train(network: Network, images: Images, recipe: Recipe) -> Network:
    """Return the network trained with Adam and a learning rate that rises and falls, by cross-entropy."""
    try:
        import torch
    except ImportError as error:
        raise ImportError("to train the networks of the benches, install torch: pip install 'sisopt[torch]'") from error

    with one_thread():
        tensors = [torch.tensor(array, requires_grad=True) for array in parameters(network)]
        optimizer = torch.optim.Adam(tensors, lr=recipe.rate, weight_decay=recipe.weight_decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.rate, total_steps=recipe.steps)
        rng = np.random.default_rng([recipe.seed, 1])
        for rows in islice(_batches(len(images.labels), recipe.batch, rng), recipe.steps):
            outputs = torch_scores(network, tensors, torch.from_numpy(images.pixels[rows]))
            loss = torch.nn.functional.cross_entropy(outputs, torch.from_numpy(images.labels[rows]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return with_parameters(network, [tensor.detach().numpy() for tensor in tensors])


def torch_scores(network: Network, tensors: Sequence[Any], pixels: Any) -> Any:
    """Return the outputs of the last layer as torch computes them, with other `parameters` than the network's own."""
    import torch
    from torch.nn import functional as F

    functions = {"relu": F.relu, "gelu": F.gelu, "tanh": torch.tanh, "identity": lambda values: values}
    values = pixels.reshape(-1, *network.shape).contiguous(memory_format=torch.channels_last)
    for layer, weight, bias in zip(network.layers, tensors[::2], tensors[1::2], strict=True):
        if layer.kernel:
            kernels = weight.reshape(len(weight), -1, layer.kernel, layer.kernel)
            values = F.conv2d(values, kernels, bias, layer.stride, layer.padding)
        else:
            values = F.linear(values.flatten(1), weight, bias)
        values = functions[layer.activation](values)
        if layer.pooling > 1:
            values = F.max_pool2d(values, layer.pooling)
    return values


def as_module(network: Network) -> Any:
    """Return the network as a torch.nn.Sequential that takes rows of pixels."""
    import torch
    from torch import nn

    functions = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh, "identity": nn.Identity}
    modules: list[nn.Module] = [nn.Unflatten(1, network.shape)]
    for layer in network.layers:
        n_out, n_in = layer.weight.shape
        if layer.kernel:
            channels = n_in // layer.kernel**2
            modules.append(nn.Conv2d(channels, n_out, layer.kernel, layer.stride, layer.padding))
        else:
            modules += [nn.Flatten(), nn.Linear(n_in, n_out)]
        with torch.no_grad():
            modules[-1].weight.copy_(torch.from_numpy(layer.weight).view_as(modules[-1].weight))
            modules[-1].bias.copy_(torch.from_numpy(layer.bias))
        modules.append(functions[layer.activation]())
        if layer.pooling > 1:
            modules.append(nn.MaxPool2d(layer.pooling))
    return nn.Sequential(*modules).eval()


def parameters(network: Network) -> list[Array]:
    """Return weight and bias of every layer in turn."""
    return [array for layer in network.layers for array in (layer.weight, layer.bias)]


def with_parameters(network: Network, arrays: Sequence[Array]) -> Network:
    """Return the network with other `parameters`, of the same shapes."""
    own = parameters(network)
    if [array.shape for array in own] != [array.shape for array in arrays]:
        raise ValueError("these are the parameters of another network")
    pairs = zip(arrays[::2], arrays[1::2], strict=True)
    layers = (replace(layer, weight=W, bias=b) for layer, (W, b) in zip(network.layers, pairs, strict=True))
    return replace(network, layers=tuple(layers))


def _keys(network: Network) -> list[str]:
    return [f"{layer.name} {part}" for layer in network.layers for part in ("weight", "bias")]


def _batches(n: int, size: int, rng: np.random.Generator) -> Iterator[Array]:
    """Yield rows for ever, in another order at every pass."""
    while True:
        order = rng.permutation(n)
        yield from (order[start : start + size] for start in range(0, n - size + 1, size))
