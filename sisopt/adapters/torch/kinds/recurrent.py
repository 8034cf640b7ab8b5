"""Recurrent layers and cells: a program for each layer, direction and gate on [x_t, h_{t-1}].

The two biases of a gate are fitted as one. GRU's new gate is tanh(W_in x + b_in + r (W_hn h + b_hn)): the reset gate r
stands between, so that its two halves are programs of their own, with the identity for activation. So is the
projection of an LSTM with ``proj_size``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from ....errors import UnsupportedError
from .base import Call, Floats, Program
from .parameters import read, write
from .recurrence import layer_steps, layer_streams, suffix

# In the order of torch's rows.
_LSTM_GATES = (("input", "sigmoid"), ("forget", "sigmoid"), ("cell", "tanh"), ("output", "sigmoid"))
_GRU_GATES = (("reset", "sigmoid"), ("update", "sigmoid"))

Streams = dict[str, torch.Tensor]


@dataclass(frozen=True)
class _Gate:
    """Rows of weights whose inputs stand side by side, and of biases that add up; all by name."""

    label: str
    activation: str
    rows: slice
    weights: tuple[str, ...]
    biases: tuple[str, ...]


class StateCall:
    """A call whose positions are steps of sequences, time first, then batch.

    Parameters
    ----------
    gates : list
        What the programs are.
    n_positions : int
        Number of steps of all sequences.
    streams : function
        Makes the inputs (n_positions, n_in) of each weight by name; called when first needed.
    padded : tuple (n_batch, length), optional
        Of sequences that padding may have made equally long.
    """

    def __init__(
        self,
        gates: list[_Gate],
        n_positions: int,
        streams: Callable[[], Streams],
        padded: tuple[int, int] | None = None,
    ) -> None:
        self._gates, self._make, self._padded = gates, streams, padded
        self.n_positions = n_positions

    @cached_property
    def _streams(self) -> Streams:
        """Run the recurrence, once."""
        with torch.no_grad():
            return self._make()

    def inputs(self, program: int, at: torch.Tensor) -> torch.Tensor:
        """Return [x_t, h_{t-1}], or the part that the program has."""
        streams = [self._streams[name] for name in self._gates[program].weights]
        return torch.cat([stream[at.to(stream.device)] for stream in streams], dim=1)

    def kept(self, padding: torch.Tensor) -> torch.Tensor | None:
        """Return the padding, time first, where the sequences are (n_batch, length)."""
        return padding.T.reshape(-1) if padding.shape == self._padded else None


class Recurrent:
    """What layers and cells have in common: gates that are rows of parameters."""

    def programs(self, module: Any) -> list[Program]:
        """Return a program for every gate of every layer and direction."""
        found = []
        for gate in self._gates(module):
            weight = np.concatenate([read(getattr(module, name)[gate.rows]) for name in gate.weights], axis=1)
            bias = _bias(module, gate.biases, gate.rows) if module.bias and gate.biases else None
            found.append(Program(gate.label, gate.weights, weight, bias, gate.activation))
        return found

    def assign(self, module: Any, number: int, weight: Floats, bias: Floats | None) -> None:
        """Write a gate; of two biases the first takes up the change."""
        gate = self._gates(module)[number]
        start = 0
        for name in gate.weights:
            part = getattr(module, name)[gate.rows]
            write(part, weight[:, start : start + part.shape[1]])
            start += part.shape[1]
        if bias is not None:
            first, rest = gate.biases[0], gate.biases[1:]
            old = _bias(module, gate.biases, gate.rows)
            # An unchanged sum leaves its terms as they are: taken apart again, they could differ in the last bit.
            new = np.where(bias == old, _bias(module, (first,), gate.rows), bias - _bias(module, rest, gate.rows))
            write(getattr(module, first)[gate.rows], new)

    def _gates(self, module: Any) -> list[_Gate]:
        """Return the gates in the order of the programs."""
        raise NotImplementedError


class RecurrentLayer(Recurrent):
    """`torch.nn.LSTM`, `GRU` and `RNN`: any number of layers and directions."""

    def call(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Return the call, of padded, packed or single sequences."""
        inputs, states = _arguments(module, args, kwargs)
        steps = layer_steps(module, inputs, states)
        padded = None
        if not isinstance(inputs, PackedSequence):
            padded = (int(steps.batch_sizes[0]), len(steps.batch_sizes))
        return StateCall(self._gates(module), len(steps.data), lambda: layer_streams(module, steps), padded)

    def _gates(self, module: Any) -> list[_Gate]:
        found = []
        for layer in range(module.num_layers):
            for reverse in (False, True)[: 1 + module.bidirectional]:
                name = suffix(layer, reverse)
                found += _gates(module, module.mode, f"_{name}", name)
                if module.proj_size:
                    found.append(_Gate(f"{name}.projection", "identity", slice(None), (f"weight_hr_{name}",), ()))
        return found


class RecurrentCell(Recurrent):
    """`torch.nn.LSTMCell`, `GRUCell` and `RNNCell`: one step."""

    def call(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Return the call, of a batch or a single step."""
        inputs, states = _arguments(module, args, kwargs)
        inputs = inputs.reshape(-1, module.input_size)
        if states is None:
            hidden = inputs.new_zeros(len(inputs), module.hidden_size)
        else:
            hidden = (states[0] if isinstance(module, nn.LSTMCell) else states).reshape(-1, module.hidden_size)
        streams = {"weight_ih": inputs, "weight_hh": hidden}
        return StateCall(self._gates(module), len(inputs), lambda: streams)

    def _gates(self, module: Any) -> list[_Gate]:
        mode = "LSTM" if isinstance(module, nn.LSTMCell) else "GRU" if isinstance(module, nn.GRUCell) else "RNN"
        return _gates(module, mode, "", "")


def _arguments(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """Return the input and the initial states of a call."""
    types = (nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell, nn.RNNCell)
    if all(type(module).forward is not known.forward for known in types):
        msg = f"{type(module).__name__} has a forward of its own, not that of torch's recurrent modules: exclude it"
        raise UnsupportedError(msg)
    given = dict(zip(("input", "hx"), args, strict=False)) | kwargs
    dtype = next(module.parameters()).dtype  # under autocast, what is given is of another
    states = given.get("hx")
    if isinstance(states, tuple):
        return given["input"].to(dtype=dtype), tuple(state.to(dtype) for state in states)
    return given["input"].to(dtype=dtype), None if states is None else states.to(dtype)


def _gates(module: Any, mode: str, ending: str, label: str) -> list[_Gate]:
    """Return the gates of one layer and direction, or of a cell; ``ending`` is that of its parameters' names."""
    weights, biases = (f"weight_ih{ending}", f"weight_hh{ending}"), (f"bias_ih{ending}", f"bias_hh{ending}")
    size = module.hidden_size
    if mode not in ("LSTM", "GRU"):
        return [_Gate(label, module.nonlinearity, slice(0, size), weights, biases)]
    prefix = f"{label}." if label else ""
    found = []
    for number, (name, activation) in enumerate(_LSTM_GATES if mode == "LSTM" else _GRU_GATES):
        rows = slice(number * size, (number + 1) * size)
        found.append(_Gate(prefix + name, activation, rows, weights, biases))
    if mode == "GRU":
        for name, weight, bias in zip(("new_input", "new_state"), weights, biases, strict=True):
            found.append(_Gate(prefix + name, "identity", slice(2 * size, 3 * size), (weight,), (bias,)))
    return found


def _bias(module: Any, names: tuple[str, ...], rows: slice) -> Floats:
    """Return the sum of a gate's biases."""
    total = np.zeros(rows.stop - rows.start, np.float32)
    for name in names:
        total = total + read(getattr(module, name)[rows])
    return total
