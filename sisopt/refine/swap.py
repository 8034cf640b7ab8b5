"""Which weights stay: ADMM on the number of weights, with the targets followed as the pre-activations move.

    minimise phi(U) / L + ridge/2 ||U - U0||**2   over weights U that keep to a pattern

in scaled weights (see `model`). With B = V G - grad phi(V) / L + ridge U0 the quadratic above it at V, ADMM alternates

    U <- (B + rho D - Y) (G + (ridge + rho) I)^-1,   D <- what the pattern keeps of U + Y / rho,   Y += rho (U - D)

while rho grows: slowly enough, from a small value, for weights to trade places. B follows when U has moved, taken a
little beyond U, because the set of pre-activations that give the same output lets it go on. It ends when the support
no longer moves and U has come to it.

References: S. Boyd et al., "Distributed optimization and statistical learning via the alternating direction method of
multipliers", 2011; X. Meng et al., "ALPS", 2024, for the growing rho on linear layers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .model import LossModel

Floats = npt.NDArray[Any]
Select = Callable[[Floats], npt.NDArray[np.bool_]]  # scores (n_out, n_in) -> where weights stay

EVERY = 3  # steps at one rho
BEYOND = 0.5  # of the last move, that targets are taken at beyond the weights
SETTLED = 5e-4  # of the kept weights: a support of which no more changes has settled
NEAR = 0.1  # of the kept weights' norm: so near them have all weights come by then
MAX_STEPS = 600


@dataclass(frozen=True)
class Schedule:
    """How rho grows, from ``start`` by ``growth`` every EVERY steps, and when the targets follow.

    They do where weights have moved by ``follow`` of their way from the dense ones since they last did. Where the loss
    is quadratic nothing has to follow, steps are cheap, and rho grows by the root of ``growth``.
    """

    start: float
    growth: float
    follow: float


FAST = Schedule(start=0.02, growth=1.5, follow=0.3)
DEFAULT = Schedule(start=0.01, growth=1.15, follow=0.15)
FULL = Schedule(start=0.01, growth=1.07, follow=0.03)


def swap(
    model: LossModel, start: Floats, select: Select, schedule: Schedule, ridge: float, deadline: float
) -> tuple[Floats, int]:
    """Return scaled weights that keep to the pattern, and the number of steps taken.

    ``select`` maps scores (n_out, n_in) to where weights stay; ``start`` need not keep to the pattern.
    """
    number = model.dtype.type
    forbidden = ~model.problem.allowed()
    U, behind = start, start
    D, Y = U, np.zeros_like(U)
    B = _pull(model, U, ridge)
    rho, growth = number(schedule.start), schedule.growth
    if model.is_quadratic:
        growth = math.sqrt(growth)
    kept, solve = None, model.metric.shifted(ridge + schedule.start, len(start))
    steps = 0
    while steps < MAX_STEPS and (kept is None or time.monotonic() < deadline):
        if steps % EVERY == 0 and steps > 0 and not model.is_quadratic:
            move = U - behind
            if np.linalg.norm(move) > schedule.follow * np.linalg.norm(U - model.dense):
                B = _pull(model, U + number(BEYOND) * move, ridge)
                behind = U
        U = solve(B + rho * D - Y)
        A = U + Y / rho
        scores = np.abs(A)
        scores[forbidden] = -1.0
        stays = select(scores)
        D = np.where(stays, A, number(0.0))
        Y = rho * (A - D)
        steps += 1
        if not stays.any():
            break
        if steps % EVERY == 0:
            settled = kept is not None and np.count_nonzero(kept != stays) <= 2.0 * SETTLED * np.count_nonzero(stays)
            if settled and np.linalg.norm(U - D) <= NEAR * np.linalg.norm(D):
                break
            kept = stays
            rho = number(rho * growth)
            solve = model.metric.shifted(ridge + float(rho), len(start))
    return D, steps


def _pull(model: LossModel, at: Floats, ridge: float) -> Floats:
    """Return B: the linear term of the quadratic above the loss that touches it at ``at``."""
    gradient, _ = model.gradient(at)
    pull: Floats = model.metric.times(at) - gradient + model.dtype.type(ridge) * model.dense
    return pull
