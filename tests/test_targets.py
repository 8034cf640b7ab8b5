"""Intervals of pre-activations: projection, residual, shift."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sisopt.errors import InvalidInputError
from sisopt.targets import Interval

INF = np.inf
numbers = st.floats(-1e6, 1e6)
vectors = arrays(np.float64, 6, elements=numbers)
ends = arrays(np.float64, 6, elements=numbers | st.sampled_from([-INF, INF]))


@st.composite
def intervals(draw: st.DrawFn) -> Interval:
    one, other = draw(ends), draw(ends)
    lo, hi = np.minimum(one, other), np.maximum(one, other)
    # {inf} and {-inf} hold no real number.
    return Interval(np.where(lo == INF, 0.0, lo), np.where(hi == -INF, 0.0, hi))


def test_residual_is_the_signed_distance_to_the_nearest_end():
    target = Interval(np.array([-INF, 1.0, 2.0, -1.0]), np.array([0.0, 1.0, INF, 1.0]))
    np.testing.assert_array_equal(target.residual([3.0, 3.0, -1.0, 0.5]), [3.0, 2.0, -3.0, 0.0])
    np.testing.assert_array_equal(target.project([3.0, 3.0, -1.0, 0.5]), [0.0, 1.0, 2.0, 0.5])


@given(intervals(), vectors)
def test_projection_is_in_the_set_and_leaves_it_alone(target, z):
    nearest = target.project(z)
    assert target.contains(nearest)
    np.testing.assert_array_equal(target.project(nearest), nearest)
    np.testing.assert_array_equal(target.residual(nearest), 0.0)


@given(intervals(), vectors, vectors)
def test_projection_is_firmly_nonexpansive(target, u, v):
    moved = target.project(u) - target.project(v)
    assert np.all(moved**2 <= moved * (u - v) * (1 + 1e-12) + 1e-9)


@given(intervals(), vectors, vectors)
def test_no_point_of_the_set_is_nearer_than_the_projection(target, z, other):
    assert np.all(np.abs(target.residual(z)) <= np.abs(z - target.project(other)))


@given(intervals(), vectors, vectors)
def test_shifted_set_holds_z_less_the_shift(target, z, s):
    inside = target.project(z)
    assert target.shifted(s).contains(inside - s)
    np.testing.assert_allclose(target.shifted(s).residual(z - s), target.residual(z), atol=1e-8)


def test_shift_broadcasts_over_samples():
    moved = Interval(np.zeros((3, 2)), np.full((3, 2), INF)).shifted([1.0, 2.0])
    np.testing.assert_array_equal(moved.lo, np.tile([-1.0, -2.0], (3, 1)))
    assert np.all(moved.hi == INF)


def test_contains_allows_the_given_excess_and_no_more():
    target = Interval(np.array([0.0]), np.array([1.0]))
    assert target.contains([1.0])
    assert not target.contains([1.25])
    assert target.contains([1.25], atol=0.25)
    assert not target.contains([-0.5], atol=0.25)


def test_is_point_needs_every_entry_to_be_one():
    assert Interval(np.ones(3), np.ones(3)).is_point
    assert not Interval(np.zeros(3), np.array([0.0, 0.0, 1.0])).is_point


def test_ends_are_kept_as_float64():
    target = Interval(np.array([0, 1]), np.array([1, 2], dtype=np.float32))
    assert target.lo.dtype == target.hi.dtype == np.float64


def test_pickle_keeps_the_ends():
    target = Interval(np.array([-INF, 0.5]), np.array([0.0, INF]))
    copy = pickle.loads(pickle.dumps(target))
    np.testing.assert_array_equal(copy.lo, target.lo)
    np.testing.assert_array_equal(copy.hi, target.hi)


def test_attributes_cannot_be_reassigned():
    with pytest.raises(AttributeError):
        Interval(np.zeros(1), np.ones(1)).lo = np.ones(1)


def test_ends_of_two_shapes_are_refused():
    with pytest.raises(InvalidInputError, match=r"one shape, got \(2,\) and \(3,\)"):
        Interval(np.zeros(2), np.ones(3))


@pytest.mark.parametrize("lo", [2.0, np.nan])
def test_ends_out_of_order_are_refused(lo):
    with pytest.raises(InvalidInputError, match="lo <= hi"):
        Interval(np.array([lo]), np.array([1.0]))
