"""What is asked of a problem: a multiplier, an error budget or a sparsity."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .errors import InvalidInputError
from .validation import positive_integer

PER = ("layer", "batch", "neuron")


def _number(name: str, value: object, low: float, high: float, wanted: str) -> float:
    try:
        number = math.nan if isinstance(value, str | bytes | bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not low <= number <= high or math.isinf(number):
        msg = f"{name} must be {wanted}, got {value!r}"
        raise InvalidInputError(msg)
    return number


@dataclass(frozen=True)
class Penalized:
    """Minimise ``multiplier * g(W) + phi(W, b)`` at a given multiplier.

    Parameters
    ----------
    multiplier : float
        The weight lambda > 0 of the penalty g, in units of phi / g: squared pre-activations over weights.

    Examples
    --------
    >>> import numpy as np, sisopt
    >>> rng = np.random.default_rng(0)
    >>> problem = sisopt.LayerProblem(rng.normal(size=(200, 8)), rng.normal(size=(3, 8)), activation="relu")
    >>> solution = sisopt.solve(problem, sisopt.Penalized(20.0))
    >>> solution.multiplier, solution.gap < 1e-4
    (20.0, True)
    """

    multiplier: float

    def __post_init__(self) -> None:
        value = _number("multiplier", self.multiplier, 0.0, math.inf, "a positive finite number")
        if value == 0.0:
            msg = "multiplier must be a positive finite number, got 0: then nothing makes W sparse"
            raise InvalidInputError(msg)
        object.__setattr__(self, "multiplier", value)


@dataclass(frozen=True)
class ErrorBudget:
    """Minimise ``g(W)`` subject to ``radius <= epsilon``, where ``radius = sqrt(2 phi)``.

    Exactly one of the three measures of the budget is given.

    Parameters
    ----------
    relative_error : float, optional
        epsilon / epsilon_max, where epsilon_max is the radius of the best constant layer (W = 0, best b):
        0 asks for the outputs of the dense layer, 1 or more is met by W = 0.
    eta : float, optional
        Mean squared distance per sample, the eta of the SIS paper: epsilon**2 / n_samples, or over the sum of the
        sample weights where there are any.
    radius : float, optional
        epsilon itself, in units of pre-activations.
    per : {"layer", "batch", "neuron"}
        What shares one budget: all entries of the layer; every mini-batch j of T_j samples, with
        ``epsilon_j**2 = T_j eta`` as in the SIS paper (T_j the sum of the sample weights where there are any); or every
        output neuron i, with ``epsilon_i`` the given fraction of its own epsilon_max, or ``epsilon_i**2`` an equal
        share of ``n_samples eta``. A ``radius`` is that of every group.
    batch_size : int, optional
        Samples of a mini-batch, taken in order; the last one may be shorter. Needed with ``per="batch"``, except
        where the problem comes in mini-batches already.

    Examples
    --------
    >>> import numpy as np, sisopt
    >>> rng = np.random.default_rng(0)
    >>> problem = sisopt.LayerProblem(rng.normal(size=(200, 8)), rng.normal(size=(3, 8)), activation="relu")
    >>> solution = sisopt.solve(problem, sisopt.ErrorBudget(relative_error=0.3))
    >>> f"{solution.relative_error:.3f}"
    '0.300'
    >>> budgets = sisopt.ErrorBudget(eta=0.5, per="batch", batch_size=50)
    >>> sisopt.solve(problem, budgets).duals.size
    4

    References
    ----------
    S. Verma, J.-C. Pesquet, "Sparsifying Networks via Subdifferential Inclusion", ICML 2021.
    """

    relative_error: float | None = None
    eta: float | None = None
    radius: float | None = None
    per: str = "layer"
    batch_size: int | None = None

    def __repr__(self) -> str:
        given = ((name, getattr(self, name)) for name in ("relative_error", "eta", "radius"))
        parts = [f"{name}={value:g}" for name, value in given if value is not None]
        parts += [f"per={self.per!r}"] * (self.per != "layer")
        parts += [f"batch_size={self.batch_size}"] * (self.batch_size is not None)
        return f"ErrorBudget({', '.join(parts)})"

    def __post_init__(self) -> None:
        measures = ("relative_error", "eta", "radius")
        given = [name for name in measures if getattr(self, name) is not None]
        if len(given) != 1:
            found = "none" if not given else " and ".join(given)
            msg = f"ErrorBudget takes exactly one of relative_error, eta and radius, got {found}"
            raise InvalidInputError(msg)
        if self.per not in PER:
            msg = f"per must be one of {', '.join(map(repr, PER))}, got {self.per!r}"
            raise InvalidInputError(msg)
        if self.batch_size is not None:
            if self.per != "batch":
                msg = f"batch_size goes with per='batch' only, got per={self.per!r}"
                raise InvalidInputError(msg)
            object.__setattr__(self, "batch_size", positive_integer("batch_size", self.batch_size))
        name = given[0]
        value = _number(name, getattr(self, name), 0.0, math.inf, "a finite number of at least 0")
        object.__setattr__(self, name, value)

    def epsilon(self, empty_radius: float, n_samples: float) -> float:
        """Return the budget as a radius, given epsilon_max and the number of samples."""
        if self.relative_error is not None:
            return self.relative_error * empty_radius
        if self.eta is not None:
            return math.sqrt(self.eta * n_samples)
        assert self.radius is not None
        return self.radius


@dataclass(frozen=True)
class Sparsity:
    """Find the multiplier at which the given fraction of the weights is zero.

    Parameters
    ----------
    sparsity : float
        Fraction of zero weights asked for, in [0, 1]. The solution has round((1 - sparsity) * size) non-zero weights
        up to max(1, 0.002 * size); at a jump of the path it is the sparser side.

    Examples
    --------
    >>> import numpy as np, sisopt
    >>> rng = np.random.default_rng(0)
    >>> problem = sisopt.LayerProblem(rng.normal(size=(200, 40)), rng.normal(size=(10, 40)), activation="relu")
    >>> f"{sisopt.solve(problem, sisopt.Sparsity(0.75)).sparsity:.2f}"
    '0.75'
    """

    sparsity: float

    def __post_init__(self) -> None:
        wanted = "a number in [0, 1], the fraction of zero weights"
        object.__setattr__(self, "sparsity", _number("sparsity", self.sparsity, 0.0, 1.0, wanted))

    def kept(self, size: int) -> int:
        """Return the number of weights to keep of ``size``."""
        return round((1.0 - self.sparsity) * size)


Goal = Penalized | ErrorBudget | Sparsity
