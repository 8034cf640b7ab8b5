"""solve(): a goal through cvxpy, and what comes back."""

from __future__ import annotations

import math
import time
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ConvergenceWarning, UnsupportedError
from ..goals import ErrorBudget, Penalized
from ..problem import LayerProblem
from .engine import Engine
from .groups import multiplier
from .search import Search

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ReferenceSolution:
    """What cvxpy found.

    Attributes
    ----------
    weight : ndarray, shape (n_out, n_in)
        W in float64, whatever the dtype of the layer. Zeros are only as exact as the solver's tolerance, save those of
        the mask.
    bias : ndarray, shape (n_out,), or None
        The best bias for ``weight``, the nearest to the dense one where several are; None where none is fitted. With
        mini-batches or coupled outputs, the program's own.
    objective : float
        ``multiplier * g(W) + phi(W, b)`` or ``g(W)``, computed from ``weight`` and ``bias``.
    radius, relative_error : float
        ``sqrt(2 phi)`` of ``weight`` and ``bias``, and the same over the radius of the best constant layer.
    multiplier : float
        lambda of the penalised program that has this solution. For a budget epsilon it is 1 / mu, so
        ``d g / d epsilon = -epsilon / lambda``; ``inf`` where the budget does not bind (W = 0), 0 where it is the least
        that can be kept, ``nan`` where there are several budgets.
    duals : ndarray, shape (J,)
        The dual variables mu_j >= 0 of the J budgets, in ``g + sum_j mu_j/2 (2 phi_j - epsilon_j**2)``: 0 where a
        budget does not bind, ``inf`` where it is the least that can be kept. ``[1 / lambda]`` for `sisopt.Penalized`.
    status : str
        "optimal", "inaccurate" or "limit": see `STATUS`.
    seconds : float
        Wall-clock time of the call, the time that cvxpy takes to compile the program included.
    solver : str
        Name of the solver that cvxpy called.

    Examples
    --------
    >>> import sisopt
    >>> problem = sisopt.LayerProblem([[1.0, 0.0], [0.0, 1.0]], [[2.0, 1.0]])
    >>> answer = sisopt.reference.solve(problem, sisopt.Penalized(0.5))
    >>> answer.weight.round(6), answer.status
    (array([[1.5, 0.5]]), 'optimal')
    """

    weight: Array
    bias: Array | None
    objective: float
    radius: float
    relative_error: float
    multiplier: float
    duals: Array
    status: str
    seconds: float
    solver: str


def solve(
    problem: LayerProblem,
    goal: Penalized | ErrorBudget,
    *,
    solver: str = "CLARABEL",
    compress: bool = True,
    **solver_options: Any,
) -> ReferenceSolution:
    """Solve a layer problem with a general-purpose convex solver, through cvxpy.

    With ``g(W) = sum_ij a_ij |W_ij| + sum_g kappa_g ||W_g||`` and phi as in `sisopt.LayerProblem` it solves::

        minimise  lambda g(W) + phi(W, b)                          for Penalized(lambda)
        minimise  g(W)  s.t.  sqrt(2 phi_j) <= epsilon_j  for all j  for ErrorBudget, phi_j the part of group j

    neuron by neuron where these separate, else as one program. The loss is written with one slack per interval entry,
    ``e >= z - hi`` and ``e >= lo - z``, and no slack for points; softmax and sparsemax have one more variable for every
    sample. None of it uses the solvers or the kernels of sisopt, epsilon included.

    Parameters
    ----------
    problem : LayerProblem
        ``inputs`` (n_samples, n_in), ``weight`` (n_out, n_in); also one made by `sisopt.LayerProblem.from_gram`.
    goal : Penalized or ErrorBudget
        lambda in units of phi / g, or the budget: see there.
    solver : str, default "CLARABEL"
        A solver that cvxpy has installed and that takes second-order cones (quadratic programs for `sisopt.Penalized`
        with an l1 norm).
    compress : bool, default True
        Replace the part of the loss that is quadratic everywhere (points, fidelity) by its triangular factor: the same
        program, with n_in + 1 squares instead of n_samples, of every neuron and mini-batch. Not for softmax and
        sparsemax. False poses the program as it is written, but for the inputs, which are centred and scaled always.
    **solver_options
        Passed to the solver. Tolerances are 1e-9 for CLARABEL and 1e-6 for SCS unless given here.

    Returns
    -------
    ReferenceSolution
        Weights, bias, objective, attained radius, dual variables.

    Raises
    ------
    InfeasibleBudgetError
        If no weights keep the budgets; ``least_relative_error`` is sqrt(sum_j epsilon_j**2) / epsilon_max of the least
        budgets in the same proportions that could be kept. Radii below 1e-7 of those of W = 0 count as 0.
    InvalidInputError
        If the solver is not installed or refuses an option.
    UnsupportedError
        For a `sisopt.Sparsity` goal, which is not one convex program, and budgets that the problem cannot be split
        for.
    SisoptError
        If cvxpy is missing or the solver fails.

    Warns
    -----
    ConvergenceWarning
        If the solver stopped before it reached its tolerance.

    Examples
    --------
    >>> import numpy as np, sisopt
    >>> rng = np.random.default_rng(0)
    >>> problem = sisopt.LayerProblem(rng.normal(size=(200, 8)), rng.normal(size=(3, 8)), activation="relu")
    >>> budget = sisopt.ErrorBudget(relative_error=0.3)
    >>> theirs = sisopt.reference.solve(problem, budget)
    >>> ours = sisopt.solve(problem, budget, tol=1e-6)
    >>> bool(np.isclose(ours.objective, theirs.objective, rtol=1e-5))
    True

    References
    ----------
    S. Diamond, S. Boyd, "CVXPY: A Python-Embedded Modeling Language for Convex Optimization", JMLR 2016.
    """
    if not isinstance(goal, Penalized | ErrorBudget):
        msg = (
            f"the reference solves Penalized and ErrorBudget goals, got {type(goal).__name__}: a sparsity is not one "
            "convex program; solve it with sisopt.solve and certify ErrorBudget(radius=solution.radius)"
        )
        raise UnsupportedError(msg)
    search = Search(problem, goal, Engine(solver, solver_options), compress)
    start = time.perf_counter()  # importing cvxpy, once per process, is not counted
    search.find_empty()
    duals = search.penalized(goal.multiplier) if isinstance(goal, Penalized) else search.budget(goal)
    engine, weight = search.engine, search.weight
    if engine.status != "optimal":
        msg = f"{engine.solver} stopped with status {engine.status!r}: allow more iterations or a looser tolerance"
        warnings.warn(msg, ConvergenceWarning, stacklevel=2)
    losses = search.losses()
    radius, empty_radius = (math.sqrt(2.0 * x.sum()) for x in (losses, search.empty))
    objective = problem.penalty.value(weight)
    if isinstance(goal, Penalized):
        objective = goal.multiplier * objective + float(losses.sum())
    return ReferenceSolution(
        weight=weight,
        bias=search.bias if problem.has_bias else None,
        objective=objective,
        radius=radius,
        relative_error=radius / empty_radius if empty_radius > 0 else 0.0,
        multiplier=multiplier(duals),
        duals=duals,
        status=engine.status,
        seconds=time.perf_counter() - start,
        solver=engine.solver,
    )
