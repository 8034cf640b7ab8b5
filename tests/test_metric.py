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


def test_inputs_that_hang_together_are_solved_for_in_float32_as_well():
    rng = np.random.default_rng(0)
    n, n_in = 60, 2000
    X = rng.normal(size=(n, 1)) + 0.05 * rng.normal(size=(n, n_in))  # one eigenvalue of nearly n_in
    problem = sisopt.LayerProblem(X.astype(np.float32), rng.normal(size=(4, n_in)), np.zeros(4), activation="relu")
    F32 = np.dtype(np.float32)
    thin = metric_of(problem, input_center(problem), F32, 1)
    assert isinstance(thin, ThinMetric)
    R = rng.normal(size=(4, n_in)).astype(F32)
    for shift in (1e-3, 0.02):
        U = thin.shifted(shift, 4)(thin.times(R) + F32.type(shift) * R)
        assert U.dtype == F32
        np.testing.assert_allclose(U, R, atol=2e-5 / shift)  # what float32 leaves of the right-hand side


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


# --- rare inputs -----------------------------------------------------------------------------------------------------


def test_all_inputs_reach_at_least_a_share_of_the_mean():
    problem = wide_problem(n=400, n_in=20, weights=False)
    made = metric_of(problem, input_center(problem), F64, 1)
    X = problem.inputs - problem.inputs.mean(axis=0)
    squares, dense = (X**2).sum(axis=0), (problem.weight**2).mean(axis=0)
    squares[3] = 0.0  # the constant
    reached = squares * dense
    wanted = np.sqrt(np.where(reached > 0, squares + metric.FLOOR * reached[reached > 0].mean() / dense, 0.0))
    np.testing.assert_allclose(made.reach, wanted, rtol=1e-10)


def test_a_scaled_input_changes_nothing():
    problem = wide_problem(n=400, n_in=20, weights=False)
    factors = 10.0 ** np.random.default_rng(2).uniform(-6, 6, 20)
    scaled = sisopt.LayerProblem(problem.inputs * factors, problem.weight / factors, problem.bias, activation="relu")
    reach = [metric_of(each, input_center(each), F64, 1).reach for each in (problem, scaled)]
    np.testing.assert_allclose(reach[1] / factors, reach[0], rtol=1e-6)


def test_inputs_that_no_dense_weight_uses_keep_their_reach():
    problem = wide_problem(n=400, n_in=20, weights=False)
    weight = problem.weight.copy()
    weight[:, 4] = 0.0
    without = sisopt.LayerProblem(problem.inputs, weight, problem.bias, activation="relu")
    made = metric_of(without, input_center(without), F64, 1)
    exact = np.linalg.norm(problem.inputs[:, 4] - problem.inputs[:, 4].mean())
    assert made.reach[4] == pytest.approx(exact)
    nothing = sisopt.LayerProblem(problem.inputs, np.zeros_like(weight), problem.bias, activation="relu")
    assert np.isfinite(metric_of(nothing, input_center(nothing), F64, 1).reach).all()


@pytest.mark.parametrize("effort", ["fast", "default"])
def test_weights_of_an_input_that_hardly_moves_do_not_run_away(monkeypatch, effort):
    # it fires once, faintly, on the calibration samples, and strongly on others; the targets are another network's
    rng = np.random.default_rng(0)
    n, n_in, n_out = 120, 40, 16
    X, W, b = rng.normal(size=(n, n_in)), rng.normal(size=(n_out, n_in)), rng.normal(size=n_out)
    X[:, :8] = 0.0
    X[np.arange(8), np.arange(8)] = 1e-4
    Z = (X + 0.3 * rng.normal(size=X.shape)) @ W.T + b
    how = {"activation": "relu", "sparsity": 0.2, "preactivations": Z, "effort": effort}
    assert np.abs(sisopt.sparsify(X, W, b, **how).weight[:, :8]).max() <= 3.0 * np.abs(W).max()
    monkeypatch.setattr(metric, "FLOOR", 0.0)
    assert np.abs(sisopt.sparsify(X, W, b, **how).weight[:, :8]).max() >= 100.0 * np.abs(W).max()
