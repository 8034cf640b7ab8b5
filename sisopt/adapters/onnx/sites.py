"""Which nodes of a graph are layers, and why others that hold weights stay dense."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import onnx

from ...errors import UnsupportedError
from .graph import INSIDE, STANDARD, Graph, Use, inner_nodes, is_op, label_of
from .kinds import Kind, kind_of

LAYERS = {"MatMul", "Gemm", "Conv"}
FLOATS = {"float16", "float32", "float64"}
OTHERS = {"ConvTranspose", "LSTM", "GRU", "RNN", "DeformConv"}
QUANTIZED = {
    *("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "QGemm", "QAttention", "MatMulNBits"),
    *("DynamicQuantizeMatMul", "MatMulIntegerToFloat", "DynamicQuantizeLSTM", "MatMulBnb4", "GatherBlockQuantized"),
}
FUSED = {"FusedMatMul", "FusedGemm", "FusedConv", "NhwcFusedConv", "Attention", "EmbedLayerNormalization"}
QUANTIZED_REASON = "quantized: make the float model sparse and quantize it afterwards"


@dataclass(frozen=True)
class Site:
    """A node whose constant is a layer's weight, or several that share it; ``reason`` says why it stays dense.

    ``calls`` are the nodes, in order; of each, input ``weight`` is the constant and ``data`` what it is multiplied by.
    """

    name: str
    op: str
    shape: tuple[int, ...]
    calls: tuple[int, ...]
    weight: int = 1
    data: int = 0
    kind: Kind | None = None
    reason: str = ""

    @property
    def places(self) -> list[Use]:
        """Where the weight is used."""
        return [Use(number, self.weight) for number in self.calls]


def find_sites(graph: Graph) -> list[Site]:
    """Return what holds weights, in the order of the nodes, under names of its own."""
    found: list[Site] = []
    shared: dict[tuple[object, ...], int] = {}
    for number, node in enumerate(graph.nodes):
        site = _site(graph, number, node)
        if site is None:
            found.extend(_inside(graph, number, node))
            continue
        key = (node.op_type, node.domain, *node.input[1:3], *(a.SerializeToString() for a in node.attribute))
        if site.kind is not None and site.weight == 1 and key in shared:  # the same layer, called again
            first = found[shared[key]]
            found[shared[key]] = replace(first, calls=(*first.calls, number))
            continue
        shared.setdefault(key, len(found))
        found.append(site)
    return _named([_sole(graph, site) for site in found])


def _site(graph: Graph, number: int, node: onnx.NodeProto) -> Site | None:
    """Return a node as a site, None of one that has no weights."""
    name = node.name
    if node.op_type in QUANTIZED:
        return Site(name, node.op_type, _stored(graph, node), (number,), reason=QUANTIZED_REASON)
    if node.domain not in STANDARD:
        reason = f"an operator of {node.domain}: make the model sparse before it is optimised"
        fused = node.op_type in FUSED and any(_is_weight(graph, each) for each in node.input)
        return Site(name, node.op_type, _stored(graph, node), (number,), reason=reason) if fused else None
    if node.op_type in OTHERS:
        return Site(name, node.op_type, _stored(graph, node), (number,), reason=f"{node.op_type} stays dense here")
    if node.op_type not in LAYERS:
        return None
    factors = [index for index, each in enumerate(node.input[:2]) if each in graph.fixed]
    if len(factors) == 2 or (not factors and node.op_type == "MatMul"):
        return None
    index = factors[0] if factors else 1
    weight = node.input[index]
    if not graph.is_constant(weight):
        return Site(name, node.op_type, (), (number,), index, 1 - index, reason=_origin(graph, weight))
    values = graph.constant(weight)
    assert values is not None
    site = Site(name or graph.source(weight), node.op_type, values.shape, (number,), index, 1 - index)
    if not values.size:
        return replace(site, reason="no weights")
    if values.dtype.name not in FLOATS:
        return replace(site, reason=f"its weight is {values.dtype.name}")
    try:
        return replace(site, kind=kind_of(node, index, values.shape))
    except UnsupportedError as error:
        return replace(site, reason=str(error))


def _origin(graph: Graph, weight: str) -> str:
    """Return why a weight that is no constant cannot be made sparse."""
    number = graph.producer.get(weight)
    if number is None:
        return "its weight is an input of the model" if weight not in graph.sparse else "its weight is stored sparse"
    op = graph.nodes[number].op_type
    return QUANTIZED_REASON if op == "DequantizeLinear" else f"its weight is computed by {op}"


def _inside(graph: Graph, number: int, node: onnx.NodeProto) -> Iterator[Site]:
    """Yield the layers in the subgraphs of a node, such as the branches of an If."""
    for inner in inner_nodes(node):
        if not is_op(inner, LAYERS):
            continue
        weight = inner.input[1]
        values = graph.constant(weight) if graph.is_constant(weight) else None
        if values is not None or inner.op_type != "MatMul":
            reason = f"inside of {label_of(node)}, {node.op_type}"
            yield Site(inner.name, inner.op_type, () if values is None else values.shape, (number,), INSIDE, INSIDE,
                       reason=reason)  # fmt: skip


def _sole(graph: Graph, site: Site) -> Site:
    """Return a site with the reason, if there is one, that its weight is used elsewhere too."""
    if site.kind is None:
        return site
    name = graph.nodes[site.calls[0]].input[site.weight]
    if graph.is_sole(name, site.places):
        return site
    return replace(site, kind=None, reason=f"shares its weight with {graph.sharer(name, site.places)}")


def _is_weight(graph: Graph, name: str) -> bool:
    return graph.is_tensor(name) and len(graph.tensor(name).dims) >= 2


def _stored(graph: Graph, node: onnx.NodeProto) -> tuple[int, ...]:
    """Return the shape of the first constant of a node that has two axes or more."""
    return next((tuple(graph.tensor(name).dims) for name in node.input if _is_weight(graph, name)), ())


def _named(sites: Sequence[Site]) -> list[Site]:
    """Return sites under names that differ: a number comes after one that is there already."""
    taken: Counter[str] = Counter()
    found = []
    for site in sites:
        name = site.name or site.op
        taken[name] += 1
        found.append(replace(site, name=name if taken[name] == 1 else f"{name}:{taken[name]}"))
    return found
