"""What a solve holds beside its arguments, in bytes that numpy asked for; what an import pulls in."""

from __future__ import annotations

import gc
import subprocess
import sys
import tracemalloc
import warnings
import zlib

import numpy as np
import pytest

from sisopt import ConvergenceWarning, ErrorBudget, LayerProblem, Sparsity, products, solve
from sisopt.solvers import forward_backward, newton
from sisopt.validation import check_finite, check_size, check_weights

SIZES = 5000, 512, 256  # samples, inputs, outputs
TIGHT = ErrorBudget(relative_error=0.1)


@pytest.fixture(scope="module")
def arrays():
    """Return float32 inputs as a ReLU layer would give them, correlated and not negative, and a dense layer."""
    n, n_in, n_out = SIZES
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, 64)) @ rng.standard_normal((64, n_in)) / 8 + 0.5 * rng.standard_normal((n, n_in))
    W = rng.standard_normal((n_out, n_in)) / np.sqrt(n_in)
    small = LayerProblem(X[:200, :20].astype(np.float32), W[:20, :20].astype(np.float32), np.zeros(20, np.float32))
    solve(small, Sparsity(0.5))  # what is loaded once is not the solve's
    solve(LayerProblem(X[:200, :20], W[:20, :20], np.zeros(20), activation="relu"), Sparsity(0.5))
    return np.maximum(X, 0).astype(np.float32), W.astype(np.float32), np.zeros(n_out, np.float32)


def peak_and_left(function):
    """Return the most bytes that a call held at a time, and what it left behind but for its result's own."""
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        result = function()
        left, peak = tracemalloc.get_traced_memory()
        return peak, left, result
    finally:
        tracemalloc.stop()
        gc.enable()


def sizes(problem):
    """Return the bytes of the Gram matrix, and of the largest of a block of samples, a chunk of neurons and W."""
    samples = next(iter(products.sample_blocks(problem.n_samples, problem.n_in)))
    neurons = problem.chunks()[0]
    rows = [(samples.stop, problem.n_in), (neurons.stop, problem.n_samples), problem.weight.shape]
    return 8 * problem.n_in**2, max(8 * a * b for a, b in rows)


def test_peak_memory_is_the_gram_matrix_four_arrays_and_the_hessians(arrays):
    problem = LayerProblem(*arrays, activation="relu")
    peak, _, solution = peak_and_left(lambda: solve(problem, Sparsity(0.9), tol=1e-3))
    gram, array = sizes(problem)
    assert solution.gap <= 1e-3
    assert peak <= gram + 4 * array + forward_backward.HESSIAN_BYTES


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.filterwarnings("ignore::sisopt.ConvergenceWarning")
def test_without_hessians_peak_memory_is_the_gram_matrix_six_arrays_a_thread_and_open_chunks(
    arrays, monkeypatch, n_threads
):
    monkeypatch.setattr(forward_backward, "HESSIAN_BYTES", 0)
    problem = LayerProblem(*arrays, activation="relu")
    peak, *_ = peak_and_left(lambda: solve(problem, Sparsity(0.9), max_iterations=3, n_threads=n_threads))
    gram, array = sizes(problem)
    open_chunks = 17 * problem.n_samples * problem.n_out  # four float32 arrays and a boolean one
    assert peak <= 2 * gram + 6 * array * n_threads + min(open_chunks, forward_backward.CHUNK_BYTES)


@pytest.fixture(scope="module")
def crop(arrays):
    """Return the problem of a part of the layer, whose answer at a tight budget is dense."""
    X, W, b = arrays
    problem = LayerProblem(X[:1500, :128], W[:64, :128], b[:64], activation="relu")
    assert len(problem.chunks()) > 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        solve(problem, TIGHT, max_iterations=12, n_threads=1)  # what compiling a kernel takes is not the solve's
    return problem


@pytest.mark.parametrize("budget", [1 << 20, 2 << 20])  # all of them, in float32, would take 4.4 MB
@pytest.mark.filterwarnings("ignore::sisopt.ConvergenceWarning")
def test_hessians_live_under_their_budget(crop, monkeypatch, budget):
    peaks = []
    for bytes_allowed in (0, budget, 256 << 20):
        monkeypatch.setattr(forward_backward, "HESSIAN_BYTES", bytes_allowed)
        peaks.append(peak_and_left(lambda: solve(crop, TIGHT, max_iterations=12, n_threads=1))[0])
    gram, _ = sizes(crop)
    allowed = peaks[0] + budget + 3 * gram + newton.GATHER_BYTES  # one at work: its copy, its product, its samples
    assert peaks[1] <= allowed < peaks[2]


def test_a_solve_keeps_no_more_than_its_solution_and_the_gram_matrix_when_it_returns(crop):
    problem = LayerProblem(crop.inputs, crop.weight, crop.bias, activation="relu")
    _, left, solution = peak_and_left(lambda: solve(problem, TIGHT))
    gram, array = sizes(problem)
    assert left <= gram + solution.weight.nbytes + array


@pytest.mark.parametrize(("activation", "order"), [("identity", "C"), ("relu", "C"), ("relu", "F")])
@pytest.mark.filterwarnings("ignore::sisopt.ConvergenceWarning")
def test_inputs_are_never_copied_whole(arrays, activation, order):
    n, n_in, n_out = 100_000, 128, 2
    rng = np.random.default_rng(1)
    X = np.asarray(rng.standard_normal((n, n_in), dtype=np.float32), order=order)
    W = rng.standard_normal((n_out, n_in), dtype=np.float32)
    b = np.zeros(n_out, np.float32)

    def run():
        problem = LayerProblem(X, W, b, activation=activation)
        return solve(problem, ErrorBudget(relative_error=0.5), max_iterations=4, n_threads=1)

    peak, *_ = peak_and_left(run)
    assert peak < X.nbytes / 2


@pytest.mark.parametrize(
    ("dtype", "order", "mode"),
    [(np.float32, "C", "r+"), (np.float32, "F", "r"), (np.float64, "C", "r"), (np.float64, "F", "r+")],
)
@pytest.mark.filterwarnings("ignore::sisopt.ConvergenceWarning")
def test_inputs_in_a_file_stay_there(tmp_path, dtype, order, mode):
    n, n_in, n_out = 400_000, 64, 1
    rng = np.random.default_rng(2)
    written = np.memmap(tmp_path / "inputs", dtype, "w+", shape=(n, n_in), order=order)
    for start in range(0, n, 10_000):
        written[start : start + 10_000] = rng.standard_normal((10_000, n_in))
    written.flush()
    before = zlib.crc32((tmp_path / "inputs").read_bytes())
    X = np.memmap(tmp_path / "inputs", dtype, mode, shape=(n, n_in), order=order)
    W, b = rng.standard_normal((n_out, n_in)).astype(dtype), np.zeros(n_out, dtype)

    def run():
        problem = LayerProblem(X, W, b, activation="relu")
        return solve(problem, ErrorBudget(relative_error=0.5), max_iterations=4, n_threads=1)

    peak, *_ = peak_and_left(run)
    assert peak < n * n_in * 4 / 2
    assert zlib.crc32((tmp_path / "inputs").read_bytes()) == before


def test_checks_of_arrays_copy_none_of_them():
    array = np.ones((1_000_000, 16))
    for order in "CF":
        given = np.asarray(array, order=order)
        for check in (check_finite, check_size, check_weights):
            peak, *_ = peak_and_left(lambda check=check, given=given: check("inputs", given))
            assert peak < given.nbytes / 32


def run_fresh(code):
    """Run code in a fresh interpreter and return what it prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_import_loads_no_extra():
    loaded = set(run_fresh("import sys, sisopt; print(*sys.modules)").split())
    assert "sisopt.dispatch" in loaded
    assert not loaded & {"cvxpy", "torch", "matplotlib", "sklearn", "click", "rich", "pytest", "hypothesis"}


def test_an_import_compiles_nothing():
    code = """
import importlib, pkgutil
import sisopt, sisopt.kernels
from numba.core.dispatcher import Dispatcher
kernels = []
for module in pkgutil.iter_modules(sisopt.kernels.__path__):
    members = vars(importlib.import_module(f"sisopt.kernels.{module.name}")).values()
    kernels += [member for member in members if isinstance(member, Dispatcher)]
print(len(kernels), sum(len(kernel.signatures) for kernel in kernels))
"""
    kernels, signatures = map(int, run_fresh(code).split())
    assert kernels > 5
    assert signatures == 0
