"""What is affine behind a layer's matrix, as part of it: folded in to solve the layer, taken out again after.

A bias, a batch normalisation and products with constants, one value a channel or one for all, make z = s W x + t of
what the matrix W gives. What is found for s W and t is divided by s again; t goes into one of these constants, the
first of them that is added.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .graph import Array, Graph, Use, attribute, is_op

Doubles = npt.NDArray[np.float64]

PLAIN = 7  # the first set of operators that broadcasts as NumPy does


class Slot(NamedTuple):
    """Inputs of nodes that are one constant, added to the layer's outputs along ``axis``, counted from the end.

    ``factor`` (n_out,) is by how much z changes with it.
    """

    places: tuple[Use, ...]
    factor: Doubles
    axis: int


@dataclass(frozen=True)
class Affine:
    """z = s W x + t: ``scale`` and ``offset``, (n_out,). Without a slot there is no bias, and t = 0."""

    scale: Doubles
    offset: Doubles
    slot: Slot | None = None

    def then(self, step: Affine) -> Affine:
        """Return this one followed by another; its own slot counts where it has one."""
        slot = step.slot if self.slot is None else self.slot._replace(factor=self.slot.factor * step.scale)
        return Affine(self.scale * step.scale, self.offset * step.scale + step.offset, slot)

    @property
    def bias(self) -> npt.NDArray[np.float32] | None:
        """The bias that the layer is solved with."""
        return None if self.slot is None else self.offset.astype(np.float32)

    def folded(self, matrix: Array, rows: slice) -> npt.NDArray[np.float32]:
        """Return some rows of s W."""
        found: npt.NDArray[np.float32] = (self.scale[rows, None] * matrix).astype(np.float32)
        return found

    def unfolded(self, matrix: Array, rows: slice) -> Doubles:
        """Return some rows of W from those of s W."""
        found: Doubles = _inverse(self.scale[rows])[:, None] * matrix
        return found

    def slot_value(self, graph: Graph, bias: Array) -> Array:
        """Return what the constant of the slot has to be for a bias, in its dtype and, if there is room, its shape."""
        assert self.slot is not None
        dense = _constant(graph, self.slot.places[0])
        size = len(self.offset)
        found = dense.reshape(-1) + _inverse(self.slot.factor) * (bias.astype(np.float64) - self.offset)
        shape = dense.shape if dense.size == size else (size, *(1,) * (-self.slot.axis - 1))
        with np.errstate(over="ignore"):  # who takes it looks for what is beyond its dtype
            return found.reshape(shape).astype(dense.dtype)


def core(graph: Graph, calls: tuple[int, ...], n_out: int) -> Affine | None:
    """Return what a MatMul, Gemm or Conv adds by itself, the same in all its calls; None: no constant bias."""
    node = graph.nodes[calls[0]]
    one, zero = np.ones(n_out), np.zeros(n_out)
    alpha, beta = (attribute(node, name, 1.0) if node.op_type == "Gemm" else 1.0 for name in ("alpha", "beta"))
    scale = one * alpha
    if node.op_type == "MatMul" or len(node.input) < 3 or not node.input[2] or beta == 0:
        return Affine(scale, zero)
    values = _channels(graph, node.input[2], -1, n_out, 2)
    if values is None:
        return None
    slot = Slot(tuple(Use(number, 2) for number in calls), one * beta, -1)
    return Affine(scale, beta * values, slot)


def step(graph: Graph, number: int, value: str, axis: int, rank: int, n_out: int) -> Affine | None:
    """Return what a node does to a value of so many axes, if it is affine with constants; None otherwise."""
    node = graph.nodes[number]
    if is_op(node, "BatchNormalization"):
        return _normalisation(graph, number, value, axis, rank, n_out)
    if not is_op(node, "Add", "Sub", "Mul", "Div") or len(set(node.input)) != 2:
        return None
    index = 1 - list(node.input).index(value)
    values = _channels(graph, node.input[index], axis, n_out, rank) if graph.opset >= PLAIN else None
    if values is None:
        return None
    one, zero = np.ones(n_out), np.zeros(n_out)
    if node.op_type in ("Add", "Sub"):
        sign = -1.0 if node.op_type == "Sub" and index == 1 else 1.0
        scale = -one if node.op_type == "Sub" and index == 0 else one
        return Affine(scale, sign * values, Slot((Use(number, index),), sign * one, axis))
    if node.op_type == "Mul":
        return Affine(values, zero)
    return Affine(1.0 / values, zero) if index == 1 and values.all() else None


def _normalisation(graph: Graph, number: int, value: str, axis: int, rank: int, n_out: int) -> Affine | None:
    """Return what a batch normalisation by constant statistics does to channels on the second axis."""
    node = graph.nodes[number]
    by_batch = attribute(node, "training_mode", 0) or not attribute(node, "spatial", 1)
    if graph.opset < PLAIN or by_batch or axis + rank != 1 or node.input[0] != value or any(node.output[1:]):
        return None
    found = [graph.constant(name) for name in node.input[1:5]]
    if any(each is None or each.size != n_out for each in found):
        return None
    gamma, beta, mean, variance = (each.astype(np.float64) for each in found if each is not None)
    s = gamma / np.sqrt(variance + attribute(node, "epsilon", 1e-5))
    return Affine(s, beta - mean * s, Slot((Use(number, 2),), np.ones(n_out), -1))


def _channels(graph: Graph, name: str, axis: int, n_out: int, rank: int) -> Doubles | None:
    """Return a constant that has one value a channel, or one for all, as (n_out,); None of any other value."""
    values = graph.constant(name) if graph.is_constant(name) else None
    if values is None or values.dtype.kind != "f" or values.ndim > rank:
        return None
    if values.size != 1 and (values.size != n_out or values.ndim < -axis or values.shape[axis] != n_out):
        return None
    return np.broadcast_to(values.reshape(-1), n_out).astype(np.float64)


def _constant(graph: Graph, place: Use) -> Array:
    values = graph.constant(graph.nodes[place.node].input[place.input])
    assert values is not None
    return values


def _inverse(values: Doubles) -> Doubles:
    """Return 1 / values, 0 where that is none: a channel that nothing of the matrix comes through."""
    return np.divide(1.0, values, out=np.zeros_like(values), where=values != 0)
