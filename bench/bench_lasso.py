"""A layer without activation against the solvers of the lasso, in one run.

Ours searches for the multiplier of an error budget and proves its answer. The lasso solvers are told that multiplier;
spgl1 is told the radius that our answer attains on each neuron. All rivals see centred data, which settles the bias.
"Triangular factor" hands them R and Q'Z of inputs = QR instead: the same programs, with n_in samples. Each gets the
better of the two forms, the settings that were fastest among those tried, and a tolerance that brings it close to the
accuracy of ours; the time to centre and to factor counts, the time to compile does not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property, partial

import numpy as np
import pytest
from scipy.linalg import solve_triangular
from threadpoolctl import threadpool_limits

import sisopt
from bench.data import random_layer
from bench.rivals import with_celer, with_skglm, with_sklearn, with_spgl1

Array = np.ndarray

N_OUT = 64
RELATIVE_ERROR = 0.2
SIZES = {"4000 x 256": (4000, 256), "10000 x 512": (10_000, 512)}
LASSO = {
    "sklearn 1e-6, Gram": (with_sklearn.solve_rows, False, 1e-6),
    "celer 1e-6, triangular factor": (with_celer.solve_rows, True, 1e-6),
    "skglm 1e-5, triangular factor": (with_skglm.solve_rows, True, 1e-5),
}
# spgl1 on all samples of the larger layer takes minutes: it solves some of the neurons, and its time is scaled up.
SPGL1 = {
    ("4000 x 256", "data"): N_OUT,
    ("4000 x 256", "triangular factor"): N_OUT,
    ("10000 x 512", "data"): 2,
    ("10000 x 512", "triangular factor"): N_OUT,
}


@dataclass(frozen=True)
class Answer:
    """Weights of a rival; what they are worth is computed afterwards, from all the data."""

    weight: Array
    size: str

    @property
    def objective(self) -> float:
        return float(np.abs(self.weight).sum())

    @cached_property
    def gap(self) -> float:
        """Gap of the penalised program at our multiplier, over multiplier * objective."""
        inputs, preactivations = centred(fresh_problem(self.size))
        multiplier = our_solution(self.size).multiplier
        E = preactivations - inputs @ self.weight.T
        V = E * np.minimum(1.0, multiplier / np.abs(inputs.T @ E).max(axis=0))
        primal = multiplier * self.objective + 0.5 * float(np.vdot(E, E))
        dual = float(np.vdot(V, preactivations)) - 0.5 * float(np.vdot(V, V))
        return (primal - dual) / (multiplier * self.objective)


def fresh_problem(size: str) -> sisopt.LayerProblem:
    return random_layer(*SIZES[size], N_OUT, "identity")


@cache
def our_solution(size: str) -> sisopt.Solution:
    return sisopt.solve(fresh_problem(size), sisopt.ErrorBudget(relative_error=RELATIVE_ERROR))


@cache
def our_radii(size: str) -> Array:
    inputs, preactivations = centred(fresh_problem(size))
    return np.linalg.norm(preactivations - inputs @ our_solution(size).weight.T, axis=0)


def centred(problem: sisopt.LayerProblem) -> tuple[Array, Array]:
    """Return inputs and pre-activations less their means over samples: the best bias takes care of these."""
    inputs, preactivations = problem.inputs, problem.preactivations
    return inputs - inputs.mean(axis=0), preactivations - preactivations.mean(axis=0)


def rows_of(problem: sisopt.LayerProblem, factored: bool) -> tuple[Array, Array]:
    """Return what a rival is given: centred data, or R and Q'Z. Here Z lies in the range of Q, so no radius changes."""
    inputs, preactivations = centred(problem)
    if not factored:
        return inputs, preactivations
    L = np.linalg.cholesky(inputs.T @ inputs)  # R', for less work than a QR factorisation
    return L.T, solve_triangular(L, inputs.T @ preactivations, lower=True)


def title(size: str) -> str:
    return f"identity {size} -> {N_OUT}, relative_error {RELATIVE_ERROR}"


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("told", ["budget", "multiplier"])
def bench_ours(timed, size, told):
    goal = sisopt.ErrorBudget(relative_error=RELATIVE_ERROR)
    if told == "multiplier":
        goal = sisopt.Penalized(our_solution(size).multiplier)

    def solve(problem: sisopt.LayerProblem) -> Answer:
        solution = sisopt.solve(problem, goal)
        assert solution.status is sisopt.Status.OPTIMAL
        return Answer(solution.weight, size)

    answer = timed(
        title(size),
        f"sisopt, {told}",
        solve,
        partial(fresh_problem, size),
        rounds=3,
        describe=lambda a: f"penalised gap {a.gap:.1e}",
        ours=told == "budget",
    )
    assert answer.gap <= 1e-4


@pytest.mark.parametrize("rival", LASSO)
@pytest.mark.parametrize("size", SIZES)
def bench_lasso_solver(timed, size, rival):
    function, factored, tol = LASSO[rival]
    multiplier = our_solution(size).multiplier
    warm_up(function, multiplier, tol)

    def solve(problem: sisopt.LayerProblem) -> Answer:
        inputs, preactivations = rows_of(problem, factored)
        with threadpool_limits(1):  # the products of one neuron are too small for more
            return Answer(function(inputs, preactivations, multiplier, tol), size)

    answer = timed(
        title(size),
        rival,
        solve,
        partial(fresh_problem, size),
        rounds=3,
        describe=lambda a: f"penalised gap {a.gap:.1e}",
    )
    assert answer.gap <= 1e-4


@pytest.mark.parametrize(("size", "form"), SPGL1)
def bench_spgl1(timed, size, form):
    n_rows = SPGL1[size, form]
    weight, radii = our_solution(size).weight[:n_rows], our_radii(size)[:n_rows]
    warm_up(with_spgl1.solve_rows, np.ones(1), 1e-6)

    def solve(problem: sisopt.LayerProblem) -> Answer:
        inputs, preactivations = rows_of(problem, form != "data")
        with threadpool_limits(1):
            return Answer(with_spgl1.solve_rows(inputs, preactivations[:, :n_rows], radii, 1e-6), size)

    def excess(answer: Answer) -> float:
        return answer.objective / float(np.abs(weight).sum()) - 1.0

    some = "" if n_rows == N_OUT else f"; time and objective of {n_rows} neurons, scaled to {N_OUT}"
    answer = timed(
        title(size),
        f"spgl1 1e-6, {form}",
        solve,
        partial(fresh_problem, size),
        describe=lambda a: f"objective {excess(a):+.1e} of ours at our radii{some}",
        share=n_rows / N_OUT,
    )
    assert abs(excess(answer)) <= 1e-3


def warm_up(function: Callable[..., Array], told: float | Array, tol: float) -> None:
    """Compile on a problem of a few numbers, in the memory layout of the real one."""
    rng = np.random.default_rng(0)
    function(rng.standard_normal((8, 4)), rng.standard_normal((8, 1)), told, tol)
