"""Where the zeros go: exact counts, least summed squared error, shares that hold."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from sisopt.errors import InvalidInputError
from sisopt.network.allocation import Curve, allocate

ONE = st.just(1.0)
LEVELS = np.array([0.5, 0.7, 0.8, 0.9, 0.95])


def curve(n=1000, cost=1.0, sparsities=LEVELS, errors=None):
    return Curve(n, cost, sparsities, np.asarray(sparsities) ** 2 if errors is None else errors)


def convex_curve(rng, n, cost=1.0):
    """Squared errors with increasing slopes, at tenths, from 0 to 1; a weight is worth up to 2 / n."""
    slopes = np.sort(rng.random(10))
    return Curve(n, cost, np.linspace(0.1, 1.0, 10), np.sqrt(np.cumsum(slopes) / slopes.sum()))


def squared_error(curves, kept):
    total = 0.0
    for c, k in zip(curves, kept, strict=True):
        total += np.interp(1.0 - k / c.n_weights, [0.0, *c.sparsities], [0.0, *c.errors**2])
    return total


def least_squared_error(curves, sparsity, least=0.01):
    """The same by linear programming: minimise the sum of t_l, above every segment of layer l's squared errors."""
    n = len(curves)
    rows, right = [], []
    for j, c in enumerate(curves):
        x, y = np.array([0.0, *c.sparsities]), np.array([0.0, *c.errors**2])
        for slope, left, low in zip(np.diff(y) / np.diff(x), x, y, strict=False):
            row = np.zeros(2 * n)
            row[j], row[n + j] = slope, -1.0  # low + slope (s - left) <= t
            rows.append(row)
            right.append(slope * left - low)
    costs = np.array([c.cost_per_weight * c.n_weights for c in curves])
    rows.append(np.concatenate([-costs, np.zeros(n)]))  # sum(costs (1 - s)) <= budget
    right.append(-sparsity * costs.sum())
    result = linprog(
        np.concatenate([np.zeros(n), np.ones(n)]), np.array(rows), right, bounds=[(0, 1 - least)] * n + [(0, None)] * n
    )
    assert result.status == 0
    return result.fun


@st.composite
def noisy_curves(draw, cost=ONE):
    n_layers = draw(st.integers(1, 6))
    curves = []
    for _ in range(n_layers):
        k = draw(st.integers(0, 5))
        sparsities = draw(st.lists(st.floats(0, 1), min_size=k, max_size=k))
        errors = draw(st.lists(st.floats(0, 1.5), min_size=k, max_size=k))
        curves.append(Curve(draw(st.integers(1, 3000)), draw(cost), np.array(sparsities), np.array(errors)))
    return curves


def test_a_layer_that_does_not_matter_gives_its_weights():
    # squared errors: no matter at all up to 80 % zeros, and matter from the first zero on
    easy = curve(1000, errors=np.array([0.0, 0.0, 0.0, 0.9, 0.95]))
    hard = curve(1000, errors=np.sqrt(LEVELS))
    assert allocate([easy, hard], 0.4) == [200, 1000]
    assert allocate([easy, hard], 0.2) == [600, 1000]


def test_hand_computed_slopes_decide():
    # errors squared: A 0.1 per 0.5 of 100 weights, then 0.9 per 0.5; B 0.4, then 0.6. Kept first: the last halves'
    # counterparts in order of slope 0.9 (A), 0.6 (B), 0.4 (B), 0.1 (A)
    a = Curve(100, 1.0, np.array([0.5]), np.array([np.sqrt(0.1)]))
    b = Curve(100, 1.0, np.array([0.5]), np.array([np.sqrt(0.4)]))
    assert allocate([a, b], 0.80, least=0.0) == [39, 1]  # one weight each comes first
    assert allocate([a, b], 0.50, least=0.0) == [50, 50]
    assert allocate([a, b], 0.25, least=0.0) == [50, 100]
    assert allocate([a, b], 0.10, least=0.0) == [80, 100]


def test_multiply_adds_are_kept_where_they_are_cheap():
    # straight curves: a weight of the second layer costs ten times as much and saves as little
    assert allocate([Curve(100, 1.0, [], []), Curve(100, 10.0, [], [])], 0.8) == [100, 12]
    assert allocate([Curve(100, 1.0, [], []), Curve(100, 1.0, [], [])], 0.8) == [20, 20]


def test_larger_layers_lose_more_at_equal_curves():
    small, large = allocate([curve(100), curve(10_000)], 0.9)
    assert small / 100 > large / 10_000


@given(st.integers(1, 7), st.integers(1, 2000), st.floats(0, 1))
def test_equal_curves_are_treated_alike(n_layers, n, sparsity):
    kept = allocate([curve(n)] * n_layers, sparsity)
    assert sum(kept) == round((1 - sparsity) * n * n_layers)
    assert max(kept) - min(kept) <= 1
    assert kept == sorted(kept, reverse=True)  # the first of equal layers get what is left over


@given(noisy_curves(), st.floats(0, 1))
def test_counts_are_exact_whatever_the_curves(curves, sparsity):
    kept = allocate(curves, sparsity)
    assert sum(kept) == round((1 - sparsity) * sum(c.n_weights for c in curves))
    assert all(isinstance(k, int) and 0 <= k <= c.n_weights for k, c in zip(kept, curves, strict=True))
    assert kept == allocate(curves, sparsity)


@given(noisy_curves(st.floats(0.1, 1e4)), st.floats(0, 1))
def test_multiply_adds_fill_the_budget_to_less_than_a_weight(curves, sparsity):
    kept = allocate(curves, sparsity)
    total = sum(c.cost_per_weight * c.n_weights for c in curves)
    left = (1 - sparsity) * total - sum(c.cost_per_weight * k for c, k in zip(curves, kept, strict=True))
    if all(c.cost_per_weight == 1.0 for c in curves):
        assert abs(left) <= 0.5
        return
    assert left >= -1e-12 * total
    room = [c.cost_per_weight for c, k in zip(curves, kept, strict=True) if k < c.n_weights]
    assert left <= min(room, default=0.0) + 1e-12 * total


@given(noisy_curves(), st.lists(st.floats(0, 1), min_size=2, max_size=2))
def test_a_larger_budget_takes_no_weight_from_a_layer(curves, sparsities):
    # layers of different merit only: among equal ones the largest remainder may move by one weight
    low, high = sorted(sparsities)
    for more, less in zip(allocate(curves, low), allocate(curves, high), strict=True):
        assert more >= less - 1


@pytest.mark.parametrize("seed", range(8))
def test_single_steps_of_the_budget_give_one_weight_to_one_layer(seed):
    rng = np.random.default_rng(seed)
    curves = [convex_curve(rng, int(n)) for n in rng.integers(20, 60, 4)]
    total = sum(c.n_weights for c in curves)
    path = np.array([allocate(curves, 1 - k / total) for k in range(4, total + 1)])
    assert np.all(path.sum(axis=1) == np.arange(4, total + 1))
    assert np.all(np.diff(path, axis=0) >= 0)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("costs", ["parameters", "flops"])
def test_agrees_with_linear_programming(seed, costs):
    rng = np.random.default_rng(seed)
    curves = [
        convex_curve(
            rng, 10_000 * int(rng.integers(1, 50)), 1.0 if costs == "parameters" else float(rng.integers(1, 99))
        )
        for _ in range(rng.integers(2, 12))
    ]
    total = sum(c.n_weights for c in curves)
    sparsity = 1 - int(total * rng.uniform(0.03, 0.7)) / total
    kept = allocate(curves, sparsity)
    least = least_squared_error(curves, sparsity)
    assert squared_error(curves, kept) == pytest.approx(least, abs=1e-6 if costs == "parameters" else 3e-4)  # a weight
    assert squared_error(curves, kept) >= least - 1e-6
    assert all(k >= 0.01 * c.n_weights for k, c in zip(kept, curves, strict=True))


@pytest.mark.parametrize("seed", range(6))
def test_no_exchange_of_weights_lowers_the_error(seed):
    rng = np.random.default_rng(seed)
    curves = [convex_curve(rng, 10 * int(rng.integers(3, 9))) for _ in range(4)]
    kept = allocate(curves, 0.7)
    found = squared_error(curves, kept)
    for i in range(4):
        for j in range(4):
            other = list(kept)
            other[i], other[j] = other[i] + 1, other[j] - 1
            if i != j and other[i] <= curves[i].n_weights and other[j] >= 1:
                assert squared_error(curves, other) >= found - 1e-12


def test_noise_above_the_hull_changes_nothing():
    smooth = curve(1000, errors=np.array([0.1, 0.3, 0.4, 0.6, 0.8]))
    noisy = Curve(
        1000, 1.0, np.array([0.95, 0.6, 0.5, 0.7, 0.8, 0.9, 0.5]), np.array([0.8, 0.9, 0.1, 0.3, 0.4, 0.6, 0.2])
    )
    other = curve(700)
    for sparsity in (0.3, 0.6, 0.85, 0.93):
        assert allocate([smooth, other], sparsity) == allocate([noisy, other], sparsity)


def test_every_layer_keeps_its_least_share_while_the_budget_allows():
    useless, needed = Curve(5000, 1.0, [1.0], [0.0]), Curve(5000, 1.0, [0.0001], [1.0])
    tiny = Curve(3, 1.0, [1.0], [0.0])
    kept = allocate([useless, needed, tiny], 0.9)
    assert kept == [50, 949, 1]
    assert allocate([useless, needed, tiny], 0.9, least=0.05) == [250, 749, 1]
    assert allocate([useless, needed, tiny], 0.995) == [25, 24, 1]  # half of the shares
    assert allocate([useless, needed, tiny], 1.0) == [0, 0, 0]
    assert sum(allocate([useless, needed, tiny], 0.9998)) == 2


@pytest.mark.parametrize("sparsity", [np.nan, 1.1, -0.1])
def test_a_sparsity_that_is_none_is_refused(sparsity):
    with pytest.raises(InvalidInputError, match="sparsity must be in"):
        allocate([curve(), curve()], sparsity)
    with pytest.raises(InvalidInputError, match="least must be in"):
        allocate([curve()], 0.5, least=sparsity)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((10, 1.0, [0.5, 0.6], [0.1]), "of one length"),
        ((10, 1.0, [1.5], [0.1]), r"in \[0, 1\]"),
        ((10, 1.0, [np.nan], [0.1]), r"in \[0, 1\]"),
        ((10, 1.0, [0.5], [np.nan]), "at least 0"),
        ((10, 1.0, [0.5], [-0.1]), "at least 0"),
        ((10, 1.0, [0.5], [np.inf]), "at least 0"),
        ((0, 1.0, [0.5], [0.1]), "n_weights"),
        ((10, 0.0, [0.5], [0.1]), "cost_per_weight"),
        ((10, np.inf, [0.5], [0.1]), "cost_per_weight"),
    ],
)
def test_curves_that_are_none_are_refused(values, message):
    with pytest.raises(InvalidInputError, match=message):
        Curve(*values)


def test_nothing_to_allocate():
    assert allocate([], 0.5) == []


@settings(max_examples=30)
@given(noisy_curves(st.sampled_from([1.0, 49.0, 196.0, 12544.0])), st.floats(0, 1))
def test_callers_arrays_stay_as_they_are(curves, sparsity):
    before = [(c.sparsities.copy(), c.errors.copy()) for c in curves]
    allocate(curves, sparsity)
    for c, (s, e) in zip(curves, before, strict=True):
        np.testing.assert_array_equal(c.sparsities, s)
        np.testing.assert_array_equal(c.errors, e)


def test_what_is_too_little_for_a_dear_weight_goes_to_cheap_ones():
    # of equal worth: 131 units are left over by proportion, a weight of the first layer costs 1000
    assert allocate([Curve(10, 1000.0, [], []), Curve(10_000, 1.0, [], [])], 0.725, least=0.0) == [3, 2500]


def test_fractions_mean_what_they_say():
    # 0.07 * 100 is a little more than 7 in floats, (1 - 0.9) * 2000 a little less than 200
    free, needed = Curve(100, 1.0, [1.0], [0.0]), Curve(100, 1.0, [], [])
    assert allocate([free, needed], 0.9, least=0.07) == [7, 13]
    assert allocate([Curve(1000, 2.0, [], [])], 0.9) == [100]


def test_an_error_given_for_the_empty_layer_counts():
    worse, usual = Curve(100, 1.0, [1.0], [2.0]), Curve(100, 1.0, [], [])
    assert allocate([usual, worse], 0.5, least=0.0) == [1, 99]
    assert allocate([usual, usual], 0.5, least=0.0) == [50, 50]
