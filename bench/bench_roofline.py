"""Layers of sizes that occur, from the caller's arrays to the certified answer, beside the limits of the machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest

import sisopt
from bench.data import Arrays, random_arrays, unfolded_maps
from bench.roofline import GRAM, PRODUCT


@dataclass(frozen=True)
class Case:
    """A layer, what is asked of it, and how long that may take in units of one product or of one Gram matrix."""

    arrays: Callable[[], Arrays]
    activation: str
    goal: sisopt.Sparsity | sisopt.ErrorBudget
    tol: float
    unit: str = PRODUCT
    floor: float | None = None
    aim: float | None = None
    rounds: int = 1
    most_products: float = float("inf")


SPARSE, BUDGET = sisopt.Sparsity(0.9), sisopt.ErrorBudget(relative_error=0.2)


def _small(activation: str, goal: sisopt.Sparsity | sisopt.ErrorBudget, dtype: type) -> Case:
    arrays = partial(random_arrays, 5000, 512, 256, dtype)
    if activation == "relu":
        return Case(arrays, activation, goal, 1e-3, PRODUCT, floor=100, aim=60, rounds=5, most_products=90)
    return Case(arrays, activation, goal, 1e-4, GRAM, floor=12, aim=4, rounds=5)


def _large(n_samples: int, n_in: int, n_out: int, activation: str, tol: float, **options: int) -> Case:
    return Case(partial(random_arrays, n_samples, n_in, n_out, np.float32), activation, SPARSE, tol, **options)


CASES = {
    "identity 512 -> 256, 5000 samples, budget 0.2, float64": _small("identity", BUDGET, np.float64),
    "identity 512 -> 256, 5000 samples, budget 0.2, float32": _small("identity", BUDGET, np.float32),
    "identity 512 -> 256, 5000 samples, float64": _small("identity", SPARSE, np.float64),
    "identity 512 -> 256, 5000 samples, float32": _small("identity", SPARSE, np.float32),
    "ReLU 512 -> 256, 5000 samples, float64": _small("relu", SPARSE, np.float64),
    "ReLU 512 -> 256, 5000 samples, float32": _small("relu", SPARSE, np.float32),
    "ReLU 64 -> 16, 1000000 samples, float32": _large(1_000_000, 64, 16, "relu", 1e-3, floor=80, rounds=3),
    "ReLU convolution 576 -> 64, 200000 positions, float32": Case(
        partial(unfolded_maps, 50, 50, 80, 64, 64), "relu", SPARSE, 1e-3
    ),
    "identity 1024 -> 1024, 50000 samples, float32": _large(50_000, 1024, 1024, "identity", 1e-4),
    "ReLU 4096 -> 1024, 20000 samples, float32": _large(20_000, 4096, 1024, "relu", 1e-3, floor=80, aim=50),
}


@pytest.mark.parametrize("name", CASES)
def bench_roofline(roofline, name):
    case = CASES[name]
    arrays = case.arrays()

    def solve(n_threads: int | None) -> sisopt.Solution:
        problem = sisopt.LayerProblem(*arrays, activation=case.activation)
        return sisopt.solve(problem, case.goal, tol=case.tol, n_threads=n_threads)

    solution = roofline(name, arrays, solve, unit=case.unit, rounds=case.rounds, floor=case.floor, aim=case.aim)
    assert solution.status is sisopt.Status.OPTIMAL
    assert solution.gap <= case.tol
    assert solution.n_products <= case.most_products
