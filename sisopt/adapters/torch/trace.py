"""What a model does with its layers, seen in one forward pass: their order, and what follows each of them.

Functions of torch are watched while the model runs, so that activations are found whether they are modules or calls,
in any model that runs at all. What is not recognised counts as identity, which is always sound.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ...activations import Activation, get_activation
from .activations import NORMS, PASSING, activation_of
from .kinds import kind_of
from .kinds.base import Kind

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass
class Site:
    """A module whose weights can be made sparse; what follows it in the model's forward pass."""

    name: str
    kind: Kind
    n_calls: int = 0
    positions: int = 0  # of its first call
    input_bytes: int = 0  # of its first call
    activation: Activation = field(default_factory=lambda: get_activation("identity"))
    norm: str | None = None  # the batch normalisation between the module and its activation


@dataclass
class _Use:
    """What became of a value that came from a site."""

    activation: Activation | None
    norm: str | None


def sites_of(model: nn.Module) -> dict[str, tuple[nn.Module, Kind]]:
    """Return the modules of a model whose weights can be made sparse, by name; those inside of others left out."""
    found: dict[str, tuple[nn.Module, Kind]] = {}
    for name, module in model.named_modules():
        if any(name.startswith(f"{outer}.") for outer in found):
            continue
        kind = kind_of(module)
        if kind is not None:
            found[name] = (module, kind)
    return found


def trace(model: nn.Module, forward: Callable[[], object]) -> list[Site]:
    """Run the model once and return its sites in the order of their first calls; sites never called come last."""
    modules = sites_of(model)
    sites = {name: Site(name, kind) for name, (_, kind) in modules.items()}
    watch = _Watch({id(module): name for name, module in model.named_modules() if isinstance(module, BATCH_NORMS)})
    order: dict[str, None] = {}
    handles = []

    def before(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            site = sites[name]
            order[name] = None
            site.n_calls += 1
            if site.n_calls == 1:
                site.positions = site.kind.call(module, args, kwargs).n_positions
                site.input_bytes = sum(t.numel() * t.element_size() for t in _tensors((args, kwargs)))

        return hook

    def after(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, torch.Tensor):
                watch.follow(output, name)

        return hook

    try:
        for name, (module, _) in modules.items():
            handles.append(module.register_forward_pre_hook(before(name), with_kwargs=True))
            handles.append(module.register_forward_hook(after(name)))
        for module in model.modules():
            if isinstance(module, BATCH_NORMS):
                handles.append(module.register_forward_pre_hook(watch.enter_norm))
                handles.append(module.register_forward_hook(watch.leave_norm))
        with torch.no_grad(), watch:
            forward()
    finally:
        for handle in handles:
            handle.remove()
    for name, site in sites.items():
        if site.n_calls == 1:
            site.norm, site.activation = watch.what_follows(name)
    return [sites[name] for name in (*order, *(name for name in sites if name not in order))]


class _Watch(TorchFunctionMode):
    """Follows the outputs of sites through the functions that they are given to."""

    def __init__(self, norms: dict[int, str]) -> None:
        super().__init__()
        self._norms = norms
        self._inside: list[str] = []  # batch normalisations that run now
        self._sources: dict[int, tuple[str, int]] = {}  # id of a tensor -> (site, number of the value it stands for)
        self._kept: list[torch.Tensor] = []  # lest an id is used again
        self._uses: dict[tuple[str, int], list[tuple[_Use, int]]] = {}
        self._values = 0

    def follow(self, tensor: torch.Tensor, name: str) -> None:
        """Take a tensor for the output of a site."""
        self._mark(tensor, (name, 0))

    def enter_norm(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Note that a batch normalisation runs."""
        self._inside.append(self._norms[id(module)])

    def leave_norm(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Note that it has run."""
        self._inside.pop()

    def what_follows(self, name: str) -> tuple[str | None, Activation]:
        """Return the batch normalisation and the activation that follow a site, each value used only once."""
        norm, value, identity = None, (name, 0), get_activation("identity")
        uses = self._uses.get(value, [])
        if len(uses) == 1 and uses[0][0].norm is not None:
            norm, value = uses[0][0].norm, (name, uses[0][1])
            uses = self._uses.get(value, [])
        if len(uses) == 1 and uses[0][0].activation is not None:
            return norm, uses[0][0].activation
        return norm, identity

    def _mark(self, tensor: torch.Tensor, source: tuple[str, int]) -> None:
        self._sources[id(tensor)] = source
        self._kept.append(tensor)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # an id may be that of a value that was changed in place since: sources are looked up before the call
        sources = {self._sources[id(t)] for t in _tensors((args, kwargs)) if id(t) in self._sources}
        out = func(*args, **kwargs)
        if not sources or not isinstance(out, torch.Tensor | tuple | list):
            return out
        function = getattr(func, "__name__", "")
        if isinstance(out, torch.Tensor) and function not in PASSING:
            self._sources.pop(id(out), None)  # changed in place: no longer the value that it was
        passes = function in PASSING and isinstance(out, torch.Tensor)
        for source in sorted(sources):
            if passes:
                self._mark(out, source)
                continue
            self._values += 1
            norm = self._inside[-1] if function in NORMS and self._inside else None
            use = _Use(activation_of(function, args, kwargs), norm)
            self._uses.setdefault(source, []).append((use, self._values))
            if norm is not None:
                self._mark(out, (source[0], self._values))
        return out


def _tensors(nested: Any) -> Iterator[torch.Tensor]:
    if isinstance(nested, torch.Tensor):
        yield nested
    elif isinstance(nested, tuple | list):
        for each in nested:
            yield from _tensors(each)
    elif isinstance(nested, dict):
        yield from _tensors(tuple(nested.values()))
