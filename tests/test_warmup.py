"""warmup() compiles what solves need: afterwards ordinary ones compile nothing more."""

from __future__ import annotations

import subprocess
import sys

import pytest

PRELUDE = """
import importlib, itertools, pkgutil, sys, tempfile, warnings
import numpy as np
import sisopt.kernels
from numba.core.dispatcher import Dispatcher
from sisopt import ErrorBudget, LayerProblem, MaxPool, Penalized, SparseGroup, Sparsity, solve, sparsify, warmup

warnings.simplefilter("ignore")


def compiled():
    found = set()
    for module in pkgutil.iter_modules(sisopt.kernels.__path__):
        for name, member in vars(importlib.import_module(f"sisopt.kernels.{module.name}")).items():
            if isinstance(member, Dispatcher):
                found |= {f"{module.name}.{name}{signature}" for signature in member.signatures}
    return found


if "cold" not in sys.argv:
    warmup()
before = compiled()
rng = np.random.default_rng(1)
X, W, b = np.maximum(rng.standard_normal((120, 8)), 0), rng.standard_normal((4, 8)), np.zeros(4)
GOALS = ErrorBudget(relative_error=0.2), ErrorBudget(relative_error=0.02), Sparsity(0.5), Penalized(1.0)
DTYPES = np.float64, np.float32


def run(inputs, goal, bias=b, dtype=np.float64, method="forward-backward", **options):
    solve(LayerProblem(inputs, W.astype(dtype), bias, **options), goal, method=method, max_iterations=20)
"""

CASES = {
    "layouts": """
with tempfile.NamedTemporaryFile() as file:
    for dtype, order, goal in itertools.product(DTYPES, "CF", GOALS):
        given = np.array(X, dtype, order=order)
        mapped = np.memmap(file.name, dtype, "w+", shape=X.shape, order=order)
        mapped[:] = X
        mapped.flush()
        read_only = np.memmap(file.name, dtype, "r", shape=X.shape, order=order)
        for inputs in (given, np.repeat(given, 2, axis=0)[::2], mapped, read_only):
            run(inputs, goal, activation="relu", dtype=dtype)
""",
    "neurons together": """
taken = sum("alternating" in kernel for kernel in before)
for dtype, goal in itertools.product(DTYPES, GOALS):
    X, W = rng.standard_normal((400, 64)).astype(dtype), rng.standard_normal((48, 64)).astype(dtype)
    solve(LayerProblem(X @ (np.eye(64) + 0.2).astype(dtype), W, np.zeros(48)), goal, max_iterations=200)
assert taken
""",
    "activations": """
pool = MaxPool(np.arange(120).reshape(30, 4))
for dtype, activation, goal in itertools.product(DTYPES, ("identity", "tanh", "softmax", "sparsemax", pool), GOALS):
    run(X.astype(dtype), goal, activation=activation, dtype=dtype)
""",
    "methods": """
for dtype, method, activation in itertools.product(
    DTYPES, ("douglas-rachford", "sis"), ("identity", "relu", "softmax", "sparsemax")
):
    for per in ("layer", "batch"):
        goal = ErrorBudget(relative_error=0.3, per=per, batch_size=40 if per == "batch" else None)
        run(X.astype(dtype), goal, activation=activation, method=method)
""",
    "penalties": """
groups = "columns", "rows", SparseGroup("columns"), SparseGroup("rows")
for dtype, penalty, activation, goal in itertools.product(
    DTYPES, groups, ("identity", "relu", "softmax"), (GOALS[0], GOALS[3])
):
    run(X.astype(dtype), goal, activation=activation, penalty=penalty)
""",
    "options": """
omega, v = rng.uniform(0.5, 1, (120, 4)), rng.uniform(0.5, 1, 120)
options = {"entry_weights": omega}, {"sample_weights": v}, {"fidelity": 0.1}, {"tolerance": 0.1}, {"shift": omega}
for dtype, option, bias in itertools.product(DTYPES, options, (b, None)):
    run(X.astype(dtype), GOALS[0], bias, activation="relu", **option)
pool = MaxPool(np.arange(120).reshape(30, 4))
for dtype, activation in itertools.product(DTYPES, ("identity", "relu", "gelu", "softmax", pool)):
    for goal in ({"sparsity": 0.6}, {"sparsity": 0.6, "effort": "full"}, {"pattern": "2:4"}, {"relative_error": 0.2}):
        sparsify(X.astype(dtype), W.astype(dtype), b, activation=activation, **goal)
""",
}


def late(case, *arguments):
    """Return what a fresh process compiled in the solves of a case, after a warm-up unless "cold"."""
    code = PRELUDE + CASES[case] + "print(*sorted(compiled() - before), sep='\\n')"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")[:-1]


@pytest.mark.parametrize("case", CASES)
def test_after_a_warm_up_solves_compile_nothing(case):
    assert late(case) == [""]


def test_solves_that_were_not_warmed_up_compile():
    assert len(late("layouts", "cold")) > 5
