"""Forward passes that stop at a layer: held there until it is sparse, or run again from the start for every layer.

A pass that is *held* costs one forward for all layers, and keeps alive whatever the model keeps between two layers; for
that, each runs in a greenlet of its own. A pass that is *replayed* keeps nothing, and costs a forward for every layer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from greenlet import GreenletExit, getcurrent, greenlet
from torch import nn

Forward = Callable[[], object]
ForwardOfBatch = Callable[[nn.Module, Any], object]  # how a batch is given to a model


@dataclass(frozen=True)
class Stop:
    """A module about to run, and what it is given."""

    name: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class _Reached(Exception):
    """Unwinds a replayed pass from the layer that it was to reach."""


@dataclass
class Passes:
    """The forward passes of one model over all batches, and where they stand."""

    model: nn.Module
    modules: dict[str, nn.Module]  # where they may stop
    forwards: list[Forward]  # one a batch
    holds: bool
    _held: list[_Held] = field(default_factory=list)
    _targets: frozenset[str] = frozenset()

    def reach(self, name: str, number: int, *, every: bool) -> list[Stop]:
        """Return the calls of a module in the pass over batch ``number``: the next, or with ``every`` all of them.

        Held passes go on from where they stand; one that does not meet the module any more, because batches call their
        modules in another order, is run from the start. None where the module is not called.
        """
        if every or not self.holds:
            return self._replayed(name, self.forwards[number], every)
        while len(self._held) <= number:
            self._held.append(_Held(self, self.forwards[len(self._held)]))
        stop = self._held[number].reach(name)
        return self._replayed(name, self.forwards[number], every) if stop is None else [stop]

    def close(self) -> None:
        """End the passes that are held."""
        for held in self._held:
            held.close()
        self._held.clear()

    def _replayed(self, name: str, forward: Forward, every: bool) -> list[Stop]:
        found: list[Stop] = []

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found.append(Stop(name, module, args, kwargs))
            if not every:
                raise _Reached

        handle = self.modules[name].register_forward_pre_hook(hook, with_kwargs=True)
        try:
            with torch.no_grad():
                forward()
        except _Reached:
            pass
        finally:
            handle.remove()
        return found


class _Held:
    """One forward pass in a greenlet; it stops before every module that it may stop at."""

    def __init__(self, passes: Passes, forward: Forward) -> None:
        self._passes = passes
        self._handles: list[Any] = []
        self._at: Stop | None = None
        self._wanted = ""

        def run() -> None:
            with torch.no_grad():
                forward()

        self._greenlet = greenlet(run)

    def reach(self, name: str) -> Stop | None:
        """Go on to the next call of a module; None where the pass ends without one."""
        self._wanted = name
        handle = self._passes.modules[name].register_forward_pre_hook(self._hook, with_kwargs=True)
        try:
            stop = None if self._greenlet.dead else self._greenlet.switch()
        finally:
            handle.remove()
        return stop

    def close(self) -> None:
        """Unwind the pass."""
        if not self._greenlet.dead:
            self._greenlet.throw(GreenletExit)

    def _hook(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        current = getcurrent()
        if current is self._greenlet and current.parent is not None:
            current.parent.switch(Stop(self._wanted, module, args, kwargs))
