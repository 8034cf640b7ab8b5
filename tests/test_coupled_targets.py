"""The targets of softmax, log-softmax and sparsemax: projections, invariance, best biases, refusals."""

from __future__ import annotations

import itertools
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import optimize

from sisopt.activations import get_activation
from sisopt.errors import InvalidInputError
from sisopt.targets import CoupledTarget, Line, SparsemaxSet

NAMES = ["softmax", "log_softmax", "sparsemax"]
every_name = pytest.mark.parametrize("name", NAMES)
quick = settings(max_examples=40, deadline=None)
# Halves make ties: between outputs, with the threshold, with the shift.
entries = st.floats(-20, 20) | st.integers(-6, 6).map(lambda i: i / 2)
samples = arrays(np.float64, (2, 5), elements=entries)


def parts(target: CoupledTarget) -> tuple[np.ndarray, np.ndarray]:
    """Return the level and the support of a target."""
    if isinstance(target, Line):
        return target.center, np.ones(target.shape, dtype=bool)
    return target.level, target.support


def nearest(z, level, support):
    """Project one sample by trying every set of outputs that may be tied to l + c."""
    free = np.flatnonzero(~support)
    best, least = None, np.inf
    for size in range(free.size + 1):
        for extra in itertools.combinations(free, size):
            tied = support.copy()
            tied[list(extra)] = True
            top = level + (z - level)[tied].mean()
            p = np.where(tied, top, z)
            if np.all(p <= top + 1e-12) and np.sum((z - p) ** 2) < least:
                best, least = p, np.sum((z - p) ** 2)
    return best


def random_problem(seed, name, n_samples=40, n_out=6, scale=1.0):
    rng = np.random.default_rng(seed)
    z0 = scale * rng.normal(size=(n_samples, n_out)) + rng.normal(size=n_out)
    z = z0 + scale * rng.normal(size=z0.shape)
    return get_activation(name).preimage(z0), z, rng.uniform(0, 2, n_samples), rng.normal(size=n_out), z0


# Projections ---------------------------------------------------------------------------------------------------------


@every_name
@quick
@given(z0=samples, z=samples)
def test_projection_is_the_nearest_point_of_the_set(name, z0, z):
    target = get_activation(name).preimage(z0)
    level, support = parts(target)
    expected = [nearest(z[k], level[k], support[k]) for k in range(2)]
    np.testing.assert_allclose(target.project(z), expected, rtol=0, atol=1e-11)


@every_name
@quick
@given(z0=samples, z=samples)
def test_projection_keeps_the_outputs_of_the_dense_layer(name, z0, z):
    R = get_activation(name)
    target = R.preimage(z0)
    kept = target.project(z)
    np.testing.assert_allclose(R.forward(kept), R.forward(z0), rtol=1e-12, atol=1e-13)
    assert target.contains(kept, atol=1e-12)
    np.testing.assert_allclose(target.project(kept), kept, atol=1e-12)


@every_name
@quick
@given(z0=samples, z=samples, shift=st.floats(-20, 20))
def test_a_point_with_the_same_outputs_is_in_the_set_and_another_is_not(name, z0, z, shift):
    R = get_activation(name)
    target = R.preimage(z0)
    assert target.contains(z0 + shift, atol=1e-12)
    moved = np.abs(np.exp(R.forward(z)) - np.exp(R.forward(z0))).max(axis=1)
    distance = np.linalg.norm(target.residual(z), axis=1)
    assert np.all(moved <= 3 * np.sqrt(5) * distance + 1e-12)  # exp is 3-Lipschitz on outputs of at most 1


@every_name
@quick
@given(z0=samples, z=samples)
def test_output_error_is_bounded_by_the_distance(name, z0, z):
    R = get_activation(name)
    constant = np.sqrt(5) if name == "log_softmax" else R.lipschitz
    error = np.linalg.norm(R.forward(z) - R.forward(z0), axis=1)
    assert np.all(error <= constant * np.linalg.norm(R.preimage(z0).residual(z), axis=1) + 1e-12)


@every_name
@quick
@given(z0=samples, u=samples, v=samples)
def test_projection_is_firmly_nonexpansive(name, z0, u, v):
    target = get_activation(name).preimage(z0)
    moved = target.project(u) - target.project(v)
    assert np.all(np.sum(moved**2, axis=1) <= np.sum(moved * (u - v), axis=1) + 1e-10)


@every_name
@quick
@given(z0=samples, z=samples, shift=st.floats(-20, 20))
def test_residual_ignores_a_common_shift_and_adds_up_to_zero(name, z0, z, shift):
    target = get_activation(name).preimage(z0)
    residual = target.residual(z)
    np.testing.assert_allclose(target.residual(z + shift), residual, atol=1e-12)
    np.testing.assert_allclose(residual.sum(axis=1), 0.0, atol=1e-12)
    np.testing.assert_allclose(residual, z - target.project(z), atol=1e-12)


@every_name
@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e3, 1e60])
def test_dense_layer_is_in_its_own_target_exactly(name, scale):
    rng = np.random.default_rng(0)
    z0 = scale * rng.normal(size=(200, 7))
    z0[:100] = np.round(z0[:100] / scale) * scale
    target = get_activation(name).preimage(z0)
    np.testing.assert_array_equal(target.residual(z0), 0.0)
    np.testing.assert_array_equal(target.project(z0), z0)
    assert target.contains(z0)


@every_name
def test_residual_survives_a_large_common_shift(name):
    target = get_activation(name).preimage(np.zeros((1, 3)))
    np.testing.assert_allclose(target.residual([[1e9 + 1, 1e9, 1e9 - 1]]), [[1.0, 0.0, -1.0]], atol=1e-6)
    np.testing.assert_array_equal(target.residual([[0.1 + 1e9] * 3]), 0.0)


def test_sparsemax_frees_what_is_far_off_the_support():
    target = get_activation("sparsemax").preimage([[0.25, 0.25, -1.0, -2.0]])  # y = (1/2, 1/2, 0, 0), t = -1/4
    np.testing.assert_array_equal(target.support, [[True, True, False, False]])
    np.testing.assert_array_equal(target.level, [[0.25, 0.25, -0.25, -0.25]])
    np.testing.assert_array_equal(target.residual([[1.25, 1.25, 0.75, -9.0]]), 0.0)
    # (u - c) = 1.5 - c and -c twice: c = 1/2 ties the third output to the support
    np.testing.assert_allclose(target.residual([[0.25, 0.25, 1.25, -9.0]]), [[-0.5, -0.5, 1.0, 0.0]])


@pytest.mark.parametrize("z0", [[[0.0, -1.0]], [[0.0, -1.0, -1.0, 0.0 - 2.0]]])
def test_an_output_at_the_threshold_is_not_in_the_support(z0):
    np.testing.assert_array_equal(get_activation("sparsemax").preimage(z0).support[0, 1:], False)


@every_name
def test_no_samples_make_an_empty_target(name):
    target = get_activation(name).preimage(np.zeros((0, 3)))
    assert target.residual(np.zeros((0, 3))).shape == (0, 3)
    np.testing.assert_array_equal(target.best_bias(np.zeros((0, 3)), np.zeros(0), [1.0, 2.0, 3.0]), [1.0, 2.0, 3.0])


# Shifts, blocks, copies ----------------------------------------------------------------------------------------------


@every_name
def test_shifted_set_holds_z_less_the_shift(name):
    target, z, _, s, _ = random_problem(0, name)
    for shift in (s, np.random.default_rng(1).normal(size=z.shape)):
        np.testing.assert_allclose(target.shifted(shift).residual(z - shift), target.residual(z), atol=1e-12)


@every_name
def test_a_block_of_samples_is_the_target_of_these_samples(name):
    target, z, _, _, z0 = random_problem(1, name)
    for block in (slice(3, 17), slice(0, 0), slice(1, 40, 3)):
        expected = get_activation(name).preimage(z0[block]).residual(z[block])
        np.testing.assert_array_equal(target[block].residual(z[block]), expected)
        assert target[block].shape == expected.shape
    parent, part = parts(target)[0], parts(target[3:17])[0]
    assert np.shares_memory(parent, part)


@every_name
def test_arrays_of_any_layout_and_type_are_read_and_left_alone(name):
    target, z, v, anchor, _ = random_problem(2, name)
    expected = target.residual(z)
    fixed = z.copy()
    fixed.flags.writeable = False
    for other in (np.asfortranarray(z), fixed, z.tolist(), z[:, ::-1].copy()[:, ::-1]):
        np.testing.assert_array_equal(target.residual(other), expected)
        target.project(other)
        target.best_bias(other, v, anchor)
    assert target.residual(z.astype(np.float32)).dtype == np.float64
    np.testing.assert_array_equal(z, fixed)


@every_name
def test_pickle_keeps_the_set(name):
    target, z, *_ = random_problem(3, name)
    copy = pickle.loads(pickle.dumps(target))
    np.testing.assert_array_equal(copy.residual(z), target.residual(z))


@every_name
def test_attributes_cannot_be_reassigned(name):
    target = random_problem(4, name)[0]
    for attribute in ("center", "level"):
        with pytest.raises(AttributeError):
            setattr(target, attribute, np.zeros((1, 1)))


# Best biases ---------------------------------------------------------------------------------------------------------


def loss(target, z, v, b, center=None, beta=0.0):
    value = 0.5 * v @ np.sum(target.residual(z + b) ** 2, axis=1)
    return value if center is None else value + 0.5 * beta * v @ np.sum((z + b - center) ** 2, axis=1)


@every_name
@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize("seed", range(4))
def test_best_bias_is_what_a_general_minimiser_finds(name, beta, seed):
    target, z, v, anchor, z0 = random_problem(seed, name, n_out=5, scale=[0.3, 3.0][seed % 2])
    center = z0 + 0.1 if beta else None
    found = target.best_bias(z, v, anchor, center, beta)
    wanted = optimize.minimize(lambda b: loss(target, z, v, b, center, beta), anchor, tol=1e-10)
    assert loss(target, z, v, found, center, beta) == pytest.approx(wanted.fun, rel=1e-9)


@every_name
@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize(("n_samples", "n_out", "scale"), [(300, 20, 2.0), (5, 30, 1.0), (200, 10, 1e-4), (1, 4, 1.0)])
def test_gradient_vanishes_at_the_best_bias(name, beta, n_samples, n_out, scale):
    target, z, v, anchor, z0 = random_problem(5, name, n_samples, n_out, scale)
    b = target.best_bias(z, v, anchor, z0, beta)
    pulls = target.residual(z + b) + beta * (z + b - z0)
    rounding = 1e-15 * v @ np.abs(z).max(axis=1)
    assert np.abs(v @ pulls).max() <= 1e-13 * (v @ np.abs(pulls)).sum() + rounding


@every_name
def test_best_bias_has_the_mean_of_the_anchor_and_is_the_nearest_such(name):
    target, z, v, anchor, _ = random_problem(6, name)
    b = target.best_bias(z, v, anchor)
    assert b.mean() == pytest.approx(anchor.mean(), abs=1e-13)
    for c in (-1.0, 1e-3, 2.0):
        assert loss(target, z, v, b + c) == pytest.approx(loss(target, z, v, b), rel=1e-12)
        assert np.linalg.norm(b + c - anchor) > np.linalg.norm(b - anchor)


def test_softmax_bias_is_the_weighted_mean_of_the_centred_residual():
    target, z, v, anchor, z0 = random_problem(7, "softmax")
    r = z - z0
    r -= r.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(target.best_bias(z, v, anchor), anchor.mean() - v @ r / v.sum(), atol=1e-13)


@every_name
def test_the_bias_of_the_dense_layer_is_its_own_best(name):
    target, _, v, anchor, z0 = random_problem(8, name)
    np.testing.assert_allclose(target.best_bias(z0 - anchor, v, anchor), anchor, atol=1e-12)


@every_name
def test_samples_without_weight_do_not_count(name):
    target, z, v, anchor, _ = random_problem(9, name)
    v[10:] = 0.0
    np.testing.assert_allclose(
        target.best_bias(z, v, anchor), target[:10].best_bias(z[:10], v[:10], anchor), rtol=0, atol=1e-10
    )
    unmoved = target.best_bias(z, np.zeros(40), anchor)
    np.testing.assert_array_equal(unmoved, anchor)
    assert not np.shares_memory(unmoved, anchor)


def test_sparsemax_leaves_outputs_alone_that_nothing_pulls_at():
    z0 = np.array([[2.0, 1.8, -30.0, -40.0]] * 3)
    target = get_activation("sparsemax").preimage(z0)
    anchor = np.array([0.5, 0.0, -1.0, 3.0])
    b = target.best_bias(z0 + [0.0, 0.4, 0.0, 0.0], np.ones(3), anchor)
    np.testing.assert_array_equal(b[2:], anchor[2:])
    assert b[0] - b[1] == pytest.approx(0.4)


def test_sparsemax_finds_the_best_bias_of_groups_of_outputs_that_no_sample_links():
    rng = np.random.default_rng(10)
    z0 = rng.normal(size=(60, 8))
    z0[:30, :4] -= 50.0
    z0[30:, 4:] -= 50.0
    target = get_activation("sparsemax").preimage(z0)
    z = z0 + rng.normal(size=z0.shape)
    b = target.best_bias(z, np.ones(60), np.zeros(8))
    assert np.abs(target.residual(z + b).sum(axis=0)).max() <= 1e-13 * np.abs(target.residual(z + b)).sum()
    assert b[:4].sum() == pytest.approx(0, abs=1e-12)


def test_sparsemax_bias_is_reached_from_far_away():
    target, z, v, anchor, _ = random_problem(11, "sparsemax", n_samples=200, n_out=12)
    value = loss(target, z, v, target.best_bias(z, v, anchor))
    assert loss(target, z, v, target.best_bias(z, v, 1e3 * anchor)) == pytest.approx(value, rel=1e-10)


@every_name
def test_best_bias_repeats_bit_for_bit(name):
    target, z, v, anchor, _ = random_problem(12, name)
    assert target.best_bias(z, v, anchor).tobytes() == target.best_bias(z, v, anchor).tobytes()


# Refusals ------------------------------------------------------------------------------------------------------------


@every_name
def test_arrays_of_another_shape_are_refused(name):
    target, z, v, anchor, _ = random_problem(13, name)
    for call in (target.residual, target.project, lambda z: target.best_bias(z, v, anchor)):
        with pytest.raises(InvalidInputError, match=r"z must have shape \(40, 6\) .* got \(6, 40\)"):
            call(z.T)
    with pytest.raises(InvalidInputError, match="sample_weights must have shape"):
        target.best_bias(z, v[1:], anchor)
    with pytest.raises(InvalidInputError, match="anchor must have shape"):
        target.best_bias(z, v, anchor[1:])


@every_name
def test_fidelity_without_a_centre_is_refused(name):
    target, z, v, anchor, _ = random_problem(14, name)
    with pytest.raises(InvalidInputError, match="center must be given with fidelity=0.1"):
        target.best_bias(z, v, anchor, None, 0.1)


@every_name
@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_preactivations_that_are_not_finite_are_refused(name, wrong):
    with pytest.raises(InvalidInputError, match="must be finite"):
        get_activation(name).preimage([[0.0, wrong], [0.0, 1.0]])


@pytest.mark.parametrize(
    ("support", "message"),
    [
        ([[True, False], [False, False]], "must not be empty, as it is in sample 1"),
        ([[1, 0], [0, 1]], "must be boolean"),
        ([[True, False]], r"shape \(2, 2\) as the level, got bool of shape \(1, 2\)"),
    ],
)
def test_impossible_supports_are_refused(support, message):
    with pytest.raises(InvalidInputError, match=message):
        SparsemaxSet(np.zeros((2, 2)), np.array(support))
