"""One layer of a network: its goal, its solver, and the errors of what comes out."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import GeneralizationWarning, InfeasibleBudgetError, InvalidInputError, SisoptError
from ..evaluation import output_energies
from ..layer import sparsify
from ..patterns import Pattern
from ..problem import LayerProblem
from ..threads import ordered_map, resolve_threads
from ..validation import as_float_array, check_shape, largest
from .layers import Program

Floats = npt.NDArray[Any]
Matrix = tuple[Floats, Floats | None]  # weight and bias

MANY = 8  # programs of a layer that are solved side by side
UNATTAINABLE = "budget unattainable"  # the status of a layer that took the least error that it could
BLOCK = 1 << 10  # samples whose squares are added at a time
TINY = 128  # weights of a program, such as a depthwise one: trial runs cost four times the solve and gain nothing


@dataclass(frozen=True)
class LayerGoal:
    """What is asked of a layer: a sparsity, a pattern, both, or a relative error.

    Examples
    --------
    >>> from sisopt.network import LayerGoal
    >>> goal = LayerGoal(sparsity=0.9)
    >>> goal.sparsity, str(goal)
    (0.9, '90.00% zeros')
    """

    sparsity: float | None = None
    pattern: str | Pattern | None = None
    relative_error: float | None = None

    def __str__(self) -> str:
        words = [] if self.pattern is None else [str(self.pattern)]
        words += [] if self.sparsity is None else [f"{self.sparsity:.2%} zeros"]
        words += [] if self.relative_error is None else [f"relative error {self.relative_error:g}"]
        return ", ".join(words) or "dense"


LayerSolver = Callable[[Floats, Floats, Floats | None, LayerGoal], Matrix]
"""A function (inputs, weight, bias, goal) -> (weight, bias) in place of `sisopt.sparsify`.

Examples
--------
>>> import numpy as np
>>> from sisopt.network import LayerGoal, LayerSolver
>>> def magnitude(inputs, weight, bias, goal):
...     smallest = np.argsort(np.abs(weight), axis=None)[: round(goal.sparsity * weight.size)]
...     pruned = weight.copy()
...     pruned.flat[smallest] = 0
...     return pruned, bias
>>> solver: LayerSolver = magnitude
>>> solver(np.ones((10, 2)), np.array([[3.0, -1.0], [0.5, 2.0]]), None, LayerGoal(sparsity=0.5))
(array([[3., 0.],
       [0., 2.]]), None)
"""


@dataclass(frozen=True, eq=False)
class Solved:
    """A layer's matrices and what is known of them; errors are those of outputs, relative to the dense layer's."""

    parts: list[Matrix]
    status: str
    output_error: float | None = None
    held_out_error: float | None = None
    relative_error: float | None = None
    gap: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Solving:
    """How layers are solved: by `sparsify` with these options, or by another function."""

    effort: str = "default"
    seed: int = 0
    tol: float = 1e-3
    n_threads: int | None = None
    strict: bool = False
    solver: LayerSolver | None = None

    def solve(self, programs: list[Program], goal: LayerGoal, kept: int | None) -> Solved:
        """Return sparse matrices for a layer's programs; ``kept`` weights stay in all where the goal is a sparsity."""
        goals = split_goals(programs, goal, kept)
        n_threads = resolve_threads(self.n_threads)
        # many small programs: side by side, with a thread each; another's solver may have a state
        outer, inner = (n_threads, 1) if len(programs) >= MANY and self.solver is None else (1, n_threads)
        solving = self
        tiny = len(programs) >= MANY and max(program.weight.size for program in programs) <= TINY
        if tiny and self.effort == "default":
            solving = replace(self, effort="fast")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", GeneralizationWarning)  # the report tells both errors
            jobs = zip(programs, goals, strict=True)
            found = list(ordered_map(lambda job: solving._one(*job, inner), jobs, outer))
        return _together(programs, found, n_threads)

    def _one(self, program: Program, goal: LayerGoal, n_threads: int) -> Solved:
        if self.solver is not None:
            bias = None if program.bias is None else program.bias.copy()
            found = self.solver(program.inputs, program.weight.copy(), bias, goal)
            return Solved([_checked(found, program)], "done")
        try:
            layer = sparsify(
                program.inputs, program.weight, program.bias, activation=program.activation, sparsity=goal.sparsity,
                pattern=goal.pattern, relative_error=goal.relative_error, preactivations=program.preactivations,
                shift=program.shift, effort=self.effort, seed=self.seed, tol=self.tol, n_threads=n_threads,
            )  # fmt: skip
        except InfeasibleBudgetError as error:
            if self.strict or goal.relative_error is None:
                raise
            return self._least(program, error.least_relative_error, n_threads)
        convex = layer.convex
        status = "done" if convex is None else convex.status.name.lower()
        gap = None if convex is None else convex.gap
        return Solved([(layer.weight, layer.bias)], status, None, layer.held_out_error, layer.relative_error, gap)

    def _least(self, program: Program, least: float, n_threads: int) -> Solved:
        """Return the layer with the least error: dense, its values refitted to the inputs that it gets now."""
        layer = sparsify(
            program.inputs, program.weight, program.bias, activation=program.activation, sparsity=0.0,
            preactivations=program.preactivations, shift=program.shift, effort="fast", seed=self.seed,
            n_threads=n_threads,
        )  # fmt: skip
        note = f"the least attainable relative error is {least:.4g}"
        return Solved([(layer.weight, layer.bias)], UNATTAINABLE, relative_error=layer.relative_error, note=note)


def _checked(found: Any, program: Program) -> Matrix:
    """Return what another solver found, as arrays of the shape and dtype that they must have."""
    if not isinstance(found, tuple | list) or len(found) != 2:
        msg = f"layer_solver must return a pair (weight, bias), got {type(found).__name__}"
        raise InvalidInputError(msg)
    W = as_float_array("weight from layer_solver", found[0], 2, dtype=program.weight.dtype)
    check_shape("weight from layer_solver", W, program.weight.shape, "as the layer's")
    if (found[1] is None) != (program.bias is None):
        msg = f"bias from layer_solver must be {'None' if program.bias is None else 'an array'}, as the layer's"
        raise InvalidInputError(msg)
    if program.bias is None:
        return W, None
    b = as_float_array("bias from layer_solver", found[1], 1, dtype=program.bias.dtype)
    check_shape("bias from layer_solver", b, program.bias.shape, "as the layer's")
    return W, b


def split_goals(programs: list[Program], goal: LayerGoal, kept: int | None) -> list[LayerGoal]:
    """Return the goals of a layer's programs: weights stay where |w_ij| ||x_j|| is large, over all of them."""
    if kept is None:
        return [goal] * len(programs)
    if len(programs) == 1:
        counts = [kept]
    else:
        counts = _count_split([np.abs(p.weight) * _norms(p.inputs) for p in programs], kept)
    return [
        LayerGoal(1.0 - count / program.weight.size, goal.pattern)
        for program, count in zip(programs, counts, strict=True)
    ]


def _norms(inputs: Floats) -> npt.NDArray[np.float64]:
    """Return the Euclidean norms of the inputs, (n_in,), a few samples at a time."""
    squares = np.zeros(inputs.shape[1])
    for start in range(0, len(inputs), BLOCK):
        block = inputs[start : start + BLOCK]
        squares += np.einsum("ij,ij->j", block, block, dtype=np.float64)
    return np.sqrt(squares)


def _together(programs: list[Program], found: list[Solved], n_threads: int) -> Solved:
    """Return one record of a layer's programs; errors are added as parts of one output, by its energy."""
    energies = [energies_of(program, each.parts[0], n_threads) for program, each in zip(programs, found, strict=True)]
    difference, reference = np.sum(energies, axis=0)
    shares = np.array([ref for _, ref in energies])

    def joined(values: list[float | None]) -> float | None:
        known = [v for v in values if v is not None]
        if len(known) < len(values):
            return None
        if len(known) == 1 or shares.sum() == 0.0:
            return known[0]
        return math.sqrt(float(np.square(known) @ shares / shares.sum()))

    statuses = list(dict.fromkeys(each.status for each in found))
    gaps = [each.gap for each in found if each.gap is not None]
    return Solved(
        [each.parts[0] for each in found],
        ", ".join(statuses),
        math.sqrt(difference / reference) if reference > 0.0 else (0.0 if difference == 0.0 else None),
        joined([each.held_out_error for each in found]),
        joined([each.relative_error for each in found]),
        max(gaps) if len(gaps) == len(found) else None,
        next((each.note for each in found if each.note), ""),
    )


def energies_of(program: Program, part: Matrix, n_threads: int) -> tuple[float, float]:
    """Return ||R(Z) - Y||**2 and ||Y||**2."""
    dense = LayerProblem(
        program.inputs, program.weight, program.bias, activation=program.activation,
        preactivations=program.preactivations, shift=program.shift,
    )  # fmt: skip
    return output_energies(dense, *part, n_threads)


def _count_split(scores: Sequence[Floats], kept: int) -> list[int]:
    """Return how many weights each of several matrices keeps: those of the ``kept`` largest scores, ties by order."""
    every = np.concatenate([np.ravel(s) for s in scores])
    edges = np.cumsum([0, *(s.size for s in scores)])
    largest = np.argsort(-every, kind="stable")[:kept]
    return [int(n) for n in np.histogram(largest, edges)[0]] if kept else [0] * len(scores)


@contextmanager
def in_layer(name: str) -> Iterator[None]:
    """Put a layer's name into what goes wrong with it."""
    try:
        yield
    except SisoptError as error:
        error.args = (f"layer {name!r}: {error}",)
        raise
    except Exception as error:  # of another solver, say
        error.add_note(f"This happened in layer {name!r}.")
        raise


def check_finite(name: str, programs: list[Program]) -> None:
    """Refuse data with NaN or infinite entries, in the name of their layer."""
    for program in programs:
        data = (program.inputs, program.preactivations, program.shift)
        for what, values in zip(("inputs", "pre-activations", "summands"), data, strict=True):
            if values is not None and not math.isfinite(largest(values)):
                msg = (
                    f"the {what} of layer {name!r} hold NaN or infinite entries: look at what the model computes on "
                    "these batches before that layer, or leave it out with exclude="
                )
                raise InvalidInputError(msg)
