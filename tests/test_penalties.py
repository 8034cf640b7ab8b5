"""Penalties: value, proximity operator and dual norm against brute force and against each other."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import minimize_scalar

from sisopt import L1, InvalidInputError, LayerProblem, UnsupportedError, WeightedL1
from sisopt.penalties import GroupL2, SparseGroup, get_penalty

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
    np.testing.assert_array_equal(g.structure(SHAPE).factors, np.broadcast_to(a, SHAPE))


@pytest.mark.parametrize("shape", [(4, 3), (3,), (2, 4), (6, 4), (3, 8)], ids=str)
def test_factors_of_another_shape_are_refused(shape):
    with pytest.raises(InvalidInputError, match=r"penalty weights.*\(3, 4\)"):
        WeightedL1(np.ones(shape)).structure(SHAPE)


@pytest.mark.parametrize("shape", [(3, 4), (6, 8)], ids=str)
def test_factors_may_not_widen_the_weights(shape):
    with pytest.raises(InvalidInputError, match=r"penalty weights.*\(1, 4\)"):
        WeightedL1(np.ones(shape)).structure((1, 4))


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


def test_factors_of_a_problem_are_infinite_where_the_mask_forbids():
    X, W = np.eye(4), np.ones(SHAPE)
    mask = np.random.default_rng(3).random(SHAPE) < 0.5
    problem = LayerProblem(X, W, penalty=WeightedL1([1.0, 2.0, 3.0, 4.0]), mask=mask)
    np.testing.assert_array_equal(problem.structure.factors, np.where(mask, [1.0, 2.0, 3.0, 4.0], np.inf))


GRID = (4, 6)
ROWS = [[6 * i + j for j in range(6)] for i in range(4)]
COLUMNS = [[6 * i + j for i in range(4)] for j in range(6)]
KERNELS = [row[start : start + 3] for row in ROWS for start in (0, 3)]
CHANNELS = [sum((row[start : start + 3] for row in ROWS), []) for start in (0, 3)]
BLOCKS = [
    [6 * i + j for i in rows for j in columns] for rows in ((0, 1, 2), (3,)) for columns in ((0, 1, 2, 3), (4, 5))
]
LABELS = np.array([[3, 3, 0, 0, 7, 7], [3, 1, 1, 0, 0, 7], [1, 1, 1, 3, 3, 3], [5, 5, 5, 5, 5, 5]])
LABELLED = [np.flatnonzero(LABELS == label).tolist() for label in (0, 1, 3, 5, 7)]
LISTED = [[5, 0, 23], [1, 2, 3, 4], list(range(6, 23))]

ways = {
    "columns": ({"groups": "columns"}, COLUMNS),
    "rows": ({"groups": "rows"}, ROWS),
    "filters": ({"groups": "filters"}, ROWS),
    "kernels": ({"groups": "kernels", "kernel_size": (1, 3)}, KERNELS),
    "channels": ({"groups": "channels", "kernel_size": (3,)}, CHANNELS),
    "blocks": ({"groups": "blocks", "block": (3, 4)}, BLOCKS),
    "labels": ({"groups": LABELS}, LABELLED),
    "indices": ({"groups": LISTED}, LISTED),
}


def make(way, weighted, sparse):
    """Return a group penalty, its groups as lists of indices, kappa and the factors a, both by definition."""
    arguments, groups = ways[way]
    rng = np.random.default_rng(len(groups))
    kappa = rng.uniform(0.5, 2.0, len(groups)) if weighted else np.sqrt([len(group) for group in groups])
    weights = {"weights": kappa} if weighted else {}
    if not sparse:
        return GroupL2(**arguments, **weights), groups, kappa, np.zeros(GRID)
    a = rng.uniform(0.2, 1.0, GRID)
    return SparseGroup(**arguments, **weights, l1=a), groups, kappa, a


group_penalties = pytest.mark.parametrize(
    ("way", "weighted", "sparse"),
    [(way, way in ("blocks", "labels", "rows"), sparse) for way in ways for sparse in (False, True)],
)


def brute_value(W, groups, kappa, a):
    flat = np.ravel(W)
    norms = sum(k * np.linalg.norm(flat[group]) for k, group in zip(kappa, groups, strict=True))
    return norms + np.sum(a * np.abs(W))


@group_penalties
def test_group_value_is_the_sum_over_groups(way, weighted, sparse):
    g, groups, kappa, a = make(way, weighted, sparse)
    W = np.random.default_rng(0).standard_normal(GRID)
    assert g.value(W) == pytest.approx(brute_value(W, groups, kappa, a), rel=1e-14)
    assert g.value(np.zeros(GRID)) == 0.0
    assert g.structure(GRID).couples_rows == any(len({index // 6 for index in group}) > 1 for group in groups)


@group_penalties
def test_group_prox_and_dual_norm_agree_with_a_conic_solver(way, weighted, sparse):
    cp = pytest.importorskip("cvxpy")
    g, groups, kappa, a = make(way, weighted, sparse)
    W = np.random.default_rng(1).standard_normal(GRID)
    V = cp.Variable(W.size)
    norms = sum(k * cp.norm(V[group]) for k, group in zip(kappa, groups, strict=True))
    penalty = norms + a.ravel() @ cp.abs(V)
    tight = {"solver": "CLARABEL", "tol_gap_abs": 1e-9, "tol_gap_rel": 1e-9, "tol_feas": 1e-9}
    cp.Problem(cp.Minimize(0.3 * penalty + 0.5 * cp.sum_squares(V - W.ravel()))).solve(**tight)
    np.testing.assert_allclose(g.prox(W, 0.3), V.value.reshape(GRID), atol=2e-5)
    inner = cp.Problem(cp.Maximize(W.ravel() @ V), [penalty <= 1])
    assert g.dual_norm(W) == pytest.approx(inner.solve(**tight), rel=1e-7)


@group_penalties
@given(W=arrays(np.float64, GRID, elements=st.floats(-1e3, 1e3)), step=steps)
@settings(max_examples=20)
def test_group_prox_and_dual_norm_obey_moreau(way, weighted, sparse, W, step):
    # W = V + U with V = prox(W) exactly if U lies in step times the dual ball and <U, V> = step g(V)
    g, *_ = make(way, weighted, sparse)
    V = g.prox(W, step)
    U = W - V
    assert g.dual_norm(U) <= step * (1 + 1e-9) + 1e-9
    assert np.sum(U * V) == pytest.approx(step * g.value(V), rel=1e-9, abs=1e-9)


@group_penalties
def test_group_dual_norm_bounds_and_attains(way, weighted, sparse):
    g, groups, kappa, a = make(way, weighted, sparse)
    rng = np.random.default_rng(2)
    C = rng.standard_normal(GRID)
    norm = g.dual_norm(C)
    for _ in range(50):
        W = C * rng.random(GRID) if rng.random() < 0.5 else rng.standard_normal(GRID)
        assert np.sum(C * W) <= norm * g.value(W) * (1 + 1e-12)
    best = []
    for group in groups:  # the maximiser lives on one group, along its excess
        W = np.zeros(C.size)
        W[group] = (np.sign(C) * np.maximum(np.abs(C) - norm * a, 0.0)).ravel()[group]
        value = brute_value(W.reshape(GRID), groups, kappa, a)
        best.append(np.sum(C.ravel() * W) / value if value > 0 else 0.0)
    assert max(best) == pytest.approx(norm, rel=1e-12)
    assert g.dual_norm(np.zeros(GRID)) == 0.0


@pytest.mark.parametrize("scale", [1e-100, 1e-8, 1.0, 1e8, 1e60])
def test_sparse_group_dual_norm_solves_its_equation_at_every_scale(scale):
    rng = np.random.default_rng(3)
    for _ in range(20):
        C = rng.standard_normal((1, 30)) ** 5 * scale
        a, kappa = 10.0 ** rng.uniform(-3, 3, (1, 30)), 10.0 ** rng.uniform(-3, 3)
        t = SparseGroup("rows", l1=a, weights=kappa).dual_norm(C)
        excess = np.maximum(np.abs(C) / scale - t / scale * a, 0.0)
        assert np.linalg.norm(excess) == pytest.approx(t / scale * kappa, rel=1e-9)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("way", ["columns", "rows", "kernels", "blocks", "indices"])
def test_forbidden_weights_are_in_no_norm(way, sparse):
    g, groups, kappa, a = make(way, True, sparse)
    rng = np.random.default_rng(4)
    mask = rng.random(GRID) < 0.6
    W, C = rng.standard_normal((2, *GRID))
    s = g.structure(GRID, mask)
    kept = np.where(mask, W, 0.0)
    assert s.values(kept).sum() == pytest.approx(brute_value(kept, groups, kappa, a), rel=1e-14)
    V = s.prox(W, 0.2)
    assert not V[~mask].any()
    np.testing.assert_allclose(V, g.prox(kept, 0.2), atol=1e-15)
    assert s.dual_norms(C).max() == pytest.approx(g.dual_norm(np.where(mask, C, 0.0)), rel=1e-14)
    assert s.kkt_violation(V, np.where(mask, V - W, C), 0.2) < 1e-12  # the optimality condition of the prox
    nothing = g.structure(GRID, np.zeros(GRID, np.bool_))
    assert not nothing.dual_norms(C).any()
    assert not nothing.prox(W, 0.1).any()


@group_penalties
def test_kkt_violation_vanishes_at_the_prox_alone(way, weighted, sparse):
    g, *_ = make(way, weighted, sparse)
    s = g.structure(GRID)
    W = np.random.default_rng(5).standard_normal(GRID)
    V = s.prox(W, 0.4)
    assert 0 < np.count_nonzero(V) < V.size or not sparse
    assert s.kkt_violation(V, V - W, 0.4) < 1e-12
    i = np.unravel_index(np.argmax(np.abs(V)), GRID)
    U = V.copy()
    U[i] *= 1.01
    assert s.kkt_violation(U, U - W, 0.4) > 1e-3
    zero = np.zeros(GRID)
    limit = s.dual_norms(W).max()
    assert s.kkt_violation(zero, -W, limit) < 1e-12
    assert s.kkt_violation(zero, -W, 0.99 * limit) > 1e-3


def test_kkt_violation_without_groups_is_the_largest_relative_entry():
    s = WeightedL1([[1.0, 2.0, 4.0]]).structure((1, 3))
    # distances: 3 above the factor 2 at zero, 1 short of the factor 2 * 2, none at zero
    assert s.kkt_violation(np.array([[0.0, -1.0, 0.0]]), np.array([[5.0, 3.0, 8.0]]), 2.0) == pytest.approx(1.5)
    assert s.kkt_violation(np.ones((1, 3)), np.ones((1, 3)), 0.0) == 0.0


@group_penalties
def test_sums_of_rows_belong_to_their_rows(way, weighted, sparse):
    g, groups, kappa, a = make(way, weighted, sparse)
    s = g.structure(GRID)
    W, C = np.random.default_rng(6).standard_normal((2, *GRID))
    if s.couples_rows:
        # a row's part of a norm is what its squares are of the group's
        flat, parts = W.ravel(), np.abs(W) * a
        for k, group in zip(kappa, groups, strict=True):
            np.add.at(parts.ravel(), group, k * flat[group] ** 2 / np.linalg.norm(flat[group]))
        np.testing.assert_allclose(s.values(W), parts.sum(axis=1), rtol=1e-13)
        assert set(s.dual_norms(C)) == {g.dual_norm(C)}
        assert s.rows(slice(None)) is s
        with pytest.raises(UnsupportedError, match="span several rows"):
            s.rows(slice(1, 3))
        return
    for i in range(GRID[0]):
        alone = np.where(np.arange(GRID[0])[:, None] == i, 1.0, 0.0)
        assert s.values(W)[i] == pytest.approx(g.value(W * alone), rel=1e-14)
        assert s.dual_norms(C)[i] == pytest.approx(g.dual_norm(C * alone), rel=1e-14)
    for index in (slice(1, 3), np.array([3, 0])):
        part = s.rows(index)
        np.testing.assert_allclose(part.values(W[index]), s.values(W)[index], rtol=1e-15)
        np.testing.assert_allclose(part.dual_norms(C[index]), s.dual_norms(C)[index], rtol=1e-15)
        np.testing.assert_allclose(part.prox(W[index], 0.3), s.prox(W, 0.3)[index], rtol=1e-15)


def test_structure_of_the_l1_norm_is_its_factors():
    g = WeightedL1([1.0, 2.0, 3.0, 4.0])
    W = np.random.default_rng(7).standard_normal(SHAPE)
    s = g.structure(SHAPE)
    assert s.labels is None
    assert not s.couples_rows
    assert s.values(W).sum() == pytest.approx(g.value(W), rel=1e-15)
    assert s.dual_norms(W).max() == g.dual_norm(W)
    np.testing.assert_array_equal(s.prox(W, 0.1), g.prox(W, 0.1))
    np.testing.assert_array_equal(s.rows(slice(1, 2)).factors, [[1.0, 2.0, 3.0, 4.0]])
    mask = W > 0
    np.testing.assert_array_equal(g.structure(SHAPE, mask).factors, np.where(mask, [1.0, 2.0, 3.0, 4.0], np.inf))
    assert g.structure(SHAPE, mask).kkt_violation(np.zeros(SHAPE), 10.0 * (W < 0), 1.0) == 0.0


def test_groups_of_zero_get_no_share_and_stay_zero():
    g = GroupL2("columns")
    W = np.zeros(GRID)
    W[:, 2] = 1.0
    np.testing.assert_allclose(g.structure(GRID).values(W), np.full(4, 1.0))
    np.testing.assert_array_equal(g.prox(W, 2.0), np.zeros(GRID))
    np.testing.assert_allclose(g.prox(W, 0.5), 0.5 * W)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([[0, 1, 2], [2, 3, 4, 5]], r"weight 2 \(row 0, column 2\) is in 2 places"),
        ([[0, 1, 3], [4, 5]], r"weight 2 \(row 0, column 2\) is in no group"),
        ([[0, 1, 2, 3], [4]], r"weight 5 \(row 1, column 2\) is in no group"),
        ([[0, 1, 2, 3, 4, 5, 6]], r"0 to 5; group 0 holds 6"),
        ([[0, 1, 2, 3, 4, -1]], r"0 to 5; group 0 holds -1"),
        (np.zeros((3, 2), int), r"\(3, 2\) must have weight's shape \(2, 3\)"),
        ([], "in no group"),
    ],
)
def test_groups_that_are_no_partition_are_refused(groups, message):
    with pytest.raises(InvalidInputError, match=message):
        GroupL2(groups).structure((2, 3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"groups": "column"}, "'columns'.*got 'column'"),
        ({"groups": 3}, "groups must be one of.*got int"),
        ({"groups": None}, "groups must be one of.*got NoneType"),
        ({"groups": np.zeros(3, int)}, r"shape \(3,\)"),
        ({"groups": np.zeros((2, 3))}, "dtype float64"),
        ({"groups": np.full((2, 3), -1)}, "at least 0, got -1"),
        ({"groups": [[0, 1], []]}, "group 1 has"),
        ({"groups": [[0, 1], [0.5]]}, "group 1 has dtype float64"),
        ({"groups": "kernels"}, r"kernel_size must be a tuple.*\(3, 3\).*got None"),
        ({"groups": "kernels", "kernel_size": 3}, "got 3"),
        ({"groups": "channels", "kernel_size": (3, 0)}, r"got \(3, 0\)"),
        ({"groups": "columns", "kernel_size": (3, 3)}, "leave it out"),
        ({"groups": "rows", "block": (2, 2)}, "leave it out"),
        ({"groups": "blocks"}, "block must be a tuple.*got None"),
        ({"groups": "blocks", "block": (2, 2, 2)}, r"got \(2, 2, 2\)"),
        ({"groups": "rows", "weights": -1.0}, "weights must be positive finite numbers.*got -1"),
        ({"groups": "rows", "weights": [1.0, np.inf]}, "got inf"),
        ({"groups": "rows", "weights": [[1.0]]}, r"got shape \(1, 1\)"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(f"{v!r}"[:14] for v in value.values()),
)
@pytest.mark.parametrize("kind", [GroupL2, SparseGroup])
def test_bad_arguments_of_groups_are_named(kind, arguments, message):
    with pytest.raises(InvalidInputError, match=message):
        kind(**arguments)


@pytest.mark.parametrize("l1", [0.0, -1.0, np.nan, "much", [[[1.0]]]])
def test_bad_factors_of_a_sparse_group_are_named(l1):
    with pytest.raises(InvalidInputError, match="l1 must be positive finite numbers"):
        SparseGroup("rows", l1=l1)


def test_groups_that_do_not_fit_the_weights_are_refused():
    with pytest.raises(InvalidInputError, match=r"kernel_size \(2, 2\) holds 4 weights.*6 columns"):
        GroupL2("kernels", kernel_size=(2, 2)).structure(GRID)
    with pytest.raises(InvalidInputError, match=r"one per group, 4 groups for weight's shape \(4, 6\), got 3"):
        GroupL2("rows", weights=np.ones(3)).structure(GRID)
    with pytest.raises(InvalidInputError, match=r"l1 of shape \(1, 5\).*\(4, 6\)"):
        SparseGroup("rows", l1=np.ones(5)).structure(GRID)
    with pytest.raises(InvalidInputError, match="2 dimensions"):
        GroupL2("rows").value(np.ones(3))


@pytest.mark.parametrize("way", ways)
def test_group_penalties_survive_pickling(way):
    g, *_ = make(way, True, True)
    W = np.random.default_rng(8).standard_normal(GRID)
    copy = pickle.loads(pickle.dumps(g))
    assert copy.value(W) == g.value(W)
    s = pickle.loads(pickle.dumps(g.structure(GRID)))
    np.testing.assert_array_equal(s.prox(W, 0.1), g.prox(W, 0.1))


def test_arrays_of_groups_are_copies_that_nobody_can_change():
    labels, weights, part = LABELS.copy(), np.ones(5), np.arange(24)
    g, listed = GroupL2(labels, weights=weights), GroupL2([part])
    labels[:], weights[:], part[:] = 0, 9.0, 0
    np.testing.assert_array_equal(g.groups, LABELS)
    np.testing.assert_array_equal(g.weights, np.ones(5))
    np.testing.assert_array_equal(listed.groups[0], np.arange(24))
    for array in (g.groups, g.weights, listed.groups[0], SparseGroup("rows").l1):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 1


@pytest.mark.parametrize("name", ["columns", "rows", "filters", "Columns"])
def test_group_names_that_need_no_sizes_stand_for_penalties(name):
    W = np.random.default_rng(9).standard_normal(GRID)
    assert get_penalty(name).value(W) == GroupL2(name.lower()).value(W)


@pytest.mark.parametrize(
    ("penalty", "message"),
    [
        ("l2", r"GroupL2\('columns'\), got 'l2'"),
        ("kernels", r"GroupL2\('kernels', kernel_size=\(3, 3\)\)"),
        ("blocks", r"GroupL2\('blocks', block=\(4, 4\)\)"),
        (L1, "the class L1"),
        (3, "a int"),
    ],
)
def test_what_is_no_penalty_is_refused(penalty, message):
    with pytest.raises(InvalidInputError, match=message):
        get_penalty(penalty)
