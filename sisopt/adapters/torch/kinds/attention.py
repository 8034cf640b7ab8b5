"""Multi-head attention: the projections of queries, keys and values, and that of the attended values."""

from __future__ import annotations

import inspect
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ....errors import UnsupportedError
from .base import Call, Floats, Program
from .intercept import Interception
from .parameters import read, write

_LABELS = ("query", "key", "value", "output")
_SIGNATURE = inspect.signature(functional.multi_head_attention_forward)


class AttentionCall:
    """A call of `torch.nn.functional.multi_head_attention_forward`, (length, n_batch, n_in) or (length, n_in).

    Positions are batch x length, in that order. Where there are fewer queries than keys, or keys than queries, those
    are repeated evenly: the programs of a module have their positions in common.
    """

    def __init__(self, arguments: dict[str, Any]) -> None:
        self._arguments = arguments
        self._sequences = [_batch_first(arguments[name]) for name in _LABELS[:3]]
        queries, keys = self._sequences[0], self._sequences[1]
        self._n_batch, self._lengths = len(queries), (queries.shape[1], keys.shape[1])
        self.n_positions = self._n_batch * max(self._lengths) if min(self._lengths) else 0
        self._real: list[torch.Tensor | None] = [None, None]  # tokens among the queries and keys that are no padding

    @cached_property
    def _attended(self) -> torch.Tensor:
        """Attend as the module does, with the identity as output projection."""
        query, dense = self._arguments["query"], self._arguments["out_proj_weight"]
        identity = torch.eye(query.shape[-1], dtype=dense.dtype, device=dense.device)
        arguments = self._arguments | {"out_proj_weight": identity, "out_proj_bias": None}
        with torch.no_grad():
            attended, _ = functional.multi_head_attention_forward(**arguments)
        return _batch_first(attended)

    def inputs(self, program: int, at: torch.Tensor) -> torch.Tensor:
        """Return the drawn tokens of the queries, keys, values or attended values."""
        tokens = self._attended if program == 3 else self._sequences[program]
        flat = tokens.flatten(0, 1)
        rows = at.to(flat.device) * len(flat) // self.n_positions
        real = self._real[program in (1, 2)]
        return flat[rows if real is None else _among(real.to(flat.device), rows)]

    def kept(self, padding: torch.Tensor) -> torch.Tensor | None:
        """Return the padding flattened where queries and keys are both such tokens.

        Where only the ones are, the real ones among them take the places of the others, which stay.
        """
        such = [padding.shape == (self._n_batch, length) for length in self._lengths]
        if all(such):
            return padding.reshape(-1)
        if not any(such):
            return None
        self._real[such.index(True)] = padding
        return padding.any(1).repeat_interleave(max(self._lengths))


class Attention:
    """`torch.nn.MultiheadAttention`, with packed or separate projections."""

    def programs(self, module: Any) -> list[Program]:
        """Return the programs of queries, keys, values, which nothing non-linear follows, and of the output."""
        found = []
        for number, label in enumerate(_LABELS):
            name, weight, bias = _parts(module, number)
            activation = None if label == "output" else "identity"
            found.append(Program(label, (name,), read(weight), None if bias is None else read(bias), activation))
        return found

    def call(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Return the call, from what the module hands to the function that attends."""
        function = functional.multi_head_attention_forward
        # The fast path of inference is not taken while calls are intercepted.
        with Interception(function, lambda query, *_, **__: (query, None)) as seen:
            module.forward(*args, **kwargs)
        if type(module).forward is not nn.MultiheadAttention.forward or len(seen.calls) != 1:
            msg = f"{type(module).__name__} has a forward of its own, not that of MultiheadAttention: exclude it"
            raise UnsupportedError(msg)
        positional, named = seen.calls[0]
        arguments = _SIGNATURE.bind(*positional, **named).arguments
        dtype = module.out_proj.weight.dtype  # under autocast, what is given is of another
        return AttentionCall(arguments | {name: arguments[name].to(dtype) for name in _LABELS[:3]})

    def assign(self, module: Any, number: int, weight: Floats, bias: Floats | None) -> None:
        """Write a projection."""
        _, matrix, offset = _parts(module, number)
        write(matrix, weight)
        if bias is not None and offset is not None:
            write(offset, bias)


def _batch_first(tokens: torch.Tensor) -> torch.Tensor:
    """Return tokens as (n_batch, length, n_in)."""
    return tokens[None] if tokens.dim() == 2 else tokens.transpose(0, 1)


def _among(real: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return rows of (n_batch x length) moved to ``real`` tokens (n_batch, length) of their sequence, evenly."""
    length = real.shape[1]
    batch, token = rows // length, rows % length
    first = torch.argsort(~real, dim=1, stable=True)  # real ones in front
    return batch * length + first[batch, token * real.sum(1)[batch] // length]


def _parts(module: Any, number: int) -> tuple[str, torch.Tensor, torch.Tensor | None]:
    """Return the name of a program's parameter, and views of its weight and bias."""
    if _LABELS[number] == "output":
        return "out_proj.weight", module.out_proj.weight, module.out_proj.bias
    rows = slice(number * module.embed_dim, (number + 1) * module.embed_dim)
    bias = None if module.in_proj_bias is None else module.in_proj_bias[rows]
    if module.in_proj_weight is not None:
        return "in_proj_weight", module.in_proj_weight[rows], bias
    name = f"{_LABELS[number][0]}_proj_weight"
    return name, getattr(module, name), bias
