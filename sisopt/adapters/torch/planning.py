"""Which layers of a model are made sparse, and what each is taken for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from ...activations import Activation, MaxPool, get_activation
from ...errors import InvalidInputError
from ...network.layers import LayerInfo
from .kinds.base import Program
from .network import Layer
from .trace import Site, is_inside

Selector = str | type[nn.Module]


@dataclass(frozen=True)
class Choice:
    """Which layers a caller wants: globs of names or types of modules, and activations by glob."""

    include: tuple[Selector, ...]
    exclude: tuple[Selector, ...]
    activations: Mapping[str, Activation]

    def takes(self, name: str, module: nn.Module) -> bool:
        """Return whether a layer is to be made sparse."""
        return _selected(name, module, self.include) and not _selected(name, module, self.exclude)


def choice(
    include: Selector | Iterable[Selector] | None,
    exclude: Selector | Iterable[Selector] | None,
    activations: Mapping[str, str | Activation] | None,
) -> Choice:
    """Return a choice of validated selectors."""
    if activations is None:
        activations = {}
    if not (isinstance(activations, Mapping) and all(isinstance(glob, str) for glob in activations)):
        msg = f"activations must be a mapping of globs of layers' names to activations, got {activations!r}"
        raise InvalidInputError(msg)
    named = {}
    for glob, given in activations.items():
        try:
            named[glob] = value = get_activation(given)
        except InvalidInputError as error:
            error.args = (f"activations[{glob!r}]: {error}",)
            raise
        if isinstance(value, MaxPool):
            msg = (
                f"activations[{glob!r}]: windows of a max-pool count samples, and positions are drawn here: give the "
                "activation inside it"
            )
            raise InvalidInputError(msg)
    return Choice(_selectors("include", include), _selectors("exclude", exclude), named)


def plan_layers(model: nn.Module, sites: Sequence[Site], wanted: Choice, n_samples: int) -> list[Layer]:
    """Return the layers in order of execution, with the reason why one is excluded; every selector must match one.

    ``n_samples`` is how many samples of the network the traced batch held.
    """
    modules = dict(model.named_modules())
    _check_matches(modules, sites, wanted)
    owners = _owners(model, [site.name for site in sites])
    layers = []
    for site in sites:
        module = modules[site.name]
        programs = site.kind.programs(module)
        activation = next(
            (a for glob, a in wanted.activations.items() if fnmatchcase(site.name, glob)), site.activation
        )
        info = LayerInfo(
            site.name, type(module).__name__, _shape(programs), sum(p.weight.size for p in programs),
            _activation_name(site, programs, activation), _flops(site, programs, n_samples),
            _reason(site, module, wanted, owners, programs), sum(int((p.weight == 0).sum()) for p in programs),
        )  # fmt: skip
        layers.append(Layer(site, activation, info))
    return layers


def _reason(
    site: Site, module: nn.Module, wanted: Choice, owners: dict[tuple[int, ...], str], programs: list[Program]
) -> str:
    """Return why a layer stays dense, "" where it does not."""
    if not _selected(site.name, module, wanted.include):
        return "not included"
    if _selected(site.name, module, wanted.exclude):
        return "excluded"
    if site.n_calls == 0:
        return "never reached"
    if not any(program.weight.size for program in programs):
        return "no weights"
    for name, parameter in module.named_parameters():
        owner = owners[_place(parameter)]
        if owner != site.name:
            return f"shares its {name} with {owner or 'the model itself'}"
    return ""


def _owners(model: nn.Module, sites: Sequence[str]) -> dict[tuple[int, ...], str]:
    """Return the first that holds each parameter, by the parameter's place: modules that are no sites, then sites.

    What is inside of a site counts as the site; those that run come before those that never do.
    """
    holders = []
    for name, module in model.named_modules():
        rank = next((i for i, site in enumerate(sites) if name == site or is_inside(name, site)), -1)
        holders.append((rank, name if rank < 0 else sites[rank], module))
    owners: dict[tuple[int, ...], str] = {}
    for _, owner, module in sorted(holders, key=lambda holder: holder[0]):
        for parameter in module.parameters(recurse=False):
            owners.setdefault(_place(parameter), owner)
    return owners


def _place(parameter: nn.Parameter) -> tuple[int, ...]:
    """Return where a parameter begins in memory, which is what tied ones have in common."""
    return (parameter.data_ptr(),) if parameter.numel() else (0, id(parameter))


def _selected(name: str, module: nn.Module, selectors: tuple[Selector, ...]) -> bool:
    return any(fnmatchcase(name, s) if isinstance(s, str) else isinstance(module, s) for s in selectors)


def _selectors(argument: str, given: Selector | Iterable[Selector] | None) -> tuple[Selector, ...]:
    if given is None:
        return ("*",) if argument == "include" else ()
    found: tuple[Any, ...]
    if isinstance(given, str | type) or not isinstance(given, Iterable):
        found = (given,)
    else:
        found = tuple(given)
    for each in found:
        if not (isinstance(each, str) or (isinstance(each, type) and issubclass(each, nn.Module))):
            msg = f"{argument} takes globs of names and types of modules, got {each!r}"
            raise InvalidInputError(msg)
    return found


def _check_matches(modules: dict[str, nn.Module], sites: Sequence[Site], wanted: Choice) -> None:
    names = [site.name for site in sites]
    if not names:
        msg = "model has no layers that can be made sparse, such as Linear, convolutions, attention or LSTM"
        raise InvalidInputError(msg)
    known = f"the model's layers are {', '.join(names)}"
    # what is excluded may be of no kind that we know
    for argument, selectors, among in (("include", wanted.include, names), ("exclude", wanted.exclude, modules)):
        for each in selectors:
            if not any(_selected(name, modules[name], (each,)) for name in among):
                others = {type(module).__name__ for name, module in modules.items() if _selected(name, module, (each,))}
                what = f"only {', '.join(sorted(others))}, not made sparse" if others else "no layer"
                msg = f"{argument}: {each!r} matches {what}; {known}"
                raise InvalidInputError(msg)
    if not any(wanted.takes(name, modules[name]) for name in names):
        msg = f"include and exclude leave no layer: {known}"
        raise InvalidInputError(msg)
    for glob in wanted.activations:
        if not any(fnmatchcase(name, glob) for name in names):
            msg = f"activations: {glob!r} matches no layer; {known}"
            raise InvalidInputError(msg)


def _shape(programs: list[Program]) -> tuple[int, ...]:
    shapes = {program.weight.shape for program in programs}
    if len(programs) == 1:
        return programs[0].weight.shape
    return (len(programs), *shapes.pop()) if len(shapes) == 1 else (sum(p.weight.size for p in programs),)


def _activation_name(site: Site, programs: list[Program], activation: Activation) -> str:
    steps = ("batch norm", site.norm is not None), ("sum", site.shift is not None), (activation.name, True)
    after = ", ".join(step for step, taken in steps if taken)
    return "/".join(dict.fromkeys(after if p.activation is None else p.activation for p in programs))


def _flops(site: Site, programs: list[Program], n_samples: int) -> int:
    """Return the multiply-adds of a layer for one sample of the network."""
    weights = sum(program.weight.size for program in programs)
    return round(weights * site.positions * site.n_calls / max(n_samples, 1))
