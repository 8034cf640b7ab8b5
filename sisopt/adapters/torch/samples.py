"""Calibration data of one layer: positions drawn from its calls, in arrays that may lie on disk."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .kinds.base import Call, Program

Floats = npt.NDArray[np.float32]


def drawn(call: Call, padding: torch.Tensor | None, most: int, rng: np.random.Generator) -> torch.Tensor:
    """Return at most ``most`` positions of a call, in order; those of padding never."""
    kept = None if padding is None else call.kept(padding)
    real = None if kept is None else torch.nonzero(kept.cpu().reshape(-1)).reshape(-1)
    count = call.n_positions if real is None else len(real)
    if count <= most:
        return torch.arange(count) if real is None else real
    chosen = torch.from_numpy(np.sort(rng.choice(count, most, replace=False, shuffle=False)))
    return chosen if real is None else real[chosen]


class Rows:
    """A matrix that is filled row by row: in memory, or in a file that is gone with it."""

    def __init__(self, most: int, width: int, folder: Path | None) -> None:
        self._filled = 0
        if folder is None:
            self._array: Floats = np.empty((most, width), np.float32)
        else:
            with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
                name = file.name
            self._array = np.memmap(name, np.float32, "w+", shape=(max(most, 1), width))

    def append(self, rows: Floats) -> None:
        """Write the next rows."""
        self._array[self._filled : self._filled + len(rows)] = rows
        self._filled += len(rows)

    @property
    def array(self) -> Floats:
        """The rows so far."""
        return self._array[: self._filled]


@contextmanager
def spilled(needs: int, most: int) -> Iterator[Path | None]:
    """Yield a folder for arrays of ``needs`` bytes where these are over ``most``, None where they are not."""
    if needs <= most:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="sisopt-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def as_array(tensor: torch.Tensor) -> Floats:
    """Return a tensor as float32 in the memory of the processor."""
    return tensor.detach().to("cpu", torch.float32).numpy()


def quotas(total: int, parts: int) -> list[int]:
    """Return how many of ``total`` samples each of ``parts`` batches gives, at most."""
    return [total // parts + (i < total % parts) for i in range(parts)]


def padding_of(batch: Any) -> torch.Tensor | None:
    """Return where tokens of a batch are real, bool (n_batch, length), if it tells."""
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None  # tokenizers give mappings of their own
    return mask != 0 if isinstance(mask, torch.Tensor) and mask.dim() == 2 else None


def bytes_of(programs: Sequence[Program], samples: int) -> int:
    """Return the memory that the data of a layer's programs take."""
    return sum(4 * samples * sum(program.weight.shape) for program in programs)
