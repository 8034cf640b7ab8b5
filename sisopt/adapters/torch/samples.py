"""Calibration data of one layer: positions drawn from its calls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ...network.samples import Draw
from .kinds.base import Call, Program

Floats = npt.NDArray[np.float32]


def drawn(calls: Sequence[Call], padding: torch.Tensor | None, draw: Draw) -> torch.Tensor:
    """Return positions of a call, seen in several passes, in order; those of padding never."""
    kept = None
    if padding is not None:
        kept = [call.kept(padding) for call in calls][-1]  # all are to know of it
    real = None if kept is None else torch.nonzero(kept.cpu().reshape(-1)).reshape(-1).numpy()
    return torch.from_numpy(draw(calls[-1].n_positions, real))


def as_array(tensor: torch.Tensor) -> Floats:
    """Return a tensor as float32 in the memory of the processor."""
    return tensor.detach().to("cpu", torch.float32).numpy()


def padding_of(batch: Any) -> torch.Tensor | None:
    """Return where tokens of a batch are real, bool (n_batch, length), if it tells."""
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None  # tokenizers give mappings of their own
    if mask is None:
        return None
    try:
        mask = torch.as_tensor(mask)
    except (TypeError, ValueError, RuntimeError):  # a forward knows what it is
        return None
    if mask.dim() == 4 and mask.shape[1] == mask.shape[2] == 1:  # one for all heads and queries
        mask = mask[:, 0, 0]
        if mask.is_floating_point() and not (mask > 0).any():  # 0 and -inf, to be added to scores
            mask = mask == 0
    return mask != 0 if mask.dim() == 2 else None


def bytes_of(programs: Sequence[Program], samples: int, n_outputs: int) -> int:
    """Return the memory that a layer's inputs and so many arrays of the size of its outputs take."""
    shapes = [program.weight.shape for program in programs]
    return sum(4 * samples * (n_in + n_outputs * n_out) for n_out, n_in in shapes)


def batch_size(batch: Any) -> int:
    """Return how many samples a batch holds: the first dimension of its first tensor, 1 where it holds none."""
    return next((int(each.shape[0]) for each in _arrays_in(batch)), 1)


def _arrays_in(batch: Any) -> Iterator[Any]:
    """Yield the arrays in a batch that have a dimension."""
    if hasattr(batch, "shape"):
        yield from (batch,) if len(batch.shape) else ()
    elif isinstance(batch, Mapping | list | tuple):
        for each in batch.values() if isinstance(batch, Mapping) else batch:
            yield from _arrays_in(each)
