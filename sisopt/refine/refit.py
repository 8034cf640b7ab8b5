"""The best values on a fixed support: the convex program without its penalty, so that nothing stays shrunken."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..certificate import RowSums
from ..penalties import L1
from ..problem import LayerProblem
from ..solvers.choice import row_solver
from ..solvers.rows import Limits, State

Array = npt.NDArray[np.float64]

REFIT_ACCURACY = 1e-5  # of a row's loss: a row whose next step promises less has arrived
MAX_STEPS = 200


def refit(problem: LayerProblem, weight: Array, deadline: float, n_threads: int) -> Array:
    """Minimise phi(W, b) over the weights on the support of ``weight`` and the bias.

    Starts from ``weight`` (n_out, n_in) and only descends, so it never ends above it. Returns the new weights.
    """
    narrowed = problem.with_mask(weight != 0, L1())  # no penalty counts here, but one without groups solves faster
    none = np.zeros(problem.n_out)
    state = State.start(weight.copy(), problem.dense_bias, RowSums(none, none, none, none))
    solver = row_solver(narrowed, state, n_threads)
    solver.solve(0.0, none, Limits(0, deadline))  # measures the loss that the tolerances refer to
    solver.solve(0.0, REFIT_ACCURACY * state.loss, Limits(MAX_STEPS, deadline))
    return state.weight
