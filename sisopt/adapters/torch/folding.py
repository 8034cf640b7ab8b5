"""Batch normalisation as part of the layer before it: folded in to solve the layer, taken out again after.

In eval mode z -> s z + t with s = gamma / sqrt(variance + eps) and t = beta - mean s, so that the layer's matrix is
diag(s) W and its bias s b + t. What is found for these is divided by s again; a bias goes into that of the layer, or
into beta where the layer has none.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from .kinds.base import Floats, Program

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Fold:
    """s and t, (n_channels,), of a batch normalisation."""

    scale: Array
    offset: Array

    def folded(self, program: Program, rows: slice) -> Program:
        """Return a program with the normalisation in it."""
        s, t = self.scale[rows], self.offset[rows]
        b = t if program.bias is None else s * program.bias + t
        return replace(program, weight=(s[:, None] * program.weight).astype(np.float32), bias=b.astype(np.float32))

    def unfolded(
        self, weight: Floats, bias: Floats, rows: slice, *, has_bias: bool
    ) -> tuple[Floats, Floats | None, Array | None]:
        """Return the layer's own weight and bias, and the normalisation's new offset where the layer has no bias."""
        s, t = self.scale[rows], self.offset[rows]
        inverse = np.divide(1.0, s, out=np.zeros_like(s), where=s != 0)
        W = (inverse[:, None] * weight).astype(np.float32)
        if not has_bias:
            return W, None, bias.astype(np.float64)
        return W, (inverse * (bias - t)).astype(np.float32), None


def fold_of(norm: Any) -> Fold | None:
    """Return what a batch normalisation does in eval mode; None where it goes by the statistics of its batch."""
    if norm.running_mean is None or norm.running_var is None:
        return None
    mean, variance = _array(norm.running_mean), _array(norm.running_var)
    gamma = np.ones_like(mean) if norm.weight is None else _array(norm.weight)
    beta = np.zeros_like(mean) if norm.bias is None else _array(norm.bias)
    s = gamma / np.sqrt(variance + norm.eps)
    return Fold(s, beta - mean * s)


def put_offset(norm: Any, fold: Fold, offset: Array, rows: slice) -> None:
    """Let the normalisation's t be ``offset`` on some channels: by beta, whose place it is."""
    with torch.no_grad():
        found = _array(norm.bias[rows]) + (offset - fold.offset[rows])  # on the CPU: not every device has float64
        norm.bias[rows] = torch.from_numpy(found).to(norm.bias)


def can_fold(norm: nn.Module, has_bias: bool) -> bool:
    """Return whether a bias that is found has a place to go."""
    return has_bias or getattr(norm, "bias", None) is not None


def _array(tensor: torch.Tensor) -> Array:
    array: Array = tensor.detach().to("cpu", torch.float64).numpy()
    return array
