"""What every pattern offers, and the checks that patterns share."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..errors import InvalidInputError
from ..goals import Sparsity

Mask = npt.NDArray[np.bool_]
Scores = npt.NDArray[np.floating[Any]]  # (n_out, n_in), below 0 where a weight must not stay


class Pattern(Protocol):
    """Which weights of a layer may stay; patterns are immutable and can be pickled.

    Attributes
    ----------
    needs_sparsity : bool
        Whether a sparsity says how much stays; where False the pattern says it itself, and a sparsity given with it
        must agree.

    Examples
    --------
    >>> import numpy as np, sisopt
    >>> pattern: sisopt.Pattern = sisopt.get_pattern("1:2")
    >>> pattern.needs_sparsity, pattern.count((2, 4))
    (False, 4)
    >>> pattern.select(np.array([[5.0, 4.0, 1.0, 2.0]]))
    array([[ True, False, False,  True]])
    """

    @property
    def needs_sparsity(self) -> bool:
        """Whether a sparsity says how much stays."""
        ...

    def count(self, shape: tuple[int, int], sparsity: float | None = None) -> int:
        """Return how many weights of this shape stay; where whole groups stay, at most."""
        ...

    def select(self, scores: Scores, sparsity: float | None = None) -> Mask:
        """Return True where weights stay: the largest scores, at ties the earlier entry, never a score below 0."""
        ...

    def holds(self, weight: npt.ArrayLike, sparsity: float | None = None) -> bool:
        """Return whether the non-zeros lie where a selection could have let them stay."""
        ...

    def validate(self, shape: tuple[int, int], sparsity: float | None = None) -> None:
        """Raise an `InvalidInputError` where pattern, shape and sparsity do not go together."""
        ...


def kept_of(size: int, sparsity: float | None, pattern: object) -> int:
    """Return round((1 - sparsity) * size)."""
    if sparsity is None:
        msg = f"sparsity must be given with pattern={str(pattern)!r}, the fraction of zeros; only 'N:M' needs none"
        raise InvalidInputError(msg)
    return Sparsity(sparsity).kept(size)


def nonzeros(weight: npt.ArrayLike) -> Mask:
    """Return True where a matrix is not zero."""
    array = np.asarray(weight)
    if array.ndim != 2:
        msg = f"weight must have 2 dimensions (n_out, n_in), got shape {array.shape}"
        raise InvalidInputError(msg)
    found: Mask = array != 0
    return found
