"""The few functions of scipy.special that activations need, imported when first called: that import is slow."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def expit(z: Array) -> Array:
    """Return the logistic sigmoid 1 / (1 + exp(-z))."""
    from scipy import special  # noqa: PLC0415

    return np.asarray(special.expit(z))


def log_expit(z: Array) -> Array:
    """Return log(expit(z)) without underflow."""
    from scipy import special  # noqa: PLC0415

    return np.asarray(special.log_expit(z))


def logit(y: Array) -> Array:
    """Return log(y / (1 - y)), the inverse of expit."""
    from scipy import special  # noqa: PLC0415

    return np.asarray(special.logit(y))


def ndtr(z: Array) -> Array:
    """Return the standard normal distribution function."""
    from scipy import special  # noqa: PLC0415

    return np.asarray(special.ndtr(z))
