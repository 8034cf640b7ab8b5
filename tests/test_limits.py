"""At a limit: an honest status, a warning that says what to do, the best iterate; and what cannot be done at all."""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time

import numpy as np
import pytest
import threadpoolctl
from scipy.optimize import minimize

from sisopt import (
    ConvergenceWarning,
    ErrorBudget,
    InfeasibleBudgetError,
    InvalidInputError,
    LayerProblem,
    Penalized,
    Sparsity,
    Status,
    reference,
    solve,
    sparsify,
)
from sisopt.solvers.rows import Limits

GOALS = {
    "Penalized": Penalized(1.0),
    "ErrorBudget": ErrorBudget(relative_error=0.05),
    "Sparsity": Sparsity(0.5),
}
HARD = 1e-9  # a tolerance that takes many rounds


@pytest.fixture
def layer(make_layer):
    return make_layer("relu", n=150, n_in=20, n_out=4)


def stop_at_once(progress):
    return True


LIMITS = {
    Status.ITERATION_LIMIT: ({"max_iterations": 1}, "raise max_iterations or tol"),
    Status.TIME_LIMIT: ({"max_seconds": 0}, "raise max_seconds or tol"),
    Status.CALLBACK: ({"callback": stop_at_once}, "the callback returned a true value"),
}


def assert_history_consistent(solution):
    """Rounds are numbered, counts only grow, every gap is that of its objective and the best bound so far."""
    rounds = solution.history
    assert [p.round for p in rounds] == list(range(1, len(rounds) + 1))
    for name in ("n_iterations", "n_products", "seconds"):
        values = [getattr(p, name) for p in rounds] + [getattr(solution, name)]
        assert values == sorted(values)
    assert solution.n_iterations == rounds[-1].n_iterations
    for p in rounds:
        gap = max(0.0, 1 - p.lower_bound / p.objective) if p.objective > 0 else 0.0
        assert p.gap == math.inf or p.gap == pytest.approx(gap, abs=1e-15)
        assert 0 <= p.n_nonzero <= solution.weight.size
    if isinstance(solution.goal, Sparsity):
        return  # the radius, and the program with it, differs from round to round
    bounds = [p.lower_bound for p in rounds]
    assert bounds == sorted(bounds)
    feasible = [p for p in rounds if p.gap < math.inf]
    if isinstance(solution.goal, Penalized):
        assert len(feasible) == len(rounds)
    if feasible:
        assert solution.objective <= min(p.objective for p in feasible) * (1 + 1e-12)
        assert solution.gap <= min(p.gap for p in feasible) + 1e-9


@pytest.mark.parametrize("goal", GOALS)
@pytest.mark.parametrize("status", LIMITS, ids=lambda s: s.name)
def test_a_limit_gives_its_status_advice_and_an_iterate_that_meets_the_goal(layer, status, goal):
    options, advice = LIMITS[status]
    with pytest.warns(ConvergenceWarning, match=advice) as caught:
        solution = solve(layer.problem, GOALS[goal], tol=HARD, **options)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert status.value in str(caught[0].message)
    assert f"gap {solution.gap:.2e}" in str(caught[0].message)
    assert solution.status is status
    if goal == "Sparsity":  # the gap is that of the budget attained; the count of weights may be the wrong one
        assert 0.0 <= solution.gap < math.inf
    else:
        assert HARD < solution.gap < math.inf
    assert_history_consistent(solution)
    radius = layer.radius(solution.weight, solution.bias)
    assert solution.radius == pytest.approx(radius, rel=1e-9)
    if goal == "ErrorBudget":
        assert radius <= 0.05 * layer.empty_radius * (1 + 1e-6)
        assert solution.objective <= np.abs(layer.W).sum() * (1 + 1e-12)


@pytest.mark.parametrize("goal", GOALS)
@pytest.mark.parametrize("activation", ["identity", "relu"])
@pytest.mark.filterwarnings("ignore::sisopt.ConvergenceWarning")
def test_a_lower_bound_at_a_limit_holds(make_layer, activation, goal):
    layer = make_layer(activation, n=150, n_in=20, n_out=4)
    early = solve(layer.problem, GOALS[goal], tol=HARD, callback=stop_at_once)
    exact = GOALS[goal] if goal != "Sparsity" else ErrorBudget(radius=early.radius)
    assert early.lower_bound <= solve(layer.problem, exact, tol=1e-8).objective


@pytest.mark.parametrize("status", LIMITS, ids=lambda s: s.name)
@pytest.mark.parametrize("tol", [1e-3, 0.9])
@pytest.mark.parametrize("activation", ["identity", "relu"])
@pytest.mark.filterwarnings("ignore::sisopt.ConvergenceWarning")
def test_a_sparsity_that_was_not_reached_is_not_called_optimal(make_layer, activation, tol, status):
    layer = make_layer(activation, n=150, n_in=20, n_out=4)
    for wanted in (0.1, 0.5, 0.9):
        solution = solve(layer.problem, Sparsity(wanted), tol=tol, **LIMITS[status][0])
        reached = abs(np.count_nonzero(solution.weight) - round((1 - wanted) * layer.W.size)) <= 1
        assert solution.status is (Status.OPTIMAL if reached and solution.gap <= tol else status)


@pytest.mark.parametrize("limit", [1, 2, 5, 20])
@pytest.mark.parametrize("goal", GOALS)
@pytest.mark.parametrize("activation", ["identity", "relu", "gelu"])
@pytest.mark.filterwarnings("ignore::sisopt.ConvergenceWarning")
def test_no_more_iterations_are_taken_than_allowed(make_layer, activation, goal, limit):
    layer = make_layer(activation, n=150, n_in=20, n_out=4)
    solution = solve(layer.problem, GOALS[goal], tol=HARD, max_iterations=limit)
    assert solution.n_iterations <= limit
    if goal != "Sparsity":  # there the count matters too
        assert (solution.status is Status.OPTIMAL) == (solution.gap <= HARD)


@pytest.mark.parametrize("relative_error", [0.0, 0.01, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("activation", ["identity", "relu", "gelu"])
@pytest.mark.filterwarnings("ignore::sisopt.ConvergenceWarning")
def test_a_budget_is_kept_at_every_limit(make_layer, activation, dtype, relative_error):
    layer = make_layer(activation, n=150, n_in=20, n_out=4, dtype=dtype)
    slack = 1e-6 if dtype == np.float64 else 1e-5
    allowed = layer.empty_radius * (relative_error * (1 + slack) if relative_error else slack)
    limits = [{"max_iterations": n} for n in (1, 3, 10)]
    limits += [{"max_seconds": 0}, {"callback": lambda p: p.round == 1}, {"callback": lambda p: p.round == 3}]
    for options in limits:
        solution = solve(layer.problem, ErrorBudget(relative_error=relative_error), tol=1e-5, **options)
        assert layer.radius(solution.weight, solution.bias) <= allowed
        assert solution.gap < math.inf


@pytest.mark.parametrize("goal", GOALS)
@pytest.mark.parametrize("activation", ["identity", "relu", "gelu"])
def test_history_is_what_the_callback_saw(make_layer, activation, goal):
    layer = make_layer(activation, n=150, n_in=20, n_out=4)
    seen = []
    solution = solve(layer.problem, GOALS[goal], tol=1e-7, callback=seen.append)
    assert solution.status is Status.OPTIMAL
    assert list(solution.history) == seen
    assert_history_consistent(solution)
    assert min(p.gap for p in seen) == pytest.approx(0.0, abs=1e-7)
    plain = solve(layer.problem, GOALS[goal], tol=1e-7)
    assert plain.weight.tobytes() == solution.weight.tobytes()  # watching changes nothing


@pytest.mark.parametrize("last", [1, 2, 4])
def test_a_callback_stops_after_the_round_that_it_says(layer, last):
    with pytest.warns(ConvergenceWarning):
        solution = solve(layer.problem, GOALS["ErrorBudget"], tol=HARD, callback=lambda p: p.round == last)
    assert len(solution.history) == last
    assert solution.status is Status.CALLBACK


def test_a_limit_beyond_what_is_needed_is_no_limit(layer):
    goal = GOALS["ErrorBudget"]
    free = solve(layer.problem, goal)
    limits = {"max_iterations": free.n_iterations + 1, "max_seconds": 1e6, "callback": lambda p: False}
    limited = solve(layer.problem, goal, **limits)
    assert limited.status is Status.OPTIMAL
    assert limited.weight.tobytes() == free.weight.tobytes()


def test_a_solve_can_go_on_from_where_a_limit_stopped_it(layer):
    goal = GOALS["Penalized"]
    with pytest.warns(ConvergenceWarning, match="warm-start from this solution"):
        early = solve(layer.problem, goal, tol=1e-8, max_iterations=3)
    cold, warm = solve(layer.problem, goal, tol=1e-8), solve(layer.problem, goal, tol=1e-8, warm_start=early)
    assert warm.status is Status.OPTIMAL
    assert warm.n_iterations < cold.n_iterations


@pytest.mark.parametrize("goal", [{"sparsity": 0.6, "effort": "full"}, {"relative_error": 0.05}], ids=str)
def test_sparsify_at_a_limit_warns_its_caller_and_keeps_what_was_asked_for(layer, goal):
    with pytest.warns(ConvergenceWarning, match="stopped by the callback") as caught:
        result = sparsify(layer.X, layer.W, layer.b, activation="relu", tol=HARD, callback=stop_at_once, **goal)
    assert [warning.filename for warning in caught if warning.category is ConvergenceWarning] == [__file__]
    assert result.convex.status is Status.CALLBACK
    if "sparsity" in goal:
        assert np.count_nonzero(result.weight) == round(0.4 * layer.W.size)
    else:
        assert layer.radius(result.weight, result.bias) <= 0.05 * layer.empty_radius * (1 + 1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("goal", GOALS)
@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_the_least_tolerance_allowed_is_reached_without_running_to_the_limit(make_layer, activation, goal, dtype):
    layer = make_layer(activation, n=150, n_in=20, n_out=4, dtype=dtype)
    least = 1e-9 if dtype == np.float64 else 1e-5
    solution = solve(layer.problem, GOALS[goal], tol=least)
    assert solution.gap <= least
    assert solution.n_iterations < 1000


def test_rows_of_a_quadratic_stop_where_rounding_does():
    rng = np.random.default_rng(3612)
    X = (rng.standard_normal((28, 14)) + 2.0) * np.exp(rng.uniform(-2, 2, 14))  # of condition 240
    W = np.random.default_rng(1).standard_normal((2, 14))
    solution = solve(LayerProblem(X, W), ErrorBudget(relative_error=0.005), tol=1e-9)
    assert solution.gap <= 1e-9
    assert solution.n_iterations < 1000


@pytest.mark.parametrize("n_threads", [1, 2])
def test_an_exception_from_a_callback_leaves_nothing_behind(layer, n_threads):
    goal = GOALS["ErrorBudget"]
    before = solve(layer.again(), goal, n_threads=n_threads)
    running, blas = set(threading.enumerate()), threadpoolctl.threadpool_info()

    def interrupt(progress):
        if progress.round == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        solve(layer.problem, goal, n_threads=n_threads, callback=interrupt)
    assert set(threading.enumerate()) == running
    assert threadpoolctl.threadpool_info() == blas
    assert solve(layer.problem, goal, n_threads=n_threads).weight.tobytes() == before.weight.tobytes()


@pytest.mark.skipif(sys.platform == "win32", reason="signals to oneself")
@pytest.mark.parametrize("n_threads", [1, 2])
def test_an_interrupt_stops_the_rows_that_are_being_solved(make_layer, monkeypatch, n_threads):
    """After Ctrl-C in the middle of a round every thread may end its step, and none begins another."""
    layer = make_layer("relu", n=300, n_in=40, n_out=32)
    out_of_time = Limits.out_of_time
    steps, begun_later = [0], []
    sent, handled = threading.Event(), threading.Event()

    def handler(number, frame):
        handled.set()
        raise KeyboardInterrupt

    def watched(self):
        steps[0] += 1
        if sent.is_set():
            time.sleep(0.1)  # time enough for the order to arrive
            stop = out_of_time(self)
            begun_later.append(not stop)
            return stop
        if steps[0] == 8:
            sent.set()
            os.kill(os.getpid(), signal.SIGINT)
            handled.wait(10)
        return out_of_time(self)

    running = set(threading.enumerate())
    monkeypatch.setattr(Limits, "out_of_time", watched)
    previous = signal.signal(signal.SIGINT, handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            solve(layer.problem, ErrorBudget(relative_error=0.03), tol=HARD, n_threads=n_threads)
    finally:
        signal.signal(signal.SIGINT, previous)
    assert handled.is_set()
    assert set(threading.enumerate()) == running
    assert sum(begun_later) <= n_threads


def masked_least_squares(layer):
    """Return the least relative error of an identity layer under its mask, neuron by neuron."""
    ones = np.ones((len(layer.X), int(layer.b is not None)))
    least = empty = 0.0
    for allowed, z in zip(np.isfinite(layer.factors), layer.center.T, strict=True):
        for columns, add in ((allowed, True), (np.zeros_like(allowed), False)):
            A = np.hstack([layer.X[:, columns], ones])
            loss = float(np.sum((z - A @ np.linalg.lstsq(A, z)[0]) ** 2)) if A.shape[1] else float(z @ z)
            least, empty = (least + loss, empty) if add else (least, empty + loss)
    return math.sqrt(least / empty)


def least_by_descent(layer):
    """Return the least relative error under the mask by a general-purpose minimiser of phi."""
    free = np.isfinite(layer.factors)

    def unpack(u):
        W = np.zeros(layer.W.shape)
        W[free] = u[: free.sum()]
        return W, u[free.sum() :] if layer.b is not None else None

    def loss(u):
        W, b = unpack(u)
        slopes = layer.slopes(W, b)
        gradient = [(slopes.T @ layer.X)[free]] + ([slopes.sum(axis=0)] if b is not None else [])
        return layer.phi(W, b), np.concatenate(gradient)

    start = np.concatenate([layer.W[free], layer.b if layer.b is not None else []])
    options = {"maxiter": 10_000, "maxfun": 100_000, "ftol": 1e-16, "gtol": 1e-10}
    return math.sqrt(2 * minimize(loss, start, jac=True, method="L-BFGS-B", options=options).fun) / layer.empty_radius


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("extras", [("mask",), ("preactivations",), ("mask", "preactivations")], ids="+".join)
@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_a_budget_that_cannot_be_kept_names_the_least_that_can(make_layer, activation, extras, bias):
    layer = make_layer(activation, extras=extras, bias=bias)
    least = least_by_descent(layer)
    if activation == "identity":
        assert least == pytest.approx(masked_least_squares(layer), rel=1e-6)
    for share in (0.0, 0.01, 0.9):
        with pytest.raises(InfeasibleBudgetError, match="least attainable relative_error") as caught:
            solve(layer.problem, ErrorBudget(relative_error=share * least))
        assert caught.value.least_relative_error == pytest.approx(least, rel=1e-6)
        assert f"{caught.value.least_relative_error:.6g}" in str(caught.value)
    just = solve(layer.problem, ErrorBudget(relative_error=1.001 * least))
    assert just.status is Status.OPTIMAL
    assert just.relative_error <= 1.001 * least * (1 + 1e-6)


@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_the_reference_names_the_same_least_budget(make_layer, activation):
    pytest.importorskip("cvxpy")
    layer = make_layer(activation, extras=("mask", "preactivations"))
    errors = []
    for solver in (solve, reference.solve):
        with pytest.raises(InfeasibleBudgetError) as caught:
            solver(layer.problem, ErrorBudget(relative_error=0.01))
        errors.append(caught.value.least_relative_error)
    assert errors[0] == pytest.approx(errors[1], rel=1e-6)


def test_sparsify_refuses_a_budget_that_cannot_be_kept(make_layer):
    layer = make_layer("relu", extras=("preactivations",))
    with pytest.raises(InfeasibleBudgetError):
        sparsify(layer.X, layer.W, layer.b, relative_error=0.001, **layer.options)


def test_a_layer_with_all_weights_forbidden_admits_no_budget_below_the_empty_layer(make_layer):
    layer = make_layer("relu")
    problem = layer.again(mask=np.zeros(layer.W.shape, dtype=bool))
    with pytest.raises(InfeasibleBudgetError) as caught:
        solve(problem, ErrorBudget(relative_error=0.5))
    assert caught.value.least_relative_error == pytest.approx(1.0, rel=1e-9)
    for goal in (ErrorBudget(relative_error=1.0), Penalized(1e-3), Sparsity(0.5)):
        solution = solve(problem, goal)
        assert not solution.weight.any()
        assert solution.status is Status.OPTIMAL


@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_a_budget_of_zero_that_a_mask_allows_is_kept(make_layer, activation):
    X = np.random.default_rng(0).standard_normal((60, 6))
    X[:, 5] = X[:, 0]
    layer = make_layer(activation, inputs=X, n=60, n_in=6)
    mask = np.ones(layer.W.shape, dtype=bool)
    mask[:, 5] = False  # the other of two equal columns serves as well
    solution = solve(layer.again(mask=mask), ErrorBudget(relative_error=0.0))
    assert layer.radius(solution.weight, solution.bias) <= 1e-6 * layer.empty_radius
    assert (solution.weight[:, 5] == 0).all()
    assert solution.n_iterations < 1000


@pytest.mark.parametrize("relative_error", [0.0, 1e-9])
@pytest.mark.parametrize("n", [6, 80])
@pytest.mark.parametrize("activation", ["identity", "relu"])
@pytest.mark.filterwarnings("ignore::sisopt.ConvergenceWarning")
def test_a_budget_that_the_dense_layer_keeps_is_never_called_unattainable(make_layer, activation, n, relative_error):
    layer = make_layer(activation, n=n)
    solution = solve(layer.problem, ErrorBudget(relative_error=relative_error))
    assert layer.radius(solution.weight, solution.bias) <= 1e-6 * layer.empty_radius
    assert solution.objective <= np.abs(layer.W).sum() * (1 + 1e-12)


@pytest.mark.parametrize(
    ("goal", "options"),
    [(Penalized(1.0), {}), (ErrorBudget(eta=0.1), {}), (Sparsity(0.5), {}), (Penalized(1.0), {"max_iterations": 1})],
    ids=str,
)
@pytest.mark.filterwarnings("ignore::sisopt.ConvergenceWarning")
def test_a_printed_solution_shows_its_gap_and_status(layer, goal, options):
    solution = solve(layer.problem, goal, tol=1e-6, **options)
    text = str(solution)
    assert f"{solution.status.name}: {solution.status.value}" in text
    assert f"{solution.gap:.2e}" in text
    assert str(goal) in text
    assert f"{solution.lower_bound:.6g}" in text
    assert solution.status.name in repr(solution)
    assert f"{solution.gap:.1e}" in repr(solution)
    assert "\n" not in repr(solution)


@pytest.mark.filterwarnings("ignore::sisopt.GeneralizationWarning")
def test_a_printed_layer_shows_its_gap_status_and_stages(layer):
    result = sparsify(layer.X, layer.W, layer.b, activation="relu", sparsity=0.5, effort="full")
    text = str(result)
    for part in (result.convex.status.name, f"{result.convex.gap:.1e}", "convex", "reweighted", "swap", "50.00%"):
        assert part in text
    for stage in result.stages:
        assert f"{stage.output_error:.4f}" in text
    with pytest.warns(ConvergenceWarning):
        early = sparsify(layer.X, layer.W, layer.b, activation="relu", sparsity=0.5, effort="full", max_seconds=0.0)
    assert "TIME_LIMIT" in str(early)


@pytest.mark.parametrize("tol", [0, 0.0, -1e-4, math.nan, math.inf, "tight", None, 9e-10, [1e-4, 1e-4]])
def test_bad_tolerances_are_refused(layer, tol):
    with pytest.raises(InvalidInputError, match=r"\btol\b"):
        solve(layer.problem, GOALS["Penalized"], tol=tol)


def test_tolerances_below_the_precision_of_float32_are_refused_with_advice(make_layer):
    problem = make_layer("relu", dtype=np.float32).problem
    with pytest.raises(InvalidInputError, match="tol must be at least 1e-05 for float32.*pass float64"):
        solve(problem, GOALS["Penalized"], tol=9e-6)
    assert solve(problem, GOALS["Penalized"], tol=1e-5).gap <= 1e-5


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_iterations", 0),
        ("max_iterations", 1.5),
        ("max_iterations", "many"),
        ("max_seconds", -1),
        ("max_seconds", math.nan),
        ("max_seconds", "soon"),
        ("n_threads", 0),
        ("n_threads", 1.5),
    ],
)
def test_bad_limits_are_refused_by_name(layer, name, value):
    with pytest.raises(InvalidInputError, match=name):
        solve(layer.problem, GOALS["Penalized"], **{name: value})
