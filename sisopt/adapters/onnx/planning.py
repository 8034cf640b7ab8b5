"""Which layers of a graph are made sparse, and what each is taken for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from ...activations import Activation, get_activation
from ...errors import InvalidInputError, UnsupportedError
from ...network.layers import LayerInfo
from .following import Followed, follow
from .graph import Array, Changes, Graph
from .passes import Passes
from .sites import Site

Globs = str | Iterable[str]


@dataclass(frozen=True)
class Layer:
    """A layer that is planned: where it stands in the graph, and what it is taken for; ``followed``: None if dense."""

    site: Site
    info: LayerInfo
    followed: Followed | None
    input_bytes: int = 0  # of its first call


@dataclass(frozen=True)
class Choice:
    """Which layers a caller wants, by globs of names or of types of nodes, and activations by glob of names."""

    include: tuple[str, ...]
    exclude: tuple[str, ...]
    activations: Mapping[str, Activation]

    def reason(self, site: Site) -> str:
        """Return why a layer is left out, "" where it is not."""
        if not any(_selects(glob, site) for glob in self.include):
            return "not included"
        return "excluded" if any(_selects(glob, site) for glob in self.exclude) else ""


def choice(include: Globs | None, exclude: Globs | None, activations: Mapping[str, str | Activation] | None) -> Choice:
    """Return a choice of validated globs."""
    if not isinstance(activations, Mapping | None):
        msg = f"activations must be a mapping of globs of names to activations, got {type(activations).__name__}"
        raise InvalidInputError(msg)
    named = {glob: get_activation(value) for glob, value in (activations or {}).items()}
    return Choice(_globs("include", include, ("*",)), _globs("exclude", exclude, ()), named)


def plan_layers(graph: Graph, sites: Sequence[Site], wanted: Choice, feed: Mapping[str, Array]) -> list[Layer]:
    """Return the layers in order of execution, with the reason why one stays dense; every glob must match one.

    ``feed`` is a batch: the shapes of values are those that it has.

    Raises
    ------
    UnsupportedError
        If no layer is left that could be made sparse.
    """
    _check_matches(sites, wanted)
    chosen = [replace(site, reason=site.reason or wanted.reason(site)) for site in sites]
    if not any(not site.reason for site in chosen):
        told = "; ".join(f"{site.name}: {site.reason}" for site in chosen[:3])
        more = f"; and {len(chosen) - 3} more" if len(chosen) > 3 else ""
        msg = f"no layer of the model can be made sparse ({told}{more})"
        raise UnsupportedError(msg)
    targets = [(data_of(graph, site), site.calls[0]) for site in chosen if not site.reason]
    passes = Passes(graph, Changes(), [feed], targets, 1 << 62, 1)
    n_samples = batch_size(feed)
    layers = []
    for site in chosen:
        if site.reason:
            layers.append(Layer(site, _info(site), None))
            continue
        name = data_of(graph, site)
        (values,) = passes.reach([name], site.calls[0])
        layers.append(_layer(graph, site, wanted, values[name], n_samples))
    return layers


def data_of(graph: Graph, site: Site, call: int = 0) -> str:
    """Return the value that a call of a layer multiplies its matrix by."""
    name: str = graph.nodes[site.calls[call]].input[site.data]
    return name


def batch_size(feed: Mapping[str, Array]) -> int:
    """Return how many samples a batch holds: the first dimension of its first input that has one, 1 without any."""
    return next((len(values) for values in feed.values() if values.ndim), 1)


def _layer(graph: Graph, site: Site, wanted: Choice, values: Array, n_samples: int) -> Layer:
    """Return a layer that is made sparse, given the input of its first call."""
    assert site.kind is not None
    followed = follow(graph, site, values.ndim)
    own = next((a for glob, a in wanted.activations.items() if fnmatchcase(site.name, glob)), followed.activation)
    followed = replace(followed, activation=own)
    products = math.prod(site.shape) * site.kind.call(values).n_positions * len(site.calls)
    name = f"batch norm, {own.name}" if followed.norm else own.name
    weight = graph.constant(graph.nodes[site.calls[0]].input[site.weight])
    n_zeros = 0 if weight is None else int((weight == 0).sum())
    return Layer(site, _info(site, name, round(products / max(n_samples, 1)), n_zeros), followed, values.nbytes)


def _info(site: Site, activation: str = "", flops: int = 0, n_zeros: int = 0) -> LayerInfo:
    size = math.prod(site.shape) if site.shape else 0
    return LayerInfo(site.name, site.op, site.shape, size, activation, flops, site.reason, n_zeros)


def _globs(argument: str, given: Globs | None, default: tuple[str, ...]) -> tuple[str, ...]:
    if given is None:
        return default
    found = (given,) if isinstance(given, str) or not isinstance(given, Iterable) else tuple(given)
    for each in found:
        if not isinstance(each, str):
            msg = f"{argument} takes globs of names and of types of nodes, such as 'Conv', got {each!r}"
            raise InvalidInputError(msg)
    return found


def _selects(glob: str, site: Site) -> bool:
    return fnmatchcase(site.name, glob) or fnmatchcase(site.op, glob)


def _check_matches(sites: Sequence[Site], wanted: Choice) -> None:
    if not sites:
        msg = (
            "model has no layers that can be made sparse: no Gemm, MatMul or Conv with a constant; if they are in "
            "functions of the model, inline these with onnx.inliner.inline_local_functions first"
        )
        raise UnsupportedError(msg)
    known = f"the model's layers are {', '.join(site.name for site in sites)}"
    for argument, globs in (("include", wanted.include), ("exclude", wanted.exclude)):
        for glob in globs:
            if not any(_selects(glob, site) for site in sites):
                msg = f"{argument}: {glob!r} matches no layer; {known}"
                raise InvalidInputError(msg)
    for glob in wanted.activations:
        if not any(fnmatchcase(site.name, glob) for site in sites):
            msg = f"activations: {glob!r} matches no layer; {known}"
            raise InvalidInputError(msg)
