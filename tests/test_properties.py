"""What must hold whatever the layer: equivariance, ends of the path, monotony, exact counts, untouched arguments."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from sisopt import (
    ConvergenceWarning,
    ErrorBudget,
    GeneralizationWarning,
    LayerProblem,
    Penalized,
    Sparsity,
    Status,
    WeightedL1,
    solve,
    sparsify,
)

TOL = 1e-7
few = settings(max_examples=8, deadline=None)
seeds = st.integers(0, 10**6)
activations = st.sampled_from(["identity", "relu", "hard_tanh", "gelu", "soft_shrink"])
biases = st.booleans()
budgets = st.floats(0.02, 0.95)


def assert_same_optimum(one, other, scale=1.0):
    """Two certified solutions of one program: their objectives differ by their gaps at most."""
    assert one.status is other.status is Status.OPTIMAL
    assert other.objective == pytest.approx(scale * one.objective, rel=2 * TOL)


@few
@given(seed=seeds, activation=activations, bias=biases, budget=budgets, power=st.floats(-5, 5))
def test_weights_scale_inversely_with_the_inputs(make_layer, seed, activation, bias, budget, power):
    layer, c = make_layer(activation, seed=seed, bias=bias), 10.0**power
    scaled = layer.again(inputs=c * layer.X, weight=layer.W / c)
    goal = ErrorBudget(relative_error=budget)
    one, other = solve(layer.problem, goal, tol=TOL), solve(scaled, goal, tol=TOL)
    assert_same_optimum(one, other, 1 / c)
    assert other.radius == pytest.approx(one.radius, rel=1e-4)
    np.testing.assert_allclose(c * other.weight, one.weight, atol=3e-3 * np.abs(one.weight).max())
    multiplier = one.multiplier
    one, other = solve(layer.problem, Penalized(multiplier), tol=TOL), solve(scaled, Penalized(c * multiplier), tol=TOL)
    assert_same_optimum(one, other)
    np.testing.assert_allclose(c * other.weight, one.weight, atol=3e-3 * np.abs(one.weight).max())


@few
@given(seed=seeds, bias=biases, budget=budgets, power=st.floats(-5, 5))
def test_weights_scale_with_the_outputs_of_a_homogeneous_activation(make_layer, seed, bias, budget, power):
    layer, c = make_layer("relu", seed=seed, bias=bias), 10.0**power
    scaled = layer.again(weight=c * layer.W, bias=None if layer.b is None else c * layer.b)
    goal = ErrorBudget(relative_error=budget)
    one, other = solve(layer.problem, goal, tol=TOL), solve(scaled, goal, tol=TOL)
    assert_same_optimum(one, other, c)
    assert other.radius == pytest.approx(c * one.radius, rel=1e-4)
    assert other.multiplier == pytest.approx(c * one.multiplier, rel=0.02)


@few
@given(seed=seeds, activation=activations, budget=budgets)
def test_permuted_inputs_outputs_and_samples_give_permuted_weights(make_layer, seed, activation, budget):
    layer = make_layer(activation, seed=seed, n_out=4, extras=("entry_weights", "sample_weights", "shift", "fidelity"))
    rng = np.random.default_rng(seed)
    k, j, i = (rng.permutation(size) for size in (*layer.X.shape, layer.W.shape[0]))
    permuted = layer.again(
        inputs=layer.X[np.ix_(k, j)],
        weight=layer.W[np.ix_(i, j)],
        bias=layer.b[i],
        shift=layer.options["shift"][np.ix_(k, i)],
        entry_weights=layer.options["entry_weights"][np.ix_(k, i)],
        sample_weights=layer.options["sample_weights"][k],
    )
    for goal in (ErrorBudget(relative_error=budget), Penalized(3.0)):
        one, other = solve(layer.problem, goal, tol=TOL), solve(permuted, goal, tol=TOL)
        assert_same_optimum(one, other)
        np.testing.assert_allclose(other.weight, one.weight[np.ix_(i, j)], atol=3e-3 * np.abs(one.weight).max())


@few
@given(seed=seeds, activation=activations, budget=budgets, offset=st.floats(-1e3, 1e3))
def test_an_offset_of_the_inputs_goes_into_the_bias(make_layer, seed, activation, budget, offset):
    layer = make_layer(activation, seed=seed)
    moved = layer.again(inputs=layer.X + offset, bias=layer.b - layer.W.sum(axis=1) * offset)
    goal = ErrorBudget(relative_error=budget)
    one, other = solve(layer.problem, goal, tol=TOL), solve(moved, goal, tol=TOL)
    assert_same_optimum(one, other)
    np.testing.assert_allclose(other.weight, one.weight, atol=3e-3 * np.abs(one.weight).max())


@few
@given(seed=seeds, activation=activations, budget=budgets)
def test_sample_weights_count_repetitions(make_layer, seed, activation, budget):
    layer = make_layer(activation, seed=seed, n=40)
    counts = np.random.default_rng(seed).integers(0, 4, 40)
    weighted = layer.again(sample_weights=counts)
    repeated = layer.again(inputs=np.repeat(layer.X, counts, axis=0))
    for goal in (ErrorBudget(relative_error=budget), ErrorBudget(eta=0.1), Penalized(3.0)):
        assert_same_optimum(solve(weighted, goal, tol=TOL), solve(repeated, goal, tol=TOL))


@few
@given(seed=seeds, activation=activations, bias=biases, budget=st.floats(1.0, 1e6))
@example(seed=0, activation="relu", bias=True, budget=1.0)
def test_no_weights_are_left_from_a_relative_error_of_one_on(make_layer, seed, activation, bias, budget):
    layer = make_layer(activation, seed=seed, bias=bias)
    solution = solve(layer.problem, ErrorBudget(relative_error=budget))
    assert not solution.weight.any()
    assert solution.radius == pytest.approx(layer.empty_radius, rel=1e-9)
    assert solution.relative_error == pytest.approx(1.0, rel=1e-9)
    assert (solution.objective, solution.gap, solution.status) == (0.0, 0.0, Status.OPTIMAL)


@few
@given(seed=seeds, activation=activations, bias=biases)
def test_a_relative_error_of_zero_keeps_the_outputs_of_the_dense_layer(make_layer, seed, activation, bias):
    layer = make_layer(activation, seed=seed, bias=bias)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        solution = solve(layer.problem, ErrorBudget(relative_error=0.0))
    R = layer.problem.activation
    difference = R.forward(layer.preactivations(solution.weight, solution.bias)) - R.forward(layer.center)
    missed = 1e-6 * layer.empty_radius  # what counts as a budget that is kept
    assert layer.radius(solution.weight, solution.bias) <= missed
    assert np.linalg.norm(difference) <= R.lipschitz * missed
    assert solution.objective <= np.abs(layer.W).sum() * (1 + 1e-12)
    assert 0.0 <= solution.gap < np.inf


@few
@given(seed=seeds, activation=activations, bias=biases, one=budgets, other=budgets)
def test_a_smaller_budget_never_costs_less(make_layer, seed, activation, bias, one, other):
    layer = make_layer(activation, seed=seed, bias=bias)
    tight, loose = (
        solve(layer.problem, ErrorBudget(relative_error=budget), tol=TOL)
        for budget in (min(one, other), max(one, other))
    )
    assert tight.objective >= loose.objective * (1 - TOL)


@few
@given(seed=seeds, activation=activations, bias=biases, one=st.floats(-3, 0), other=st.floats(-3, 0))
def test_a_larger_multiplier_never_lowers_the_error_or_raises_the_penalty(
    make_layer, seed, activation, bias, one, other
):
    layer = make_layer(activation, seed=seed, bias=bias)
    low, high = (100 * 10.0**power for power in sorted((one, other)))
    a, b = (solve(layer.problem, Penalized(multiplier), tol=1e-9) for multiplier in (low, high))
    slack = 1e-9 * (a.objective + b.objective)  # each may be off its optimum by its gap
    assert (high - low) * (layer.penalty(a.weight) - layer.penalty(b.weight)) >= -slack
    assert high * b.radius**2 - low * b.radius**2 >= (high - low) * a.radius**2 - 2 * high * slack


@few
@given(seed=seeds, activation=activations, bias=biases, budget=st.floats(0.05, 0.9))
def test_multiplier_is_the_slope_of_the_optimum_in_the_budget(make_layer, seed, activation, bias, budget):
    """g* is convex in epsilon**2 / 2 with slope -1 / lambda: difference quotients to either side bracket it."""
    layer = make_layer(activation, seed=seed, bias=bias)
    epsilon = budget * layer.empty_radius
    step = 0.02 * 0.5 * epsilon**2
    middle, tighter, looser = (
        solve(layer.problem, ErrorBudget(radius=np.sqrt(epsilon**2 + 2 * change)), tol=1e-8)
        for change in (0.0, -step, step)
    )
    slack = 2e-8 * tighter.objective / step
    least, most = (middle.objective - looser.objective) / step, (tighter.objective - middle.objective) / step
    assert least - slack <= 1 / middle.multiplier <= most + slack


sparsities = st.floats(0.0, 1.0)
efforts = st.sampled_from(["fast", "default", "full"])


def sparsified(layer, sparsity, **options):
    """Sparsify a layer; that a certificate is not tight or samples are few is no matter here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.simplefilter("ignore", GeneralizationWarning)
        return sparsify(layer.X, layer.W, layer.b, sparsity=sparsity, **{**layer.options, **options})


@settings(few, max_examples=15)
@given(
    seed=seeds,
    activation=activations,
    bias=biases,
    sparsity=sparsities,
    dtype=st.sampled_from([np.float32, float]),
    effort=efforts,
)
@example(seed=0, activation="relu", bias=True, sparsity=0.0, dtype=float, effort="default")
@example(seed=0, activation="relu", bias=True, sparsity=1.0, dtype=float, effort="full")
@example(seed=0, activation="identity", bias=False, sparsity=0.0, dtype=np.float32, effort="full")
@example(seed=0, activation="identity", bias=False, sparsity=1.0, dtype=np.float32, effort="default")
def test_sparsify_keeps_exactly_the_weights_asked_for(make_layer, seed, activation, bias, sparsity, dtype, effort):
    layer = make_layer(activation, seed=seed, bias=bias, dtype=dtype)
    result = sparsified(layer, sparsity, effort=effort)
    kept = round((1 - sparsity) * layer.W.size)
    assert np.count_nonzero(result.weight) == kept
    assert result.sparsity == pytest.approx(1 - kept / layer.W.size, abs=1e-12)
    assert result.weight.dtype == dtype
    assert result.weight.shape == layer.W.shape
    assert (result.bias is None) == (not bias)
    assert result.relative_error == pytest.approx(
        layer.radius(result.weight, result.bias) / layer.empty_radius, rel=1e-6
    )


def test_sparsify_counts_are_exact_for_every_count_of_a_small_layer(make_layer):
    layer = make_layer("relu", n_in=4, n_out=3)
    for kept in range(13):
        assert np.count_nonzero(sparsified(layer, 1 - kept / 12).weight) == kept


# A penalty of its own name: the convex program, the exact count and a refit that no ridge holds back.
CONVEX = {"penalty": WeightedL1(1.0)}


@few
@given(seed=seeds, activation=activations, bias=biases, sparsity=st.floats(0.1, 0.95))
def test_refit_never_raises_the_calibration_loss(make_layer, seed, activation, bias, sparsity):
    extras = ("fidelity", "entry_weights", "sample_weights") if seed % 2 else ()
    layer = make_layer(activation, seed=seed, bias=bias, extras=extras)
    result = sparsified(layer, sparsity, **CONVEX)
    stages = {stage.name: stage.relative_error for stage in result.stages}
    assert list(stages) == ["convex", "exact count", "refit"]
    assert stages["refit"] == result.relative_error
    assert stages["refit"] <= stages["exact count"] * (1 + 1e-12)
    budget = sparsify(layer.X, layer.W, layer.b, relative_error=0.5, effort="fast", **layer.options)
    assert budget.relative_error <= budget.convex.relative_error * (1 + 1e-12)
    assert (budget.weight[budget.convex.weight == 0] == 0).all()


@few
@given(seed=seeds, activation=activations, bias=biases, budget=st.floats(0.05, 0.9))
def test_a_budget_is_kept_with_no_more_weights_than_the_convex_program_has(make_layer, seed, activation, bias, budget):
    extras = ("fidelity", "entry_weights", "sample_weights") if seed % 2 else ()
    layer = make_layer(activation, seed=seed, bias=bias, extras=extras)
    result = sparsify(layer.X, layer.W, layer.b, relative_error=budget, **layer.options)
    found = layer.radius(result.weight, result.bias)
    assert found <= budget * layer.empty_radius * (1 + 1e-6)
    assert result.relative_error * layer.empty_radius == pytest.approx(found, rel=1e-6)
    assert np.count_nonzero(result.weight) <= np.count_nonzero(result.convex.weight)


@few
@given(seed=seeds, activation=activations, bias=biases, effort=st.sampled_from(["fast", "default"]))
def test_more_weights_are_never_much_worse(make_layer, seed, activation, bias, effort):
    layer = make_layer(activation, seed=seed, bias=bias, n=160)
    errors = [sparsified(layer, s, effort=effort).relative_error for s in (1.0, 0.8, 0.6, 0.4, 0.2, 0.0)]
    for worse, better in itertools.pairwise(errors):
        assert better <= 1.05 * worse
    assert errors[0] == pytest.approx(1.0, rel=1e-9)
    assert errors[-1] <= 1e-9


@few
@given(seed=seeds, bias=biases, sparsity=st.floats(0.1, 0.95))
def test_refit_of_an_identity_layer_is_least_squares_on_the_support(make_layer, seed, bias, sparsity):
    layer = make_layer("identity", seed=seed, bias=bias)
    result = sparsified(layer, sparsity, **CONVEX)
    least = 0.0
    for w, z in zip(result.weight, layer.center.T, strict=True):
        columns = np.hstack([layer.X[:, w != 0], np.ones((len(z), int(bias)))])
        least += float(np.sum((z - columns @ np.linalg.lstsq(columns, z)[0]) ** 2))
    assert layer.radius(result.weight, result.bias) ** 2 == pytest.approx(least, rel=1e-5)


@pytest.mark.parametrize("extras", [(), ("fidelity", "entry_weights")], ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_refit_of_a_relu_layer_is_the_least_loss_on_the_support(make_layer, bias, extras):
    layer = make_layer("relu", bias=bias, extras=extras)
    result = sparsified(layer, 0.6, **CONVEX)
    kept = result.weight != 0

    def loss(u):
        W = np.zeros(layer.W.shape)
        W[kept] = u[: kept.sum()]
        b = u[kept.sum() :] if bias else None
        slopes = layer.slopes(W, b)
        return layer.phi(W, b), np.concatenate([(slopes.T @ layer.X)[kept], slopes.sum(axis=0)[: u.size - kept.sum()]])

    start = np.concatenate([result.weight[kept], result.bias if bias else []])
    least = minimize(loss, start, jac=True, method="L-BFGS-B", options={"ftol": 1e-15, "gtol": 1e-9, "maxiter": 5000})
    assert layer.phi(result.weight, result.bias) <= least.fun * (1 + 1e-4)


def strided(array):
    """Return the same values as a view with gaps and a negative stride."""
    wide = np.repeat(array[::-1], 2, axis=-1)
    return wide[..., 1::2][::-1]


LAYOUTS = {
    "contiguous": np.ascontiguousarray,
    "column by column": np.asfortranarray,
    "strided": strided,
    "read-only": lambda array: np.require(array.copy(), requirements="C"),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_nothing_that_the_caller_passed_is_modified(make_layer, activation, layout, dtype):
    extras = ("shift", "fidelity", "entry_weights", "sample_weights", "mask", "preactivations")
    layer = make_layer(activation, extras=extras)
    factors = np.random.default_rng(0).uniform(0.5, 2.0, layer.W.shape)
    arrays = {
        "inputs": (3 * layer.X).astype(dtype),
        "weight": (3 * layer.W).astype(dtype),
        "bias": layer.b.astype(dtype),
        "factors": factors,
        **{name: value for name, value in layer.options.items() if isinstance(value, np.ndarray)},
    }
    given = {name: LAYOUTS[layout](array) for name, array in arrays.items()}
    for array in given.values():
        array.flags.writeable = layout != "read-only"
    before = {name: array.tobytes() for name, array in given.items()}
    flags = {name: (array.flags.writeable, array.strides) for name, array in given.items()}
    options = {k: given.get(k, v) for k, v in layer.options.items()} | {"penalty": WeightedL1(given["factors"])}
    triple = given["inputs"], given["weight"], given["bias"]
    problem = LayerProblem(*triple, **options)
    returned = []
    for goal in (ErrorBudget(relative_error=0.9), Penalized(3.0), Sparsity(0.7)):
        solution = solve(problem, goal)
        returned += [solution.weight, solution.bias]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        result = sparsify(*triple, sparsity=0.5, **options)
        returned += [result.weight, result.bias, solve(problem, Sparsity(0.0)).weight]
    assert {name: array.tobytes() for name, array in given.items()} == before
    assert {name: (array.flags.writeable, array.strides) for name, array in given.items()} == flags
    for array in returned:  # what comes back is the caller's own
        assert array.flags.writeable
        assert not any(np.shares_memory(array, other) for other in given.values())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_the_layout_of_the_arrays_does_not_matter(make_layer, activation, layout):
    layer = make_layer(activation, extras=("shift", "entry_weights"))
    options = {k: LAYOUTS[layout](v) if isinstance(v, np.ndarray) else v for k, v in layer.options.items()}
    other = layer.again(inputs=LAYOUTS[layout](layer.X), weight=LAYOUTS[layout](layer.W), **options)
    goal = ErrorBudget(relative_error=0.2)
    assert_same_optimum(solve(layer.problem, goal, tol=TOL), solve(other, goal, tol=TOL))


def test_later_changes_of_the_penalty_weights_do_not_reach_the_penalty():
    factors = np.ones((2, 3))
    penalty = WeightedL1(factors)
    factors[:] = 5.0
    assert penalty.value(np.ones((2, 3))) == 6.0
