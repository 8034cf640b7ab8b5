"""Newton polish: what first-order steps bring to a gap of 1e-3 reaches 1e-8 when asked to."""

from __future__ import annotations

import numpy as np
import pytest

from sisopt import ErrorBudget, LayerProblem, Penalized, Status, WeightedL1, solve

GOALS = {
    "multiplier": lambda: Penalized(1.0),
    "tight budget": lambda: ErrorBudget(relative_error=0.05),
    "budget": lambda: ErrorBudget(relative_error=0.3),
    "loose budget": lambda: ErrorBudget(relative_error=0.9),
}
DATA = {
    "correlated": lambda rng: (
        rng.standard_normal((150, 4)) @ rng.standard_normal((4, 24)) + 0.3 * rng.standard_normal((150, 24))
    ),
    "not negative": lambda rng: np.maximum(rng.standard_normal((150, 24)), 0.0) + 1.0,
    "fewer samples than inputs": lambda rng: rng.standard_normal((18, 24)),
    "scaled by four decades": lambda rng: rng.standard_normal((150, 24)) * np.logspace(-2, 2, 24),
    "duplicate columns": lambda rng: np.repeat(rng.standard_normal((150, 12)), 2, axis=1),
}


@pytest.mark.parametrize("goal", GOALS)
@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("activation", ["identity", "relu", "hard_tanh", "soft_shrink"])
def test_any_gap_can_be_polished_to_eight_digits(activation, data, goal):
    rng = np.random.default_rng([len(activation), len(data)])
    X = DATA[data](rng)
    W, b = rng.standard_normal((4, 24)) / 3, 0.5 * rng.standard_normal(4)
    penalty = WeightedL1(rng.uniform(0.5, 2.0, W.shape)) if activation in ("relu", "soft_shrink") else "l1"
    problem = LayerProblem(X, W, b, activation=activation, penalty=penalty)
    assert solve(problem, GOALS[goal](), tol=1e-3).status is Status.OPTIMAL
    polished = solve(problem, GOALS[goal](), tol=1e-8)
    assert polished.status is Status.OPTIMAL
    assert polished.gap <= 1e-8
