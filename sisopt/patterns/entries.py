"""Single weights stay: so many of the whole matrix, or as many in every row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from .base import Mask, Scores, kept_of, nonzeros
from .largest import largest, largest_in_rows


@dataclass(frozen=True)
class Unstructured:
    """Any weights: round((1 - sparsity) * size) of the whole matrix are KEPT, exactly.

    Examples
    --------
    >>> import numpy as np, sisopt
    >>> sisopt.Unstructured().select(np.array([[5.0, 4.0], [1.0, 2.0]]), sparsity=0.5)
    array([[ True,  True],
           [False, False]])
    """

    needs_sparsity: ClassVar[bool] = True

    def __str__(self) -> str:
        return "unstructured"

    def count(self, shape: tuple[int, int], sparsity: float | None = None) -> int:
        """Return how many weights of this shape stay."""
        return kept_of(shape[0] * shape[1], sparsity, self)

    def select(self, scores: Scores, sparsity: float | None = None) -> Mask:
        """Return True where weights stay: the largest scores, at ties the earlier entry, never a score below 0."""
        return largest(scores.ravel(), kept_of(scores.size, sparsity, self)).reshape(scores.shape)

    def holds(self, weight: npt.ArrayLike, sparsity: float | None = None) -> bool:
        """Return whether there are at most as many non-zeros as stay."""
        kept = nonzeros(weight)
        return int(np.count_nonzero(kept)) <= kept_of(kept.size, sparsity, self)

    def validate(self, shape: tuple[int, int], sparsity: float | None = None) -> None:
        """Raise an `InvalidInputError` unless the sparsity is a number in [0, 1]."""
        self.count(shape, sparsity)


@dataclass(frozen=True)
class PerRow:
    """The same count for every output neuron: round((1 - sparsity) * size) weights are KEPT in all, exactly.

    Rows differ by at most one; one more stays in the rows whose next score is largest.

    Examples
    --------
    >>> import numpy as np, sisopt
    >>> sisopt.PerRow().select(np.array([[5.0, 4.0], [1.0, 2.0]]), sparsity=0.5)
    array([[ True, False],
           [False,  True]])
    """

    needs_sparsity: ClassVar[bool] = True

    def __str__(self) -> str:
        return "per-row"

    def count(self, shape: tuple[int, int], sparsity: float | None = None) -> int:
        """Return how many weights of this shape stay."""
        return kept_of(shape[0] * shape[1], sparsity, self)

    def select(self, scores: Scores, sparsity: float | None = None) -> Mask:
        """Return True where weights stay: the largest scores, at ties the earlier entry, never a score below 0."""
        return largest_in_rows(scores, *divmod(kept_of(scores.size, sparsity, self), scores.shape[0]))

    def holds(self, weight: npt.ArrayLike, sparsity: float | None = None) -> bool:
        """Return whether no row has more non-zeros than stay, and few enough rows have one more."""
        kept = nonzeros(weight)
        count, extra = divmod(kept_of(kept.size, sparsity, self), kept.shape[0])
        surplus = np.count_nonzero(kept, axis=1) - count
        return bool(surplus.max() <= 1 and np.count_nonzero(surplus == 1) <= extra)

    def validate(self, shape: tuple[int, int], sparsity: float | None = None) -> None:
        """Raise an `InvalidInputError` unless the sparsity is a number in [0, 1]."""
        self.count(shape, sparsity)
