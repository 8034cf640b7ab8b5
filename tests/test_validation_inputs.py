"""validation_inputs: errors on samples that nothing was fitted to, after every stage, and a refit that they forbid."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest

import sisopt
from sisopt import InvalidInputError, LayerProblem, MaxPool

pytestmark = pytest.mark.filterwarnings("ignore::sisopt.GeneralizationWarning")

sparsify = functools.partial(sisopt.sparsify, n_threads=1)  # layers are too small for more
N_IN, N_OUT = 16, 8
FORWARD = {
    "identity": lambda z: z,
    "relu": lambda z: np.maximum(z, 0.0),
    "tanh": np.tanh,
    "softmax": lambda z: np.exp(z) / np.exp(z).sum(axis=1, keepdims=True),
}


def layer(n, seed=0, bias=True):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, N_IN)) @ (np.eye(N_IN) + 0.4 * rng.standard_normal((N_IN, N_IN)))
    W = rng.standard_normal((N_OUT, N_IN)) / math.sqrt(N_IN)
    return X, W, 0.2 * rng.standard_normal(N_OUT) if bias else None


def error(made, X, W, b, activation):
    """Return the output error on samples, from the raw arrays."""
    Y, new = (FORWARD[activation](X @ w.T + (0.0 if c is None else c)) for w, c in ((W, b), (made.weight, made.bias)))
    return np.linalg.norm(new - Y) / np.linalg.norm(Y)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", FORWARD)
@pytest.mark.parametrize(
    "goal",
    [{"sparsity": 0.6, "effort": "fast"}, {"sparsity": 0.6}, {"pattern": "2:4"}, {"relative_error": 0.3}],
    ids=str,
)
def test_errors_on_them_are_what_they_say(goal, activation, bias):
    X, W, b = layer(400, bias=bias)
    made = sparsify(X[:100], W, b, activation=activation, validation_inputs=X[100:], **goal)
    assert made.held_out_error == pytest.approx(error(made, X[100:], W, b, activation), rel=1e-9)
    assert made.output_error == pytest.approx(error(made, X[:100], W, b, activation), rel=1e-9)
    assert made.held_out_error == made.stages[-1].held_out_error
    assert all(stage.held_out_error > 0.0 for stage in made.stages)


@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_those_of_every_stage_are_what_they_say(activation):
    X, W, b = layer(400)
    made = sparsify(X[:100], W, b, activation=activation, validation_inputs=X[100:], sparsity=0.6, effort="full",
                    fidelity=0.0)  # fmt: skip
    assert [stage.name for stage in made.stages][:3] == ["convex", "reweighted", "swap"]
    assert made.stages[0].held_out_error == pytest.approx(error(made.convex, X[100:], W, b, activation), rel=1e-6)
    on_itself = sparsify(X, W, b, activation=activation, validation_inputs=X, sparsity=0.6, effort="full")
    for stage in on_itself.stages:
        assert stage.held_out_error == pytest.approx(stage.output_error, rel=1e-6)


def test_without_them_stages_have_none():
    X, W, b = layer(100)
    for keywords in ({"sparsity": 0.6}, {"relative_error": 0.3}):
        assert {s.held_out_error for s in sparsify(X, W, b, activation="relu", **keywords).stages} == {None}
    assert sparsify(X, W, b, activation="relu", relative_error=0.3).held_out_error is None


@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_a_refit_that_would_raise_the_error_on_them_is_skipped_and_says_so(activation):
    skipped, made_one = 0, 0
    for seed in range(12):
        X, W, b = layer(300, seed)
        keywords = {"activation": activation, "sparsity": 0.6, "effort": "fast", "fidelity": 0.0}
        made = sparsify(X[:20], W, b, validation_inputs=X[20:], **keywords)
        swap, refit = made.stages
        assert refit.held_out_error <= swap.held_out_error
        assert made.held_out_error == refit.held_out_error
        free = sparsify(X[:20], W, b, **keywords)
        np.testing.assert_array_equal(made.weight != 0, free.weight != 0)
        if refit.note:
            skipped += 1
            assert refit.note == "skipped: it would raise the held-out error"
            assert refit.note in str(made)
            assert (refit.output_error, refit.relative_error) == (swap.output_error, swap.relative_error)
            assert error(free, X[20:], W, b, activation) > made.held_out_error
        else:
            made_one += 1
            np.testing.assert_array_equal(made.weight, free.weight)
    assert skipped and made_one


def test_nothing_is_fitted_to_them():
    X, W, b = layer(2100)
    some, others = (
        sparsify(X[:100], W, b, activation="relu", sparsity=0.6, validation_inputs=V) for V in (X[100:1100], X[1100:])
    )
    plain = sparsify(X[:100], W, b, activation="relu", sparsity=0.6)
    for made in (some, others):
        assert made.settings == plain.settings
        np.testing.assert_array_equal(made.weight != 0, plain.weight != 0)
    assert some.held_out_error != others.held_out_error


@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_at_full_effort_the_better_start_on_them_stays(activation):
    ratios = []
    for seed in range(4):
        X, W, b = layer(1060, seed)
        keywords = {"activation": activation, "sparsity": 0.5, "fidelity": 0.0, "validation_inputs": X[60:]}
        full, default = (sparsify(X[:60], W, b, effort=effort, **keywords) for effort in ("full", "default"))
        ratios.append(full.held_out_error / default.held_out_error)
    assert np.exp(np.mean(np.log(ratios))) <= 1.02


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((5, N_IN + 1)), r"validation_inputs must have shape \(n_validation, 16\), got \(5, 17\)"),
        (np.zeros((0, N_IN)), r"validation_inputs must have shape \(n_validation, 16\), got \(0, 16\)"),
        (np.zeros(N_IN), "validation_inputs must have 2 dimensions"),
        (np.full((5, N_IN), np.nan), "validation_inputs must be finite"),
        ("many", "validation_inputs"),
    ],
    ids=["columns", "empty", "1-d", "nan", "text"],
)
def test_bad_ones_are_refused_by_name(given, message):
    with pytest.raises(InvalidInputError, match=message):
        sparsify(*layer(50), sparsity=0.5, validation_inputs=given)


@pytest.mark.parametrize("name", ["preactivations", "shift"])
def test_targets_that_belong_to_the_calibration_samples_do_not_go_with_them(name):
    X, W, b = layer(50)
    with pytest.raises(InvalidInputError, match="validation_inputs goes with a layer's own outputs"):
        sparsify(X, W, b, sparsity=0.5, validation_inputs=X, **{name: np.zeros((50, N_OUT))})


def test_windows_of_a_pooling_must_fit_them():
    X, W, b = layer(120)
    activation = MaxPool(np.arange(80).reshape(20, 4))
    made = sparsify(X[:80], W, b, activation=activation, sparsity=0.5, validation_inputs=X[:80] + 0.1)
    assert made.held_out_error > 0.0
    with pytest.raises(InvalidInputError, match="validation_inputs must hold 80 samples"):
        sparsify(X[:80], W, b, activation=activation, sparsity=0.5, validation_inputs=X[80:])


def test_they_are_not_written_to():
    X, W, b = layer(100)
    V = X[50:].copy()
    V.flags.writeable = False
    sparsify(X[:50], W, b, activation="relu", sparsity=0.5, validation_inputs=V)
    np.testing.assert_array_equal(V, X[50:])
    assert LayerProblem(V, W, b).n_samples == 50


# --- error budgets ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["identity", "relu", "tanh"])
def test_a_budget_is_kept_with_fewer_weights_than_the_convex_program_has(activation):
    saved = []
    for seed in range(3):
        X, W, b = layer(200, seed)
        Z = X @ W.T + b
        for budget in (0.1, 0.4):
            made = sparsify(X, W, b, activation=activation, relative_error=budget)
            new = X @ made.weight.T + made.bias
            target = np.maximum(Z, 0.0) if activation == "relu" else Z
            off = np.where((Z > 0) | (new > 0), new - target, 0.0) if activation == "relu" else new - Z
            radius, empty = np.linalg.norm(off), np.linalg.norm(target - target.mean(axis=0))
            assert radius <= budget * empty * (1 + 1e-6)
            assert made.relative_error == pytest.approx(radius / empty, rel=1e-6)
            kept, convex = np.count_nonzero(made.weight), np.count_nonzero(made.convex.weight)
            assert kept <= convex
            saved.append(kept / convex)
    assert np.mean(saved) < 0.95


def test_a_budget_of_everything_is_the_empty_layer_and_of_nothing_the_dense_one():
    X, W, b = layer(200)
    assert not sparsify(X, W, b, activation="relu", relative_error=1.0).weight.any()
    with np.errstate(all="raise"):
        dense = sparsify(X, W, b, activation="relu", relative_error=0.0)
    assert dense.relative_error <= 1e-6
