"""sparsify(): one layer, arrays in, arrays out: the composition of everything else."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy.typing as npt

from .activations import Activation, MaxPool
from .dispatch import check_callback, check_tol, warn_unless_optimal
from .errors import ConvergenceWarning, GeneralizationWarning, InvalidInputError
from .goals import ErrorBudget, Sparsity
from .patterns import Pattern, get_pattern
from .penalties import L1, Penalty
from .problem import LayerProblem
from .refine.pipeline import EFFORTS, Pipeline
from .solution import Progress
from .sparse_layer import SparseLayer
from .threads import resolve_threads, serial_blas
from .validation import as_float_array, check_size, natural_number, number


def sparsify(
    inputs: npt.ArrayLike,
    weight: npt.ArrayLike,
    bias: npt.ArrayLike | None = None,
    *,
    activation: str | Activation = "identity",
    sparsity: float | None = None,
    relative_error: float | None = None,
    eta: float | None = None,
    pattern: str | Pattern | None = None,
    effort: str = "default",
    validation_inputs: npt.ArrayLike | None = None,
    preactivations: npt.ArrayLike | None = None,
    shift: npt.ArrayLike | None = None,
    tolerance: float = 0.0,
    fidelity: float | str = "auto",
    entry_weights: npt.ArrayLike | None = None,
    sample_weights: npt.ArrayLike | None = None,
    penalty: str | Penalty = "l1",
    mask: npt.ArrayLike | None = None,
    seed: int = 0,
    tol: float = 1e-3,
    max_seconds: float | None = None,
    callback: Callable[[Progress], object] | None = None,
    n_threads: int | None = None,
) -> SparseLayer:
    """Make one layer sparse while it keeps its outputs on calibration data.

    For a sparsity or a pattern: ADMM on the number of weights, whose targets are the pre-activations that give the same
    outputs, then the exact count, then the values refitted on what stays. How closely to hold on to the dense layer is
    chosen by trial runs on some of the neurons, judged on a fifth of the samples that they do not see. For an error
    budget: the convex program, certified, and then the fewest weights that keep the budget after a refit.

    Parameters
    ----------
    inputs, weight, bias, activation, preactivations, shift, tolerance, entry_weights, sample_weights, penalty, mask
        The layer and its calibration data, see `LayerProblem`. Weights that are to stay zero are frozen by a mask.
    sparsity : float, optional
        Fraction of zero weights, in [0, 1]: round((1 - sparsity) * size) weights stay, exactly. With a penalty on
        groups whole groups are zero, and the count is that of the path of solutions on its sparser side.
    relative_error : float, optional
        Largest radius / epsilon_max, see `ErrorBudget`.
    eta : float, optional
        Largest mean squared distance per sample, see `ErrorBudget`. One of the three goals is given, or a pattern
        "N:M", which is one.
    pattern : str or Pattern, optional
        Which weights may stay: "unstructured" (the default), "per-row", "N:M" such as "2:4" (2 KEPT of every 4
        consecutive inputs), "4x4 blocks", "columns", "rows", "filters", or an object; see `get_pattern`.
    effort : {"default", "fast", "full"}
        "fast" makes no trial runs and few steps. "full" takes slower steps, solves and certifies the convex program
        too, reweights it twice and starts from there as well; what comes out better stays.
    validation_inputs : array_like, shape (n_validation, n_in), optional
        Other samples, which no weight is fitted to: errors on them are reported after every stage, and for a sparsity
        or a pattern a refit that would raise them is skipped; with effort "full" they choose between the starts.
    fidelity : float or "auto"
        beta, see `LayerProblem`; "auto" chooses it on samples held out.
    seed : int
        Of the choice of samples that trial runs are judged on.
    tol : float, default 1e-3
        Relative gap of the convex program, see `solve`.
    max_seconds, n_threads
        See `solve`.
    callback : callable, optional
        Called after every round of the convex program, see `solve`.

    Returns
    -------
    SparseLayer

    Raises
    ------
    InvalidInputError
        If an argument is not what it should be.
    InfeasibleBudgetError
        If no weights keep the error budget.

    Warns
    -----
    ConvergenceWarning
        If the convex program's gap did not reach ``tol``.
    GeneralizationWarning
        If the layer does much worse on samples held out than on those it was fitted to.

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
    wanted = get_pattern(pattern, sparsity)
    goal = _goal(sparsity, relative_error, eta, wanted)
    if not isinstance(effort, str) or effort not in EFFORTS:
        msg = f"effort must be one of {', '.join(map(repr, EFFORTS))}, got {effort!r}"
        raise InvalidInputError(msg)
    chosen = fidelity == "auto" if isinstance(fidelity, str) else False
    if isinstance(fidelity, str) and not chosen:
        msg = f"fidelity must be 'auto' or a number of at least 0, got {fidelity!r}"
        raise InvalidInputError(msg)
    problem = LayerProblem(
        inputs, weight, bias, activation=activation, preactivations=preactivations, shift=shift, tolerance=tolerance,
        fidelity=0.0 if chosen else fidelity, entry_weights=entry_weights,  # type: ignore[arg-type]
        sample_weights=sample_weights, penalty=penalty, mask=mask,
    )  # fmt: skip
    validation = _validation(problem, validation_inputs)
    if type(problem.penalty) is not L1 and pattern is not None:
        msg = f"pattern={str(wanted)!r} does not go with a penalty other than 'l1': leave out one of them"
        raise InvalidInputError(msg)
    if goal is None or isinstance(goal, Sparsity):
        wanted.validate((problem.n_out, problem.n_in), sparsity)
    check_tol(tol, problem)
    check_callback(callback)
    limit = None if max_seconds is None else number("max_seconds", max_seconds, low=0.0)
    pipeline = Pipeline(
        problem,
        validation,
        limit,
        resolve_threads(n_threads),
        effort,
        wanted,
        chosen,
        natural_number("seed", seed),
        tol,
        callback,
    )
    with serial_blas():
        if goal is None or (isinstance(goal, Sparsity) and type(problem.penalty) is L1):
            layer = pipeline.to_sparsity(sparsity)
        else:
            layer = pipeline.by_convex_program(goal)
    if pipeline.warning is not None:
        warnings.warn(pipeline.warning, GeneralizationWarning, stacklevel=2)
    if layer.convex is not None:
        warn_unless_optimal(layer.convex, tol, stacklevel=3)
    elif limit is not None and pipeline.ran_out:
        msg = f"max_seconds={limit:g} ended the search: the layer has the zeros asked for, at more error than needed"
        warnings.warn(msg, ConvergenceWarning, stacklevel=2)
    return layer


def _goal(
    sparsity: float | None, relative_error: float | None, eta: float | None, pattern: Pattern
) -> Sparsity | ErrorBudget | None:
    """Return the goal; None where the pattern is one."""
    goals = {"sparsity": sparsity, "relative_error": relative_error, "eta": eta}
    given = [name for name, value in goals.items() if value is not None]
    if not given and not pattern.needs_sparsity:
        return None
    if not given and str(pattern) != "unstructured":
        msg = f"pattern={str(pattern)!r} says which weights stay, not how many: give sparsity= beside it"
        raise InvalidInputError(msg)
    if len(given) != 1:
        msg = f"sparsify takes exactly one goal of {', '.join(goals)}, got {' and '.join(given) or 'none'}"
        raise InvalidInputError(msg)
    if sparsity is not None:
        return Sparsity(sparsity)
    if not pattern.needs_sparsity or str(pattern) != "unstructured":
        msg = f"pattern={str(pattern)!r} goes with a sparsity, not with {given[0]}"
        raise InvalidInputError(msg)
    return ErrorBudget(relative_error=relative_error, eta=eta)


def _validation(problem: LayerProblem, validation_inputs: npt.ArrayLike | None) -> LayerProblem | None:
    """Return the dense layer's problem on other samples."""
    if validation_inputs is None:
        return None
    if not problem.own_targets or problem.shift is not None:
        msg = "validation_inputs goes with a layer's own outputs: leave it out where preactivations or shift is given"
        raise InvalidInputError(msg)
    X = as_float_array("validation_inputs", validation_inputs, 2)
    if X.shape[0] == 0 or X.shape[1] != problem.n_in:
        msg = f"validation_inputs must have shape (n_validation, {problem.n_in}), got {X.shape}"
        raise InvalidInputError(msg)
    if isinstance(problem.activation, MaxPool) and X.shape[0] != problem.n_samples:
        msg = f"validation_inputs must hold {problem.n_samples} samples, those of max_pool's windows, got {X.shape[0]}"
        raise InvalidInputError(msg)
    check_size("validation_inputs", X)
    return LayerProblem(X, problem.weight, problem.bias, activation=problem.activation)
