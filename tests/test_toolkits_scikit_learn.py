"""scikit-learn's perceptrons, made sparse: copies that predict, layer by layer on what the layers before make."""

from __future__ import annotations

import copy
import doctest
import importlib
import sys
import warnings

import numpy as np
import pytest

pytest.importorskip("sklearn")

from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.svm import LinearSVC

import sisopt
from sisopt import InvalidInputError
from sisopt.adapters.toolkits import scikit_learn
from sisopt.adapters.toolkits.scikit_learn import sparsify_mlp

rng = np.random.default_rng(0)
X = rng.standard_normal((300, 10))
TARGETS = np.stack([np.sin(X[:, 0]), X[:, 1] * X[:, 2]], axis=1)


def fitted(kind, y, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return kind(hidden_layer_sizes=(24, 16), max_iter=60, random_state=0, **options).fit(X, y)


def zeros(estimator):
    return [int((W == 0).sum()) for W in estimator.coefs_]


@pytest.mark.parametrize("activation", ["identity", "logistic", "tanh", "relu"])
@pytest.mark.parametrize("kind", [MLPRegressor, MLPClassifier])
def test_every_activation_gives_a_copy_that_predicts(kind, activation):
    y = TARGETS if kind is MLPRegressor else (TARGETS[:, 0] > 0) + 2 * (TARGETS[:, 1] > 0)
    dense = fitted(kind, y, activation=activation)
    before = copy.deepcopy(dense)
    report = sparsify_mlp(dense, X, sparsity=0.6, effort="fast")
    sparse = report.model
    n_weights = sum(W.size for W in dense.coefs_)
    assert sum(zeros(sparse)) == n_weights - round(0.4 * n_weights) == report.n_weights - report.n_kept
    out = "softmax" if kind is MLPClassifier else "identity"
    hidden = "sigmoid" if activation == "logistic" else activation
    assert [layer.activation for layer in report.layers] == [hidden, hidden, out]
    assert all(np.array_equal(a, b) for a, b in zip(dense.coefs_, before.coefs_, strict=True))
    by_size = copy.deepcopy(dense)
    for W in by_size.coefs_:
        W[np.abs(W) < np.quantile(np.abs(W), 0.6)] = 0
    values = "predict" if kind is MLPRegressor else "predict_proba"
    wanted, got, smallest = (getattr(model, values)(X) for model in (dense, sparse, by_size))
    assert np.linalg.norm(got - wanted) < 0.8 * np.linalg.norm(smallest - wanted)


def test_layers_are_those_of_sparsify_on_inputs_of_sparse_layers_with_dense_targets():
    dense = fitted(MLPRegressor, TARGETS)
    sparse = sparsify_mlp(dense, X, sparsity=0.5, allocation="uniform").model
    inputs, dense_inputs = X, X
    for i, R in enumerate((lambda z: np.maximum(z, 0), lambda z: np.maximum(z, 0), None)):
        Z = dense_inputs @ dense.coefs_[i] + dense.intercepts_[i]
        wanted = sisopt.sparsify(
            inputs, dense.coefs_[i].T, dense.intercepts_[i], preactivations=Z, sparsity=0.5,
            activation="identity" if R is None else "relu",
        )  # fmt: skip
        np.testing.assert_allclose(sparse.coefs_[i], wanted.weight.T, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(sparse.intercepts_[i], wanted.bias, rtol=1e-6, atol=1e-9)
        if R is not None:
            inputs, dense_inputs = R(inputs @ sparse.coefs_[i] + sparse.intercepts_[i]), R(Z)


def test_two_classes_and_other_losses_have_their_own_output():
    binary = fitted(MLPClassifier, TARGETS[:, 0] > 0)
    report = sparsify_mlp(binary, X, sparsity=0.5, effort="fast")
    assert report.layers[-1].activation == "sigmoid"
    assert report.model.predict(X).dtype == bool
    if "loss" not in MLPRegressor().get_params():
        pytest.skip("scikit-learn before 1.7")
    counts = fitted(MLPRegressor, rng.poisson(np.exp(X[:, 0])).astype(float), loss="poisson")
    report = sparsify_mlp(counts, X, sparsity=0.5, effort="fast")
    assert report.layers[-1].activation == "identity"
    assert np.corrcoef(report.model.predict(X), counts.predict(X))[0, 1] > 0.9


def test_single_precision_stays_and_other_goals_go_through(tmp_path):
    dense = MLPRegressor(hidden_layer_sizes=(8,), max_iter=20, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        dense.fit(X.astype(np.float32), TARGETS[:, 0].astype(np.float32))
    options = {"goals": {"coefs_.0": "1:2", "coefs_.1": None}, "effort": "fast", "checkpoint": tmp_path / "run"}
    pytest.importorskip("safetensors")
    report = sparsify_mlp(dense, X.astype(np.float32), **options)
    assert zeros(report.model) == [40, 0]
    assert report.model.coefs_[0].dtype == report.model.intercepts_[0].dtype == np.float32
    again = sparsify_mlp(dense, X.astype(np.float32), **options)
    assert np.array_equal(again.model.coefs_[0], report.model.coefs_[0])
    with pytest.raises(sisopt.CheckpointError):
        sparsify_mlp(dense, X[::-1].astype(np.float32), **options)


def test_parallel_mode_takes_inputs_of_the_dense_network():
    dense = fitted(MLPRegressor, TARGETS)
    sparse = sparsify_mlp(dense, X, sparsity=0.5, allocation="uniform", mode="parallel").model
    hidden = np.maximum(X @ dense.coefs_[0] + dense.intercepts_[0], 0)
    wanted = sisopt.sparsify(hidden, dense.coefs_[1].T, dense.intercepts_[1], activation="relu", sparsity=0.5)
    np.testing.assert_allclose(sparse.coefs_[1], wanted.weight.T, rtol=1e-6, atol=1e-9)


def test_what_is_no_fitted_perceptron_is_refused():
    with pytest.raises(NotFittedError, match="not fitted"):
        sparsify_mlp(MLPClassifier(), X, sparsity=0.5)
    with pytest.raises(InvalidInputError, match="LinearSVC"):
        sparsify_mlp(LinearSVC(), X, sparsity=0.5)
    dense = fitted(MLPRegressor, TARGETS)
    with pytest.raises(InvalidInputError, match="10 features"):
        sparsify_mlp(dense, X[:, :9], sparsity=0.5)
    with pytest.raises(InvalidInputError, match="sparsity"):
        sparsify_mlp(dense, X, sparsity=2)


def test_the_example_of_the_docstring_runs():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        assert doctest.testmod(scikit_learn).failed == 0


def test_a_missing_package_is_named_with_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.neural_network", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "sisopt\[sklearn\]"'):
        importlib.reload(scikit_learn)
