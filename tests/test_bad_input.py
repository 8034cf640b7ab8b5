"""Bad input: an exception that names the argument and what was found, before anything is computed or changed."""

from __future__ import annotations

import copy
import pickle
import re

import numpy as np
import pytest

import sisopt
from sisopt import (
    ErrorBudget,
    InfeasibleBudgetError,
    InvalidInputError,
    LayerProblem,
    Penalized,
    Sparsity,
    UnsupportedError,
    WeightedL1,
    solve,
    sparsify,
)

N, N_IN, N_OUT = 30, 4, 3
_rng = np.random.default_rng(0)
X = _rng.standard_normal((N, N_IN))
W = _rng.standard_normal((N_OUT, N_IN))
B = _rng.standard_normal(N_OUT)
Z = X @ W.T + B
ARRAYS = {
    "inputs": X,
    "weight": W,
    "bias": B,
    "preactivations": Z,
    "shift": Z - B,
    "entry_weights": np.abs(Z) + 0.1,
    "sample_weights": np.ones(N),
}
SUMS = {
    "gram": X.T @ X,
    "cross": Z.T @ X,
    "energy": (Z**2).sum(0),
    "input_sum": X.sum(0),
    "target_sum": Z.sum(0),
    "weight": W,
    "bias": B,
}


def problem(**changes) -> LayerProblem:
    return LayerProblem(**{"inputs": X, "weight": W, "bias": B, "activation": "relu", **changes})


def from_gram(**changes) -> LayerProblem:
    return LayerProblem.from_gram(**{**SUMS, "n_samples": N, **changes})


def refused(call, *parts, error=InvalidInputError):
    """Check that a call raises ``error`` with a message that holds the parts, in order; return the exception."""
    with pytest.raises(error, match="(?s)" + ".*".join(re.escape(part) for part in parts)) as caught:
        call()
    assert type(caught.value) is error
    return caught.value


def spoiled(array, value):
    array = np.array(array)
    array.flat[-1] = value
    return array


# --- arrays ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ARRAYS)
def test_non_finite_entry_is_named_with_its_place(name, value):
    array = spoiled(ARRAYS[name], value)
    place = ", ".join(str(size - 1) for size in array.shape)
    refused(lambda: problem(**{name: array}), name, "must be finite", str(value), f"[{place}]")


@pytest.mark.parametrize("name", SUMS)
def test_non_finite_sum_is_named(name):
    refused(lambda: from_gram(**{name: spoiled(SUMS[name], np.nan)}), name, "must be finite", "nan")


def test_first_of_several_non_finite_entries_is_the_one_named():
    array = X.copy()
    array[[7, 20], [1, 0]] = np.nan
    refused(lambda: problem(inputs=array), "inputs", "[7, 1]")


def test_place_is_that_in_the_whole_array_whatever_is_checked_at_a_time(monkeypatch):
    monkeypatch.setattr("sisopt.validation._CHECK_ENTRIES", 3 * N_IN)
    array = X.copy()
    array[17, 2] = np.inf
    refused(lambda: problem(inputs=array), "inputs must be finite", "inf", "[17, 2]")


@pytest.mark.parametrize("name", ["weight", "bias", "gram"])
def test_advice_to_remove_samples_is_for_samples_only(name):
    make, arrays = (from_gram, SUMS) if name == "gram" else (problem, ARRAYS)
    message = str(refused(lambda: make(**{name: spoiled(arrays[name], np.nan)}), name))
    assert "sample" not in message


@pytest.mark.parametrize("kind", ["complex128", "object", "<U"])
@pytest.mark.parametrize("name", ARRAYS)
def test_array_that_is_not_of_real_numbers_is_refused(name, kind):
    array = ARRAYS[name].astype(str if kind == "<U" else kind)
    refused(lambda: problem(**{name: array}), name, "must hold real numbers", kind)


@pytest.mark.parametrize("name", [name for name in SUMS if name not in ARRAYS])
def test_complex_sum_is_refused(name):
    refused(lambda: from_gram(**{name: SUMS[name] + 0j}), name, "must hold real numbers", "complex128")


@pytest.mark.parametrize("name", [*ARRAYS, "mask", "warm_start"])
def test_ragged_list_is_refused_by_name(name):
    ragged = [[True, False], [True]] if name == "mask" else [[1.0, 2.0], [3.0]]
    if name == "warm_start":
        refused(lambda: solve(problem(), Sparsity(0.5), warm_start=(ragged, B)), name)
    else:
        refused(lambda: problem(**{name: ragged}), name)


WRONG_SHAPES = [
    ("inputs", (N,), "2 dimensions"),
    ("inputs", (N, N_IN, 1), "2 dimensions"),
    ("weight", (N_IN,), "2 dimensions"),
    ("weight", (N_OUT, N_IN + 1), f"(n_out, {N_IN})"),
    ("weight", (N_IN, N_OUT), f"(n_out, {N_IN})"),
    ("bias", (N_OUT, 1), "1 dimension"),
    ("bias", (N_OUT + 1,), f"({N_OUT},)"),
    ("preactivations", (N,), "2 dimensions"),
    ("preactivations", (N - 1, N_OUT), f"({N}, {N_OUT})"),
    ("preactivations", (N_OUT, N), f"({N}, {N_OUT})"),
    ("shift", (N - 1, N_OUT), f"({N}, {N_OUT})"),
    ("shift", (N,), f"({N}, {N_OUT})"),
    ("shift", (2, N, N_OUT), f"({N}, {N_OUT})"),
    ("entry_weights", (N - 1, N_OUT), f"({N}, {N_OUT})"),
    ("entry_weights", (N,), f"({N}, {N_OUT})"),
    ("entry_weights", (1, N, N_OUT), f"({N}, {N_OUT})"),
    ("sample_weights", (N, 1), "1 dimension"),
    ("sample_weights", (N - 1,), f"({N},)"),
    ("mask", (N_IN, N_OUT), f"({N_OUT}, {N_IN})"),
    ("mask", (), f"({N_OUT}, {N_IN})"),
]


@pytest.mark.parametrize(("name", "shape", "wanted"), WRONG_SHAPES, ids=str)
def test_wrong_shape_is_named_with_the_one_wanted_and_the_one_found(name, shape, wanted):
    array = np.ones(shape, bool if name == "mask" else float)
    refused(lambda: problem(**{name: array}), f"{name} must", wanted, "got", str(shape))


WRONG_SUM_SHAPES = [
    ("gram", (N_IN,), "2 dimensions"),
    ("gram", (N_IN, N_IN + 1), f"({N_IN}, {N_IN})"),
    ("weight", (N_OUT, N_IN + 1), f"(n_out, {N_IN})"),
    ("bias", (N_OUT + 1,), f"({N_OUT},)"),
    ("cross", (N_IN, N_OUT), f"({N_OUT}, {N_IN})"),
    ("energy", (N_IN,), f"({N_OUT},)"),
    ("input_sum", (N_OUT,), f"({N_IN},)"),
    ("target_sum", (N_OUT, 1), "1 dimension"),
]


@pytest.mark.parametrize(("name", "shape", "wanted"), WRONG_SUM_SHAPES, ids=str)
def test_wrong_shape_of_a_sum_is_named(name, shape, wanted):
    found = "" if name == "gram" and len(shape) == 2 else str(shape)
    refused(lambda: from_gram(**{name: np.ones(shape)}), f"{name} must", wanted, found)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"inputs": X[:0]}, ("inputs", "at least one sample", f"(0, {N_IN})")),
        ({"weight": W[:0], "bias": B[:0]}, ("weight", "at least one output", f"(0, {N_IN})")),
        ({"inputs": X[:, :0], "weight": W[:, :0]}, ("weight", "one input", f"({N_OUT}, 0)")),
    ],
    ids=["samples", "outputs", "inputs"],
)
def test_nothing_at_all_is_refused(changes, parts):
    refused(lambda: problem(**changes), *parts)


def test_half_precision_weights_are_refused_with_a_way_out():
    refused(lambda: problem(weight=W.astype(np.float16)), "weight must be float32 or float64", "float16", "convert it")


@pytest.mark.parametrize("dtype", [float, int, object])
def test_mask_that_is_not_boolean_is_refused(dtype):
    found = str(np.dtype(dtype))
    refused(lambda: problem(mask=np.ones((N_OUT, N_IN), dtype)), "mask must be boolean", "True where", found)


@pytest.mark.parametrize("name", ["entry_weights", "sample_weights"])
def test_weights_of_data_must_not_be_negative_nor_all_zero(name):
    refused(lambda: problem(**{name: spoiled(ARRAYS[name], -0.5)}), name, "must not be negative", "-0.5")
    refused(lambda: problem(**{name: np.zeros_like(ARRAYS[name])}), name, "must not all be zero")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("scale", [1e200, 1e160], ids=["product", "square"])
def test_inputs_whose_products_overflow_are_refused_without_a_warning(scale):
    refused(lambda: solve(problem(inputs=X * scale, weight=W * 1e120), Sparsity(0.5)), "inputs", "scale")


# --- numbers and choices ---------------------------------------------------------------------------------------------

NOT_NUMBERS = [np.nan, np.inf, "many", None, 1j, [0.1, 0.2]]


@pytest.mark.parametrize("value", [*NOT_NUMBERS, -0.1])
@pytest.mark.parametrize("name", ["tolerance", "fidelity"])
def test_tolerance_and_fidelity_must_be_finite_and_not_negative(name, value):
    refused(lambda: problem(**{name: value}), f"{name} must be a finite number of at least 0", repr(value)[:20])


@pytest.mark.parametrize("value", [value for value in NOT_NUMBERS if value is not None] + [-0.1])
@pytest.mark.parametrize("name", ["relative_error", "eta", "radius"])
def test_budget_must_be_finite_and_not_negative(name, value):
    refused(lambda: ErrorBudget(**{name: value}), f"{name} must be a finite number of at least 0", repr(value)[:20])


@pytest.mark.parametrize("make", [lambda value: problem(tolerance=value), Penalized], ids=["tolerance", "multiplier"])
def test_integer_beyond_all_floats_is_refused(make):
    refused(lambda: make(10**400), "finite number")


@pytest.mark.parametrize("value", [*NOT_NUMBERS, 0, -1.0])
def test_multiplier_must_be_positive_and_finite(value):
    refused(lambda: Penalized(value), "multiplier must be a positive finite number", repr(value)[:20])


@pytest.mark.parametrize("value", [*NOT_NUMBERS, -1e-9, 1 + 1e-9, 90])
def test_sparsity_must_be_a_fraction(value):
    refused(lambda: Sparsity(value), "sparsity must be a number in [0, 1]", repr(value)[:20])


@pytest.mark.parametrize("value", [*NOT_NUMBERS, 0, -1e-3])
def test_tol_must_be_positive_and_finite(value):
    refused(lambda: solve(problem(), Sparsity(0.5), tol=value), "tol must be a finite number above 0", repr(value)[:20])


@pytest.mark.parametrize(("dtype", "least"), [(np.float64, "1e-09"), (np.float32, "1e-05")])
def test_tol_below_the_arithmetic_is_refused_with_the_least_one(dtype, least):
    tight = problem(weight=W.astype(dtype))
    message = str(refused(lambda: solve(tight, Sparsity(0.5), tol=0.9 * float(least)), "tol must be at least", least))
    assert ("float64 weights for more" in message) == (dtype == np.float32)


@pytest.mark.parametrize("value", [0, -1, 1.5, "2", np.nan])
@pytest.mark.parametrize("name", ["n_threads", "max_iterations"])
def test_counts_must_be_integers_of_at_least_one(name, value):
    wanted = f"{name} must be an integer of at least 1"
    refused(lambda: solve(problem(), Sparsity(0.5), **{name: value}), wanted, repr(value))


@pytest.mark.parametrize("value", [-1.0, np.nan, "soon", 1j])
def test_max_seconds_must_be_finite_and_not_negative(value):
    wanted = "max_seconds must be a finite number of at least 0"
    refused(lambda: solve(problem(), Sparsity(0.5), max_seconds=value), wanted, repr(value))
    refused(lambda: sparsify(X, W, B, sparsity=0.5, max_seconds=value), wanted, repr(value))


def test_callback_must_be_callable():
    refused(lambda: solve(problem(), Sparsity(0.5), callback=3), "callback must be callable", "3")


@pytest.mark.parametrize("given", [{}, {"eta": 0.1, "radius": 1.0}, {"relative_error": 0.1, "eta": 0.0}], ids=str)
def test_budget_takes_exactly_one_measure(given):
    found = " and ".join(given) or "none"
    refused(lambda: ErrorBudget(**given), "exactly one of relative_error, eta and radius", f"got {found}")


@pytest.mark.parametrize(
    "given", [{}, {"sparsity": 0.5, "relative_error": 0.1}, {"sparsity": 0.5, "eta": 1.0}], ids=str
)
def test_sparsify_takes_exactly_one_goal(given):
    refused(lambda: sparsify(X, W, B, **given), "exactly one goal", f"got {' and '.join(given) or 'none'}")


@pytest.mark.parametrize("goal", [0.5, None, Sparsity, "sparsity"], ids=str)
def test_goal_must_be_a_goal(goal):
    refused(lambda: solve(problem(), goal), "goal must be Penalized(...), ErrorBudget(...) or Sparsity(...)", str(goal))


def test_problem_must_be_a_problem():
    refused(lambda: solve(X, Sparsity(0.5)), "problem must be a LayerProblem", "ndarray")


@pytest.mark.parametrize("method", ["simplex", None, 3])
def test_unknown_method_is_refused_with_those_known(method):
    known = "method must be one of 'forward-backward'"
    refused(lambda: solve(problem(), Sparsity(0.5), method=method), known, repr(method))


def test_unknown_activation_is_refused_with_those_near_and_those_known():
    refused(lambda: problem(activation="rleu"), "activation must be", "'rleu'", "did you mean 'relu'", "softplus")
    refused(lambda: problem(activation=np.tanh), "activation must be", "ufunc")


@pytest.mark.parametrize("penalty", ["l3", 1.0, None, WeightedL1], ids=str)
def test_unknown_penalty_is_refused(penalty):
    kind = penalty if isinstance(penalty, type) else type(penalty)
    found = repr(penalty) if isinstance(penalty, str) else kind.__name__
    refused(lambda: problem(penalty=penalty), "penalty must be 'l1', 'columns', 'rows' or a penalty object", found)


@pytest.mark.parametrize(
    "weights",
    [[1.0, np.nan, 1.0, 1.0], np.inf, [1.0, 1.0, 0.0, 1.0], -2.0, np.ones((1, N_OUT, N_IN)), None],
    ids=["nan", "inf", "zero", "negative", "3-d", "none"],
)
def test_penalty_weights_must_be_positive_and_finite(weights):
    refused(lambda: WeightedL1(weights), "penalty weights must be positive finite numbers", "mask=")


@pytest.mark.parametrize(
    "weights", [np.ones(N_IN) + 0j, "heavy", [[1.0, 2.0], [3.0]]], ids=["complex", "str", "ragged"]
)
def test_penalty_weights_that_are_no_real_numbers_are_refused_by_name(weights):
    refused(lambda: WeightedL1(weights), "penalty weights")


def test_message_about_penalty_weights_says_what_was_found():
    refused(lambda: WeightedL1([1.0, -2.5, 1.0, 1.0]), "penalty weights", "-2.5")


@pytest.mark.parametrize("shape", [(N_IN, N_OUT), (N_OUT,), (N_OUT + 1, N_IN)], ids=str)
def test_penalty_weights_that_do_not_broadcast_are_refused(shape):
    made = WeightedL1(np.ones(shape))
    refused(lambda: problem(penalty=made), "penalty weights", f"({N_OUT}, {N_IN})")


def test_penalty_weights_for_more_neurons_than_the_layer_has_are_refused():
    made = WeightedL1(np.ones((N_OUT, N_IN)))
    refused(lambda: problem(weight=W[:1], bias=B[:1], penalty=made), "penalty weights", f"({N_OUT}, {N_IN})")


# --- budgets that cannot be kept -------------------------------------------------------------------------------------

MASK = np.array([[True, False, True, False], [False, False, True, True], [False, True, False, False]])


def least_relative_error() -> float:
    """Return the least error of identity neurons on the mask's columns, relative to that of the best constants."""
    left = total = 0.0
    for i in range(N_OUT):
        A = np.column_stack([X[:, MASK[i]], np.ones(N)])
        left += np.sum((Z[:, i] - A @ np.linalg.lstsq(A, Z[:, i])[0]) ** 2)
        total += np.sum((Z[:, i] - Z[:, i].mean()) ** 2)
    return float(np.sqrt(left / total))


@pytest.mark.parametrize("measure", ["relative_error", "eta", "radius"])
def test_unattainable_budget_names_the_least_attainable_error(measure):
    masked = problem(activation="identity", mask=MASK)
    least = least_relative_error()
    largest = np.sqrt(np.sum((Z - Z.mean(0)) ** 2))
    value = 0.9 * least * (1.0 if measure == "relative_error" else largest)
    goal = ErrorBudget(**{measure: value**2 / N if measure == "eta" else value})
    parts = ("budget cannot be attained", f"{0.9 * least:.4g}"[:5], "least attainable", f"{least:.4g}"[:5], "raise")
    error = refused(lambda: solve(masked, goal), *parts, error=InfeasibleBudgetError)
    assert error.least_relative_error == pytest.approx(least, rel=1e-6)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.least_relative_error) == (str(error), error.least_relative_error)


@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_the_least_error_that_was_named_can_be_had(activation):
    masked = problem(activation=activation, mask=MASK)
    error = refused(lambda: solve(masked, ErrorBudget(relative_error=0.0)), error=InfeasibleBudgetError)
    least = error.least_relative_error
    assert 0 < least < 1
    solution = solve(masked, ErrorBudget(relative_error=1.01 * least))
    assert solution.relative_error <= 1.01 * least * (1 + 1e-6)
    assert solution.gap <= 1e-4
    refused(lambda: solve(masked, ErrorBudget(relative_error=0.99 * least)), error=InfeasibleBudgetError)


def test_sparsify_refuses_a_budget_that_sparse_inputs_do_not_allow():
    less = X.copy()
    less[:, 1] = 0.0
    keywords = {"activation": "relu", "preactivations": Z, "relative_error": 1e-3}
    error = refused(lambda: sparsify(less, W, B, **keywords), "least attainable", error=InfeasibleBudgetError)
    assert error.least_relative_error > 1e-3


# --- sums ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_from_gram_serves_identity_layers_only(activation):
    parts = ("from_gram", "identity", repr(activation), "pass the inputs")
    refused(lambda: from_gram(activation=activation), *parts, error=UnsupportedError)


@pytest.mark.parametrize(
    ("missing", "because"), [("input_sum", "bias"), ("energy", "cross"), ("target_sum", "cross and bias")]
)
def test_missing_sum_is_named_with_the_reason(missing, because):
    shape = str(SUMS[missing].shape)
    refused(lambda: from_gram(**{missing: None}), f"{missing} is needed", shape, because)


def test_gram_matrix_must_be_symmetric():
    refused(lambda: from_gram(gram=SUMS["gram"] + np.triu(np.ones((N_IN, N_IN)))), "gram must be symmetric")


def test_gram_matrix_must_be_positive_semidefinite():
    least = np.linalg.eigvalsh(SUMS["gram"])[0] - 40.0
    shifted = SUMS["gram"] - 40.0 * np.eye(N_IN)
    refused(lambda: from_gram(gram=shifted), "gram must be positive semidefinite", f"{least:.9f}"[:5])


@pytest.mark.parametrize("n_samples", [0, -3, 2.5, None])
def test_number_of_samples_must_be_a_positive_integer(n_samples):
    wanted = "n_samples must be an integer of at least 1"
    refused(lambda: from_gram(n_samples=n_samples), wanted, repr(n_samples))


def test_input_sum_that_no_such_samples_have_is_refused():
    # gram - n mean mean' is the Gram matrix of centred samples: it cannot be indefinite
    refused(lambda: from_gram(input_sum=SUMS["input_sum"] + 100.0), "input_sum", "gram")


@pytest.mark.parametrize("factor", [-1.0, 0.1])
def test_energy_that_no_such_targets_have_is_refused(factor):
    # the least squares fit of the targets cannot explain more than all of them
    refused(lambda: from_gram(energy=factor * SUMS["energy"]), "energy", "cross")


@pytest.mark.parametrize("name", ["energy", "target_sum"])
def test_sum_of_targets_without_their_cross_products_is_refused(name):
    given = {"cross": None, "energy": None, "target_sum": None, name: SUMS[name]}
    refused(lambda: from_gram(**given), name, "cross")


# --- warm starts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "parts"),
    [
        ((W.T, B), (f"({N_OUT}, {N_IN})", f"({N_IN}, {N_OUT})")),
        ((W[0], B), ("2 dimensions", f"({N_IN},)")),
        ((spoiled(W, np.nan), B), ("must be finite", "nan")),
        ((W + 0j, B), ("real numbers", "complex128")),
        ((W, B[:2]), (f"({N_OUT},)", "(2,)")),
        ((W, spoiled(B, np.nan)), ("must be finite", "nan")),
        ((W,), ("(weight, bias)",)),
        ((), ("(weight, bias)",)),
        (W, ("(weight, bias)", "ndarray")),
        (0.5, ("(weight, bias)", "float")),
    ],
    ids=["shape", "1-d", "nan", "complex", "bias-shape", "bias-nan", "no-bias", "empty", "array", "number"],
)
def test_bad_warm_start_is_refused_by_name(start, parts):
    refused(lambda: solve(problem(), Sparsity(0.5), warm_start=start), "warm_start", *parts)


def test_warm_start_from_another_layer_is_refused():
    other = solve(problem(weight=W[:2], bias=B[:2]), Sparsity(0.5))
    refused(lambda: solve(problem(), Sparsity(0.5), warm_start=other), "warm_start", f"({N_OUT}, {N_IN})")


# --- what the caller passed ------------------------------------------------------------------------------------------

FAILING = {
    "bias": lambda a: LayerProblem(**{**a, "bias": np.ones(N_OUT + 1)}),
    "mask": lambda a: LayerProblem(**{**a, "mask": np.ones((1, 1), bool)}),
    "activation": lambda a: LayerProblem(**{**a, "activation": "rleu"}),
    "penalty": lambda a: LayerProblem(**{**a, "penalty": WeightedL1(np.ones((2, 2)))}),
    "goal": lambda a: sparsify(**a),
    "tol": lambda a: sparsify(**a, relative_error=0.9, tol=1e-12),
    "n_threads": lambda a: sparsify(**a, sparsity=0.5, n_threads=0),
    "warm_start": lambda a: solve(LayerProblem(**a), Sparsity(0.5), warm_start=(np.ones((1, 1)), None)),
    "budget": lambda a: sparsify(**{**a, "mask": MASK, "shift": None}, relative_error=1e-3),
}


@pytest.mark.parametrize("name", FAILING)
def test_failing_call_changes_nothing_that_was_passed(name):
    given = copy.deepcopy({"activation": "relu", "mask": ~MASK, **ARRAYS})
    before = copy.deepcopy(given)
    with pytest.raises((InvalidInputError, InfeasibleBudgetError)):
        FAILING[name](given)
    for key, value in before.items():
        np.testing.assert_array_equal(given[key], value)
        assert not isinstance(value, np.ndarray) or given[key].flags == value.flags


def test_every_refusal_can_be_caught_as_one_or_as_a_value_error():
    assert issubclass(InvalidInputError, sisopt.SisoptError)
    assert issubclass(InfeasibleBudgetError, sisopt.SisoptError)
    assert issubclass(UnsupportedError, sisopt.SisoptError)
    assert issubclass(InvalidInputError, ValueError)
    assert issubclass(InfeasibleBudgetError, ValueError)
    assert issubclass(UnsupportedError, NotImplementedError)


def test_tensors_that_record_gradients_are_named():
    torch = pytest.importorskip("torch")
    weight = torch.nn.Parameter(torch.zeros(3, 4))
    with pytest.raises(InvalidInputError, match="weight cannot be read as an array: .*grad"):
        sparsify(np.zeros((9, 4)), weight, sparsity=0.5)
