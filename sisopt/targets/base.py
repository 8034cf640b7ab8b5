"""What every target offers, and what those that couple the outputs of a sample offer beside."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt

from ..errors import InvalidInputError

Array = npt.NDArray[np.float64]


class Target(Protocol):
    """A closed convex set S of pre-activations."""

    def project(self, z: npt.ArrayLike) -> Array:
        """Return the point of S nearest to z, of the shape of z."""
        ...

    def residual(self, z: npt.ArrayLike) -> Array:
        """Return ``z - project(z)``, whose norm is the distance to S."""
        ...

    def shifted(self, s: npt.ArrayLike) -> Target:
        """Return the set ``S - s``: where z may lie if a known finite s is added before the activation."""
        ...

    def contains(self, z: npt.ArrayLike, atol: float = 0.0) -> bool:
        """Whether every entry of z is within ``atol`` of its place in the projection of z."""
        ...


class CoupledTarget(ABC):
    """A set of pre-activations per sample, all outputs of a sample at once, that holds z + c 1 with z.

    Arrays are (n_samples, n_out), in float64; rows of W are no longer independent. Rounding leaves a projection outside
    of its set by about a unit in the last place, so `contains` wants a tolerance there.
    """

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """``(n_samples, n_out)``."""

    @abstractmethod
    def __getitem__(self, samples: slice) -> Self:
        """Return the target of a block of samples, sharing memory."""

    @abstractmethod
    def project(self, z: npt.ArrayLike) -> Array:
        """Return the point of the set nearest to z (n_samples, n_out) sample by sample."""

    @abstractmethod
    def residual(self, z: npt.ArrayLike) -> Array:
        """Return ``z - project(z)``, whose norm is the distance; every sample's entries add up to zero."""

    @abstractmethod
    def shifted(self, s: npt.ArrayLike) -> Self:
        """Return the set ``S - s``, s broadcastable to (n_samples, n_out)."""

    def best_bias(
        self,
        z: npt.ArrayLike,
        sample_weights: npt.ArrayLike,
        anchor: npt.ArrayLike,
        center: npt.ArrayLike | None = None,
        fidelity: float = 0.0,
    ) -> Array:
        """Return the b (n_out,) that minimises the loss of z + b.

        That is ``phi(b) = 1/2 sum_k v_k (dist(z_k + b, S_k)**2 + beta |z_k + b - c_k|**2)``.

        Parameters
        ----------
        z : array_like, shape (n_samples, n_out)
            Pre-activations without b.
        sample_weights : array_like, shape (n_samples,)
            v, at least 0.
        anchor : array_like, shape (n_out,)
            Where the search starts. Without fidelity b may move by a common shift; its mean is then the anchor's,
            which makes b the minimiser nearest to the anchor up to what else is free.
        center : array_like, shape (n_samples, n_out), optional
            c; needed where ``fidelity > 0``.
        fidelity : float
            beta, at least 0.

        Raises
        ------
        InvalidInputError
            If an array has a shape that does not fit the target's, or the centre is missing.
        """
        values, center = self._read("z", z), self._read_center(center, fidelity)
        v, start = kernel_array(sample_weights), np.array(anchor, dtype=np.float64)  # a copy: it may be the answer
        for name, array, size in (("sample_weights", v, self.shape[0]), ("anchor", start, self.shape[1])):
            if array.shape != (size,):
                msg = f"{name} must have shape ({size},) to fit a target of shape {self.shape}, got {array.shape}"
                raise InvalidInputError(msg)
        return self._best_bias(values, v, start, center, fidelity)

    @abstractmethod
    def _best_bias(self, z: Array, v: Array, anchor: Array, center: Array | None, fidelity: float) -> Array:
        """Return the best bias; arrays were checked, there is no centre without fidelity."""

    def contains(self, z: npt.ArrayLike, atol: float = 0.0) -> bool:
        """Whether no entry of z is farther than ``atol`` from its place in the projection of z."""
        return bool((np.abs(self.residual(z)) <= atol).all())

    def _read_center(self, center: npt.ArrayLike | None, fidelity: float) -> Array | None:
        """Return the centre, or None where there is no fidelity to it."""
        if fidelity == 0.0:
            return None
        if center is None:
            msg = f"center must be given with fidelity={fidelity:g}: the dense pre-activations less the shift"
            raise InvalidInputError(msg)
        return self._read("center", center)

    def _read(self, name: str, z: npt.ArrayLike) -> Array:
        """Return z as the kernels read it, checked against the shape of the target."""
        array = kernel_array(z)
        if array.shape != self.shape:
            msg = f"{name} must have shape {self.shape} (n_samples, n_out) of the target, got {array.shape}"
            raise InvalidInputError(msg)
        return array


def kernel_array(values: npt.ArrayLike) -> Array:
    """Return a C-contiguous float64 array, copied where read-only: kernels compile once per layout."""
    return np.require(values, np.float64, ["C_CONTIGUOUS", "WRITEABLE"])
