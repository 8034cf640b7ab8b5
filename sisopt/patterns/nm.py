"""N:M: so many weights stay of every few consecutive inputs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from ..errors import InvalidInputError
from ..goals import Sparsity
from ..validation import positive_integer
from .base import Mask, Scores, nonzeros
from .largest import largest_in_rows

_RANKED = 16  # members of a group, up to which comparing all pairs is faster than partitions


@dataclass(frozen=True)
class NM:
    """N:M, N weights KEPT of every M consecutive inputs of a row; M - N of them are zero.

    Other tools may mean the number removed: "1:4" keeps 25 % here. A last group of r < M inputs keeps
    ``round(r * N / M)``, halves to the even number. In a convolution a row is a filter with its in-channel and kernel
    axes flattened, as ``conv.weight.flatten(1)`` of torch has them and its 2:4 kernels read them.

    Parameters
    ----------
    kept : int
        N, between 1 and M.
    of : int
        M, at most the number of inputs.

    Examples
    --------
    >>> import numpy as np, sisopt
    >>> sisopt.NM(2, 4).select(np.array([[5.0, 4.0, 1.0, 2.0, 0.1, 0.2, 0.3, 0.4]]))
    array([[ True,  True, False, False, False, False,  True,  True]])
    """

    kept: int
    of: int

    needs_sparsity: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name in ("kept", "of"):
            object.__setattr__(self, name, positive_integer(name, getattr(self, name)))
        if self.kept > self.of:
            msg = f"kept must be at most {self.of}, the M of N:M, got {self.kept}: N weights are KEPT of every M inputs"
            raise InvalidInputError(msg)

    def __str__(self) -> str:
        return f"{self.kept}:{self.of} ({self.kept} KEPT of every {self.of} inputs)"

    def count(self, shape: tuple[int, int], sparsity: float | None = None) -> int:
        """Return how many weights of this shape stay; a sparsity is not looked at."""
        return shape[0] * sum((stop - start) // size * kept for start, stop, size, kept in self._runs(shape[1]))

    def select(self, scores: Scores, sparsity: float | None = None) -> Mask:
        """Return True where weights stay: the largest scores, at ties the earlier entry, never a score below 0."""
        mask = np.empty(scores.shape, bool)
        for start, stop, size, kept in self._runs(scores.shape[1]):
            groups = scores[:, start:stop].reshape(-1, size)
            stays = _largest_by_rank(groups, kept) if size <= _RANKED else largest_in_rows(groups, kept)
            mask[:, start:stop] = stays.reshape(len(scores), -1)
        return mask

    def holds(self, weight: npt.ArrayLike, sparsity: float | None = None) -> bool:
        """Return whether no group has more non-zeros than stay."""
        kept = nonzeros(weight)
        return all(
            np.count_nonzero(kept[:, start:stop].reshape(-1, size), axis=1).max(initial=0) <= limit
            for start, stop, size, limit in self._runs(kept.shape[1])
        )

    def validate(self, shape: tuple[int, int], sparsity: float | None = None) -> None:
        """Raise an `InvalidInputError` where M exceeds the inputs, or a sparsity is not 1 - N/M (within 1e-9)."""
        self.check_agreement(sparsity)
        if self.of > shape[1]:
            msg = f"pattern={str(self)!r} needs at least {self.of} inputs, weight has {shape[1]}; choose a smaller M"
            raise InvalidInputError(msg)

    def check_agreement(self, sparsity: float | None) -> None:
        """Raise unless the sparsity is None or 1 - N/M, within 1e-9."""
        implied = 1.0 - self.kept / self.of
        if sparsity is not None and not math.isclose(Sparsity(sparsity).sparsity, implied, abs_tol=1e-9):
            msg = f"sparsity={sparsity!r} contradicts pattern={str(self)!r}, which is {implied:g}; leave one out"
            raise InvalidInputError(msg)

    def _runs(self, n_in: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield (start, stop, group size, kept of a group) of the whole groups of a row, and of what remains."""
        rest = n_in % self.of
        if n_in > rest:
            yield 0, n_in - rest, self.of, self.kept
        if rest:
            yield n_in - rest, n_in, rest, round(rest * self.kept / self.of)


def _largest_by_rank(groups: Scores, kept: int) -> Mask:
    """Return True at the ``kept`` largest of every row: those with fewer members ahead of them."""
    members = np.ascontiguousarray(groups.T)
    ahead = np.empty(members.shape, np.int8)
    for i, member in enumerate(members):
        ahead[i] = i  # all earlier members, but for those that it exceeds
        for j in range(i):
            exceeds = (member > members[j]).view(np.int8)
            ahead[i] -= exceeds
            ahead[j] += exceeds
    stays = (ahead < kept) & (members >= 0)
    mask = np.empty(groups.shape, bool)
    for i, column in enumerate(stays):  # several times as fast as a copy of the transpose
        mask[:, i] = column
    return mask
