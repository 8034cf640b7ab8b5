"""The Gram metric: formed, or by its eigenvectors where inputs outnumber the samples."""

import numpy as np
import pytest

import sisopt
from sisopt.gram_statistics import input_center
from sisopt.refine import metric
from sisopt.refine.metric import DenseMetric, ThinMetric, metric_of

F64 = np.dtype(np.float64)


def wide_problem(seed=0, bias=True, weights=True, n=30, n_in=90, n_out=7, activation="relu"):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, n_in)) * rng.uniform(0.01, 30.0, n_in) + rng.normal(size=n_in)
    X[:, 3], X[:, 5] = 2.5, X[:, 6]  # constant; duplicate
    return sisopt.LayerProblem(
        X,
        rng.normal(size=(n_out, n_in)),
        rng.normal(size=n_out) if bias else None,
        activation=activation,
        sample_weights=rng.uniform(0.0, 2.0, n) if weights else None,
    )


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("weights", [True, False])
def test_both_metrics_are_the_same(monkeypatch, bias, weights):
    problem = wide_problem(bias=bias, weights=weights)
    center = input_center(problem)
    thin = metric_of(problem, center, F64, 1)
    monkeypatch.setattr(metric, "WIDE", 10)
    dense = metric_of(problem, center, F64, 1)
    assert isinstance(thin, ThinMetric)
    assert isinstance(dense, DenseMetric)
    np.testing.assert_allclose(thin.reach, dense.reach, rtol=1e-12)
    np.testing.assert_allclose(thin.inverse, dense.inverse, rtol=1e-12)
    assert (thin.inverse[3] == 0) == bias  # a constant is left to the bias, where there is one
    R = np.random.default_rng(1).normal(size=(5, problem.n_in))
    np.testing.assert_allclose(thin.times(R), R @ dense.gram, rtol=1e-9, atol=1e-9)
    for shift in (1e-3, 0.2, 30.0):
        exact = np.linalg.solve(dense.gram + shift * np.eye(problem.n_in), R.T).T
        np.testing.assert_allclose(thin.shifted(shift, 5)(R), exact, rtol=1e-8, atol=1e-8)
        np.testing.assert_allclose(dense.shifted(shift, 500)(R), exact, rtol=1e-8, atol=1e-8)


def test_a_wide_relu_layer_comes_out_the_same(monkeypatch):
    problem = wide_problem(n=60, n_in=150)
    X, W, b = problem.inputs, problem.weight, problem.bias
    how = {"activation": "relu", "sparsity": 0.7, "validation_inputs": X}
    thin = sisopt.sparsify(X, W, b, **how)
    monkeypatch.setattr(metric, "WIDE", 10)
    dense = sisopt.sparsify(X, W, b, **how)
    assert np.array_equal(thin.weight != 0, dense.weight != 0)
    np.testing.assert_allclose(thin.weight, dense.weight, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("activation", ["relu", "identity", "gelu", "softmax"])
def test_wide_layers_keep_counts_and_bits(activation):
    problem = wide_problem(activation=activation, weights=False)
    X, W, b = problem.inputs, problem.weight, problem.bias
    layers = [sisopt.sparsify(X, W, b, activation=activation, sparsity=0.8, effort="fast", n_threads=n) for n in (1, 2)]
    assert np.count_nonzero(layers[0].weight) == round(0.2 * W.size)
    assert np.array_equal(layers[0].weight, layers[1].weight)
    magnitude = np.where(np.abs(W) >= np.quantile(np.abs(W), 0.8), W, 0.0)
    forward = sisopt.get_activation(activation).forward
    Y = forward(X @ W.T + b)
    pruned = np.linalg.norm(forward(X @ magnitude.T + b) - Y) / np.linalg.norm(Y)
    assert layers[0].output_error < 0.7 * pruned
