"""Max-pooling after an activation: a layer whose outputs are the largest of several samples (positions)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..errors import InvalidInputError, UnsupportedError
from ..kernels.pooling import largest_in_windows, pooled_intervals
from ..targets import Interval, kernel_array
from .base import Activation, Array
from .registry import get_activation
from .windows import Windows


@dataclass(frozen=True, eq=False)
class MaxPool(Activation):
    """``R(z)_w = max over samples k of window w of r(z_k)``, r a non-decreasing activation.

    The samples are positions of one channel, along the last axis of all arrays. The outputs' preimage is not convex;
    the target is the box inside of it in which the first largest entry of each window, taken on z0, keeps its own
    preimage under r and every other entry only stays below the upper end of that. An entry that no window holds is
    free. Samples may only be left out by whole windows.

    Parameters
    ----------
    windows : array_like of int, shape (n_windows, window_size)
        The samples of every window, -1 where there is none (padding); see `pooling_windows`. Windows may overlap.
    activation : str or Activation, default "relu"
        r: acts entry by entry and never decreases.

    Attributes
    ----------
    lipschitz : float
        That of r times the square root of the largest number of windows that share a sample.

    Raises
    ------
    InvalidInputError
        If ``windows`` is not an integer matrix of such indices, or a window is empty or holds a sample twice. When
        used: if a window holds a sample beyond the last axis of an array.
    UnsupportedError
        If r is not known to be non-decreasing.

    Examples
    --------
    >>> import sisopt
    >>> pooled = sisopt.MaxPool([[0, 1], [2, 3]])  # positions of one channel, in windows of two; after ReLU
    >>> pooled.forward([1.0, 3.0, -2.0, -1.0])
    array([3., 0.])
    >>> pooled.preimage([1.0, 3.0, -2.0, -1.0]).hi  # what is not the largest only has to stay below
    array([3., 3., 0., 0.])
    """

    windows: Windows
    activation: Activation
    name: str = field(default="max_pool", init=False, repr=False)
    lipschitz: float = field(init=False, repr=False)

    def __init__(self, windows: npt.ArrayLike, activation: str | Activation = "relu") -> None:
        inner = get_activation(activation)
        if not inner.nondecreasing:
            msg = (
                f"activation of max_pool must be known never to decrease, got {inner.name!r}; "
                "pool outside of the layer instead, with that activation for the layer"
            )
            raise UnsupportedError(msg)
        checked = _checked_windows(windows)
        overlap = int(np.bincount(checked[checked >= 0]).max())
        object.__setattr__(self, "name", "max_pool")
        object.__setattr__(self, "windows", checked)
        object.__setattr__(self, "activation", inner)
        object.__setattr__(self, "lipschitz", inner.lipschitz * math.sqrt(overlap))

    def preimage(self, z0: npt.ArrayLike, tolerance: float = 0.0) -> Interval:
        """Return the box around z0 in which every pooled output stays within ``tolerance`` of its value at z0.

        Parameters
        ----------
        z0 : array_like, shape (..., n_samples)
            The finite pre-activations of the dense layer.
        tolerance : float
            How far a pooled output may move, at least 0, in units of outputs.

        Returns
        -------
        Interval of the shape of z0
            With ``lo <= z0 <= hi``, always.

        Raises
        ------
        InvalidInputError
            If the tolerance is not a finite number of at least 0, or z0 has fewer samples than the windows.
        """
        z = self._with_samples("z0", np.asarray(z0, dtype=np.float64))
        inner = self.activation.preimage(z, tolerance)
        assert isinstance(inner, Interval)
        rows = (-1, z.shape[-1])
        lo, hi = np.empty(z.shape), np.empty(z.shape)
        around, inner_lo, inner_hi = (kernel_array(array.reshape(rows)) for array in (z, inner.lo, inner.hi))
        pooled_intervals(around, inner_lo, inner_hi, self.windows, lo.reshape(rows), hi.reshape(rows))
        return Interval(lo, hi)

    def _forward(self, z: Array) -> Array:
        values = self.activation.forward(self._with_samples("z", z))
        out = np.empty((*z.shape[:-1], self.windows.shape[0]))
        largest_in_windows(
            kernel_array(values.reshape(-1, z.shape[-1])), self.windows, out.reshape(-1, self.windows.shape[0])
        )
        return out

    def _with_samples(self, name: str, z: Array) -> Array:
        """Return z, whose last axis the windows fit."""
        needed = int(self.windows.max()) + 1
        if z.ndim == 0 or z.shape[-1] < needed:
            found = f"shape {z.shape}"
            msg = f"{name} of max_pool must have the {needed} samples of its windows along the last axis, got {found}"
            raise InvalidInputError(msg)
        return z

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, MaxPool):
            return NotImplemented
        return self.activation == other.activation and np.array_equal(self.windows, other.windows)

    def __hash__(self) -> int:
        return hash((self.activation, self.windows.shape, self.windows.tobytes()))

    def __reduce__(self) -> tuple[type[MaxPool], tuple[Windows, Activation]]:
        return type(self), (self.windows, self.activation)


def _checked_windows(windows: npt.ArrayLike) -> Windows:
    """Return a read-only copy (n_windows, window_size) of the windows, every one of which makes sense."""
    given = np.asarray(windows)
    if given.dtype.kind not in "iu" or given.ndim != 2 or given.size == 0:
        found = f"{given.dtype} of shape {given.shape}"
        msg = f"windows must be integers of shape (n_windows, window_size), neither of them 0, got {found}"
        raise InvalidInputError(msg)
    checked = np.array(given, dtype=np.int64, order="C")
    if checked.min() < -1:
        msg = f"windows must hold sample indices, or -1 for no entry, got {checked.min()}"
        raise InvalidInputError(msg)
    empty = (checked < 0).all(axis=1)
    if empty.any():
        msg = f"every window needs an entry, window {np.argmax(empty)} has none"
        raise InvalidInputError(msg)
    ordered = np.sort(checked, axis=1)
    twice = ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any(axis=1)
    if twice.any():
        w = int(np.argmax(twice))
        msg = f"a window may hold a sample only once, window {w} is {checked[w].tolist()}"
        raise InvalidInputError(msg)
    checked.flags.writeable = False
    return checked
