"""Exceptions and warnings."""

from __future__ import annotations


class SisoptError(Exception):
    """Base class of everything that sisopt raises on purpose."""


class InvalidInputError(SisoptError, ValueError):
    """An argument is not what it should be; the message names it, says what was found and what to do."""


class UnsupportedError(SisoptError, NotImplementedError):
    """A method was asked for what it cannot do; the message says which method can."""


class InfeasibleBudgetError(SisoptError, ValueError):
    """No weights keep the error budget.

    Attributes
    ----------
    least_relative_error : float
        The least relative error that the problem admits.
    """

    def __init__(self, message: str, least_relative_error: float) -> None:
        super().__init__(message)
        self.least_relative_error = least_relative_error

    def __reduce__(self) -> tuple[type[InfeasibleBudgetError], tuple[str, float]]:
        return type(self), (str(self), self.least_relative_error)


class CheckpointError(SisoptError):
    """A checkpoint is damaged, belongs to something else, or cannot be read or written; the message says what to do."""


class ConvergenceWarning(UserWarning):
    """A solver stopped before the certified gap reached the tolerance; the message says what to change."""


class GeneralizationWarning(UserWarning):
    """A layer does much worse on samples held out than on those it was fitted to; the message says what to change."""
