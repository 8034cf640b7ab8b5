"""A ReLU layer against skglm with a datafit for it, both at one multiplier: one neuron at a time against all at once.

skglm gets the setting that was fastest among those tried (AndersonCD with all inputs in the working set, rather than
ProxNewton) and a tolerance that brings it close to our accuracy; the time to compile its datafit does not count.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

import sisopt
from bench.data import random_layer
from bench.rivals import with_skglm_relu

Array = np.ndarray

SIZES = {"4000 x 256 -> 64": (4000, 256, 64), "10000 x 512 -> 256": (10_000, 512, 256)}
N_ROWS = {"4000 x 256 -> 64": 64, "10000 x 512 -> 256": 8}  # that skglm solves; its time is scaled up
TOL = 2e-5


@dataclass(frozen=True)
class Answer:
    """Weights of some neurons; what they are worth is computed afterwards, from all the data."""

    weight: Array
    bias: Array
    size: str

    @property
    def objective(self) -> float:
        return float(np.abs(self.weight).sum())

    def gap(self) -> float:
        """Gap of these neurons' penalised program, over multiplier * objective."""
        problem, told = fresh_problem(self.size), multiplier(self.size)
        X, Y = problem.inputs, outputs(problem)[:, : len(self.weight)]
        Z = X @ self.weight.T + self.bias
        active = Y > 0
        E = np.where(active, Z - Y, np.maximum(Z, 0.0))
        primal = told * self.objective + 0.5 * float(np.vdot(E, E))
        V = E - active * (E.sum(axis=0) / active.sum(axis=0))  # the bias asks that the dual of a neuron adds up to zero
        V *= np.minimum(1.0, told / np.abs(X.T @ V).max(axis=0))
        dual = -float(np.vdot(V, Y)) - 0.5 * float(np.vdot(V, V))
        return (primal - dual) / (told * self.objective)


def fresh_problem(size: str) -> sisopt.LayerProblem:
    return random_layer(*SIZES[size], "relu")


def outputs(problem: sisopt.LayerProblem) -> Array:
    return np.maximum(problem.preactivations, 0.0)


@cache
def multiplier(size: str) -> float:
    return sisopt.solve(fresh_problem(size), sisopt.Sparsity(0.9), tol=1e-3).multiplier


def title(size: str) -> str:
    return f"ReLU {size}, 90 % zeros, known multiplier"


@pytest.mark.parametrize("size", SIZES)
def bench_ours(timed, size):
    goal = sisopt.Penalized(multiplier(size))

    def solve(problem: sisopt.LayerProblem) -> Answer:
        solution = sisopt.solve(problem, goal)
        assert solution.status is sisopt.Status.OPTIMAL
        return Answer(solution.weight, solution.bias, size)

    describe = _describe(size)
    answer = timed(title(size), "sisopt", solve, partial(fresh_problem, size), rounds=5, describe=describe, ours=True)
    assert answer.gap() <= 1e-4


@pytest.mark.parametrize("size", SIZES)
def bench_skglm(timed, size):
    n_rows, told = N_ROWS[size], multiplier(size)
    rng = np.random.default_rng(0)
    with_skglm_relu.solve_rows(rng.standard_normal((8, 4)), rng.random((8, 1)), 1.0, TOL)  # compiles

    def solve(problem: sisopt.LayerProblem) -> Answer:
        with threadpool_limits(1):  # the products of one neuron are too small for more
            return Answer(*with_skglm_relu.solve_rows(problem.inputs, outputs(problem)[:, :n_rows], told, TOL), size)

    share, describe = n_rows / SIZES[size][2], _describe(size)
    answer = timed(
        title(size), f"skglm {TOL:g}", solve, partial(fresh_problem, size), describe=describe, share=share, floor=10
    )
    assert answer.gap() <= 1e-4


def _describe(size: str):
    def describe(answer: Answer) -> str:
        n_rows, n_out = len(answer.weight), SIZES[size][2]
        some = "" if n_rows == n_out else f"; time and objective of {n_rows} neurons, scaled to {n_out}"
        return f"penalised gap {answer.gap():.1e}{some}"

    return describe
