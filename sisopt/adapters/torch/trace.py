"""What a model does with its layers, seen in one forward pass: their order, and what follows each of them.

Functions of torch are watched while the model runs, so that activations are found whether they are modules or calls,
in any model that runs at all. What is not recognised counts as identity, which is always sound. Only what a function of
`torch.jit.script` does to a value escapes notice.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from ...activations import Activation, get_activation
from ...errors import UnsupportedError
from ...network.solving import in_layer
from .activations import DROPOUTS, PASSING, activation_of
from .folding import can_fold, fold_of
from .forwards import tensors_in
from .kinds import kind_of
from .kinds.base import Kind
from .residuals import Source, Sources, summands

Takes = Callable[[str, nn.Module], bool]  # whether a module, with its name, is to be made sparse

_BATCH_NORM = inspect.signature(functional.batch_norm)


@dataclass
class Site:
    """A module whose weights can be made sparse; what follows it in the model's forward pass."""

    name: str
    kind: Kind
    n_calls: int = 0
    positions: int = 0  # of its first call
    input_bytes: int = 0  # of its first call
    activation: Activation = field(default_factory=lambda: get_activation("identity"))
    norm: str | None = None  # the batch normalisation between the module and its activation, one that can be folded
    shift: Source | None = None  # what is added before the activation, where it is known when the module runs


@dataclass(eq=False)
class _Value:
    """The output of a site, of the batch normalisation after it or of a sum; and what the model did with it."""

    time: int  # when the site was called
    uses: list[_Use] = field(default_factory=list)

    @property
    def only_use(self) -> _Use:
        """What it was used for, where that is one thing."""
        return self.uses[0] if len(self.uses) == 1 else _Use()


@dataclass(frozen=True)
class _Use:
    """A function that a value was given to: an activation, a normalisation, a sum, or (all None) something else."""

    activation: Activation | None = None
    norm: str | None = None
    shift: Source | None = None
    made: _Value | None = None  # what the normalisation or the sum made of it


@dataclass(frozen=True)
class _Mark:
    """A tensor that holds a value, perhaps in another shape."""

    value: _Value
    site: nn.Module | None = None  # that it came from; None after a sum, or a normalisation in another shape
    shape: tuple[int, ...] = ()  # that it had then
    normed: bool = False
    trail: tuple[Callable[[torch.Tensor], Any], ...] = ()  # what it went through since


def sites_of(model: nn.Module, takes: Takes) -> dict[str, tuple[nn.Module, Kind]]:
    """Return the modules of a model whose weights can be made sparse, by name; those inside of others left out.

    Raises
    ------
    UnsupportedError
        For modules to be taken whose weights are not plain parameters; the message names them.
    """
    found: dict[str, tuple[nn.Module, Kind]] = {}
    for name, module in model.named_modules():
        if any(is_inside(name, outer) for outer in found):
            continue
        kind = _named_kind(name, module, takes)
        if kind is not None:
            found[name] = (module, kind)
    return found


def is_inside(name: str, outer: str) -> bool:
    """Return whether a module is inside another, by their names; the model's own is empty."""
    return name != outer and (not outer or name.startswith(f"{outer}."))


def trace(model: nn.Module, forward: Callable[[], object], takes: Takes = lambda name, module: True) -> list[Site]:
    """Run the model once and return its sites in the order of their first calls; sites never called come last."""
    modules = sites_of(model, takes)
    sites = {name: Site(name, kind) for name, (_, kind) in modules.items()}
    sources = Sources(model)
    watch = _Watch(model, sources)
    order: dict[str, None] = {}
    times: dict[str, int] = {}
    handles = []

    def before(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            site = sites[name]
            order[name] = None
            site.n_calls += 1
            times[name] = sources.now
            if site.n_calls == 1 and takes(name, module):
                with in_layer(name):
                    site.positions = site.kind.call(module, args, kwargs).n_positions
                site.input_bytes = sum(t.numel() * t.element_size() for t in tensors_in((args, kwargs)))

        return hook

    def after(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, torch.Tensor):
                watch.follow(output, name, module, times[name])

        return hook

    try:
        for name, (module, _) in modules.items():
            handles.append(module.register_forward_pre_hook(before(name), with_kwargs=True))
            # first of all hooks: what another makes of the output is a use of it
            handles.append(module.register_forward_hook(after(name), prepend=True))
        handles.append(model.register_forward_hook(lambda module, args, output: watch.leave(output)))
        with torch.no_grad():
            with watch:
                outputs = forward()
            watch.leave(outputs)
    finally:
        sources.close()
        for handle in handles:
            handle.remove()
    for name, site in sites.items():
        if site.n_calls == 1:
            site.norm, site.shift, site.activation = watch.what_follows(name)
    return [sites[name] for name in (*order, *(name for name in sites if name not in order))]


class _Watch(TorchFunctionMode):
    """Follows the outputs of sites through the functions that they are given to."""

    def __init__(self, model: nn.Module, sources: Sources) -> None:
        super().__init__()
        self._sources = sources
        self._norms = {  # by what tells whose call a call is
            id(module.running_mean): (name, module)
            for name, module in model.named_modules()
            if isinstance(getattr(module, "running_mean", None), torch.Tensor)
        }
        self._n_calls: Counter[str] = Counter()  # of normalisations
        self._n_holders = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
        self._outputs: dict[str, _Value] = {}
        self._marks: Any = WeakTensorKeyDictionary()  # tensor -> _Mark; weak, lest all activations stay in memory

    def follow(self, tensor: torch.Tensor, name: str, module: nn.Module, time: int) -> None:
        """Take a tensor for the output of a site that was called at a time."""
        value = self._outputs.setdefault(name, _Value(time))
        self._marks[tensor] = _Mark(value, module, tuple(tensor.shape))

    def leave(self, outputs: object) -> None:
        """Note what the model returns: a use of its own."""
        for tensor in tensors_in(outputs):
            if tensor in self._marks:
                self._marks[tensor].value.uses.append(_Use())

    def what_follows(self, name: str) -> tuple[str | None, Source | None, Activation]:
        """Return the batch normalisation, the sum and the activation that follow a site, each value used only once."""
        norm, shift, value, identity = None, None, self._outputs.get(name, _Value(0)), get_activation("identity")
        use = value.only_use
        if use.norm is not None and use.made is not None:
            # one that other values go through too cannot take up what is found for this one
            if self._n_calls[use.norm] != 1:
                return None, None, identity
            norm, use = use.norm, use.made.only_use
        if use.shift is not None and use.made is not None and self._sources.is_single(use.shift):
            shift, use = use.shift, use.made.only_use
        return norm, shift, use.activation or identity

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        norm = self._norm(args, kwargs) if func is functional.batch_norm else None
        # before the call, which may change a value in place
        marks = {id(t): self._marks[t] for t in tensors_in((args, kwargs)) if t in self._marks}
        function = getattr(func, "__name__", "")
        subject, shift = self._shifted(summands(function, args, kwargs), marks)
        out = func(*args, **kwargs)
        if not marks or _says_nothing(out, function):
            return out
        if shift is None:
            subject = args[0] if args else kwargs.get("input")
        mark = marks.get(id(subject))
        if function in DROPOUTS and out is subject:
            return out
        if function in PASSING:
            if mark is not None:  # what else is given, as to view_as, lends its shape
                self._marks[out] = replace(mark, trail=(*mark.trail, _step(func, args[1:], kwargs)))
            return out
        if isinstance(out, torch.Tensor):
            self._marks.pop(out, None)  # changed in place: no longer the value that it was
        for other in {id(m.value): m for m in marks.values()}.values():
            if mark is None or other.value is not mark.value:
                other.value.uses.append(_Use())
        if mark is not None and norm is not None and _folds(norm[1], mark, self._n_holders):
            normed = _Value(mark.value.time)
            mark.value.uses.append(_Use(norm=norm[0], made=normed))
            self._marks[out] = _Mark(normed, None if mark.trail else mark.site, mark.shape, normed=True)
        elif mark is not None and shift is not None:
            total = _Value(mark.value.time)
            mark.value.uses.append(_Use(shift=shift, made=total))
            self._marks[out] = _Mark(total)
        elif mark is not None:
            mark.value.uses.append(_Use(activation_of(function, args, kwargs)))
        return out

    def _shifted(
        self, both: tuple[torch.Tensor, ...], marks: dict[int, _Mark]
    ) -> tuple[torch.Tensor | None, Source | None]:
        """Return which of two summands is what a site gave, and where the other is seen before the site runs."""
        for own, other in (both, both[::-1]) if both else ():
            mark = marks.get(id(own))
            if mark is None or mark.site is None or mark.trail or not _has_rows(mark.site, mark.shape):
                continue
            source = self._sources.of(other, mark.value.time)
            if source is not None:
                return own, source
        return None, None

    def _norm(self, args: Any, kwargs: Any) -> tuple[str, nn.Module] | None:
        """Return the module that a call of batch_norm is the whole of, in eval mode."""
        call = _BATCH_NORM.bind(*args, **kwargs)
        call.apply_defaults()
        given = call.arguments
        name, norm = self._norms.get(id(given["running_mean"]), (None, None))
        if name is None or norm is None:
            return None
        self._n_calls[name] += 1
        own = all(given[key] is getattr(norm, key, None) for key in ("running_var", "weight", "bias"))
        return (name, norm) if own and not given["training"] and given["eps"] == getattr(norm, "eps", None) else None


def _step(func: Any, rest: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[torch.Tensor], Any]:
    """Return a function that does to another tensor what was done to the first argument."""
    others = {key: value for key, value in kwargs.items() if key != "input"}
    return lambda tensor: func(tensor, *rest, **others)


def _named_kind(name: str, module: nn.Module, takes: Takes) -> Kind | None:
    """Return the kind of a module; a refusal comes with its name, and not for one that is left out."""
    try:
        return kind_of(module)
    except UnsupportedError as error:
        if not takes(name, module):
            return None
        msg = f"layer {name!r}: {error}"
        raise UnsupportedError(msg) from None


def _folds(norm: nn.Module, mark: _Mark, n_holders: Mapping[int, int]) -> bool:
    """Return whether a normalisation can be taken for a part of the site: it treats each row of its matrix as one."""
    weight, fold = getattr(mark.site, "weight", None), fold_of(norm)
    has_bias = getattr(mark.site, "bias", None) is not None
    if weight is None or fold is None or mark.normed or not can_fold(norm, has_bias):
        return False
    if not has_bias and n_holders[id(norm.bias)] != 1:  # beta takes up the bias, and is another's too
        return False
    axis = len(mark.shape) - (weight.dim() - 1)  # that of the rows in the site's output
    if not mark.trail:
        return axis == 1 and mark.shape[1] == len(fold.scale)
    rows = torch.arange(mark.shape[axis], dtype=torch.int32).reshape(-1, *[1] * (len(mark.shape) - axis - 1))
    rows = rows.expand(mark.shape).contiguous()
    for step in mark.trail:
        rows = step(rows)
    wanted = torch.arange(len(fold.scale), dtype=torch.int32).reshape(-1, *[1] * (rows.dim() - 2))
    return rows.shape[1] == len(fold.scale) == mark.shape[axis] and bool((rows == wanted).all())


def _has_rows(site: nn.Module, shape: tuple[int, ...]) -> bool:
    """Return whether the rows of a module's matrix lie along an axis of its outputs."""
    weight = getattr(site, "weight", None)
    return isinstance(weight, torch.Tensor) and len(shape) >= weight.dim() - 1


def _says_nothing(out: object, function: str) -> bool:
    """Return whether what a function returns tells of a tensor's shape or type alone, not of its entries."""
    if isinstance(out, tuple) and not isinstance(out, torch.Tensor):
        return all(_says_nothing(each, function) for each in out)
    if out is None:
        return function == "__get__"  # an attribute that is not there; else a function that writes, as __setitem__
    return isinstance(out, bool | int | str | torch.dtype | torch.device | torch.layout)
