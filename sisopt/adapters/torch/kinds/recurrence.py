"""The states that a recurrent layer goes through, from the arguments of its call and its present weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import PackedSequence

_RUN: dict[str, Any] = {"LSTM": torch.lstm, "GRU": torch.gru, "RNN_TANH": torch.rnn_tanh, "RNN_RELU": torch.rnn_relu}


@dataclass(frozen=True)
class Steps:
    """Sequences as torch packs them: step by step, at each those that are long enough, the longest first."""

    data: torch.Tensor  # (n_positions, n_in)
    batch_sizes: torch.Tensor  # (n_steps,), not increasing, on the CPU
    states: tuple[torch.Tensor, ...]  # initial h and, for an LSTM, c: (n_layers * n_directions, n_batch, n_hidden)


def layer_steps(module: Any, inputs: torch.Tensor | PackedSequence, states: Any) -> Steps:
    """Return the sequences of a call of a recurrent layer, given its arguments, ``states`` None for zeros."""
    given = () if states is None else (states,) if isinstance(states, torch.Tensor) else tuple(states)
    if isinstance(inputs, PackedSequence):
        data, batch_sizes = inputs.data, inputs.batch_sizes
        if inputs.sorted_indices is not None:
            given = tuple(state.index_select(1, inputs.sorted_indices) for state in given)
    else:
        if inputs.dim() == 2:
            inputs, given = inputs[:, None], tuple(state[:, None] for state in given)
        elif module.batch_first:
            inputs = inputs.transpose(0, 1)
        n_steps, n_batch = inputs.shape[:2]
        data, batch_sizes = inputs.flatten(0, 1), torch.full((n_steps,), n_batch)
    if not given:
        widths = [module.proj_size or module.hidden_size] + [module.hidden_size] * (module.mode == "LSTM")
        n_runs, n_batch = module.num_layers * (1 + module.bidirectional), int(batch_sizes[0])
        given = tuple(data.new_zeros(n_runs, n_batch, width) for width in widths)
    return Steps(data, batch_sizes, given)


def suffix(layer: int, reverse: bool) -> str:
    """Return what torch ends the names of a layer's and direction's parameters with, after an underscore."""
    return f"l{layer}_reverse" if reverse else f"l{layer}"


def layer_streams(module: Any, steps: Steps) -> dict[str, torch.Tensor]:
    """Return by name of each weight the inputs (n_positions, n_in) that it is multiplied by; layer after layer."""
    found: dict[str, torch.Tensor] = {}
    data, n_directions = steps.data, 1 + module.bidirectional
    for layer in range(module.num_layers):
        runs = range(layer * n_directions, (layer + 1) * n_directions)
        weights = [weight for run in runs for weight in module.all_weights[run]]
        states = [state[runs.start : runs.stop].contiguous() for state in steps.states]
        output = _RUN[module.mode](
            data,
            steps.batch_sizes,
            states if module.mode == "LSTM" else states[0],
            weights,
            module.bias,
            1,
            0.0,
            False,
            module.bidirectional,
        )[0]
        for run, outputs in zip(runs, output.chunk(n_directions, dim=1), strict=True):
            reverse = run > runs.start
            name = suffix(layer, reverse)
            previous = _previous(outputs, steps.states[0][run], steps.batch_sizes, reverse)
            found |= {f"weight_ih_{name}": data, f"weight_hh_{name}": previous}
            if module.proj_size:
                found[f"weight_hr_{name}"] = _unprojected(module, name, data, previous, steps, run, reverse)
        data = output
    return found


def _previous(outputs: torch.Tensor, first: torch.Tensor, sizes: torch.Tensor, reverse: bool) -> torch.Tensor:
    """Return the state before each step from those after it; ``first`` is that before the run."""
    state, found = first.clone(), torch.empty_like(outputs)
    for step in _in_order(sizes, reverse):
        n_running = step.stop - step.start
        found[step] = state[:n_running]
        state[:n_running] = outputs[step]
    return found


def _unprojected(
    module: Any, name: str, data: torch.Tensor, previous: torch.Tensor, steps: Steps, run: int, reverse: bool
) -> torch.Tensor:
    """Return o tanh(c), what an LSTM projects, at every position."""
    gates = data @ getattr(module, f"weight_ih_{name}").T + previous @ getattr(module, f"weight_hh_{name}").T
    if module.bias:
        gates = gates + getattr(module, f"bias_ih_{name}") + getattr(module, f"bias_hh_{name}")
    admitted, remembered, new, shown = gates.chunk(4, dim=1)
    admitted, remembered = admitted.sigmoid() * new.tanh(), remembered.sigmoid()
    cells, found = steps.states[1][run].clone(), torch.empty_like(new)
    for step in _in_order(steps.batch_sizes, reverse):
        n_running = step.stop - step.start
        cells[:n_running] = remembered[step] * cells[:n_running] + admitted[step]
        found[step] = cells[:n_running]
    hidden: torch.Tensor = shown.sigmoid() * found.tanh()
    return hidden


def _in_order(sizes: torch.Tensor, reverse: bool) -> list[slice]:
    """Return the positions of each step, in the order of the run."""
    ends = sizes.cumsum(0).tolist()
    steps = [slice(end - size, end) for end, size in zip(ends, sizes.tolist(), strict=True)]
    return steps[::-1] if reverse else steps
