"""Max-pooling: windows against a plain loop, boxes that keep the pooled outputs, refusals."""

from __future__ import annotations

import itertools
import math
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sisopt.activations import (
    LeakyReLU,
    MaxPool,
    activation_names,
    get_activation,
    pooling_windows,
    register_activation,
    registry,
)
from sisopt.errors import InvalidInputError, UnsupportedError

INF = np.inf
INNER = [name for name in activation_names() if get_activation(name).nondecreasing]
OVERLAPPING = [[0, 1, 2], [2, 3, 4], [4, 5, -1], [-1, 7, 1]]  # sample 6 is in none

quick = settings(max_examples=25, deadline=None)
# Halves make ties and kinks.
rows = arrays(np.float64, (2, 9), elements=st.floats(-8, 8) | st.integers(-6, 12).map(lambda i: i / 2))


def slow_windows(n_images, height, width, kernel, stride, padding, dilation, ceil_mode):
    """Pool by the definition of PyTorch, position by position, over a padded image."""

    def starts(n, k, s, p, d):
        found, start = [], -p
        while start + d * (k - 1) < n + p or (ceil_mode and start < n and start + d * (k - 1) - s < n + p - 1):
            found.append(start)
            start += s
        return found

    windows = []
    for image in range(n_images):
        for top in starts(height, kernel[0], stride[0], padding[0], dilation[0]):
            for left in starts(width, kernel[1], stride[1], padding[1], dilation[1]):
                window = []
                for i, j in itertools.product(range(kernel[0]), range(kernel[1])):
                    row, column = top + i * dilation[0], left + j * dilation[1]
                    inside = 0 <= row < height and 0 <= column < width
                    window.append((image * height + row) * width + column if inside else -1)
                windows.append(window)
    return windows


# Windows -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("size", [(4, 4), (5, 7), (6, 5)])
def test_windows_are_those_of_a_plain_loop(size, ceil_mode):
    checked = 0
    for kernel, stride, padding, dilation in itertools.product(
        [(2, 2), (3, 2), (3, 3), (1, 2)], [(1, 1), (2, 2), (3, 1)], [(0, 0), (1, 1), (1, 0)], [(1, 1), (2, 1)]
    ):
        extents = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
        if any(2 * p > e for p, e in zip(padding, extents, strict=True)):
            continue
        options = {"stride": stride, "padding": padding, "dilation": dilation, "ceil_mode": ceil_mode}
        expected = slow_windows(2, *size, kernel, stride, padding, dilation, ceil_mode)
        if not expected:
            with pytest.raises(InvalidInputError, match="no window"):
                pooling_windows(2, *size, kernel, **options)
            continue
        found = pooling_windows(2, *size, kernel, **options)
        np.testing.assert_array_equal(found, expected, err_msg=str((kernel, options)))
        checked += 1
    assert checked > 30


@pytest.mark.parametrize(
    ("n", "kernel", "stride", "padding", "dilation", "ceil_mode", "length"),
    [  # output lengths of torch.nn.MaxPool1d
        *[
            (7, 2, 2, 0, 1, False, 3),
            (7, 2, 2, 0, 1, True, 4),
            (112, 3, 2, 1, 1, False, 56),
            (112, 3, 2, 1, 1, True, 57),
        ],
        *[(4, 3, 3, 1, 1, True, 2), (5, 2, 3, 1, 1, True, 2), (8, 3, 2, 0, 2, False, 2), (8, 3, 2, 0, 2, True, 3)],
        *[(2, 3, 2, 0, 1, True, 1), (3, 1, 2, 0, 1, True, 2), (4, 1, 3, 0, 1, True, 2), (3, 2, 4, 1, 1, True, 1)],
    ],
)
def test_number_of_windows_is_that_of_pytorch(n, kernel, stride, padding, dilation, ceil_mode, length):
    options = {"stride": (1, stride), "padding": (0, padding), "dilation": (1, dilation), "ceil_mode": ceil_mode}
    assert pooling_windows(1, 1, n, (1, kernel), **options).shape == (length, kernel)


def test_default_stride_is_the_kernel_size():
    np.testing.assert_array_equal(pooling_windows(1, 4, 4, 2)[:2], [[0, 1, 4, 5], [2, 3, 6, 7]])
    np.testing.assert_array_equal(pooling_windows(1, 4, 4, 2), pooling_windows(1, 4, 4, (2, 2), stride=2))


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((0, 4, 4, 2), {}, "n_images must be an integer of at least 1, got 0"),
        ((1, 4, 4.0, 2), {}, "width must be an integer"),
        ((1, 4, 4, 0), {}, "kernel_size must be an integer of at least 1"),
        ((1, 4, 4, (2, 2, 2)), {}, r"kernel_size must be an integer or a pair of them, got \(2, 2, 2\)"),
        ((1, 4, 4, 2), {"stride": 0}, "stride must be"),
        ((1, 4, 4, 2), {"dilation": True}, "dilation must be"),
        ((1, 4, 4, 2), {"padding": -1}, "padding must be an integer of at least 0"),
        ((1, 4, 4, 2), {"padding": 2}, "padding must be at most half of the extent 2"),
        ((1, 4, 4, 5), {}, "no window of extent 5 fits into 4 positions"),
        ((1, 1, 1, 2), {"padding": 2, "dilation": 3}, "would hold padding alone"),
    ],
)
def test_impossible_windows_are_refused(arguments, options, message):
    with pytest.raises(InvalidInputError, match=message):
        pooling_windows(*arguments, **options)


# Forward -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inner", ["relu", "identity", LeakyReLU(0.2), "sigmoid"])
def test_forward_is_the_largest_activated_entry_of_each_window(inner):
    z = np.random.default_rng(0).normal(size=(3, 2, 9))
    outputs = get_activation(inner).forward(z)
    expected = [outputs[..., [k for k in window if k >= 0]].max(axis=-1) for window in OVERLAPPING]
    np.testing.assert_array_equal(MaxPool(OVERLAPPING, inner).forward(z), np.stack(expected, axis=-1))


def test_forward_pools_images_by_channel():
    images = np.random.default_rng(1).normal(size=(5, 3, 6, 4))  # (channels, images, height, width)
    pool = MaxPool(pooling_windows(3, 6, 4, 2))
    expected = np.maximum(images, 0).reshape(5, 3, 3, 2, 2, 2).max(axis=(3, 5))
    np.testing.assert_array_equal(pool.forward(images.reshape(5, -1)), expected.reshape(5, -1))


@pytest.mark.parametrize("shape", [(9,), (0, 9), (4, 9), (2, 3, 9), (4, 12)])
def test_all_leading_shapes_and_spare_samples_are_welcome(shape):
    z = np.random.default_rng(2).normal(size=shape)
    pool = MaxPool(OVERLAPPING)
    target = pool.preimage(z)
    assert pool.forward(z).shape == (*shape[:-1], 4)
    assert target.lo.shape == target.hi.shape == shape
    assert np.all(target.lo[..., 6] == -INF)
    assert np.all(target.hi[..., 6] == INF)


# Preimages -----------------------------------------------------------------------------------------------------------


def slow_box(z, windows, lo, hi):
    """Intersect what every window asks of its entries, one entry at a time."""
    low, high = np.full(z.size, -INF), np.full(z.size, INF)
    for window in windows:
        entries = [k for k in window if k >= 0]
        winner = max(entries, key=lambda k: (z[k], -entries.index(k)))
        for k in entries:
            low[k] = max(low[k], lo[k] if k == winner else -INF)
            high[k] = min(high[k], hi[winner])
    return low, high


@pytest.mark.parametrize("inner", INNER)
@quick
@given(z0=rows, tolerance=st.sampled_from([0.0, 0.01, 0.5]))
def test_box_is_what_the_windows_ask_of_each_entry(inner, z0, tolerance):
    target = MaxPool(OVERLAPPING, inner).preimage(z0, tolerance)
    own = get_activation(inner).preimage(z0, tolerance)
    for i in range(2):
        low, high = slow_box(z0[i], OVERLAPPING, own.lo[i], own.hi[i])
        np.testing.assert_array_equal(target.lo[i], low)
        np.testing.assert_array_equal(target.hi[i], high)


@pytest.mark.parametrize("inner", INNER)
@quick
@given(z0=rows, z=rows, tolerance=st.sampled_from([0.0, 1e-6, 0.1, 0.5]))
def test_points_of_the_box_keep_the_pooled_outputs(inner, z0, z, tolerance):
    pool = MaxPool(OVERLAPPING, inner)
    y = pool.forward(z0)
    target = pool.preimage(z0, tolerance)
    assert np.all((target.lo <= z0) & (z0 <= target.hi))
    kept = pool.forward(target.project(10 * z))
    assert np.all(np.abs(kept - y) <= tolerance + 1e-14 * np.maximum(np.abs(y), 1))


@pytest.mark.parametrize("kernel", [2, 3])
def test_boxes_of_images_keep_the_pooled_outputs_exactly(kernel):
    rng = np.random.default_rng(3)
    pool = MaxPool(pooling_windows(4, 9, 7, kernel, stride=2, padding=1, ceil_mode=True))
    z0 = np.round(rng.normal(size=(6, 4 * 9 * 7)), 1)
    target = pool.preimage(z0)
    for scale in (0.1, 1.0, 100.0):
        kept = target.project(z0 + scale * rng.normal(size=z0.shape))
        np.testing.assert_array_equal(pool.forward(kept), pool.forward(z0))


def test_only_the_first_of_tied_entries_keeps_its_own_preimage():
    target = MaxPool([[0, 1, 2]]).preimage([2.0, 2.0, 1.0])
    np.testing.assert_array_equal(target.lo, [2.0, -INF, -INF])
    np.testing.assert_array_equal(target.hi, [2.0, 2.0, 2.0])


def test_the_winner_is_taken_before_the_activation():
    # All outputs are 0: the largest pre-activation, not the first output, would win, and nothing may rise above 0.
    target = MaxPool([[0, 1, 2]], "relu6").preimage([[-2.0, -1.0, -3.0], [7.0, 9.0, 8.0]])
    np.testing.assert_array_equal(target.lo, [[-INF] * 3, [-INF, 6.0, -INF]])
    np.testing.assert_array_equal(target.hi, [[0.0] * 3, [INF] * 3])


def test_overlapping_windows_intersect():
    target = MaxPool([[0, 1], [1, 2], [0, 3]]).preimage([1.0, 2.0, 3.0, 0.5])
    # 1 wins over 0 and loses to 2; 0 loses to 1 and wins over 3.
    np.testing.assert_array_equal(target.lo, [1.0, 2.0, 3.0, -INF])
    np.testing.assert_array_equal(target.hi, [1.0, 2.0, 3.0, 1.0])


def test_windows_of_one_entry_are_the_activation_itself():
    z0 = np.random.default_rng(4).normal(size=(3, 5))
    target, own = MaxPool(np.arange(5)[:, None], "soft_shrink").preimage(z0), get_activation("soft_shrink").preimage(z0)
    np.testing.assert_array_equal(target.lo, own.lo)
    np.testing.assert_array_equal(target.hi, own.hi)


@pytest.mark.parametrize("inner", ["relu", LeakyReLU(3.0), "sigmoid"])
def test_output_error_is_bounded_by_the_distance(inner):
    rng = np.random.default_rng(5)
    pool = MaxPool(OVERLAPPING, inner)
    assert pool.lipschitz == pytest.approx(math.sqrt(2) * get_activation(inner).lipschitz)
    z0, z = rng.normal(size=(2, 500, 9))
    error = np.linalg.norm(pool.forward(z) - pool.forward(z0), axis=1)
    assert np.all(error <= pool.lipschitz * np.linalg.norm(pool.preimage(z0).residual(z), axis=1) + 1e-12)


def test_pooled_lipschitz_constant_is_attained_where_one_entry_wins_all_its_windows():
    pool = MaxPool([[0, 1], [1, 2], [3, 1]], "identity")
    z = np.array([0.0, 5.0, 0.0, 0.0])
    change = pool.forward(z + [0.0, 1.0, 0.0, 0.0]) - pool.forward(z)
    assert np.linalg.norm(change) == pytest.approx(pool.lipschitz)


def test_given_arrays_are_left_alone():
    z0, windows = np.random.default_rng(6).normal(size=(2, 9)), np.array(OVERLAPPING)
    for array in (z0, windows):
        array.flags.writeable = False
    pool = MaxPool(windows)
    pool.preimage(z0)
    np.testing.assert_array_equal(pool.preimage(np.asfortranarray(z0)).hi, pool.preimage(z0).hi)
    with pytest.raises(ValueError, match="read-only"):
        pool.windows[0, 0] = 1


# Objects and refusals ------------------------------------------------------------------------------------------------


def test_pools_compare_by_their_windows_and_activation_and_pickle():
    pool = MaxPool(OVERLAPPING, "relu")
    copy = pickle.loads(pickle.dumps(pool))
    assert copy == pool
    assert hash(copy) == hash(pool)
    assert not copy.windows.flags.writeable
    assert pool != MaxPool(OVERLAPPING, "identity")
    assert pool != MaxPool(OVERLAPPING[:3], "relu")
    assert pool != "max_pool"
    assert get_activation(pool) is pool
    assert not pool.couples_outputs


@pytest.mark.parametrize("inner", [name for name in activation_names() if name not in INNER])
def test_activations_that_may_fall_are_refused(inner):
    with pytest.raises(UnsupportedError, match=f"must be known never to decrease, got '{inner}'; pool outside"):
        MaxPool(OVERLAPPING, inner)


def test_pools_and_registered_activations_are_refused_inside(monkeypatch):
    monkeypatch.setattr(registry, "_ACTIVATIONS", dict(registry._ACTIVATIONS))
    mine = register_activation("mine", np.negative, lambda z, _: (z, z))
    for inner in (mine, MaxPool(OVERLAPPING)):
        with pytest.raises(UnsupportedError, match=f"got '{inner.name}'"):
            MaxPool(OVERLAPPING, inner)


@pytest.mark.parametrize(
    ("windows", "message"),
    [
        ([[0.0, 1.0]], "windows must be integers of shape"),
        ([0, 1], r"got int64 of shape \(2,\)"),
        (np.zeros((0, 2), dtype=int), "neither of them 0"),
        ([[0, -2]], "or -1 for no entry, got -2"),
        ([[0, 1], [-1, -1]], "window 1 has none"),
        ([[0, 1], [2, 2]], r"only once, window 1 is \[2, 2\]"),
    ],
)
def test_windows_without_sense_are_refused(windows, message):
    with pytest.raises(InvalidInputError, match=message):
        MaxPool(windows)


@pytest.mark.parametrize("z", [1.0, np.zeros(7), np.zeros((9, 3))])
def test_too_few_samples_are_refused(z):
    pool = MaxPool(OVERLAPPING)
    with pytest.raises(InvalidInputError, match="z of max_pool must have the 8 samples of its windows along the last"):
        pool.forward(z)
    with pytest.raises(InvalidInputError, match="z0 of max_pool must have the 8 samples"):
        pool.preimage(z)


@pytest.mark.parametrize("tolerance", [-1e-3, np.nan, INF])
def test_impossible_tolerances_are_refused(tolerance):
    with pytest.raises(InvalidInputError, match="tolerance must be a finite number of at least 0"):
        MaxPool(OVERLAPPING).preimage(np.zeros(9), tolerance)
