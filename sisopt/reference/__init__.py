"""The same programs through cvxpy: an independent answer to check the solvers against, and a rival to time."""

from .answer import ReferenceSolution, solve
from .engine import DEFAULT_OPTIONS, STATUS

__all__ = ["DEFAULT_OPTIONS", "STATUS", "ReferenceSolution", "solve"]
