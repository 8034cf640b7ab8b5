"""Nodes as matrices: how a constant is one or more of them, and what these are multiplied by.

A call of a node offers *positions*: the samples of its matrices, vectors or places of an image, of which some are
drawn. Matrices are (n_out, n_in), in float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx

from ...errors import UnsupportedError
from .graph import Array, attribute

Floats = npt.NDArray[np.float32]
Places = npt.NDArray[np.int64]


class Call(Protocol):
    """One call of a node, seen as samples of its matrices."""

    n_positions: int

    def inputs(self, matrix: int, at: Places) -> Floats:
        """Return the inputs (len(at), n_in) of a matrix at some positions."""

    def real(self, padding: npt.NDArray[np.bool_] | None) -> Places | None:
        """Return the positions that are no padding, given where tokens (n_batch, length) count; None: all are real."""


class Kind(Protocol):
    """How a node's weight is taken apart and put together again."""

    axis: int  # of the node's output along which its channels lie, counted from the end
    n_out: int  # channels of the output

    def matrices(self, weight: Array) -> list[Floats]:
        """Return the matrices of the weight, copies."""

    def weight(self, matrices: Sequence[Array]) -> Array:
        """Return the weight that has these matrices."""

    def call(self, values: Array) -> Call:
        """Return a call with this input."""

    def outputs(self, values: Array) -> Array:
        """Return an output, of the shape of the node's, as (n_positions, n_out)."""


class Matrix:
    """MatMul and Gemm: every vector of the input along ``inner``, its last axis (-1) or the one before, is a position.

    ``stored`` is the shape of the weight, which is (n_in, n_out) where ``transposed``.
    """

    def __init__(self, stored: Sequence[int], *, transposed: bool, inner: int, axis: int) -> None:
        self._transposed, self._inner, self.axis = transposed, inner, axis
        self.n_out = stored[1] if transposed else stored[0]

    def matrices(self, weight: Array) -> list[Floats]:
        """Return the only one."""
        return [np.array(weight.T if self._transposed else weight, np.float32, order="C")]

    def weight(self, matrices: Sequence[Array]) -> Array:
        """Return the weight as it is stored."""
        (found,) = matrices
        return np.ascontiguousarray(found.T if self._transposed else found)

    def call(self, values: Array) -> Call:
        """Return the call."""
        return _Vectors(_last(values, self._inner))

    def outputs(self, values: Array) -> Array:
        """Return vectors along the axis of channels."""
        return _last(values, self.axis).reshape(-1, self.n_out)


class _Vectors:
    """A call whose positions are the vectors along the last axis of an array."""

    def __init__(self, vectors: Array) -> None:
        self._vectors = vectors
        self.n_positions = vectors.size // vectors.shape[-1] if vectors.shape[-1] else 0

    def inputs(self, matrix: int, at: Places) -> Floats:
        """Return the drawn vectors; the one matrix is number 0."""
        return self._vectors.reshape(-1, self._vectors.shape[-1])[at].astype(np.float32, copy=False)

    def real(self, padding: npt.NDArray[np.bool_] | None) -> Places | None:
        """Return the real ones where the vectors are tokens or parts of these, (n_batch, length, ...) or flat."""
        tokens = self._vectors.shape[:-1]
        if padding is not None and tokens == (padding.size,):
            return np.flatnonzero(padding)
        if padding is None or tokens[:2] != padding.shape or tokens[1] in tokens[2:]:  # tokens may be behind the heads
            return None
        return np.flatnonzero(np.repeat(padding, math.prod(tokens[2:])))


def _last(values: Array, axis: int) -> Array:
    """Return an array with an axis moved to the end; a vector has only that one."""
    return values if values.ndim == 1 else np.moveaxis(values, axis, -1)


class Convolution:
    """Conv: every place of the output is a position; a matrix for every group, with columns in-channel x kernel.

    ``stored`` is the shape of the weight, (n_out, n_in of a group, *kernel).
    """

    def __init__(self, node: onnx.NodeProto, stored: Sequence[int]) -> None:
        dims = len(stored) - 2
        self._stored = tuple(stored)
        self._groups: int = attribute(node, "group", 1)
        self._strides: Sequence[int] = attribute(node, "strides", [1] * dims)
        self._dilations: Sequence[int] = attribute(node, "dilations", [1] * dims)
        self._pads: Sequence[int] = attribute(node, "pads", [0] * 2 * dims)
        self._auto: str = attribute(node, "auto_pad", "NOTSET")
        self.axis, self.n_out = -dims - 1, stored[0]

    def matrices(self, weight: Array) -> list[Floats]:
        """Return one for every group."""
        return [np.array(each, np.float32) for each in weight.reshape(self._groups, self.n_out // self._groups, -1)]

    def weight(self, matrices: Sequence[Array]) -> Array:
        """Return the kernels of all groups."""
        return np.concatenate(matrices).reshape(self._stored)

    def call(self, values: Array) -> Call:
        """Return the call; the input is padded as the node pads it."""
        axes = [self._axis(i, size) for i, size in enumerate(values.shape[2:])]
        return _Patches(values, axes, self._groups)

    def outputs(self, values: Array) -> Array:
        """Return the channels at every place."""
        return np.moveaxis(values, 1, -1).reshape(-1, self.n_out)

    def _axis(self, i: int, size: int) -> _Axis:
        """Return how the kernel moves along an axis of images."""
        taps, stride, dilation = self._stored[2 + i], self._strides[i], self._dilations[i]
        reach = dilation * (taps - 1)
        if self._auto in ("SAME_UPPER", "SAME_LOWER"):
            n_places = math.ceil(size / stride)
            both = max(0, (n_places - 1) * stride + reach + 1 - size)
            before = both // 2 if self._auto == "SAME_UPPER" else both - both // 2
        else:
            dims = len(self._stored) - 2
            before, after = (0, 0) if self._auto == "VALID" else (self._pads[i], self._pads[dims + i])
            n_places = (size + before + after - reach - 1) // stride + 1
        return _Axis(size, n_places, taps, stride, dilation, before)


@dataclass(frozen=True)
class _Axis:
    """An axis of images: at ``place`` of the output, ``tap`` meets place * stride + tap * dilation - before."""

    size: int
    n_places: int
    n_taps: int
    stride: int
    dilation: int
    before: int

    def met(self, places: Places) -> Places:
        """Return the coordinates that the taps meet, (len(places), n_taps); ``size`` where they are outside."""
        found = places[:, None] * self.stride + np.arange(self.n_taps) * self.dilation - self.before
        return np.where((found >= 0) & (found < self.size), found, self.size)


class _Patches:
    """A call whose positions are batch x places of the output, in that order; the drawn ones alone are gathered."""

    def __init__(self, images: Array, axes: Sequence[_Axis], n_groups: int) -> None:
        self._axes = axes
        self._n_channels = images.shape[1] // n_groups
        self._shape = (len(images), *(axis.n_places for axis in axes))
        self.n_positions = math.prod(self._shape)
        self._images = images
        self._drawn: tuple[Places, Array] | None = None  # the last positions, and what was gathered there

    def inputs(self, matrix: int, at: Places) -> Floats:
        """Return the patches of a group; those of all groups are gathered when the first is asked for."""
        if self._drawn is None or self._drawn[0] is not at:
            self._drawn = at, self._gathered(at)
        first = matrix * self._n_channels
        patches = self._drawn[1][..., first : first + self._n_channels]
        return np.moveaxis(patches, -1, 1).reshape(len(at), -1).astype(np.float32, copy=False)

    def _gathered(self, at: Places) -> Array:
        """Gather (len(at), *n_taps, n_channels of all groups)."""
        # zero at the end of every axis, for the taps that are outside
        padded = np.pad(self._images, ((0, 0), (0, 0), *[(0, 1)] * len(self._axes)))
        batch, *places = np.unravel_index(at, self._shape)
        index: list[Any] = [batch.reshape(-1, *(1,) * len(places))]
        for number, (axis, place) in enumerate(zip(self._axes, places, strict=True)):
            shape = [1] * len(places)
            shape[number] = axis.n_taps
            index.append(axis.met(place).reshape(-1, *shape))
        found: Array = np.moveaxis(padded, 1, -1)[tuple(index)]
        return found

    def real(self, padding: npt.NDArray[np.bool_] | None) -> Places | None:
        """Return the real ones where the places are tokens, those of a line that keeps its length."""
        return None if padding is None or self._shape != padding.shape else np.flatnonzero(padding)


def kind_of(node: onnx.NodeProto, index: int, stored: Sequence[int]) -> Kind:
    """Return the kind of a node whose input ``index`` is a weight of a shape.

    Raises
    ------
    UnsupportedError
        If it is none that we know; the message says why.
    """
    if node.op_type == "Conv":
        if index != 1 or len(stored) < 3:
            msg = f"its weight has {len(stored)} axes, those of a convolution at least 3"
            raise UnsupportedError(msg)
        return Convolution(node, stored)
    if len(stored) != 2:
        msg = f"its weight has {len(stored)} axes, a matrix 2"
        raise UnsupportedError(msg)
    if node.op_type == "MatMul":
        side = -1 if index == 1 else -2
        return Matrix(stored, transposed=index == 1, inner=side, axis=side)
    if index == 0:
        msg = "its constant is the first factor"
        raise UnsupportedError(msg)
    inner = -2 if attribute(node, "transA", 0) else -1
    return Matrix(stored, transposed=not attribute(node, "transB", 0), inner=inner, axis=-1)
