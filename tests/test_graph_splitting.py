"""Douglas-Rachford in graph form: its projections, its fixed points against cvxpy, its bits."""

from __future__ import annotations

import numpy as np
import pytest

import sisopt
from sisopt import products
from sisopt.budgets import Budgets, mini_batches
from sisopt.solvers.douglas_rachford import RELAXATION, GraphSplitting
from sisopt.solvers.splitting_parts import CoupledPart, IntervalPart

N = 60
WHOLE = (slice(0, N),)
HALVES = mini_batches(N, 35)
ACTIVATIONS = ["relu", "relu6", "identity", "softmax", "sparsemax"]


def small_problem(activation="relu", *, n_in=6, n_out=4, bias=True, seed=0, dtype=np.float64, **options):
    rng = np.random.default_rng(seed)
    X = (rng.standard_normal((N, n_in)) + 0.5).astype(dtype)
    W = rng.standard_normal((n_out, n_in)).astype(dtype)
    b = rng.standard_normal(n_out).astype(dtype) if bias else None
    return sisopt.LayerProblem(X, W, b, activation=activation, **options)


def preactivations(problem, weight, bias):
    return problem.inputs.astype(np.float64) @ weight.T + bias


def residual(problem, Z):
    """Return Z - proj_S(Z), (n_samples, n_out), in the words of the activation's definition."""
    Z0 = problem.preactivations.astype(np.float64)
    name = problem.activation.name
    if name == "identity":
        return Z - Z0
    if name == "relu":
        return np.where(Z0 > 0, Z - Z0, np.maximum(Z, 0.0))
    if name == "relu6":
        inside = (Z0 > 0) & (Z0 < 6)
        return np.where(inside, Z - Z0, np.where(Z0 >= 6, np.minimum(Z - 6, 0.0), np.maximum(Z, 0.0)))
    if name == "softmax":
        r = Z - Z0
        return r - r.mean(axis=1, keepdims=True)
    y = problem.activation.forward(Z0)
    out = np.empty_like(Z)
    for k, v in enumerate(Z - y):
        member = y[k] > 0
        c = v[member].mean()
        for i in sorted(np.flatnonzero(~member), key=lambda i: -v[i]):
            if v[i] > c:
                member = member.copy()
                member[i] = True
                c = v[member].mean()
        out[k] = np.where(y[k] > 0, v - c, np.maximum(v - c, 0.0))
    return out


def group_distances(problem, E, budgets):
    v = np.ones(N) if problem.sample_weights is None else problem.sample_weights
    squares = v[:, None] * E**2
    if budgets.per == "neuron":
        return np.sqrt(squares.sum(axis=0))
    return np.sqrt([squares[batch].sum() for batch in budgets.batches])


def budgets_of(problem, per, fraction=0.3):
    """Return budgets that are a fraction of the radius of W = 0 with the mean dense pre-activation as bias."""
    batches = HALVES if per == "batch" else WHOLE
    Z0 = problem.preactivations.astype(np.float64)
    bias = Z0.mean(axis=0) if problem.has_bias else np.zeros(problem.n_out)
    E = residual(problem, np.broadcast_to(bias, Z0.shape))
    unit = Budgets(per, np.ones(1), batches)
    return Budgets(per, fraction * group_distances(problem, E, unit), batches)


def reference(problem, target, penalty=None):
    """Return the objective, the constraints' multipliers and W of the program as cvxpy solves it."""
    cp = pytest.importorskip("cvxpy")
    n_out, n_in = problem.weight.shape
    W, b = cp.Variable((n_out, n_in)), cp.Variable(n_out)
    bias = b if problem.has_bias else np.zeros(n_out)
    v = np.ones(N) if problem.sample_weights is None else problem.sample_weights
    Z = problem.inputs.astype(np.float64) @ W.T + np.ones((N, 1)) @ cp.reshape(bias, (1, n_out), order="C")
    Z0 = problem.preactivations.astype(np.float64)
    constraints = []
    if problem.activation.couples_outputs:
        y = problem.activation.forward(Z0)
        level, tight = (Z0, np.ones(Z0.shape)) if problem.activation.name != "sparsemax" else (y, 1.0 * (y > 0))
        c = cp.Variable((N, 1))
        over = Z - level - c @ np.ones((1, n_out))
        E = cp.Variable(Z0.shape)
        constraints += [E >= over, cp.multiply(tight, E - over) == 0, cp.multiply(1 - tight, E) >= 0]
    else:
        box = problem.activation.preimage(Z0, 0.0)
        E = cp.Variable(Z0.shape)
        above, below = np.isfinite(box.hi), np.isfinite(box.lo)
        constraints += [E[above] >= Z[above] - box.hi[above]] if above.any() else []
        constraints += [E[below] <= Z[below] - box.lo[below]] if below.any() else []
        point = box.lo == box.hi
        constraints += [E[point] == Z[point] - box.lo[point]] if point.any() else []
    g = cp.sum(cp.abs(W)) if penalty is None else penalty(cp, W)
    if problem.mask is not None:
        constraints.append(W[~problem.mask] == 0)
    E = cp.multiply(np.sqrt(v)[:, None] @ np.ones((1, n_out)), E)
    if not isinstance(target, Budgets):
        program = cp.Problem(cp.Minimize(target * g + 0.5 * cp.sum_squares(E)), constraints)
        program.solve(solver="CLARABEL")
        return program.value, None, W.value
    if target.per == "neuron":
        parts = [E[:, i] for i in range(n_out)]
    else:
        parts = [cp.vec(E[batch], order="C") for batch in target.batches]
    balls = [cp.norm(part, 2) <= radius for part, radius in zip(parts, target.radii, strict=True)]
    program = cp.Problem(cp.Minimize(g), constraints + balls)
    program.solve(solver="CLARABEL")
    duals = np.array([float(ball.dual_value) for ball in balls]) / target.radii
    return program.value, duals, W.value


def splitting(problem, target, steps, n_threads=1, start=None):
    run = GraphSplitting(problem, problem.structure, target, n_threads, start)
    for _ in range(steps):
        run.step()
    return run


def check_against_reference(problem, budgets, penalty=None, steps=500):
    objective, duals, _ = reference(problem, budgets, penalty)
    run = splitting(problem, budgets, steps)
    E = residual(problem, preactivations(problem, run.weight, run.bias))
    assert float(problem.structure.values(run.weight).sum()) == pytest.approx(objective, rel=2e-5)
    assert (group_distances(problem, E, budgets) <= budgets.radii * (1 + 2e-5)).all()
    np.testing.assert_allclose(run.duals, duals, rtol=2e-3, atol=1e-4 * duals.max())
    np.testing.assert_allclose(run.graph_weight, run.weight, atol=1e-4)


@pytest.mark.parametrize("per", ["layer", "batch"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_fixed_point_solves_the_constrained_program(activation, per):
    problem = small_problem(activation)
    check_against_reference(problem, budgets_of(problem, per))


@pytest.mark.parametrize("activation", ["relu", "identity"])
def test_the_fixed_point_solves_the_program_of_every_neuron(activation):
    problem = small_problem(activation)
    check_against_reference(problem, budgets_of(problem, "neuron"))


def test_without_a_bias_the_fixed_point_solves_the_constrained_program():
    problem = small_problem("relu", bias=False)
    check_against_reference(problem, budgets_of(problem, "batch"))


def test_sample_weights_and_a_mask_are_kept():
    rng = np.random.default_rng(5)
    v = rng.uniform(0.2, 2.0, N)
    v[:4] = 0.0
    mask = rng.random((4, 6)) < 0.8
    problem = small_problem("relu", sample_weights=v, mask=mask)
    check_against_reference(problem, budgets_of(problem, "batch", fraction=0.5))
    assert not splitting(problem, budgets_of(problem, "batch"), 20).weight[~mask].any()


def test_group_norms_of_inputs_and_of_neurons():
    for name, axis in (("columns", 0), ("rows", 1)):
        problem = small_problem("relu", penalty=name)
        weights = problem.structure.group_weights
        check_against_reference(
            problem,
            budgets_of(problem, "layer"),
            lambda cp, W, axis=axis, weights=weights: cp.sum(cp.multiply(weights, cp.norm(W, 2, axis=axis))),
        )


@pytest.mark.parametrize("activation", ["relu", "softmax"])
def test_the_fixed_point_solves_the_penalised_program(activation):
    problem = small_problem(activation)
    objective, _, _ = reference(problem, 2.0)
    run = splitting(problem, 2.0, 400)
    E = residual(problem, preactivations(problem, run.weight, run.bias))
    assert 2.0 * np.abs(run.weight).sum() + 0.5 * (E**2).sum() == pytest.approx(objective, rel=1e-6)
    assert run.duals.tolist() == [0.5]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_reflection_comes_from_the_projection_on_a_ball_around_the_target(activation):
    problem = small_problem(activation)
    rng = np.random.default_rng(2)
    v = rng.uniform(0.5, 2.0, N)
    t = 4.0 * rng.standard_normal((problem.n_out, N))
    if problem.activation.couples_outputs:
        part = CoupledPart(slice(0, 4), t.copy(), problem.coupled_target(), v, HALVES)
    else:
        target = problem.row_target(slice(0, 4))
        part = IntervalPart(slice(0, 4), t.copy(), target.lo, target.hi, v, HALVES)
    squares = np.empty((4, 2))
    part.measure(squares)
    E = residual(problem, t.T)
    distances = np.array([np.sqrt((v[batch, None] * E[batch] ** 2).sum()) for batch in HALVES])
    np.testing.assert_allclose(np.sqrt(squares.sum(axis=0)), distances)
    radii = distances * [0.4, 1.5]
    shrinkage = np.maximum(1.0 - radii / distances, 0.0)
    out = np.empty_like(t)
    part.reflect(np.tile(shrinkage, (4, 1)), out)
    p = 0.5 * (t + out)
    E = residual(problem, p.T)
    np.testing.assert_allclose(np.sqrt((v[HALVES[0], None] * E[HALVES[0]] ** 2).sum()), radii[0])
    np.testing.assert_array_equal(p[:, HALVES[1]], t[:, HALVES[1]])
    for _ in range(200):  # the variational inequality of a projection, against points of the set
        u = p + rng.standard_normal(t.shape) * rng.choice([0.01, 1.0, 30.0])
        E = residual(problem, u.T)
        for batch, radius in zip(HALVES, radii, strict=True):
            d = np.sqrt((v[batch, None] * E[batch] ** 2).sum())
            u[:, batch] -= max(0.0, 1.0 - radius / d) * E[batch].T
        assert (v * (t - p) * (u - p)).sum() <= 1e-9 * (t**2).sum()


@pytest.mark.parametrize("activation", ["relu", "softmax"])
def test_dual_variables_scale_without_moving_the_projection(activation):
    problem = small_problem(activation)
    run = splitting(problem, budgets_of(problem, "batch"), 3)
    (part,) = run._parts
    c = run._shrinkage
    before, dual = np.empty_like(part.t), np.empty_like(part.t)
    part.reflect(0.5 * c, before)
    part.reflect(-0.5 * c, dual)
    dual -= part.t  # c e = t - p
    squares = np.empty_like(c)
    part.scale_dual(c, np.full(4, 3.0), squares)
    np.testing.assert_allclose(part.t, before + 3.0 * dual, atol=1e-12)
    again = np.empty_like(squares)
    part.measure(again)
    np.testing.assert_allclose(again, squares, atol=1e-12)


@pytest.mark.parametrize("per", ["batch", "neuron"])
def test_balancing_keeps_the_proximal_point_and_the_dual_variables(per):
    problem = small_problem("relu")
    run = splitting(problem, budgets_of(problem, per), 3)

    def dual_of_weight():
        return run._rho_weight * (run._weight_point - run._near)

    before = run._rho_weight, run._rho, dual_of_weight(), run.weight, run.duals
    run._balance()
    assert run._rho_weight != before[0]
    assert (run._rho != before[1]).any()
    np.testing.assert_allclose(dual_of_weight(), before[2], atol=1e-12)
    np.testing.assert_allclose(run.weight, before[3], atol=1e-12)
    np.testing.assert_allclose(run.duals, before[4], rtol=1e-10)


@pytest.mark.parametrize("per", ["batch", "neuron"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_step_is_the_one_with_an_explicit_column_of_ones(bias, per):
    v = np.random.default_rng(7).uniform(0.5, 1.5, N)
    problem = small_problem("relu", bias=bias, sample_weights=v)
    run = splitting(problem, budgets_of(problem, per), 7)
    (part,) = run._parts
    c, tU, tW, s = run._shrinkage, part.t.copy(), run._weight_point / run._units, run._units
    e = residual(problem, tU.T).T
    p = tU.copy()
    for j, batch in enumerate(run._batches):
        p[:, batch] -= c[:, j, None] * e[:, batch]
    X = np.hstack([problem.inputs, np.ones((N, 1))]) if bias else problem.inputs
    expected_W, expected_U = np.empty_like(tW), np.empty_like(tU)
    for i in range(problem.n_out):
        metric = np.zeros((6, X.shape[1]))
        metric[:, :6] = np.diag(s * np.sqrt(run._rho_weight))
        root = np.sqrt(run._rho[i] * v)
        aim = np.concatenate([metric[:, :6] @ (2 * run.weight[i] - tW[i]), root * (2 * p[i] - tU[i])])
        q = np.linalg.lstsq(np.vstack([metric, root[:, None] * X]), aim, rcond=None)[0]
        expected_W[i] = tW[i] + RELAXATION * (q[:6] - run.weight[i])
        expected_U[i] = tU[i] + RELAXATION * (X @ q - p[i])
    steps = run.iterations
    run._balance = lambda: None
    run.step()
    assert run.iterations == steps + 1
    np.testing.assert_allclose(part.t, expected_U, atol=1e-10)
    np.testing.assert_allclose(run._weight_point / s, expected_W, atol=1e-10)


def test_weighted_samples_count_as_repeated_ones():
    problem = small_problem("relu")
    v = np.where(np.arange(N) < 30, 2.0, np.where(np.arange(N) < 40, 0.0, 1.0))
    repeated = np.repeat(np.arange(N), v.astype(int))
    weighted = small_problem("relu", sample_weights=v)
    copied = sisopt.LayerProblem(problem.inputs[repeated], problem.weight, problem.bias, activation="relu")
    one = splitting(weighted, Budgets("layer", np.array([4.0]), WHOLE), 60)
    other = splitting(copied, Budgets("layer", np.array([4.0]), (slice(0, repeated.size),)), 60)
    np.testing.assert_allclose(one.weight, other.weight, atol=1e-9)
    np.testing.assert_allclose(one.duals, other.duals, rtol=1e-6)


def test_a_loose_budget_empties_the_layer_and_a_budget_of_zero_keeps_it():
    problem = small_problem("relu")
    loose = splitting(problem, budgets_of(problem, "layer", 1.5), 100)
    assert not loose.weight.any()
    assert loose.duals.tolist() == [0.0]
    problem = small_problem("identity")
    tight = splitting(problem, Budgets("layer", np.zeros(1), WHOLE), 300)
    np.testing.assert_allclose(tight.weight, problem.weight, atol=1e-6)
    assert np.isfinite(tight.duals).all()


def test_dead_neurons_are_emptied_whatever_shares_the_budget():
    base = small_problem("relu")
    bias = base.bias.copy()
    bias[1] = -100.0
    problem = sisopt.LayerProblem(base.inputs, base.weight, bias, activation="relu")
    for per in ("layer", "neuron"):
        run = splitting(problem, budgets_of(problem, per), 200)
        assert not run.weight[1].any()
        assert run.weight[0].any()
        assert np.isfinite(run.duals).all()


@pytest.mark.parametrize("per", ["layer", "batch", "neuron"])
def test_a_dead_layer_is_emptied_at_a_budget_of_zero(per):
    base = small_problem("relu")
    problem = sisopt.LayerProblem(base.inputs, base.weight, base.bias - 100.0, activation="relu")
    run = splitting(problem, budgets_of(problem, per, 0.0), 200)
    assert not run.weight.any()
    assert np.isfinite(run.duals).all()


def state(run):
    return [a.tobytes() for a in (run.weight, run.bias, run.graph_weight, run.duals, *(part.t for part in run._parts))]


@pytest.mark.parametrize("per", ["batch", "neuron"])
def test_same_bits_for_any_number_of_threads(per, monkeypatch):
    monkeypatch.setattr(products, "BLOCK_BYTES", 1 << 12)
    monkeypatch.setattr(products, "MIN_BLOCK", 64)
    runs = []
    for n_threads in (1, 2, 3):
        problem = small_problem("relu", n_out=20, dtype=np.float32)
        assert len(problem.chunks()) > 1
        runs.append(state(splitting(problem, budgets_of(problem, per), 20, n_threads)))
    assert runs[0] == runs[1] == runs[2]


@pytest.mark.parametrize("activation", ["relu", "softmax"])
def test_scratch_memory_is_written_before_it_is_read(activation, monkeypatch):
    problem = small_problem(activation)
    budgets = budgets_of(problem, "batch")
    clean = state(splitting(problem, budgets, 10))
    empty, empty_like = np.empty, np.empty_like

    def poisoned(make):
        def build(*args, **kwargs):
            array = make(*args, **kwargs)
            if array.dtype.kind == "f":
                array.fill(np.nan)
            return array

        return build

    problem = small_problem(activation)
    monkeypatch.setattr(np, "empty", poisoned(empty))
    monkeypatch.setattr(np, "empty_like", poisoned(empty_like))
    assert state(splitting(problem, budgets, 10)) == clean


def test_float32_layers_are_solved_in_float64_and_nothing_given_is_written_to():
    problem = small_problem("relu", dtype=np.float32)
    given = [array.copy() for array in (problem.inputs, problem.weight, problem.bias)]
    start = (problem.weight.astype(np.float64), problem.bias.astype(np.float64))
    kept = [array.copy() for array in start]
    check_against_reference(problem, budgets_of(problem, "batch"))
    run = splitting(problem, budgets_of(problem, "batch"), 10, start=start)
    assert run.weight.dtype == run.bias.dtype == np.float64
    for now, before in zip((problem.inputs, problem.weight, problem.bias, *start), given + kept, strict=True):
        np.testing.assert_array_equal(now, before)


def test_a_solution_given_as_a_start_is_reached_again():
    problem = small_problem("relu")
    budgets = budgets_of(problem, "layer")
    first = splitting(problem, budgets, 300)
    again = splitting(problem, budgets, 300, start=(first.weight, first.bias))
    np.testing.assert_allclose(again.weight, first.weight, atol=1e-5)


@pytest.mark.parametrize("per", ["layer", "batch", "neuron"])
def test_units_of_inputs_and_outputs_do_not_change_the_path(per):
    problem = small_problem("relu")
    scaled = sisopt.LayerProblem(
        problem.inputs * 2.0**9, problem.weight * 2.0**-4, problem.bias * 2.0**5, activation="relu"
    )
    one, other = (splitting(p, budgets_of(p, per), 50) for p in (problem, scaled))
    np.testing.assert_allclose(other.weight * 2.0**4, one.weight, atol=1e-9)


def test_a_step_costs_two_products():
    problem = small_problem("relu")
    run = GraphSplitting(problem, problem.structure, budgets_of(problem, "layer"), 1, None)
    before = run.work
    run.step()
    assert run.work - before == 2 * (2 * N * problem.weight.size)
