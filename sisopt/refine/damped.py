"""The best values on a fixed support, with a ridge towards the dense weights: accelerated descent in the Gram metric.

    minimise phi(U) / L + ridge/2 ||U - U0||**2   over weights U that are zero off the support

in scaled weights (see `model`). Each step minimises the quadratic above it, a least-squares problem per neuron solved
by conjugate gradients on the Gram matrix; steps extrapolate, and start again where that ascends. Quadratic losses take
one such solve and no pass over the data.

References: Y. Nesterov, "A method of solving a convex programming problem with convergence rate O(1/k**2)", 1983;
B. O'Donoghue, E. Candes, "Adaptive restart for accelerated gradient schemes", 2015.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import numpy.typing as npt

from .model import LossModel

Floats = npt.NDArray[Any]

CG_STEPS = 6  # of a step's least-squares problem: the next step goes on
QUADRATIC_CG_STEPS = 40


def damped_refit(model: LossModel, start: Floats, ridge: float, steps: int, deadline: float) -> Floats:
    """Return scaled weights on the support of ``start`` that lower the loss, the best of those seen."""
    support = start != 0
    if model.is_quadratic:
        return _solve(model, start, start, support, ridge, QUADRATIC_CG_STEPS)[0]
    best, least = start, np.inf
    previous, at, momentum = start, start, 1.0
    for step in range(steps + 1):
        new, value = _solve(model, at, at, support, ridge, CG_STEPS if step < steps else 0)
        if value < least:
            best, least = at, value
        if step == steps:
            break
        if time.monotonic() >= deadline:  # the step from the best point lies below it, looked at or not
            return new if best is at else best
        if float(np.vdot(at - new, new - previous)) > 0:
            momentum = 1.0
        following = 0.5 * (1.0 + np.sqrt(1.0 + 4.0 * momentum**2))
        ahead = model.dtype.type((momentum - 1.0) / following)
        previous, at, momentum = new, new + ahead * (new - previous), following
    return best


def _solve(
    model: LossModel, at: Floats, start: Floats, support: npt.NDArray[np.bool_], ridge: float, steps: int
) -> tuple[Floats, float]:
    """Return the minimiser on the support of the quadratic that touches the loss at ``at``, and the value there."""
    delta = model.dtype.type(ridge)
    gradient, loss = model.gradient(at)
    off = at - model.dense
    value = loss + 0.5 * ridge * float(np.vdot(off, off))
    residual = np.where(support, -gradient - delta * off, 0.0).astype(model.dtype)
    U, direction = start, residual
    squares = np.einsum("ij,ij->i", residual, residual)
    for _ in range(steps):
        image = np.where(support, model.metric.times(direction) + delta * direction, 0.0)
        length = _ratio(squares, np.einsum("ij,ij->i", direction, image))
        U = U + length[:, None] * direction
        residual = residual - length[:, None] * image
        before, squares = squares, np.einsum("ij,ij->i", residual, residual)
        direction = residual + _ratio(squares, before)[:, None] * direction
    return U, value


def _ratio(above: Floats, below: Floats) -> Floats:
    """Return the quotients, 0 where the divisor is."""
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)
