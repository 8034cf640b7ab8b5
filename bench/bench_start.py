"""What a process pays before and beside the work: import, compilation, memory."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

IMPORT = "import time; t = time.perf_counter(); import sisopt; print(time.perf_counter() - t)"
FIRST_SOLVE = """
import time
t = time.perf_counter()
import numpy as np
import sisopt
rng = np.random.default_rng(0)
X, W = rng.standard_normal((500, 20), dtype=np.float32), rng.standard_normal((8, 20), dtype=np.float32)
sisopt.solve(sisopt.LayerProblem(X, W, np.zeros(8, np.float32), activation="relu"), sisopt.Sparsity(0.9))
print(time.perf_counter() - t)
"""
WARMUP = "import time; import sisopt; t = time.perf_counter(); sisopt.warmup(); print(time.perf_counter() - t)"

# Prints megabytes: resident before there are data, the inputs, and the most that was ever resident. The kernel's own
# mark of the address space, as ru_maxrss would begin with that of the parent.
PEAK = """
import numpy as np
import sisopt
from bench.data import random_arrays

def resident(what):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1000 for line in status if line.startswith(what))
sisopt.warmup()
before = resident("VmRSS")
arrays = random_arrays({n_samples}, {n_in}, {n_out}, np.float32)
sisopt.solve(sisopt.LayerProblem(*arrays, activation="relu"), sisopt.Sparsity(0.9), tol=1e-3)
print(before, arrays[0].nbytes / 1e6, resident("VmHWM"))
"""
MEMORY = {
    "512 -> 256, 5000 samples": (5000, 512, 256),
    "64 -> 16, 1000000 samples": (1_000_000, 64, 16),
}


def fresh(code: str, **environment: str) -> list[float]:
    """Run code in a fresh interpreter and return the numbers that it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )
    return [float(word) for word in done.stdout.split()]


def bench_import(fact):
    least = min(fresh(IMPORT)[0] for _ in range(5))
    fact(f"import sisopt, warm: {least:.2f} s (floor: 1)")


def bench_first_solve(fact, tmp_path):
    least = min(fresh(FIRST_SOLVE)[0] for _ in range(5))
    cold = fresh(FIRST_SOLVE, NUMBA_CACHE_DIR=str(tmp_path))[0]
    fact(f"first solve of a second process, import included: {least:.2f} s (floor: 1.5)")
    fact(f"first solve of the first process, which compiles what it needs: {cold:.1f} s")


def bench_warmup(fact, tmp_path):
    cold = fresh(WARMUP, NUMBA_CACHE_DIR=str(tmp_path))[0]
    fact(f"sisopt.warmup() with nothing compiled: {cold:.1f} s")


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads the kernel's account of a process")
@pytest.mark.parametrize("name", MEMORY)
def bench_memory(fact, name):
    n_samples, n_in, n_out = MEMORY[name]
    before, inputs, peak = fresh(PEAK.format(n_samples=n_samples, n_in=n_in, n_out=n_out))
    fact(
        f"memory of ReLU {name}, float32: {peak:.0f} MB resident at most = {before:.0f} (interpreter and kernels) + "
        f"{inputs:.0f} (inputs) + {peak - before - inputs:.0f} (floor: 200)"
    )
