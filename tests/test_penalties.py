"""Penalties: value, proximity operator and dual norm against brute force and against each other."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import minimize_scalar

from sisopt import L1, InvalidInputError, LayerProblem, WeightedL1
from sisopt.penalties import get_penalty

SHAPE = (3, 4)
matrices = arrays(np.float64, SHAPE, elements=st.floats(-1e3, 1e3))
factors = arrays(np.float64, SHAPE, elements=st.floats(1e-2, 1e2))
steps = st.floats(1e-2, 1e2)


def test_value_is_the_weighted_sum_of_sizes():
    assert WeightedL1([[1.0, 2.0], [3.0, 4.0]]).value([[1.0, -1.0], [0.0, 0.5]]) == 5.0
    assert L1().value([[1.0, -1.0], [0.0, 0.5]]) == 2.5


def test_prox_agrees_with_brute_force():
    rng = np.random.default_rng(0)
    a, W, step = rng.uniform(0.1, 2.0, SHAPE), rng.standard_normal(SHAPE), 0.7
    found = WeightedL1(a).prox(W, step)
    for index, w in np.ndenumerate(W):

        def objective(v, a=a[index], w=w):
            return step * a * abs(v) + 0.5 * (v - w) ** 2

        # either side of zero is a parabola of its own
        options = {"method": "bounded", "options": {"xatol": 1e-12}}
        sides = [minimize_scalar(objective, bounds=ends, **options) for ends in ((-5.0, 0.0), (0.0, 5.0))]
        best = min(sides, key=lambda side: side.fun)
        assert found[index] == pytest.approx(best.x, abs=1e-6)
        assert objective(found[index]) <= best.fun + 1e-15


@given(factors, matrices, steps)
def test_moreau_identity(a, W, step):
    # W = prox of step g at W + step times the projection of W / step onto the dual ball
    projection = np.clip(W / step, -a, a)
    np.testing.assert_allclose(WeightedL1(a).prox(W, step) + step * projection, W, rtol=1e-12, atol=1e-12)


@given(factors, matrices, matrices, steps)
def test_prox_is_firmly_nonexpansive(a, V, W, step):
    g = WeightedL1(a)
    moved = g.prox(V, step) - g.prox(W, step)
    assert np.sum(moved**2) <= np.sum(moved * (V - W)) * (1 + 1e-12) + 1e-9


def test_prox_gives_exact_zeros_on_the_threshold():
    np.testing.assert_array_equal(WeightedL1([0.5, 1.0]).prox([[0.1, -0.2]], 0.2), [[0.0, 0.0]])


@given(factors, matrices, matrices)
def test_dual_norm_bounds_the_inner_product(a, C, W):
    g = WeightedL1(a)
    bound = g.dual_norm(C) * g.value(W)
    assert np.sum(C * W) <= bound + 1e-9 * abs(bound)


@given(factors, matrices)
def test_dual_norm_is_attained(a, C):
    g = WeightedL1(a)
    index = np.unravel_index(np.argmax(np.abs(C) / a), SHAPE)
    W = np.zeros(SHAPE)
    W[index] = np.copysign(1.0 / a[index], C[index])
    assert g.value(W) == pytest.approx(1.0, rel=1e-15)
    assert np.sum(C * W) == pytest.approx(g.dual_norm(C), rel=1e-15)


@pytest.mark.parametrize("shape", [(), (1,), (4,), (1, 1), (3, 1), (1, 4), (3, 4)], ids=str)
def test_factors_broadcast_to_the_weights(shape):
    rng = np.random.default_rng(1)
    a, W = rng.uniform(0.5, 2.0, shape), rng.standard_normal(SHAPE)
    full = WeightedL1(np.broadcast_to(a, SHAPE))
    g = WeightedL1(a)
    assert g.value(W) == pytest.approx(full.value(W), rel=1e-15)
    assert g.dual_norm(W) == full.dual_norm(W)
    np.testing.assert_array_equal(g.prox(W, 0.3), full.prox(W, 0.3))
    np.testing.assert_array_equal(np.broadcast_to(g.thresholds(SHAPE), SHAPE), np.broadcast_to(a, SHAPE))


@pytest.mark.parametrize("shape", [(4, 3), (3,), (2, 4), (6, 4), (3, 8)], ids=str)
def test_factors_of_another_shape_are_refused(shape):
    with pytest.raises(InvalidInputError, match=r"penalty weights.*\(3, 4\)"):
        WeightedL1(np.ones(shape)).thresholds(SHAPE)


@pytest.mark.parametrize("shape", [(3, 4), (6, 8)], ids=str)
def test_factors_may_not_widen_the_weights(shape):
    with pytest.raises(InvalidInputError, match=r"penalty weights.*\(1, 4\)"):
        WeightedL1(np.ones(shape)).thresholds((1, 4))


def test_l1_has_unit_factors():
    W = np.random.default_rng(2).standard_normal(SHAPE)
    ones = WeightedL1(np.ones(SHAPE))
    assert L1().value(W) == ones.value(W) == pytest.approx(np.abs(W).sum(), rel=1e-15)
    assert L1().dual_norm(W) == ones.dual_norm(W) == np.abs(W).max()
    np.testing.assert_array_equal(L1().prox(W, 0.5), ones.prox(W, 0.5))


def test_factors_are_a_copy_that_nobody_can_change():
    given = np.array([[1.0, 2.0]])
    g = WeightedL1(given)
    given[:] = 9.0
    assert g.value([[1.0, 1.0]]) == 3.0
    with pytest.raises(ValueError, match="read-only"):
        g.weights[0, 0] = 5.0
    with pytest.raises(AttributeError):
        g.weights = given


def test_penalty_survives_pickling():
    g = WeightedL1([[1.0, 2.0]])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(g)).weights, g.weights)


@pytest.mark.parametrize("name", ["l1", "L1"])
def test_names_stand_for_penalties(name):
    assert type(get_penalty(name)) is L1
    made = WeightedL1(2.0)
    assert get_penalty(made) is made


def test_thresholds_of_a_problem_are_infinite_where_the_mask_forbids():
    X, W = np.eye(4), np.ones(SHAPE)
    mask = np.random.default_rng(3).random(SHAPE) < 0.5
    thresholds = LayerProblem(X, W, penalty=WeightedL1([1.0, 2.0, 3.0, 4.0]), mask=mask).thresholds()
    np.testing.assert_array_equal(thresholds, np.where(mask, [1.0, 2.0, 3.0, 4.0], np.inf))
