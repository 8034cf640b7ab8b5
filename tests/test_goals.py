"""Goals: what a budget means as a radius, and how many weights a sparsity keeps."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sisopt import ErrorBudget, InvalidInputError, LayerProblem, Penalized, Sparsity, solve

sizes = st.floats(1e-6, 1e6)


@given(sizes, sizes, st.integers(1, 10**9))
def test_relative_error_is_a_fraction_of_the_largest_radius(value, largest, n):
    assert ErrorBudget(relative_error=value).epsilon(largest, n) == value * largest


@given(sizes, sizes, st.integers(1, 10**9))
def test_eta_is_the_mean_squared_distance_per_sample(value, largest, n):
    assert ErrorBudget(eta=value).epsilon(largest, n) ** 2 / n == pytest.approx(value, rel=1e-14)


@given(sizes, sizes, st.integers(1, 10**9))
def test_radius_is_the_radius(value, largest, n):
    assert ErrorBudget(radius=value).epsilon(largest, n) == value


@pytest.mark.parametrize("sample_weights", [None, "uneven"])
def test_measures_of_one_budget_give_one_solution(sample_weights):
    rng = np.random.default_rng(0)
    X, W, b = rng.standard_normal((70, 8)), rng.standard_normal((4, 8)), rng.standard_normal(4)
    v = None if sample_weights is None else rng.uniform(0.1, 2.0, 70)
    problem = LayerProblem(X, W, b, activation="relu", sample_weights=v)
    total = 70.0 if v is None else v.sum()
    # of a ReLU neuron the best constant is the mean output
    Y, u = np.maximum(X @ W.T + b, 0.0), np.ones(70) if v is None else v
    largest = np.sqrt(np.sum(u[:, None] * (Y - u @ Y / total) ** 2))
    one = solve(problem, ErrorBudget(relative_error=0.3), tol=1e-8)
    for goal in (ErrorBudget(radius=0.3 * largest), ErrorBudget(eta=(0.3 * largest) ** 2 / total)):
        other = solve(problem, goal, tol=1e-8)
        assert other.objective == pytest.approx(one.objective, rel=2e-8)
        assert other.radius == pytest.approx(0.3 * largest, rel=1e-6)
        assert other.relative_error == pytest.approx(0.3, rel=1e-6)


@pytest.mark.parametrize(
    ("sparsity", "size", "kept"),
    [(0.0, 7, 7), (1.0, 7, 0), (0.7, 1000, 300), (0.9, 131072, 13107), (0.9, 5, 0), (0.899, 10, 1), (1e-9, 100, 100)],
)
def test_sparsity_keeps_the_rounded_count(sparsity, size, kept):
    assert Sparsity(sparsity).kept(size) == kept


@given(st.floats(0.0, 1.0), st.integers(1, 10**7))
def test_count_is_within_half_a_weight_of_the_fraction(sparsity, size):
    kept = Sparsity(sparsity).kept(size)
    assert 0 <= kept <= size
    assert abs(kept - (1.0 - sparsity) * size) <= 0.5


@pytest.mark.parametrize("goal", [Penalized(0.5), ErrorBudget(eta=0.25), Sparsity(0.75)], ids=repr)
def test_goals_are_values(goal):
    again = pickle.loads(pickle.dumps(goal))
    assert again == goal
    assert hash(again) == hash(goal)
    with pytest.raises(AttributeError):
        goal.eta = 1.0
    assert {Penalized(0.5), ErrorBudget(eta=0.25), Sparsity(0.75)} == {
        Penalized(0.5),
        ErrorBudget(eta=0.25),
        Sparsity(0.75),
    }


def test_goals_hold_floats_whatever_was_given():
    for goal, name in (
        (Penalized(np.float32(2)), "multiplier"),
        (ErrorBudget(radius=3), "radius"),
        (Sparsity(1), "sparsity"),
    ):
        assert type(getattr(goal, name)) is float


def test_zero_is_a_budget_but_no_multiplier():
    assert ErrorBudget(relative_error=0).epsilon(5.0, 10) == 0.0
    assert ErrorBudget(eta=0.0).epsilon(5.0, 10) == 0.0
    with pytest.raises(InvalidInputError, match="multiplier"):
        Penalized(0)


@pytest.mark.parametrize(
    ("goal", "text"),
    [(Penalized(0.5), "multiplier=0.5"), (ErrorBudget(eta=0.25), "eta=0.25"), (Sparsity(0.75), "sparsity=0.75")],
    ids=repr,
)
def test_goals_print_what_was_asked(goal, text):
    assert text in repr(goal)
    assert type(goal).__name__ in str(goal)
