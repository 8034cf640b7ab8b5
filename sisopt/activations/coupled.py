"""Activations of all outputs of a sample at once: softmax, log-softmax, sparsemax, over the last axis."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from ..errors import InvalidInputError, UnsupportedError
from ..targets import CoupledTarget, Line, SparsemaxSet
from .base import Activation, Array, check_tolerance


@dataclass(frozen=True)
class Coupled(Activation):
    """An R that does not change when a constant is added to all outputs of a sample."""

    couples_outputs: ClassVar[bool] = True

    def forward(self, z: npt.ArrayLike) -> Array:
        """Return the outputs R(z), of the shape of z (..., n_out), in float64."""
        values = np.asarray(z, dtype=np.float64)
        if values.ndim == 0 or values.shape[-1] == 0:
            msg = f"z must have the outputs of {self.name} along its last axis, at least one, got shape {values.shape}"
            raise InvalidInputError(msg)
        return super().forward(values)

    def preimage(self, z0: npt.ArrayLike, tolerance: float = 0.0) -> CoupledTarget:
        """Return the preimage of R(z0), a set of all outputs per sample that contains z0.

        Parameters
        ----------
        z0 : array_like, shape (n_samples, n_out)
            The finite pre-activations of the dense layer.
        tolerance : float
            Only 0.

        Raises
        ------
        InvalidInputError
            If z0 is not finite or of another number of dimensions, or the tolerance is negative or not finite.
        UnsupportedError
            If the tolerance is positive.
        """
        check_tolerance(tolerance)
        if tolerance > 0.0:
            msg = (
                f"tolerance must be 0 for activation {self.name!r}, which couples the outputs of a sample, "
                f"got {tolerance!r}; allow a larger error budget instead"
            )
            raise UnsupportedError(msg)
        z = np.asarray(z0, dtype=np.float64)
        if z.ndim != 2 or z.shape[1] == 0:
            msg = f"z0 of {self.name} must have shape (n_samples, n_out) with at least one output, got {z.shape}"
            raise InvalidInputError(msg)
        if not np.isfinite(z).all():
            msg = f"z0 of {self.name} must be finite"
            raise InvalidInputError(msg)
        return self._preimage(z)

    def _preimage(self, z: Array) -> CoupledTarget:
        return Line(z)


def _below_largest(z: Array) -> Array:
    return np.asarray(z - z.max(axis=-1, keepdims=True))


@dataclass(frozen=True)
class Softmax(Coupled):
    """``R(z)_i = exp(z_i) / sum_j exp(z_j)``, the proximity operator of ``sum_i y_i log y_i - y_i**2 / 2``.

    The sum is over the simplex. The preimage of y is the line ``{log y + c 1} = {z0 + c 1}``; the Jacobian
    ``diag(y) - y y'`` has norm at most 1/2, attained where two outputs share everything.

    Examples
    --------
    >>> import sisopt
    >>> softmax = sisopt.Softmax()
    >>> softmax.forward([[1.0, 1.0]])
    array([[0.5, 0.5]])
    >>> softmax.preimage([[1.0, 1.0]]).residual([[3.0, 3.0]])  # a common shift changes nothing
    array([[0., 0.]])
    """

    name: str = field(default="softmax", init=False, repr=False)
    lipschitz: float = field(default=0.5, init=False, repr=False)

    def _forward(self, z: Array) -> Array:
        powers = np.exp(_below_largest(z))
        return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


@dataclass(frozen=True)
class LogSoftmax(Coupled):
    """``R(z) = z - log(sum_j exp(z_j)) 1``, with the preimages of softmax.

    The Jacobian ``I - 1 y'`` has norm ``sqrt(n_out) |y|``: on n_out > 1 outputs the least Lipschitz constant is
    ``sqrt(n_out)``, and there is none that serves all numbers of outputs.

    Examples
    --------
    >>> import numpy as np, sisopt
    >>> np.exp(sisopt.LogSoftmax().forward([[1.0, 1.0]])).round(6)
    array([[0.5, 0.5]])
    """

    name: str = field(default="log_softmax", init=False, repr=False)
    lipschitz: float = field(default=math.inf, init=False, repr=False)

    def _forward(self, z: Array) -> Array:
        below = _below_largest(z)
        return np.asarray(below - np.log(np.exp(below).sum(axis=-1, keepdims=True)))


@dataclass(frozen=True)
class Sparsemax(Coupled):
    """``R(z) = max(z - t, 0)`` with the threshold t at which the outputs add up to 1 [1]_.

    It is the projection onto the simplex, so its Lipschitz constant is 1. The preimage of y is
    ``{p : p = y + c on the support of y, p <= c elsewhere, c real}``.

    Examples
    --------
    >>> import sisopt
    >>> sisopt.Sparsemax().forward([[1.0, 0.5, -1.0]])
    array([[0.75, 0.25, 0.  ]])

    References
    ----------
    .. [1] A. Martins, R. Astudillo, "From Softmax to Sparsemax: A Sparse Model of Attention and Multi-Label
       Classification", ICML 2016.
    """

    name: str = field(default="sparsemax", init=False, repr=False)
    lipschitz: float = field(default=1.0, init=False, repr=False)

    def _forward(self, z: Array) -> Array:
        below = _below_largest(z)
        return np.asarray(np.maximum(below - _threshold(below), 0.0))

    def _preimage(self, z: Array) -> SparsemaxSet:
        below = _below_largest(z)
        threshold = _threshold(below)
        # The level is z0 itself on the support, and rounding may not put it below z0 elsewhere.
        level = np.maximum(z, z.max(axis=-1, keepdims=True) + threshold)
        support = below > threshold
        return SparsemaxSet(np.where(support, z, level), support)


def _threshold(below: Array) -> Array:
    """Return t (..., 1) with sum_i max(below_i - t, 0) = 1, where the largest entry of ``below`` is 0."""
    # Entries at or under -1 are never in the support; clipped, they cannot overflow the sums.
    falling = -np.sort(-np.maximum(below, -1.0), axis=-1)
    sums = np.cumsum(falling, axis=-1)
    counts = np.arange(1, below.shape[-1] + 1)
    size = np.count_nonzero(1.0 + counts * falling > sums, axis=-1, keepdims=True)
    return np.asarray((np.take_along_axis(sums, size - 1, axis=-1) - 1.0) / size)
