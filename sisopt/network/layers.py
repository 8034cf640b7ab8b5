"""What a network is to sisopt: layers in the order of execution, each a set of programs with calibration data."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt

from ..activations import Activation

Floats = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Program:
    """One matrix of a layer and its calibration data: y = R(x W' + b).

    ``inputs`` come from the network as it is by then, ``preactivations`` from the dense one, None where both agree. A
    layer has several programs where its matrix falls apart, as that of a grouped convolution does. Where something is
    added before R, as by a residual connection, ``shift`` is what the network as it is by then adds, and
    ``preactivations`` contain what the dense one does.

    Examples
    --------
    >>> import numpy as np
    >>> from sisopt.network import Program
    >>> program = Program(np.ones((100, 8)), np.ones((3, 8)), None, "relu", None)
    >>> program.inputs.shape, program.weight.shape
    ((100, 8), (3, 8))
    """

    inputs: Floats  # (n_samples, n_in)
    weight: Floats  # (n_out, n_in), dense
    bias: Floats | None  # (n_out,)
    activation: str | Activation
    preactivations: Floats | None  # (n_samples, n_out)
    shift: Floats | None = None  # (n_samples, n_out)


@dataclass(frozen=True)
class LayerInfo:
    """A layer as it is planned and reported; ``excluded`` says why it stays dense, "" where it does not.

    Examples
    --------
    >>> from sisopt.network import LayerInfo
    >>> layer = LayerInfo("fc1", "dense", (3, 8), n_weights=24, activation="relu")
    >>> layer.name, layer.excluded == ""
    ('fc1', True)
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    n_weights: int
    activation: str
    flops: int = 0  # multiply-adds of the dense layer for one sample of the network; 0: unknown
    excluded: str = ""
    n_zeros: int = 0  # weights that are zero already


class Network(Protocol):
    """What `sparsify_network` asks of a network.

    Examples
    --------
    Two matrices with ReLU between them:

    >>> import numpy as np
    >>> from sisopt.network import LayerInfo, Program, sparsify_network
    >>> class TwoLayers:
    ...     def __init__(self, inputs, first, second):
    ...         self.inputs, self.dense, self.sparse = inputs, (first, second), [first, second]
    ...         self.layers = [LayerInfo(f"fc{i}", "dense", W.shape, W.size, "") for i, W in enumerate(self.dense)]
    ...     def fingerprint(self):
    ...         return {}  # digests, where there are to be checkpoints
    ...     def visit(self, numbers, *, dense=False):
    ...         first, second = self.dense
    ...         if 0 in numbers:
    ...             yield 0, [Program(self.inputs, first, None, "relu", None)]
    ...         if 1 in numbers:
    ...             wanted = np.maximum(self.inputs @ first.T, 0)
    ...             inputs = wanted if dense else np.maximum(self.inputs @ self.sparse[0].T, 0)
    ...             yield 1, [Program(inputs, second, None, "identity", wanted @ second.T)]
    ...     def put(self, number, parts):
    ...         ((self.sparse[number], _),) = parts
    >>> rng = np.random.default_rng(0)
    >>> network = TwoLayers(rng.normal(size=(200, 8)), rng.normal(size=(6, 8)), rng.normal(size=(4, 6)))
    >>> sparsify_network(network, sparsity=0.5, effort="fast").n_kept
    36
    >>> sum(int((W != 0).sum()) for W in network.sparse)
    36
    """

    @property
    def layers(self) -> Sequence[LayerInfo]:
        """All layers, in the order of their execution."""

    def fingerprint(self) -> Mapping[str, str]:
        """Return digests of what results depend on, such as the dense weights and the calibration data, by name."""

    def visit(self, numbers: Sequence[int], *, dense: bool = False) -> Generator[tuple[int, list[Program]], None, None]:
        """Yield layers, given by number in order of execution, with their data; no programs or samples: not reached.

        What is `put` before the next layer is asked for counts in the inputs of that one; with ``dense``, inputs are
        those of the dense network. The generator is closed when it is no longer needed.
        """

    def put(self, number: int, parts: Sequence[tuple[Floats, Floats | None]]) -> None:
        """Replace a layer by sparse matrices and biases, one pair for each of its programs."""
