"""The methods beside each other: one budget, many budgets, groups, coupled outputs; every answer certified."""

from __future__ import annotations

from functools import partial

import pytest

import sisopt
from bench.data import random_layer

FAST, SPLITTING, PAPER = "forward-backward", "douglas-rachford", "sis"
SINGLE = {  # layer, activation, budget, gap, methods
    "ReLU 2000 x 256 -> 16, relative_error 0.2": ((2000, 256, 16), "relu", 0.2, 1e-4, (FAST, SPLITTING)),
    "ReLU 5000 x 512 -> 256, relative_error 0.2": ((5000, 512, 256), "relu", 0.2, 1e-4, (FAST, SPLITTING)),
    "ReLU 5000 x 512 -> 256, relative_error 0.6": ((5000, 512, 256), "relu", 0.6, 1e-4, (FAST, SPLITTING)),
    "identity 5000 x 512 -> 256, relative_error 0.2": ((5000, 512, 256), "identity", 0.2, 1e-4, (FAST, SPLITTING)),
    "softmax 2000 x 128 -> 10, relative_error 0.2": ((2000, 128, 10), "softmax", 0.2, 1e-4, (FAST, SPLITTING)),
    "ReLU 400 x 20 -> 8, relative_error 0.2": ((400, 20, 8), "relu", 0.2, 2e-2, (FAST, SPLITTING, PAPER)),
}
MANY = {
    "10 mini-batches": sisopt.ErrorBudget(relative_error=0.3, per="batch", batch_size=500),
    "a budget per neuron": sisopt.ErrorBudget(relative_error=0.3, per="neuron"),
}
MOST_STEPS = 300  # of the splitting, to a gap of 1e-3 under ten budgets


def describe(solution: sisopt.Solution) -> str:
    return (
        f"gap {solution.gap:.1e}, sparsity {solution.sparsity:.3f}, {solution.n_iterations} iterations, "
        f"{solution.n_products:.0f} products"
    )


@pytest.mark.parametrize(("case", "method"), [(case, method) for case in SINGLE for method in SINGLE[case][4]])
def bench_one_budget(timed, case, method):
    size, activation, relative_error, tol, _ = SINGLE[case]
    solution = timed(
        f"{case}, gap {tol:g}",
        method,
        lambda problem: sisopt.solve(problem, sisopt.ErrorBudget(relative_error), method=method, tol=tol),
        partial(random_layer, *size, activation),
        rounds=3 if size[0] <= 2000 and method != PAPER else 1,
        describe=describe,
        ours=method == FAST,
    )
    assert solution.gap <= tol


@pytest.mark.parametrize(("name", "method"), [(name, method) for name in MANY for method in (SPLITTING, FAST)])
def bench_many_budgets(timed, name, method):
    solution = timed(
        f"ReLU 5000 x 512 -> 256, relative_error 0.3, {name}, gap 1e-3",
        method,
        lambda problem: sisopt.solve(problem, MANY[name], method=method, tol=1e-3),
        partial(random_layer, 5000, 512, 256, "relu"),
        describe=describe,
        ours=method == SPLITTING,
    )
    assert solution.gap <= 1e-3
    if method == SPLITTING and name == "10 mini-batches":
        assert solution.n_iterations <= MOST_STEPS


@pytest.mark.parametrize("groups", ["columns", "rows"])
def bench_groups(timed, groups):
    solution = timed(
        f"ReLU 2000 x 256 -> 64, groups of {groups}, relative_error 0.2, gap 1e-4",
        FAST,
        lambda problem: sisopt.solve(problem, sisopt.ErrorBudget(0.2)),
        lambda: _with_groups(groups),
        describe=describe,
        ours=True,
    )
    assert solution.gap <= 1e-4


def _with_groups(groups: str) -> sisopt.LayerProblem:
    layer = random_layer(2000, 256, 64, "relu")
    return sisopt.LayerProblem(
        layer.inputs, layer.weight, layer.bias, activation="relu", penalty=sisopt.GroupL2(groups)
    )
