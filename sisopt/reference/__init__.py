"""The same programs through cvxpy: an independent answer to check the solvers against, and a rival to time.

Examples
--------
>>> import sisopt
>>> problem = sisopt.LayerProblem([[1.0, 0.0], [0.0, 1.0]], [[2.0, 1.0]])
>>> sisopt.reference.solve(problem, sisopt.ErrorBudget(radius=1.0)).weight.round(3)
array([[1.293, 0.293]])
"""

from .answer import ReferenceSolution, solve
from .engine import DEFAULT_OPTIONS, STATUS

__all__ = ["DEFAULT_OPTIONS", "STATUS", "ReferenceSolution", "solve"]
