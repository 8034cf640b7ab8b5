"""Convolutions: every place of the output is a position, one program a group, columns in-channel x kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch.nn import functional

from .base import Call, Floats, Program
from .intercept import arguments_of
from .parameters import read, write

_FUNCTIONS: dict[int, Callable[..., Any]] = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_NAMES = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


@dataclass(frozen=True)
class Axis:
    """An axis of images: at ``place`` of the output, ``tap`` of the kernel meets a coordinate of the input, or none.

    The coordinate is (place * up + tap * step + offset) / down, where that is whole and in [0, size).
    """

    size: int
    n_places: int
    n_taps: int
    up: int
    step: int
    offset: int
    down: int = 1

    def met(self, places: torch.Tensor) -> torch.Tensor:
        """Return the coordinates that the taps meet, (len(places), n_taps); ``size`` where there is none."""
        taps = torch.arange(self.n_taps, device=places.device) * self.step + self.offset
        spread = places[:, None] * self.up + taps
        source = spread.div(self.down, rounding_mode="floor")
        return source.where((spread % self.down == 0) & (source >= 0) & (source < self.size), self.size)


class PlaceCall:
    """A call whose positions are batch x places of the output, in that order; the drawn ones alone are gathered.

    Parameters
    ----------
    images : tensor (n_batch, n_channels, *sizes)
        The input.
    axes : sequence of Axis
        Those of the places.
    n_groups : int
        Number of programs, each with its share of the channels.
    """

    def __init__(self, images: torch.Tensor, axes: Sequence[Axis], n_groups: int) -> None:
        self._images, self._axes = images, axes
        self._n_channels = images.shape[1] // n_groups
        self._shape = (len(images), *(axis.n_places for axis in axes))
        self.n_positions = int(torch.Size(self._shape).numel())
        self._drawn: tuple[torch.Tensor, torch.Tensor] | None = None  # the last positions, and what was gathered there

    @cached_property
    def _vectors(self) -> torch.Tensor:
        """Make the input (n_batch, *sizes + 1, n_channels), zero at the end of every axis: a tap gathers a vector."""
        dims = self._images.dim() - 2
        return functional.pad(self._images, (0, 1) * dims).movedim(1, -1).contiguous()

    def inputs(self, program: int, at: torch.Tensor) -> torch.Tensor:
        """Return the patches of a group; those of all groups are gathered when the first is asked for."""
        if self._drawn is None or self._drawn[0] is not at:
            self._drawn = at, self._patches(at)
        first = program * self._n_channels
        patches = self._drawn[1][..., first : first + self._n_channels]
        return patches.movedim(-1, 1).flatten(1)  # (n, n_channels * n_taps of all axes)

    def _patches(self, at: torch.Tensor) -> torch.Tensor:
        """Gather (len(at), *n_taps, n_channels of all groups)."""
        batch, *places = torch.unravel_index(at.to(self._images.device), self._shape)
        index = [batch.reshape(-1, *(1,) * len(places))]
        for number, (axis, place) in enumerate(zip(self._axes, places, strict=True)):
            shape = [1] * len(places)
            shape[number] = axis.n_taps
            index.append(axis.met(place).reshape(-1, *shape))  # (n, 1, .., n_taps, .., 1)
        return self._vectors[tuple(index)]

    def kept(self, padding: torch.Tensor) -> torch.Tensor | None:
        """Return the padding flattened where the places are tokens, those of a line that keeps its length."""
        return padding.reshape(-1) if self._shape == padding.shape else None


class Convolution:
    """`torch.nn.Conv1d`, 2d and 3d, and classes derived from them that pad in their own way."""

    def programs(self, module: Any) -> list[Program]:
        """Return a program for every group."""
        found = []
        for group in range(module.groups):
            label = "" if module.groups == 1 else f"group{group}"
            bias = None if module.bias is None else read(module.bias[self._outputs(module, group)])
            found.append(Program(label, ("weight",), read(self._kernels(module, group).flatten(1)), bias))
        return found

    def call(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Return the call; the input is padded as the module pads it."""
        dims = module.weight.dim() - 2
        found = arguments_of(_FUNCTIONS[dims], _NAMES, module, args, kwargs)
        images = batched(found["input"], dims)
        padding = found.get("padding", 0)
        strides, dilations = per_axis(found.get("stride", 1), dims), per_axis(found.get("dilation", 1), dims)
        axes = []
        for number, (n_taps, stride, dilation) in enumerate(
            zip(module.weight.shape[2:], strides, dilations, strict=True)
        ):
            size, reach = images.shape[2 + number], dilation * (n_taps - 1)
            before, both = (reach // 2, reach) if padding == "same" else (0, 0)
            if not isinstance(padding, str):
                before = per_axis(padding, dims)[number]
                both = 2 * before
            n_places = (size + both - reach - 1) // stride + 1
            axes.append(Axis(size, n_places, n_taps, up=stride, step=dilation, offset=-before))
        return PlaceCall(images, axes, module.groups)

    def assign(self, module: Any, number: int, weight: Floats, bias: Floats | None) -> None:
        """Write the kernels and the bias of a group."""
        write(self._kernels(module, number), weight)
        if bias is not None:
            write(module.bias[self._outputs(module, number)], bias)

    def _outputs(self, module: Any, group: int) -> slice:
        """Return the output channels of a group."""
        size = module.out_channels // module.groups
        return slice(group * size, (group + 1) * size)

    def _kernels(self, module: Any, group: int) -> torch.Tensor:
        """Return the kernels (n_out, n_in, *kernel) of a group, a view of the parameter."""
        weight: torch.Tensor = module.weight[self._outputs(module, group)]
        return weight


def batched(images: torch.Tensor, dims: int) -> torch.Tensor:
    """Return images with their axis of batches: a single image may come without."""
    return images if images.dim() == dims + 2 else images[None]


def per_axis(value: int | Sequence[int], dims: int) -> tuple[int, ...]:
    """Return a setting for every axis, given once for all or one by one."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * dims if len(values) == 1 else values
