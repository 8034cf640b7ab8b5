"""The model step under group penalties: against a conic solver, its own optimality conditions, and its promises."""

from __future__ import annotations

import numpy as np
import pytest

from sisopt import L1, UnsupportedError
from sisopt.penalties import GroupL2, SparseGroup
from sisopt.solvers.group_model import GroupModel

LABELS = np.random.default_rng(99).integers(0, 9, (6, 12))
ways = {
    "columns": {"groups": "columns"},
    "rows": {"groups": "rows"},
    "kernels": {"groups": "kernels", "kernel_size": (2, 2)},
    "channels": {"groups": "channels", "kernel_size": (3,)},
    "blocks": {"groups": "blocks", "block": (4, 5)},
    "labels": {"groups": LABELS},
    "single": {"groups": np.arange(72).reshape(6, 12)},
}
every_way = pytest.mark.parametrize("way", ways)
with_l1_or_not = pytest.mark.parametrize("sparse", [False, True])


def make(way, sparse, seed=0):
    rng = np.random.default_rng(seed)
    arguments = ways[way]
    plain = GroupL2(**arguments).structure((6, 12))
    weights = rng.uniform(0.5, 2.0, plain.group_weights.size)
    if not sparse:
        return GroupL2(**arguments, weights=weights)
    return SparseGroup(**arguments, weights=weights, l1=rng.uniform(0.2, 1.5, (6, 12)))


class Model:
    """A random model with correlated columns, a start that is not zero, and its objective by definition."""

    def __init__(self, shape=(6, 12), n=40, seed=0, correlation=1.0):
        rng = np.random.default_rng(seed)
        r, m = shape
        X = (rng.standard_normal((n, m)) + correlation * rng.standard_normal((n, 1))) * rng.uniform(0.2, 3.0, m)
        self.set(X, rng.standard_normal((r, m)), rng)

    def set(self, X, W, rng):
        self.X, self.W, self.H = X, W, X.T @ X
        self.s = rng.uniform(0.1, 1.0, W.shape[0])
        self.C = 10.0 * rng.standard_normal((W.shape[0], X.shape[0])) @ X  # a gradient lies in the span of the inputs

    def gradient(self, V):
        return self.C + self.s[:, None] * ((V - self.W) @ self.H)

    def objective(self, V, structure, multiplier):
        D = V - self.W
        quadratic = np.sum(self.C * D) + 0.5 * np.sum(self.s * np.sum((D @ self.X.T) ** 2, axis=1))
        return quadratic + multiplier * structure.values(V).sum()

    def multiplier(self, structure, fraction):
        """Return a fraction of the least multiplier at which the answer is zero."""
        return fraction * structure.dual_norms(self.gradient(np.zeros_like(self.W))).max()

    def step(self, structure, multiplier, accuracy=1e-9, start=None):
        W = self.W if start is None else start
        return GroupModel(self.H, structure).step(self.gradient(W), W, self.s, multiplier, accuracy)[0]


@every_way
@with_l1_or_not
@pytest.mark.parametrize("fraction", [0.05, 0.5])
def test_step_agrees_with_a_conic_solver(way, sparse, fraction):
    cp = pytest.importorskip("cvxpy")
    model, penalty = Model(), make(way, sparse)
    structure = penalty.structure(model.W.shape)
    multiplier = model.multiplier(structure, fraction)
    V = model.step(structure, multiplier)

    U = cp.Variable(model.W.shape)
    flat = cp.reshape(U, (72,), order="C")
    D = U - model.W
    smooth = cp.sum(cp.multiply(model.C, D)) + 0.5 * sum(
        s * cp.sum_squares(model.X @ D[i]) for i, s in enumerate(model.s)
    )
    labels = structure.labels.ravel()
    norms = sum(k * cp.norm(flat[np.flatnonzero(labels == g)]) for g, k in enumerate(structure.group_weights))
    norms += cp.sum(cp.multiply(structure.factors, cp.abs(U)))
    best = cp.Problem(cp.Minimize(smooth + multiplier * norms)).solve(
        solver="CLARABEL", tol_gap_abs=1e-9, tol_gap_rel=1e-9, tol_feas=1e-9
    )
    assert model.objective(V, structure, multiplier) == pytest.approx(best, rel=1e-8)
    np.testing.assert_allclose(V, U.value, atol=1e-4)
    size = np.sqrt(np.bincount(labels, weights=V.ravel() ** 2))
    assert not np.any((size > 0) & (size < 1e-8)), "groups that vanish are exactly zero"
    if fraction == 0.5:
        assert np.any(size == 0)


@every_way
@with_l1_or_not
@pytest.mark.parametrize("seed", range(3))
def test_step_meets_the_optimality_condition(way, sparse, seed):
    model = Model(seed=seed, correlation=3.0)
    rng = np.random.default_rng(seed)
    mask = rng.random(model.W.shape) < 0.7 if seed else None
    if mask is not None:
        model.W[~mask] = 0.0
    structure = make(way, sparse, seed).structure(model.W.shape, mask)
    multiplier = model.multiplier(structure, 0.1)
    V = model.step(structure, multiplier)
    assert structure.kkt_violation(V, model.gradient(V), multiplier) < 1e-6
    if mask is not None:
        assert not V[~mask].any()


@every_way
@with_l1_or_not
def test_duplicate_columns_and_columns_without_curvature(way, sparse):
    model = Model(seed=4)
    rng = np.random.default_rng(4)
    X = model.X.copy()
    X[:, 3], X[:, 7] = X[:, 2], -X[:, 2]
    X[:, [0, 9]] = 0.0
    model.set(X, model.W, rng)
    structure = make(way, sparse).structure(model.W.shape)
    multiplier = model.multiplier(structure, 0.1)
    V = model.step(structure, multiplier)
    assert not V[:, [0, 9]].any()
    assert structure.kkt_violation(V, model.gradient(V), multiplier) < 1e-6
    assert model.objective(V, structure, multiplier) < model.objective(model.W, structure, multiplier)


@with_l1_or_not
@pytest.mark.parametrize("n", [20, 200])
def test_wide_groups_on_columns_of_their_own_are_solved_too(sparse, n):
    # more sets of many columns than eigenvectors are kept for, and singular curvature where samples are few
    model = Model((6, 60), n=n, seed=5)
    mask = np.random.default_rng(5).random(model.W.shape) < 0.8
    model.W[~mask] = 0.0
    penalty = SparseGroup("rows", l1=0.5) if sparse else GroupL2("rows")
    structure = penalty.structure(model.W.shape, mask)
    multiplier = model.multiplier(structure, 0.2)
    V = model.step(structure, multiplier, accuracy=1e-7)
    assert structure.kkt_violation(V, model.gradient(V), multiplier) < 1e-5


@every_way
@with_l1_or_not
@pytest.mark.parametrize("accuracy", [0.3, 1e-2, 1e-5])
def test_step_stops_where_it_promises(way, sparse, accuracy):
    model = Model(seed=6)
    structure = make(way, sparse).structure(model.W.shape)
    multiplier = model.multiplier(structure, 0.1)
    labels, kappa = structure.labels, structure.group_weights
    rows = np.arange(6)[:, None] + 0 * labels
    curvature = model.s[:, None] * np.diagonal(model.H)

    def worst(V):
        """Largest scaled violation over the groups of each set of rows that hang together."""
        C = model.gradient(V)
        found = np.zeros(kappa.size)
        for g, k in enumerate(kappa):
            v, c, a = V[labels == g], C[labels == g], multiplier * structure.factors[labels == g]
            norm = np.linalg.norm(v)
            pull = multiplier * k * v / norm if norm > 0 else 0.0
            d = np.where(v == 0, np.maximum(np.abs(c) - a, 0), np.abs(c + a * np.sign(v) + pull))
            d = np.linalg.norm(d) - (0.0 if norm > 0 else multiplier * k)
            found[g] = max(d, 0.0) / np.sqrt(curvature[labels == g].max())
        if structure.couples_rows:
            return np.array([found.max()])
        return np.array([found[np.unique(labels[rows == i])].max() for i in range(6)])

    V = model.step(structure, multiplier, accuracy=accuracy)
    assert np.all(worst(V) <= accuracy * worst(model.W) * (1 + 1e-6))


@every_way
def test_large_multipliers_give_zero_and_optimal_starts_stay(way):
    model = Model(seed=7)
    structure = make(way, False).structure(model.W.shape)
    assert not model.step(structure, model.multiplier(structure, 1.0001)).any()
    multiplier = model.multiplier(structure, 0.3)
    V = model.step(structure, multiplier, accuracy=1e-12)
    again = model.step(structure, multiplier, accuracy=0.5, start=V)
    np.testing.assert_allclose(again, V, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("way", ["rows", "kernels", "blocks"])
@with_l1_or_not
def test_rows_that_share_no_group_can_be_solved_apart(way, sparse):
    model = Model(seed=8)
    structure = make(way, sparse).structure(model.W.shape)
    multiplier = model.multiplier(structure, 0.1)
    whole = GroupModel(model.H, structure)
    V, work = whole.step(model.C, model.W, model.s, multiplier, 1e-6)
    assert work > 0
    for rows in (np.array([3, 0, 2, 1]), np.array([5, 4])):  # blocks have 4 rows
        part, _ = whole.step(model.C[rows], model.W[rows], model.s[rows], multiplier, 1e-6, rows)
        order = np.argsort(rows) if way == "blocks" else slice(None)
        np.testing.assert_allclose(part[order], V[rows][order], rtol=1e-5, atol=1e-7)
    if way == "blocks":
        rows = np.array([0, 1])
        with pytest.raises(UnsupportedError, match="share a group"):
            whole.step(model.C[rows], model.W[rows], model.s[rows], multiplier, 1e-6, rows)


@every_way
def test_step_repeats_bit_for_bit_and_leaves_its_arguments_alone(way):
    model = Model(seed=9)
    structure = make(way, True).structure(model.W.shape)
    multiplier = model.multiplier(structure, 0.1)
    arrays = [model.H, model.C, model.W, model.s]
    copies = [array.copy() for array in arrays]
    for array in arrays:
        array.flags.writeable = False
    answers = [GroupModel(model.H, structure).step(model.C, model.W, model.s, multiplier, 1e-6) for _ in range(2)]
    np.testing.assert_array_equal(answers[0][0], answers[1][0])
    assert answers[0][1] == answers[1][1]
    for array, copy in zip(arrays, copies, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_everything_forbidden_leaves_nothing_to_do():
    model = Model(seed=10)
    structure = GroupL2("columns").structure(model.W.shape, np.zeros(model.W.shape, np.bool_))
    V, _ = GroupModel(model.H, structure).step(model.C, np.zeros_like(model.W), model.s, 1.0, 1e-3)
    assert not V.any()


def test_a_penalty_without_groups_is_refused():
    with pytest.raises(UnsupportedError, match="row by row"):
        GroupModel(np.eye(3), L1().structure((2, 3)))
