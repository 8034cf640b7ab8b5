"""Hard data that must work: the certified gap is reached without a warning, and what is returned is what it claims."""

from __future__ import annotations

import functools
import math
import warnings

import numpy as np
import pytest

import sisopt
from sisopt import ConvergenceWarning, ErrorBudget, LayerProblem, Penalized, Sparsity, Status, solve

# Layers made from so few samples do part ways with samples held out.
pytestmark = pytest.mark.filterwarnings("error", "ignore::sisopt.GeneralizationWarning")

sparsify = functools.partial(sisopt.sparsify, n_threads=1)  # layers are too small for more
N, N_IN, N_OUT = 80, 12, 6
TOL = 1e-4
ACTIVATIONS = ["identity", "relu"]


def plain(n=N, n_in=N_IN, n_out=N_OUT, seed=0):
    """Return correlated inputs (n, n_in), weights (n_out, n_in) and biases (n_out,) of a layer that is easy."""
    rng = np.random.default_rng([seed, n, n_in, n_out])
    X = rng.standard_normal((n, n_in)) @ (np.eye(n_in) + 0.3 * rng.standard_normal((n_in, n_in)))
    return X, rng.standard_normal((n_out, n_in)) / math.sqrt(n_in), 0.1 * rng.standard_normal(n_out)


def with_columns(**columns):
    """Return the plain layer with some input columns replaced; a string names the column to copy."""
    X, W, b = plain()
    for name, values in columns.items():
        X[:, int(name[1:])] = values
    return X, W, b


def scaled(factors, *, compensated):
    X, W, b = plain()
    return X * factors, W / factors if compensated else W, b


def shifted(offset, *, active):
    """Return the plain layer with an offset in every input, which the bias takes back if neurons shall stay active."""
    X, W, b = plain()
    return X + offset, W, b - offset * W.sum(axis=1) if active else b


def tied():
    X, W, b = plain()
    X[:, 6:], W[:, 6:] = X[:, :6], W[:, :6]
    return X, W, b


def mostly_zero():
    X, W, b = plain()
    W[np.random.default_rng(1).random(W.shape) < 0.95] = 0.0
    assert 0 < np.count_nonzero(W) < 0.1 * W.size
    return X, W, b


def integers():
    rng = np.random.default_rng(2)
    return rng.integers(-5, 6, (N, N_IN)), rng.integers(-3, 4, (N_OUT, N_IN)), np.arange(N_OUT) - 3


X0, W0, B0 = plain()
UP, DOWN = np.where(np.arange(N_IN) % 3 == 0, 1e6, 1.0), np.where(np.arange(N_IN) % 3 == 1, 1e-6, 1.0)
CASES = {
    "plain": (X0, W0, B0),
    "no bias": (X0, W0, None),
    "integers": integers(),
    "float16 inputs": (X0.astype(np.float16), W0, B0),
    "float32": (X0.astype(np.float32), W0.astype(np.float32), B0.astype(np.float32)),
    "fewer samples than inputs": (X0[:7], W0, B0),
    "fewer samples than inputs, no bias": (X0[:7], W0, None),
    "one sample": (X0[:1], W0, B0),
    "one sample, no bias": (X0[:1], W0, None),
    "constant columns": with_columns(_3=2.5, _6=0.1, _7=1e3 / 7),
    "nothing but constant columns": (np.full((N, 3), 0.1), W0[:, :3], B0),
    "dead columns": with_columns(_3=0.0, _5=0.0),
    "nothing but dead columns, no bias": (np.zeros((N, 3)), W0[:, :3], None),
    "duplicate columns": with_columns(_3=X0[:, 4], _9=X0[:, 4]),
    "collinear columns": with_columns(_3=X0[:, 4] + 2.0 * X0[:, 5], _7=-3.0 * X0[:, 4]),
    "rank one": (np.outer(X0[:, 0], np.arange(1.0, N_IN + 1)), W0, B0),
    "ties": tied(),
    "columns times 1e6": scaled(UP, compensated=False),
    "columns times 1e-6": scaled(DOWN, compensated=False),
    "columns times 1e6 and 1e-6": scaled(UP * DOWN, compensated=False),
    "columns times 1e6, weights less": scaled(UP, compensated=True),
    "columns times 1e-6, weights more": scaled(DOWN, compensated=True),
    "columns times 1e4 and 1e-4, weights to match": scaled((UP * DOWN) ** (2 / 3), compensated=True),
    "offset 1e5": shifted(1e5, active=False),
    "offset 1e5, active": shifted(1e5, active=True),
    "one output": (X0, W0[:1], B0[:1]),
    "one input": (X0[:, :1], W0[:, :1], B0),
    "one input, no bias": (X0[:, :1], W0[:, :1], None),
    "one of each": (X0[:1, :1], W0[:1, :1], B0[:1]),
    "half of the neurons never active": (X0, W0, B0 - 1e3 * (np.arange(N_OUT) < 3)),
    "no neuron ever active": (X0, W0, B0 - 1e3),
    "all neurons always active": (X0, W0, B0 + 1e3),
    "mostly zero": mostly_zero(),
    "all zero": (X0, 0.0 * W0, B0),
    "all zero, inactive": (X0, 0.0 * W0, -np.abs(B0)),
    "all zero, no bias": (X0, 0.0 * W0, None),
}


class Truth:
    """The layer in float64, and what its radius is, from the raw arrays."""

    def __init__(self, X, W, b, activation):
        self.X, self.W = np.asarray(X, dtype=np.float64), np.asarray(W, dtype=np.float64)
        self.has_bias = b is not None
        self.Z = self.X @ self.W.T + (np.asarray(b, dtype=np.float64) if b is not None else 0.0)
        self.lo = np.where(self.Z > 0, self.Z, -np.inf) if activation == "relu" else self.Z
        self.hi = np.where(self.Z > 0, self.Z, 0.0) if activation == "relu" else self.Z
        # the best constant of a ReLU neuron is its mean output
        Y = np.maximum(self.Z, 0.0) if activation == "relu" else self.Z
        spread = np.ptp(Y, axis=0) > 0 if self.has_bias else np.ones(Y.shape[1], bool)
        self.empty = float(np.linalg.norm((Y - Y.mean(axis=0) * self.has_bias)[:, spread]))

    def radius(self, weight, bias):
        z = self.X @ np.asarray(weight, dtype=np.float64).T
        if bias is not None:
            z = z + np.asarray(bias, dtype=np.float64)
        return float(np.linalg.norm(z - np.clip(z, self.lo, self.hi)))

    @property
    def noise(self):
        """What rounding may leave of a radius that should be 0."""
        size = np.abs(self.X) @ np.abs(self.W).T + np.abs(self.Z)
        return 8.0 * np.finfo(float).eps * float(np.linalg.norm(size))


def close(value, expected, truth, rtol):
    return abs(value - expected) <= rtol * expected + truth.noise


def accuracy(problem):
    return 1e-5 if problem.weight.dtype == np.float32 else 1e-6


def check_solution(problem, truth, solution, tol=TOL):
    """Check a solution against the raw arrays: it is certified, and what it says of itself is so."""
    assert solution.status is Status.OPTIMAL
    assert 0.0 <= solution.gap <= tol
    assert solution.weight.dtype == problem.weight.dtype
    assert (solution.bias is None) == (not truth.has_bias)
    size = float(np.abs(solution.weight.astype(np.float64)).sum())
    radius = truth.radius(solution.weight, solution.bias)
    rtol = accuracy(problem)
    assert close(solution.radius, radius, truth, rtol)
    assert close(solution.relative_error * truth.empty, radius, truth, rtol) or truth.empty <= truth.noise
    if isinstance(solution.goal, Penalized):
        objective = solution.goal.multiplier * size + 0.5 * radius**2
        assert solution.objective == pytest.approx(objective, rel=1e-6, abs=truth.noise)
    else:
        assert solution.objective == pytest.approx(size, rel=1e-12)
    assert solution.lower_bound <= solution.objective
    if isinstance(solution.goal, ErrorBudget):
        assert radius <= solution.goal.relative_error * truth.empty * (1 + rtol) + truth.noise


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", CASES)
def test_budget_is_kept_and_certified(name, activation):
    problem, truth = LayerProblem(*CASES[name], activation=activation), Truth(*CASES[name], activation)
    check_solution(problem, truth, solve(problem, ErrorBudget(relative_error=0.1), tol=TOL))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", CASES)
def test_sparsity_is_reached_and_certified(name, activation):
    problem, truth = LayerProblem(*CASES[name], activation=activation), Truth(*CASES[name], activation)
    solution = solve(problem, Sparsity(0.9), tol=TOL)
    check_solution(problem, truth, solution)
    assert np.count_nonzero(solution.weight) <= round(0.1 * solution.weight.size) + 1


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", CASES)
def test_penalized_program_is_certified(name, activation):
    problem, truth = LayerProblem(*CASES[name], activation=activation), Truth(*CASES[name], activation)
    e = np.clip(0.0, truth.lo, truth.hi)  # minus the residual of nothing at all
    largest = float(np.abs(e.T @ (truth.X - truth.X.mean(axis=0))).max())
    check_solution(problem, truth, solve(problem, Penalized(0.05 * largest + 1e-3), tol=TOL))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", CASES)
def test_sparsified_layer_is_what_it_says(name, activation):
    X, W, b = CASES[name]
    truth = Truth(X, W, b, activation)
    for goal in (
        {"sparsity": 0.5},
        {"sparsity": 0.5, "effort": "full", "fidelity": 0.0},
        {"relative_error": 0.3, "effort": "fast"},
        {"relative_error": 0.3},
    ):
        layer = sparsify(X, W, b, activation=activation, tol=TOL, **goal)
        if "relative_error" in goal or goal.get("effort") == "full":
            check_solution(LayerProblem(X, W, b), truth, layer.convex)
        else:
            assert layer.convex is None
        assert layer.weight.shape == W.shape
        assert layer.weight.dtype == (np.float32 if W.dtype == np.float32 else np.float64)
        assert np.isfinite(layer.weight).all()
        assert (layer.bias is None) == (b is None)
        assert layer.sparsity == pytest.approx(1.0 - np.count_nonzero(layer.weight) / W.size, abs=1e-15)
        assert layer.sparsity >= goal.get("sparsity", 0.0) - 0.5 / W.size
        radius, rtol = truth.radius(layer.weight, layer.bias), accuracy(LayerProblem(X, W, b))
        assert close(layer.relative_error * truth.empty, radius, truth, rtol) or truth.empty <= truth.noise
        assert radius <= goal.get("relative_error", 1.0) * truth.empty * (1 + rtol) + truth.noise
        names = [stage.name for stage in layer.stages]
        if "relative_error" in goal:
            before, after = (layer.stages[names.index(name)].relative_error for name in ("convex", "refit"))
            assert after * truth.empty <= before * truth.empty * (1 + rtol) + truth.noise  # it only descends
            assert np.count_nonzero(layer.weight) <= np.count_nonzero(layer.convex.weight)
        else:
            assert np.count_nonzero(layer.weight) == min(round(0.5 * W.size), np.count_nonzero(W))
        Y = np.maximum(truth.Z, 0.0) if activation == "relu" else truth.Z
        new = truth.X @ layer.weight.astype(np.float64).T + (0.0 if b is None else layer.bias.astype(np.float64))
        error = np.linalg.norm((np.maximum(new, 0.0) if activation == "relu" else new) - Y)
        assert layer.output_error * np.linalg.norm(Y) == pytest.approx(error, rel=1e-6, abs=truth.noise)


# --- no error and no weight allowed ----------------------------------------------------------------------------------

DEGENERATE = [
    "plain",
    "integers",
    "float32",
    "fewer samples than inputs",
    "one sample, no bias",
    "constant columns",
    "dead columns",
    "duplicate columns",
    "collinear columns",
    "rank one",
    "ties",
    "one input",
    "half of the neurons never active",
    "mostly zero",
]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", DEGENERATE)
def test_no_error_allowed_keeps_the_outputs_of_the_dense_layer(name, activation):
    problem, truth = LayerProblem(*CASES[name], activation=activation), Truth(*CASES[name], activation)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of the gap the next test is
        solution = solve(problem, ErrorBudget(relative_error=0.0), tol=TOL)
    assert solution.relative_error <= accuracy(problem)
    assert truth.radius(solution.weight, solution.bias) <= accuracy(problem) * truth.empty + truth.noise


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", DEGENERATE)
def test_least_penalty_without_any_error_is_certified(name, activation):
    problem, truth = LayerProblem(*CASES[name], activation=activation), Truth(*CASES[name], activation)
    solution = solve(problem, ErrorBudget(relative_error=0.0), tol=TOL)
    assert solution.status is Status.OPTIMAL
    assert solution.gap <= TOL
    assert np.abs(solution.weight).sum() <= np.abs(truth.W).sum() * (1 + accuracy(problem))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", CASES)
def test_all_error_allowed_and_all_weights_forbidden_give_the_best_constants(name, activation):
    problem, truth = LayerProblem(*CASES[name], activation=activation), Truth(*CASES[name], activation)
    for goal in (ErrorBudget(relative_error=1.0), Sparsity(1.0)):
        solution = solve(problem, goal, tol=TOL)
        assert not solution.weight.any()
        assert solution.gap == solution.objective == 0.0
        assert solution.status is Status.OPTIMAL
        assert close(truth.radius(solution.weight, solution.bias), truth.empty, truth, accuracy(problem))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", ["one sample", "nothing but constant columns", "all zero", "all zero, inactive"])
def test_layer_that_a_bias_can_replace_has_relative_error_0_without_weights(name, activation):
    problem = LayerProblem(*CASES[name], activation=activation)
    for goal in (ErrorBudget(relative_error=0.1), ErrorBudget(relative_error=0.0), ErrorBudget(radius=1.0)):
        solution = solve(problem, goal, tol=TOL)
        assert not solution.weight.any()
        assert (solution.relative_error, solution.gap, solution.objective) == (0.0, 0.0, 0.0)
        assert solution.status is Status.OPTIMAL


@pytest.mark.parametrize("level", [0.0, 10.0])
def test_layer_that_a_bias_can_replace_up_to_rounding_has_relative_error_0(level):
    # the shift takes the inputs' part away again, but not to the last digit
    shift = X0 @ W0.T
    Z = shift + B0 + level
    problem = LayerProblem(X0, W0, B0 + level, shift=shift, preactivations=Z, activation="relu")
    solution = solve(problem, ErrorBudget(relative_error=0.1), tol=TOL)
    assert solution.status is Status.OPTIMAL
    assert solution.gap == 0.0
    assert solution.radius <= 1e-12


# --- bias and rows ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "goal",
    [{"sparsity": 0.6}, {"sparsity": 0.6, "effort": "fast"}, {"sparsity": 0.6, "effort": "full", "fidelity": 0.0}]
    + [{"relative_error": 0.2}, {"relative_error": 0.2, "effort": "fast"}],
    ids=str,
)
def test_dead_neurons_lose_their_weights_and_keep_their_bias(goal):
    X, W, b = CASES["half of the neurons never active"]
    layer = sparsify(X, W, b, activation="relu", **goal)
    if layer.convex is not None:
        np.testing.assert_array_equal(layer.convex.weight[:3], 0.0)
        np.testing.assert_array_equal(layer.convex.bias[:3], b[:3])
    if "relative_error" in goal:
        np.testing.assert_array_equal(layer.weight[:3], 0.0)
        np.testing.assert_array_equal(layer.bias[:3], b[:3])
    assert np.all(X @ layer.weight[:3].T + layer.bias[:3] <= 0.0)


def test_columns_that_say_nothing_get_no_weight():
    X, W, b = CASES["constant columns"]
    for activation in ACTIVATIONS:
        layer = sparsify(X, W, b, activation=activation, relative_error=0.1)
        np.testing.assert_array_equal(layer.convex.weight[:, [3, 6, 7]], 0.0)
        np.testing.assert_array_equal(layer.weight[:, [3, 6, 7]], 0.0)


@pytest.mark.parametrize("effort", ["fast", "default", "full"])
@pytest.mark.parametrize("sparsity", [0.0, 0.1])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_weights_of_constant_columns_do_not_run_away(activation, sparsity, effort):
    # about its mean such a column is rounding, and dividing by that is no refit
    X, W, b = CASES["constant columns"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        layer = sparsify(X, W, b, activation=activation, sparsity=sparsity, effort=effort, fidelity=0.0)
    assert np.abs(layer.weight).max() <= 10.0 * np.abs(W).max()
    # a tenth of the weights is less than what the constant columns have, and the bias stands in for those
    assert layer.relative_error <= 1e-9
    if layer.convex is not None:
        assert layer.relative_error <= layer.convex.relative_error * (1 + 1e-6) + 1e-12


# --- exact counts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("effort", ["fast", "default", "full"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    "name",
    [
        "plain",
        "float32",
        "fewer samples than inputs",
        "one sample",
        "constant columns",
        "nothing but constant columns",
        "dead columns",
        "nothing but dead columns, no bias",
        "ties",
        "offset 1e5",
        "no neuron ever active",
    ],
)
def test_count_is_exact_whatever_the_data(name, activation, effort):
    X, W, b = CASES[name]
    for sparsity in (1.0, 0.9, 0.3, 0.0) if effort != "full" else (0.9, 0.0):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            layer = sparsify(X, W, b, activation=activation, sparsity=sparsity, effort=effort)
        assert np.count_nonzero(layer.weight) == round((1 - sparsity) * W.size)
    truth = Truth(X, W, b, activation)
    assert truth.radius(layer.weight, layer.bias) <= accuracy(LayerProblem(X, W, b)) * truth.empty + truth.noise


@pytest.mark.parametrize("effort", ["fast", "default", "full"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("sparsity", [0.9, 0.3])
def test_layer_that_is_sparser_than_asked_stays_so_and_keeps_its_outputs(sparsity, activation, effort):
    X, W, b = CASES["mostly zero"]
    layer = sparsify(X, W, b, activation=activation, sparsity=sparsity, effort=effort)
    assert layer.sparsity >= sparsity
    truth = Truth(X, W, b, activation)
    assert truth.radius(layer.weight, layer.bias) <= 1e-6 * truth.empty


# --- kinds of arrays -------------------------------------------------------------------------------------------------


def same_bits(one, other):
    np.testing.assert_array_equal(one.weight, other.weight)
    np.testing.assert_array_equal(one.bias, other.bias)
    assert (one.objective, one.lower_bound, one.radius) == (other.objective, other.lower_bound, other.radius)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_integers_are_computed_and_returned_in_float64(activation):
    X, W, b = CASES["integers"]
    as_float = LayerProblem(X.astype(float), W.astype(float), b.astype(float), activation=activation)
    for dtype in (np.int64, np.int32, np.int8):
        problem = LayerProblem(X.astype(dtype), W.astype(dtype), b.astype(dtype), activation=activation)
        solution = solve(problem, ErrorBudget(relative_error=0.2))
        assert solution.weight.dtype == solution.bias.dtype == np.float64
        same_bits(solution, solve(as_float, ErrorBudget(relative_error=0.2)))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_lists_and_booleans_are_numbers_too(activation):
    X = X0 > 0
    problem = LayerProblem(X.tolist(), W0.tolist(), B0.tolist(), activation=activation)
    as_float = LayerProblem(X.astype(float), W0, B0, activation=activation)
    same_bits(solve(problem, Sparsity(0.5)), solve(as_float, Sparsity(0.5)))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_half_precision_inputs_are_computed_as_float32_ones_hold_them(activation):
    half = X0.astype(np.float16)
    one = solve(LayerProblem(half, W0, B0, activation=activation), ErrorBudget(relative_error=0.2))
    other = solve(LayerProblem(half.astype(np.float32), W0, B0, activation=activation), ErrorBudget(relative_error=0.2))
    assert one.weight.dtype == np.float64
    same_bits(one, other)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_weights_come_back_in_their_dtype_whatever_that_of_the_inputs(activation, dtype):
    for inputs in (X0.astype(np.float32), X0):
        problem = LayerProblem(inputs, W0.astype(dtype), B0, activation=activation)
        solution = solve(problem, ErrorBudget(relative_error=0.2), tol=TOL)
        assert solution.weight.dtype == solution.bias.dtype == dtype
        assert solution.gap <= TOL


def layouts(array):
    """Yield arrays that hold the same numbers in other places."""
    shape = array.shape
    wide = np.full([2 * size for size in shape], np.nan)
    wide[tuple(slice(None, None, 2) for _ in shape)] = array
    backward = np.ascontiguousarray(np.flip(array))
    frozen = array.copy()
    frozen.flags.writeable = False
    return {
        "fortran": np.asfortranarray(array),
        "strided": wide[tuple(slice(None, None, 2) for _ in shape)],
        "reversed": np.flip(backward),
        "read-only": frozen,
    }


@pytest.mark.parametrize("layout", ["fortran", "strided", "reversed", "read-only"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_layout_in_memory_makes_no_difference(activation, layout):
    rng = np.random.default_rng(5)
    Z = X0 @ W0.T + B0
    given = {
        "inputs": X0,
        "weight": W0,
        "bias": B0,
        "preactivations": Z,
        "shift": 0.1 * rng.standard_normal(Z.shape),
        "entry_weights": rng.uniform(0.5, 1.0, Z.shape),
        "sample_weights": rng.uniform(0.5, 1.0, N),
    }
    other = {name: layouts(array)[layout] for name, array in given.items()}
    for array in other.values():
        array.flags.writeable = False
    tol = 1e-8
    one = solve(LayerProblem(**given, activation=activation), ErrorBudget(relative_error=0.2), tol=tol)
    two = solve(LayerProblem(**other, activation=activation), ErrorBudget(relative_error=0.2), tol=tol)
    assert two.gap <= tol
    if layout == "read-only":
        same_bits(one, two)
    assert abs(one.objective - two.objective) <= tol * (one.objective + two.objective)
    np.testing.assert_array_equal(one.weight != 0, two.weight != 0)
    for effort in ("default", "full"):
        fewer = sparsify(**other, activation=activation, sparsity=0.5, effort=effort)
        same = sparsify(**given, activation=activation, sparsity=0.5, effort=effort)
        np.testing.assert_array_equal(fewer.weight != 0, same.weight != 0)
        np.testing.assert_allclose(fewer.weight, same.weight, rtol=0, atol=1e-3 * np.abs(W0).max())


@pytest.mark.filterwarnings("ignore::sisopt.ConvergenceWarning")
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nothing_that_was_passed_is_modified(activation):
    given = {"inputs": X0.copy(), "weight": W0.copy(), "bias": B0.copy(), "preactivations": X0 @ W0.T + B0}
    given |= {"shift": np.zeros(N_OUT), "entry_weights": np.ones((N, 1)), "sample_weights": np.ones(N)}
    given |= {"mask": np.ones(W0.shape, bool)}
    before = {name: array.copy() for name, array in given.items()}
    layer = sparsify(**given, activation=activation, sparsity=0.5, effort="full")
    start = layer.weight.copy(), layer.bias.copy()
    solve(LayerProblem(**given), ErrorBudget(relative_error=0.2), warm_start=(layer.weight, layer.bias))
    np.testing.assert_array_equal(layer.weight, start[0])
    np.testing.assert_array_equal(layer.bias, start[1])
    for name, array in given.items():
        np.testing.assert_array_equal(array, before[name])
        assert array.flags.writeable
    assert layer.weight.flags.writeable
    assert not np.shares_memory(layer.weight, layer.convex.weight)
    own = LayerProblem(X0, W0, B0, activation=activation)
    fast = sparsify(own.inputs, own.weight, own.bias, activation=activation, sparsity=0.0, effort="fast")
    assert not np.shares_memory(fast.weight, W0)  # even where nothing has to go
    assert not np.shares_memory(fast.bias, B0)


# --- what others get wrong (peers.md 2.3) ----------------------------------------------------------------------------


@pytest.mark.parametrize("effort", ["fast", "default", "full"])
def test_refit_changes_the_weights_that_are_kept(effort):
    layer = sparsify(X0, W0, B0, activation="relu", sparsity=0.5, effort=effort)
    kept = layer.weight != 0
    assert not np.any(layer.weight[kept] == W0[kept])
    Z = X0 @ (W0 * kept).T
    biases = np.linspace(-3.0, 3.0, 601)  # the best of these for the dense weights as they are
    lo, hi = Truth(X0, W0, B0, "relu").lo, Truth(X0, W0, B0, "relu").hi
    moved = Z[:, :, None] + biases
    losses = np.square(moved - np.clip(moved, lo[:, :, None], hi[:, :, None])).sum(axis=0).min(axis=1)
    assert layer.relative_error * Truth(X0, W0, B0, "relu").empty < 0.9 * math.sqrt(losses.sum())


@pytest.mark.parametrize("effort", ["fast", "default", "full"])
def test_mask_is_where_weights_may_be_and_not_where_they_may_not(effort):
    mask = np.random.default_rng(0).random(W0.shape) < 0.6
    layer = sparsify(X0, W0, B0, activation="relu", mask=mask, sparsity=0.5, effort=effort)
    assert not layer.weight[~mask].any()
    assert np.count_nonzero(layer.weight) == W0.size // 2


@pytest.mark.parametrize("effort", ["fast", "default", "full"])
@pytest.mark.parametrize("scale", [1e-5, 1e5])
def test_singular_inputs_cost_nothing_whatever_their_scale(scale, effort):
    # a fixed ridge would swamp small inputs: the answer scales with them
    X, W, b = CASES["fewer samples than inputs"]
    one = sparsify(X, W, b, activation="relu", sparsity=0.7, tol=TOL, effort=effort)
    other = sparsify(scale * X, W / scale, b, activation="relu", sparsity=0.7, tol=TOL, effort=effort)
    if effort == "full":  # its programs have many solutions within their gaps, which rounding chooses among
        assert scale * other.convex.objective == pytest.approx(one.convex.objective, rel=2 * TOL)
        assert np.count_nonzero(other.weight) == np.count_nonzero(one.weight)
        return
    np.testing.assert_array_equal(other.weight != 0, one.weight != 0)
    np.testing.assert_allclose(scale * other.weight, one.weight, rtol=1e-6)


def test_counts_are_of_the_layer_and_not_of_each_neuron():
    X, W, b = CASES["plain"]
    W = W * 10.0 ** np.arange(-2, 4)[:, None]
    layer = sparsify(X, W, b, activation="relu", sparsity=0.7)
    assert np.count_nonzero(layer.weight) == round(0.3 * W.size)
    assert len(set(np.count_nonzero(layer.weight, axis=1))) > 1
