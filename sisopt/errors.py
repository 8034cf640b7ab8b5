"""Exceptions and warnings."""

from __future__ import annotations


class SisoptError(Exception):
    """Base class of everything that sisopt raises on purpose.

    Examples
    --------
    >>> import sisopt
    >>> try:
    ...     sisopt.ErrorBudget(relative_error=-1)
    ... except sisopt.SisoptError as error:
    ...     print(error)
    relative_error must be a finite number of at least 0, got -1
    """


class InvalidInputError(SisoptError, ValueError):
    """An argument is not what it should be; the message names it, says what was found and what to do.

    Examples
    --------
    >>> import sisopt
    >>> sisopt.Sparsity(90)
    Traceback (most recent call last):
        ...
    sisopt.errors.InvalidInputError: sparsity must be a number in [0, 1], the fraction of zero weights, got 90
    """


class UnsupportedError(SisoptError, NotImplementedError):
    """A method was asked for what it cannot do; the message says which method can.

    Examples
    --------
    >>> import sisopt
    >>> problem = sisopt.LayerProblem([[1.0, 0.0], [0.0, 1.0]], [[2.0, 1.0]])
    >>> sisopt.solve(problem, sisopt.Sparsity(0.5), method="sis")
    Traceback (most recent call last):
        ...
    sisopt.errors.UnsupportedError: method 'sis' takes error budgets, no Sparsity; use 'forward-backward'
    """


class InfeasibleBudgetError(SisoptError, ValueError):
    """No weights keep the error budget.

    Attributes
    ----------
    least_relative_error : float
        The least relative error that the problem admits.

    Examples
    --------
    Inputs that are all alike cannot give outputs that differ:

    >>> import sisopt
    >>> problem = sisopt.LayerProblem([[1.0], [1.0]], [[1.0]], preactivations=[[1.0], [3.0]])
    >>> try:
    ...     sisopt.solve(problem, sisopt.ErrorBudget(relative_error=0.1))
    ... except sisopt.InfeasibleBudgetError as error:
    ...     print(f"{error.least_relative_error:.3f}")
    0.447
    """

    def __init__(self, message: str, least_relative_error: float) -> None:
        super().__init__(message)
        self.least_relative_error = least_relative_error

    def __reduce__(self) -> tuple[type[InfeasibleBudgetError], tuple[str, float]]:
        return type(self), (str(self), self.least_relative_error)


class CheckpointError(SisoptError):
    """A checkpoint is damaged, belongs to something else, or cannot be read or written; the message says what to do.

    Examples
    --------
    >>> import tempfile, torch, sisopt
    >>> from sisopt.adapters.torch import sparsify_model
    >>> model, batches = torch.nn.Linear(8, 4).eval(), torch.randn(2, 50, 8)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = sparsify_model(model, batches, sparsity=0.5, effort="fast", inplace=False, checkpoint=folder)
    ...     try:
    ...         sparsify_model(model, batches, sparsity=0.75, effort="fast", inplace=False, checkpoint=folder)
    ...     except sisopt.CheckpointError:
    ...         print("it is that of another goal")
    it is that of another goal
    """


class ConvergenceWarning(UserWarning):
    """A solver stopped before the certified gap reached the tolerance; the message says what to change.

    Examples
    --------
    >>> import warnings, numpy as np, sisopt
    >>> rng = np.random.default_rng(0)
    >>> problem = sisopt.LayerProblem(rng.normal(size=(200, 8)), rng.normal(size=(3, 8)), activation="relu")
    >>> with warnings.catch_warnings(action="error"):
    ...     sisopt.solve(problem, sisopt.ErrorBudget(relative_error=0.1), max_iterations=1)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    sisopt.errors.ConvergenceWarning: stopped at max_iterations before the goal was reached: ...
    """


class GeneralizationWarning(UserWarning):
    """A layer does much worse on samples held out than on those it was fitted to; the message says what to change.

    Examples
    --------
    >>> import warnings, numpy as np, sisopt
    >>> rng = np.random.default_rng(0)
    >>> few, weight = rng.normal(size=(20, 20)), rng.normal(size=(8, 20))
    >>> with warnings.catch_warnings(action="error"):
    ...     sisopt.sparsify(few, weight, activation="relu", sparsity=0.3)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    sisopt.errors.GeneralizationWarning: the output error on held-out samples is ...
    """
