"""What follows a layer: constants that are folded into it, and the activation behind them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...activations import Activation, get_activation
from .cones import activation_after
from .folding import Affine, core, step
from .graph import Graph, attribute, is_op
from .sites import Site

THIRTEEN = 13  # since which softmax is over one axis


@dataclass(frozen=True)
class Followed:
    """A layer's matrix and what follows it: R(s W x + t).

    ``end`` is a value that determines it, "" where none does: s W x + t is ``slope`` times that, plus ``shift``.
    ``norm`` tells whether a batch normalisation is in.
    """

    affine: Affine
    activation: Activation
    end: str
    norm: bool = False
    slope: float = 1.0
    shift: float = 0.0


def follow(graph: Graph, site: Site, rank: int) -> Followed:
    """Return what follows a layer whose output has ``rank`` axes; identity where a value is used twice."""
    assert site.kind is not None
    axis, n_out = (-1 if rank == 1 else site.kind.axis), site.kind.n_out
    identity = get_activation("identity")
    affine = core(graph, site.calls, n_out)
    if affine is None:  # something else is added: it stays as it is
        alpha = attribute(graph.nodes[site.calls[0]], "alpha", 1.0)
        return Followed(Affine(np.full(n_out, alpha), np.zeros(n_out)), identity, "")
    value, norm = graph.nodes[site.calls[0]].output[0], False
    if len(site.calls) > 1:
        return Followed(affine, identity, value)
    while (number := _only_use(graph, value)) is not None:
        node = graph.nodes[number]
        hard = _hard_sigmoid(graph, number, affine)
        if hard is not None:
            slope, shift = hard
            one = np.ones(n_out)
            behind = affine.then(Affine(slope * one, shift * one))
            return Followed(behind, get_activation("hard_sigmoid"), value, norm, slope, shift)
        found = step(graph, number, value, axis, rank, n_out)
        if found is None:
            break
        affine, value, norm = affine.then(found), node.output[0], norm or node.op_type == "BatchNormalization"
    activation = _softmax(graph, value, axis, rank) or activation_after(graph, value)
    return Followed(affine, activation or identity, value, norm)


def _only_use(graph: Graph, value: str) -> int | None:
    """Return the one node that a value is given to."""
    uses = graph.telling(value)
    return uses[0].node if len(uses) == 1 and value not in graph.outputs else None


def _hard_sigmoid(graph: Graph, number: int, affine: Affine) -> tuple[float, float] | None:
    """Return what makes hard-sigmoid's usual one of a node of another slope, as Paddle's is; None of other nodes."""
    node = graph.nodes[number]
    if not is_op(node, "HardSigmoid"):
        return None
    alpha, beta = attribute(node, "alpha", 0.2), attribute(node, "beta", 0.5)
    shift = 6.0 * beta - 3.0
    return (6.0 * alpha, shift) if alpha > 0 and (shift == 0.0 or affine.slot is not None) else None


def _softmax(graph: Graph, value: str, axis: int, rank: int) -> Activation | None:
    """Return softmax or log-softmax over the channels, where a value is given to that alone."""
    number = _only_use(graph, value)
    if number is None or axis != -1 or not is_op(graph.nodes[number], "Softmax", "LogSoftmax"):
        return None
    node = graph.nodes[number]
    over = attribute(node, "axis", -1 if graph.opset >= THIRTEEN else 1)
    if over not in (-1, rank - 1):
        return None
    return get_activation("softmax" if node.op_type == "Softmax" else "log_softmax")
