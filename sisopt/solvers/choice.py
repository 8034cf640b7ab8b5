"""Which solver of the penalised program a problem gets: by its targets and penalty, never by time."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..activations import LogSoftmax, Softmax
from ..gram_statistics import is_quadratic
from ..problem import LayerProblem
from .forward_backward import DataRows
from .joint import JointRows
from .quadratic import QuadraticRows
from .quadratic_groups import QuadraticGroups
from .quadratic_line import QuadraticLine
from .rounds import RowSolver
from .rows import State

FLOAT64 = np.dtype(np.float64)


def row_solver(problem: LayerProblem, state: State, n_threads: int, dtype: np.dtype[Any] = FLOAT64) -> RowSolver:
    """Return a solver in Gram space where all targets are points, else one over the data.

    ``dtype`` is the precision in which rows are solved over the data, where each is a problem of its own.
    """
    if isinstance(problem.activation, Softmax | LogSoftmax) and problem.structure.labels is None:
        return QuadraticLine(problem, state, n_threads)
    if not is_quadratic(problem):
        return data_solver(problem, state, n_threads, dtype)
    if problem.structure.labels is None:
        return QuadraticRows(problem, state, n_threads)
    return QuadraticGroups(problem, state, n_threads)


def data_solver(problem: LayerProblem, state: State, n_threads: int, dtype: np.dtype[Any] = FLOAT64) -> RowSolver:
    """Return a solver over the data."""
    if problem.structure.labels is None and not problem.activation.couples_outputs:
        return DataRows(problem, state, n_threads, dtype)
    return JointRows(problem, state, n_threads)
