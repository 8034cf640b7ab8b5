"""Calibration data of one layer: positions drawn from its calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ...network.samples import Draw
from .kinds.base import Call, Program

Floats = npt.NDArray[np.float32]


def drawn(call: Call, padding: torch.Tensor | None, draw: Draw) -> torch.Tensor:
    """Return positions of a call, in order; those of padding never."""
    kept = None if padding is None else call.kept(padding)
    real = None if kept is None else torch.nonzero(kept.cpu().reshape(-1)).reshape(-1).numpy()
    return torch.from_numpy(draw(call.n_positions, real))


def as_array(tensor: torch.Tensor) -> Floats:
    """Return a tensor as float32 in the memory of the processor."""
    return tensor.detach().to("cpu", torch.float32).numpy()


def padding_of(batch: Any) -> torch.Tensor | None:
    """Return where tokens of a batch are real, bool (n_batch, length), if it tells."""
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None  # tokenizers give mappings of their own
    return mask != 0 if isinstance(mask, torch.Tensor) and mask.dim() == 2 else None


def bytes_of(programs: Sequence[Program], samples: int, n_outputs: int) -> int:
    """Return the memory that a layer's inputs and so many arrays of the size of its outputs take."""
    shapes = [program.weight.shape for program in programs]
    return sum(4 * samples * (n_in + n_outputs * n_out) for n_out, n_in in shapes)


def batch_size(batch: Any) -> int:
    """Return how many samples a batch holds: the first dimension of its first tensor, 1 where it holds none."""
    if hasattr(batch, "shape"):
        return int(batch.shape[0]) if len(batch.shape) else 1
    values: Any = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, list | tuple) else ()
    return next((batch_size(v) for v in values if hasattr(v, "shape") or isinstance(v, list | tuple | Mapping)), 1)
