"""What an activation is: a forward map, a Lipschitz constant and the preimages of its outputs."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from ..errors import InvalidInputError
from ..targets import Interval, Target

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Activation(ABC):
    """An activation R, with the preimages of its outputs.

    Most activations are proximity operators R = prox_f of a convex f [1]_. The subdifferential inclusion
    ``z - y in df(y)`` of the SIS method [2]_ then says that z is in the preimage ``R^-1({y})``, closed and convex.
    Instances are immutable, compare by value and can be pickled.

    Attributes
    ----------
    name : str
        The name it goes by in messages and in the registry.
    lipschitz : float
        The least L with ``|R(u) - R(v)| <= L |u - v|`` in the Euclidean norm, ``inf`` if there is none. It turns
        distances in pre-activations into bounds on the error of the outputs.
    couples_outputs : bool
        Whether an output depends on the other pre-activations of its sample, as for softmax: then arrays are
        (n_samples, n_out) and targets such as `sisopt.targets.Line`; otherwise they are a `sisopt.targets.Interval`.
    nondecreasing : bool
        Whether R acts entry by entry and never decreases, as far as is known.

    Examples
    --------
    >>> import sisopt
    >>> relu = sisopt.get_activation("relu")
    >>> relu.forward([2.0, -1.0])
    array([2., 0.])
    >>> target = relu.preimage([2.0, -1.0])  # off, any negative pre-activation does
    >>> target.lo, target.hi
    (array([  2., -inf]), array([2., 0.]))

    References
    ----------
    .. [1] P. L. Combettes, J.-C. Pesquet, "Deep neural network structures solving variational inequalities",
       Set-Valued and Variational Analysis, 2020.
    .. [2] S. Verma, J.-C. Pesquet, "Sparsifying Networks via Subdifferential Inclusion", ICML 2021.
    """

    couples_outputs: ClassVar[bool] = False
    nondecreasing: ClassVar[bool] = False

    name: str
    lipschitz: float = field(repr=False)

    def forward(self, z: npt.ArrayLike) -> Array:
        """Return the outputs R(z) in float64, of the shape of z but for pooling, which shortens the last axis."""
        with np.errstate(over="ignore", under="ignore", divide="ignore"):
            return np.asarray(self._forward(np.asarray(z, dtype=np.float64)))

    @abstractmethod
    def preimage(self, z0: npt.ArrayLike, tolerance: float = 0.0) -> Target:
        """Return a closed convex set around z0 on which every output stays within ``tolerance`` of R(z0).

        Parameters
        ----------
        z0 : array_like
            The finite pre-activations of the dense layer.
        tolerance : float
            How far an output may move, at least 0, in units of outputs.

        Raises
        ------
        InvalidInputError
            If the tolerance is not a finite number of at least 0.
        UnsupportedError
            If the tolerance is positive and the activation couples outputs.
        """

    @abstractmethod
    def _forward(self, z: Array) -> Array:
        """Return R(z); overflow and underflow are silenced by the caller."""


@dataclass(frozen=True)
class Elementwise(Activation):
    """An activation that acts entry by entry: its preimages are boxes."""

    def preimage(self, z0: npt.ArrayLike, tolerance: float = 0.0) -> Interval:
        """Return the interval around z0 on which the output stays within ``tolerance`` of R(z0).

        It is the connected component that contains z0 of ``{u : |R(u) - R(z0)| <= tolerance}``; for a monotone R all
        of ``R^-1([y - tolerance, y + tolerance])``, y = R(z0). Rounding of the output apart, it is never larger.

        Parameters
        ----------
        z0 : array_like, any shape
            The finite pre-activations of the dense layer. Where R is strictly monotone and the tolerance is 0 they
            come back unchanged as ``lo = hi = z0``: outputs are never inverted.
        tolerance : float
            How far an output may move, at least 0, in units of outputs.

        Returns
        -------
        Interval of the shape of z0
            With ``lo <= z0 <= hi``, always.

        Raises
        ------
        InvalidInputError
            If the tolerance is not a finite number of at least 0.
        """
        z = np.asarray(z0, dtype=np.float64)
        check_tolerance(tolerance)
        with np.errstate(over="ignore", under="ignore", divide="ignore"):
            lo, hi = self._edges(np.atleast_1d(z), float(tolerance))
        # Rounding may not put the dense layer outside of its own target.
        return Interval(np.minimum(lo.reshape(z.shape), z), np.maximum(hi.reshape(z.shape), z))

    @abstractmethod
    def _edges(self, z: Array, tolerance: float) -> tuple[Array, Array]:
        """Return the ends of the preimage, up to rounding."""


def check_tolerance(tolerance: float) -> None:
    """Raise InvalidInputError unless the tolerance is a finite number of at least 0."""
    if not 0.0 <= tolerance < math.inf:
        msg = f"tolerance must be a finite number of at least 0, in units of outputs, got {tolerance!r}"
        raise InvalidInputError(msg)


def inward(tolerance: float, outputs: Array) -> Array:
    """Return the tolerance less a few roundings of the outputs, at least 0, so that edges solved for err inward."""
    rounding = 4.0 * np.finfo(np.float64).eps * np.abs(outputs)
    return np.asarray(np.maximum(tolerance - rounding, 0.0))


def check_parameter(owner: str, name: str, value: float, *, allow_zero: bool = False) -> None:
    """Raise InvalidInputError unless the parameter is a positive (or zero) finite number."""
    if not (0.0 < value < math.inf or (allow_zero and value == 0.0)):
        wanted = "a finite number of at least 0" if allow_zero else "a positive finite number"
        msg = f"{name} of {owner} must be {wanted}, got {value!r}"
        raise InvalidInputError(msg)
