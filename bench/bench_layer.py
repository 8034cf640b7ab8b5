"""A whole layer to a sparsity: products with the inputs, time against one product, memory; and what a start costs."""

from __future__ import annotations

import subprocess
import sys
import time
import tracemalloc

import numpy as np

import sisopt
from bench.data import random_layer


def bench_relu_layer_to_sparsity(timed, fact):
    case = "ReLU 5000 x 512 -> 256, Sparsity(0.9), gap 1e-3"
    solution = timed(
        case,
        "sisopt",
        lambda problem: sisopt.solve(problem, sisopt.Sparsity(0.9), tol=1e-3),
        lambda: random_layer(5000, 512, 256, "relu"),
        rounds=3,
        describe=lambda s: f"gap {s.gap:.1e}, sparsity {s.sparsity:.4f}, {s.n_products:.1f} products (floor: 90)",
        ours=True,
    )
    assert solution.gap <= 1e-3
    assert solution.n_products <= 90
    X, W = (np.float32(a) for a in (random_layer(5000, 512, 256, "relu").inputs, solution.weight))
    product = min(_seconds(lambda: X @ W.T) for _ in range(20))
    fact(f"one float32 product X W' of that layer at BLAS speed: {product:.4f} s")


def _seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def bench_memory(benchmark, fact):
    problem = random_layer(5000, 512, 256, "relu", np.float32)

    def peak():
        tracemalloc.start()
        sisopt.solve(problem, sisopt.Sparsity(0.9), tol=1e-3)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    most = benchmark.pedantic(peak, rounds=1)
    fact(f"peak memory of that solve beyond inputs and pre-activations (float32): {most / 2**20:.0f} MiB")


def bench_import(benchmark, fact):
    code = "import time; t = time.perf_counter(); import sisopt; print(time.perf_counter() - t)"
    command = [sys.executable, "-c", code]
    benchmark.pedantic(lambda: subprocess.run(command, check=True, capture_output=True), rounds=1)
    least = min(float(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(5))
    fact(f"import sisopt, warm: {least:.2f} s (floor: 1)")
