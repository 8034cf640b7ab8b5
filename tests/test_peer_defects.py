"""What other tools get wrong, on layers made for it: singular Hessians, inverted masks, counts off by one, scales."""

from __future__ import annotations

import functools
import math
import warnings

import numpy as np
import pytest

import sisopt
from sisopt import ConvergenceWarning, GeneralizationWarning

sparsify = functools.partial(sisopt.sparsify, n_threads=1)  # layers are too small for more
N, N_IN, N_OUT = 160, 16, 10
EFFORTS = ["fast", "default", "full"]
ACTIVATIONS = ["identity", "relu"]


def layer(seed=0, n=N):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, N_IN)) @ (np.eye(N_IN) + 0.3 * rng.standard_normal((N_IN, N_IN)))
    return X, rng.standard_normal((N_OUT, N_IN)) / math.sqrt(N_IN), 0.2 * rng.standard_normal(N_OUT)


def pruned(X, W, b, **keywords):
    """Sparsify; samples are few here, and a convex program may stop short of its gap: any other warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", GeneralizationWarning)
        warnings.simplefilter("ignore", ConvergenceWarning)
        return sparsify(X, W, b, **keywords)


@pytest.mark.parametrize("effort", EFFORTS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_duplicate_feature_does_not_raise_the_error(activation, effort):
    # the copy shares the weight of the original, so that the outputs are those of the layer without it
    ratios = []
    for seed in range(3):
        X, W, b = layer(seed)
        twice = np.hstack([X, X[:, 3:4]])
        V = np.hstack([W, 0.5 * W[:, 3:4]])
        V[:, 3] *= 0.5
        kept = 64
        keywords = {"activation": activation, "effort": effort}
        alone = pruned(X, W, b, sparsity=1 - kept / W.size, **keywords)
        both = pruned(twice, V, b, sparsity=1 - kept / V.size, **keywords)
        assert np.count_nonzero(alone.weight) == np.count_nonzero(both.weight) == kept
        assert np.isfinite(both.weight).all() and np.abs(both.weight).max() <= 10.0 * np.abs(W).max()
        ratios.append(both.output_error / alone.output_error)
    assert np.exp(np.mean(np.log(ratios))) <= 1.05
    assert max(ratios) <= 1.15


@pytest.mark.parametrize("effort", EFFORTS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_singular_inputs_leave_the_error_where_a_little_noise_has_it(activation, effort):
    # a rank of 9 among 16 inputs; a tool that falls back or adds a fixed ridge is far worse there than beside it
    X, W, b = layer()
    rng = np.random.default_rng(1)
    low = X[:, :9] @ rng.standard_normal((9, N_IN)) / 3.0
    keywords = {"activation": activation, "sparsity": 0.5, "effort": effort, "fidelity": 0.0}
    singular, regular = (pruned(low + d * X, W, b, **keywords).output_error for d in (0.0, 1e-3))
    assert singular <= 1.1 * regular + 0.01
    assert singular < 0.15  # half of the weights and more than half of the rank


@pytest.mark.parametrize("effort", EFFORTS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_dead_features_get_no_weight_while_others_need_one_and_cost_nothing(activation, effort):
    X, W, b = layer()
    dead = np.arange(N_IN) % 4 == 1
    Xd = np.where(dead, 0.0, X)
    kept = 50
    keywords = {"activation": activation, "effort": effort}
    some = pruned(Xd, W, b, sparsity=1 - kept / W.size, **keywords)
    assert not some.weight[:, dead].any()
    assert np.count_nonzero(some.weight) == kept
    alone = pruned(X[:, ~dead], W[:, ~dead], b, sparsity=1 - kept / W[:, ~dead].size, **keywords)
    assert some.output_error <= 1.1 * alone.output_error


@pytest.mark.parametrize("effort", EFFORTS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_zeros_that_a_mask_freezes_stay_and_the_rest_lives(activation, effort):
    X, W, b = layer()
    W[np.random.default_rng(1).random(W.shape) < 0.5] = 0.0
    mask = W != 0
    layer_ = pruned(X, W, b, activation=activation, mask=mask, sparsity=0.6, effort=effort)
    assert not layer_.weight[~mask].any()
    assert np.count_nonzero(layer_.weight) == round(0.4 * W.size)
    same = pruned(X, W, b, activation=activation, mask=mask, sparsity=0.4, effort=effort)  # nothing has to go
    np.testing.assert_array_equal(same.weight != 0, mask)
    assert same.output_error <= 1e-12


@pytest.mark.parametrize("effort", ["fast", "default"])
def test_a_layer_that_is_sparse_already_gives_what_is_asked_for(effort):
    X, W, b = layer()
    W[np.random.default_rng(1).random(W.shape) < 0.5] = 0.0
    nonzero = np.count_nonzero(W)
    for kept in (nonzero - 1, nonzero - 10, 20, 1):
        made = pruned(X, W, b, activation="relu", sparsity=1 - kept / W.size, effort=effort)
        assert np.count_nonzero(made.weight) == kept
    for sparsity in (0.3, 0.0):  # fewer zeros than there are
        made = pruned(X, W, b, activation="relu", sparsity=sparsity, effort=effort)
        np.testing.assert_array_equal(made.weight != 0, W != 0)
        assert made.output_error <= 1e-12


@pytest.mark.parametrize("pattern", ["unstructured", "per-row"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_no_count_is_off_by_one(activation, pattern):
    X, W, b = layer(n=60)
    X, W, b = X[:, :5], W[:4, :5], b[:4]
    for kept in range(21):
        made = pruned(X, W, b, activation=activation, pattern=pattern, sparsity=1 - kept / 20, effort="fast")
        assert np.count_nonzero(made.weight) == kept
    for sparsity in (0.7, 0.9, 0.123, 0.999, 0.001):  # a whole layer and no row, no block and no chunk counts
        X, W, b = layer(n=60)
        made = pruned(X, W, b, activation=activation, pattern=pattern, sparsity=sparsity, effort="fast")
        assert np.count_nonzero(made.weight) == round((1 - sparsity) * W.size)


@pytest.mark.parametrize("effort", ["fast", "default"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_features_times_ten_thousand_change_nothing(activation, effort):
    X, W, b = layer()
    some = np.where(np.arange(N_IN) % 3 == 0, 1e4, 1.0)
    for factors in (some, 1.0 / some, 1e4, 1e-4):
        one = pruned(X, W, b, activation=activation, sparsity=0.6, effort=effort)
        other = pruned(X * factors, W / factors, b, activation=activation, sparsity=0.6, effort=effort)
        np.testing.assert_array_equal(other.weight != 0, one.weight != 0)
        np.testing.assert_allclose(other.weight * factors, one.weight, rtol=1e-6, atol=1e-9)
        assert other.output_error == pytest.approx(one.output_error, rel=1e-6)
        assert other.settings == one.settings


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_outputs_times_ten_thousand_change_nothing_either(activation):
    X, W, b = layer()
    one, other = (pruned(X, c * W, c * b, activation=activation, sparsity=0.6) for c in (1.0, 1e4))
    np.testing.assert_allclose(other.weight, 1e4 * one.weight, rtol=1e-6)
    assert other.relative_error == pytest.approx(one.relative_error, rel=1e-6)


def test_batches_of_samples_in_any_order_give_the_same_layer():
    # a Hessian that counts a batch twice, or that weighs batches alike, would tell
    X, W, b = layer()
    order = np.random.default_rng(1).permutation(N)
    for activation in ACTIVATIONS:
        keywords = {"activation": activation, "sparsity": 0.6, "effort": "fast"}
        one, other = (pruned(x, W, b, **keywords) for x in (X, X[order]))
        np.testing.assert_array_equal(other.weight != 0, one.weight != 0)
        np.testing.assert_allclose(other.weight, one.weight, rtol=1e-8)
        doubled = pruned(np.vstack([X, X]), W, b, **keywords)
        np.testing.assert_allclose(doubled.weight, one.weight, rtol=1e-8)
