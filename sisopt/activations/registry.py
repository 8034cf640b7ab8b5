"""Activations by name, and how users add their own."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..errors import InvalidInputError
from ..targets import Interval
from .base import Activation, Array, Elementwise
from .coupled import LogSoftmax, Softmax, Sparsemax
from .dipping import DIPPING
from .increasing import CELU, ELEMENTARY, ELU, SELU, Softplus
from .piecewise import Clip, HardSigmoid, LeakyReLU, PReLU, SoftShrink, SquaredReLU

Forward = Callable[[Array], npt.ArrayLike]
Preimage = Callable[[Array, float], Interval | tuple[npt.ArrayLike, npt.ArrayLike]]


@dataclass(frozen=True)
class UserActivation(Elementwise):
    """An elementwise activation from a user's functions, whose answers are checked at every use."""

    function: Forward = field(repr=False)
    bounds: Preimage = field(repr=False)

    def _forward(self, z: Array) -> Array:
        outputs = np.asarray(self.function(z), dtype=np.float64)
        if outputs.shape != z.shape:
            msg = f"forward of activation {self.name!r} must keep the shape {z.shape}, got {outputs.shape}"
            raise InvalidInputError(msg)
        return outputs

    def _edges(self, z: Array, tolerance: float) -> tuple[Array, Array]:
        found = self.bounds(z, tolerance)
        try:
            lo, hi = (found.lo, found.hi) if isinstance(found, Interval) else found
            lo, hi = np.asarray(lo, dtype=np.float64), np.asarray(hi, dtype=np.float64)
        except (TypeError, ValueError):
            msg = f"preimage of activation {self.name!r} must return an Interval or a pair (lo, hi) of arrays"
            raise InvalidInputError(msg) from None
        if not lo.shape == hi.shape == z.shape:
            msg = f"preimage of activation {self.name!r} must keep the shape {z.shape}, got {lo.shape} and {hi.shape}"
            raise InvalidInputError(msg)
        outside = ~((lo <= z) & (z <= hi))
        if outside.any():
            i = tuple(np.argwhere(outside)[0])
            found_there = f"lo={lo[i]}, z0={z[i]}, hi={hi[i]}"
            msg = f"preimage of activation {self.name!r} must keep lo <= z0 <= hi, got {found_there}"
            raise InvalidInputError(msg)
        return lo, hi


def _key(name: str) -> str:
    return name.lower().translate(str.maketrans("", "", "-_ "))


_BUILT_IN: tuple[Activation, ...] = (
    Clip(-math.inf, math.inf),
    Clip(0.0, math.inf),
    Clip(0.0, 6.0),
    Clip(-1.0, 1.0),
    HardSigmoid(),
    LeakyReLU(),
    PReLU(),
    SoftShrink(),
    SquaredReLU(),
    ELU(),
    CELU(),
    SELU(),
    Softplus(),
    *ELEMENTARY,
    *DIPPING,
    Softmax(),
    LogSoftmax(),
    Sparsemax(),
)
_ACTIVATIONS: dict[str, Activation] = {_key(activation.name): activation for activation in _BUILT_IN}
_ALIASES = {
    "none": "identity",
    "linear": "identity",
    "swish": "silu",
    "hswish": "hardswish",
    "logistic": "sigmoid",
    "relu2": "squaredrelu",
    "gelunew": "gelutanh",
    "gelupytorchtanh": "gelutanh",
}


def activation_names() -> tuple[str, ...]:
    """Return the names of all known activations in alphabetical order, aliases such as "swish" left out.

    Examples
    --------
    >>> import sisopt
    >>> names = sisopt.activation_names()
    >>> "relu" in names, "gelu" in names, "swish" in names  # an alias of "silu"
    (True, True, False)
    """
    return tuple(sorted(activation.name for activation in _ACTIVATIONS.values()))


def get_activation(activation: str | Activation) -> Activation:
    """Return the activation of a name, or the activation itself.

    Parameters
    ----------
    activation : str or Activation
        A name of `activation_names` or an alias ("linear", "none", "swish", "hswish", ...); case, ``-`` and ``_`` do
        not matter. For other parameters than the default ones pass an object, such as ``LeakyReLU(0.2)``.

    Raises
    ------
    InvalidInputError
        If the name is unknown or the argument is of another type.

    Examples
    --------
    >>> import sisopt
    >>> sisopt.get_activation("swish").name
    'silu'
    >>> leaky = sisopt.activations.LeakyReLU(0.2)
    >>> sisopt.get_activation(leaky) is leaky
    True
    """
    if isinstance(activation, Activation):
        return activation
    if not isinstance(activation, str):
        msg = f"activation must be a name such as 'relu' or an Activation object, got {type(activation).__name__}"
        raise InvalidInputError(msg)
    found = _find(_key(activation))
    if found is None:
        close = difflib.get_close_matches(_key(activation), [*_ACTIVATIONS, *_ALIASES], n=3)
        names = dict.fromkeys(near.name for near in map(_find, close) if near is not None)
        closest = "did you mean " + " or ".join(map(repr, names)) + "?" if names else "nothing known comes close."
        msg = (
            f"activation must be a known name or an Activation object, got {activation!r}; {closest} "
            f"Known are {', '.join(activation_names())}; "
            "add your own with register_activation(name, forward, preimage)"
        )
        raise InvalidInputError(msg)
    return found


def _find(key: str) -> Activation | None:
    return _ACTIVATIONS.get(key) or _ACTIVATIONS.get(_ALIASES.get(key, ""))


def register_activation(
    name: str, forward: Forward, preimage: Preimage, *, lipschitz: float = math.inf, overwrite: bool = False
) -> Activation:
    """Make an elementwise activation of your own known by a name.

    Parameters
    ----------
    name : str
        The name; case, ``-`` and ``_`` do not matter when it is looked up.
    forward : callable
        ``forward(z)`` returns R(z), entry by entry, of the shape of the float64 array z.
    preimage : callable
        ``preimage(z0, tolerance)`` returns a `sisopt.targets.Interval` or a pair ``(lo, hi)`` of the shape of z0: an
        interval around z0 where ``|R(u) - R(z0)| <= tolerance``. ``(z0, z0)`` is always right; every wider one leaves
        more freedom.
    lipschitz : float
        The least L with ``|R(u) - R(v)| <= L |u - v|``.
    overwrite : bool
        Whether a known name may get a new meaning.

    Returns
    -------
    Activation
        What `get_activation` now returns for the name. It can be pickled if the two functions can.

    Raises
    ------
    InvalidInputError
        If the name is empty or known already, a function is not callable or the constant is negative or NaN. When the
        activation is used: if an answer has another shape than it should or ``lo <= z0 <= hi`` fails.

    Examples
    --------
    >>> import numpy as np, sisopt
    >>> def absolute_preimage(z0, tolerance):
    ...     return z0 - tolerance, z0 + tolerance
    >>> absolute = sisopt.register_activation("absolute value", np.abs, absolute_preimage, lipschitz=1.0)
    >>> sisopt.get_activation("Absolute-Value").forward([-2.0, 1.0])
    array([2., 1.])
    """
    key = _key(name) if isinstance(name, str) else ""
    if not key:
        msg = f"name of an activation must be a non-empty string, got {name!r}"
        raise InvalidInputError(msg)
    if _find(key) is not None and not overwrite:
        msg = f"activation {name!r} is known already; choose another name or pass overwrite=True"
        raise InvalidInputError(msg)
    if not (callable(forward) and callable(preimage)):
        msg = f"forward and preimage of activation {name!r} must be callable, got {forward!r} and {preimage!r}"
        raise InvalidInputError(msg)
    if not lipschitz >= 0:
        msg = f"lipschitz of activation {name!r} must be at least 0, inf if there is none, got {lipschitz!r}"
        raise InvalidInputError(msg)
    activation = UserActivation(name.strip(), float(lipschitz), forward, preimage)
    _ACTIVATIONS[key] = activation
    return activation
