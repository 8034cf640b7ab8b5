"""Two layers of the sizes that Net-Trim's authors use: our program against theirs, each solved to 0.1 % at one budget.

The programs differ: ours allows more, so its optimum is lower. Ours proves a gap of 1e-3 and keeps the budget to 1e-6.
Net-Trim's ADMM is stopped as soon as its objective is within 1e-3 of its optimum, which it is told, and its constraints
hold to 1e-3 of the budget. Several penalty parameters are in the table; the least time is the one to compare with.
"""

from __future__ import annotations

from functools import cache, partial

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

import sisopt
from bench.data import random_layer
from bench.rivals.nettrim import NetTrimResult, net_trim

N_SAMPLES = 2000
RELATIVE_ERROR = 0.2
SIZES = {"60 -> 30": (60, 30), "784 -> 300": (784, 300)}
# Of Net-Trim's program, between its dual bound and its objective at tol=1e-5.
OPTIMA = {"60 -> 30": 110.5637, "784 -> 300": 2847.52}
BLAS_THREADS = {"60 -> 30": 1, "784 -> 300": None}  # what is best for its matrix products
# The fastest of 20, 50, 100, 200 on both sizes is 50; 100 is what the authors' example uses.
RHOS = {"60 -> 30": (20.0, 50.0, 100.0, 200.0), "784 -> 300": (50.0, 100.0)}
PUBLISHED_ITERATIONS = 2000  # in the authors' MNIST example, with rho = 100
OURS = ("douglas-rachford", "forward-backward")


def fresh_problem(size: str) -> sisopt.LayerProblem:
    return random_layer(N_SAMPLES, *SIZES[size], "relu")


@cache
def radius(size: str) -> float:
    """Return the budget: RELATIVE_ERROR times the radius of the best constant layer, whose outputs are the means."""
    outputs = np.maximum(fresh_problem(size).preactivations, 0.0)
    return RELATIVE_ERROR * float(np.linalg.norm(outputs - outputs.mean(axis=0)))


def title(size: str) -> str:
    return f"ReLU {size}, {N_SAMPLES} samples, relative_error {RELATIVE_ERROR}, to 1e-3"


@pytest.mark.parametrize(("size", "method"), [("60 -> 30", method) for method in OURS] + [("784 -> 300", OURS[0])])
def bench_ours(timed, size, method):
    solution = timed(
        title(size),
        f"sisopt, {method}",
        lambda problem: sisopt.solve(problem, sisopt.ErrorBudget(radius=radius(size)), method=method, tol=1e-3),
        partial(fresh_problem, size),
        rounds=3 if size == "60 -> 30" else 1,
        describe=lambda s: f"gap {s.gap:.1e}, sparsity {s.sparsity:.3f}, {s.n_iterations} iterations",
        ours=method == OURS[0],
    )
    assert solution.gap <= 1e-3
    assert solution.objective <= OPTIMA[size] * (1 + 1e-3)  # the ordering that theory promises


@pytest.mark.parametrize(("size", "rho"), [(size, rho) for size in SIZES for rho in RHOS[size]])
def bench_net_trim(timed, fact, size, rho):
    epsilon = radius(size)

    def solve(problem: sisopt.LayerProblem) -> NetTrimResult:
        with threadpool_limits(BLAS_THREADS[size]):
            return net_trim(
                problem.inputs, problem.weight, problem.bias, epsilon=epsilon, rho=rho, optimum=OPTIMA[size]
            )

    result = timed(
        title(size),
        f"Net-Trim ADMM, rho {rho:g}",
        solve,
        partial(fresh_problem, size),
        rounds=3 if size == "60 -> 30" else 1,
        describe=lambda r: (
            f"{r.objective / OPTIMA[size] - 1:+.1e} of its optimum, violation {r.violation:.1e}, "
            f"sparsity {np.mean(r.weight == 0):.3f}, {r.n_iterations} iterations"
        ),
    )
    assert result.converged
    if rho == 100.0:
        seconds = result.seconds / result.n_iterations * PUBLISHED_ITERATIONS
        fact(f"Net-Trim {size}, the {PUBLISHED_ITERATIONS} iterations that its authors run: about {seconds:.1f} s")
