"""A layer without activation against the solvers of the lasso, in one run.

The lasso solvers are told the multiplier that our answer to an error budget has, and compared with ours told it too.
spgl1 is told the radius that this answer attains on each neuron, and compared with ours told the budget of the layer,
which proves its answer. All rivals see centred data, which settles the bias.
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

RELATIVE_ERROR = 0.2
SMALL, LARGE = "4000 x 256 -> 64", "10000 x 512 -> 256"
SIZES = {SMALL: (4000, 256, 64), LARGE: (10_000, 512, 256)}
FLOORS = {"lasso": 5, "spgl1": 50}  # times ours, on the larger layer
LASSO = {
    "sklearn 1e-6, Gram": (with_sklearn.solve_rows, False, 1e-6),
    "celer 1e-6, triangular factor": (with_celer.solve_rows, True, 1e-6),
    "skglm 1e-5, triangular factor": (with_skglm.solve_rows, True, 1e-5),
}
# spgl1 takes minutes: it solves some of the neurons, and its time is scaled up.
SPGL1 = {
    (SMALL, "data"): 8,
    (SMALL, "triangular factor"): 64,
    (LARGE, "data"): 2,
    (LARGE, "triangular factor"): 16,
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
    return random_layer(*SIZES[size], "identity")


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


def title(size: str, told: str) -> str:
    return f"identity {size}, relative_error {RELATIVE_ERROR}, told the {told}"


def floor(size: str, kind: str) -> int | None:
    return FLOORS[kind] if size == LARGE else None


@pytest.mark.parametrize("size", SIZES)
def bench_ours_told_the_budget(timed, size):
    goal = sisopt.ErrorBudget(relative_error=RELATIVE_ERROR)
    solution = timed(
        title(size, "budget"),
        "sisopt",
        lambda problem: sisopt.solve(problem, goal),
        partial(fresh_problem, size),
        rounds=3,
        describe=lambda s: f"gap {s.gap:.1e}",
        ours=True,
    )
    assert solution.gap <= 1e-4


@pytest.mark.parametrize("size", SIZES)
def bench_ours_told_the_multiplier(timed, size):
    goal = sisopt.Penalized(our_solution(size).multiplier)
    answer = timed(
        title(size, "multiplier"),
        "sisopt",
        lambda problem: Answer(sisopt.solve(problem, goal).weight, size),
        partial(fresh_problem, size),
        rounds=3,
        describe=lambda a: f"penalised gap {a.gap:.1e}",
        ours=True,
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
        title(size, "multiplier"),
        rival,
        solve,
        partial(fresh_problem, size),
        rounds=1 if size == LARGE else 3,
        describe=lambda a: f"penalised gap {a.gap:.1e}",
        floor=floor(size, "lasso"),
    )
    assert answer.gap <= 1e-4


@pytest.mark.parametrize(("size", "form"), SPGL1)
def bench_spgl1(timed, size, form):
    n_rows, n_out = SPGL1[size, form], SIZES[size][2]
    weight, radii = our_solution(size).weight[:n_rows], our_radii(size)[:n_rows]
    warm_up(with_spgl1.solve_rows, np.ones(1), 1e-6)

    def solve(problem: sisopt.LayerProblem) -> Answer:
        inputs, preactivations = rows_of(problem, form != "data")
        with threadpool_limits(1):
            return Answer(with_spgl1.solve_rows(inputs, preactivations[:, :n_rows], radii, 1e-6), size)

    def excess(answer: Answer) -> float:
        return answer.objective / float(np.abs(weight).sum()) - 1.0

    some = "" if n_rows == n_out else f"; time and objective of {n_rows} neurons, scaled to {n_out}"
    answer = timed(
        title(size, "budget"),
        f"spgl1 1e-6, {form}",
        solve,
        partial(fresh_problem, size),
        describe=lambda a: f"objective {excess(a):+.1e} of ours at our radii{some}",
        share=n_rows / n_out,
        floor=floor(size, "spgl1") if form == "data" else None,
    )
    assert abs(excess(answer)) <= 1e-3


def warm_up(function: Callable[..., Array], told: float | Array, tol: float) -> None:
    """Compile on a problem of a few numbers, in the memory layout of the real one."""
    rng = np.random.default_rng(0)
    function(rng.standard_normal((8, 4)), rng.standard_normal((8, 1)), told, tol)
