"""The demo, computed: a network for handwritten digits, sparsified layer after layer from NumPy arrays.

Nothing here prints or draws; see `sisopt.demo_report`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

import sisopt

from .network.thumbnails import thumbnail

Array = npt.NDArray[Any]
Progress = Callable[[int, int, str], None]  # (steps done, steps in all, what is being done)


@dataclass(frozen=True)
class Settings:
    """What the demo does.

    Parameters
    ----------
    seed : int
        Seed of the split, of the network's first weights and of its mini-batches.
    hidden : tuple of int
        Neurons in every hidden layer.
    epochs : int
        Passes over the training images.
    sparsities : tuple of float
        Fractions of zero weights to ask for, in every layer.
    """

    seed: int = 0
    hidden: tuple[int, ...] = (256, 128)
    epochs: int = 80
    sparsities: tuple[float, ...] = (0.5, 0.7, 0.8, 0.9, 0.95)


QUICK = Settings(hidden=(32, 24), epochs=30, sparsities=(0.5, 0.8))  # a look at it in seconds


@dataclass(frozen=True)
class Data:
    """Scans of digits as rows of pixels in [0, 1]; the held-out ones are used for measuring and nothing else."""

    images: Array  # (n_samples, 64): trains the network, then calibrates the sparse ones
    labels: Array  # (n_samples,)
    held_out_images: Array  # (n_held_out, 64)
    held_out_labels: Array  # (n_held_out,)


@dataclass(frozen=True)
class Network:
    """A ReLU network without its softmax: ``weights`` are (n_out, n_in), ``biases`` (n_out,), first layer first."""

    weights: tuple[Array, ...]
    biases: tuple[Array, ...]

    def preactivations(self, images: Array) -> list[Array]:
        """Return ``X @ W.T + b`` of every layer, (n_samples, n_out) each."""
        result: list[Array] = []
        for weight, bias in zip(self.weights, self.biases, strict=True):
            inputs = relu(result[-1]) if result else images
            result.append(inputs @ weight.T + bias)
        return result

    def accuracy(self, images: Array, labels: Array) -> float:
        """Return the fraction of the images that get their label."""
        return float(np.mean(self.preactivations(images)[-1].argmax(axis=1) == labels))


@dataclass(frozen=True)
class LayerRow:
    """One layer at one sparsity, behind sparse layers; errors are ``||R(Z) - Y|| / ||Y||``, Y of the dense network."""

    sparsity: float  # asked for
    layer: str
    shape: tuple[int, int]
    n_kept: int
    size: int
    calibration_error: float
    held_out_error: float
    magnitude_error: float  # held out, of magnitude pruning
    gap: float  # certified, relative, of the convex program
    density: tuple[str, ...]  # where its weights are, see `sisopt.network.thumbnails`
    seconds: float = field(compare=False)


@dataclass(frozen=True)
class NetworkRow:
    """The whole network at one sparsity: held-out accuracy, ours beside magnitude pruning."""

    sparsity: float
    accuracy: float
    magnitude_accuracy: float


@dataclass(frozen=True)
class Result:
    """All that the demo has measured."""

    settings: Settings
    n_images: int
    n_held_out: int
    dense_accuracy: float
    layers: tuple[LayerRow, ...]
    networks: tuple[NetworkRow, ...]
    seconds: float = field(compare=False)


def relu(values: Array) -> Array:
    """Return max(values, 0)."""
    return np.maximum(values, 0.0)


def load_data(seed: int) -> Data:
    """Return scikit-learn's 1797 digits, a quarter of each kind held out."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    kept, held_out, kept_labels, held_out_labels = train_test_split(
        images / 16.0, labels, test_size=0.25, stratify=labels, random_state=seed
    )
    return Data(kept, kept_labels, held_out, held_out_labels)


def train(data: Data, settings: Settings) -> Network:
    """Return a network trained on ``data`` with scikit-learn."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    classifier = MLPClassifier(settings.hidden, max_iter=settings.epochs, alpha=1e-3, random_state=settings.seed)
    # A fixed number of epochs is what is wanted; and mini-batches are too small for more threads than one to gain by.
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)
        classifier.fit(data.images, data.labels)
    return Network(tuple(W.T.copy() for W in classifier.coefs_), tuple(classifier.intercepts_))


def prune_by_magnitude(dense: Network, kept: Sequence[int]) -> Network:
    """Return ``dense`` with the ``kept[l]`` weights of largest magnitude in layer l and zeros elsewhere."""
    weights = []
    for weight, n_kept in zip(dense.weights, kept, strict=True):
        order = np.argsort(-np.abs(weight), axis=None, kind="stable")
        pruned = np.zeros_like(weight)
        pruned.flat[order[:n_kept]] = weight.flat[order[:n_kept]]
        weights.append(pruned)
    return Network(tuple(weights), dense.biases)


def sparsify_network(
    dense: Network, images: Array, sparsity: float, on_layer: Callable[[int], None] | None = None
) -> tuple[Network, list[float], list[float]]:
    """Return ``dense`` with every layer sparsified, and each layer's certified gap and seconds.

    First layer first: a layer's inputs come from the layers that are already sparse, what it is asked to reproduce from
    the dense network, so that it makes up for its predecessors' errors where it can.
    """
    targets = dense.preactivations(images)
    weights: list[Array] = []
    biases: list[Array] = []
    gaps: list[float] = []
    seconds: list[float] = []
    inputs, last = images, len(targets) - 1
    for index, (weight, bias, target) in enumerate(zip(dense.weights, dense.biases, targets, strict=True)):
        if on_layer is not None:
            on_layer(index)
        start = perf_counter()
        layer = sisopt.sparsify(
            inputs,
            weight,
            bias,
            activation="identity" if index == last else "relu",
            sparsity=sparsity,
            preactivations=target,
            effort="full",
        )
        seconds.append(perf_counter() - start)
        assert layer.bias is not None
        assert layer.convex is not None
        weights.append(layer.weight)
        biases.append(layer.bias)
        gaps.append(float(layer.convex.gap))
        inputs = relu(inputs @ layer.weight.T + layer.bias)
    return Network(tuple(weights), tuple(biases)), gaps, seconds


def rehearse(dense: Network, images: Array) -> None:
    """Sparsify a corner of the network: kernels that it needs are compiled then, and no others."""
    widths = [images.shape[1], *(min(len(bias), 12) for bias in dense.biases)]
    weights = (W[:n_out, :n_in] for W, n_out, n_in in zip(dense.weights, widths[1:], widths[:-1], strict=True))
    biases = (bias[:n_out] for bias, n_out in zip(dense.biases, widths[1:], strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sisopt.GeneralizationWarning)
        sparsify_network(Network(tuple(weights), tuple(biases)), images[:300], 0.5)


def output_errors(network: Network, dense: Network, images: Array) -> list[float]:
    """Return ``||R(Z) - Y|| / ||Y||`` of every layer, Y from ``dense``; the last layer's R is the identity."""
    errors = []
    pairs = list(zip(network.preactivations(images), dense.preactivations(images), strict=True))
    for index, (ours, theirs) in enumerate(pairs):
        if index < len(pairs) - 1:
            ours, theirs = relu(ours), relu(theirs)
        errors.append(float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)))
    return errors


def run(settings: Settings | None = None, progress: Progress | None = None) -> Result:
    """Train, sparsify at every sparsity, measure.

    Parameters
    ----------
    settings : Settings, optional
        What to do.
    progress : callable, optional
        Called as ``progress(done, total, doing)`` before every step and once at the end.

    Returns
    -------
    Result
        Equal for equal settings, seconds aside.
    """
    settings = Settings() if settings is None else settings
    start = perf_counter()
    n_layers = len(settings.hidden) + 1
    total = 2 + n_layers * len(settings.sparsities)
    tell: Progress = (lambda done, total, doing: None) if progress is None else progress

    tell(0, total, "training the network")
    data = load_data(settings.seed)
    dense = train(data, settings)
    names = [f"{index + 1} ({W.shape[1]}→{W.shape[0]})" for index, W in enumerate(dense.weights)]
    tell(1, total, "compiling")
    rehearse(dense, data.images)

    layers: list[LayerRow] = []
    networks: list[NetworkRow] = []
    for number, sparsity in enumerate(settings.sparsities):

        def on_layer(index: int, done: int = 2 + number * n_layers, sparsity: float = sparsity) -> None:
            tell(done + index, total, f"{sparsity:.0%} zeros, layer {index + 1} of {n_layers}")

        sparse, gaps, seconds = sparsify_network(dense, data.images, sparsity, on_layer)
        kept = [int(np.count_nonzero(W)) for W in sparse.weights]
        pruned = prune_by_magnitude(dense, kept)  # the same number of weights, layer by layer
        calibration = output_errors(sparse, dense, data.images)
        held_out = output_errors(sparse, dense, data.held_out_images)
        magnitude = output_errors(pruned, dense, data.held_out_images)
        for index in range(n_layers):
            layers.append(
                LayerRow(
                    sparsity=sparsity,
                    layer=names[index],
                    shape=dense.weights[index].shape,
                    n_kept=kept[index],
                    size=dense.weights[index].size,
                    calibration_error=calibration[index],
                    held_out_error=held_out[index],
                    magnitude_error=magnitude[index],
                    gap=gaps[index],
                    density=thumbnail([sparse.weights[index]]),
                    seconds=seconds[index],
                )
            )
        networks.append(
            NetworkRow(
                sparsity=sparsity,
                accuracy=sparse.accuracy(data.held_out_images, data.held_out_labels),
                magnitude_accuracy=pruned.accuracy(data.held_out_images, data.held_out_labels),
            )
        )
    tell(total, total, "done")
    return Result(
        settings=settings,
        n_images=len(data.labels),
        n_held_out=len(data.held_out_labels),
        dense_accuracy=dense.accuracy(data.held_out_images, data.held_out_labels),
        layers=tuple(layers),
        networks=tuple(networks),
        seconds=perf_counter() - start,
    )
