"""Linear layers: every vector along the last axis is a position."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from .base import Call, Floats, Program
from .intercept import arguments_of
from .parameters import read, write


class VectorCall:
    """A call whose positions are the vectors along the last axis of one tensor."""

    def __init__(self, vectors: torch.Tensor) -> None:
        self._vectors = vectors
        self.n_positions = vectors.numel() // vectors.shape[-1] if vectors.shape[-1] else 0

    def inputs(self, program: int, at: torch.Tensor) -> torch.Tensor:
        """Return the drawn vectors; the one program is number 0."""
        return self._vectors.reshape(-1, self._vectors.shape[-1])[at.to(self._vectors.device)]

    def kept(self, padding: torch.Tensor) -> torch.Tensor | None:
        """Return the padding where the vectors are tokens, or parts of tokens such as heads.

        They are (n_batch, length, ...), (length, n_batch) or flat.
        """
        tokens = self._vectors.shape[:-1]
        if tokens[:2] == padding.shape and tokens[1] not in tokens[2:]:  # else the tokens may be behind the heads
            return padding.reshape(-1).repeat_interleave(tokens[2:].numel())
        if tokens == (padding.numel(),):
            return padding.reshape(-1)
        return padding.T.reshape(-1) if tokens == padding.shape[::-1] else None


class Linear:
    """`torch.nn.Linear`, and classes derived from it whose forward computes the same."""

    def programs(self, module: Any) -> list[Program]:
        """Return the only program."""
        bias = None if module.bias is None else read(module.bias)
        return [Program("", ("weight",), read(self._matrix(module)), bias)]

    def call(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Return the call; its vectors are the last axis of the input."""
        return VectorCall(arguments_of(functional.linear, ("input", "weight", "bias"), module, args, kwargs)["input"])

    def assign(self, module: Any, number: int, weight: Floats, bias: Floats | None) -> None:
        """Write the matrix and the bias."""
        write(self._matrix(module), weight)
        if bias is not None:
            write(module.bias, bias)

    def _matrix(self, module: Any) -> torch.Tensor:
        """Return the weight as (n_out, n_in), a view of the parameter."""
        weight: torch.Tensor = module.weight
        return weight


class TransposedLinear(Linear):
    """`transformers.pytorch_utils.Conv1D`: a linear layer that keeps its weight as (n_in, n_out)."""

    def call(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Return the call; its vectors are the last axis of the only argument."""
        return VectorCall(args[0] if args else kwargs["x"])

    def _matrix(self, module: Any) -> torch.Tensor:
        """Return the weight transposed, a view of the parameter."""
        weight: torch.Tensor = module.weight
        return weight.T


def is_transposed_linear(module: Any) -> bool:
    """Return whether a module is transformers' Conv1D, told by its name and its attribute ``nf``: no import."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")
