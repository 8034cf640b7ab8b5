"""Kernels against brute force in plain numpy and scipy; also without numba, and with its bounds checks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest
from scipy.optimize import brentq

from sisopt.kernels.coordinate_descent import BLOCK, block_sweeps, gather, lasso, rescale, submatrix
from sisopt.kernels.intervals import gradient_rows, line_search, refit_bias_rows

INF = np.inf
NOTHING = np.full((1, 1), np.nan)  # the centre where there is no fidelity: never read
RERUN = "SISOPT_KERNELS_RERUN"
SIZES = [1, 2, 7, 40]


class Rows:
    """Rows of points, half-lines, boxes and lines, some z on an end, some samples without weight."""

    def __init__(self, n=40, *, beta=0.0, shared=True, seed=0, rows=3, points=True, zeros=True):
        rng = np.random.default_rng([seed, n, int(10 * beta), shared])
        shape = (rows, n)
        self.z = rng.standard_normal(shape)
        end, width = rng.standard_normal(shape), rng.exponential(size=shape)
        kind = rng.integers(0 if points else 1, 5, shape)
        self.lo = np.choose(kind, [end, end, -INF, end, -INF])
        self.hi = np.choose(kind, [end, INF, end, end + width, INF])
        on_end = rng.random(shape) < 0.1
        self.z[on_end] = np.clip(self.z, self.lo, self.hi)[on_end]
        self.w = rng.uniform(0.1, 2.0, (1 if shared else rows, n))
        self.v = rng.uniform(0.1, 2.0, n)
        if zeros:
            self.w[:, rng.random(n) < 0.2] = 0.0
            self.v[rng.random(n) < 0.2] = 0.0
        self.beta = beta
        self.center = rng.standard_normal(shape) if beta > 0 else NOTHING
        self.bias = rng.standard_normal(rows)

    @property
    def sides(self):
        return self.lo, self.hi, self.w, self.v, self.center, self.beta

    def parts(self, i):
        """Return row i's interval, weights, and weights and centre of its fidelity."""
        w = self.w[0] if self.w.shape[0] == 1 else self.w[i]
        center = self.center[i] if self.beta > 0 else np.zeros_like(self.v)
        return self.lo[i], self.hi[i], w, self.beta * self.v, center


def gradient_of(z, lo, hi, w, pull, center):
    return w * (z - np.clip(z, lo, hi)) + pull * (z - center)


def loss_of(z, lo, hi, w, pull, center):
    return 0.5 * np.sum(w * (z - np.clip(z, lo, hi)) ** 2) + 0.5 * np.sum(pull * (z - center) ** 2)


# --- gradient_rows ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_gradient_rows_agree_with_numpy_and_touch_no_other_row(n, shared, beta):
    rows = Rows(n, beta=beta, shared=shared)
    gradient, loss = np.full((3, n), np.nan), np.full(3, np.nan)
    active = np.full((3, n), 7, np.uint8).view(np.bool_)
    before = {name: np.copy(getattr(rows, name)) for name in ("z", "lo", "hi", "w", "v", "center")}
    gradient_rows(np.array([2, 0]), rows.z, *rows.sides, gradient, active, loss)
    for i in (0, 2):
        np.testing.assert_allclose(gradient[i], gradient_of(rows.z[i], *rows.parts(i)), rtol=1e-14, atol=1e-15)
        np.testing.assert_allclose(loss[i], loss_of(rows.z[i], *rows.parts(i)), rtol=1e-13, atol=0)
        outside = (rows.z[i] < rows.lo[i]) | (rows.z[i] > rows.hi[i])
        curved = (outside | (rows.lo[i] == rows.hi[i])) & (rows.parts(i)[2] > 0)
        np.testing.assert_array_equal(active[i], curved)
    assert np.isnan(gradient[1]).all()
    assert np.isnan(loss[1])
    assert (active[1].view(np.uint8) == 7).all()
    for name, value in before.items():
        np.testing.assert_array_equal(getattr(rows, name), value)


def test_gradient_vanishes_inside_the_intervals_and_on_their_ends():
    lo, hi = np.array([[0.0, -INF, 1.0, -INF]]), np.array([[INF, 0.0, 1.0, INF]])
    z = np.array([[0.0, 0.0, 1.0, 1e300]])
    gradient, active, loss = np.full((1, 4), np.nan), np.zeros((1, 4), np.bool_), np.full(1, np.nan)
    gradient_rows(np.arange(1), z, lo, hi, np.ones((1, 4)), np.ones(4), NOTHING, 0.0, gradient, active, loss)
    np.testing.assert_array_equal(gradient, 0.0)
    assert loss[0] == 0.0
    np.testing.assert_array_equal(active, [[False, False, True, False]])


# --- refit_bias_rows -------------------------------------------------------------------------------------------------


def best_shift(z, lo, hi, w, pull, center, anchor):
    """Return the minimiser of the loss of z + t that is nearest to the anchor."""
    if not pull.any():
        lowest, highest = np.max((lo - z)[w > 0], initial=-INF), np.min((hi - z)[w > 0], initial=INF)
        if lowest <= highest:
            return float(np.clip(anchor, lowest, highest))
    ends = np.concatenate([lo - z, hi - z, center - z])
    ends = ends[np.isfinite(ends)]

    def slope(t):
        return gradient_of(z + t, lo, hi, w, pull, center).sum()

    return brentq(slope, ends.min() - 1.0, ends.max() + 1.0, xtol=1e-15, rtol=1e-15, maxiter=500)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize("points", [True, False])
def test_refit_bias_finds_the_best_bias_nearest_to_the_anchor(seed, n, shared, beta, points):
    rows = Rows(n, beta=beta, shared=shared, seed=seed, points=points)
    z, bias, anchor = rows.z.copy(), rows.bias.copy(), rows.bias + np.array([0.5, 0.0, -2.0])
    passes = refit_bias_rows(np.array([0, 2]), z, *rows.sides, bias, anchor)
    assert passes >= 2
    for i in (0, 2):
        parts = rows.parts(i)
        t = best_shift(rows.z[i], *parts, anchor[i] - rows.bias[i])
        np.testing.assert_allclose(bias[i] - rows.bias[i], t, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(z[i], rows.z[i] + t, rtol=1e-12, atol=1e-12)
        terms = gradient_of(z[i], *parts)
        assert abs(terms.sum()) <= 1e-13 * max(np.abs(terms).sum(), np.sum(parts[2]) + np.sum(parts[3]))
    np.testing.assert_array_equal(z[1], rows.z[1])
    assert bias[1] == rows.bias[1]


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_refit_bias_is_exact_whatever_the_scale_and_offset(scale, offset):
    rows = Rows(60, points=True, zeros=False, seed=3)
    lo, hi, z = scale * rows.lo, scale * rows.hi, scale * rows.z + scale * offset
    bias, w = np.zeros(3), np.ones((1, 60))
    refit_bias_rows(np.arange(3), z, lo, hi, w, np.ones(60), NOTHING, 0.0, bias, np.zeros(3))
    for i in range(3):
        terms = gradient_of(z[i], lo[i], hi[i], w[0], 0.0, 0.0)
        assert abs(terms.sum()) <= 1e-13 * np.abs(terms).sum() + 60 * np.finfo(float).eps * scale * max(1.0, offset)


@pytest.mark.parametrize(
    ("anchor", "expected"), [(-5.0, -5.0), (-1.0, -1.0), (0.25, -0.5), (1e9, -0.5)], ids=["far", "in", "out", "away"]
)
def test_bias_of_a_dead_neuron_moves_only_as_far_as_it_must(anchor, expected):
    z = np.array([[0.5, -3.0, 0.25]])  # at bias 0: any bias up to -0.5 leaves no residual
    lo, hi = np.full((1, 3), -INF), np.zeros((1, 3))
    bias = np.zeros(1)
    refit_bias_rows(np.arange(1), z, lo, hi, np.ones((1, 3)), np.ones(3), NOTHING, 0.0, bias, np.array([anchor]))
    assert bias[0] == expected
    np.testing.assert_array_equal(z[0], np.array([0.5, -3.0, 0.25]) + expected)


def test_samples_without_weight_have_no_say_in_the_bias():
    z = np.array([[1.0, 50.0, -7.0]])
    point = np.array([[3.0, 0.0, 0.0]])
    weights = np.array([[1.0, 0.0, 0.0]])
    bias = np.zeros(1)
    refit_bias_rows(np.arange(1), z, point, point, weights, np.ones(3), NOTHING, 0.0, bias, np.zeros(1))
    assert bias[0] == 2.0
    refit_bias_rows(np.arange(1), z, point, point, 0.0 * weights, np.ones(3), NOTHING, 0.0, bias, np.array([-4.0]))
    assert bias[0] == -4.0
    np.testing.assert_array_equal(z, [[-3.0, 46.0, -11.0]])


def test_bias_moves_even_by_little():
    z, point = np.array([[1.0, -1.0 + 2e-12]]), np.zeros((1, 2))
    bias = np.zeros(1)
    refit_bias_rows(np.arange(1), z, point, point, np.ones((1, 2)), np.ones(2), NOTHING, 0.0, bias, np.zeros(1))
    np.testing.assert_allclose(bias, -1e-12, rtol=1e-3)


# --- line_search -----------------------------------------------------------------------------------------------------


def search(z, step, lo, hi, w, v, center, beta, x, direction, thresholds, accuracy):
    """Search along a line from the slope at its start."""
    slope = float(np.sum(gradient_of(z, lo, hi, w, beta * v, center if beta > 0 else z) * step))
    return line_search(z, step, lo, hi, w, v, center, beta, slope, x, direction, thresholds, accuracy)


def line_case(seed, n=40, m=8, beta=0.0):
    """Return the arguments of a line search along which the objective falls at first."""
    rows = Rows(n, beta=beta, seed=seed, rows=1)
    rng = np.random.default_rng([seed, n, m])
    lo, hi, w, pull, center = rows.parts(0)
    step = rng.standard_normal(n)
    if np.sum(gradient_of(rows.z[0], lo, hi, w, pull, center) * step) > 0:
        step = -step
    x = np.where(rng.random(m) < 0.3, 0.0, rng.standard_normal(m))
    direction = np.where(rng.random(m) < 0.2, 0.0, rng.standard_normal(m))
    direction[: m // 3] = -x[: m // 3] / 2 ** rng.integers(0, 3, m // 3)  # reach zero at 1, 2 or 4
    thresholds = rng.exponential(0.3, m)
    return rows.z[0], step, lo, hi, w, rows.v, center, beta, x, direction, thresholds


def along_line(alpha, z, step, lo, hi, w, v, center, beta, x, direction, thresholds):
    return loss_of(z + alpha * step, lo, hi, w, beta * v, center) + np.sum(thresholds * np.abs(x + alpha * direction))


def least_along_line(case):
    """Return the least value for 0 < alpha <= 32: at a kink or at the stationary point of a piece."""
    z, step, lo, hi, w, v, center, beta, x, direction, thresholds = case
    with np.errstate(divide="ignore", invalid="ignore"):
        kinks = np.concatenate([(lo - z) / step, (hi - z) / step, -x / direction])
    kinks = np.unique(np.concatenate([kinks[(kinks > 0) & (kinks < 32)], [0.0, 32.0]]))
    values = [along_line(alpha, *case) for alpha in kinks]
    for left, right in zip(kinks[:-1], kinks[1:], strict=True):
        third = (right - left) / 3.0
        f = [along_line(left + s * third, *case) for s in (0.5, 1.5, 2.5)]
        bend = f[0] - 2.0 * f[1] + f[2]
        if bend > 0:
            stationary = left + 1.5 * third + 0.5 * third * (f[0] - f[2]) / bend
            values.append(along_line(np.clip(stationary, left, right), *case))
    return min(values)


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_line_search_minimises_along_the_line(seed, beta):
    case = line_case(seed, beta=beta)
    alpha, passes = search(*case, 0.0)
    descends = along_line(1e-7, *case) < along_line(0.0, *case)
    assert (alpha > 0.0) == descends
    assert alpha <= 32.0
    assert 0 <= passes <= 60
    assert (passes > 0) == descends
    if descends:
        best = least_along_line(case)
        assert along_line(alpha, *case) <= best + 1e-12 * abs(best)


def test_line_search_stops_where_the_slope_fell_to_the_accuracy():
    saved = 0
    for seed in range(20):
        case = line_case(seed)
        alpha, passes = search(*case, 0.1)
        saved += search(*case, 0.0)[1] - passes
        h = 1e-6
        start = (along_line(h, *case) - along_line(0.0, *case)) / h
        if alpha > 0:
            below = (along_line(alpha, *case) - along_line(alpha - h, *case)) / h
            above = (along_line(alpha + h, *case) - along_line(alpha, *case)) / h
            assert below <= -0.1 * start + 1e-4
            assert above >= 0.1 * start - 1e-4
    assert saved > 0


@pytest.mark.parametrize(("accuracy", "expected"), [(0.0, 0.9375), (0.05, 0.9375), (0.07, 1.0)])
def test_full_step_is_kept_where_it_is_accurate_enough(accuracy, expected):
    # the slope is alpha - 0.9375: at the full step a fifteenth of that at 0
    point, one, none = np.zeros(1), np.ones(1), np.zeros(1)
    alpha, _ = search(-0.9375 * one, one, point, point, one, one, NOTHING[0], 0.0, none, none, none, accuracy)
    assert alpha == expected


@pytest.mark.parametrize("kink", [0.1, 1.0, 2.0, 3.0, 29.0])
def test_line_search_stops_at_a_kink_of_the_penalty(kink):
    x, direction, thresholds = np.array([kink]), np.array([-1.0]), np.array([5.0])
    empty = np.zeros(1)
    sides = (np.full(1, -INF), np.full(1, INF), np.ones(1), np.ones(1), NOTHING[0], 0.0)
    alpha, _ = search(empty, empty, *sides, x, direction, thresholds, 0.0)
    assert abs(alpha - kink) <= 2 * np.finfo(float).eps * kink


def test_full_step_to_zero_is_taken_in_full():
    # rounding may not leave a weight of 1e-17 where a full step ends at zero
    x = np.array([0.1, 0.3, 1 / 3])
    point = np.zeros(1)
    sides = (point, point, np.ones(1), np.ones(1), NOTHING[0], 0.0)
    alpha, passes = search(np.full(1, 1e-3), np.full(1, -1e-3), *sides, x, -x, np.full(3, 0.2), 0.0)
    assert alpha == 1.0
    assert passes == 1


def test_line_search_goes_nowhere_uphill_or_on_the_flat():
    lo, hi, ones = np.full(3, -INF), np.zeros(3), np.ones(3)
    none = np.zeros(1)
    uphill = search(ones, ones, lo, hi, ones, ones, NOTHING[0], 0.0, none, none, none, 0.0)
    flat = search(-ones, -ones, lo, hi, ones, ones, NOTHING[0], 0.0, none, none, none, 0.0)
    assert uphill[0] == flat[0] == 0.0


@pytest.mark.parametrize("distance", [31.0, 32.0, 33.0, 1e6])
def test_line_search_goes_no_further_than_32_steps(distance):
    point, one, none = np.zeros(1), np.ones(1), np.zeros(1)
    z = np.array([distance])
    alpha, _ = search(z, -one, point, point, one, one, NOTHING[0], 0.0, none, none, none, 0.0)
    assert alpha == min(distance, 32.0)


# --- lasso -----------------------------------------------------------------------------------------------------------


def violation(x, r, thresholds):
    signed = np.abs(r + np.sign(x) * np.where(x != 0, thresholds, 0.0))
    return np.where(x != 0, signed, np.maximum(np.abs(r) - thresholds, 0.0)).max(initial=0.0)


def lasso_case(kind, m, seed):
    """Return H and a gradient in its range, at a start that is not zero everywhere."""
    rng = np.random.default_rng([seed, m])
    rank = max(1, m // 2) if kind == "singular" else 2 * m
    A = rng.standard_normal((rank, m))
    if kind == "duplicates":
        A[:, m // 2 :] = A[:, : m - m // 2]
    if kind == "collinear":
        A += 100.0 * rng.standard_normal((rank, 1))
    scale = 10.0 ** rng.uniform(-6, 6, m) if kind == "scaled" else np.ones(m)
    A *= scale
    if kind == "dead":
        A[:, ::3] = 0.0
    start = np.where(rng.random(m) < 0.5, 0.0, rng.standard_normal(m)) / scale
    q = A.T @ rng.standard_normal(rank)
    thresholds = 0.3 * np.abs(q).max() * rng.uniform(0.2, 1.0, m) / scale.max() * scale
    return A.T @ A, q, start, thresholds + (0.1 if kind == "dead" else 0.0)


KINDS = ["full", "singular", "duplicates", "collinear", "scaled", "dead"]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("m", [1, 2, 5, 12])
@pytest.mark.parametrize("kind", KINDS)
def test_lasso_ends_where_its_optimality_conditions_hold(kind, m, seed):
    H, q, start, thresholds = lasso_case(kind, m, seed)
    r = q + H @ start
    x, moving = start.copy(), r.copy()
    tolerance = 1e-9 * violation(start, r, thresholds)
    work = lasso(H, moving, x, thresholds, tolerance, 100)
    rounding = 1e-13 * (np.abs(H) @ np.abs(x) + np.abs(H) @ np.abs(start) + np.abs(q)).max()
    np.testing.assert_allclose(moving, q + H @ x, rtol=0, atol=rounding)
    assert violation(x, moving, thresholds) <= tolerance
    assert violation(x, q + H @ x, thresholds) <= tolerance + rounding
    assert (work > 0) == (tolerance > 0)


@pytest.mark.parametrize("kind", KINDS)
def test_lasso_never_ascends(kind):
    H, q, start, thresholds = lasso_case(kind, 12, 7)

    def objective(x):
        return 0.5 * x @ H @ x + q @ x + thresholds @ np.abs(x)

    last = objective(start)
    for rounds in range(12):
        x, r = start.copy(), q + H @ start
        lasso(H, r, x, thresholds, 0.0, rounds)
        assert objective(x) <= last + 1e-12 * (abs(last) + np.abs(q) @ np.abs(x))
        last = objective(x)


def test_lasso_without_rounds_or_already_within_tolerance_changes_nothing():
    H, q, start, thresholds = lasso_case("full", 5, 0)
    for tolerance, rounds in ((0.0, 0), (INF, 10)):
        x, r = start.copy(), q + H @ start
        assert lasso(H, r, x, thresholds, tolerance, rounds) == 0.0
        np.testing.assert_array_equal(x, start)
        np.testing.assert_array_equal(r, q + H @ start)


@pytest.mark.parametrize("kind", ["full", "singular", "duplicates", "collinear"])
def test_lasso_without_thresholds_solves_the_linear_system(kind):
    H, q, start, _ = lasso_case(kind, 8, 1)
    x, r = start.copy(), q + H @ start
    lasso(H, r, x, np.zeros(8), 1e-10 * np.abs(q).max(), 100)
    assert np.abs(q + H @ x).max() <= 1.01e-10 * np.abs(q).max() + 1e-13 * (np.abs(H) @ np.abs(x)).max()


@pytest.mark.parametrize("kind", ["full", "singular", "duplicates"])
def test_lasso_never_moves_a_coordinate_with_an_infinite_threshold(kind):
    H, q, start, thresholds = lasso_case(kind, 9, 2)
    thresholds[::2], start[::2] = INF, 0.0
    x, r = start.copy(), q + H @ start
    lasso(H, r, x, thresholds, 1e-10, 100)
    np.testing.assert_array_equal(x[::2], 0.0)
    np.testing.assert_allclose(r, q + H @ x, rtol=0, atol=1e-12)
    assert violation(x[1::2], r[1::2], thresholds[1::2]) <= 1e-10
    # the others are solved as if it were not there
    alone, s = start[1::2].copy(), (q + H @ start)[1::2].copy()
    lasso(np.ascontiguousarray(H[1::2, 1::2]), s, alone, thresholds[1::2].copy(), 1e-10, 100)
    if kind == "full":
        np.testing.assert_allclose(x[1::2], alone, rtol=0, atol=1e-8)


def test_lasso_sets_coordinates_without_curvature_to_zero():
    H = np.diag([2.0, 0.0, 0.0])
    x, r, thresholds = np.array([1.0, 5.0, -3.0]), np.array([4.0, 0.05, 0.0]), np.full(3, 0.1)
    lasso(H, r, x, thresholds, 1e-12, 100)
    # 1 + d minimises d^2 + 4 d + 0.1 |1 + d|
    np.testing.assert_allclose(x, [-0.95, 0.0, 0.0], rtol=1e-14)
    assert x[1] == x[2] == 0.0


def test_lasso_of_nothing_is_nothing():
    assert lasso(np.zeros((0, 0)), np.zeros(0), np.zeros(0), np.zeros(0), 0.0, 10) == 0.0


# --- block_sweeps ----------------------------------------------------------------------------------------------------


def sweeps_case(kind, m):
    """Return H shared by three problems, and Q, a start and thresholds as columns; the start is zero where H is."""
    H, _, start, thresholds = lasso_case(kind, m, 0)
    rng = np.random.default_rng(m)
    Q = H @ rng.standard_normal((m, 3))
    starts = np.ascontiguousarray(start[:, None] * [0.0, 1.0, -2.0])
    return H, Q, starts, np.ascontiguousarray(thresholds[:, None] * [1.0, 0.5, 0.1])


def column_objectives(H, Q, W, thresholds):
    return np.sum(W * (0.5 * H @ W - Q), axis=0) + np.sum(thresholds * np.abs(W), axis=0)


@pytest.mark.parametrize("m", [5, BLOCK, BLOCK + 9])
@pytest.mark.parametrize("kind", KINDS)
def test_block_sweeps_never_ascend(kind, m):
    H, Q, W, thresholds = sweeps_case(kind, m)
    last = column_objectives(H, Q, W, thresholds)
    for _ in range(8):
        size = np.abs(H) @ np.abs(W)
        block_sweeps(H, Q, W, thresholds, 1)
        now = column_objectives(H, Q, W, thresholds)
        rounding = 1e-12 * np.sum(np.abs(W) * (size + np.abs(H) @ np.abs(W) + np.abs(Q)), axis=0)
        assert (now <= last + rounding + 1e-12 * np.abs(last)).all()
        last = now


@pytest.mark.parametrize("m", [1, 7, BLOCK + 3])
def test_block_sweeps_converge_to_where_optimality_conditions_hold(m):
    H, Q, W, thresholds = sweeps_case("full", m)
    block_sweeps(H, Q, W, thresholds, 600)
    for i in range(W.shape[1]):
        assert violation(W[:, i], H @ W[:, i] - Q[:, i], thresholds[:, i]) <= 1e-9 * np.abs(Q).max()


def test_block_sweeps_leave_forbidden_coordinates_and_drop_those_without_curvature():
    H = np.diag([2.0, 0.0, 1.0])
    Q, W = np.array([[4.0], [0.0], [9.0]]), np.array([[0.0], [5.0], [0.0]])
    block_sweeps(H, Q, W, np.array([[1.0], [0.1], [INF]]), 1)
    np.testing.assert_array_equal(W[:, 0], [1.5, 0.0, 0.0])


# --- gather, rescale and submatrix -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("layout", ["plain", "fortran", "strided", "reversed", "read-only"])
def test_gather_picks_samples_and_columns_and_centres_them_in_float64(dtype, layout):
    rng = np.random.default_rng(0)
    base = (rng.standard_normal((20, 12)) + 1000.0).astype(dtype)
    inputs = {
        "plain": base,
        "fortran": np.asfortranarray(base),
        "strided": base[::2, 1::2],
        "reversed": base[::-1, ::-1],
        "read-only": base,
    }[layout].view()
    inputs.flags.writeable = layout != "read-only"
    center = rng.standard_normal(inputs.shape[1]) + 1000.0
    samples, columns = np.array([7, 0, 7, 3]), np.array([5, 0, 2])
    out = np.full((4, 3), np.nan)
    gather(inputs, samples, columns, center, out)
    np.testing.assert_array_equal(out, inputs[np.ix_(samples, columns)].astype(np.float64) - center[columns])


def test_gather_of_no_samples_writes_nothing():
    out = np.full((2, 1), np.nan)
    gather(np.ones((3, 2)), np.array([], np.intp), np.array([0]), np.zeros(2), out)
    assert np.isnan(out).all()


def test_rescale_multiplies_rows_and_columns():
    matrix, unit = np.arange(9.0).reshape(3, 3), np.array([1.0, 2.0, -3.0])
    expected = unit[:, None] * matrix * unit
    rescale(matrix, unit)
    np.testing.assert_array_equal(matrix, expected)


def test_submatrix_picks_rows_and_columns():
    matrix = np.random.default_rng(0).standard_normal((6, 6))
    place = np.array([4, 1, 5])
    out = np.full((3, 3), np.nan)
    submatrix(matrix, place, out)
    np.testing.assert_array_equal(out, matrix[np.ix_(place, place)])


# --- the same once more, as plain Python and with bounds checks ------------------------------------------------------


@pytest.mark.skipif(RERUN not in os.environ, reason="checks that the rerun below is one")
def test_rerun_is_without_compilation_or_with_bounds_checks():
    assert hasattr(lasso, "py_func") != bool(numba.config.DISABLE_JIT)
    assert numba.config.DISABLE_JIT or numba.config.BOUNDSCHECK


@pytest.mark.skipif(RERUN in os.environ, reason="this is the rerun")
@pytest.mark.parametrize("variable", ["NUMBA_DISABLE_JIT", "NUMBA_BOUNDSCHECK"])
def test_kernels_pass_these_tests_without_compilation_and_with_bounds_checks(variable, tmp_path):
    environment = {**os.environ, RERUN: "1", variable: "1", "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "pytest", __file__, "-q", "-x", "-p", "no:cacheprovider"]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert " passed" in done.stdout
