"""Float32 inside, float64 in judgement; and starts from part of the samples."""

import numpy as np
import pytest

import sisopt
from sisopt import pursuit
from sisopt.evaluation import target_size
from sisopt.solvers import forward_backward, newton
from sisopt.solvers.metric import LEAST, input_metric
from sisopt.solvers.precision import working_dtype
from sisopt.thinning import thinned, thinned_samples


def layer(n_samples=600, n_in=20, n_out=9, dtype=np.float64, scale=1.0, offset=0.0, **options):
    rng = np.random.default_rng([n_samples, n_in])
    X = (scale * (rng.standard_normal((n_samples, n_in)) @ rng.standard_normal((n_in, n_in))) + offset).astype(dtype)
    W = (rng.standard_normal((n_out, n_in)) / np.sqrt(n_in)).astype(dtype)
    return sisopt.LayerProblem(X, W, np.zeros(n_out, dtype), activation="relu", **options)


def precision(problem, tol=1e-4, error=0.3, radius=None):
    size = target_size(problem)
    return working_dtype(problem, tol, error, size if radius is None else radius, size)


GOALS = [sisopt.Sparsity(0.6), sisopt.ErrorBudget(relative_error=0.3), sisopt.ErrorBudget(relative_error=0.05)]


@pytest.mark.parametrize("goal", GOALS, ids=str)
@pytest.mark.parametrize("fidelity", [0.0, 0.2])
def test_an_answer_found_in_float32_is_the_one_found_in_float64(goal, fidelity, monkeypatch):
    problem = layer(fidelity=fidelity)
    used = []
    make = forward_backward.DataRows.__post_init__
    monkeypatch.setattr(forward_backward.DataRows, "__post_init__", lambda self: (used.append(self.dtype), make(self)))
    quick = sisopt.solve(problem, goal, tol=1e-4)
    assert used == [np.float32]
    monkeypatch.setattr(pursuit, "working_dtype", lambda *args: np.dtype(np.float64))
    exact = sisopt.solve(layer(fidelity=fidelity), goal, tol=1e-4)
    assert used == [np.float32, np.float64]
    assert quick.status is exact.status is sisopt.Status.OPTIMAL
    if isinstance(goal, sisopt.ErrorBudget):
        assert quick.radius <= quick.empty_radius * goal.relative_error * (1 + 1e-6)
        assert abs(quick.objective / exact.objective - 1.0) <= 2e-4
        assert max(quick.lower_bound, exact.lower_bound) <= min(quick.objective, exact.objective) * (1 + 1e-9)


def test_what_float32_cannot_do_is_done_in_float64(monkeypatch):
    monkeypatch.setattr("sisopt.solvers.precision.LEAST_TOL", 0.0)
    used = []
    make = forward_backward.DataRows.__post_init__
    monkeypatch.setattr(forward_backward.DataRows, "__post_init__", lambda self: (used.append(self.dtype), make(self)))
    solution = sisopt.solve(layer(), sisopt.ErrorBudget(relative_error=0.3), tol=1e-9)
    assert used == [np.float32, np.float64]
    assert solution.status is sisopt.Status.OPTIMAL
    assert solution.gap <= 1e-9


def test_float32_is_for_ordinary_data_and_tolerances():
    assert precision(layer()) == np.float32
    assert precision(layer(dtype=np.float32)) == np.float32
    assert precision(layer(), tol=1e-6) == np.float64
    assert precision(layer(), error=1e-3) == np.float64
    problem = layer()
    assert precision(problem, radius=1e-3 * target_size(problem)) == np.float64


@pytest.mark.parametrize(
    "options", [{"scale": 1e-20}, {"scale": 1e20}, {"offset": 1e5}, {"sample_weights": np.r_[1e9, np.ones(599_999)]}]
)
def test_float64_is_for_data_that_float32_would_spoil(options):
    n = 600_000 if "sample_weights" in options else 600
    assert precision(layer(n, 2, 1, **options)) == np.float64


def test_scales_that_differ_and_inputs_without_spread_are_for_float64():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((100, 4))
    uneven = sisopt.LayerProblem(X * [1.0, 1e-6, 1.0, 1.0], np.ones((2, 4)), activation="relu")
    flat = sisopt.LayerProblem(np.ones((100, 4)), np.ones((2, 4)), activation="relu")
    assert precision(uneven) == precision(flat) == np.float64


def test_float32_metric_is_near_the_exact_one_and_forgets_constant_inputs():
    inputs = layer(3000, 12).inputs.copy()
    inputs[:, 3] = 7.1
    problem = sisopt.LayerProblem(inputs, np.ones((4, 12)), np.zeros(4), activation="relu")
    exact, _ = input_metric(problem, np.dtype(np.float64), 1)
    quick, _ = input_metric(problem, np.dtype(np.float32), 1)
    assert quick.exact
    assert quick.gram.dtype == np.float32
    np.testing.assert_allclose(quick.gram, exact.gram, atol=1e-5 * np.diagonal(exact.gram).max())
    assert not quick.gram[3].any()


def test_a_metric_of_many_samples_comes_from_part_of_them():
    problem = layer(3 * LEAST, 3, 1)
    exact, all_work = input_metric(problem, np.dtype(np.float64), 1)
    quick, work = input_metric(problem, np.dtype(np.float32), 1)
    assert not quick.exact
    assert work == pytest.approx(all_work / 3)
    np.testing.assert_allclose(quick.gram, exact.gram, atol=0.1 * np.diagonal(exact.gram).max())


@pytest.mark.parametrize(("n", "wanted"), [(1000, 10), (1001, 499), (21, 10)])
def test_thinned_samples_are_spread_evenly_and_always_the_same(n, wanted):
    samples = thinned_samples(n, wanted)
    assert samples.size == wanted
    assert (np.diff(samples) > 0).all()
    assert 0 <= samples[0]
    assert samples[-1] < n
    assert np.diff(samples).max() <= 2 * -(-n // wanted)
    np.testing.assert_array_equal(samples, thinned_samples(n, wanted))


def test_few_samples_are_not_thinned():
    assert thinned_samples(20, 10) is None


def test_a_thinned_problem_is_the_problem_on_its_samples():
    rng = np.random.default_rng(3)
    n = 50
    options = {
        "shift": rng.standard_normal((n, 9)),
        "entry_weights": rng.random((n, 9)),
        "sample_weights": rng.random(n),
        "fidelity": 0.1,
        "tolerance": 0.2,
    }
    problem = layer(n, 20, 9, **options)
    samples = np.array([3, 4, 17, 44])
    part = thinned(problem, samples)
    whole, some = problem.row_target(slice(0, 9)), part.row_target(slice(0, 9))
    np.testing.assert_array_equal(part.inputs, problem.inputs[samples])
    for name in ("lo", "hi", "weights", "center"):
        np.testing.assert_allclose(getattr(some, name), getattr(whole, name)[:, samples], rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(some.sample_weights, whole.sample_weights[samples])


@pytest.mark.parametrize("goal", [*GOALS, sisopt.Penalized(30.0)], ids=str)
def test_starts_on_part_of_the_samples_lead_to_the_same_optimum(goal, monkeypatch):
    monkeypatch.setattr(newton, "LEAST_ACTIVE", 64)
    monkeypatch.setattr(pursuit, "COARSE_PER_INPUT", 16)
    started = []
    original = pursuit.thinned
    monkeypatch.setattr(pursuit, "thinned", lambda *args: started.append(1) or original(*args))
    solution = sisopt.solve(layer(4000, 10, 6), goal, tol=1e-4)
    assert len(started) == 2  # the part has a part
    assert solution.status is sisopt.Status.OPTIMAL
    monkeypatch.setattr(pursuit, "COARSE_PER_INPUT", 10_000)
    direct = sisopt.solve(layer(4000, 10, 6), goal, tol=1e-4)
    assert len(started) == 2
    if not isinstance(goal, sisopt.Sparsity):
        assert abs(solution.objective / direct.objective - 1.0) <= 2e-4


def test_samples_without_weight_are_no_start(monkeypatch):
    problem = layer(4000, 10, 6)
    weights = np.ones(4000)
    weights[thinned_samples(4000, 500)] = 0.0
    weighted = sisopt.LayerProblem(
        problem.inputs, problem.weight, problem.bias, activation="relu", sample_weights=weights
    )
    assert sisopt.solve(weighted, GOALS[0], tol=1e-3).status is sisopt.Status.OPTIMAL


def test_bits_do_not_depend_on_threads_with_thinned_metrics_and_starts():
    one, two = (sisopt.solve(layer(40_000, 6, 20), GOALS[0], tol=1e-3, n_threads=n) for n in (1, 2))
    np.testing.assert_array_equal(one.weight, two.weight)
    np.testing.assert_array_equal(one.bias, two.bias)
    assert one.gap == two.gap


def test_small_sample_weights_make_no_input_constant():
    problem = layer(300, 5, 2)
    weighted = layer(300, 5, 2, sample_weights=np.full(300, 1e-30))
    one, other = (input_metric(p, np.dtype(np.float32), 1)[0].gram for p in (problem, weighted))
    np.testing.assert_allclose(other, 1e-30 * one, rtol=1e-4, atol=1e-34)
