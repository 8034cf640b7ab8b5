"""Our solver against general conic solvers (through cvxpy) on one constrained program at a time, in one run.

"data" hands the solver the program as it is written, with all samples; "compressed" first replaces the samples on which
the target is a point by a triangular factor, the best that we know how to do for a general solver.
"""

from __future__ import annotations

from functools import partial

import pytest

import sisopt
from bench.data import random_layer

CASES = {
    "ReLU 2000 x 256 -> 16, relative_error 0.2": ("relu", 0.2),
    "identity 2000 x 256 -> 16, relative_error 0.2": ("identity", 0.2),
}
RIVALS = {
    "SCS 1e-5, data": {"solver": "SCS", "compress": False, "eps_abs": 1e-5, "eps_rel": 1e-5},
    "SCS 1e-5, compressed": {"solver": "SCS", "compress": True, "eps_abs": 1e-5, "eps_rel": 1e-5},
    "CLARABEL, data": {"solver": "CLARABEL", "compress": False},
    "CLARABEL, compressed": {"solver": "CLARABEL", "compress": True},
}


@pytest.mark.parametrize("case", CASES)
def bench_ours(timed, case):
    activation, error = CASES[case]
    goal = sisopt.ErrorBudget(relative_error=error)
    solution = timed(
        case,
        "sisopt",
        lambda problem: sisopt.solve(problem, goal, tol=1e-4),
        partial(random_layer, 2000, 256, 16, activation),
        rounds=7,
        describe=lambda s: f"gap {s.gap:.1e}, {s.n_iterations} iterations, {s.n_products:.0f} products",
        ours=True,
    )
    assert solution.gap <= 1e-4
    assert solution.relative_error <= error * (1 + 1e-6)


@pytest.mark.parametrize("rival", RIVALS)
@pytest.mark.parametrize("case", CASES)
def bench_conic_solver(timed, case, rival):
    activation, error = CASES[case]
    goal = sisopt.ErrorBudget(relative_error=error)
    reference = timed(
        case,
        rival,
        lambda problem: sisopt.reference.solve(problem, goal, **RIVALS[rival]),
        partial(random_layer, 2000, 256, 16, activation),
        describe=lambda s: f"relative_error {s.relative_error:.7f}",
    )
    assert reference.relative_error <= error * (1 + 1e-3)
