"""Forward passes that stop at a layer: held there until it is sparse, or run again from the start for every layer.

A pass that is *held* costs one forward for all layers, and keeps alive whatever the model keeps between two layers; for
that, each runs in a greenlet of its own. A pass that is *replayed* keeps nothing, and costs a forward for every layer.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch
from greenlet import GreenletExit, getcurrent, greenlet
from torch import nn

from ...errors import InvalidInputError
from .residuals import Kept, Source

Forward = Callable[[], object]
ForwardOfBatch = Callable[[nn.Module, Any], object]  # how a batch is given to a model


def call_model(model: nn.Module, batch: Any) -> object:
    """Call a model with a batch as its type says, where nobody says how."""
    if isinstance(batch, torch.Tensor):
        return model(batch)
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, list | tuple):
        try:
            return model(*batch)
        except TypeError as error:
            if len(batch) > 1:
                error.add_note(
                    f"A batch of {len(batch)} is given to the model as model(*batch). If it holds labels too, pass "
                    "forward=lambda model, batch: model(batch[0]) to sparsify_model."
                )
            raise
    msg = (
        f"batches must hold tensors, tuples, lists or mappings, got {type(batch).__name__}: say how to give one to the "
        "model with forward=lambda model, batch: ..."
    )
    raise InvalidInputError(msg)


@contextmanager
def eval_mode(*models: nn.Module) -> Iterator[None]:
    """Put models in eval mode, every module back where it was after."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    try:
        for model in models:
            model.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def tensors_in(nested: object) -> Iterator[torch.Tensor]:
    """Yield the tensors in lists, mappings and dataclasses, nested in any way."""
    if isinstance(nested, torch.Tensor):
        yield nested
    elif isinstance(nested, tuple | list):
        for each in nested:
            yield from tensors_in(each)
    elif isinstance(nested, Mapping):
        yield from tensors_in(tuple(nested.values()))
    elif is_dataclass(nested) and not isinstance(nested, type):
        yield from tensors_in(tuple(vars(nested).values()))


def copied(value: Any) -> Any:
    """Return a batch, or arguments, in containers of their own with copies of the tensors: models write to both.

    Containers are lists, tuples, mappings and dataclasses; other objects are handed on.
    """
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, np.ndarray):
        return value.copy()
    if type(value) is tuple or hasattr(value, "_make"):  # or a named one
        return getattr(value, "_make", tuple)(map(copied, value))
    if not isinstance(value, list | MutableMapping) and (isinstance(value, type) or not is_dataclass(value)):
        return value
    other: Any = copy.copy(value)
    if isinstance(value, list):
        other[:] = map(copied, value)
    if isinstance(value, MutableMapping):
        for key in value:
            other[key] = copied(value[key])
    if is_dataclass(value):  # a mapping too, at times
        for each in fields(value):
            if hasattr(value, each.name):
                object.__setattr__(other, each.name, copied(getattr(value, each.name)))
    return other


@dataclass(frozen=True)
class Stop:
    """A module about to run, and what it is given; ``shift`` will be added to what it returns."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    shift: torch.Tensor | None = None


class _Reached(BaseException):
    """Unwinds a replayed pass from the layer that it was to reach, past any ``except Exception`` of the model."""


@dataclass
class Passes:
    """The forward passes of one model over all batches, and where they stand."""

    modules: dict[str, nn.Module]  # where they may stop
    forwards: list[Forward]  # one a batch
    holds: bool
    shifts: Mapping[str, Source] = field(default_factory=dict)  # of modules called once, in the order of their calls
    _held: list[_Held] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._kept = Kept(self.modules, self.shifts)

    def reach(self, name: str, number: int, *, every: bool) -> list[Stop]:
        """Return the calls of a module in the pass over batch ``number``: the next, or with ``every`` all of them.

        Held passes go on from where they stand; one that does not meet the module any more, because batches call their
        modules in another order, is run from the start. An empty list where the module is not called.
        """
        if self.holds and not every:
            while len(self._held) <= number:
                self._held.append(_Held(self.forwards[len(self._held)], _random_state(len(self._held))))
            held = self._held[number]
            stop = held.reach(self.modules[name])
            if stop is not None:
                return [replace(stop, shift=self._kept.take(name, held.greenlet))]
        try:
            with _random_from(_random_state(number)):
                stops = _replayed(self.modules[name], self.forwards[number], every)
            shift = self._kept.take(name, getcurrent())
        finally:
            self._kept.forget(getcurrent())
        return stops if shift is None else [replace(stop, shift=shift) for stop in stops]

    def close(self) -> None:
        """End the passes that are held."""
        self._kept.close()
        while self._held:
            self._held.pop().close()


def _replayed(module: nn.Module, forward: Forward, every: bool) -> list[Stop]:
    """Return the first call or all calls of a module in a pass from the start."""
    found: list[Stop] = []

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if every:
            found.append(Stop(module, copied(args), copied(kwargs)))  # the model may change them in place later
        elif not found:
            found.append(Stop(module, args, kwargs))
            raise _Reached

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        with torch.no_grad():
            forward()
    except _Reached:
        pass
    finally:
        handle.remove()
    return found


def _random_state(number: int) -> torch.Tensor:
    """Return where torch's generator begins in passes over a batch: what one draws is drawn again in all others."""
    return torch.Generator().manual_seed(number).get_state()


@contextmanager
def _random_from(state: torch.Tensor) -> Iterator[None]:
    """Let torch's generator begin at a state, and put it back after."""
    outside = torch.get_rng_state()
    torch.set_rng_state(state)
    try:
        yield
    finally:
        torch.set_rng_state(outside)


class _Held:
    """One forward pass in a greenlet; it stops before the module that it is to reach.

    Contexts of torch are those of the thread, left in the order in which they were entered: passes that take turns may
    not enter any. Gradients are therefore off out here, and a pass is given up where the model has entered another.
    """

    def __init__(self, forward: Forward, random: torch.Tensor) -> None:
        def run() -> None:
            forward()

        self.greenlet = greenlet(run)
        self._contexts: tuple[object, ...] = ()
        self._random = random  # the state of torch's generator in the pass

    def reach(self, module: nn.Module) -> Stop | None:
        """Go on to the next call of a module; None where the pass ends without one, or cannot be held there."""
        if self.greenlet.dead:
            return None
        handle = module.register_forward_pre_hook(self._hook, with_kwargs=True)
        self._contexts = _contexts()
        try:
            with torch.no_grad(), _random_from(self._random):
                stop = self.greenlet.switch()
                self._random = torch.get_rng_state()
        finally:
            handle.remove()
        return stop if isinstance(stop, Stop) else None

    def close(self) -> None:
        """Unwind the pass."""
        if not self.greenlet.dead:
            with torch.no_grad(), _random_from(self._random):
                self.greenlet.throw(GreenletExit)

    def _hook(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if getcurrent() is not self.greenlet:
            return
        if _contexts() != self._contexts:
            raise GreenletExit
        self.greenlet.parent.switch(Stop(module, args, kwargs))


def _contexts() -> tuple[object, ...]:
    """Return what contexts set, the mode of gradients aside."""
    cuda: Any = torch.backends.cuda
    return (
        torch.is_inference_mode_enabled(),
        *(torch.is_autocast_enabled(device) for device in ("cpu", "cuda")),
        *(torch.get_autocast_dtype(device) for device in ("cpu", "cuda")),
        *(torch.get_default_device(), torch.get_default_dtype()),
        *(cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.math_sdp_enabled()),
        id(warnings.filters),  # catch_warnings puts another list there
    )
