"""A warm start saves the way to what is known already, whatever it is, and is never written to."""

from __future__ import annotations

import statistics

import numpy as np
import pytest

from sisopt import ErrorBudget, InvalidInputError, Penalized, Sparsity, Status, solve

GOALS = {
    "Penalized": Penalized(3.0),
    "tight ErrorBudget": ErrorBudget(relative_error=0.05),
    "loose ErrorBudget": ErrorBudget(relative_error=0.5),
    "Sparsity": Sparsity(0.7),
}


@pytest.mark.parametrize("goal", GOALS)
@pytest.mark.parametrize("extras", [(), ("fidelity", "entry_weights"), ("tolerance", "mask")], ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("activation", ["identity", "relu", "gelu"])
def test_the_own_solution_takes_at_most_one_iteration(make_layer, activation, dtype, extras, goal):
    layer = make_layer(activation, extras=extras, dtype=dtype, n=150, n_in=15, n_out=4)
    goal = ErrorBudget(relative_error=0.7) if "mask" in extras and "tight" in goal else GOALS[goal]
    cold = solve(layer.problem, goal)
    warm = solve(layer.problem, goal, warm_start=cold)
    assert warm.n_iterations <= 1
    assert warm.status is cold.status is Status.OPTIMAL
    assert warm.objective == pytest.approx(cold.objective, rel=1e-4)


@pytest.mark.parametrize("tol", [1e-2, 1e-6, 1e-8])
@pytest.mark.parametrize("goal", GOALS)
@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_the_own_solution_takes_at_most_one_iteration_at_any_accuracy(make_layer, activation, goal, tol):
    layer = make_layer(activation, n=150, n_in=15, n_out=4)
    cold = solve(layer.problem, GOALS[goal], tol=tol)
    warm = solve(layer.problem, GOALS[goal], tol=tol, warm_start=cold)
    assert warm.n_iterations <= 1
    assert warm.status is Status.OPTIMAL


@pytest.mark.parametrize("factor", [0.8, 1.05])
def test_a_neighbouring_budget_takes_fewer_iterations_in_the_median(make_layer, factor):
    saved = []
    for activation in ("relu", "hard_tanh", "soft_shrink"):
        for relative_error in (0.05, 0.15, 0.4):
            for seed in range(2):
                layer = make_layer(activation, n=200, n_in=20, n_out=4, seed=seed)
                neighbour = solve(layer.problem, ErrorBudget(relative_error=relative_error * factor))
                goal = ErrorBudget(relative_error=relative_error)
                cold, warm = solve(layer.problem, goal), solve(layer.problem, goal, warm_start=neighbour)
                assert warm.status is Status.OPTIMAL
                saved.append(cold.n_iterations - warm.n_iterations)
    assert statistics.median(saved) > 0


@pytest.mark.parametrize("goal", GOALS)
@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_a_warm_start_from_anything_reaches_the_same_optimum(make_layer, activation, goal):
    layer, goal = make_layer(activation), GOALS[goal]
    cold = solve(layer.problem, goal, tol=1e-6)
    rng = np.random.default_rng(5)
    starts = [
        (layer.W, layer.b),
        (np.zeros(layer.W.shape), None),
        (100 * rng.standard_normal(layer.W.shape), 100 * rng.standard_normal(3)),
        solve(layer.problem, Penalized(1e-3)),
        solve(layer.problem, ErrorBudget(relative_error=1.0)),
        solve(make_layer("hard_tanh", seed=9).problem, Sparsity(0.5)),
    ]
    for start in starts:
        warm = solve(layer.problem, goal, tol=1e-6, warm_start=start)
        assert warm.status is Status.OPTIMAL
        if not isinstance(goal, Sparsity):  # there the radius attained may differ
            assert warm.objective == pytest.approx(cold.objective, rel=2e-6)


def test_a_warm_start_may_have_weights_that_the_mask_forbids(make_layer):
    layer = make_layer("relu", extras=("mask",))
    goal = ErrorBudget(relative_error=0.7)
    warm = solve(layer.problem, goal, tol=1e-6, warm_start=(layer.W, layer.b))
    assert (warm.weight[~layer.options["mask"]] == 0).all()
    assert warm.objective == pytest.approx(solve(layer.problem, goal, tol=1e-6).objective, rel=2e-6)


@pytest.mark.parametrize("writeable", [True, False])
@pytest.mark.parametrize("goal", GOALS)
def test_a_warm_start_is_never_modified(make_layer, goal, writeable):
    layer = make_layer("relu")
    start = solve(layer.problem, Penalized(0.5))
    arrays = [value for value in vars(start).values() if isinstance(value, np.ndarray)]
    assert len(arrays) >= 2
    for array in arrays:
        array.flags.writeable = writeable
    before = [array.tobytes() for array in arrays]
    for given in (start, (start.weight, start.bias)):
        solution = solve(layer.problem, GOALS[goal], warm_start=given)
        assert [array.tobytes() for array in arrays] == before
        assert not any(np.shares_memory(solution.weight, array) for array in arrays)
        assert not any(np.shares_memory(solution.bias, array) for array in arrays)


@pytest.mark.parametrize(
    "weight",
    [np.zeros((3, 9)), np.zeros(10), np.full((3, 10), np.nan), np.zeros((3, 10), complex)],
    ids=lambda w: str(w.shape),
)
def test_a_warm_start_that_does_not_fit_is_refused_by_name(make_layer, weight):
    layer = make_layer("relu")
    with pytest.raises(InvalidInputError, match="warm_start"):
        solve(layer.problem, Penalized(1.0), warm_start=(weight, None))
