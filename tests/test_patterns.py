"""Which weights stay: exact counts, the largest scores, nothing that is forbidden."""

from __future__ import annotations

import copy
import itertools
import pickle

import numpy as np
import pytest

from sisopt import GroupL2, InvalidInputError
from sisopt.patterns import NM, Blocks, Groups, PerRow, Unstructured, get_pattern
from sisopt.refine.rounding import round_to_pattern

SHAPES = [(1, 1), (7, 5), (13, 29), (16, 32), (3, 101)]
SPARSITIES = [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.95, 0.99, 1.0, *np.linspace(0, 1, 14)]
NMS = [(1, 2), (2, 4), (4, 8), (1, 4), (3, 4), (4, 4), (2, 5), (8, 16), (7, 20), (16, 32)]
LABELS = np.random.default_rng(9).integers(0, 11, (12, 18)) * 3
GROUPED = {
    "4x4 blocks": GroupL2("blocks", block=(4, 4)),
    "5x7 blocks": GroupL2("blocks", block=(5, 7)),
    "99x1 blocks": GroupL2("blocks", block=(99, 1)),
    "columns": GroupL2("columns"),
    "rows": GroupL2("rows"),
    "filters": GroupL2("filters"),
    Groups("blocks", block=(3, 2)): GroupL2("blocks", block=(3, 2)),
    Groups("kernels", kernel_size=(3, 3)): GroupL2("kernels", kernel_size=(3, 3)),
    Groups("channels", kernel_size=(3, 2)): GroupL2("channels", kernel_size=(3, 2)),
    Groups(LABELS): GroupL2(LABELS),
    Groups([[5, 7], list(range(5)), [6, *range(8, 216)]]): GroupL2([[5, 7], list(range(5)), [6, *range(8, 216)]]),
}
ENTRIES = [Unstructured(), PerRow()]
EVERY = [(p, 0.6) for p in (*ENTRIES, *map(get_pattern, GROUPED))] + [(NM(2, 4), None), (NM(7, 20), None)]


def scores(shape, seed=0, dtype=np.float64):
    """Return distinct positive scores."""
    rng = np.random.default_rng(seed)
    return (rng.permutation(np.prod(shape)) + 1.0).reshape(shape).astype(dtype)


def rank_of(values):
    """Return the rank of every entry of a vector: the largest first, at ties the earlier one."""
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))
    ranks = np.empty(len(values), int)
    ranks[order] = range(len(values))
    return ranks


def brute_force(pattern, values, sparsity):
    """Return where weights stay, by sorting."""
    values = np.asarray(values, float)
    n_out, n_in = values.shape
    if isinstance(pattern, Unstructured):
        ranks = rank_of(values.ravel()).reshape(values.shape)
        return (ranks < round((1 - sparsity) * values.size)) & (values >= 0)
    if isinstance(pattern, PerRow):
        ranks = np.array([rank_of(row) for row in values])
        count, extra = divmod(round((1 - sparsity) * values.size), n_out)
        following = [row[rank == count].max(initial=-1.0) for row, rank in zip(values, ranks, strict=True)]
        return (ranks < count + (rank_of(following) < extra)[:, None]) & (values >= 0)
    mask = np.zeros(values.shape, bool)
    for i, start in itertools.product(range(n_out), range(0, n_in, pattern.of)):
        group = values[i, start : start + pattern.of]
        mask[i, start : start + pattern.of] = rank_of(group) < round(len(group) * pattern.kept / pattern.of)
    return mask & (values >= 0)


# --- single weights --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ENTRIES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_counts_are_exact_at_every_sparsity(pattern, shape):
    for dtype, sparsity in itertools.product((np.float32, np.float64), SPARSITIES):
        mask = pattern.select(scores(shape, dtype=dtype), sparsity)
        expected = round((1 - sparsity) * shape[0] * shape[1])
        assert mask.dtype == bool and mask.shape == shape
        assert np.count_nonzero(mask) == pattern.count(shape, sparsity) == expected


@pytest.mark.parametrize("pattern", ENTRIES, ids=str)
def test_every_single_count_can_be_had(pattern):
    for kept in range(36):
        assert np.count_nonzero(pattern.select(scores((5, 7)), 1 - kept / 35)) == kept


@pytest.mark.parametrize("pattern", [*ENTRIES, *itertools.starmap(NM, NMS)], ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", ["distinct", "few values", "zeros", "forbidden", "all equal", "close"])
def test_selection_is_that_of_sorting(pattern, dtype, kind):
    rng = np.random.default_rng(3)
    for shape in SHAPES:
        values = scores(shape, 1)
        if kind == "few values":
            values = rng.integers(0, 3, shape)
        elif kind == "zeros":
            values = np.where(rng.random(shape) < 0.7, 0.0, values)
        elif kind == "forbidden":
            values = np.where(rng.random(shape) < 0.5, -rng.integers(1, 3, shape), values // 3)
        elif kind == "all equal":
            values = np.full(shape, 0.1)
        elif kind == "close":  # the same in float32, not in float64
            values = 1.0 + 1e-12 * rng.permutation(values.size).reshape(shape)
        values = values.astype(dtype)
        for sparsity in SPARSITIES if pattern.needs_sparsity else [None]:
            expected = brute_force(pattern, values, sparsity)
            np.testing.assert_array_equal(pattern.select(values, sparsity), expected, err_msg=f"{shape} {sparsity}")


def test_ties_go_to_the_earlier_entry():
    ones = np.ones((2, 4), np.float32)
    np.testing.assert_array_equal(Unstructured().select(ones, 0.375), [[1, 1, 1, 1], [1, 0, 0, 0]])
    np.testing.assert_array_equal(PerRow().select(ones, 0.375), [[1, 1, 1, 0], [1, 1, 0, 0]])
    np.testing.assert_array_equal(NM(3, 4).select(ones), [[1, 1, 1, 0], [1, 1, 1, 0]])
    np.testing.assert_array_equal(Groups("columns").select(ones, 0.5), [[1, 1, 0, 0], [1, 1, 0, 0]])


@pytest.mark.parametrize("scale", [1e-300, 1e-42, 1e42, 1e200])
def test_scores_beyond_the_range_of_float32_are_told_apart(scale):
    values = scores((6, 9)) * scale
    mask = Unstructured().select(values, 0.5)
    np.testing.assert_array_equal(mask, brute_force(Unstructured(), values, 0.5))


def test_rows_differ_by_at_most_one_weight():
    values = scores((7, 10)) + 1000.0 * np.arange(7)[:, None]  # the last rows would take everything
    for kept in range(71):
        sizes = np.count_nonzero(PerRow().select(values, 1 - kept / 70), axis=1)
        assert sizes.sum() == kept
        assert sizes.max() - sizes.min() <= 1


def test_one_more_stays_in_the_rows_whose_next_score_is_largest():
    values = np.array([[9.0, 8, 1], [9, 2, 1], [9, 5, 1]])
    np.testing.assert_array_equal(PerRow().select(values, 1 - 5 / 9), [[1, 1, 0], [1, 0, 0], [1, 1, 0]])
    np.testing.assert_array_equal(PerRow().select(values, 1 - 2 / 9), [[1, 0, 0], [1, 0, 0], [0, 0, 0]])
    np.testing.assert_array_equal(PerRow().select(-values, 0.5), np.zeros((3, 3)))


# --- N:M -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept, of", NMS)
@pytest.mark.parametrize("n_in", [32, 33, 35, 39, 101])
def test_of_every_m_inputs_n_stay_and_a_remainder_keeps_its_share(kept, of, n_in):
    pattern = NM(kept, of)
    mask = pattern.select(scores((6, n_in), dtype=np.float32))
    whole = n_in - n_in % of
    assert (mask[:, :whole].reshape(-1, of).sum(1) == kept).all()
    assert (mask[:, whole:].sum(1) == round(n_in % of * kept / of)).all()
    assert np.count_nonzero(mask) == pattern.count((6, n_in))


def test_n_counts_the_kept_weights_and_the_repr_says_so():
    assert np.count_nonzero(get_pattern("1:4").select(scores((8, 16)))) == 8 * 16 // 4
    assert np.count_nonzero(get_pattern("3:4").select(scores((8, 16)))) == 8 * 16 * 3 // 4
    assert repr(NM(1, 4)) == "NM(kept=1, of=4)"
    assert str(NM(1, 4)) == "1:4 (1 KEPT of every 4 inputs)"


def test_groups_run_along_the_inputs_of_a_row():
    mask = NM(2, 4).select(np.arange(32.0).reshape(4, 8))
    np.testing.assert_array_equal(mask, np.tile([0, 0, 1, 1, 0, 0, 1, 1], (4, 1)))


def test_groups_of_a_convolution_run_along_channels_and_kernel():
    weight = np.random.default_rng(0).standard_normal((6, 4, 3, 3))
    mask = NM(2, 4).select(np.abs(weight.reshape(6, -1))).reshape(weight.shape)
    for filter_weight, filter_mask in zip(weight, mask, strict=True):
        for start in range(0, 36, 4):
            size = np.abs(filter_weight.ravel()[start : start + 4])
            kept = filter_mask.ravel()[start : start + 4]
            assert kept.sum() == 2 and size[kept].min() > size[~kept].max()


@pytest.mark.parametrize("pattern", ["2:4", NM(2, 4)])
def test_a_sparsity_beside_n_to_m_must_be_the_implied_one(pattern):
    assert get_pattern(pattern, 0.5) == get_pattern(pattern) == NM(2, 4)
    NM(2, 4).validate((8, 16), 0.5)
    assert get_pattern("1:3", 2 / 3) == NM(1, 3)
    with pytest.raises(InvalidInputError, match="sparsity=0.6 contradicts .*2 KEPT of every 4.* 0.5; leave one out"):
        get_pattern(pattern, 0.6)
    with pytest.raises(InvalidInputError, match=r"sparsity=0.25 contradicts pattern='1:4 \(1 KEPT"):
        NM(1, 4).validate((8, 16), 0.25)


# --- groups ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", GROUPED, ids=str)
@pytest.mark.parametrize("forbidden", [False, True])
def test_the_groups_with_the_largest_sum_of_squares_stay_as_a_whole(spec, forbidden):
    pattern, shape = get_pattern(spec), (12, 18)
    labels = GROUPED[spec].structure(shape).labels
    n_groups = labels.max() + 1
    rng = np.random.default_rng(2)
    values = rng.integers(0, 9, shape).astype(np.float32)  # sums of squares are exact, some are equal
    if forbidden:
        values[rng.random(shape) < 0.4] = -1.0
        values[np.isin(labels, rng.permutation(n_groups)[: n_groups // 3])] = -2.0
    usable = [(values[labels == g] >= 0).any() for g in range(n_groups)]
    sums = [(np.maximum(values[labels == g], 0) ** 2).sum() if usable[g] else -1.0 for g in range(n_groups)]
    for sparsity in SPARSITIES:
        kept = round((1 - sparsity) * n_groups)
        stay = np.flatnonzero((rank_of(sums) < kept) & usable)
        mask = pattern.select(values, sparsity)
        np.testing.assert_array_equal(mask, np.isin(labels, stay) & (values >= 0))
        assert pattern.holds(mask, sparsity)
        sizes = np.sort(np.bincount(labels.ravel()))[::-1]
        assert np.count_nonzero(mask) <= pattern.count(shape, sparsity) == sizes[:kept].sum()


def test_groups_of_equal_size_have_an_exact_count():
    for pattern, size in ((Blocks((4, 3)), 12), (Groups("columns"), 12), (Groups("rows"), 18)):
        for sparsity in SPARSITIES:
            expected = size * round((1 - sparsity) * 216 / size)
            mask = pattern.select(scores((12, 18)), sparsity)
            assert np.count_nonzero(mask) == pattern.count((12, 18), sparsity) == expected


def test_groups_of_lists_fit_every_shape_of_as_many_weights():
    pattern = Groups([[0, 1, 2], [3, 4, 5]])
    for shape in ((2, 3), (1, 6), (3, 2), (2, 3)):
        mask = pattern.select(np.arange(6.0).reshape(shape), 0.5)
        np.testing.assert_array_equal(mask.ravel(), [0, 0, 0, 1, 1, 1])


def test_squares_of_large_scores_do_not_overflow():
    values = np.full((4, 4), 1e30, np.float32)
    values[2] *= 2
    np.testing.assert_array_equal(Groups("rows").select(values, 0.75), np.repeat([[0], [0], [1], [0]], 4, 1))


# --- all patterns ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern, sparsity", EVERY, ids=str)
def test_a_selection_holds_and_one_weight_more_does_not(pattern, sparsity):
    values = scores((12, 18))
    mask = pattern.select(values, sparsity)
    assert pattern.holds(mask, sparsity) and pattern.holds(np.zeros((12, 18)), sparsity)
    assert pattern.holds(np.where(mask, values, 0.0), sparsity)
    assert not pattern.holds(np.ones((12, 18)), sparsity)
    outside = [i for i in range(216) if not mask.flat[i]]
    for i in outside:
        more = mask.copy()
        more.flat[i] = True
        assert not pattern.holds(more, sparsity)


def test_rows_that_differ_too_much_do_not_hold():
    assert PerRow().holds([[1, 1, 0], [1, 0, 0]], 0.5)
    assert not PerRow().holds([[1, 1, 1], [0, 0, 0]], 0.5)
    assert not PerRow().holds([[1, 1, 0], [1, 1, 0]], 0.5)
    assert not NM(1, 2).holds([[1, 1, 0, 0]])
    assert NM(1, 2).holds([[0, 1, 0, 0]])


@pytest.mark.parametrize("pattern, sparsity", EVERY, ids=str)
def test_forbidden_scores_never_stay_nor_do_undefined_ones(pattern, sparsity):
    values = scores((12, 18))
    assert not pattern.select(-values, sparsity).any()
    rng = np.random.default_rng(0)
    for bad in (-1.0, -np.inf, np.nan):
        forbidden = rng.random(values.shape) < 0.5
        mask = pattern.select(np.where(forbidden, bad, values), sparsity)
        assert not mask[forbidden].any()
        assert pattern.holds(mask, sparsity)


@pytest.mark.parametrize("pattern, sparsity", EVERY, ids=str)
def test_infinite_scores_stay_first(pattern, sparsity):
    mask = pattern.select(scores((12, 18), 1), sparsity)
    again = pattern.select(np.where(mask, np.inf, scores((12, 18), 2)), sparsity)
    np.testing.assert_array_equal(again, mask)


@pytest.mark.parametrize("pattern", [p for p, s in EVERY if s is not None], ids=str)
def test_everything_stays_at_sparsity_0_and_nothing_at_1(pattern):
    for dtype in (np.float32, np.float64):
        assert pattern.select(scores((12, 18), dtype=dtype), 0.0).all()
        assert pattern.select(np.zeros((12, 18), dtype), 0.0).all()
        assert not pattern.select(scores((12, 18), dtype=dtype), 1.0).any()
    assert pattern.count((12, 18), 0.0) == 216 and pattern.count((12, 18), 1.0) == 0


@pytest.mark.parametrize("n_in", [128, 129, 500, 784])
@pytest.mark.parametrize("sparsity", [0.7, 0.9])
def test_the_fraction_of_zeros_is_right_to_one_weight(n_in, sparsity):
    for pattern in ENTRIES:
        zeros = 64 * n_in - np.count_nonzero(pattern.select(scores((64, n_in), dtype=np.float32), sparsity))
        assert abs(zeros - sparsity * 64 * n_in) <= 0.5 + 1e-6


@pytest.mark.parametrize("pattern, sparsity", EVERY, ids=str)
def test_patterns_survive_pickling_and_copies(pattern, sparsity):
    values = scores((12, 18))
    expected = pattern.select(values, sparsity)
    for other in (pickle.loads(pickle.dumps(pattern)), copy.deepcopy(pattern)):
        np.testing.assert_array_equal(other.select(values, sparsity), expected)
        assert repr(other) == repr(pattern) and str(other) == str(pattern)


@pytest.mark.parametrize("pattern, sparsity", EVERY, ids=str)
def test_selection_changes_no_argument_and_takes_any_layout(pattern, sparsity):
    values = scores((12, 18))
    frozen = values.copy()
    frozen.flags.writeable = False
    expected = pattern.select(frozen, sparsity)
    np.testing.assert_array_equal(frozen, values)
    for other in (np.asfortranarray(values), np.repeat(values, 2, axis=1)[:, ::2]):
        np.testing.assert_array_equal(pattern.select(other, sparsity), expected)


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, expected",
    [
        (None, Unstructured()), ("unstructured", Unstructured()), ("Per-Row", PerRow()), ("2:4", NM(2, 4)),
        (" 1 : 2", NM(1, 2)), ("16:32", NM(16, 32)), ("4x4 blocks", Blocks((4, 4))), ("1 x 16 blocks", Blocks((1, 16))),
        (NM(2, 4), NM(2, 4)),
    ],
)  # fmt: skip
def test_patterns_have_names(name, expected):
    assert get_pattern(name) == expected


@pytest.mark.parametrize("name", ["columns", "rows", "filters"])
def test_groups_have_the_names_of_the_penalty(name):
    assert get_pattern(name).groups == GroupL2(name).groups


ERRORS = {
    "what": (lambda: get_pattern("2of4"), "pattern must be 'unstructured', 'per-row', .*'N:M'.*, got '2of4'"),
    "sizes": (lambda: get_pattern("4x4"), "'RxC blocks'.*got '4x4'"),
    "kernels": (lambda: get_pattern("kernels"), r"got 'kernels'; give the convolution's kernel: Groups\('kernels'"),
    "blocks": (lambda: get_pattern("blocks"), "got 'blocks'; give the block: '4x4 blocks'"),
    "class": (lambda: get_pattern(Blocks), "pattern must be .*, got the class Blocks"),
    "tuple": (lambda: get_pattern((2, 4)), "pattern must be .*, got a tuple"),
    "4:2": (lambda: get_pattern("4:2"), "1 <= N <= M, as N weights are KEPT of every M inputs, got '4:2'"),
    "0:4": (lambda: get_pattern("0:4"), "1 <= N <= M.*got '0:4'"),
    "NM(4, 2)": (lambda: NM(4, 2), "kept must be at most 2, the M of N:M, got 4"),
    "NM(0, 2)": (lambda: NM(0, 2), "kept must be an integer of at least 1, got 0"),
    "NM(1, 2.5)": (lambda: NM(1, 2.5), "of must be an integer of at least 1, got 2.5"),
    "inputs": (lambda: NM(2, 4).validate((9, 3)), "needs at least 4 inputs, weight has 3; choose a smaller M"),
    "block": (lambda: Blocks((4,)), r"block must be a tuple of positive integers.*got \(4,\)"),
    "0 blocks": (lambda: get_pattern("0x4 blocks"), r"block must be .*got \(0, 4\)"),
    "groups": (lambda: Groups("colums"), "groups must be one of 'columns'.*got 'colums'"),
    "kernel": (lambda: Groups("kernels"), "kernel_size must be .*got None"),
    "labels": (lambda: Groups(LABELS).validate((3, 4), 0.5), r"groups of shape \(12, 18\) must have weight's shape"),
    "left out": (lambda: Groups([[0, 1]]).validate((1, 3), 0.5), "weight 2 .* is in no group"),
    "odd kernel": (
        lambda: Groups("kernels", kernel_size=(3, 3)).validate((4, 20), 0.5),
        "which does not divide weight's 20 columns",
    ),
    "weight": (lambda: Unstructured().holds(np.ones(3), 0.5), r"weight must have 2 dimensions.*got shape \(3,\)"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_name_the_argument_and_what_to_do(case):
    act, message = ERRORS[case]
    with pytest.raises(InvalidInputError, match=message):
        act()


@pytest.mark.parametrize("sparsity", [-0.1, 1.1, float("nan"), "0.5", 90])
def test_a_sparsity_is_a_fraction(sparsity):
    for pattern, _ in EVERY:
        with pytest.raises(InvalidInputError, match=r"sparsity must be a number in \[0, 1\]"):
            pattern.validate((12, 18), sparsity)
        with pytest.raises(InvalidInputError, match=r"sparsity must be a number in \[0, 1\]"):
            get_pattern(pattern, sparsity)


def test_a_sparsity_must_be_given_except_with_n_to_m():
    for pattern in (p for p, s in EVERY if s is not None):
        for act in (lambda p=pattern: p.validate((12, 18)), lambda p=pattern: p.select(scores((12, 18)))):
            with pytest.raises(InvalidInputError, match="sparsity must be given with pattern="):
                act()
    NM(2, 4).validate((12, 18))


# --- weights that keep to a pattern ----------------------------------------------------------------------------------


def layer(density, seed=0, shape=(12, 18)):
    """Return sparse weights, dense ones and column norms."""
    rng = np.random.default_rng(seed)
    sparse = np.where(rng.random(shape) < density, rng.standard_normal(shape), 0.0)
    return sparse, rng.standard_normal(shape), rng.uniform(0.1, 3.0, shape[1])


@pytest.mark.parametrize("pattern, sparsity", EVERY, ids=str)
@pytest.mark.parametrize("density", [0.0, 0.1, 0.4, 1.0])
def test_rounded_weights_fill_the_pattern_exactly(pattern, sparsity, density):
    sparse, dense, norms = layer(density)
    allowed = np.ones(sparse.shape, bool)
    rounded = round_to_pattern(sparse, dense, norms, allowed, pattern, sparsity)
    kept = rounded != 0
    assert pattern.holds(rounded, sparsity)
    np.testing.assert_array_equal(pattern.select(np.where(kept, np.inf, 1.0), sparsity), kept)  # nothing more fits
    np.testing.assert_array_equal(rounded[kept], np.where(sparse != 0, sparse, dense)[kept])
    if density == 1.0:
        np.testing.assert_array_equal(kept, pattern.select(np.abs(sparse) * norms, sparsity))
    if density == 0.0:
        np.testing.assert_array_equal(kept, pattern.select(np.abs(dense) * norms, sparsity))


@pytest.mark.parametrize("pattern, sparsity", EVERY, ids=str)
def test_a_selection_with_zeros_is_completed_from_the_dense_weights(pattern, sparsity):
    sparse, dense, norms = layer(1.0)
    mask = pattern.select(np.abs(sparse) * norms, sparsity)
    lost = mask & (np.random.default_rng(1).random(mask.shape) < 0.2)
    rounded = round_to_pattern(np.where(mask & ~lost, sparse, 0), dense, norms, mask, pattern, sparsity)
    np.testing.assert_array_equal(rounded, np.where(lost, dense, np.where(mask, sparse, 0.0)))


@pytest.mark.parametrize("pattern, sparsity", EVERY, ids=str)
def test_forbidden_and_zero_dense_weights_never_come_back(pattern, sparsity):
    sparse, dense, norms = layer(0.3)
    allowed = np.random.default_rng(1).random(sparse.shape) < 0.5
    sparse[~allowed], dense[:, ::3] = 0.0, 0.0
    rounded = round_to_pattern(sparse, dense, norms, allowed, pattern, sparsity)
    assert pattern.holds(rounded, sparsity)
    assert not rounded[~allowed].any()
    usable = allowed & ((sparse != 0) | (dense != 0))
    again = pattern.select(np.where(rounded != 0, np.inf, np.where(usable, 1.0, -1.0)), sparsity)
    np.testing.assert_array_equal(again, rounded != 0)
    assert np.isfinite(rounded).all()


def test_each_group_of_inputs_is_filled_with_its_own_largest_dense_weights():
    sparse = np.array([[0.0, 5, 0, 0, 1, 2, 3, 0]])
    dense = np.array([[1.0, 9, 3, 2, 9, 9, 9, 9]])
    rounded = round_to_pattern(sparse, dense, np.ones(8), np.ones((1, 8), bool), NM(2, 4))
    np.testing.assert_array_equal(rounded, [[0, 5, 3, 0, 0, 2, 3, 0]])
    norms = np.array([9.0, 1, 1, 1, 9, 1, 1, 1])
    rounded = round_to_pattern(sparse, dense, norms, np.ones((1, 8), bool), NM(2, 4))
    np.testing.assert_array_equal(rounded, [[1, 5, 0, 0, 1, 0, 3, 0]])


def test_whole_columns_come_back_by_their_sum_of_squares():
    sparse = np.array([[0.0, 1, 0, 0], [0, 0, 0, 0]])
    dense = np.array([[3.0, 8, 2, 4], [3, 7, 4, 0]])
    rounded = round_to_pattern(sparse, dense, np.ones(4), np.ones((2, 4), bool), Groups("columns"), 0.5)
    np.testing.assert_array_equal(rounded, [[0, 1, 2, 0], [0, 7, 4, 0]])


def test_weights_of_dead_inputs_are_told_apart_by_size():
    dense = np.array([[1.0, 3, 2]])
    for norms, expected in (([0.0, 0, 0], [0, 3, 0]), ([1.0, 0, 0], [1, 0, 0])):
        rounded = round_to_pattern(
            np.zeros((1, 3)), dense, np.array(norms), np.ones((1, 3), bool), Unstructured(), 2 / 3
        )
        np.testing.assert_array_equal(rounded, [expected])
    rounded = round_to_pattern(
        np.zeros((1, 3)), dense, np.array([1.0, 0, 0]), np.ones((1, 3), bool), Unstructured(), 1 / 3
    )
    np.testing.assert_array_equal(rounded, [[1, 3, 0]])


def test_already_sparse_weights_stay_as_they_are():
    sparse, _, norms = layer(0.3)
    allowed = np.ones(sparse.shape, bool)
    for sparsity in (0.0, 0.3, 0.5):  # more may stay than there is
        rounded = round_to_pattern(sparse, sparse, norms, allowed, Unstructured(), sparsity)
        np.testing.assert_array_equal(rounded, sparse)
    mask = NM(2, 4).select(np.abs(sparse))
    rounded = round_to_pattern(np.where(mask, sparse, 0.0), sparse, norms, allowed, NM(2, 4))
    np.testing.assert_array_equal(rounded, np.where(mask, sparse, 0.0))


def test_rounding_to_a_pattern_changes_no_argument():
    sparse, dense, norms = layer(0.5)
    before = sparse.copy(), dense.copy(), norms.copy()
    for pattern, sparsity in EVERY:
        rounded = round_to_pattern(sparse, dense, norms, np.ones(sparse.shape, bool), pattern, sparsity)
        assert not np.shares_memory(rounded, sparse)
    for one, other in zip((sparse, dense, norms), before, strict=True):
        np.testing.assert_array_equal(one, other)
