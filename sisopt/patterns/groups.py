"""Whole groups stay: blocks, columns, rows, kernels, or any other partition of the weights."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from ..penalties.partition import KERNEL_NAMES, checked_groups, checked_sizes, partition
from .base import Mask, Scores, kept_of, nonzeros
from .largest import largest
from .layouts import Grid, Labelled


class WholeGroups(ABC):
    """Whole groups are KEPT, round((1 - sparsity) * n_groups) of them, those with the largest sum of squared scores."""

    needs_sparsity: ClassVar[bool] = True

    @abstractmethod
    def layout(self, shape: tuple[int, int]) -> Grid | Labelled:
        """Return which weights of a matrix of this shape make a group."""

    def count(self, shape: tuple[int, int], sparsity: float | None = None) -> int:
        """Return how many weights of this shape stay at most: those of the largest groups."""
        sizes = np.sort(self.layout(shape).sizes())[::-1]
        return int(sizes[: kept_of(sizes.size, sparsity, self)].sum())

    def select(self, scores: Scores, sparsity: float | None = None) -> Mask:
        """Return True where weights stay: the groups with the largest sum of squared scores, at ties the earlier ones.

        A score below 0 never stays and adds nothing; a group of such scores does not count as one that stays.
        """
        layout = self.layout(scores.shape)
        if scores.min(initial=0.0) >= 0:
            return layout.spread(largest(layout.sums(_squares(scores)), kept_of(layout.n_groups, sparsity, self)))
        may_stay = scores >= 0
        sums = layout.sums(_squares(np.where(may_stay, scores, 0)))
        sums[layout.sums(may_stay.astype(np.float64)) == 0] = -1.0
        return layout.spread(largest(sums, kept_of(layout.n_groups, sparsity, self))) & may_stay

    def holds(self, weight: npt.ArrayLike, sparsity: float | None = None) -> bool:
        """Return whether at most as many groups have non-zeros as stay."""
        kept = nonzeros(weight)
        layout = self.layout(kept.shape)
        present = int(np.count_nonzero(layout.sums(kept.astype(np.float64))))
        return present <= kept_of(layout.n_groups, sparsity, self)

    def validate(self, shape: tuple[int, int], sparsity: float | None = None) -> None:
        """Raise an `InvalidInputError` where the groups do not fit the shape or the sparsity is no number in [0, 1]."""
        kept_of(self.layout(shape).n_groups, sparsity, self)


@dataclass(frozen=True)
class Blocks(WholeGroups):
    """Whole blocks are KEPT, round((1 - sparsity) * n_blocks) of them.

    Parameters
    ----------
    block : (int, int)
        Rows and columns of a block, the last ones smaller where they do not fit.

    Examples
    --------
    >>> import numpy as np, sisopt
    >>> sisopt.Blocks((2, 2)).select(np.array([[3.0, 3.0, 5.0, 0.0], [3.0, 3.0, 0.0, 0.0]]), sparsity=0.5)
    array([[ True,  True, False, False],
           [ True,  True, False, False]])
    """

    block: tuple[int, int]

    def __post_init__(self) -> None:
        object.__setattr__(self, "block", checked_sizes("block", "blocks", ("blocks",), self.block))

    def __str__(self) -> str:
        return f"{self.block[0]}x{self.block[1]} blocks"

    def layout(self, shape: tuple[int, int]) -> Grid:
        """Return the blocks of a matrix of this shape."""
        return Grid(shape, self.block)


@dataclass(frozen=True, eq=False)
class Groups(WholeGroups):
    """Whole groups of any partition are KEPT, round((1 - sparsity) * n_groups) of them.

    Parameters
    ----------
    groups : str, array of int or sequence of index arrays
        "columns", "rows" or "filters", "kernels", "channels", "blocks", labels or lists of indices, as in `GroupL2`.
    kernel_size : tuple of int, optional
        That of the convolution, for "kernels" and "channels".
    block : tuple of int, optional
        Rows and columns of a block, for "blocks".

    Raises
    ------
    InvalidInputError
        If an argument is not what it should be; where it does not fit weight's shape, when it is first used.

    Examples
    --------
    >>> import numpy as np, sisopt
    >>> sisopt.Groups("columns").select(np.array([[5.0, 4.0], [1.0, 3.5]]), sparsity=0.5)
    array([[False,  True],
           [False,  True]])
    >>> print(sisopt.Groups("kernels", kernel_size=(3, 3)))
    3x3 kernels
    """

    groups: Any
    _: KW_ONLY
    kernel_size: Any = None
    block: Any = None
    _labelled: Labelled | None = field(default=None, init=False, repr=False)  # of labels or indices, once used

    def __post_init__(self) -> None:
        groups = checked_groups(self.groups)
        checked = {
            "groups": groups,
            "kernel_size": checked_sizes("kernel_size", groups, KERNEL_NAMES, self.kernel_size),
            "block": checked_sizes("block", groups, ("blocks",), self.block),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def __str__(self) -> str:
        if not isinstance(self.groups, str):
            return "groups"
        sizes = self.kernel_size or self.block
        return self.groups if sizes is None else f"{'x'.join(map(str, sizes))} {self.groups}"

    def layout(self, shape: tuple[int, int]) -> Grid | Labelled:
        """Return the groups of a matrix of this shape."""
        if isinstance(self.groups, str):
            return Grid(shape, self._block_of(shape))
        if self._labelled is None or self._labelled.labels.shape != shape:
            labelled = Labelled(*partition(self.groups, None, None, shape))
            object.__setattr__(self, "_labelled", labelled)
            return labelled
        return self._labelled

    def _block_of(self, shape: tuple[int, int]) -> tuple[int, ...]:
        """Return the rows and columns of a group that has a name."""
        n_out, n_in = shape
        if self.groups == "columns":
            return n_out, 1
        if self.groups == "rows":
            return 1, n_in
        if self.groups == "blocks":
            return self.block  # type: ignore[no-any-return]
        length = math.prod(self.kernel_size)
        if n_in % length:
            partition(self.groups, self.kernel_size, None, shape)  # raises, and says why
        return (n_out if self.groups == "channels" else 1), length


def _squares(scores: Scores) -> npt.NDArray[np.float64]:
    squares: npt.NDArray[np.float64] = np.square(scores, dtype=np.float64)
    return squares
