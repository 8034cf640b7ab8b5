"""Calibration data of one layer: positions drawn from its calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ...network.samples import drawn as places_drawn
from .kinds.base import Call, Program

Floats = npt.NDArray[np.float32]


def drawn(call: Call, padding: torch.Tensor | None, most: int, rng: np.random.Generator) -> torch.Tensor:
    """Return at most ``most`` positions of a call, in order; those of padding never."""
    kept = None if padding is None else call.kept(padding)
    real = None if kept is None else torch.nonzero(kept.cpu().reshape(-1)).reshape(-1)
    places = None if real is None else real.numpy()
    return torch.from_numpy(places_drawn(call.n_positions, places, most, rng))


def as_array(tensor: torch.Tensor) -> Floats:
    """Return a tensor as float32 in the memory of the processor."""
    return tensor.detach().to("cpu", torch.float32).numpy()


def padding_of(batch: Any) -> torch.Tensor | None:
    """Return where tokens of a batch are real, bool (n_batch, length), if it tells."""
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None  # tokenizers give mappings of their own
    return mask != 0 if isinstance(mask, torch.Tensor) and mask.dim() == 2 else None


def bytes_of(programs: Sequence[Program], samples: int) -> int:
    """Return the memory that the data of a layer's programs take."""
    return sum(4 * samples * sum(program.weight.shape) for program in programs)
