"""The same bits whatever the threads, from threads and forked processes, after pickling; BLAS left as it was."""

from __future__ import annotations

import dataclasses
import itertools
import multiprocessing
import os
import pickle
import sys
import threading
import warnings

import numpy as np
import pytest
import threadpoolctl

from sisopt import (
    ConvergenceWarning,
    ErrorBudget,
    InfeasibleBudgetError,
    LayerProblem,
    Penalized,
    Sparsity,
    products,
    solve,
    sparsify,
    threads,
)

GOALS = {
    "Penalized": Penalized(3.0),
    "ErrorBudget": ErrorBudget(relative_error=0.2),
    "Sparsity": Sparsity(0.7),
}


def bits(solution):
    """Return everything on a solution but the seconds, bit for bit."""

    def plain(value):
        return value.tobytes() if isinstance(value, np.ndarray) else value

    fields = {f.name: plain(getattr(solution, f.name)) for f in dataclasses.fields(solution)}
    fields["history"] = [dataclasses.replace(progress, seconds=0.0) for progress in solution.history]
    return {**fields, "seconds": 0.0}


@pytest.fixture
def wide_layer(make_layer, monkeypatch):
    """Return the builder of layers with several chunks of neurons and several blocks of samples."""
    monkeypatch.setattr(products, "BLOCK_BYTES", 1 << 12)
    monkeypatch.setattr(products, "MIN_BLOCK", 64)

    def build(activation="relu", **options):
        layer = make_layer(activation, n=300, n_in=12, n_out=20, **options)
        assert len(layer.problem.chunks()) > 1
        assert len(list(products.sample_blocks(300, 12))) > 2
        return layer

    return build


@pytest.mark.parametrize("goal", GOALS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("activation", ["relu", "identity", "gelu"])
def test_solutions_have_the_same_bits_whatever_the_number_of_threads(wide_layer, activation, dtype, goal):
    layer = wide_layer(activation, dtype=dtype)
    first, *others = (bits(solve(layer.again(), GOALS[goal], n_threads=n)) for n in (1, 2, 3, 1))
    for other in others:
        assert other == first


@pytest.mark.parametrize("extras", [("fidelity", "shift"), ("entry_weights", "sample_weights"), ("mask", "tolerance")])
def test_every_kind_of_problem_has_the_same_bits_whatever_the_number_of_threads(wide_layer, extras):
    layer = wide_layer("relu", extras=extras)
    goal = ErrorBudget(relative_error=0.7)
    assert bits(solve(layer.again(), goal, n_threads=1)) == bits(solve(layer.again(), goal, n_threads=3))


@pytest.mark.parametrize("goal", GOALS)
@pytest.mark.parametrize("activation", ["relu", "identity"])
def test_repeated_solves_of_one_problem_have_the_same_weights(wide_layer, activation, goal):
    problem = wide_layer(activation).problem
    first, again = (bits(solve(problem, GOALS[goal])) for _ in range(2))
    for counted in ("n_products", "history"):  # the second finds the Gram matrix made
        del first[counted], again[counted]
    assert again == first


SPARSIFY = {
    "fast": {"sparsity": 0.8, "effort": "fast"},
    "default": {"sparsity": 0.8},
    "full": {"sparsity": 0.8, "effort": "full"},
    "2:4": {"pattern": "2:4"},
    "budget": {"relative_error": 0.3},
}


@pytest.mark.parametrize(
    ("goal", "activation"),
    [*itertools.product(("fast", "default"), ("relu", "identity", "gelu", "softmax"))]
    + [("full", "relu"), ("2:4", "relu"), ("budget", "relu")],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sparsify_gives_the_same_bits_whatever_the_number_of_threads(
    make_layer, wide_layer, monkeypatch, activation, dtype, goal
):
    for name, size in (("model.CHUNK_ROWS", 6), ("metric.ROWS", 7), ("posing.SMALL", 0)):
        monkeypatch.setattr(f"sisopt.refine.{name}", size)  # several pieces of work, float32 where that serves
    if activation == "softmax":  # whose outputs are one chunk
        layer = make_layer(activation, n=300, n_in=12, n_out=20, dtype=dtype)
    else:
        layer = wide_layer(activation, dtype=dtype)

    def run(n_threads):
        made = sparsify(layer.X, layer.W, layer.b, activation=activation, n_threads=n_threads, **SPARSIFY[goal])
        stages = [dataclasses.replace(stage, seconds=0.0) for stage in made.stages]
        convex = None if made.convex is None else bits(made.convex)
        return made.weight.tobytes(), made.bias.tobytes(), stages, made.settings, made.held_out_error, convex

    first = run(1)
    for n_threads in (2, 3) if goal == "default" else (3,):
        assert run(n_threads) == first


def test_two_solves_at_once_give_the_bits_of_each_alone(wide_layer):
    jobs = [
        (wide_layer("relu", seed=1), ErrorBudget(relative_error=0.1)),
        (wide_layer("gelu", seed=2, extras=("fidelity",)), Sparsity(0.5)),
    ]
    alone = [bits(solve(layer.again(), goal, n_threads=2)) for layer, goal in jobs]
    together = [[], []]
    start = threading.Barrier(2)

    def work(i):
        layer, goal = jobs[i]
        start.wait()
        for _ in range(5):
            together[i].append(bits(solve(layer.again(), goal, n_threads=2)))

    workers = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert together == [[alone[0]] * 5, [alone[1]] * 5]


def test_one_problem_solved_at_once_by_two_threads_gives_the_same_weights(wide_layer):
    layer, goal = wide_layer("relu"), ErrorBudget(relative_error=0.15)
    alone = solve(layer.again(), goal).weight.tobytes()
    problem, found, start = layer.again(), [], threading.Barrier(2)

    def work():
        start.wait()
        found.append(solve(problem, goal).weight.tobytes())

    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert found == [alone, alone]


def in_fork(function):
    """Return what ``function`` returns in a forked child; raise if the child does not come back."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=lambda: sender.send(function()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 on: forking beside threads
        child.start()
    try:
        assert receiver.poll(30), "the child hangs"
        return receiver.recv()
    finally:
        child.kill()
        child.join()


needs_fork = pytest.mark.skipif(
    sys.platform == "darwin" or not hasattr(os, "fork"), reason="BLAS does not survive a fork here"
)


@needs_fork
@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("activation", ["relu", "identity"])
def test_a_forked_child_gives_the_bits_of_its_parent(wide_layer, activation, n_threads):
    layer, goal = wide_layer(activation), ErrorBudget(relative_error=0.2)
    parent = bits(solve(layer.again(), goal, n_threads=2))
    assert in_fork(lambda: bits(solve(layer.again(), goal, n_threads=n_threads))) == parent


@needs_fork
def test_a_child_forked_in_the_middle_of_a_solve_can_solve(wide_layer):
    layer, goal = wide_layer("relu"), ErrorBudget(relative_error=0.2)
    parent = bits(solve(layer.again(), goal, n_threads=2))
    with threads.serial_blas(), threads.serial_blas._lock:  # where a solve in another thread may be
        assert in_fork(lambda: bits(solve(layer.again(), goal, n_threads=2))) == parent


@needs_fork
def test_a_child_forked_from_a_callback_can_solve(wide_layer):
    layer, goal = wide_layer("relu"), ErrorBudget(relative_error=0.2)
    found = []

    def callback(progress):
        if not found:
            found.append(in_fork(lambda: bits(solve(layer.again(), goal, n_threads=2))))

    assert found == [] and bits(solve(layer.again(), goal, n_threads=2, callback=callback)) == found[0]


@pytest.mark.parametrize("activation", ["relu", "identity", "gelu"])
def test_problems_and_solutions_survive_pickling(make_layer, activation):
    layer = make_layer(activation, extras=("fidelity", "shift", "entry_weights", "sample_weights", "mask", "penalty"))
    problem, goal = layer.problem, ErrorBudget(relative_error=0.8)
    fresh = pickle.loads(pickle.dumps(layer.again()))
    solution = solve(problem, goal)
    used = pickle.loads(pickle.dumps(problem))  # with a Gram matrix cached beside it
    for copy in (fresh, used):
        assert bits(solve(copy, goal)) == bits(solve(layer.again(), goal))
        assert repr(copy) == repr(problem)
    back = pickle.loads(pickle.dumps(solution))
    assert bits(back) == bits(solution)
    assert back.goal == goal
    assert back.history == solution.history
    assert str(back) == str(solution)


def test_a_pickle_does_not_carry_what_was_computed(make_layer):
    layer = make_layer("identity", n_in=64)
    before = len(pickle.dumps(layer.problem))
    solve(layer.problem, Penalized(1.0))
    assert len(pickle.dumps(layer.problem)) == before


def test_problems_from_sums_survive_pickling(make_layer):
    layer = make_layer("identity")
    problem = LayerProblem.from_gram(
        layer.X.T @ layer.X, weight=layer.W, bias=layer.b, n_samples=len(layer.X), input_sum=layer.X.sum(axis=0)
    )
    goal = Sparsity(0.5)
    assert bits(solve(pickle.loads(pickle.dumps(problem)), goal)) == bits(solve(problem, goal))


def test_errors_survive_pickling():
    error = pickle.loads(pickle.dumps(InfeasibleBudgetError("no", 0.25)))
    assert (str(error), error.least_relative_error) == ("no", 0.25)


def blas_threads():
    """Return the number of threads of every BLAS in the process."""
    return {lib["filepath"]: lib["num_threads"] for lib in threadpoolctl.threadpool_info() if lib["user_api"] == "blas"}


@pytest.mark.parametrize("limit", [None, 1, 2])
@pytest.mark.parametrize("n_threads", [1, 2])
def test_blas_threads_are_what_they_were_before(wide_layer, n_threads, limit):
    layer = wide_layer("relu")
    with threadpoolctl.threadpool_limits(limit, user_api="blas"):
        before = blas_threads()
        assert before
        solve(layer.problem, ErrorBudget(relative_error=0.2), n_threads=n_threads)
        assert blas_threads() == before
        sparsify(layer.X, layer.W, activation="identity", sparsity=0.5, n_threads=n_threads)
        assert blas_threads() == before


@pytest.mark.parametrize("n_threads", [1, 2])
def test_blas_threads_are_what_they_were_before_after_a_failure(wide_layer, n_threads):
    layer = wide_layer("relu")
    before = blas_threads()

    def fail(progress):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        solve(layer.problem, ErrorBudget(relative_error=0.2), n_threads=n_threads, callback=fail)
    assert blas_threads() == before
    masked = layer.again(mask=np.arange(12) < np.full((20, 1), 3))
    with pytest.raises(InfeasibleBudgetError):
        solve(masked, ErrorBudget(relative_error=0.1), n_threads=n_threads)
    assert blas_threads() == before
    with pytest.warns(ConvergenceWarning):
        solve(layer.problem, ErrorBudget(relative_error=0.2), n_threads=n_threads, max_seconds=0)
    assert blas_threads() == before
