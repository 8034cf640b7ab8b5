"""Parameters as float32 arrays, and back."""

from __future__ import annotations

import torch

from .base import Floats


def read(parameter: torch.Tensor) -> Floats:
    """Return a float32 copy on the CPU."""
    copy: Floats = parameter.detach().to("cpu", torch.float32, copy=True).contiguous().numpy()
    return copy


def write(parameter: torch.Tensor, values: Floats) -> None:
    """Write values into a parameter or a view of one, in its shape, in its dtype and on its device."""
    with torch.no_grad():
        parameter.copy_(torch.tensor(values).reshape(parameter.shape))
