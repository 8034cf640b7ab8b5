"""Trial runs on held-out samples: what they see, what they choose, when there are none, when the layer warns."""

from __future__ import annotations

import functools
import math
import warnings

import numpy as np
import pytest

import sisopt
from sisopt import GeneralizationWarning, LayerProblem, MaxPool, Settings, get_activation, get_pattern
from sisopt.refine import pilot as trials
from sisopt.refine.pilot import FIDELITIES, RIDGES, make_pilot

sparsify = functools.partial(sisopt.sparsify, n_threads=1)  # layers are too small for more
N_IN, N_OUT = 24, 12
quiet = pytest.mark.filterwarnings("ignore::sisopt.GeneralizationWarning")


def layer(n, seed=0, n_out=N_OUT):
    """Return ReLU features of n samples, weights and bias."""
    rng = np.random.default_rng(seed)
    mixing = np.eye(N_IN) + 0.4 * rng.standard_normal((N_IN, N_IN))
    X = np.maximum(rng.standard_normal((n, N_IN)) @ mixing, 0.0)
    return X, rng.standard_normal((n_out, N_IN)) / math.sqrt(N_IN), 0.1 * rng.standard_normal(n_out)


def pilot(problem, pattern="unstructured", sparsity=0.5, seed=0):
    return make_pilot(problem, get_pattern(pattern), sparsity, seed, np.dtype(np.float64), 1, math.inf)


# --- the samples -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [20, 23, 101, 500])
@pytest.mark.parametrize("activation", ["identity", "relu", "softmax"])
def test_samples_held_out_are_a_fifth_and_not_among_those_that_are_fitted(n, activation):
    X, W, b = layer(n)
    weights = np.arange(1.0, n + 1.0)  # tells which sample is which
    made = pilot(LayerProblem(X, W, b, activation=activation, sample_weights=weights))
    seen, held = made.part.sample_weights, made.held_out.sample_weights
    assert len(held) == n // 5
    assert sorted([*seen, *held]) == list(weights)
    for problem, which in ((made.part, seen), (made.held_out, held)):
        np.testing.assert_array_equal(problem.inputs, X[which.astype(int) - 1])
        np.testing.assert_allclose(problem.preactivations, problem.inputs @ problem.weight.T + problem.bias)
    assert np.diff(np.sort(held)).max() < 10  # spread evenly


def test_everything_that_belongs_to_a_sample_goes_with_it():
    X, W, b = layer(100)
    rng = np.random.default_rng(1)
    options = {
        "preactivations": X @ W.T + b + 0.1 * rng.standard_normal((100, N_OUT)),
        "shift": rng.standard_normal((100, N_OUT)),
        "entry_weights": rng.uniform(0.5, 1.0, (100, N_OUT)),
    }
    made = pilot(LayerProblem(X, W, b, activation="relu", mask=W > -0.1, sample_weights=np.arange(100.0), **options))
    for problem in (made.part, made.held_out):
        which = problem.sample_weights.astype(int)
        for name, values in options.items():
            np.testing.assert_array_equal(getattr(problem, name), values[which])
        np.testing.assert_array_equal(problem.mask, W > -0.1)


def test_the_seed_says_which_samples_are_held_out():
    problem = LayerProblem(*layer(200), activation="relu")
    held = [pilot(problem, seed=seed).held_out.inputs for seed in (0, 0, 1)]
    np.testing.assert_array_equal(held[0], held[1])
    assert not np.array_equal(held[0], held[2])


@quiet
def test_the_seed_reaches_sparsify_and_the_same_gives_the_same():
    X, W, b = layer(60)
    errors = [sparsify(X, W, b, activation="relu", sparsity=0.5, seed=seed).held_out_error for seed in (0, 0, 1, 2)]
    assert errors[0] == errors[1]
    assert len(set(errors)) == 3


@pytest.mark.parametrize("name", ["unstructured", "per-row", "2:4"])
def test_a_wide_layer_is_tried_on_some_of_its_neurons(name):
    X, W, b = layer(50, n_out=400)
    problem = LayerProblem(X, W, b, activation="relu", mask=W > -0.3)
    made = pilot(problem, name, None if name == "2:4" else 0.5)
    assert 20 <= made.part.n_out < 100
    rows = [int(np.flatnonzero((W == row).all(axis=1))[0]) for row in made.part.weight]
    assert rows == sorted(set(rows)) and np.diff(rows).max() < 40
    np.testing.assert_array_equal(made.part.mask, problem.mask[rows])
    np.testing.assert_array_equal(made.held_out.bias, b[rows])


@pytest.mark.parametrize("name", ["columns", "4x4 blocks", "rows"])
def test_neurons_that_hang_together_are_tried_together(name):
    X, W, b = layer(50, n_out=400)
    assert pilot(LayerProblem(X, W, b, activation="relu"), name).part.n_out == 400
    assert pilot(LayerProblem(X, W, b, activation="softmax")).part.n_out == 400


# --- none ------------------------------------------------------------------------------------------------------------


@quiet
@pytest.mark.parametrize("activation", ["identity", "relu", "tanh", "softmax"])
def test_too_few_samples_make_no_trial(activation):
    X, W, b = layer(19)
    assert pilot(LayerProblem(X, W, b, activation=activation)) is None
    made = sparsify(X, W, b, activation=activation, sparsity=0.5)
    assert made.held_out_error is None
    assert made.settings.refit
    one_more = layer(20)
    assert sparsify(*one_more, activation=activation, sparsity=0.5).held_out_error is not None


@quiet
def test_windows_of_a_pooling_cannot_be_parted():
    X, W, b = layer(80)
    activation = MaxPool(np.arange(80).reshape(20, 4))
    assert pilot(LayerProblem(X, W, b, activation=activation)) is None
    made = sparsify(X, W, b, activation=activation, sparsity=0.5)
    assert made.held_out_error is None
    assert np.count_nonzero(made.weight) == W.size // 2


def test_outputs_that_vanish_tell_nothing_and_stay_as_they_are():
    X, W, b = layer(40)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = sparsify(X, W, b - 100.0, activation="relu", sparsity=0.5)  # never active
    assert made.output_error == made.relative_error == 0.0
    assert np.count_nonzero(made.weight) == W.size // 2


@quiet
def test_little_effort_and_a_fidelity_that_was_given_try_none():
    X, W, b = layer(60)
    fast = sparsify(X, W, b, activation="relu", sparsity=0.5, effort="fast")
    assert fast.held_out_error is None
    for value in (0.0, 0.33):
        for effort in ("fast", "default"):
            made = sparsify(X, W, b, activation="relu", sparsity=0.5, fidelity=value, effort=effort)
            assert made.settings.fidelity == value
    assert sparsify(X, W, b, sparsity=0.5).settings.fidelity == 0.0  # a point forgives nothing


# --- what is chosen --------------------------------------------------------------------------------------------------


@quiet
@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_few_samples_ask_for_more_ridge_than_many(activation):
    chosen = {}
    for n in (50, 3000):
        made = [sparsify(*layer(n, seed), activation=activation, sparsity=0.5).settings for seed in range(4)]
        assert all(s.ridge in RIDGES and s.fidelity in (FIDELITIES if activation == "relu" else (0.0,)) for s in made)
        chosen[n] = made
    few, many = (np.mean([np.log(s.ridge) for s in chosen[n]]) for n in (50, 3000))
    assert few > many + 1.0


@quiet
@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_what_is_chosen_is_better_on_other_samples_than_no_choice(activation):
    ratios = []
    for seed in range(8):
        X, W, b = layer(4050, seed)
        Z = X[50:] @ W.T + b

        def error(made, X=X, Z=Z):
            new = X[50:] @ made.weight.T + made.bias
            if activation == "relu":
                return np.linalg.norm(np.maximum(new, 0.0) - np.maximum(Z, 0.0))
            return np.linalg.norm(new - Z)

        tried = sparsify(X[:50], W, b, activation=activation, sparsity=0.5)
        blind = sparsify(X[:50], W, b, activation=activation, sparsity=0.5, effort="fast", fidelity=0.0)
        ratios.append(error(tried) / error(blind))
    assert np.exp(np.mean(np.log(ratios))) < 0.97


@quiet
@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_the_estimate_is_near_the_error_on_other_samples(activation):
    for seed in range(3):
        X, W, b = layer(6000, seed)
        made = sparsify(X[:1000], W, b, activation=activation, sparsity=0.6)
        Z, new = X[1000:] @ W.T + b, X[1000:] @ made.weight.T + made.bias
        if activation == "relu":
            Z, new = np.maximum(Z, 0.0), np.maximum(new, 0.0)
        assert made.held_out_error == pytest.approx(np.linalg.norm(new - Z) / np.linalg.norm(Z), rel=0.2)


# --- the warning -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_a_layer_that_does_not_generalise_warns_its_caller(activation):
    X, W, b = layer(26)
    with pytest.warns(
        GeneralizationWarning, match="give more samples, ask for fewer zeros or raise fidelity"
    ) as caught:
        made = sparsify(X, W, b, activation=activation, sparsity=0.3, fidelity=0.0)
    assert [warning.filename for warning in caught] == [__file__]
    assert f"{made.held_out_error:.3g}" in str(caught[0].message)
    assert made.held_out_error > 2.0 * made.output_error


@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_a_layer_that_generalises_does_not_warn(activation):
    X, W, b = layer(3000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = sparsify(X, W, b, activation=activation, sparsity=0.5)
        sparsify(X, W, b, activation=activation, sparsity=0.5, effort="fast")
        assert sparsify(X, W, b, activation=activation, sparsity=0.0).output_error <= 1e-12
    assert made.held_out_error <= 2.0 * made.output_error


def test_validation_inputs_warn_whatever_the_effort():
    X, W, b = layer(1026)
    for effort in ("fast", "default"):
        with pytest.warns(GeneralizationWarning):
            sparsify(X[:26], W, b, sparsity=0.3, effort=effort, fidelity=0.0, validation_inputs=X[26:])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sparsify(X[:26], W, b, sparsity=0.3, effort="fast", fidelity=0.0)  # nothing to tell it from


# --- sets for the targets of smooth activations ----------------------------------------------------------------------


def smooth_layer(seed, n=1500, n_in=40, n_out=48):
    """Inputs that hang together, as those of trained layers do; outputs mostly in the flat part of GELU."""
    rng = np.random.default_rng(seed)
    X = np.maximum(rng.normal(size=(n, 12)) @ rng.normal(size=(12, n_in)) + 0.3 * rng.normal(size=(n, n_in)), 0.0)
    return X, rng.normal(size=(n_out, n_in)) / 12, rng.normal(size=n_out) / 2 - 3.0


@quiet
def test_sets_are_taken_where_they_pay_and_pay_on_other_samples(monkeypatch):
    ratios = []
    forward = get_activation("gelu").forward
    for seed in range(3):
        X, W, b = smooth_layer(seed, n=3000)
        test, X = X[:1500], X[1500:]
        Y = forward(test @ W.T + b)
        made = []
        for share in (trials.TOLERANCE, 0.0):
            monkeypatch.setattr(trials, "TOLERANCE", share)
            made.append(sparsify(X, W, b, activation="gelu", sparsity=0.5))
        errors = [np.linalg.norm(forward(test @ each.weight.T + each.bias) - Y) for each in made]
        monkeypatch.undo()
        assert made[1].settings.tolerance == 0.0
        assert made[0].settings.tolerance > 0.0
        ratios.append(errors[0] / errors[1])
    assert max(ratios) < 0.85


@quiet
@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_no_sets_of_their_own_where_targets_are_sets_or_nothing_bends(activation):
    assert sparsify(*smooth_layer(0), activation=activation, sparsity=0.8).settings.tolerance == 0.0


@quiet
def test_a_tolerance_that_was_asked_for_stays():
    made = sparsify(*smooth_layer(0), activation="gelu", sparsity=0.8, tolerance=0.01)
    assert made.settings.tolerance == 0.0  # the problem's own counts


def test_settings_say_their_tolerance():
    assert str(Settings(0.05, 1e-3, tolerance=0.012)) == "fidelity 0.05, ridge 0.001, tolerance 0.012"
