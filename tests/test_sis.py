"""The paper's scheme: projections against exact ones, convergence against cvxpy, duals, streams, limits, memory."""

from __future__ import annotations

import gc
import math
import time
import tracemalloc

import cvxpy as cp
import numpy as np
import pytest

import sisopt
from sisopt import InvalidInputError, LayerProblem, UnsupportedError
from sisopt.activations import MaxPool
from sisopt.batches import BatchStream
from sisopt.budgets import Budgets, mini_batches
from sisopt.solvers.budget_constraints import BudgetConstraints
from sisopt.solvers.haugazeau import Outcome, outer_approximation, project
from sisopt.solvers.rows import Limits
from sisopt.solvers.sis import SubdifferentialInclusion

EVER = Limits(10**9)
EXACT = {"tol_gap_abs": 1e-9, "tol_gap_rel": 1e-9, "tol_feas": 1e-9}


def budgets(layer, per, fraction=0.3, batch_size=30):
    """Return budgets at a fraction of those at which W = 0 would do, group by group."""
    n, n_out = layer.center.shape
    batches = mini_batches(n, batch_size) if per == "batch" else (slice(0, n),)
    nothing = np.zeros(layer.W.shape)
    return Budgets(
        per, fraction * np.sqrt(squared_radii(layer, nothing, layer.best_bias(nothing), per, batches)), batches
    )


def squared_radii(layer, W, b, per, batches):
    """Return 2 phi_j of every group, (J,)."""
    Z = layer.preactivations(W, b)
    e = Z - np.clip(Z, layer.lo, layer.hi)
    entries = layer.omega * e**2 + layer.pull * (Z - layer.center) ** 2
    if per == "neuron":
        return entries.sum(axis=0)
    return np.array([entries[samples].sum() for samples in batches])


def cvxpy_constraints(layer, W, b, given):
    """Return the budgets as second-order cones, from the arrays that the layer was made of."""
    n, n_out = layer.center.shape
    Z = layer.X @ W.T + (0 if b is None else np.ones((n, 1)) @ cp.reshape(b, (1, n_out), order="C"))
    e = cp.Variable((n, n_out))
    below, above = np.isfinite(layer.hi), np.isfinite(layer.lo)
    constraints = [e >= 0, e[below] >= Z[below] - layer.hi[below]]
    constraints += [e[above] >= layer.lo[above] - Z[above]] if above.any() else []
    scaled = cp.multiply(np.sqrt(layer.omega), e)
    pulled = cp.multiply(np.sqrt(layer.pull), Z - layer.center)
    groups = [(samples, slice(None)) for samples in given.batches]
    if given.per == "neuron":
        groups = [(slice(None), slice(i, i + 1)) for i in range(n_out)]
    for group, radius in zip(groups, given.radii, strict=True):
        parts = [cp.vec(scaled[group], order="C"), cp.vec(pulled[group], order="C")]
        constraints.append(cp.norm(cp.hstack(parts), 2) <= radius)
    if "mask" in layer.options:
        constraints.append(W[~layer.options["mask"]] == 0)
    return constraints


def exact_projection(layer, given, weight, bias):
    """Return the nearest (W, b) in the metric ||W - W0||**2 + (b - b0 + (W - W0) m)**2 / s**2."""
    v = layer.options.get("sample_weights", np.ones(layer.X.shape[0]))
    m = v @ layer.X / v.sum()
    s2 = float(np.mean(v @ (layer.X - m) ** 2 / v.sum()))
    W, b = cp.Variable(layer.W.shape), None if layer.b is None else cp.Variable(layer.W.shape[0])
    distance = cp.sum_squares(W - weight)
    if b is not None:
        distance += cp.sum_squares(b - bias + (W - weight) @ m) / s2
    cp.Problem(cp.Minimize(distance), cvxpy_constraints(layer, W, b, given)).solve(solver="CLARABEL", **EXACT)
    return W.value, np.zeros(layer.W.shape[0]) if b is None else b.value, math.sqrt(distance.value)


def reference(layer, given, structure=None):
    """Return cvxpy's W, b, g(W) and duals mu of the squared budgets."""
    W, b = cp.Variable(layer.W.shape), None if layer.b is None else cp.Variable(layer.W.shape[0])
    factors = np.where(np.isfinite(layer.factors), layer.factors, 0.0)
    objective = cp.sum(cp.multiply(factors, cp.abs(W)))
    if structure is not None:
        objective = sum(
            kappa * cp.norm(cp.hstack([W[i, j] for i, j in np.argwhere(structure.labels == g)]), 2)
            for g, kappa in enumerate(structure.group_weights)
        )
    constraints = cvxpy_constraints(layer, W, b, given)
    cp.Problem(cp.Minimize(objective), constraints).solve(solver="CLARABEL", **EXACT)
    cones = constraints[-1 - given.size : -1] if "mask" in layer.options else constraints[-given.size :]
    # d g* / d epsilon = -dual of the cone = -mu epsilon
    return objective.value, np.array([float(cone.dual_value) for cone in cones]) / given.radii


def stepper(layer, given, **options):
    return SubdifferentialInclusion(layer.problem, layer.problem.structure, given, **options)


def run(solver, steps):
    for _ in range(steps):
        assert solver.step(EVER) is Outcome.REACHED
    return solver


# Projections

CASES = [
    ("identity", (), True, "batch"),
    ("relu", (), True, "batch"),
    ("relu", (), True, "layer"),
    ("relu", (), True, "neuron"),
    ("relu", (), False, "batch"),
    ("relu6", ("shift", "entry_weights", "sample_weights"), True, "batch"),
    ("relu", ("fidelity", "preactivations", "mask"), True, "neuron"),
    ("tanh", ("tolerance", "sample_weights", "fidelity", "shift"), True, "layer"),
]


@pytest.mark.parametrize(("activation", "extras", "bias", "per"), CASES)
def test_projection_is_that_of_a_cone_solver(make_layer, activation, extras, bias, per):
    layer = make_layer(activation, extras=extras, bias=bias, n=70, n_in=5, n_out=3)
    given = budgets(layer, per, 0.6 if "preactivations" in extras else 0.3)
    constraints = BudgetConstraints(layer.problem, given)
    bias_given = np.zeros(3) if layer.b is None else layer.b
    anchor = constraints.point(0.3 * layer.W, bias_given)
    W0, b0 = constraints.layer(anchor)
    found = project(constraints, anchor, tolerance=1e-3, max_passes=10_000, limits=EVER)
    W, b = constraints.layer(found.point)
    assert found.outcome is Outcome.REACHED
    excess = squared_radii(layer, W, b, per, given.batches) / given.radii**2 - 1.0
    assert excess.max() <= 1e-3
    assert found.violation == pytest.approx(max(0.0, excess.max()), abs=1e-9)
    exact_W, exact_b, distance = exact_projection(layer, given, W0, b0)
    assert np.linalg.norm(found.point - anchor) <= distance * (1 + 1e-7)  # onto a set that holds the budgets' own
    np.testing.assert_allclose(W, exact_W, atol=0.01 * distance)
    np.testing.assert_allclose(b, exact_b, atol=0.02 * distance)


def test_projection_errors_fall_with_the_tolerance(make_layer):
    layer = make_layer("relu", n=70, n_in=5, n_out=3)
    given = budgets(layer, "batch")
    constraints = BudgetConstraints(layer.problem, given)
    anchor = constraints.point(0.3 * layer.W, layer.b)
    exact_W, *_ = exact_projection(layer, given, *constraints.layer(anchor))
    errors, cuts = [], []
    for tolerance in (1e-1, 1e-2, 1e-3):
        found = project(constraints, anchor, tolerance=tolerance, max_passes=10_000, limits=EVER)
        errors.append(np.linalg.norm(constraints.layer(found.point)[0] - exact_W))
        cuts.append(found.cuts)
    assert errors[0] > 3 * errors[1] > 9 * errors[2]
    assert cuts[0] < cuts[1] < cuts[2]


def test_a_margin_makes_every_budget_hold(make_layer):
    layer = make_layer("relu", n=70, n_in=5, n_out=3)
    given = budgets(layer, "batch")
    constraints = BudgetConstraints(layer.problem, given)
    anchor = constraints.point(np.zeros(layer.W.shape), layer.b)
    found = project(constraints, anchor, tolerance=0.05, margin=0.05, max_passes=1000, limits=EVER)
    excess = squared_radii(layer, *constraints.layer(found.point), "batch", given.batches) - given.radii**2
    assert found.violation == 0.0
    assert -0.1 * given.radii.min() ** 2 <= excess.max() <= 0.0


def test_a_point_that_keeps_the_budgets_is_its_own_projection(make_layer):
    layer = make_layer("relu")
    constraints = BudgetConstraints(layer.problem, budgets(layer, "batch"))
    anchor = constraints.point(layer.W, layer.b)
    found = project(constraints, anchor, tolerance=1e-6, max_passes=1, limits=EVER)
    np.testing.assert_array_equal(found.point, anchor)
    assert (found.outcome, found.cuts, found.violation) == (Outcome.REACHED, 0, 0.0)


@pytest.mark.parametrize("per", ["batch", "layer", "neuron"])
def test_budgets_of_zero_are_approached(make_layer, per):
    layer = make_layer("relu", n=60, n_in=4, n_out=2)
    given = budgets(layer, per, 0.0)
    constraints = BudgetConstraints(layer.problem, given)
    anchor = constraints.point(0.5 * layer.W, layer.b)
    found = project(constraints, anchor, tolerance=1e-4, max_passes=10_000, limits=EVER)
    assert found.outcome is Outcome.REACHED
    Z = layer.preactivations(layer.W, layer.b)
    left = squared_radii(layer, *constraints.layer(found.point), per, given.batches)
    size = (Z**2).sum(axis=0) if per == "neuron" else np.array([np.sum(Z[s] ** 2) for s in given.batches])
    assert (left <= 1e-4 * size * (1 + 1e-9)).all()


@pytest.mark.parametrize("per", ["batch", "layer", "neuron"])
def test_budgets_that_nothing_keeps_are_called_empty(make_layer, per):
    layer = make_layer("identity", extras=("preactivations",), n=60, n_in=4, n_out=2)
    X = np.column_stack([layer.X, np.ones(60)])
    rest = layer.center - X @ np.linalg.lstsq(X, layer.center, rcond=None)[0]
    batches = mini_batches(60, 20) if per == "batch" else (slice(0, 60),)
    least = (rest**2).sum(axis=0) if per == "neuron" else np.full(len(batches), np.sum(rest**2) / len(batches))
    constraints = BudgetConstraints(layer.problem, Budgets(per, np.sqrt(0.9 * least), batches))
    anchor = constraints.point(layer.W, layer.b)
    assert project(constraints, anchor, tolerance=0.01, max_passes=1000, limits=EVER).outcome is Outcome.EMPTY
    solver = SubdifferentialInclusion(layer.problem, layer.problem.structure, constraints.budgets)
    assert solver.step(EVER) is Outcome.EMPTY
    assert solver.iterations == 0


def test_a_half_space_step_is_the_projection_onto_both_half_spaces():
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(30):
        p0, p, d = rng.standard_normal((3, 1, 2))
        p0 = rng.choice([p, p0, p + rng.uniform(0.1, 3) * d])  # the iterate at its start, anywhere, and beyond the cut
        value = rng.uniform(0.1, 2.0, 1)
        moved, empty = outer_approximation(p0, p, d, value)
        x = cp.Variable(2)
        both = [(x - p[0]) @ (p0 - p)[0] <= 0, value[0] + d[0] @ (x - p[0]) <= 0]
        problem = cp.Problem(cp.Minimize(cp.sum_squares(x - p0[0])), both)
        problem.solve(solver="CLARABEL")
        assert not empty
        np.testing.assert_allclose(moved[0], x.value, atol=2e-4 * (1 + np.abs(x.value).max()))
        seen.add((bool((p0 == p).all()), both[0].dual_value > 1e-6))
    assert len(seen) >= 3
    p = np.zeros((1, 2))
    d = np.array([[1.0, 2.0]])
    assert outer_approximation(p - d, p, d, np.ones(1))[1]  # H and D face away from each other
    assert outer_approximation(p, p, 0 * d, np.ones(1))[1]


# The scheme


@pytest.mark.parametrize(
    ("activation", "extras", "per", "steps"),
    [
        ("relu", (), "batch", 40),
        ("relu", (), "layer", 150),
        ("relu", (), "neuron", 100),
        ("identity", (), "batch", 40),
        ("relu", ("mask", "penalty", "shift", "entry_weights"), "batch", 40),
    ],
)
def test_the_scheme_converges_to_cvxpys_optimum(make_layer, activation, extras, per, steps):
    layer = make_layer(activation, extras=extras, n=80, n_in=6, n_out=3)
    given = budgets(layer, per)
    best, duals = reference(layer, given)
    solver = run(stepper(layer, given), steps)
    excess = squared_radii(layer, solver.weight, solver.bias, per, given.batches) / given.radii**2 - 1.0
    assert excess.max() <= 2e-3
    assert layer.penalty(solver.weight) == pytest.approx(best, rel=2e-3)
    projected = squared_radii(layer, solver.projected_weight, solver.projected_bias, per, given.batches)
    assert (projected <= given.radii**2).all()
    assert np.abs(solver.projected_weight - solver.weight).max() <= 0.02
    assert (solver.weight == 0).any()
    np.testing.assert_allclose(solver.duals(), duals, rtol=0.1, atol=0.03 * duals.max())


def test_group_norms_converge_to_cvxpys_optimum(make_layer):
    layer = make_layer("relu", n=80, n_in=6, n_out=3)
    problem = layer.again(penalty=sisopt.penalties.GroupL2("columns"))
    given = budgets(layer, "batch", 0.5)
    best, duals = reference(layer, given, problem.structure)
    solver = run(SubdifferentialInclusion(problem, problem.structure, given), 60)
    excess = squared_radii(layer, solver.weight, solver.bias, "batch", given.batches) / given.radii**2 - 1.0
    assert excess.max() <= 2e-3
    assert problem.penalty.value(solver.weight) == pytest.approx(best, rel=2e-3)
    np.testing.assert_allclose(solver.duals(), duals, rtol=0.1, atol=0.03 * duals.max())


def test_softmax_and_its_free_shift_converge(make_layer):
    layer = make_layer("identity", n=80, n_in=5, n_out=4)
    problem = layer.again(activation="softmax")
    batches = mini_batches(80, 30)
    radii = 0.3 * np.array([np.linalg.norm(centred(layer.center[s] - layer.center.mean(axis=0))) for s in batches])
    W, b = cp.Variable(layer.W.shape), cp.Variable(4)
    Z = layer.X @ W.T + np.ones((80, 1)) @ cp.reshape(b, (1, 4), order="C")
    off = (Z - layer.center) @ (np.eye(4) - 0.25)
    best = cp.Problem(
        cp.Minimize(cp.sum(cp.abs(W))), [cp.norm(off[s], "fro") <= r for s, r in zip(batches, radii, strict=True)]
    ).solve(solver="CLARABEL")
    solver = run(SubdifferentialInclusion(problem, problem.structure, Budgets("batch", radii, batches)), 60)
    left = centred(layer.preactivations(solver.weight, solver.bias) - layer.center)
    assert all(np.linalg.norm(left[s]) <= r * 1.002 for s, r in zip(batches, radii, strict=True))
    assert np.abs(solver.weight).sum() == pytest.approx(best, rel=2e-3)


def centred(e):
    return e - e.mean(axis=1, keepdims=True)


def test_a_start_of_zeros_leads_to_the_same_optimum(make_layer):
    layer = make_layer("relu", n=80, n_in=6, n_out=3)
    given = budgets(layer, "batch")
    best, _ = reference(layer, given)
    solver = run(stepper(layer, given, start=(np.zeros(layer.W.shape), np.zeros(3)), relaxation=1.0), 30)
    assert layer.penalty(solver.weight) == pytest.approx(best, rel=5e-3)


def test_masked_weights_stay_zero(make_layer):
    layer = make_layer("relu", extras=("mask",))
    solver = run(stepper(layer, budgets(layer, "batch", 0.8)), 5)
    forbidden = ~layer.options["mask"]
    assert (solver.weight[forbidden] == 0).all()
    assert (solver.projected_weight[forbidden] == 0).all()


def test_few_entries_of_the_support_give_the_duals(make_layer):
    layer = make_layer("relu", n=90, n_in=6, n_out=3)
    given = budgets(layer, "batch", 0.2, 15)
    solver = run(stepper(layer, given), 10)
    assert np.count_nonzero(solver.weight) * given.size > layer.W.size
    duals = solver.duals()
    assert duals.shape == (6,)
    assert (duals >= 0).all()
    assert duals.max() > 0


# Streams, limits, memory


@pytest.mark.parametrize("per", ["batch", "layer", "neuron"])
def test_streams_lists_and_memory_maps_give_the_same_bits(make_layer, tmp_path, per):
    layer = make_layer("relu", n=80, dtype=np.float32)
    given = budgets(layer, per)
    stored = np.memmap(tmp_path / "inputs", dtype=np.float32, mode="w+", shape=layer.X.shape)
    stored[:] = layer.X
    streams = [
        BatchStream([layer.X[s] for s in mini_batches(80, 30)], layer.W, layer.b),
        BatchStream.from_arrays(layer.X, weight=layer.W, bias=layer.b, batch_size=30),
        BatchStream.from_arrays(stored, weight=layer.W, bias=layer.b, batch_size=30),
    ]
    found = []
    for stream in streams:
        problem = LayerProblem.from_batches(stream, layer.W, layer.b, activation="relu")
        solver = run(SubdifferentialInclusion(problem, problem.structure, given), 6)
        found.append((solver.weight, solver.bias, solver.projected_weight, solver.duals(), solver.work))
    for other in found[1:]:
        for ours, theirs in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    in_memory = run(stepper(layer, given), 6)
    np.testing.assert_allclose(found[0][0], in_memory.weight, atol=1e-6)


def test_budgets_per_batch_want_the_batches_of_the_stream(make_layer):
    layer = make_layer("relu", n=80)
    stream = BatchStream.from_arrays(layer.X, weight=layer.W, bias=layer.b, batch_size=20)
    problem = LayerProblem.from_batches(stream, layer.W, layer.b, activation="relu")
    with pytest.raises(InvalidInputError, match=r"batch_size must be that of the batches.*4 of them, the first of 20"):
        BudgetConstraints(problem, budgets(layer, "batch"))


def test_windows_of_a_pooling_reach_over_mini_batches(make_layer):
    layer = make_layer("relu", n=80, n_in=5, n_out=3)
    pool = MaxPool(np.arange(80).reshape(20, 4)[:, ::-1], "relu")
    problem = layer.again(activation=pool)
    interval = pool.preimage(layer.center.T)
    batches = mini_batches(80, 30)
    given = Budgets("batch", np.full(3, 2.0), batches)
    solver = run(SubdifferentialInclusion(problem, problem.structure, given), 20)
    Z = layer.preactivations(solver.projected_weight, solver.projected_bias)
    distances = [np.linalg.norm(interval.residual(Z.T)[:, samples]) for samples in batches]
    assert 1.9 < max(distances) <= 2.0 + 1e-9
    stream = LayerProblem.from_batches([layer.X], layer.W, layer.b, activation=pool)
    with pytest.raises(UnsupportedError, match="couples samples"):
        SubdifferentialInclusion(stream, stream.structure, Budgets("layer", np.ones(1), (slice(0, 80),)))


def test_what_the_scheme_cannot_do_is_refused(make_layer):
    layer = make_layer("identity")
    whole = budgets(layer, "layer")
    sums = LayerProblem.from_gram(layer.X.T @ layer.X, weight=layer.W, n_samples=80)
    with pytest.raises(UnsupportedError, match="use 'forward-backward'"):
        SubdifferentialInclusion(sums, sums.structure, whole)
    coupled = layer.again(activation="softmax")
    with pytest.raises(UnsupportedError, match="per='layer' or per='batch'"):
        SubdifferentialInclusion(coupled, coupled.structure, budgets(layer, "neuron"))


@pytest.mark.parametrize("options", [{"relaxation": 2.0}, {"relaxation": 0.0}, {"gamma": -1.0}, {"tolerance": 1.0}])
def test_parameters_outside_their_range_are_refused(make_layer, options):
    layer = make_layer("relu")
    with pytest.raises(InvalidInputError, match=next(iter(options))):
        stepper(layer, budgets(layer, "layer"), **options)


@pytest.mark.parametrize("per", ["batch", "layer"])
def test_a_step_without_time_leaves_the_iterate(make_layer, per):
    layer = make_layer("relu")
    solver = run(stepper(layer, budgets(layer, per)), 3)
    before = solver.weight, solver.bias, solver.projected_weight
    assert solver.step(Limits(10, time.monotonic() - 1.0)) is Outcome.TIME
    assert solver.projection.outcome is Outcome.TIME
    assert solver.iterations == 3
    for old, new in zip(before, (solver.weight, solver.bias, solver.projected_weight), strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_limit_is_looked_at_between_mini_batches(make_layer):
    layer = make_layer("relu", n=100)
    solver = stepper(layer, budgets(layer, "batch", batch_size=10))

    class Two(Limits):
        left = 2

        def out_of_time(self):
            self.left -= 1
            return self.left < 0

    assert solver.step(Two(10)) is Outcome.TIME
    assert 0 < solver.passes <= 0.4  # two of ten mini-batches, at most two products each


def test_too_few_passes_are_reported_and_leave_the_iterate(make_layer):
    layer = make_layer("relu")
    solver = stepper(layer, budgets(layer, "batch"), tolerance=1e-9, max_passes=2)
    before = solver.weight
    outcomes = [solver.step(EVER) for _ in range(2)]
    assert outcomes == [Outcome.PASSES] * 2
    assert solver.iterations == 0
    assert solver.projection.cuts > 0
    np.testing.assert_array_equal(solver.weight, before)


def test_memory_is_a_few_weights_and_batches_whatever_the_number_of_samples():
    n_in, n_out, size = 100, 40, 200
    rng = np.random.default_rng(0)
    W = rng.standard_normal((n_out, n_in)) / 10

    class Batches:
        def __init__(self, count):
            self.count = count

        def __iter__(self):
            for j in range(self.count):
                yield np.random.default_rng(j).standard_normal((size, n_in))

    def peak(count):
        problem = LayerProblem.from_batches(Batches(count), W, activation="relu")
        given = Budgets("batch", np.full(count, 0.3 * np.sqrt(size * n_out / 2)), problem.batches.slices)
        gc.collect()
        tracemalloc.start()
        try:
            solver = SubdifferentialInclusion(problem, problem.structure, given, tolerance=0.5)
            for _ in range(2):
                assert solver.step(EVER) is Outcome.REACHED
            solver.duals()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(2)  # what is loaded once is not the solver's
    few, many = peak(3), peak(20)
    batch = 8 * size * (n_in + 4 * n_out)
    assert many <= 14 * W.nbytes + 5 * batch
    assert many <= 1.1 * few
    assert many < 8 * 20 * size * n_in  # the inputs alone


def test_two_runs_give_the_same_bits(make_layer):
    layer = make_layer("relu", extras=("fidelity",))
    given = budgets(layer, "batch")
    one, two = (run(stepper(layer, given), 8) for _ in range(2))
    np.testing.assert_array_equal(one.weight, two.weight)
    np.testing.assert_array_equal(one.duals(), two.duals())
    assert one.work == two.work
