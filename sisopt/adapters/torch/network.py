"""A torch model as `sisopt.network` sees networks: layers in order, data on demand, matrices put back."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from ...activations import Activation
from ...network.layers import LayerInfo
from ...network.layers import Program as Solvable
from ...network.samples import Draws, Rows, Sampling, spilled
from .digest import digest, digest_of_call, digest_of_modules
from .folding import Fold, fold_of, put_offset
from .forwards import ForwardOfBatch, Passes, Stop, copied
from .kinds.base import Floats, Program
from .residuals import rows_of
from .samples import as_array, batch_size, bytes_of, drawn, padding_of
from .trace import Site

Visits = Generator[tuple[int, list[Solvable]], None, None]
Part = tuple[Floats, Floats | None]

HELD = 3  # times the largest input of a layer: what a pass that is held keeps alive, roughly


@dataclass(frozen=True)
class Layer:
    """A layer that is planned: where it stands in the model, and what it is taken for."""

    site: Site
    activation: Activation
    info: LayerInfo


class TorchNetwork:
    """Layers of ``model``, which is changed; ``dense`` is a copy that stays as it is, or the model itself."""

    def __init__(
        self,
        model: nn.Module,
        dense: nn.Module,
        batches: Iterable[Any],
        forward: ForwardOfBatch,
        layers: Sequence[Layer],
        sampling: Sampling,
    ) -> None:
        self._model, self._dense = model, dense
        self._batches = list(batches)
        self._forward = forward
        self._layers = list(layers)
        self._sampling = sampling
        self._modules = dict(model.named_modules())
        self._dense_modules = dict(dense.named_modules())

    @property
    def layers(self) -> Sequence[LayerInfo]:
        """See `Network`."""
        return [layer.info for layer in self._layers]

    def fingerprint(self) -> dict[str, str]:
        """See `Network`."""
        plan = [
            (each.info.name, each.info.excluded, repr(each.activation), each.site.norm, repr(each.site.shift))
            for each in self._layers
        ]
        return {
            "modules": digest_of_modules(self._dense),
            "weights": digest(self._dense.state_dict()),
            "forward": digest_of_call(self._forward),
            "batches": digest(self._batches),
            "layers": digest(plan),
            "max_samples": str(self._sampling.max_samples),
        }

    def visit(self, numbers: Sequence[int], *, dense: bool = False) -> Visits:
        """See `Network`."""
        with ExitStack() as stack:
            passes = [self._passes(self._dense, self._dense_modules, numbers)]
            stack.callback(passes[0].close)
            if not dense:
                passes.append(self._passes(self._model, self._modules, numbers))
                stack.callback(passes[1].close)
            for number in numbers:
                layer = self._layers[number]
                programs = self._programs(layer)
                most = self._sampling.samples(len(programs), max(program.weight.shape[1] for program in programs))
                needs = bytes_of(programs, most, (not dense) + (layer.site.shift is not None))
                with spilled(needs, self._sampling.max_memory // 2) as folder:
                    rows = [Rows(most, p.weight.shape[1], folder) for p in programs]
                    goals = [] if dense else [Rows(most, len(p.weight), folder) for p in programs]
                    shifts = (
                        [Rows(most, len(p.weight), folder) for p in programs] if layer.site.shift is not None else []
                    )
                    self._fill(number, passes, programs, most, rows, goals, shifts)
                    yield number, [
                        Solvable(
                            X.array, program.weight, program.bias, program.activation or layer.activation,
                            goals[i].array if goals else None, shifts[i].array if shifts else None,
                        )
                        for i, (program, X) in enumerate(zip(programs, rows, strict=True))
                    ]  # fmt: skip
                    del rows, goals, shifts  # one layer's data at a time

    def put(self, number: int, parts: Sequence[Part]) -> None:
        """See `Network`."""
        layer = self._layers[number]
        module = self._modules[layer.site.name]
        fold = self._fold(layer)
        own = layer.site.kind.programs(module)
        start = 0
        for i, ((weight, bias), program) in enumerate(zip(parts, own, strict=True)):
            if fold is not None:
                assert bias is not None and layer.site.norm is not None
                rows = slice(start, start + len(weight))
                weight, bias, offset = fold.unfolded(weight, bias, rows, has_bias=program.bias is not None)
                if offset is not None:
                    put_offset(self._modules[layer.site.norm], fold, offset, rows)
            start += len(weight)
            layer.site.kind.assign(module, i, weight, bias)

    def _passes(self, model: nn.Module, modules: dict[str, nn.Module], numbers: Sequence[int]) -> Passes:
        forwards = [self._bound(model, batch) for batch in self._batches]
        largest = max((layer.site.input_bytes for layer in self._layers), default=0)
        holds = 2 * HELD * largest * len(forwards) <= self._sampling.max_memory
        sites = [self._layers[number].site for number in numbers]
        shifts = {site.name: site.shift for site in sites if site.shift is not None}
        return Passes(modules, forwards, holds, shifts)

    def _bound(self, model: nn.Module, batch: Any) -> Callable[[], object]:
        return lambda: self._forward(model, copied(batch))

    def _fold(self, layer: Layer) -> Fold | None:
        """Return the batch normalisation that counts as part of the layer."""
        return None if layer.site.norm is None else fold_of(self._dense_modules[layer.site.norm])

    def _programs(self, layer: Layer) -> list[Program]:
        """Return a layer's dense programs, the batch normalisation that follows it folded in."""
        fold, start, found = self._fold(layer), 0, []
        for program in layer.site.kind.programs(self._dense_modules[layer.site.name]):
            rows = slice(start, start + len(program.weight))
            start = rows.stop
            found.append(program if fold is None else fold.folded(program, rows))
        return found

    def _fill(
        self,
        number: int,
        passes: list[Passes],
        programs: list[Program],
        most: int,
        rows: list[Rows],
        goals: list[Rows],
        shifts: list[Rows],
    ) -> None:
        """Draw samples from all calls of a layer: inputs of the last passes, pre-activations of the dense network's."""
        site = self._layers[number].site
        draws = Draws(most, [batch_size(batch) for batch in self._batches], self._sampling.seed, number)
        for i, batch in enumerate(self._batches):
            padding = padding_of(batch)
            stops = [each.reach(site.name, i, every=site.n_calls > 1) for each in passes]
            calls_together = zip(*stops, strict=False)  # first: they may be fewer than those of the dense network
            for together, draw in zip(calls_together, draws.of_batch(i, len(stops[0])), strict=False):
                calls = [site.kind.call(stop.module, stop.args, stop.kwargs) for stop in together]
                if calls[0].n_positions != calls[-1].n_positions:
                    continue  # other tokens come this way than in the dense network, as where experts are chosen
                added = [_added(stop, calls[0].n_positions) for stop in together] if shifts else []
                if any(each is None for each in added):
                    continue  # a batch that goes another way than the one that was traced
                at = drawn(calls, padding, draw)
                if not len(at):
                    continue
                here = [as_array(each[at.to(each.device)]) for each in added if each is not None]
                edges = np.cumsum([0, *(len(program.weight) for program in programs)])
                for p, program in enumerate(programs):
                    outputs = slice(edges[p], edges[p + 1])
                    rows[p].append(as_array(calls[-1].inputs(p, at)))
                    if shifts:
                        shifts[p].append(here[-1][:, outputs])
                    if goals:
                        Z = _preactivations(program, calls[0].inputs(p, at))
                        goals[p].append(Z + here[0][:, outputs] if shifts else Z)


def _added(stop: Stop, n_positions: int) -> torch.Tensor | None:
    """Return what is added to a module's outputs, (n_positions, n_out), None where it is not what was traced."""
    weight = stop.module.weight
    if stop.shift is None or not isinstance(weight, torch.Tensor) or stop.shift.dim() < weight.dim() - 1:
        return None
    rows = rows_of(stop.shift, weight)
    return rows if len(rows) == n_positions else None


def _preactivations(program: Program, inputs: torch.Tensor) -> Floats:
    """Return X W' + b of the dense network."""
    X = inputs.detach().to("cpu", torch.float32)
    bias = None if program.bias is None else torch.from_numpy(program.bias)
    return as_array(nn.functional.linear(X, torch.from_numpy(program.weight), bias))
