"""Calibration data of one layer, for adapters: how much of it, which of it, and where it lies."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InvalidInputError
from ..validation import natural_number
from .solving import MANY

Floats = npt.NDArray[np.float32]
Places = npt.NDArray[np.int64]
Draw = Callable[[int, Places | None], Places]

MAX_SAMPLES, MOST_SAMPLES = 10_000, 100_000_000  # of a layer: by default, and that can be asked for
MAX_MEMORY = 4 << 30  # bytes, by default
LEAST_SAMPLES, PER_INPUT = 1 << 11, 64  # of a layer of MANY programs: the larger of the two, PER_INPUT an input


@dataclass(frozen=True)
class Sampling:
    """How much data a layer is given, and where it may lie."""

    max_samples: int
    max_memory: int
    seed: int

    @classmethod
    def checked(cls, max_samples: object, max_memory: object, seed: object) -> Sampling:
        """Return what a caller asks for; its arguments have the names of these."""
        found = cls(
            natural_number("max_samples", max_samples),
            natural_number("max_memory", max_memory),
            natural_number("seed", seed),
        )
        if not 0 < found.max_samples <= MOST_SAMPLES:
            msg = f"max_samples must be at least 1 and at most {MOST_SAMPLES:,}, got {max_samples:,}"
            raise InvalidInputError(msg)
        return found

    def samples(self, n_programs: int, widest: int) -> int:
        """Return how many samples a layer gets: fewer where it is many small programs, such as a depthwise one.

        ``widest`` is the largest number of inputs of a program.
        """
        if n_programs < MANY:
            return self.max_samples
        return min(self.max_samples, max(LEAST_SAMPLES, PER_INPUT * widest))


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

    def append(self, rows: npt.NDArray[Any]) -> None:
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


class Draws:
    """Positions drawn from the calls of layer ``number``: ``total`` from all batches, by the sizes of these.

    What a call cannot give, for want of samples or because of padding, is made up for by those after it.
    """

    def __init__(self, total: int, sizes: Sequence[int], seed: int, number: int) -> None:
        self._shares, self._seed, self._number = quotas(total, sizes), seed, number
        self._open = 0  # samples that are still to come from the calls so far
        self._coming: list[int] = []  # shares of the calls of this batch that were not made yet

    def of_batch(self, batch: int, n_calls: int) -> Iterator[Draw]:
        """Return, for each call of a batch, what draws from it: (n_positions, real ones or None) -> positions."""
        self._open += sum(self._coming)
        self._coming = quotas(self._shares[batch], [1] * n_calls) or [self._shares[batch]]
        return (self._of_call(batch, call) for call in range(n_calls))

    def _of_call(self, batch: int, call: int) -> Draw:
        self._open += self._coming.pop(0)
        return partial(self._draw, [self._seed, self._number, batch, call])

    def _draw(self, seed: list[int], n_positions: int, real: Places | None) -> Places:
        """Return positions in order, as many as are open."""
        places = np.arange(n_positions) if real is None else real
        if len(places) > self._open:
            rng = np.random.default_rng(seed)
            places = places[np.sort(rng.choice(len(places), self._open, replace=False, shuffle=False))]
        self._open -= len(places)
        return places


def listed(batches: Iterable[Any]) -> list[Any]:
    """Return the batches: all of them are gone through for every layer."""
    if isinstance(batches, Mapping):
        msg = "batches must be an iterable of batches, got a mapping: is it one batch? Put it in a list"
        raise InvalidInputError(msg)
    try:
        found = list(batches)
    except TypeError:
        msg = f"batches must be an iterable of batches, got {type(batches).__name__}"
        raise InvalidInputError(msg) from None
    if not found:
        msg = "batches holds none: was it an iterator that had been used up?"
        raise InvalidInputError(msg)
    return found


def quotas(total: int, sizes: Sequence[int]) -> list[int]:
    """Return how many of ``total`` samples each batch gives, by its size; those too many for one each spread evenly."""
    whole = max(sum(sizes), 1)
    edges = [total * before // whole for before in accumulate(sizes, initial=0)]
    return [after - before for before, after in pairwise(edges)]
