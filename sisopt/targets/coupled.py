"""The targets of softmax, log-softmax and sparsemax: lines, and faces of a cone, along the common shift."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from ..errors import InvalidInputError
from ..kernels.coupled import common_shifts, line_residuals, residuals
from .base import Array, CoupledTarget, kernel_array
from .common_bias import best_common_bias

T = TypeVar("T", bound=CoupledTarget)


@dataclass(frozen=True, eq=False)
class Line(CoupledTarget):
    """The lines ``S_k = {z0_k + c 1 : c real}``, one per sample: the preimages under softmax and log-softmax.

    The residual is ``r - mean(r)`` with ``r = z - z0``, the mean over the outputs; the outputs' logarithms, which may
    have underflowed, are never needed.

    Parameters
    ----------
    center : array_like, shape (n_samples, n_out)
        z0, a point of every line, finite; at least one output.

    Raises
    ------
    InvalidInputError
        If the centre has another number of dimensions, no outputs or an entry that is not finite.

    Examples
    --------
    >>> from sisopt.targets import Line
    >>> Line([[1.0, 2.0]]).residual([[5.0, 8.0]])  # off by 4 and 6: 5 is shared
    array([[-1.,  1.]])
    """

    center: Array

    def __post_init__(self) -> None:
        object.__setattr__(self, "center", _checked("center of a Line", self.center))

    @property
    def shape(self) -> tuple[int, int]:
        """``(n_samples, n_out)``."""
        return self.center.shape[0], self.center.shape[1]

    def __getitem__(self, samples: slice) -> Line:
        return _unchecked(Line, center=self.center[samples])

    def project(self, z: npt.ArrayLike) -> Array:
        """Return ``z0 + mean(z - z0)``."""
        return np.asarray(self.center + (self._read("z", z) - self.center).mean(axis=1, keepdims=True))

    def residual(self, z: npt.ArrayLike) -> Array:
        """Return ``z - project(z)``, whose norm is the distance; every sample's entries add up to zero."""
        values = self._read("z", z)
        out = np.empty(self.shape)
        line_residuals(values, self.center, out)
        return out

    def shifted(self, s: npt.ArrayLike) -> Line:
        """Return the lines ``S - s``, s broadcastable to (n_samples, n_out)."""
        return Line(self.center - np.asarray(s, dtype=np.float64))

    def _best_bias(self, z: Array, v: Array, anchor: Array, center: Array | None, fidelity: float) -> Array:
        bias = anchor.copy()
        total = float(v.sum())
        if total == 0.0:
            return bias
        for _ in range(2):  # the second step takes back what the first lost to rounding
            moved = z + bias
            pull = v @ self.residual(moved)
            if center is not None:
                off = v @ (moved - center)
                common = off.mean()  # the lines leave it free: fidelity alone decides on it
                pull = (pull + fidelity * (off - common)) / (1.0 + fidelity) + common
            bias -= pull / total
        return bias


@dataclass(frozen=True, eq=False)
class SparsemaxSet(CoupledTarget):
    """The sets ``S_k = {p : p = l_k + c on the support, p <= l_k + c elsewhere, c real}``: preimages under sparsemax.

    With y = sparsemax(z0) and its threshold t, y = max(z0 - t, 0), the support is where y > 0 and l is z0 on the
    support and t elsewhere, so that z0 itself is in the set.

    Parameters
    ----------
    level : array_like, shape (n_samples, n_out)
        l, finite; at least one output.
    support : array_like of bool, shape (n_samples, n_out)
        Where p is tied to the level; somewhere in every sample.

    Raises
    ------
    InvalidInputError
        If the shapes differ, a support is empty or not boolean, or a level is not finite.

    Examples
    --------
    >>> import sisopt
    >>> target = sisopt.Sparsemax().preimage([[1.0, 0.5, -1.0]])  # the last output is 0
    >>> target.contains([[2.0, 1.5, -9.0]]), target.contains([[2.0, 1.0, -9.0]])
    (True, False)
    """

    level: Array
    support: npt.NDArray[np.bool_]

    def __post_init__(self) -> None:
        level = _checked("level of a SparsemaxSet", self.level)
        support = np.asarray(self.support)
        if support.dtype != np.bool_ or support.shape != level.shape:
            found = f"{support.dtype} of shape {support.shape}"
            msg = f"support of a SparsemaxSet must be boolean, of shape {level.shape} as the level, got {found}"
            raise InvalidInputError(msg)
        if not support.any(axis=1).all():
            msg = f"support of a SparsemaxSet must not be empty, as it is in sample {np.argmin(support.any(axis=1))}"
            raise InvalidInputError(msg)
        object.__setattr__(self, "level", level)
        object.__setattr__(self, "support", np.require(support, np.bool_, ["C_CONTIGUOUS", "WRITEABLE"]))

    @property
    def shape(self) -> tuple[int, int]:
        """``(n_samples, n_out)``."""
        return self.level.shape[0], self.level.shape[1]

    def __getitem__(self, samples: slice) -> SparsemaxSet:
        return _unchecked(SparsemaxSet, level=self.level[samples], support=self.support[samples])

    def project(self, z: npt.ArrayLike) -> Array:
        """Return ``l + c`` on the support and ``min(z, l + c)`` elsewhere, c as in ``sisopt.kernels.coupled``."""
        values = self._read("z", z)
        shifts = np.empty(self.shape[0])
        common_shifts(values, self.level, self.support, shifts)
        top = self.level + shifts[:, None]
        return np.where(self.support, top, np.minimum(values, top))

    def residual(self, z: npt.ArrayLike) -> Array:
        """Return ``z - project(z)``, whose norm is the distance; every sample's entries add up to zero."""
        values = self._read("z", z)
        out = np.empty(self.shape)
        residuals(values, self.level, self.support, out)
        return out

    def shifted(self, s: npt.ArrayLike) -> SparsemaxSet:
        """Return the sets ``S - s``, s broadcastable to (n_samples, n_out)."""
        return SparsemaxSet(self.level - np.asarray(s, dtype=np.float64), self.support)

    def _best_bias(self, z: Array, v: Array, anchor: Array, center: Array | None, fidelity: float) -> Array:
        return best_common_bias(z, self.level, self.support, v, anchor, center, fidelity)


def _unchecked(kind: type[T], **arrays: npt.NDArray[Any]) -> T:
    """Return a target of blocks of arrays that were checked as a whole: blocks are made at every pass over the data."""
    target = object.__new__(kind)
    for name, array in arrays.items():
        object.__setattr__(target, name, np.ascontiguousarray(array))
    return target


def _checked(name: str, values: npt.ArrayLike) -> Array:
    """Return a finite (n_samples, n_out) array as the kernels read it."""
    array = kernel_array(values)
    if array.ndim != 2 or array.shape[1] == 0:
        msg = f"{name} must have shape (n_samples, n_out) with at least one output, got {array.shape}"
        raise InvalidInputError(msg)
    if not np.isfinite(array).all():
        msg = f"{name} must be finite"
        raise InvalidInputError(msg)
    return array
