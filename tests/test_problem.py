"""LayerProblem: what it keeps, how it cuts the work, and that sums alone pose the same identity problem."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

from sisopt import ErrorBudget, InvalidInputError, LayerProblem, Penalized, Sparsity, WeightedL1, get_activation, solve
from sisopt.evaluation import output_error

N, N_IN, N_OUT = 70, 8, 5


def arrays(dtype=np.float64, *, bias=True, seed=0):
    rng = np.random.default_rng(seed)
    X = (rng.standard_normal((N, N_IN)) @ (np.eye(N_IN) + 0.3 * rng.standard_normal((N_IN, N_IN))) + 0.5).astype(dtype)
    W, b = rng.standard_normal((N_OUT, N_IN)).astype(dtype), rng.standard_normal(N_OUT).astype(dtype)
    return X, W, b if bias else None


def sums(X, W, b, *, targets=None):
    """Return the arguments of from_gram for inputs X (n, n_in), and the targets Z (n, n_out) if they are others'."""
    given = {"gram": X.T @ X, "weight": W, "bias": b, "n_samples": X.shape[0]}
    if b is not None:
        given["input_sum"] = X.sum(axis=0)
    if targets is not None:
        given |= {"cross": targets.T @ X, "energy": (targets**2).sum(axis=0), "target_sum": targets.sum(axis=0)}
    return given


def same_bits(one, other):
    np.testing.assert_array_equal(one.weight, other.weight)
    np.testing.assert_array_equal(one.bias, other.bias)
    assert (one.objective, one.lower_bound, one.radius) == (other.objective, other.lower_bound, other.radius)


# --- what it keeps ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_data_are_kept_by_reference_and_cannot_be_written_through_it(dtype):
    X, W, b = arrays(dtype)
    Z, v, mask = X @ W.T + b, np.ones(N), np.ones(W.shape, bool)
    problem = LayerProblem(X, W, b, preactivations=Z, sample_weights=v, shift=Z, entry_weights=Z**2)
    for given, kept in ((X, problem.inputs), (W, problem.weight), (b, problem.bias), (Z, problem.preactivations)):
        assert np.shares_memory(given, kept)
        assert kept.dtype == dtype
        assert not kept.flags.writeable
        assert given.flags.writeable
    assert np.shares_memory(v, problem.sample_weights)
    assert np.shares_memory(mask, LayerProblem(X, W, b, mask=mask).mask)


def test_problem_cannot_be_changed():
    problem = LayerProblem(*arrays())
    for name in ("weight", "fidelity", "mask"):
        with pytest.raises(AttributeError):
            setattr(problem, name, None)


def test_sizes_are_those_of_the_arrays():
    problem = LayerProblem(*arrays())
    assert (problem.n_samples, problem.n_in, problem.n_out, problem.has_bias) == (N, N_IN, N_OUT, True)
    assert problem.total_weight == N
    np.testing.assert_array_equal(problem.dense_bias, problem.bias)
    bare = LayerProblem(*arrays(bias=False), sample_weights=np.linspace(0.0, 1.0, N))
    assert not bare.has_bias
    assert bare.bias is None
    np.testing.assert_array_equal(bare.dense_bias, np.zeros(N_OUT))
    assert bare.total_weight == pytest.approx(N / 2)


def test_representation_tells_sizes_and_options():
    X, W, b = arrays()
    plain = repr(LayerProblem(X, W, b, activation="relu"))
    assert plain == "LayerProblem(70 samples, 8 inputs -> 5 outputs, activation='relu', bias=True)"
    more = repr(LayerProblem(X, W, activation="tanh", tolerance=0.25, fidelity=0.5))
    assert "bias=False" in more
    assert "tolerance=0.25" in more
    assert "fidelity=0.5" in more
    assert "8 inputs -> 5 outputs, activation='identity'" in repr(LayerProblem.from_gram(**sums(X, W, b)))


@pytest.mark.parametrize("shift", [None, 0.5, "rows", "all"])
@pytest.mark.parametrize("bias", [True, False])
def test_default_preactivations_are_those_of_the_dense_layer(bias, shift):
    X, W, b = arrays(bias=bias)
    rng = np.random.default_rng(1)
    s = {"rows": rng.standard_normal(N_OUT), "all": rng.standard_normal((N, N_OUT))}.get(shift, shift)
    problem = LayerProblem(X, W, b, shift=s)
    expected = X @ W.T + (b if bias else 0.0) + (0.0 if s is None else s)
    np.testing.assert_allclose(problem.preactivations, expected, rtol=0, atol=1e-14 * np.abs(expected).max())


# --- chunks and targets ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_out", "n_samples"), [(1, 1), (5, 70), (9, 3), (300, 2), (64, 20000)])
def test_chunks_cover_every_neuron_once_whatever_the_number_of_threads(n_out, n_samples, monkeypatch):
    problem = LayerProblem(np.zeros((n_samples, 1)), np.zeros((n_out, 1)))
    chunks = problem.chunks()
    np.testing.assert_array_equal(np.concatenate([np.arange(n_out)[rows] for rows in chunks]), np.arange(n_out))
    for threads in (1, 64):
        monkeypatch.setattr("sisopt.threads.available_threads", lambda threads=threads: threads)
        monkeypatch.setattr("sisopt.products.available_threads", lambda threads=threads: threads)
        assert LayerProblem(np.zeros((n_samples, 1)), np.zeros((n_out, 1))).chunks() == chunks


@pytest.mark.parametrize("activation", ["identity", "relu", "hard_tanh", "tanh"])
@pytest.mark.parametrize("tolerance", [0.0, 0.1])
def test_target_of_a_chunk_is_the_preimage_less_the_shift(activation, tolerance):
    X, W, b = arrays()
    s = np.random.default_rng(1).standard_normal((N, N_OUT))
    problem = LayerProblem(X, W, b, activation=activation, shift=s, tolerance=tolerance, fidelity=0.5)
    rows = slice(1, 4)
    Z = X @ W.T + b + s
    interval = get_activation(activation).preimage(Z.T[rows], tolerance)
    target = problem.row_target(rows)
    np.testing.assert_allclose(target.lo, interval.lo - s.T[rows], rtol=0, atol=1e-13)
    np.testing.assert_allclose(target.hi, interval.hi - s.T[rows], rtol=0, atol=1e-13)
    np.testing.assert_allclose(target.center, (Z - s).T[rows], rtol=0, atol=1e-13)
    assert np.all(target.lo <= target.center + 1e-13)
    assert np.all(target.center <= target.hi + 1e-13)
    for array in (target.lo, target.hi, target.center, target.weights):
        assert array.flags.c_contiguous
        assert array.dtype == np.float64


@pytest.mark.parametrize("activation", ["identity", "relu", "tanh", "hard_tanh"])
def test_target_in_float32_is_the_rounded_one(activation):
    rng = np.random.default_rng(1)
    options = {"shift": rng.standard_normal(N_OUT), "entry_weights": rng.uniform(0.1, 1.0, (N, N_OUT))}
    problem = LayerProblem(*arrays(), activation=activation, fidelity=0.5, **options)
    exact, rounded = problem.row_target(slice(1, 4)), problem.row_target(slice(1, 4), np.float32)
    for name in ("lo", "hi", "center", "weights", "sample_weights"):
        array = getattr(rounded, name)
        assert array.dtype == np.float32
        assert array.flags.c_contiguous
        np.testing.assert_array_equal(array, getattr(exact, name).astype(np.float32))
    assert (rounded.lo <= rounded.hi).all()
    np.testing.assert_array_equal(rounded.lo == rounded.hi, exact.lo == exact.hi)


@pytest.fixture
def nothing_kept(monkeypatch):
    """Return a function that poses a problem whose pre-activations take too much memory to be kept."""

    def pose(*arguments, **options):
        with monkeypatch.context() as patch:
            patch.setattr("sisopt.problem.KEPT_BYTES", 0)
            patch.setattr("sisopt.problem.bytes_in_memory", lambda array: 0)
            return LayerProblem(*arguments, **options)

    return pose


@pytest.mark.parametrize("shift", [None, 0.5, "all"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_preactivations_that_are_not_kept_have_the_same_bits(nothing_kept, shift, dtype):
    rng = np.random.default_rng(1)
    X, W, b = rng.standard_normal((300, 40)).astype(dtype), rng.standard_normal((70, 40)).astype(dtype), np.ones(70)
    s = rng.standard_normal((300, 70)) if shift == "all" else shift
    kept, anew = (pose(X, W, b, shift=s, activation="relu") for pose in (LayerProblem, nothing_kept))
    assert kept.preactivations is kept.preactivations
    assert anew.preactivations is not anew.preactivations
    np.testing.assert_array_equal(anew.preactivations, kept.preactivations)
    for rows in (slice(0, 70), slice(3, 4), slice(5, 31), *kept.chunks()):
        np.testing.assert_array_equal(anew.dense_rows(rows), kept.preactivations.T[rows])
        np.testing.assert_array_equal(anew.row_target(rows).hi, kept.row_target(rows).hi)


@pytest.mark.parametrize("activation", ["identity", "relu", "softmax"])
@pytest.mark.parametrize("method", ["forward-backward", "douglas-rachford", "sis"])
def test_answers_have_the_same_bits_whether_preactivations_are_kept_or_not(nothing_kept, activation, method):
    problems = [pose(*arrays(), activation=activation) for pose in (LayerProblem, nothing_kept)]
    goal = ErrorBudget(relative_error=0.4)
    kept, anew = (solve(problem, goal, method=method, tol=1e-2) for problem in problems)
    np.testing.assert_array_equal(anew.weight, kept.weight)
    assert anew.gap == kept.gap
    errors = [output_error(problem, kept.weight, kept.bias) for problem in problems]
    assert errors[0] == errors[1]


def test_overflowing_preactivations_are_refused_where_they_are_not_kept(nothing_kept):
    with pytest.raises(InvalidInputError, match="products with weight"):
        nothing_kept(np.full((3, 2), 1e60), np.full((1, 2), 1e60))
    nothing_kept([[0.0, 1e60]], [[1e60, 0.0]])  # a bound that is too large is no refusal


@pytest.mark.parametrize("shape", [(), (N, 1), (N_OUT,), (N, N_OUT)], ids=str)
@pytest.mark.parametrize("sampled", [True, False])
def test_weights_of_a_chunk_are_those_of_entries_times_samples(shape, sampled):
    rng = np.random.default_rng(1)
    omega, v = rng.uniform(0.1, 1.0, shape), rng.uniform(0.1, 1.0, N) if sampled else None
    problem = LayerProblem(*arrays(), entry_weights=omega, sample_weights=v)
    target = problem.row_target(slice(2, 5))
    expected = (np.broadcast_to(omega, (N, N_OUT)) * (v[:, None] if sampled else 1.0)).T[2:5]
    np.testing.assert_allclose(np.broadcast_to(target.weights, expected.shape), expected, rtol=1e-15)
    np.testing.assert_array_equal(target.sample_weights, v if sampled else np.ones(N))


# --- problems that are the same --------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_preactivations_given_as_the_dense_ones_change_nothing(activation):
    X, W, b = arrays()
    problem = LayerProblem(X, W, b, activation=activation)
    given = LayerProblem(X, W, b, activation=activation, preactivations=problem.preactivations)
    own, same = solve(problem, ErrorBudget(relative_error=0.2)), solve(given, ErrorBudget(relative_error=0.2))
    if activation != "identity":
        same_bits(own, same)
        return
    # sums of an identity layer's own targets come from the Gram matrix: the same up to rounding
    np.testing.assert_allclose(own.weight, same.weight, rtol=1e-11, atol=1e-13)
    np.testing.assert_array_equal(own.weight == 0, same.weight == 0)
    assert own.objective == pytest.approx(same.objective, rel=1e-12)


@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_constant_shift_is_a_bias_in_another_place(activation):
    X, W, b = arrays()
    s = np.random.default_rng(1).standard_normal(N_OUT)
    one = solve(LayerProblem(X, W, b + s, activation=activation), ErrorBudget(relative_error=0.2), tol=1e-9)
    two = solve(LayerProblem(X, W, b, shift=s, activation=activation), ErrorBudget(relative_error=0.2), tol=1e-9)
    assert two.objective == pytest.approx(one.objective, rel=2e-9)
    np.testing.assert_allclose(two.weight, one.weight, rtol=0, atol=1e-3 * np.abs(W).max())
    np.testing.assert_allclose(two.bias + s, one.bias, rtol=0, atol=1e-3)


@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_sample_weights_count_samples_as_often_as_they_say(activation):
    X, W, b = arrays()
    times = np.random.default_rng(1).integers(0, 4, N)
    weighted = LayerProblem(X, W, b, activation=activation, sample_weights=times)
    repeated = LayerProblem(np.repeat(X, times, axis=0), W, b, activation=activation)
    for goal in (ErrorBudget(relative_error=0.2), ErrorBudget(eta=0.1), Penalized(3.0)):
        one, two = solve(weighted, goal, tol=1e-8), solve(repeated, goal, tol=1e-8)
        assert one.objective == pytest.approx(two.objective, rel=2e-8)
        assert one.radius == pytest.approx(two.radius, rel=1e-3)
        assert one.empty_radius == pytest.approx(two.empty_radius, rel=1e-12)


def test_entries_without_weight_may_be_anything():
    X, W, b = arrays()
    omega = (np.random.default_rng(1).random((N, N_OUT)) < 0.7).astype(float)
    Z = X @ W.T + b
    other = np.where(omega > 0, Z, Z + 100.0)
    goal = ErrorBudget(relative_error=0.2)
    one = solve(LayerProblem(X, W, b, preactivations=Z, entry_weights=omega, activation="relu"), goal, tol=1e-8)
    two = solve(LayerProblem(X, W, b, preactivations=other, entry_weights=omega, activation="relu"), goal, tol=1e-8)
    assert one.objective == pytest.approx(two.objective, rel=2e-8)


@pytest.mark.parametrize("targets", ["dense", "other"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "goal", [ErrorBudget(relative_error=0.4), ErrorBudget(eta=9.0), Sparsity(0.6), Penalized(5.0)], ids=str
)
def test_sums_alone_pose_the_same_problem(goal, bias, targets):
    X, W, b = arrays(bias=bias)
    rng = np.random.default_rng(1)
    Z = X @ W.T + (b if bias else 0.0) + 0.1 * rng.standard_normal((N, N_OUT)) if targets == "other" else None
    options = {"penalty": WeightedL1(rng.uniform(0.5, 2.0, (N_OUT, N_IN))), "mask": rng.random((N_OUT, N_IN)) < 0.9}
    data = LayerProblem(X, W, b, preactivations=Z, **options)
    few = LayerProblem.from_gram(**sums(X, W, b, targets=Z), **options)
    one, two = solve(data, goal, tol=1e-8), solve(few, goal, tol=1e-8)
    assert two.gap <= 1e-8
    np.testing.assert_allclose(two.weight, one.weight, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(two.weight != 0, one.weight != 0)
    for name in ("objective", "radius", "relative_error", "empty_radius", "multiplier"):
        assert getattr(two, name) == pytest.approx(getattr(one, name), rel=1e-6)
    if bias:
        np.testing.assert_allclose(two.bias, one.bias, rtol=0, atol=1e-6)
    else:
        assert two.bias is None


def test_sums_serve_float32_weights():
    X, W, b = arrays(np.float32)
    few = LayerProblem.from_gram(**sums(X.astype(float), W, b))
    solution = solve(few, ErrorBudget(relative_error=0.2))
    assert solution.weight.dtype == solution.bias.dtype == np.float32
    assert solution.gap <= 1e-4


# --- copies ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("made", ["data", "sums"])
@pytest.mark.parametrize("copied", [lambda p: pickle.loads(pickle.dumps(p)), copy.deepcopy], ids=["pickle", "deepcopy"])
def test_copy_drops_what_was_computed_and_solves_the_same(copied, made):
    X, W, b = arrays()
    problem = LayerProblem(X, W, b, activation="relu") if made == "data" else LayerProblem.from_gram(**sums(X, W, b))
    goal = ErrorBudget(relative_error=0.2)
    small = len(pickle.dumps(problem))
    solution = solve(problem, goal)
    assert problem._cache or made == "sums"
    assert len(pickle.dumps(problem)) == small
    again = copied(problem)
    assert again._cache == {}
    assert problem._cache or made == "sums"
    assert repr(again) == repr(problem)
    same_bits(solve(again, goal), solution)


def test_another_mask_shares_the_data_and_what_was_computed():
    problem = LayerProblem(*arrays(), activation="relu", fidelity=0.3)
    solve(problem, Sparsity(0.5))
    mask = np.random.default_rng(1).random((N_OUT, N_IN)) < 0.8
    other = problem.with_mask(mask)
    assert other.inputs is problem.inputs
    assert other._cache is problem._cache
    assert problem.mask is None
    afresh = LayerProblem(*arrays(), activation="relu", mask=mask, fidelity=0.3)
    for goal in (ErrorBudget(relative_error=0.5), Sparsity(0.6)):
        same_bits(solve(other, goal), solve(afresh, goal))


@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_what_was_computed_does_not_change_the_answer(activation):
    problem = LayerProblem(*arrays(), activation=activation)
    first = solve(problem, ErrorBudget(relative_error=0.2))
    solve(problem.with_mask(np.eye(N_OUT, N_IN, dtype=bool)), Sparsity(0.95))
    solve(problem, Sparsity(0.8))
    same_bits(solve(problem, ErrorBudget(relative_error=0.2)), first)


def test_problems_are_compared_by_identity():
    one, two = LayerProblem(*arrays()), LayerProblem(*arrays())
    assert one == one
    assert one != two
    assert len({one, two}) == 2
