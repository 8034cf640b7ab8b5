"""What the adapter asks of a kind of module: its matrices, and the inputs that these are multiplied by.

A module is one or more *programs*: matrices with inputs of their own, such as the groups of a convolution or the gates
of a recurrent layer, that are made sparse one by one. A call of the module offers *positions*: the samples of its
programs, tokens or places of an image, of which some are drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Program:
    """One matrix of a module, float32 copies: y = R(x W' + b) with R the activation after the module, or its own.

    ``label`` tells it from the others of its module, "" where it is the only one. ``activation`` is None where that
    which follows the module applies. ``parameters`` names those that the weight's columns come from, in their order:
    the gate of a recurrent layer has two. Each entry of these parameters is in one program of the module and no more.
    """

    label: str
    parameters: tuple[str, ...]
    weight: Floats  # (n_out, n_in)
    bias: Floats | None  # (n_out,)
    activation: str | None = None


class Call(Protocol):
    """One call of a module, seen as samples of its programs."""

    n_positions: int

    def inputs(self, program: int, at: torch.Tensor) -> torch.Tensor:
        """Return the inputs (len(at), n_in) of a program at positions ``at``, int64 in [0, n_positions)."""

    def kept(self, padding: torch.Tensor) -> torch.Tensor | None:
        """Return which positions are real ones, bool (n_positions,), given ``padding`` (n_batch, length), True there
        where a token counts; None where the call's positions are not such tokens. From then on, no padding is among
        the inputs at these positions.
        """


class Kind(Protocol):
    """How modules of some types are taken apart and put together again; ``parts`` are those of ``programs``."""

    def programs(self, module: Any) -> list[Program]:
        """Return the module's programs, in an order that does not change."""

    def call(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Return a call of the module as samples, made from its arguments alone."""

    def assign(self, module: Any, number: int, weight: Floats, bias: Floats | None) -> None:
        """Write the matrix and bias of a program into the module's parameters, in place and in their dtype."""
