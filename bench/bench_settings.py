"""What a caller can change about the time of a solve: dtype, accuracy, a start from a neighbour."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

import sisopt
from bench.data import random_layer

SIZE = (5000, 512, 256)
GOAL = sisopt.Sparsity(0.9)
SETTINGS = {  # dtype, tol, sparsity of the solution to start from
    "float32, tol=1e-3": (np.float32, 1e-3, None),
    "float64": (np.float64, 1e-3, None),
    "tol=1e-2": (np.float32, 1e-2, None),
    "tol=1e-4": (np.float32, 1e-4, None),
    "warm_start: the solution with 85 % zeros": (np.float32, 1e-3, 0.85),
}


@cache
def neighbour(sparsity: float) -> sisopt.Solution:
    return sisopt.solve(random_layer(*SIZE, "relu", np.float32), sisopt.Sparsity(sparsity), tol=1e-3)


@pytest.mark.parametrize("name", SETTINGS)
def bench_setting(timed, name):
    dtype, tol, sparsity = SETTINGS[name]
    start = None if sparsity is None else neighbour(sparsity)
    solution = timed(
        "Settings: ReLU 5000 x 512 -> 256, Sparsity(0.9)",
        name,
        lambda problem: sisopt.solve(problem, GOAL, tol=tol, warm_start=start),
        lambda: random_layer(*SIZE, "relu", dtype),
        rounds=3,
        describe=lambda s: f"gap {s.gap:.1e}, {s.n_products:.1f} products",
        ours=name == next(iter(SETTINGS)),
    )
    assert solution.gap <= tol
