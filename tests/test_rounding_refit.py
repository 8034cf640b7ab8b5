"""Exact counts, and the best values on a fixed support."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import minimize

from sisopt import LayerProblem, Unstructured
from sisopt.refine.refit import refit
from sisopt.refine.rounding import round_to_pattern

EVERYWHERE = np.ones((4, 6), bool)


def round_to_count(weight, dense, norms, kept, allowed):
    """Round to so many weights anywhere."""
    return round_to_pattern(weight, dense, norms, allowed, Unstructured(), 1.0 - kept / weight.size)


def weights(density=0.5, shape=(4, 6), seed=0):
    """Return sparse weights, dense ones and column norms."""
    rng = np.random.default_rng(seed)
    sparse = np.where(rng.random(shape) < density, rng.standard_normal(shape), 0.0)
    return sparse, rng.standard_normal(shape), rng.uniform(0.1, 3.0, shape[1])


# --- rounding --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", range(25))
def test_count_is_exact_for_every_count(kept):
    sparse, dense, norms = weights()
    assert np.count_nonzero(round_to_count(sparse, dense, norms, kept, EVERYWHERE)) == kept


@pytest.mark.parametrize("kept", [0, 1, 5, 9])
def test_weights_that_stay_are_those_that_do_most_and_keep_their_values(kept):
    sparse, dense, norms = weights()
    rounded = round_to_count(sparse, dense, norms, kept, EVERYWHERE)
    stays = rounded != 0
    np.testing.assert_array_equal(rounded[stays], sparse[stays])
    effect = np.abs(sparse) * norms
    gone = (sparse != 0) & ~stays
    assert np.count_nonzero(gone) == np.count_nonzero(sparse) - kept > 0
    assert np.max(effect[gone]) <= np.min(effect[stays], initial=math.inf)


@pytest.mark.parametrize("kept", [14, 20, 24])
def test_weights_that_come_back_are_the_dense_ones_that_do_most(kept):
    sparse, dense, norms = weights()
    assert np.count_nonzero(sparse) < kept
    rounded = round_to_count(sparse, dense, norms, kept, EVERYWHERE)
    came = (sparse == 0) & (rounded != 0)
    np.testing.assert_array_equal(rounded[sparse != 0], sparse[sparse != 0])
    np.testing.assert_array_equal(rounded[came], dense[came])
    effect = np.abs(dense) * norms
    assert np.min(effect[came]) >= np.max(effect[rounded == 0], initial=0.0)


def test_ties_go_to_the_earlier_entry():
    ones, norms = np.ones((2, 3)), np.ones(3)
    fewer = round_to_count(-ones, ones, norms, 4, np.ones((2, 3), bool))
    np.testing.assert_array_equal(fewer, [[-1, -1, -1], [-1, 0, 0]])
    more = round_to_count(0 * ones, ones, norms, 4, np.ones((2, 3), bool))
    np.testing.assert_array_equal(more, [[1, 1, 1], [1, 0, 0]])


def test_only_the_product_of_weight_and_column_counts():
    sparse, norms = np.array([[3.0, -1.0, 2.0]]), np.array([1.0, 100.0, 2.0])
    rounded = round_to_count(sparse, sparse, norms, 1, np.ones((1, 3), bool))
    np.testing.assert_array_equal(rounded, [[0.0, -1.0, 0.0]])


@pytest.mark.parametrize("kept", [3, 12, 24])
def test_forbidden_weights_never_come_back(kept):
    sparse, dense, norms = weights()
    allowed = np.random.default_rng(1).random(sparse.shape) < 0.6
    rounded = round_to_count(np.where(allowed, sparse, 0.0), dense, norms, kept, allowed)
    assert not rounded[~allowed].any()
    assert np.count_nonzero(rounded) == min(kept, np.count_nonzero(allowed))


def test_dense_weights_that_are_zero_cannot_come_back():
    sparse, dense, norms = weights(density=0.2)
    dense[:, ::2] = 0.0
    rounded = round_to_count(sparse, dense, norms, 24, EVERYWHERE)
    assert np.count_nonzero(rounded) == np.count_nonzero((sparse != 0) | (dense != 0)) < 24
    assert np.isfinite(rounded).all()


def test_rounding_changes_no_argument():
    sparse, dense, norms = weights()
    before = sparse.copy(), dense.copy(), norms.copy()
    for kept in (2, 20):
        assert not np.shares_memory(round_to_count(sparse, dense, norms, kept, EVERYWHERE), sparse)
    for one, other in zip((sparse, dense, norms), before, strict=True):
        np.testing.assert_array_equal(one, other)


# --- refit -----------------------------------------------------------------------------------------------------------


class Case:
    """A layer, a sparse start, and its loss from the raw data."""

    def __init__(self, activation, *, bias=True, seed=0, columns=None, **options):
        rng = np.random.default_rng(seed)
        self.X = rng.standard_normal((90, 8)) @ (np.eye(8) + 0.3 * rng.standard_normal((8, 8)))
        for j, values in (columns or {}).items():
            self.X[:, j] = self.X[:, values] if isinstance(values, int) else values
        W, b = rng.standard_normal((5, 8)), rng.standard_normal(5) if bias else None
        self.problem = LayerProblem(self.X, W, b, activation=activation, **options)
        self.bias = bias
        self.start = np.where(rng.random(W.shape) < 0.6, W + 0.3 * rng.standard_normal(W.shape), 0.0)
        self.Z = self.X @ W.T + (b if bias else 0.0)
        self.lo = np.where(self.Z > 0, self.Z, -np.inf) if activation == "relu" else self.Z
        self.hi = np.where(self.Z > 0, self.Z, 0.0) if activation == "relu" else self.Z
        self.v = options.get("sample_weights", np.ones(90))
        self.omega = self.v[:, None] * np.broadcast_to(options.get("entry_weights", 1.0), self.Z.shape)
        self.beta = options.get("fidelity", 0.0)

    def row(self, i, w, b):
        """Return the loss of neuron i and its derivative in the pre-activations."""
        z = self.X @ w + b
        e, d = z - np.clip(z, self.lo[:, i], self.hi[:, i]), z - self.Z[:, i]
        slope = self.omega[:, i] * e + self.beta * self.v * d
        return 0.5 * np.sum(self.omega[:, i] * e**2 + self.beta * self.v * d**2), slope

    def best(self, i, w):
        """Return the least loss of neuron i on the support of w, with weights that attain it."""
        support = np.flatnonzero(w)

        def objective(parameters):
            full = np.zeros(w.size)
            full[support] = parameters[: support.size]
            loss, slope = self.row(i, full, parameters[-1] if self.bias else 0.0)
            gradient = [*(slope @ self.X[:, support]), *([slope.sum()] if self.bias else [])]
            return loss, np.array(gradient)

        start = np.concatenate([w[support], [0.0] if self.bias else []])
        if start.size == 0:
            return objective(start)[0], w
        options = {"maxiter": 5000, "ftol": 1e-15, "gtol": 1e-11}
        found = minimize(objective, start, jac=True, method="L-BFGS-B", options=options)
        full = np.zeros(w.size)
        full[support] = found.x[: support.size]
        return found.fun, full

    def loss(self, i, w):
        """Return the loss of neuron i at weights w and their best bias."""
        if not self.bias:
            return self.row(i, w, 0.0)[0]
        return minimize(
            lambda b: (self.row(i, w, b[0])[0], self.row(i, w, b[0])[1].sum(keepdims=True)),
            np.zeros(1), jac=True, method="L-BFGS-B", options={"ftol": 1e-15, "gtol": 1e-11},
        ).fun  # fmt: skip


OPTIONS = {
    "plain": {},
    "no bias": {"bias": False},
    "fidelity": {"fidelity": 0.2},
    "sample weights": {"sample_weights": np.random.default_rng(5).uniform(0.0, 2.0, 90)},
    "entry weights": {"entry_weights": np.random.default_rng(6).uniform(0.1, 1.0, (90, 5))},
    "duplicate columns": {"columns": {3: 4, 6: 4}},
    "constant column": {"columns": {2: 0.1}},
    "dead column": {"columns": {2: 0.0}},
}


@pytest.mark.parametrize("name", ["plain", "no bias", "sample weights"])
def test_refit_of_an_identity_layer_is_least_squares_on_the_support(name):
    case = Case("identity", **OPTIONS[name])
    found = refit(case.problem, case.start, math.inf, 1)
    for i in range(5):
        support = np.flatnonzero(case.start[i])
        A = np.column_stack([case.X[:, support], *([np.ones(90)] if case.bias else [])]) * np.sqrt(case.v)[:, None]
        expected = np.linalg.lstsq(A, np.sqrt(case.v) * case.Z[:, i])[0][: support.size]
        np.testing.assert_allclose(found[i, support], expected, rtol=0, atol=1e-8)
    np.testing.assert_array_equal(found[case.start == 0], 0.0)


@pytest.mark.parametrize("activation", ["identity", "relu"])
@pytest.mark.parametrize("name", OPTIONS)
def test_refit_finds_the_least_loss_on_the_support_and_never_ascends(name, activation):
    for seed in range(3):
        case = Case(activation, seed=seed, **OPTIONS[name])
        found = refit(case.problem, case.start, math.inf, 1)
        np.testing.assert_array_equal(found[case.start == 0], 0.0)
        assert np.abs(found).max() < 100.0
        for i in range(5):
            before, after = case.loss(i, case.start[i]), case.loss(i, found[i])
            assert after <= before * (1 + 1e-9)
            assert after <= case.best(i, case.start[i])[0] + 1e-4 * before


def test_refit_leaves_what_is_best_already():
    case = Case("relu")
    once = refit(case.problem, case.start, math.inf, 1)
    twice = refit(case.problem, once, math.inf, 1)
    for i in range(5):
        assert case.loss(i, twice[i]) <= case.loss(i, once[i]) * (1 + 1e-9)
    dense = np.asarray(case.problem.weight)
    np.testing.assert_allclose(refit(case.problem, dense, math.inf, 1), dense, rtol=0, atol=1e-9)


def test_refit_without_time_changes_nothing():
    case = Case("relu")
    np.testing.assert_array_equal(refit(case.problem, case.start, -math.inf, 1), case.start)


def test_refit_of_nothing_is_nothing():
    case = Case("relu")
    np.testing.assert_array_equal(refit(case.problem, np.zeros((5, 8)), math.inf, 1), np.zeros((5, 8)))


def test_refit_changes_neither_its_start_nor_the_problem():
    case = Case("relu", mask=np.ones((5, 8), bool))
    before = case.start.copy()
    refit(case.problem, case.start, math.inf, 1)
    np.testing.assert_array_equal(case.start, before)
    assert case.problem.mask.all()


@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_refit_has_the_same_bits_for_any_number_of_threads(activation):
    case = Case(activation)
    one, two = (refit(case.problem, case.start, math.inf, n) for n in (1, 2))
    np.testing.assert_array_equal(one, two)
