"""cvxpy with one solver and its options."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from ..errors import InvalidInputError, SisoptError

STATUS: Mapping[str, str] = MappingProxyType(
    {"optimal": "optimal", "optimal_inaccurate": "inaccurate", "user_limit": "limit"}
)
"""The statuses of cvxpy that come with a solution, best first, and what `ReferenceSolution.status` calls them.

Examples
--------
>>> import sisopt
>>> sisopt.reference.STATUS["optimal_inaccurate"]
'inaccurate'
"""

DEFAULT_OPTIONS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "CLARABEL": {"tol_gap_abs": 1e-9, "tol_gap_rel": 1e-9, "tol_feas": 1e-9},
        "SCS": {"eps_abs": 1e-6, "eps_rel": 1e-6},
    }
)
"""Options of solvers that `solve` passes unless others are given.

Examples
--------
>>> import sisopt
>>> sisopt.reference.DEFAULT_OPTIONS["SCS"]["eps_abs"]
1e-06
"""


class Engine:
    """cvxpy with one solver and its options; remembers the worst status that it met."""

    def __init__(self, solver: str, options: Mapping[str, Any]) -> None:
        try:
            import cvxpy  # noqa: PLC0415  an extra
        except ImportError as error:
            msg = 'the reference solver needs cvxpy: pip install "sisopt[reference]"'
            raise SisoptError(msg) from error
        self.cp: Any = cvxpy
        self.solver = str(solver).upper()
        installed = self.cp.installed_solvers()
        if self.solver not in installed:
            msg = f"solver must be one that cvxpy has installed ({', '.join(installed)}), got {solver!r}"
            raise InvalidInputError(msg)
        # "eps" is cvxpy's short name for both tolerances of SCS; it would lose against the defaults.
        defaults = {} if "eps" in options else DEFAULT_OPTIONS.get(self.solver, {})
        self.options = {**defaults, **options}
        self.status = "optimal"

    def run(self, objective: Any, constraints: Sequence[Any], *, as_cone: bool = False) -> None:
        """Minimise; the variables and constraints then hold their values and dual values.

        ``as_cone`` turns a quadratic objective into one more cone.

        Raises
        ------
        InvalidInputError
            If the solver refuses an option.
        SisoptError
            If it fails, or finds no solution.
        """
        options = {"use_quad_obj": False, **self.options} if as_cone else self.options
        program = self.cp.Problem(self.cp.Minimize(objective), list(constraints))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # cvxpy's word on accuracy comes back as our own warning
                program.solve(solver=self.solver, **options)
        except TypeError as error:
            msg = f"{self.solver} refused the options {self.options}: {error}"
            raise InvalidInputError(msg) from error
        except self.cp.error.SolverError as error:
            msg = f"{self.solver} did not solve the program: {error} CLARABEL and SCS take every program posed here"
            raise SisoptError(msg) from error
        if program.status not in STATUS:
            msg = (
                f"{self.solver} called the program {program.status}, though it has a solution: "
                "try another solver, looser tolerances, or inputs scaled to unit variance"
            )
            raise SisoptError(msg)
        self.status = max(self.status, STATUS[program.status], key=list(STATUS.values()).index)
