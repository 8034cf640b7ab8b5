"""Transposed convolutions: every place of the output is a position, one program a group.

A place of the output meets only the taps of its phase (its coordinates modulo the stride). The program of a group has
all taps as columns, and zeros in the inputs for those of other phases. So the phases share one bias and one budget, as
they do in the module, and phases may have different numbers of taps; the Gram matrix is block diagonal by phase.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from .base import Call
from .convolution import Axis, Convolution, PlaceCall, batched, per_axis
from .intercept import arguments_of

_FUNCTIONS: dict[int, Callable[..., Any]] = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}
_NAMES = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")


class TransposedConvolution(Convolution):
    """`torch.nn.ConvTranspose1d`, 2d and 3d."""

    def call(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Return the call, of the output size that the module chose."""
        dims = module.weight.dim() - 2
        found = arguments_of(_FUNCTIONS[dims], _NAMES, module, args, kwargs)
        images = batched(found["input"], dims)
        settings = [
            per_axis(found.get(name, default), dims)
            for name, default in (("stride", 1), ("padding", 0), ("output_padding", 0), ("dilation", 1))
        ]
        axes = []
        for number, (n_taps, stride, padding, extra, dilation) in enumerate(
            zip(module.weight.shape[2:], *settings, strict=True)
        ):
            size = images.shape[2 + number]
            n_places = (size - 1) * stride - 2 * padding + dilation * (n_taps - 1) + extra + 1
            axes.append(Axis(size, n_places, n_taps, up=1, step=-dilation, offset=padding, down=stride))
        return PlaceCall(images, axes, module.groups)

    def _kernels(self, module: Any, group: int) -> torch.Tensor:
        """Return the kernels (n_out, n_in, *kernel) of a group, a view of the parameter (n_in, n_out, *kernel)."""
        size = module.in_channels // module.groups
        kernels: torch.Tensor = module.weight[group * size : (group + 1) * size].transpose(0, 1)
        return kernels
