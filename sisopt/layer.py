"""sparsify(): one layer, arrays in, arrays out: the composition of everything else."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .activations import Activation
from .capabilities import METHODS
from .dispatch import MAX_ITERATIONS, solve_silently, warn_unless_optimal
from .errors import InvalidInputError
from .evaluation import evaluate, output_error
from .goals import ErrorBudget, Sparsity
from .gram_statistics import column_norms
from .penalties import Penalty
from .problem import LayerProblem
from .refine.refit import refit
from .refine.rounding import round_to_count
from .solution import Progress, Solution
from .threads import resolve_threads, serial_blas
from .validation import number


@dataclass(frozen=True)
class Stage:
    """A layer after one stage of `sparsify`: errors on the calibration data, seconds that the stage took."""

    name: str
    sparsity: float
    relative_error: float
    output_error: float
    seconds: float


@dataclass(frozen=True, eq=False)
class SparseLayer:
    """What `sparsify` returns.

    Attributes
    ----------
    weight : ndarray, shape (n_out, n_in)
        Sparse weights, exact zeros, in the dtype of the dense ones.
    bias : ndarray, shape (n_out,), or None
    sparsity : float
        Fraction of zeros.
    relative_error : float
        radius / epsilon_max on the calibration data: 0 is the dense layer, 1 the best constant one.
    output_error : float
        ||R(Z) - Y||_F / ||Y||_F on the calibration data, Y the dense layer's outputs; 0 if both vanish.
    convex : Solution
        The certified solution of the convex program that the layer was made from.
    stages : tuple of Stage
        The layer after each stage.
    """

    weight: npt.NDArray[Any]
    bias: npt.NDArray[Any] | None
    sparsity: float
    relative_error: float
    output_error: float
    convex: Solution
    stages: tuple[Stage, ...]

    def __str__(self) -> str:
        n_out, n_in = self.weight.shape
        lines = [
            f"SparseLayer {n_in} -> {n_out}: {self.sparsity:.2%} zeros, output error {self.output_error:.4f}",
            f"  convex program: {self.convex.status.name}, certified gap {self.convex.gap:.1e}",
            f"  {'stage':<12} {'zeros':>8} {'relative error':>15} {'output error':>13} {'seconds':>8}",
        ]
        lines += [
            f"  {s.name:<12} {s.sparsity:>8.2%} {s.relative_error:>15.4f} {s.output_error:>13.4f} {s.seconds:>8.2f}"
            for s in self.stages
        ]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<SparseLayer {self.weight.shape}: sparsity {self.sparsity:.4f}, output_error {self.output_error:.4g}>"


def sparsify(
    inputs: npt.ArrayLike,
    weight: npt.ArrayLike,
    bias: npt.ArrayLike | None = None,
    *,
    activation: str | Activation = "identity",
    sparsity: float | None = None,
    relative_error: float | None = None,
    eta: float | None = None,
    preactivations: npt.ArrayLike | None = None,
    shift: npt.ArrayLike | None = None,
    tolerance: float = 0.0,
    fidelity: float = 0.0,
    entry_weights: npt.ArrayLike | None = None,
    sample_weights: npt.ArrayLike | None = None,
    penalty: str | Penalty = "l1",
    mask: npt.ArrayLike | None = None,
    tol: float = 1e-3,
    max_seconds: float | None = None,
    callback: Callable[[Progress], object] | None = None,
    n_threads: int | None = None,
) -> SparseLayer:
    """Make one layer sparse while it keeps its outputs on calibration data.

    Solves the convex program for the goal, with a certificate; for a sparsity, makes the count exact; then refits the
    remaining weights and the bias, without penalty, on the support found.

    Parameters
    ----------
    inputs, weight, bias, activation, preactivations, shift, tolerance, fidelity, entry_weights, sample_weights, \
penalty, mask
        The layer and its calibration data, see `LayerProblem`.
    sparsity : float, optional
        Fraction of zero weights, in [0, 1]: round((1 - sparsity) * size) weights stay, exactly. With a penalty on
        groups whole groups are zero, and the count is that of the path of solutions on its sparser side.
    relative_error : float, optional
        Largest radius / epsilon_max, see `ErrorBudget`.
    eta : float, optional
        Largest mean squared distance per sample, see `ErrorBudget`. One of the three goals is given.
    tol : float, default 1e-3
        Relative gap of the convex program, see `solve`.
    max_seconds, callback, n_threads
        See `solve`.

    Returns
    -------
    SparseLayer

    Raises
    ------
    InvalidInputError
        If an argument is not what it should be.
    InfeasibleBudgetError
        If no weights keep the error budget.

    Examples
    --------
    >>> import numpy as np, sisopt
    >>> rng = np.random.default_rng(0)
    >>> X, W, b = rng.normal(size=(200, 20)), rng.normal(size=(10, 20)), np.zeros(10)
    >>> layer = sisopt.sparsify(X, W, b, activation="relu", sparsity=0.5)
    >>> layer.sparsity
    0.5

    References
    ----------
    S. Verma, J.-C. Pesquet, "Sparsifying Networks via Subdifferential Inclusion", ICML 2021.
    """
    goal = _goal(sparsity, relative_error, eta)
    problem = LayerProblem(
        inputs, weight, bias, activation=activation, preactivations=preactivations, shift=shift, tolerance=tolerance,
        fidelity=fidelity, entry_weights=entry_weights, sample_weights=sample_weights, penalty=penalty, mask=mask,
    )  # fmt: skip
    with serial_blas():
        layer = _pipeline(problem, goal, tol, max_seconds, callback, resolve_threads(n_threads))
    warn_unless_optimal(layer.convex, tol, stacklevel=3)
    return layer


def _pipeline(
    problem: LayerProblem,
    goal: Sparsity | ErrorBudget,
    tol: float,
    max_seconds: float | None,
    callback: Callable[[Progress], object] | None,
    threads: int,
) -> SparseLayer:
    started = time.monotonic()
    deadline = math.inf if max_seconds is None else started + number("max_seconds", max_seconds, low=0.0)
    convex = solve_silently(problem, goal, METHODS[0], tol, MAX_ITERATIONS, max_seconds, None, callback, threads)
    stages = [_stage("convex", problem, convex.weight, convex.bias, convex.relative_error, started)]
    W = convex.weight.astype(np.float64)
    if isinstance(goal, Sparsity) and problem.structure.labels is None:  # else it would break groups up
        begun = time.monotonic()
        allowed = problem.allowed()
        norms = column_norms(problem, threads)
        W = round_to_count(W, problem.weight.astype(np.float64), norms, goal.kept(W.size), allowed)
        stages.append(_finish("exact count", problem, W, convex.empty_radius, begun, threads)[1])
    begun = time.monotonic()
    W = refit(problem, W, deadline, threads)
    (rounded, b), last = _finish("refit", problem, W, convex.empty_radius, begun, threads)
    stages.append(last)
    return SparseLayer(rounded, b, last.sparsity, last.relative_error, last.output_error, convex, tuple(stages))


def _goal(sparsity: float | None, relative_error: float | None, eta: float | None) -> Sparsity | ErrorBudget:
    goals = {"sparsity": sparsity, "relative_error": relative_error, "eta": eta}
    given = [name for name, value in goals.items() if value is not None]
    if len(given) != 1:
        msg = f"sparsify takes exactly one goal of {', '.join(goals)}, got {' and '.join(given) or 'none'}"
        raise InvalidInputError(msg)
    return Sparsity(sparsity) if sparsity is not None else ErrorBudget(relative_error=relative_error, eta=eta)


def _finish(
    name: str,
    problem: LayerProblem,
    weight: npt.NDArray[np.float64],
    empty_radius: float,
    begun: float,
    n_threads: int,
) -> tuple[tuple[npt.NDArray[Any], npt.NDArray[Any] | None], Stage]:
    """Round weights to the layer's dtype, fit their bias, and measure them."""
    dtype = problem.weight.dtype
    rounded = weight.astype(dtype)
    at = evaluate(problem, rounded.astype(np.float64), n_threads)
    relative = math.sqrt(2.0 * float(at.rounded_loss.sum())) / empty_radius if empty_radius > 0 else 0.0
    b = at.bias.astype(dtype) if problem.has_bias else None
    return (rounded, b), _stage(name, problem, rounded, b, relative, begun)


def _stage(
    name: str,
    problem: LayerProblem,
    weight: npt.NDArray[Any],
    bias: npt.NDArray[Any] | None,
    relative_error: float,
    begun: float,
) -> Stage:
    zeros = 1.0 - int(np.count_nonzero(weight)) / weight.size
    error = output_error(problem, weight, bias)
    return Stage(name, zeros, relative_error, error, time.monotonic() - begun)
