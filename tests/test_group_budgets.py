"""Budgets per mini-batch and per neuron: what their duals mean, their corner cases, limits, threads, starts."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from sisopt import ConvergenceWarning, ErrorBudget, InfeasibleBudgetError, LayerProblem, Status, WeightedL1, solve
from sisopt.capabilities import METHODS
from sisopt.penalties import GroupL2

FAST = METHODS[:2]
TOL = {"forward-backward": 1e-7, "douglas-rachford": 1e-6, "sis": 2e-2}
PER = {"batch": {"per": "batch", "batch_size": 30}, "neuron": {"per": "neuron"}}
each_per = pytest.mark.parametrize("per", PER)
each_fast = pytest.mark.parametrize("method", FAST)
each_method = pytest.mark.parametrize("method", METHODS)


def budget(per, relative_error=0.3, **measure):
    """Return a goal per batch of 30 samples or per neuron."""
    return ErrorBudget(relative_error=None if measure else relative_error, **measure, **PER[per])


def assert_keeps(layer, solution, goal=None):
    """Every budget is kept."""
    radii = np.sqrt(2 * layer.group_losses(solution.weight, solution.bias, goal or solution.goal))
    epsilon = np.array([e for _, e in layer.budgets(goal or solution.goal)])
    assert (radii <= epsilon * (1 + 1e-6)).all()


def paid(layer, solution):
    """Return mu_j epsilon_j**2, the fall of g* with the logarithm of every budget, (J,)."""
    return np.array([mu * e**2 for mu, (_, e) in zip(solution.duals, layer.budgets(solution.goal), strict=True)])


# One budget


@pytest.mark.parametrize("batch_size", [80, 1000])
@each_method
def test_one_mini_batch_is_the_layer(make_layer, method, batch_size):
    layer = make_layer("relu", n_in=6, n_out=2)
    one = solve(layer.problem, ErrorBudget(0.3, per="batch", batch_size=batch_size), method=method, tol=TOL[method])
    whole = solve(layer.problem, ErrorBudget(relative_error=0.3), method=method, tol=TOL[method])
    assert one.weight.tobytes() == whole.weight.tobytes()
    assert one.duals.shape == whole.duals.shape == (1,)
    assert one.duals[0] == whole.duals[0] == pytest.approx(1 / whole.multiplier, rel=1e-15)


@each_fast
def test_a_neuron_alone_is_the_layer(make_layer, method):
    layer = make_layer("relu", n_out=1)
    one = solve(layer.problem, budget("neuron"), method=method, tol=TOL[method])
    whole = solve(layer.problem, ErrorBudget(relative_error=0.3), method=method, tol=TOL[method])
    assert one.objective == pytest.approx(whole.objective, rel=2 * TOL[method])
    assert one.duals == pytest.approx(whole.duals, rel=1e-2)


@each_method
def test_neurons_with_their_own_budgets_are_as_many_layers(make_layer, method):
    layer = make_layer("relu", n_in=6)
    together = solve(layer.problem, budget("neuron"), method=method, tol=TOL[method])
    for i in range(3):
        alone = solve(layer.again(weight=layer.W[i : i + 1], bias=layer.b[i : i + 1]), ErrorBudget(0.3), tol=1e-8)
        mine = np.abs(together.weight[i]).sum()
        assert alone.objective * (1 - 1e-5) <= mine <= alone.objective + TOL[method] * together.objective * 1.01
        assert together.duals[i] == pytest.approx(alone.duals[0], rel=1e-2 if method in FAST else 0.5)


# What duals say


@pytest.mark.parametrize("moved", [0, 1])
@pytest.mark.parametrize("activation", ["relu", "softmax"])
@each_fast
def test_the_dual_of_a_mini_batch_is_the_slope_of_the_optimum_in_its_budget(make_layer, method, activation, moved):
    """g* is convex in epsilon_j, so that its secants bracket -mu_j epsilon_j; weights c on a batch stand for a budget
    epsilon / sqrt(c)."""
    layer, tol = make_layer(activation), TOL[method]
    goal = budget("batch", radius=0.2 * layer.empty_radius / np.sqrt(3))

    def optimum(factor):
        v = np.ones(80)
        v[moved * 30 : (moved + 1) * 30] = factor**-2.0
        return solve(layer.again(sample_weights=v), goal, method=method, tol=tol)

    less, here, more = (optimum(factor) for factor in (0.95, 1.0, 1.05))
    slope, slack = paid(layer, here)[moved], 2 * tol * here.objective / 0.05
    assert slope > 0
    assert (here.objective - more.objective) / 0.05 <= slope + slack
    assert (less.objective - here.objective) / 0.05 >= slope - slack
    assert (less.objective - more.objective) / 0.1 == pytest.approx(slope, rel=0.1)


@pytest.mark.parametrize("moved", [0, 1])
@each_fast
def test_the_dual_of_a_neuron_is_the_slope_of_the_optimum_in_its_budget(make_layer, method, moved):
    """A neuron whose pre-activations are c times as large has a budget of epsilon / c and weights c times as large."""
    layer, tol = make_layer("relu"), TOL[method]
    goal = budget("neuron", radius=0.2 * layer.empty_radius / np.sqrt(3))

    def optimum(factor):
        c = np.where(np.arange(3) == moved, 1.0 / factor, 1.0)
        problem = layer.again(weight=layer.W * c[:, None], bias=layer.b * c, penalty=WeightedL1(1.0 / c[:, None]))
        return solve(problem, goal, method=method, tol=tol)

    less, here, more = (optimum(factor) for factor in (0.95, 1.0, 1.05))
    slope, slack = paid(layer, here)[moved], 2 * tol * here.objective / 0.05
    assert slope > 0
    assert (here.objective - more.objective) / 0.05 <= slope + slack
    assert (less.objective - here.objective) / 0.05 >= slope - slack
    assert (less.objective - more.objective) / 0.1 == pytest.approx(slope, rel=0.1)


@pytest.mark.parametrize("measure", ["relative_error", "eta", "radius"])
@each_per
@each_fast
def test_duals_add_up_to_the_slope_of_the_optimum_in_all_budgets(make_layer, method, per, measure):
    layer, tol = make_layer("relu"), TOL[method]
    epsilon = 0.2 * layer.empty_radius
    value = {"relative_error": 0.2, "eta": epsilon**2 / 80, "radius": epsilon / np.sqrt(3)}[measure]
    power = 0.5 if measure == "eta" else 1.0
    less, here, more = (
        solve(layer.problem, budget(per, **{measure: value * factor ** (1 / power)}), method=method, tol=tol)
        for factor in (0.97, 1.0, 1.03)
    )
    assert_keeps(layer, here)
    assert (less.objective - more.objective) / 0.06 == pytest.approx(paid(layer, here).sum(), rel=0.1)


@each_method
def test_a_mini_batch_whose_budget_does_not_bind_has_no_dual(make_layer, method):
    layer = make_layer("relu", n_in=5, n_out=2)
    v = np.where(np.arange(80) < 30, 1e-3, 1.0)  # the first batch hardly counts
    goal = budget("batch", radius=0.3 * layer.empty_radius / np.sqrt(3))
    solution = solve(layer.again(sample_weights=v), goal, method=method, tol=TOL[method])
    first = np.sqrt(1e-3 * 2 * layer.group_losses(solution.weight, solution.bias, goal)[0])
    assert first < 0.9 * goal.radius
    assert solution.status is Status.OPTIMAL
    assert solution.duals[0] * goal.radius**2 * 0.19 / 2 <= TOL[method] * solution.objective
    assert (solution.duals[1:] > 0).all()


@each_method
def test_a_neuron_whose_budget_does_not_bind_has_no_dual_and_no_weight(make_layer, method):
    layer = make_layer("relu", n_in=5)
    small = np.array([[1.0], [1e-3], [1.0]])
    goal = budget("neuron", radius=0.2 * layer.empty_radius)
    solution = solve(layer.again(weight=small * layer.W), goal, method=method, tol=TOL[method])
    assert solution.status is Status.OPTIMAL
    assert solution.duals[1] == 0
    assert not solution.weight[1].any()
    assert (solution.duals[[0, 2]] > 0).all()


# Corner cases


@pytest.mark.parametrize("batch_size", [60, 77])
@each_fast
def test_a_shorter_last_batch_has_a_smaller_budget(make_layer, method, batch_size):
    layer, goal = make_layer("relu"), ErrorBudget(relative_error=0.3, per="batch", batch_size=batch_size)
    solution = solve(layer.problem, goal, method=method, tol=1e-5)
    assert solution.duals.shape == (2,)
    assert solution.status is Status.OPTIMAL
    assert_keeps(layer, solution)


@each_method
def test_a_mini_batch_without_weight_asks_for_nothing(make_layer, method):
    layer = make_layer("relu", n_in=5, n_out=2)
    goal = budget("batch")
    v = np.where(np.arange(80) < 30, 0.0, 1.0)
    with_it = solve(layer.again(sample_weights=v), goal, method=method, tol=TOL[method])
    without = solve(LayerProblem(layer.X[30:], layer.W, layer.b, activation="relu"), goal, tol=1e-7)
    assert with_it.status is Status.OPTIMAL
    assert with_it.duals.shape == (3,)
    assert with_it.objective == pytest.approx(without.objective, rel=TOL[method] + 1e-6)


@each_per
@each_method
def test_dead_neurons_keep_their_bias_and_no_weight(make_layer, method, per):
    layer = make_layer("relu", n_in=5)
    b = layer.b.copy()
    b[1] = -50.0  # below zero on every sample: any bias of at most 0 serves
    solution = solve(layer.again(bias=b), budget(per), method=method, tol=TOL[method])
    assert not solution.weight[1].any()
    assert solution.bias[1] <= 0.0
    assert solution.status is Status.OPTIMAL
    if per == "neuron":
        assert solution.bias[1] == -50.0
        assert solution.duals[1] == 0


@each_per
@each_method
def test_a_dead_layer_is_empty(make_layer, method, per):
    layer = make_layer("relu")
    solution = solve(layer.again(bias=layer.b - 100), budget(per), method=method)
    assert not solution.weight.any()
    assert (solution.bias == layer.b - 100).all()
    assert solution.status is Status.OPTIMAL
    assert solution.objective == solution.gap == solution.relative_error == 0
    assert solution.duals.shape == ((3,))


@pytest.mark.parametrize("activation", ["identity", "relu"])
@each_per
@each_fast
@pytest.mark.filterwarnings("ignore::sisopt.ConvergenceWarning")
def test_budgets_of_zero_keep_the_dense_layer(make_layer, method, per, activation):
    layer = make_layer(activation)
    solution = solve(layer.problem, budget(per, 0.0), method=method, tol=1e-4, max_iterations=200)
    assert solution.radius <= 1e-6 * layer.empty_radius
    assert solution.objective <= layer.penalty(layer.W) * (1 + 1e-9)
    assert solution.lower_bound <= solution.objective
    assert (solution.status is Status.OPTIMAL) == (solution.gap <= 1e-4)


@each_per
@each_method
def test_large_budgets_empty_the_layer(make_layer, method, per):
    layer = make_layer("relu")
    goal = budget(per, 1.0 if per == "neuron" else 3.0)
    solution = solve(layer.problem, goal, method=method)
    assert not solution.weight.any()
    assert solution.objective == solution.gap == solution.n_iterations == 0
    assert solution.duals == pytest.approx(np.zeros(3), abs=0)
    assert solution.status is Status.OPTIMAL
    assert_keeps(layer, solution)


@each_fast
def test_an_empty_layer_may_need_another_bias_than_the_best_to_keep_all_budgets(make_layer, method):
    """Of two batches of constant targets 0 and 1, of sizes 3 and 1, the best bias misses the smaller one's budget."""
    X, Z = np.random.default_rng(0).standard_normal((8, 2)), np.repeat([0.0, 1.0], [6, 2])[:, None]
    problem = LayerProblem(X, np.ones((1, 2)), [0.0], preactivations=Z)
    # radii sqrt(6) b and sqrt(2) (1 - b) for a bias b: both 0.8966 at b = 0.366
    goal = ErrorBudget(radius=0.9, per="batch", batch_size=6)
    solution = solve(problem, goal, method=method)
    assert solution.objective == 0
    assert solution.status is Status.OPTIMAL
    assert 1 - 0.9 / np.sqrt(2) <= solution.bias[0] <= 0.9 / np.sqrt(6)


@each_fast
def test_the_least_error_of_neurons_is_named_where_their_budgets_cannot_be_kept(make_layer, method):
    layer = make_layer("identity", extras=("preactivations",))
    A = np.column_stack([layer.X, np.ones(80)])
    least = np.linalg.norm(layer.center - A @ np.linalg.lstsq(A, layer.center, rcond=None)[0], axis=0)
    empty = np.linalg.norm(layer.center - layer.center.mean(axis=0), axis=0)
    worst = np.max(least / empty)
    with pytest.raises(InfeasibleBudgetError, match="a neuron's budget cannot be attained") as caught:
        solve(layer.problem, budget("neuron", 0.99 * worst), method=method)
    assert caught.value.least_relative_error == pytest.approx(worst, rel=1e-5)
    solution = solve(layer.problem, budget("neuron", 1.02 * worst), method=method, tol=1e-3)
    assert_keeps(layer, solution)


@each_fast
def test_no_less_than_the_named_error_can_be_kept_by_mini_batches(make_layer, method):
    layer = make_layer("identity", extras=("preactivations",), n_in=5)
    with pytest.raises(InfeasibleBudgetError, match="a mini-batch's budget cannot be attained") as caught:
        solve(layer.problem, budget("batch", 0.01), method=method)
    least = caught.value.least_relative_error
    A = np.column_stack([layer.X, np.ones(80)])
    shared = np.linalg.norm(layer.center - A @ np.linalg.lstsq(A, layer.center, rcond=None)[0]) / layer.empty_radius
    assert least >= shared * (1 - 1e-6)  # what one budget for all needs, which mini-batches cannot beat
    with pytest.raises(InfeasibleBudgetError):
        solve(layer.problem, budget("batch", 0.99 * least), method=method)


# Limits, callbacks, starts


@pytest.mark.parametrize("activation", ["relu", "softmax"])
@pytest.mark.parametrize("limit", [{"max_seconds": 0.0}, {"max_iterations": 1}], ids=["seconds", "iterations"])
@each_per
@each_method
def test_a_limit_returns_weights_that_keep_the_budgets_with_their_gap(make_layer, method, per, limit, activation):
    if (activation, per) == ("softmax", "neuron"):
        return
    layer = make_layer(activation)
    with pytest.warns(ConvergenceWarning, match="stopped at max_"):
        solution = solve(layer.problem, budget(per, 0.1), method=method, tol=1e-9, **limit)
    assert solution.status is (Status.TIME_LIMIT if "max_seconds" in limit else Status.ITERATION_LIMIT)
    assert_keeps(layer, solution)
    assert solution.objective == pytest.approx(layer.penalty(solution.weight), rel=1e-12)
    assert solution.objective <= layer.penalty(layer.W) * (1 + 1e-9)
    assert solution.gap == pytest.approx(1 - solution.lower_bound / solution.objective, abs=1e-12)
    assert solution.gap > 1e-9


@each_per
@each_method
def test_a_callback_stops_the_solve(make_layer, method, per):
    layer, seen = make_layer("relu"), []
    with pytest.warns(ConvergenceWarning, match="stopped by the callback"):
        solution = solve(layer.problem, budget(per), method=method, tol=1e-9, callback=lambda p: seen.append(p) or True)
    assert solution.status is Status.CALLBACK
    assert solution.history == tuple(seen)
    assert len(seen) == 1
    assert_keeps(layer, solution)


@each_per
@each_fast
def test_a_neighbouring_solution_is_a_good_start(make_layer, method, per):
    layer = make_layer("relu", n_in=20)
    near = solve(layer.problem, budget(per, 0.2), method=method, tol=1e-5)
    cold = solve(layer.problem, budget(per, 0.201), method=method, tol=1e-5)
    warm = solve(layer.problem, budget(per, 0.201), method=method, tol=1e-5, warm_start=near)
    assert warm.n_iterations < cold.n_iterations
    assert warm.objective == pytest.approx(cold.objective, rel=2e-5)


@each_per
@each_method
@pytest.mark.filterwarnings("ignore::sisopt.ConvergenceWarning")
def test_same_bits_for_one_and_two_threads(make_layer, method, per):
    layer = make_layer("relu", n=300, n_in=6, n_out=5)
    options = {"tol": max(TOL[method], 1e-4), "max_iterations": 5 if method == "sis" else 1000}
    one, two = (solve(layer.again(), budget(per), method=method, n_threads=n, **options) for n in (1, 2))
    for name in ("weight", "bias", "duals"):
        assert getattr(one, name).tobytes() == getattr(two, name).tobytes()
    assert (one.lower_bound, one.n_iterations) == (two.lower_bound, two.n_iterations)


@each_per
@each_fast
def test_problems_and_solutions_survive_a_pickle(make_layer, method, per):
    layer = make_layer("relu", extras=("columns",) if per == "batch" else ("rows",))
    first = solve(layer.problem, budget(per), method=method)
    again = solve(pickle.loads(pickle.dumps(layer.problem)), budget(per), method=method)
    copy = pickle.loads(pickle.dumps(first))
    assert again.weight.tobytes() == first.weight.tobytes() == copy.weight.tobytes()
    assert copy.duals.tobytes() == first.duals.tobytes() == again.duals.tobytes()
    assert (copy.goal, copy.status, copy.gap) == (first.goal, first.status, first.gap)
    assert repr(copy.history) == repr(first.history)  # multipliers are NaN with several budgets


@each_per
@each_method
def test_float32_layers_report_their_rounded_weights(make_layer, method, per):
    layer = make_layer("relu", dtype=np.float32, n_in=5, n_out=2)
    tol = max(TOL[method], 1e-4)
    solution = solve(layer.problem, budget(per), method=method, tol=tol)
    assert solution.weight.dtype == solution.bias.dtype == np.float32
    assert solution.duals.dtype == np.float64
    radii = np.sqrt(2 * layer.group_losses(solution.weight, solution.bias, solution.goal))
    assert (radii <= np.array([e for _, e in layer.budgets(solution.goal)]) * (1 + 1e-5)).all()
    assert solution.radius == pytest.approx(layer.radius(solution.weight, solution.bias), rel=1e-9)
    assert solution.objective == pytest.approx(layer.penalty(solution.weight), rel=1e-12)
    assert solution.status is Status.OPTIMAL


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("penalty", ["l1", "rows"])
def test_sums_over_samples_give_the_solution_per_neuron_of_the_data(make_layer, penalty, bias):
    layer = make_layer("identity", bias=bias, n_in=8)
    X, g = layer.X, penalty if penalty == "l1" else GroupL2(penalty)
    sums = {"weight": layer.W, "bias": layer.b, "input_sum": X.sum(axis=0) if bias else None, "n_samples": 80}
    found = solve(LayerProblem.from_gram(X.T @ X, penalty=g, **sums), budget("neuron"), tol=1e-6)
    same = solve(layer.again(penalty=g), budget("neuron"), tol=1e-6)
    assert found.status is Status.OPTIMAL
    assert found.objective == pytest.approx(same.objective, rel=2e-6)
    assert found.duals == pytest.approx(same.duals, rel=1e-2)


# The methods agree


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("activation", "extras"),
    [("relu", ()), ("identity", ()), ("hard_tanh", ("sample_weights",)), ("relu", ("rows",)), ("tanh", ("mask",))],
)
@each_per
def test_methods_agree_within_their_gaps(make_layer, per, activation, extras, seed):
    layer = make_layer(activation, extras=extras, seed=seed, n=60, n_in=8, bias=seed != 1)
    goal = budget(per, 0.7 if "mask" in extras else 0.25)
    one, two = (solve(layer.problem, goal, method=method, tol=1e-5) for method in FAST)
    for solution, other in ((one, two), (two, one)):
        assert solution.status is Status.OPTIMAL
        assert_keeps(layer, solution)
        slack = 1e-6 * paid(layer, solution).sum()  # budgets count as kept up to a relative 1e-6
        assert other.lower_bound <= solution.objective + slack
        assert solution.objective <= other.objective + solution.gap * solution.objective + slack
