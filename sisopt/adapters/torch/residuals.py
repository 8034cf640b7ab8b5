"""What a model adds to a layer's outputs, where it is there before the layer runs: a shift known to the program.

Residual connections are of this kind. The other summand is told by the module that it goes into or comes out of first,
so that any later pass can keep it when it meets that module.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from greenlet import getcurrent, greenlet
from torch import nn
from torch.utils.weak import WeakTensorKeyDictionary

ADDITIONS = {"add", "add_", "__add__", "__radd__", "__iadd__"}


@dataclass(frozen=True)
class Source:
    """A tensor by where it is seen: an argument of a module, by place or name, or with None what the module returns."""

    module: str
    argument: int | str | None


@dataclass(frozen=True)
class _Seen:
    source: Source
    time: int
    version: int  # of the tensor: one that was changed in place since is another


class Sources:
    """Where the tensors of one forward pass were first seen, by the calls of all modules of a model."""

    def __init__(self, model: nn.Module) -> None:
        self.now = 0  # counts calls and returns
        self._n_calls: Counter[str] = Counter()
        self._seen: Any = WeakTensorKeyDictionary()  # tensor -> _Seen
        self._handles = []
        for name, module in model.named_modules():
            self._handles.append(module.register_forward_pre_hook(self._before(name), with_kwargs=True))
            self._handles.append(module.register_forward_hook(self._after(name)))

    def close(self) -> None:
        """Look no more."""
        for handle in self._handles:
            handle.remove()

    def of(self, tensor: torch.Tensor, before: int) -> Source | None:
        """Return where a tensor, as it is now, was seen before a time."""
        seen = None if tensor.is_inference() else self._seen.get(tensor)
        if seen is None or seen.version != tensor._version or seen.time > before:
            return None
        source: Source = seen.source
        return source

    def is_single(self, source: Source) -> bool:
        """Return whether the module was called once: else its name does not tell which call is meant."""
        return self._n_calls[source.module] == 1

    def _before(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.now += 1
            self._n_calls[name] += 1
            for key, value in _given(args, kwargs).items():
                self._note(value, Source(name, key))

        return hook

    def _after(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self.now += 1
            self._note(output, Source(name, None))

        return hook

    def _note(self, value: object, source: Source) -> None:
        if isinstance(value, torch.Tensor) and not value.is_inference():  # whose changes nobody counts
            seen = self._seen.get(value)
            if seen is None or seen.version != value._version:
                self._seen[value] = _Seen(source, self.now, value._version)


class Kept:
    """Tensors that forward passes keep, each in its greenlet, from where they are seen until they are asked for.

    Parameters
    ----------
    modules : mapping of str to Module
    wanted : mapping of str to Source
        Layers, in the order in which they ask, and what for.
    """

    def __init__(self, modules: Mapping[str, nn.Module], wanted: Mapping[str, Source]) -> None:
        self._wanted = wanted
        self._last = {source: layer for layer, source in wanted.items()}
        self._tensors: WeakKeyDictionary[greenlet, dict[Source, Any]] = WeakKeyDictionary()
        self._handles = []
        for source in self._last:
            module = modules[source.module]
            self._handles.append(
                module.register_forward_hook(self._after(source))
                if source.argument is None
                else module.register_forward_pre_hook(self._before(source), with_kwargs=True)
            )

    def close(self) -> None:
        """Keep nothing any more."""
        for handle in self._handles:
            handle.remove()
        self._tensors.clear()

    def take(self, layer: str, where: greenlet) -> torch.Tensor | None:
        """Return what a layer wants of a pass, None where it wants nothing or the pass did not meet it."""
        source = self._wanted.get(layer)
        if source is None:
            return None
        kept = self._tensors.get(where, {})
        found = kept.pop(source, None) if self._last[source] == layer else kept.get(source)
        return found if isinstance(found, torch.Tensor) else None

    def forget(self, where: greenlet) -> None:
        """Drop what is left of a pass."""
        self._tensors.pop(where, None)

    def _before(self, source: Source) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found = None if source.argument is None else _given(args, kwargs).get(source.argument)
            self._tensors.setdefault(getcurrent(), {})[source] = found

        return hook

    def _after(self, source: Source) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self._tensors.setdefault(getcurrent(), {})[source] = output

        return hook


def summands(function: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[torch.Tensor, ...]:
    """Return the two tensors that a call adds entry by entry, nothing where it does something else."""
    if function not in ADDITIONS or kwargs.keys() - {"other"}:
        return ()
    both = (*args, *kwargs.values())
    if len(both) != 2 or not all(isinstance(each, torch.Tensor) for each in both):
        return ()
    one, other = both
    return both if one is not other and one.shape == other.shape else ()


def _given(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[int | str, Any]:
    """Return arguments by place and by name."""
    return dict((*enumerate(args), *kwargs.items()))


def rows_of(tensor: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return a tensor of the shape of a module's outputs as (n_positions, n_out), its positions in order."""
    axis = tensor.dim() - (weight.dim() - 1)  # that of the rows of the matrix
    return tensor.movedim(axis, -1).reshape(-1, tensor.shape[axis])
