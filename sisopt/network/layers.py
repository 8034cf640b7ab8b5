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
    layer has several programs where its matrix falls apart, as that of a grouped convolution does.
    """

    inputs: Floats  # (n_samples, n_in)
    weight: Floats  # (n_out, n_in), dense
    bias: Floats | None  # (n_out,)
    activation: str | Activation
    preactivations: Floats | None  # (n_samples, n_out)


@dataclass(frozen=True)
class LayerInfo:
    """A layer as it is planned and reported; ``excluded`` says why it stays dense, "" where it does not."""

    name: str
    kind: str
    shape: tuple[int, ...]
    n_weights: int
    activation: str
    flops: int = 0  # multiply-adds of the dense layer for one sample of the network; 0: unknown
    excluded: str = ""


class Network(Protocol):
    """What `sparsify_network` asks of a network."""

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
