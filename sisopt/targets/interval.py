"""The box target of activations that act entry by entry, and its rows as the kernels read them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InvalidInputError

Array = npt.NDArray[np.float64]
Floats = npt.NDArray[Any]  # float32 or float64


@dataclass(frozen=True, eq=False)
class Interval:
    """The box ``S = {z : lo <= z <= hi}`` of pre-activations, an interval per entry.

    For an activation R that acts entry by entry it is the preimage ``R^-1({y})`` of the outputs y of the dense layer,
    and the distance to it is the distance to the subdifferential inclusion of the SIS method [1]_.

    Parameters
    ----------
    lo, hi : array_like of one shape
        The ends of the intervals, in units of pre-activations; ``-inf`` and ``inf`` are allowed. Kept as float64.

    Raises
    ------
    InvalidInputError
        If the shapes differ or ``lo <= hi`` fails anywhere (as it does with NaN).

    Examples
    --------
    >>> import numpy as np
    >>> from sisopt.targets import Interval
    >>> target = Interval([2.0, -np.inf], [2.0, 0.0])  # of a ReLU that is on, and of one that is off
    >>> target.project([3.0, -5.0])
    array([ 2., -5.])
    >>> target.residual([3.0, -5.0])
    array([1., 0.])

    References
    ----------
    .. [1] S. Verma, J.-C. Pesquet, "Sparsifying Networks via Subdifferential Inclusion", ICML 2021.
    """

    lo: Array
    hi: Array

    def __post_init__(self) -> None:
        lo = np.asarray(self.lo, dtype=np.float64)
        hi = np.asarray(self.hi, dtype=np.float64)
        if lo.shape != hi.shape:
            msg = f"lo and hi of an Interval must have one shape, got {lo.shape} and {hi.shape}"
            raise InvalidInputError(msg)
        if not (lo <= hi).all():
            msg = "an Interval needs lo <= hi in every entry, without NaN"
            raise InvalidInputError(msg)
        object.__setattr__(self, "lo", lo)
        object.__setattr__(self, "hi", hi)

    @property
    def is_point(self) -> bool:
        """Whether the set is a single point: ``lo == hi`` in every entry."""
        return bool((self.lo == self.hi).all())

    def project(self, z: npt.ArrayLike) -> Array:
        """Return the point of the set nearest to z, ``clip(z, lo, hi)``, of the shape of z."""
        return np.asarray(np.clip(np.asarray(z, dtype=np.float64), self.lo, self.hi))

    def residual(self, z: npt.ArrayLike) -> Array:
        """Return ``z - project(z)``: zero exactly where z is in the set, and its norm is the distance."""
        return np.asarray(np.asarray(z, dtype=np.float64) - self.project(z))

    def shifted(self, s: npt.ArrayLike) -> Interval:
        """Return the set ``S - s``: where z may lie if a known finite s is added before the activation."""
        shift = np.asarray(s, dtype=np.float64)
        return Interval(self.lo - shift, self.hi - shift)

    def contains(self, z: npt.ArrayLike, atol: float = 0.0) -> bool:
        """Whether every entry of z is in its interval, or outside it by at most ``atol``."""
        return bool((np.abs(self.residual(z)) <= atol).all())


@dataclass(frozen=True)
class RowTarget:
    """The target of a few output neurons (rows) on all samples, as the kernels read it.

    ``lo``, ``hi`` are (rows, n_samples); ``center`` (the dense pre-activations) likewise, or (1, 1) without fidelity;
    ``weights`` is (rows, n_samples), or (1, n_samples) where all rows share them; ``sample_weights`` (n_samples,). All
    have one dtype, float32 or float64, and are C-contiguous.
    """

    lo: Floats
    hi: Floats
    center: Floats
    weights: Floats
    sample_weights: Floats
    fidelity: float

    @property
    def sides(self) -> tuple[Floats, Floats, Floats, Floats, Floats, float]:
        """The target as the kernels take it."""
        return self.lo, self.hi, self.weights, self.sample_weights, self.center, self.fidelity
