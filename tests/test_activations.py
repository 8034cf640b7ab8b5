"""Activations: forward maps, preimages with and without tolerance, Lipschitz constants, the registry."""

from __future__ import annotations

import itertools
import math
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import integrate, optimize

from sisopt.activations import (
    CELU,
    ELU,
    SELU,
    Activation,
    Clip,
    HardSigmoid,
    LeakyReLU,
    PReLU,
    Softplus,
    SoftShrink,
    SquaredReLU,
    activation_names,
    get_activation,
    register_activation,
    registry,
)
from sisopt.errors import InvalidInputError, UnsupportedError
from sisopt.targets import Interval

INF = np.inf
DIPPING = {"gelu": -0.7518, "gelu_tanh": -0.7525, "silu": -1.2785, "mish": -1.1924, "hard_swish": -1.5}
STRICT = (
    *("identity", "leaky_relu", "prelu", "elu", "celu", "selu", "softplus", "softsign", "arctan", "isru", "tanh"),
    *("sigmoid", "log_sigmoid"),
)
VARIANTS = (
    *(Clip(-2.0, 0.5), Clip(-INF, 1.0), LeakyReLU(2.0), ELU(0.5), ELU(1.7), CELU(0.3), CELU(2.0)),
    *(Softplus(0.2), Softplus(4.0), SoftShrink(0.0), SoftShrink(1.3)),
)
COUPLED = [R for R in map(get_activation, activation_names()) if R.couples_outputs]
ALL = [*(R for R in map(get_activation, activation_names()) if not R.couples_outputs), *VARIANTS]
MONOTONE = [activation for activation in ALL if activation.name not in DIPPING]
TOLERANCES = [0.0, 1e-12, 1e-6, 1e-3, 0.1, 0.5, 3.0]

every_coupled = pytest.mark.parametrize("activation", COUPLED, ids=repr)
every_activation = pytest.mark.parametrize("activation", ALL, ids=repr)
every_monotone = pytest.mark.parametrize("activation", MONOTONE, ids=repr)
every_dipping = pytest.mark.parametrize("activation", [*map(get_activation, DIPPING)], ids=repr)
quick = settings(max_examples=8, deadline=None)
points = arrays(np.float64, 6, elements=st.floats(-30, 30) | st.sampled_from([-3.0, -1.0, 0.0, 0.5, 1.0, 3.0, 6.0]))


def gelu(z: float) -> float:
    return z * integrate.quad(lambda t: math.exp(-t * t / 2) / math.sqrt(2 * math.pi), -12.0, z, epsabs=1e-13)[0]


def softplus(z: float) -> float:
    return math.log(1 + math.exp(z))


FORMULAS = {
    "identity": lambda z: z,
    "relu": lambda z: z if z > 0 else 0.0,
    "relu6": lambda z: min(max(z, 0), 6),
    "hard_tanh": lambda z: min(max(z, -1), 1),
    "hard_sigmoid": lambda z: min(max(z + 3, 0), 6) / 6,
    "leaky_relu": lambda z: z if z > 0 else 0.01 * z,
    "prelu": lambda z: z if z > 0 else 0.25 * z,
    "elu": lambda z: z if z > 0 else math.exp(z) - 1,
    "celu": lambda z: max(0, z) + min(0, math.exp(z) - 1),
    "selu": lambda z: 1.0507009873554805 * (z if z > 0 else 1.6732632423543772 * (math.exp(z) - 1)),
    "softplus": softplus,
    "softsign": lambda z: z / (1 + abs(z)),
    "arctan": lambda z: 2 / math.pi * math.atan(z),
    "isru": lambda z: z / math.sqrt(1 + z * z),
    "tanh": lambda z: (math.exp(2 * z) - 1) / (math.exp(2 * z) + 1),
    "sigmoid": lambda z: 1 / (1 + math.exp(-z)),
    "log_sigmoid": lambda z: -math.log(1 + math.exp(-z)),
    "soft_shrink": lambda z: z - 0.5 if z > 0.5 else z + 0.5 if z < -0.5 else 0.0,
    "squared_relu": lambda z: z * z if z > 0 else 0.0,
    "gelu": gelu,
    "gelu_tanh": lambda z: 0.5 * z * (1 + math.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))),
    "silu": lambda z: z / (1 + math.exp(-z)),
    "mish": lambda z: z * math.tanh(softplus(z)),
    "hard_swish": lambda z: 0.0 if z <= -3 else z if z >= 3 else z * (z + 3) / 6,
}


# Forward -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [activation.name for activation in ALL[: -len(VARIANTS)]])
def test_forward_is_the_textbook_formula(name):
    z = np.concatenate([np.linspace(-9, 9, 73), [-0.7518, 1e-3, -1e-3]])
    np.testing.assert_allclose(get_activation(name).forward(z), [FORMULAS[name](u) for u in z], rtol=1e-9, atol=1e-11)


def test_parameters_enter_the_forward_map():
    z = np.array([-2.0, -0.1, 0.7, 5.0])
    np.testing.assert_array_equal(Clip(-1.5, 0.5).forward(z), [-1.5, -0.1, 0.5, 0.5])
    np.testing.assert_allclose(LeakyReLU(0.2).forward(z), [-0.4, -0.02, 0.7, 5.0])
    np.testing.assert_allclose(ELU(2.0).forward(z)[:2], 2 * (np.exp(z[:2]) - 1))
    np.testing.assert_allclose(CELU(2.0).forward(z)[:2], 2 * (np.exp(z[:2] / 2) - 1))
    np.testing.assert_allclose(Softplus(3.0).forward(z), np.log(1 + np.exp(3 * z)) / 3)
    np.testing.assert_allclose(SoftShrink(1.5).forward(z), [-0.5, 0.0, 0.0, 3.5])


@pytest.mark.parametrize("name", ["sigmoid", "silu", "gelu", "gelu_tanh", "mish", "softplus", "log_sigmoid"])
def test_left_tails_keep_their_relative_precision(name):
    z = -12.0
    w = math.exp(z)
    x = math.sqrt(8 / math.pi) * (z + 0.044715 * z**3)
    expected = {
        "sigmoid": w / (1 + w),
        "silu": z * w / (1 + w),
        "gelu": z * math.erfc(-z / math.sqrt(2)) / 2,
        "gelu_tanh": z * math.exp(x) / (1 + math.exp(x)),
        "mish": z * (w * w + 2 * w) / (w * w + 2 * w + 2),
        "softplus": math.log1p(w),
        "log_sigmoid": z - math.log1p(w),
    }
    np.testing.assert_allclose(get_activation(name).forward(z), expected[name], rtol=1e-11)


@every_activation
def test_integers_and_float32_come_back_as_float64(activation):
    assert activation.forward(np.array([-1, 2])).dtype == np.float64
    assert activation.preimage(np.array([-1, 2], dtype=np.float32), 0.1).lo.dtype == np.float64


@every_activation
def test_shapes_are_kept(activation):
    for shape, tolerance in itertools.product([(), (0,), (5,), (3, 4), (2, 3, 4)], (0.0, 0.1)):
        z = np.random.default_rng(0).normal(size=shape)
        assert activation.forward(z).shape == shape
        target = activation.preimage(z, tolerance)
        assert target.lo.shape == target.hi.shape == shape


# Preimages -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*STRICT, *DIPPING, "squared_relu", "soft_shrink"])
def test_invertible_parts_give_back_the_preactivation_bit_for_bit(name):
    z = np.random.default_rng(1).normal(scale=4, size=1000)
    if name in ("squared_relu", "hard_swish", "soft_shrink"):
        z = 2.0 + np.abs(z)
    target = get_activation(name).preimage(z)
    assert target.lo.tobytes() == target.hi.tobytes() == z.tobytes()
    assert target.is_point


@pytest.mark.parametrize(
    ("activation", "z", "lo", "hi"),
    [
        (Clip(0, INF), [-2, 0, 0.5], [-INF, -INF, 0.5], [0, 0, 0.5]),
        (Clip(0, 6), [-2, 0, 0.5, 6, 9], [-INF, -INF, 0.5, 6, 6], [0, 0, 0.5, INF, INF]),
        (Clip(-1, 1), [-2, -1, 0.5, 1, 9], [-INF, -INF, 0.5, 1, 1], [-1, -1, 0.5, INF, INF]),
        (HardSigmoid(), [-4, -3, 0.5, 3, 9], [-INF, -INF, 0.5, 3, 3], [-3, -3, 0.5, INF, INF]),
        (SoftShrink(0.5), [-1, -0.5, 0, 0.25, 0.5, 2], [-1, *[-0.5] * 4, 2], [-1, *[0.5] * 4, 2]),
        (SquaredReLU(), [-2, 0, 0.7], [-INF, -INF, 0.7], [0, 0, 0.7]),
        (get_activation("hard_swish"), [-9, -3, -2.9, 0, 2, 9], [-INF, -INF, -2.9, 0, 2, 9], [-3, -3, -2.9, 0, 2, 9]),
    ],
    ids=lambda value: value.name if isinstance(value, Activation) else "",
)
def test_flat_parts_free_the_whole_piece(activation, z, lo, hi):
    target = activation.preimage(z)
    np.testing.assert_array_equal(target.lo, lo)
    np.testing.assert_array_equal(target.hi, hi)


@pytest.mark.parametrize(
    ("activation", "z", "tolerance", "lo", "hi"),
    [
        ("identity", 1.0, 0.5, 0.5, 1.5),
        ("relu", -3.0, 0.5, -INF, 0.5),
        ("relu", 1.0, 0.25, 0.75, 1.25),
        ("relu", 1.0, 1.0, -INF, 2.0),
        ("relu6", 5.9, 0.25, 5.65, INF),
        ("hard_sigmoid", 0.0, 1 / 12, -0.5, 0.5),
        (LeakyReLU(0.5), 0.25, 0.5, -0.5, 0.75),
        ("soft_shrink", 0.2, 0.25, -0.75, 0.75),
        ("soft_shrink", -1.0, 0.75, -1.75, 0.75),
        ("soft_shrink", 1.0, 0.5, -0.5, 1.5),
        ("squared_relu", 2.0, 3.0, 1.0, math.sqrt(7)),
        ("squared_relu", 2.0, 4.0, -INF, math.sqrt(8)),
        ("sigmoid", math.log(0.95 / 0.05), 0.1, math.log(0.85 / 0.15), INF),
        ("sigmoid", 0.0, 0.5, -INF, INF),
        ("sigmoid", 0.0, 0.25, -math.log(3), math.log(3)),
        ("tanh", 0.0, 0.5, -math.log(3) / 2, math.log(3) / 2),
        ("tanh", 400.0, 1e-9, math.atanh(1 - 1e-9), INF),
        ("arctan", 1.0, 0.25, math.tan(math.pi / 8), math.tan(3 * math.pi / 8)),
        ("isru", 0.0, 0.6, -0.75, 0.75),
        ("softsign", 1.0, 0.25, 1 / 3, 3.0),
        ("softplus", 0.0, math.log(2), -INF, math.log(3)),
        ("log_sigmoid", 0.0, math.log(1.5), -math.log(2), math.log(3)),
        ("elu", 0.0, 0.5, -math.log(2), 0.5),
        (CELU(2.0), 0.0, 1.0, -2 * math.log(2), 1.0),
        ("selu", -50.0, 1e-3, -INF, math.log(1e-3 / 1.7580993408473766)),
        ("hard_swish", -3.0, 1 / 3, -INF, -2.0),
        ("hard_swish", 0.0, 1 / 3, -1.0, (math.sqrt(17) - 3) / 2),
        ("hard_swish", -1.5, 1.0, -INF, (math.sqrt(24) - 3) / 2),
        ("hard_swish", 5.0, 0.5, 4.5, 5.5),
    ],
)
def test_tolerance_widens_to_the_closed_form(activation, z, tolerance, lo, hi):
    target = get_activation(activation).preimage([z], tolerance)
    np.testing.assert_allclose([*target.lo, *target.hi], [lo, hi], rtol=2e-7 if z == 400.0 else 1e-12)


@every_activation
def test_dense_layer_is_in_its_own_target_however_extreme(activation):
    kinks = np.array([0.0, 0.3, 0.5, 1.0, 1.3, 1.5, 2.0, 3.0, 6.0, *map(abs, DIPPING.values())])
    tails = [5e-324, 1e-310, 1e-300, 1e-17, 18.0, 36.7, 39.0, 40.0, 709.0, 745.1, 800.0, 1e5, 1e16, 1e155, 1e300]
    z = np.concatenate([kinks, np.nextafter(kinks, INF), np.nextafter(kinks, -INF), tails, [np.finfo(float).max]])
    z = np.concatenate([z, -z])
    for tolerance in (0.0, 5e-324, 1e-300, 1e-16, 1e-8, 0.1, 1.0, 100.0, 1e300):
        with np.errstate(all="raise"):
            target = activation.preimage(z, tolerance)
            activation.forward(z)
        assert np.all((target.lo <= z) & (z <= target.hi))
        assert np.all((target.lo < INF) & (target.hi > -INF))


@every_activation
@quick
@given(
    z=arrays(np.float64, 6, elements=st.floats(allow_nan=False, allow_infinity=False)),
    tolerance=st.floats(0, 1e308),
)
def test_dense_layer_is_in_its_own_target(activation, z, tolerance):
    target = activation.preimage(z, tolerance)
    assert np.all((target.lo <= z) & (z <= target.hi))


@every_activation
@quick
@given(z0=points, z=points, tolerance=st.sampled_from(TOLERANCES))
def test_points_of_the_target_keep_the_output_within_tolerance(activation, z0, z, tolerance):
    y = activation.forward(z0)
    kept = activation.preimage(z0, tolerance).project(z)
    assert np.all(np.abs(activation.forward(kept) - y) <= tolerance + 1e-14 * np.maximum(np.abs(y), 1.0))


@every_monotone
@quick
@given(z0=points, z=points, tolerance=st.sampled_from(TOLERANCES[1:]))
def test_monotone_residual_vanishes_where_the_output_is_kept_and_only_there(activation, z0, z, tolerance):
    y, new = activation.forward(z0), activation.forward(z)
    rounding = 1e-13 * np.maximum(np.abs(y), 1.0)
    residual = activation.preimage(z0, tolerance).residual(z)
    assert np.all(residual[np.abs(new - y) <= tolerance - rounding] == 0)
    assert np.all(residual[np.abs(new - y) > tolerance + rounding] != 0)


@every_activation
@quick
@given(z0=points, tolerance=st.sampled_from(TOLERANCES), more=st.sampled_from(TOLERANCES))
def test_more_tolerance_never_narrows_the_target(activation, z0, tolerance, more):
    narrow, wide = activation.preimage(z0, tolerance), activation.preimage(z0, tolerance + more)
    slack = 1e-12 * np.maximum(np.abs(z0), 1.0)
    assert np.all(wide.lo <= narrow.lo + slack)
    assert np.all(narrow.hi <= wide.hi + slack)


@every_activation
def test_target_is_the_connected_part_that_a_grid_search_finds(activation):
    grid = np.linspace(-12, 12, 12001)
    outputs = activation.forward(grid)
    starts = np.random.default_rng(2).integers(0, grid.size, 30)
    for start, tolerance in itertools.product(starts, (1e-4, 0.01, 0.1, 0.3, 1.0)):
        target = activation.preimage(grid[start], tolerance)
        lo, hi = target.lo, target.hi
        kept = np.abs(outputs - outputs[start]) <= tolerance - 1e-13
        broken = np.concatenate([[-1], np.flatnonzero(~kept), [grid.size]])
        place = np.searchsorted(broken, start)
        first, last = broken[place - 1] + 1, broken[place] - 1
        assert lo <= grid[first]
        assert hi >= grid[last]
        if first > 0 and np.abs(outputs[first - 1] - outputs[start]) > tolerance + 1e-13:
            assert lo > grid[first - 1]
        if last < grid.size - 1 and np.abs(outputs[last + 1] - outputs[start]) > tolerance + 1e-13:
            assert hi < grid[last + 1]


@every_activation
def test_finite_edges_use_the_whole_tolerance(activation):
    z0 = np.random.default_rng(3).normal(scale=2, size=2000)
    y = activation.forward(z0)
    for tolerance, end in itertools.product((1e-9, 1e-5, 1e-3, 0.1), ("lo", "hi")):
        edge = getattr(activation.preimage(z0, tolerance), end)
        finite = np.isfinite(edge)
        change = np.abs(activation.forward(edge[finite]) - y[finite])
        np.testing.assert_allclose(change, tolerance, rtol=0, atol=1e-13)


@every_activation
def test_half_lines_never_leave_the_tolerance(activation):
    z0 = np.linspace(-45, 45, 1801)
    y = activation.forward(z0)
    for tolerance in (1e-14, 1e-8, 1e-3, 0.2, 0.6):
        target = activation.preimage(z0, tolerance)
        for far, endless in ((-1e6, target.lo == -INF), (1e6, target.hi == INF)):
            change = np.abs(activation.forward(far) - y[endless])
            assert np.all(change <= tolerance + 1e-15)


@every_dipping
@pytest.mark.parametrize("tolerance", [1e-10, 1e-3, 0.05])
def test_left_tails_are_free_from_where_the_tolerance_covers_them(activation, tolerance):
    z0 = np.linspace(-60, -2, 500)
    covered = -activation.forward(z0) <= tolerance
    np.testing.assert_array_equal(activation.preimage(z0, tolerance).lo == -INF, covered)


@every_dipping
def test_near_the_minimum_the_target_spans_both_branches(activation):
    minimiser = DIPPING[activation.name]
    target = activation.preimage([minimiser], 1e-6)
    ends = np.array([target.lo[0], target.hi[0]])
    assert ends[0] < minimiser - 1e-4
    assert ends[1] > minimiser + 1e-4
    np.testing.assert_allclose(activation.forward(ends), activation.forward(minimiser) + 1e-6, rtol=0, atol=1e-13)


@every_dipping
def test_minimisers_are_exact_to_rounding(activation):
    h = 1e-4
    slope = lambda u: float(activation.forward(u + h) - activation.forward(u - h)) / (2 * h)  # noqa: E731
    found = optimize.brentq(slope, DIPPING[activation.name] - 0.1, DIPPING[activation.name] + 0.1, xtol=1e-14)
    assert abs(found - activation.minimiser) < 1e-8
    # A parabola is flat at its least point to the square root of rounding: nothing beside it is lower.
    beside = activation.minimiser + np.array([-1e-6, 1e-6])
    assert np.all(activation.forward(beside) > activation.forward(activation.minimiser))
    assert abs(np.diff(activation.forward(beside))[0]) < 5e-16


@every_dipping
def test_dipping_activations_fall_then_rise(activation):
    left = np.linspace(activation.tail, activation.minimiser, 20001)
    right = np.linspace(activation.minimiser, 60, 20001)
    outputs = activation.forward(left)
    assert np.all(np.diff(outputs) <= 4 * np.finfo(float).eps * np.abs(outputs[1:]) + 1e-320)
    assert np.all(np.diff(activation.forward(right)) > 0)
    assert activation.forward(activation.tail) == 0
    far = np.array([40.0, 50.0, 1e10])
    np.testing.assert_array_equal(activation.forward(far), far)


@pytest.mark.parametrize("tolerance", [-1e-3, np.nan, INF])
def test_impossible_tolerances_are_refused(tolerance):
    with pytest.raises(InvalidInputError, match="tolerance must be a finite number of at least 0"):
        get_activation("relu").preimage([1.0], tolerance)


@every_activation
def test_those_that_say_so_never_decrease(activation):
    outputs = activation.forward(np.linspace(-50, 50, 20001))
    assert activation.nondecreasing is (activation.name not in DIPPING)
    assert np.all(np.diff(outputs) >= 0) or not activation.nondecreasing


# Activations of all outputs of a sample ------------------------------------------------------------------------------


def test_softmax_log_softmax_and_sparsemax_couple_outputs_and_no_others_do():
    assert [activation.name for activation in COUPLED] == ["log_softmax", "softmax", "sparsemax"]


def simplex_projection(z):
    """Bisect on the threshold."""
    low, high = z.max() - 1, z.max()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.maximum(z - middle, 0).sum() > 1 else (low, middle)
    return np.maximum(z - low, 0)


def test_coupled_forward_maps_are_the_textbook_formulas_over_the_last_axis():
    z = np.random.default_rng(0).normal(scale=2, size=(3, 5, 4))
    softmax = np.exp(z) / np.exp(z).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(get_activation("softmax").forward(z), softmax, rtol=1e-13)
    np.testing.assert_allclose(get_activation("log-softmax").forward(z), np.log(softmax), rtol=1e-12)
    expected = np.apply_along_axis(simplex_projection, -1, z)
    np.testing.assert_allclose(get_activation("Sparsemax").forward(z), expected, atol=1e-14)


@every_coupled
def test_coupled_forward_maps_survive_extreme_numbers(activation):
    z = np.array([[1e300, -1e300, 0.0], [-700.0, -800.0, -900.0], [1e17, 1e17, 0.0], [0.0, 0.0, 0.0]])
    with np.errstate(all="raise"):
        y = activation.forward(z)
    expected = np.array([[1, 0, 0], [1, 0, 0], [0.5, 0.5, 0], [1 / 3, 1 / 3, 1 / 3]])
    np.testing.assert_allclose(np.exp(y) if activation.name == "log_softmax" else y, expected, rtol=1e-15, atol=1e-40)


@every_coupled
def test_one_output_is_constant(activation):
    np.testing.assert_array_equal(activation.forward([[3.0], [-2.0]]), 0.0 if activation.name == "log_softmax" else 1.0)
    np.testing.assert_array_equal(activation.preimage([[3.0], [-2.0]]).residual([[7.0], [1.0]]), 0.0)


@every_coupled
@pytest.mark.parametrize("n_out", [2, 3, 6])
def test_coupled_lipschitz_constants_bound_the_jacobian_and_are_attained(activation, n_out):
    rng = np.random.default_rng(0)
    bound = math.sqrt(n_out) if activation.name == "log_softmax" else activation.lipschitz
    points = np.concatenate([rng.normal(scale=s, size=(50, n_out)) for s in (0.01, 1, 10)])
    points = np.concatenate(
        [points, [np.where(np.arange(n_out) < 2, 0.0, -60.0), np.where(np.arange(n_out) < 1, 60, 0)]]
    )
    h = 1e-6
    norms = []
    for z in points:
        moved = z + h * np.concatenate([np.eye(n_out), -np.eye(n_out)])
        y = activation.forward(moved)
        norms.append(np.linalg.norm((y[:n_out] - y[n_out:]).T / (2 * h), 2))
    assert max(norms) == pytest.approx(bound, rel=1e-6)


@every_coupled
@pytest.mark.parametrize("z", [1.0, np.zeros((3, 0))])
def test_coupled_forward_maps_need_outputs(activation, z):
    with pytest.raises(InvalidInputError, match=f"z must have the outputs of {activation.name} along its last axis"):
        activation.forward(z)


@every_coupled
@pytest.mark.parametrize("z0", [1.0, np.zeros(3), np.zeros((3, 0)), np.zeros((2, 3, 4))])
def test_coupled_preimages_need_samples_and_outputs(activation, z0):
    with pytest.raises(InvalidInputError, match=r"must have shape \(n_samples, n_out\) with at least one output"):
        activation.preimage(z0)


@every_coupled
def test_coupled_activations_have_no_tolerance(activation):
    with pytest.raises(UnsupportedError, match=f"tolerance must be 0 for activation '{activation.name}'.*error budget"):
        activation.preimage(np.zeros((2, 3)), 0.1)
    with pytest.raises(InvalidInputError, match="tolerance must be a finite number"):
        activation.preimage(np.zeros((2, 3)), -0.1)


@every_coupled
def test_coupled_activations_pickle_to_equal_objects(activation):
    copy = pickle.loads(pickle.dumps(activation))
    assert copy == activation
    assert hash(copy) == hash(activation)


# Lipschitz constants -------------------------------------------------------------------------------------------------


@every_activation
def test_lipschitz_constant_is_attained_and_never_exceeded(activation):
    grid = np.linspace(-24, 24, 240001)
    steepest = np.max(np.abs(np.diff(activation.forward(grid)) / np.diff(grid)))
    if math.isinf(activation.lipschitz):
        assert np.isclose(steepest, 48.0, rtol=1e-3)  # grows with the grid
    else:
        share = 0.9999 if activation.name in DIPPING else 0.99
        assert share * activation.lipschitz <= steepest <= activation.lipschitz * (1 + 1e-9)


@every_activation
@quick
@given(z0=points, z=points, tolerance=st.sampled_from(TOLERANCES))
def test_output_error_is_bounded_by_the_distance_to_the_target(activation, z0, z, tolerance):
    distance = np.abs(activation.preimage(z0, tolerance).residual(z))
    error = np.abs(activation.forward(z) - activation.forward(z0))
    if math.isfinite(activation.lipschitz):
        assert np.all(error <= activation.lipschitz * distance + tolerance + 1e-12)


# Objects and names ---------------------------------------------------------------------------------------------------


@every_activation
def test_activations_pickle_to_equal_objects(activation):
    copy = pickle.loads(pickle.dumps(activation))
    assert copy == activation
    assert hash(copy) == hash(activation)


def test_activations_compare_by_their_parameters():
    assert Clip(0, 6) == get_activation("relu6")
    assert LeakyReLU(0.1) != LeakyReLU(0.2)
    assert LeakyReLU(0.25) != PReLU(0.25)
    assert len({ELU(), ELU(1.0), ELU(2.0), SELU(), SELU()}) == 3


@every_activation
def test_activations_cannot_be_changed(activation):
    with pytest.raises(AttributeError):
        activation.lipschitz = 2.0


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        *[("ReLU", "relu"), ("Hardtanh", "hard_tanh"), ("HARD-TANH", "hard_tanh"), ("LogSigmoid", "log_sigmoid")],
        *[("none", "identity"), ("Linear", "identity"), ("swish", "silu"), ("h-swish", "hard_swish")],
        *[("hardswish", "hard_swish"), ("LeakyReLU", "leaky_relu")],
        *[("gelu-tanh", "gelu_tanh"), ("gelu_new", "gelu_tanh")],
    ],
)
def test_names_forgive_case_separators_and_synonyms(spelling, name):
    assert get_activation(spelling).name == name


@pytest.mark.parametrize("name", activation_names())
def test_every_name_leads_to_the_activation_that_bears_it(name):
    assert get_activation(name).name == name


def test_an_activation_stands_for_itself():
    mine = Clip(-2.0, 2.0)
    assert get_activation(mine) is mine


def test_an_unknown_name_is_answered_with_the_closest_known_ones():
    with pytest.raises(InvalidInputError, match=r"activation must .* got 'sigmod'; did you mean 'sigmoid'") as caught:
        get_activation("sigmod")
    assert "register_activation(name, forward, preimage)" in str(caught.value)
    with pytest.raises(InvalidInputError, match="nothing known comes close. Known are .*arctan.*, celu"):
        get_activation("xyzzy")


def test_something_other_than_a_name_is_refused_by_its_type():
    with pytest.raises(InvalidInputError, match="activation must be a name such as 'relu' .* got NoneType"):
        get_activation(None)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Clip(1.0, 1.0), "low < high"),
        (lambda: Clip(np.nan, 1.0), "low < high"),
        (lambda: LeakyReLU(0.0), "negative_slope of leaky_relu must be a positive finite number, got 0.0"),
        (lambda: PReLU(-0.1), "negative_slope of prelu"),
        (lambda: ELU(-1.0), "alpha of elu"),
        (lambda: CELU(INF), "alpha of celu"),
        (lambda: Softplus(0.0), "beta of softplus"),
        (lambda: SoftShrink(-0.1), "threshold of soft_shrink must be a finite number of at least 0"),
    ],
)
def test_impossible_parameters_are_refused_by_name(make, message):
    with pytest.raises(InvalidInputError, match=message):
        make()


# Activations of users ------------------------------------------------------------------------------------------------


@pytest.fixture
def own_registry(monkeypatch):
    monkeypatch.setattr(registry, "_ACTIVATIONS", dict(registry._ACTIVATIONS))


def cube(z):
    return z**3


def cube_preimage(z, tolerance):
    return np.cbrt(z**3 - tolerance), np.cbrt(z**3 + tolerance)


def same_point(z, tolerance):
    return Interval(z, z)


@pytest.mark.usefixtures("own_registry")
class TestRegistration:
    def test_a_registered_activation_is_found_used_and_pickled(self):
        made = register_activation("My Cube", cube, cube_preimage)
        found = get_activation("my-cube")
        assert found is made
        assert "My Cube" in activation_names()
        assert math.isinf(found.lipschitz)
        np.testing.assert_array_equal(found.forward([2.0]), [8.0])
        target = found.preimage([[2.0]], 1.0)
        np.testing.assert_allclose([target.lo, target.hi], np.cbrt([[[7.0]], [[9.0]]]))
        assert pickle.loads(pickle.dumps(found)) == found

    def test_an_interval_is_as_good_as_a_pair(self):
        target = register_activation("cube", cube, same_point).preimage(np.arange(3.0), 0.5)
        assert target.is_point

    @pytest.mark.parametrize("name", ["relu", "Re-LU", "swish"])
    def test_known_names_change_only_on_request(self, name):
        with pytest.raises(InvalidInputError, match="known already"):
            register_activation(name, cube, cube_preimage)
        register_activation(name, cube, cube_preimage, overwrite=True)
        assert get_activation(name).forward(2.0) == 8.0

    @pytest.mark.parametrize(
        ("preimage", "message"),
        [
            (lambda z, _: (z + 1, z + 2), "must keep lo <= z0 <= hi, got lo=1.0, z0=0.0, hi=2.0"),
            (lambda z, _: (z, z * np.nan), "must keep lo <= z0 <= hi"),
            (lambda z, _: (z[:1], z[:1]), r"must keep the shape \(3,\), got \(1,\) and \(1,\)"),
            (lambda z, _: z, "must return an Interval or a pair"),
            (lambda z, _: None, "must return an Interval or a pair"),
            (lambda z, _: ("low", "high"), "must return an Interval or a pair"),
        ],
    )
    def test_a_wrong_preimage_is_named_when_used(self, preimage, message):
        mine = register_activation("mine", cube, preimage)
        with pytest.raises(InvalidInputError, match="'mine' " + message):
            mine.preimage(np.arange(3.0))

    def test_a_forward_map_that_changes_the_shape_is_named_when_used(self):
        mine = register_activation("mine", np.sum, same_point)
        with pytest.raises(InvalidInputError, match=r"forward of activation 'mine' must keep .* \(3,\), got \(\)"):
            mine.forward(np.arange(3.0))

    @pytest.mark.parametrize(
        ("arguments", "lipschitz", "message"),
        [
            (("", cube, same_point), 1.0, "non-empty string"),
            ((3, cube, same_point), 1.0, "non-empty string"),
            (("mine", "cube", same_point), 1.0, "must be callable, got 'cube'"),
            (("mine", cube, None), 1.0, "must be callable"),
            (("mine", cube, same_point), -1.0, "lipschitz of activation 'mine'"),
            (("mine", cube, same_point), np.nan, "lipschitz of activation 'mine'"),
        ],
    )
    def test_impossible_registrations_are_refused(self, arguments, lipschitz, message):
        with pytest.raises(InvalidInputError, match=message):
            register_activation(*arguments, lipschitz=lipschitz)
