"""sparsify_network(): the layers of a network made sparse one after the other, with a report and a checkpoint."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InvalidInputError
from ..goals import ErrorBudget, Sparsity
from ..layer import sparsify
from ..patterns import Pattern, get_pattern
from ..refine.pipeline import EFFORTS
from ..validation import natural_number
from .allocation import Curve, allocate
from .checkpoint import Checkpoint
from .layers import LayerInfo, Network, Program
from .report import LayerReport, NetworkReport
from .solving import LayerGoal, LayerSolver, Matrix, Solved, Solving, check_finite

if TYPE_CHECKING:
    from collections.abc import Iterator

ALLOCATIONS = ("uniform", "error", "flops")
MODES = ("sequential", "parallel")
LEVELS = (0.5, 0.7, 0.8, 0.9, 0.95)  # sparsities at which a layer's errors are sampled for an allocation
CURVE_ROWS, CURVE_SAMPLES = 64, 1 << 12  # neurons and samples of such a curve, at most

log = logging.getLogger("sisopt.network")

Goals = Mapping[str, float | str | Mapping[str, Any]]


@dataclass(frozen=True)
class Plan:
    """What is asked of every layer: its goal, and the weights it keeps where that is a number."""

    goals: tuple[LayerGoal | None, ...]  # None: the layer stays dense
    kept: tuple[int | None, ...]


def sparsify_network(
    network: Network,
    *,
    sparsity: float | None = None,
    relative_error: float | None = None,
    pattern: str | Pattern | None = None,
    goals: Goals | None = None,
    allocation: str = "uniform",
    mode: str = "sequential",
    layer_solver: LayerSolver | None = None,
    effort: str = "default",
    seed: int = 0,
    tol: float = 1e-3,
    checkpoint: str | PathLike[str] | None = None,
    progress: bool | None = None,
    strict: bool = False,
    n_threads: int | None = None,
) -> NetworkReport:
    """Make the layers of a network sparse, first to last.

    This is what adapters call; see `sisopt.adapters.torch.sparsify_model` for models in torch.

    Parameters
    ----------
    network : Network
        Layers, and the data that they are solved on.
    sparsity : float, optional
        Fraction of zeros in [0, 1] over all weights of the layers that are included: exactly
        round((1 - sparsity) * n_weights) of them stay.
    relative_error : float, optional
        The error budget of every layer, see `ErrorBudget`, instead of a sparsity.
    pattern : str or Pattern, optional
        Which weights may stay in every layer, see `get_pattern`. A pattern "N:M" is a goal by itself.
    goals : mapping, optional
        Goals of some layers: glob of names -> a sparsity, a pattern such as "2:4", or a mapping with "sparsity",
        "pattern" and "relative_error"; the first glob that matches counts. A layer that nothing is asked of stays dense.
    allocation : {"uniform", "error", "flops"}
        Where the zeros go: every layer gets the same share; or those with which the sum of the layers' squared relative
        errors is least, for the number of weights ("error") or of multiply-adds ("flops") that ``sparsity`` leaves.
    mode : {"sequential", "parallel"}
        Whether the inputs of a layer come from the layers that are sparse already, its targets from the dense network;
        or both from the dense network.
    layer_solver : callable, optional
        (inputs, weight, bias, goal) -> (weight, bias), in place of `sisopt.sparsify`.
    effort, seed, tol, n_threads
        See `sparsify`.
    checkpoint : path, optional
        A folder to which every finished layer is written. The same call goes on from there.
    progress : bool, optional
        Whether to draw a progress bar; by default where there is a terminal to draw it on.
    strict : bool, default False
        Whether a budget that a layer cannot keep is an error; else it takes the least error that it can.

    Returns
    -------
    NetworkReport

    Raises
    ------
    InvalidInputError
        If an argument, or the data of a layer, is not what it should be.
    CheckpointError
        If the checkpoint is damaged, belongs to something else, or cannot be written.
    InfeasibleBudgetError
        If ``strict`` and a layer cannot keep its budget.
    """
    overall = LayerGoal(sparsity, pattern, relative_error)
    _check(overall, allocation, mode, effort)
    solving = Solving(effort, natural_number("seed", seed), tol, n_threads, strict, layer_solver)
    wanted = [_goal_of(layer, overall, goals or {}) for layer in network.layers]
    _check_globs(network.layers, goals or {})
    options = {
        "sparsity": sparsity, "relative_error": relative_error, "pattern": None if pattern is None else str(pattern),
        "goals": {} if goals is None else {glob: _plain(goal) for glob, goal in goals.items()},
        "allocation": allocation, "mode": mode, "effort": effort, "seed": solving.seed, "tol": tol,
        "layer_solver": None if layer_solver is None else getattr(layer_solver, "__qualname__", type(layer_solver).__name__),
    }  # fmt: skip
    store = None
    if checkpoint is not None:
        store = Checkpoint(checkpoint, {**options, "network": network.fingerprint()})
    started = time.monotonic()
    plan = _plan(network, wanted, overall, allocation, solving, store, progress)
    run = _Run(network, plan, solving, mode, store, progress)
    layers = run.run()
    return NetworkReport(tuple(layers), {**options, "seconds": time.monotonic() - started})


class _Run:
    """The layers of a plan, solved or taken from a checkpoint."""

    def __init__(
        self, network: Network, plan: Plan, solving: Solving, mode: str, store: Checkpoint | None, progress: bool | None
    ) -> None:
        self._network, self._plan, self._solving = network, plan, solving
        self._mode, self._store, self._progress = mode, store, progress

    def run(self) -> list[LayerReport]:
        layers = self._network.layers
        reports: dict[int, LayerReport] = {}
        waiting: list[tuple[int, list[Matrix]]] = []  # in parallel mode the dense network stays until the end
        open_numbers = []
        for number, info in enumerate(layers):
            goal, kept = self._plan.goals[number], self._plan.kept[number]
            if goal is None or kept == info.n_weights:
                reports[number] = _dense(info)
                continue
            found = None if self._store is None else self._store.load(number, info.name)
            if found is None:
                open_numbers.append(number)
                continue
            parts, record = _from_arrays(found[0]), found[1]
            self._network.put(number, parts)
            reports[number] = LayerReport.from_record(record)
        with _bar(len(open_numbers), self._progress) as bar:
            for number, programs in self._network.visit(open_numbers, dense=self._mode == "parallel"):
                info = layers[number]
                bar.set_postfix_str(info.name)
                parts, report = self._layer(number, info, programs)
                reports[number] = report
                if self._mode == "parallel":
                    waiting.append((number, parts))
                else:
                    self._network.put(number, parts)
                bar.update()
                log.info("%s: %s", info.name, _line(report))
        for number, parts in waiting:
            self._network.put(number, parts)
        return [reports[number] for number in sorted(reports)]

    def _layer(self, number: int, info: LayerInfo, programs: list[Program]) -> tuple[list[Matrix], LayerReport]:
        goal, kept = self._plan.goals[number], self._plan.kept[number]
        assert goal is not None
        started = time.monotonic()
        if not programs or programs[0].inputs.shape[0] == 0:
            return self._network.parts(number), _dense(info, "kept dense: no sample reaches it")
        check_finite(info.name, programs)
        try:
            solved = self._solving.solve(programs, goal, kept)
        except InvalidInputError as error:
            error.args = (f"layer {info.name!r}: {error}",)
            raise
        report = _reported(info, solved, time.monotonic() - started)
        if self._store is not None:
            self._store.save(number, info.name, _to_arrays(solved.parts), report.to_record())
        return solved.parts, report


def _plan(
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
    shared = [
        n for n, goal in enumerate(wanted) if goal is not None and goal is overall and overall.sparsity is not None
    ]
    kept: list[int | None] = [None] * len(layers)
    for n, goal in enumerate(wanted):
        if goal is not None and goal.sparsity is not None:
            kept[n] = round((1.0 - goal.sparsity) * layers[n].n_weights)
    if shared:
        assert overall.sparsity is not None
        if allocation == "uniform":
            # equal curves: everyone gets the same share, and the remainder goes where it is largest
            exact = [(1.0 - overall.sparsity) * layers[n].n_weights for n in shared]
            counts = _rounded(exact, round((1.0 - overall.sparsity) * sum(layers[n].n_weights for n in shared)))
        else:
            curves = _curves(network, shared, allocation == "flops", solving, store, progress)
            counts = allocate(curves, overall.sparsity)
        for n, count in zip(shared, counts, strict=True):
            kept[n] = count
    if overall.pattern is not None or any(goal is not None and goal.pattern is not None for goal in wanted):
        # a pattern with a share of its own cannot keep a count: the layer rounds by itself
        kept = [
            None if goal is not None and goal.pattern is not None and not get_pattern(goal.pattern, goal.sparsity).needs_sparsity
            else count
            for goal, count in zip(wanted, kept, strict=True)
        ]  # fmt: skip
    return Plan(tuple(wanted), tuple(kept))


def _curves(
    network: Network, numbers: list[int], flops: bool, solving: Solving, store: Checkpoint | None, progress: bool | None
) -> list[Curve]:
    """Return the layers' errors at some sparsities, on the dense network's inputs, from some neurons of each."""
    layers, curves = network.layers, {}
    found = None if store is None else store.load(len(layers), "curves")
    if found is not None:
        errors = found[0]["errors"]
    else:
        errors = np.ones((len(numbers), len(LEVELS)))
        with _bar(len(numbers), progress) as bar:
            for number, programs in network.visit(numbers, dense=True):
                bar.set_postfix_str(f"{layers[number].name}: errors by sparsity")
                check_finite(layers[number].name, programs)
                errors[numbers.index(number)] = _errors(programs, solving)
                bar.update()
        if store is not None:
            store.save(len(layers), "curves", {"errors": errors}, {})
    for number, row in zip(numbers, errors, strict=True):
        layer = layers[number]
        cost = layer.flops / layer.n_weights if flops and layer.flops else 1.0
        curves[number] = Curve(layer.n_weights, cost, np.array(LEVELS), row)
    return [curves[number] for number in numbers]


def _errors(programs: list[Program], solving: Solving) -> list[float]:
    """Return the relative output errors of part of a layer at LEVELS."""
    usable = [p for p in programs if p.inputs.shape[0] > 0]
    if not usable:
        return list(LEVELS)
    program = max(usable, key=lambda p: p.weight.size)
    rows = np.unique(np.linspace(0, len(program.weight) - 1, CURVE_ROWS).round().astype(int))
    samples = np.unique(np.linspace(0, len(program.inputs) - 1, CURVE_SAMPLES).round().astype(int))
    errors = []
    for level in LEVELS:
        layer = sparsify(
            program.inputs[samples], program.weight[rows], None if program.bias is None else program.bias[rows],
            activation=program.activation, sparsity=level, effort="fast", seed=solving.seed, n_threads=solving.n_threads,
        )  # fmt: skip
        errors.append(min(layer.output_error, 1.0))
    return errors


def _rounded(exact: list[float], total: int) -> list[int]:
    """Return whole numbers near ``exact`` that sum to ``total``, the largest remainders rounded up."""
    counts = [int(value) for value in exact]
    order = sorted(range(len(exact)), key=lambda i: counts[i] - exact[i])
    for i in order[: total - sum(counts)]:
        counts[i] += 1
    return counts


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
    if isinstance(goal, str | Pattern):
        found = LayerGoal(pattern=goal)
    elif isinstance(goal, Mapping) and set(goal) <= {"sparsity", "pattern", "relative_error"}:
        found = LayerGoal(**goal)
    elif isinstance(goal, int | float):
        found = LayerGoal(sparsity=float(goal))
    else:
        msg = (
            f"goals[{glob!r}] must be a sparsity, a pattern, None, or a mapping with sparsity, pattern and "
            f"relative_error, got {goal!r}"
        )
        raise InvalidInputError(msg)
    _check_goal(f"goals[{glob!r}]", found)
    return found


def _check(goal: LayerGoal, allocation: str, mode: str, effort: str) -> None:
    for name, value, known in (
        ("allocation", allocation, ALLOCATIONS),
        ("mode", mode, MODES),
        ("effort", effort, EFFORTS),
    ):
        if value not in known:
            msg = f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}"
            raise InvalidInputError(msg)
    if goal != LayerGoal():
        _check_goal("the network's goal", goal)
    if allocation != "uniform" and goal.sparsity is None:
        msg = f"allocation={allocation!r} distributes a sparsity: give sparsity="
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


def _check_globs(layers: Sequence[LayerInfo], goals: Goals) -> None:
    for glob in goals:
        if not any(fnmatchcase(layer.name, glob) for layer in layers):
            msg = f"goals: {glob!r} matches no layer; there are {', '.join(layer.name for layer in layers)}"
            raise InvalidInputError(msg)


def _plain(goal: Any) -> Any:
    """Return a goal as JSON has it."""
    if isinstance(goal, Mapping):
        return {key: _plain(value) for key, value in goal.items()}
    return goal if goal is None or isinstance(goal, int | float | str) else str(goal)


def _dense(info: LayerInfo, status: str = "") -> LayerReport:
    status = status or ("kept dense" if not info.excluded else f"kept dense: {info.excluded}")
    return LayerReport(
        info.name, info.kind, info.shape, info.activation, info.n_weights, info.n_weights, info.flops,
        0.0, None, None, None, status, 0.0, included=not info.excluded,
    )  # fmt: skip


def _reported(info: LayerInfo, solved: Solved, seconds: float) -> LayerReport:
    kept = sum(int(np.count_nonzero(weight)) for weight, _ in solved.parts)
    return LayerReport(
        info.name, info.kind, info.shape, info.activation, info.n_weights, kept, info.flops,
        solved.output_error, solved.held_out_error, solved.relative_error, solved.gap, solved.status, seconds, solved.note,
    )  # fmt: skip


def _line(report: LayerReport) -> str:
    error = "" if report.output_error is None else f", output error {report.output_error:.4f}"
    return f"{report.status}, {report.sparsity:.2%} zeros{error}, {report.seconds:.1f} s"


def _to_arrays(parts: Sequence[Matrix]) -> dict[str, Any]:
    arrays = {}
    for i, (weight, bias) in enumerate(parts):
        arrays[f"weight.{i}"] = weight
        if bias is not None:
            arrays[f"bias.{i}"] = bias
    return arrays


def _from_arrays(arrays: Mapping[str, Any]) -> list[Matrix]:
    count = sum(key.startswith("weight.") for key in arrays)
    return [(arrays[f"weight.{i}"], arrays.get(f"bias.{i}")) for i in range(count)]


@contextmanager
def _bar(total: int, progress: bool | None) -> Iterator[Any]:
    """Yield a progress bar; a silent one where tqdm is not installed, or there is no terminal."""
    try:
        from tqdm.auto import tqdm  # noqa: PLC0415, an extra
    except ImportError:
        yield _Silent()
        return
    with tqdm(total=total, unit="layer", disable=None if progress is None else not progress) as bar:
        yield bar


class _Silent:
    """A progress bar that draws nothing."""

    def set_postfix_str(self, text: str) -> None:
        """Do nothing."""

    def update(self) -> None:
        """Do nothing."""
