"""Our solver against general conic solvers (through cvxpy) on one constrained program at a time, in one run.

"data" hands the solver the program as it is written, with all samples; "compressed" first replaces the samples on which
the target is a point by a triangular factor, the best that we know how to do for a general solver.
"""

from __future__ import annotations

from functools import cache, partial

import pytest

import sisopt
from bench.data import random_layer

CASES = {  # activation, budget, how many times ours each rival should take
    "ReLU 2000 x 256 -> 16, relative_error 0.2": ("relu", 0.2, 300),
    "ReLU 2000 x 256 -> 16, relative_error 0.5": ("relu", 0.5, 1000),
    "identity 2000 x 256 -> 16, relative_error 0.2": ("identity", 0.2, None),
}
RIVALS = {
    "SCS 1e-5, data": {"solver": "SCS", "compress": False, "eps_abs": 1e-5, "eps_rel": 1e-5},
    "SCS 1e-5, compressed": {"solver": "SCS", "compress": True, "eps_abs": 1e-5, "eps_rel": 1e-5},
    "CLARABEL, data": {"solver": "CLARABEL", "compress": False},
    "CLARABEL, compressed": {"solver": "CLARABEL", "compress": True},
}


def fresh_problem(case: str) -> sisopt.LayerProblem:
    return random_layer(2000, 256, 16, CASES[case][0])


@cache
def lower_bound(case: str) -> float:
    """Return a bound on the optimum, much closer to it than any answer here."""
    return sisopt.solve(fresh_problem(case), sisopt.ErrorBudget(relative_error=CASES[case][1]), tol=1e-6).lower_bound


@pytest.mark.parametrize("case", CASES)
def bench_ours(timed, case):
    error = CASES[case][1]
    goal = sisopt.ErrorBudget(relative_error=error)
    solution = timed(
        case,
        "sisopt",
        lambda problem: sisopt.solve(problem, goal, tol=1e-4),
        partial(fresh_problem, case),
        rounds=7,
        describe=lambda s: f"gap {s.gap:.1e}, {s.n_iterations} iterations, {s.n_products:.0f} products",
        ours=True,
    )
    assert solution.gap <= 1e-4
    assert solution.relative_error <= error * (1 + 1e-6)


@pytest.mark.parametrize("rival", RIVALS)
@pytest.mark.parametrize("case", CASES)
def bench_conic_solver(timed, case, rival):
    _, error, floor = CASES[case]
    goal = sisopt.ErrorBudget(relative_error=error)

    def excess(objective: float) -> float:
        return objective / lower_bound(case) - 1.0

    reference = timed(
        case,
        rival,
        lambda problem: sisopt.reference.solve(problem, goal, **RIVALS[rival]),
        partial(fresh_problem, case),
        describe=lambda s: f"gap {excess(s.objective):.1e}, relative_error {s.relative_error:.7f}",
        floor=floor,
    )
    assert abs(excess(reference.objective)) <= 1e-3
    assert reference.relative_error <= error * (1 + 1e-3)
