"""Lower bounds, gaps and violations: against hand computation, brute force and the reference's optimum."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from sisopt import ErrorBudget, LayerProblem, Penalized, Status, reference, solve
from sisopt.certificate import RowSums, budget_bound, penalized_bound, relative_gap, row_sums
from sisopt.evaluation import evaluate
from sisopt.penalties import Structure
from sisopt.pursuit import Pursuit
from sisopt.solvers.rounds import Iterate

some = settings(max_examples=40, deadline=None)
EXTRAS = {
    "relu": (),
    "relu, fidelity": ("fidelity",),
    "relu, weights": ("entry_weights", "sample_weights"),
    "gelu, everything": ("tolerance", "fidelity", "shift", "entry_weights", "sample_weights", "mask", "penalty"),
    "identity": (),
    "identity, sequential": ("preactivations",),
}


def sums_at(layer, weight):
    """Return a layer's row sums at any weights, by the package's evaluation."""
    at = evaluate(layer.problem, weight)
    return row_sums(weight, at.gradient, at.loss, Structure(layer.factors))


def one_row(w, lam=None):
    """Return the sums of identity, z = 2 x with |x| = 5, at weight w: phi = 25/2 (w - 2)**2."""
    problem = LayerProblem([[3.0], [4.0]], [[2.0]])
    W = np.array([[w]])
    at = evaluate(problem, W)
    assert at.loss == pytest.approx([12.5 * (w - 2) ** 2])
    assert at.gradient == pytest.approx(np.array([[25.0 * (w - 2)]]))
    return row_sums(W, at.gradient, at.loss, Structure(np.ones(W.shape)))


# With one weight, every dual point is a multiple of the gradient at any w < 2: bounds are exact from everywhere.
@pytest.mark.parametrize("w", [-1.0, 0.0, 1.5, 1.9])
def test_bound_of_one_weight_is_the_optimum_by_hand(w):
    # lambda = 12.5: w* = 2 - 12.5 / 25 = 1.5, the optimum 12.5 * 1.5 + 12.5 * 0.25.
    assert penalized_bound(one_row(w), 12.5) == pytest.approx(21.875, rel=1e-12)
    # epsilon = 2.5: |w - 2| * 5 = 2.5.
    assert budget_bound(one_row(w), 2.5) == pytest.approx(1.5, rel=1e-12)
    # lambda >= 50: w* = 0, and phi = 50 there.
    assert penalized_bound(one_row(w), 60.0) == pytest.approx(50.0, rel=1e-12)
    # A budget that w = 0 keeps.
    assert budget_bound(one_row(w), 10.0) == 0.0
    # A budget of 0 needs w = 2.
    assert budget_bound(one_row(w), 0.0) == pytest.approx(2.0, rel=1e-12)


def test_bound_at_a_residual_free_point_is_zero():
    assert penalized_bound(one_row(2.0), 12.5) == 0.0
    assert budget_bound(one_row(2.0), 2.5) == 0.0


def test_bounds_of_rows_add_up_for_a_multiplier_but_share_one_budget():
    a, b = one_row(0.0), one_row(0.0)
    names = ("value", "loss", "slope", "dual_norm")
    both = RowSums(*(np.concatenate([getattr(a, name), getattr(b, name)]) for name in names))
    assert penalized_bound(both, 12.5) == pytest.approx(2 * 21.875, rel=1e-12)
    # By symmetry each row keeps 2.5 / sqrt(2): w = 2 - 0.5 / sqrt(2) twice.
    assert budget_bound(both, 2.5) == pytest.approx(4 - math.sqrt(0.5), rel=1e-12)


def test_neuron_that_can_have_no_weight_adds_its_loss_to_the_bound_and_takes_it_from_the_budget():
    free = one_row(0.0)
    stuck = RowSums(*(np.array([x]) for x in (0.0, 2.0, 0.0, 0.0)))  # phi = 2 whatever the weights
    names = ("value", "loss", "slope", "dual_norm")
    both = RowSums(*(np.concatenate([getattr(free, name), getattr(stuck, name)]) for name in names))
    assert penalized_bound(stuck, 12.5) == pytest.approx(2.0, rel=1e-12)
    assert penalized_bound(both, 12.5) == pytest.approx(23.875, rel=1e-12)
    # sqrt(2 phi) = 2.5 leaves 2.5**2 - 4 = 1.5**2 to the free one: |w - 2| * 5 = 1.5.
    assert budget_bound(both, 2.5) == pytest.approx(1.7, rel=1e-9)


@pytest.mark.parametrize(
    ("weight", "gradient", "violation"),
    [
        ([[1.0, -2.0, 0.0]], [[-3.0, 3.0, 0.0]], 0.0),  # optimal at lambda = 3
        ([[0.0, 0.0, 0.0]], [[3.0, -3.0, 2.9]], 0.0),  # on the edge of the subdifferential
        ([[0.0, 0.0, 0.0]], [[4.5, 0.0, 0.0]], 0.5),  # beyond it by 1.5 = lambda / 2
        ([[1.0, 0.0, 0.0]], [[3.0, 0.0, 0.0]], 2.0),  # the wrong sign
        ([[-1.0, 0.0, 0.0]], [[0.0, 0.0, 0.0]], 1.0),  # a weight that nothing asks for
        ([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]], [[-3.3, 0.0, 0.0], [0.0, 3.6, 0.0]], 0.2),  # the worst row counts
    ],
)
def test_violation_is_the_distance_to_the_subdifferential_by_hand(weight, gradient, violation):
    W, C = np.array(weight), np.array(gradient)
    assert Structure(np.ones(W.shape)).kkt_violation(W, C, 3.0) == pytest.approx(violation, abs=1e-15)


def test_violation_is_relative_to_each_factor_and_blind_to_forbidden_weights():
    W, C = np.array([[0.0, 0.0, 1.0]]), np.array([[8.0, 1e9, -1.0]])
    factors = np.array([[2.0, np.inf, 0.5]])
    violation = Structure(factors).kkt_violation(W, C, 2.0)
    assert violation == pytest.approx(1.0)  # 8 = 2 * (2 * 2): beyond by once the threshold


@pytest.mark.parametrize(
    ("objective", "bound", "gap"), [(2.0, 1.5, 0.25), (2.0, 0.0, 1.0), (2.0, 2.1, 0.0), (0.0, 0.0, 0.0)]
)
def test_gap_is_relative_to_the_objective_and_never_negative(objective, bound, gap):
    assert relative_gap(objective, bound) == pytest.approx(gap)


positive = st.floats(1e-3, 1e3)
budgets = st.just(0.0) | st.floats(1e-9, 1e3)


@st.composite
def row_sums_of(draw, n_rows):
    """Return sums that some gradient rows could have."""

    def column(values):
        return np.array(draw(st.lists(values, min_size=n_rows, max_size=n_rows)))

    return RowSums(np.zeros(n_rows), column(positive), column(st.floats(-1e3, 1e3)), column(positive))


def dual_value(sums, s, epsilon):
    """Return the dual function at scales s, (..., n_rows)."""
    a = sums.slope - 2 * sums.loss
    return -(s @ a) - epsilon * np.sqrt(2 * (s * s) @ sums.loss)


@some
@given(sums=row_sums_of(2), epsilon=budgets)
def test_budget_bound_of_two_rows_is_the_maximum_of_the_dual_by_brute_force(sums, epsilon):
    caps = 1 / sums.dual_norm
    low, high, best = np.zeros(2), caps.copy(), 0.0
    for _ in range(25):  # zoom into the best cell of a grid and its neighbours: the function is concave
        axes = [np.linspace(*ends, 21) for ends in zip(low, high, strict=True)]
        grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
        values = dual_value(sums, grid, epsilon)
        place = np.unravel_index(values.argmax(), values.shape)
        best = max(best, float(values[place]))
        width = 0.15 * (high - low)
        low, high = np.maximum(grid[place] - width, 0), np.minimum(grid[place] + width, caps)
    scale = float(caps @ (np.abs(sums.slope) + 2 * sums.loss))
    assert budget_bound(sums, epsilon) == pytest.approx(best, rel=1e-6, abs=1e-9 * scale)


@some
@given(sums=row_sums_of(5), epsilon=budgets, share=st.lists(st.floats(0, 1), min_size=5, max_size=5))
def test_no_scales_of_many_rows_beat_the_budget_bound(sums, epsilon, share):
    s = np.array(share) / sums.dual_norm
    scale = float((np.abs(sums.slope) + 2 * sums.loss) @ (1 / sums.dual_norm))
    assert dual_value(sums, s, epsilon) <= budget_bound(sums, epsilon) + 1e-9 * scale


def concave_maximum(function, ends):
    """Return the maximum over t_i in [0, ends_i] of each of the concave functions t -> function(t)_i."""
    low, high, best = np.zeros_like(ends), ends, np.full(ends.shape, -np.inf)
    for _ in range(12):
        t = np.linspace(low, high, 21)
        values = np.array([function(row) for row in t])
        place = values.argmax(axis=0)
        best = np.maximum(best, values.max(axis=0))
        centre, width = np.take_along_axis(t, place[None], axis=0)[0], 0.1 * (high - low)
        low, high = np.maximum(centre - width, 0.0), np.minimum(centre + width, ends)
    return best


@some
@given(sums=row_sums_of(3), multiplier=positive)
def test_penalized_bound_is_the_maximum_of_the_dual_of_every_row_by_brute_force(sums, multiplier):
    a, caps = sums.slope - 2 * sums.loss, multiplier / sums.dual_norm
    best = concave_maximum(lambda t: -t * a - t * t * sums.loss, caps).sum()
    assert penalized_bound(sums, multiplier) == pytest.approx(best, rel=1e-6, abs=1e-9 * float(caps @ np.abs(a)))


@pytest.fixture(scope="module")
def known(make_layer):
    """Layers with the reference's optima, each problem solved once."""
    pytest.importorskip("cvxpy")
    found = {}
    for name, extras in EXTRAS.items():
        layer = make_layer(name.split(",")[0], extras=extras, n=50, n_in=6, n_out=2)
        share = 0.7 if {"mask", "preactivations"} & set(extras) else 0.2
        goals = (Penalized(2.0), ErrorBudget(radius=share * layer.empty_radius))
        found[name] = layer, *(reference.solve(layer.problem, goal).objective for goal in goals), goals[1].radius
    return found


@st.composite
def weights(draw):
    """Return any weights of the layers above: all scales, some zeros."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    W = rng.standard_normal((2, 6)) * 10.0 ** draw(st.floats(-3, 3))
    return W * (rng.random((2, 6)) < draw(st.floats(0, 1))), draw(st.floats(0, 1))


@pytest.mark.parametrize("name", EXTRAS)
@some
@given(drawn=weights())
@example(drawn=(np.zeros((2, 6)), 0.0))
@example(drawn=(np.zeros((2, 6)), 1.0))
def test_bounds_never_exceed_the_reference_optimum_whatever_the_weights(known, name, drawn):
    layer, penalized, budget, epsilon = known[name]
    noise, share = drawn  # near the dense layer, far from it, and between
    W = np.where(np.isinf(layer.factors), 0.0, share * layer.W + noise)
    sums = sums_at(layer, W)
    assert penalized_bound(sums, 2.0) <= penalized * (1 + 1e-7)
    assert budget_bound(sums, epsilon) <= budget * (1 + 1e-7)


@pytest.mark.parametrize("name", EXTRAS)
def test_bounds_near_the_optimum_are_near_it(known, name):
    layer, penalized, budget, epsilon = known[name]
    at_multiplier = solve(layer.problem, Penalized(2.0), tol=1e-9).weight
    at_budget = solve(layer.problem, ErrorBudget(radius=epsilon), tol=1e-9).weight
    assert penalized_bound(sums_at(layer, at_multiplier), 2.0) == pytest.approx(penalized, rel=1e-4)
    assert budget_bound(sums_at(layer, at_budget), epsilon) == pytest.approx(budget, rel=1e-3)


@pytest.mark.parametrize("name", EXTRAS)
@settings(some, max_examples=20)
@given(drawn=weights())
def test_penalized_bound_follows_from_the_conjugate_of_the_loss(known, name, drawn):
    """The bound is the best -phi*(t grad) of every row, or less where a fidelity makes it cheap but not tight."""
    layer = known[name][0]
    noise, share = drawn
    W = np.where(np.isinf(layer.factors), 0.0, share * layer.W + noise)
    at = evaluate(layer.problem, W)
    assume(at.loss.min() > 1e-9 * layer.empty_radius**2)  # else all is rounding
    slopes = layer.slopes(W, at.bias)
    dual_norm = (np.abs(slopes.T @ layer.X) / layer.factors).max(axis=1)
    caps = np.divide(2.0, dual_norm, out=np.zeros(2), where=dual_norm > 0)
    best = concave_maximum(lambda t: -layer.conjugate(t * slopes), caps).sum()
    bound = penalized_bound(row_sums(W, at.gradient, at.loss, Structure(layer.factors)), 2.0)
    if "fidelity" in EXTRAS[name]:
        assert bound <= best * (1 + 1e-7) + 1e-9
    else:
        assert bound == pytest.approx(max(best, 0.0), rel=1e-7, abs=1e-9)


@pytest.mark.parametrize("goal", [ErrorBudget(relative_error=1.0), ErrorBudget(relative_error=7.0)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gap_is_zero_where_the_objective_is(make_layer, dtype, goal):
    layer = make_layer("relu", dtype=dtype)
    solution = solve(layer.problem, goal)
    assert (solution.objective, solution.lower_bound, solution.gap) == (0.0, 0.0, 0.0)
    assert solution.status is Status.OPTIMAL


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gap_of_a_dead_layer_is_zero(make_layer, dtype):
    layer = make_layer("relu", dtype=dtype)
    problem = layer.again(bias=np.full(3, -60, dtype))
    for goal in (ErrorBudget(relative_error=0.0), ErrorBudget(relative_error=0.3), Penalized(1.0)):
        solution = solve(problem, goal)
        assert not solution.weight.any()
        assert (solution.objective, solution.gap, solution.relative_error) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("goal", [ErrorBudget(relative_error=0.3), Penalized(1.0)])
def test_gap_of_a_dead_float32_layer_is_zero_though_its_best_bias_must_be_rounded(goal):
    rng = np.random.default_rng(0)
    X, W = rng.uniform(1.0, 2.0, (40, 5)).astype(np.float32), -rng.uniform(1.0, 2.0, (2, 5)).astype(np.float32)
    shift = rng.uniform(0.0, 1.0, (40, 2))  # with W = 0 the best biases are -max(shift), no float32 numbers
    solution = solve(LayerProblem(X, W, np.zeros(2, np.float32), activation="relu", shift=shift), goal)
    assert not solution.weight.any()
    assert solution.status is Status.OPTIMAL


@pytest.mark.parametrize("activation", ["identity", "relu"])
@pytest.mark.parametrize("goal", [ErrorBudget(relative_error=0.3), Penalized(1.0)])
def test_layer_of_constant_inputs_needs_no_weights(activation, goal):
    rng = np.random.default_rng(3)
    problem = LayerProblem(np.full((30, 4), 0.7), rng.standard_normal((3, 4)), np.ones(3) / 3, activation=activation)
    solution = solve(problem, goal)
    assert not solution.weight.any()
    assert solution.status is Status.OPTIMAL


@pytest.mark.parametrize(
    ("dtype", "miss", "certified"),
    [(np.float64, 0.5e-6, True), (np.float64, 2e-6, False), (np.float32, 0.5e-5, True), (np.float32, 2e-5, False)],
)
def test_gap_is_infinite_where_the_budget_is_missed(monkeypatch, make_layer, dtype, miss, certified):
    layer = make_layer("relu", dtype=dtype)
    epsilon = 0.5 * layer.empty_radius
    optimum = solve(layer.again(weight=layer.W.astype(np.float64)), ErrorBudget(radius=epsilon * (1 + miss)), tol=1e-9)
    iterate = Iterate(optimum.weight.astype(np.float64), optimum.multiplier)
    monkeypatch.setattr(Pursuit, "run", lambda self, tol: (iterate, None))  # a solver that stops short of the budget
    if certified:
        solution = solve(layer.problem, ErrorBudget(radius=epsilon), tol=1e-3)
        assert solution.gap <= 1e-3
        assert solution.radius > epsilon * (1 + 0.2 * miss)
    else:
        with pytest.warns(match="gap inf"):
            solution = solve(layer.problem, ErrorBudget(radius=epsilon), tol=1e-3)
        assert solution.gap == math.inf
        assert solution.status is Status.STALLED


def test_lower_bound_is_never_above_the_objective(make_layer):
    for seed in range(8):
        layer = make_layer("identity", seed=seed, n_out=1)
        for goal in (Penalized(3.0), ErrorBudget(relative_error=0.3)):
            solution = solve(layer.problem, goal, tol=1e-9)
            assert solution.lower_bound <= solution.objective
            assert solution.gap >= 0.0
