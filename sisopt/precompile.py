"""warmup(): compile the kernels ahead of the first solve."""

from __future__ import annotations

from typing import Any

import numpy as np

from .activations import MaxPool
from .dispatch import solve
from .goals import ErrorBudget, Penalized
from .kernels.coordinate_descent import gather
from .layer import sparsify
from .penalties import SparseGroup
from .problem import LayerProblem
from .solvers.shared_inverse import SharedInverse


def warmup() -> None:
    """Compile the kernels for float32 and float64 inputs of any layout, or load them from numba's cache.

    The first solve of a process pays for what it needs of this otherwise: some seconds where nothing is cached yet.

    Examples
    --------
    >>> import sisopt
    >>> sisopt.warmup()
    """
    rng = np.random.default_rng(0)
    X, W = rng.standard_normal((64, 6)), rng.standard_normal((3, 6))
    budget = ErrorBudget(relative_error=0.3)
    for dtype in (np.float64, np.float32):
        inputs = X.astype(dtype)
        problem = LayerProblem(inputs, W, np.zeros(3), activation="relu", fidelity=0.1)
        solve(problem, budget, tol=1e-6, n_threads=1)
        solve(problem, Penalized(1.0), n_threads=1)
        sparsify(inputs, W, np.zeros(3), activation="relu", sparsity=0.5, n_threads=1)
        sparsify(inputs, W, activation="relu", sparsity=0.5, n_threads=1)
    solve(LayerProblem(X, W, np.zeros(3)), budget, n_threads=1)
    solve(LayerProblem(X, W, np.zeros(3), activation="relu"), budget, method="douglas-rachford", n_threads=1)
    solve(LayerProblem(X, W, activation="relu", penalty=SparseGroup("columns")), budget, n_threads=1)
    pooled = MaxPool(np.arange(64).reshape(16, 4))
    for activation in ("softmax", "sparsemax", pooled):
        solve(LayerProblem(X, W, np.zeros(3), activation=activation), budget, n_threads=1)
    sparsify(X, W, activation=pooled, sparsity=0.5, n_threads=1)
    solve(LayerProblem(X, W, activation="relu", penalty=SparseGroup("rows")), budget, n_threads=1)
    for dtype in (np.float64, np.float32):
        _compile_gather(dtype)
    _compile_shared_steps()


def _compile_gather(dtype: type[np.floating[Any]]) -> None:
    """Compile the one kernel that reads the inputs as they are given, in every layout."""
    some = np.arange(2)
    for inputs in (np.zeros((4, 2), dtype), np.zeros((4, 2), dtype, order="F"), np.zeros((8, 4), dtype)[::2, ::2]):
        inputs.flags.writeable = False  # as problems keep them
        for working in (np.float64, np.float32):
            gather(inputs, some, some, np.zeros(2), np.empty((2, 2), working))


def _compile_shared_steps() -> None:
    """Compile the steps that rows take together: problems as small as those above have no use for them."""
    shared, W = SharedInverse(np.eye(2), np.ones(1)), np.zeros((1, 2))
    shared.aim(np.ones(1))
    shared.steps(np.zeros(1, np.intp), np.ones((1, 2)), W, np.zeros((1, 2)), np.ones((1, 2)), 1)
