"""What is asked of each layer of a network: its goal, and how many weights it keeps."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from numbers import Real
from os import PathLike
from typing import Any

import numpy as np

from ..errors import InvalidInputError
from ..goals import ErrorBudget, Sparsity
from ..patterns import Groups, get_pattern
from ..refine.pipeline import EFFORTS
from .allocation import Curve, allocate
from .checkpoint import Checkpoint
from .curves import error_curves
from .layers import LayerInfo, Network
from .solving import LayerGoal, Solving

ALLOCATIONS = ("uniform", "error", "flops")
MODES = ("sequential", "parallel")

Goals = Mapping[str, Any]  # glob of names -> a goal, see `sparsify_network`


@dataclass(frozen=True)
class Plan:
    """What is asked of every layer: its goal, and the weights it keeps where that is a number."""

    goals: tuple[LayerGoal | None, ...]  # None: the layer stays dense
    kept: tuple[int | None, ...]
    curves: Mapping[int, Curve]  # by number of the layer, where the allocation measured them


def plan_network(
    network: Network,
    wanted: list[LayerGoal | None],
    overall: LayerGoal,
    allocation: str,
    solving: Solving,
    store: Checkpoint | None,
    progress: bool | None,
) -> Plan:
    """Return the layers' goals; those that share the overall sparsity keep their number of weights in all, exactly."""
    layers = network.layers
    kept = [
        None if (sparsity := _to_share(goal)) is None else round((1.0 - sparsity) * layer.n_weights)
        for goal, layer in zip(wanted, layers, strict=True)
    ]
    curves: dict[int, Curve] = {}
    shared = [n for n, goal in enumerate(wanted) if goal is overall and kept[n] is not None]
    if shared:
        assert overall.sparsity is not None
        if allocation == "uniform" or len(shared) == 1:
            exact = [(1.0 - overall.sparsity) * layers[n].n_weights for n in shared]
            counts = _rounded(exact, round((1.0 - overall.sparsity) * sum(layers[n].n_weights for n in shared)))
        else:
            curves = error_curves(network, shared, allocation == "flops", solving, store, progress)
            shared = list(curves)  # what no sample reaches has no part in it
            counts = allocate(list(curves.values()), overall.sparsity)
        for n, count in zip(shared, counts, strict=True):
            kept[n] = count
    return Plan(tuple(wanted), tuple(kept), curves)


def _to_share(goal: LayerGoal | None) -> float | None:
    """Return the sparsity that a goal leaves to be shared out over matrices; a pattern "N:M" is one by itself."""
    return None if goal is None or not get_pattern(goal.pattern).needs_sparsity else goal.sparsity


def _rounded(exact: list[float], total: int) -> list[int]:
    """Return whole numbers near ``exact`` that sum to ``total``, the largest remainders rounded up."""
    counts = [int(value) for value in exact]
    order = sorted(range(len(exact)), key=lambda i: counts[i] - exact[i])
    for i in order[: total - sum(counts)]:
        counts[i] += 1
    return counts


def goals_of(layers: Sequence[LayerInfo], overall: LayerGoal, goals: Goals) -> list[LayerGoal | None]:
    """Return every layer's goal, None for one that stays dense; each glob must match a layer."""
    if overall == LayerGoal() and not goals:
        msg = "nothing is asked for: give sparsity=, relative_error=, pattern= (such as '2:4') or goals="
        raise InvalidInputError(msg)
    for glob in goals:
        if not any(fnmatchcase(layer.name, glob) for layer in layers):
            msg = f"goals: {glob!r} matches no layer; there are {', '.join(layer.name for layer in layers)}"
            raise InvalidInputError(msg)
    return [_goal_of(layer, overall, goals) for layer in layers]


def _goal_of(layer: LayerInfo, overall: LayerGoal, goals: Goals) -> LayerGoal | None:
    """Return a layer's goal: its own, the network's, or none."""
    if layer.excluded:
        return None
    for glob, goal in goals.items():
        if fnmatchcase(layer.name, glob):
            return _own_goal(glob, goal)
    return None if overall == LayerGoal() else overall


def _own_goal(glob: str, goal: Any) -> LayerGoal | None:
    if goal is None:
        return None
    if isinstance(goal, str) or hasattr(goal, "needs_sparsity"):
        found = LayerGoal(pattern=goal)
    elif isinstance(goal, Mapping) and set(goal) <= {"sparsity", "pattern", "relative_error"}:
        found = LayerGoal(**goal)
    elif isinstance(goal, Real) and not isinstance(goal, bool):
        found = LayerGoal(sparsity=float(goal))
    else:
        msg = (
            f"goals[{glob!r}] must be a sparsity, a pattern, None, or a mapping with sparsity, pattern and "
            f"relative_error, got {goal!r}"
        )
        raise InvalidInputError(msg)
    _check_goal(f"goals[{glob!r}]", found)
    return found


def allocation_of(given: str | None, goal: LayerGoal, own: bool) -> str:
    """Return where zeros go: by default where they cost ``own`` layers least, if their number is all that is asked."""
    if given is not None:
        return given
    return "error" if own and goal.sparsity is not None and goal.pattern is None else "uniform"


def check_request(goal: LayerGoal, allocation: str, mode: str, effort: str) -> None:
    """Refuse words that are not known, and goals that contradict one another."""
    words = (("allocation", allocation, ALLOCATIONS), ("mode", mode, MODES), ("effort", effort, EFFORTS))
    for name, value, known in words:
        if value not in known:
            msg = f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}"
            raise InvalidInputError(msg)
    if goal != LayerGoal():
        _check_goal("the network's goal", goal)
    if allocation != "uniform" and (goal.sparsity is None or not get_pattern(goal.pattern).needs_sparsity):
        what = "give sparsity=" if goal.pattern is None else f"pattern={str(goal.pattern)!r} leaves none to distribute"
        msg = f"allocation={allocation!r} distributes a sparsity: {what}"
        raise InvalidInputError(msg)


def check_types(goals: Any, layer_solver: Any, checkpoint: Any) -> None:
    """Refuse arguments that are of no type that could be meant."""
    if goals is not None and not (isinstance(goals, Mapping) and all(isinstance(glob, str) for glob in goals)):
        found = f"keys {list(goals)!r}" if isinstance(goals, Mapping) else f"{goals!r}"
        msg = f"goals must be a mapping of globs of layers' names to goals, such as {{'fc*': 0.9}}, got {found}"
        raise InvalidInputError(msg)
    if layer_solver is not None and not callable(layer_solver):
        msg = f"layer_solver must be a function (inputs, weight, bias, goal) -> (weight, bias), got {layer_solver!r}"
        raise InvalidInputError(msg)
    if checkpoint is not None and not isinstance(checkpoint, str | PathLike):
        msg = f"checkpoint must be the path of a folder, got {checkpoint!r}"
        raise InvalidInputError(msg)


def _check_goal(name: str, goal: LayerGoal) -> None:
    if goal.sparsity is not None:
        Sparsity(goal.sparsity)
    if goal.relative_error is not None:
        ErrorBudget(relative_error=goal.relative_error)
    if goal.sparsity is not None and goal.relative_error is not None:
        msg = f"{name} takes one of sparsity and relative_error, got both"
        raise InvalidInputError(msg)
    if goal.relative_error is None:
        pattern = get_pattern(goal.pattern, goal.sparsity)
        if goal.sparsity is None and pattern.needs_sparsity:
            msg = f"{name} needs a sparsity, a relative_error, or a pattern such as '2:4' that is one"
            raise InvalidInputError(msg)
    elif goal.pattern is not None:
        msg = f"{name}: pattern={str(goal.pattern)!r} goes with a sparsity, not with relative_error"
        raise InvalidInputError(msg)


def plain_goal(goal: Any) -> Any:
    """Return a goal, or a part of one, as JSON has it: patterns by their text and, where it has any, their groups."""
    if isinstance(goal, Mapping):
        return {key: plain_goal(value) for key, value in goal.items()}
    if isinstance(goal, Real) and not isinstance(goal, bool):
        return float(goal)
    if isinstance(goal, Groups) and not isinstance(goal.groups, str):
        arrays = [goal.groups] if isinstance(goal.groups, np.ndarray) else list(goal.groups)
        content = b"|".join(np.ascontiguousarray(each, dtype=np.int64).tobytes() for each in arrays)
        return f"{goal} {hashlib.sha256(content).hexdigest()[:16]}"
    return None if goal is None else str(goal)
