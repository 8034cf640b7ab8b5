"""sparsify_network(): the layers of a network made sparse one after the other, with a report and a checkpoint."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from os import PathLike
from typing import Any

import numpy as np

from ..errors import InfeasibleBudgetError, InvalidInputError
from ..patterns import Pattern
from ..threads import resolve_threads
from ..validation import natural_number, number
from .allocation import Curve
from .checkpoint import Checkpoint
from .curves import LEVELS
from .digest import digest_of_call
from .layers import LayerInfo, Network, Program
from .planning import Goals, Plan, allocation_of, check_request, check_types, goals_of, plain_goal, plan_network
from .progress import progress_bar
from .report import LayerReport, NetworkReport
from .solving import UNATTAINABLE, LayerGoal, LayerSolver, Matrix, Solved, Solving, check_finite, in_layer
from .thumbnails import thumbnail

UNREACHED = "kept dense: no sample reaches it"

log = logging.getLogger("sisopt.network")


def sparsify_network(
    network: Network,
    *,
    sparsity: float | None = None,
    relative_error: float | None = None,
    pattern: str | Pattern | None = None,
    goals: Goals | None = None,
    allocation: str | None = None,
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
        Fraction of zeros in [0, 1] over all weights of the layers that are included and have no goal of their own:
        exactly round((1 - sparsity) * n_weights) of them stay, fewer where more are zero already.
    relative_error : float, optional
        The error budget of every layer, see `sisopt.ErrorBudget`, instead of a sparsity.
    pattern : str or Pattern, optional
        Which weights may stay in every layer, see `sisopt.get_pattern`. A pattern "N:M" is a goal by itself.
    goals : mapping, optional
        Goals of some layers: glob of names -> a sparsity, a pattern such as "2:4", or a mapping with "sparsity",
        "pattern" and "relative_error", or None; the first glob that matches counts. A layer that nothing is asked of
        stays dense.
    allocation : {"error", "flops", "uniform"}, optional
        Where the zeros go: where the sum of the layers' squared relative errors is least, for the number of weights
        ("error") or of multiply-adds ("flops") that ``sparsity`` leaves; or the same share to every layer ("uniform").
        Default: "error", and "uniform" where a pattern or another solver is given.
    mode : {"sequential", "parallel"}
        Whether the inputs of a layer come from the layers that are sparse already, its targets from the dense network;
        or both from the dense network.
    layer_solver : callable, optional
        (inputs, weight, bias, goal) -> (weight, bias), in place of `sisopt.sparsify`.
    effort, seed, tol, n_threads
        See `sisopt.sparsify`.
    checkpoint : path, optional
        A folder to which every finished layer is written. The same call goes on from there, given the dense network
        again.
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

    Examples
    --------
    A network of one layer; `Network` has an example with two:

    >>> import numpy as np
    >>> from sisopt.network import LayerInfo, Program, sparsify_network
    >>> rng = np.random.default_rng(0)
    >>> program = Program(rng.normal(size=(200, 8)), rng.normal(size=(3, 8)), None, "relu", None)
    >>> class OneLayer:
    ...     layers = (LayerInfo("fc", "dense", (3, 8), n_weights=24, activation="relu"),)
    ...     def fingerprint(self):
    ...         return {}
    ...     def visit(self, numbers, *, dense=False):
    ...         yield 0, [program]
    ...     def put(self, number, parts):
    ...         ((self.weight, _),) = parts
    >>> network = OneLayer()
    >>> report = sparsify_network(network, sparsity=0.75, effort="fast")
    >>> report.n_kept, int((network.weight != 0).sum())
    (6, 6)
    """
    overall = LayerGoal(sparsity, pattern, relative_error)
    allocation = allocation_of(allocation, overall, layer_solver is None)
    check_request(overall, allocation, mode, effort)
    check_types(goals, layer_solver, checkpoint)
    sparsity, relative_error = (None if each is None else float(each) for each in (sparsity, relative_error))
    overall = replace(overall, sparsity=sparsity, relative_error=relative_error)
    resolve_threads(n_threads)  # refused before anything is done
    solving = Solving(
        effort, natural_number("seed", seed), number("tol", tol, above=0.0), n_threads, strict, layer_solver
    )
    wanted = goals_of(network.layers, overall, goals or {})
    options = {
        "sparsity": sparsity, "relative_error": relative_error, "pattern": plain_goal(pattern),
        "goals": {} if goals is None else {glob: plain_goal(goal) for glob, goal in goals.items()},
        "allocation": allocation, "mode": mode, "effort": effort, "seed": solving.seed, "tol": solving.tol,
        "layer_solver": None if layer_solver is None else _name(layer_solver),
    }  # fmt: skip
    store = None
    if checkpoint is not None:
        solver = {} if layer_solver is None else {"code and state of layer_solver": digest_of_call(layer_solver)}
        order = {"order of goals": list(goals or {})}  # the first glob that matches counts
        store = Checkpoint(checkpoint, {**options, **solver, **order, **network.fingerprint()})
    plan = plan_network(network, wanted, overall, allocation, solving, store, progress)
    layers = _Run(network, plan, solving, mode, store, progress).run()
    for n, curve in plan.curves.items():
        layers[n] = replace(layers[n], curve=_points(curve))
    return NetworkReport(tuple(layers), options)


class _Run:
    """The layers of a plan, solved or taken from a checkpoint."""

    def __init__(
        self, network: Network, plan: Plan, solving: Solving, mode: str, store: Checkpoint | None, progress: bool | None
    ) -> None:
        self._network, self._plan, self._solving = network, plan, solving
        self._parallel, self._store, self._progress = mode == "parallel", store, progress
        self._waiting: list[tuple[int, list[Matrix]]] = []

    def run(self) -> list[LayerReport]:
        """Return the reports of all layers; what was done stays, whatever ends the run."""
        layers = self._network.layers
        reports: dict[int, LayerReport] = {}
        open_numbers = []
        finished = self._finished()  # what is damaged is found before anything is put
        try:
            for number, info in enumerate(layers):
                goal, kept = self._plan.goals[number], self._plan.kept[number]
                if goal is None or (kept is not None and kept >= info.n_weights - info.n_zeros):
                    reports[number] = _dense(info, "kept dense: allocated no zeros" if goal else "")
                elif number in finished:
                    self._put(number, self._restored(number))
                    reports[number] = finished[number]
                else:
                    open_numbers.append(number)
            visits = self._network.visit(open_numbers, dense=self._parallel)
            with progress_bar(len(open_numbers), self._progress) as bar, closing(visits):
                for number, programs in visits:
                    bar.set_postfix_str(layers[number].name)
                    reports[number] = self._layer(number, layers[number], programs)
                    bar.update()
                    log.info("%s: %s", layers[number].name, _line(reports[number]))
                    del programs  # one layer's data at a time
            for number in open_numbers:  # those that the network has nothing to say of
                reports.setdefault(number, _dense(layers[number], UNREACHED))
            if reports and not any(report.included for report in reports.values()):
                msg = "nothing can be made sparse: the batches give no layer that is included a sample that counts"
                raise InvalidInputError(msg)
        except (InvalidInputError, InfeasibleBudgetError):
            self._waiting.clear()
            raise
        finally:
            for number, parts in self._waiting:
                self._network.put(number, parts)
        return [reports[number] for number in sorted(reports)]

    def _finished(self) -> dict[int, LayerReport]:
        """Return the reports of the layers in the checkpoint, all of which can be read."""
        found: dict[int, LayerReport] = {}
        for n, info in enumerate(self._network.layers):
            held = None if self._store is None else self._store.load(n, info.name)
            if held is not None:
                found[n] = LayerReport.from_record(held[1])
                if self._solving.strict and UNATTAINABLE in found[n].status:
                    msg = f"layer {info.name!r} cannot keep its budget: {found[n].note}"
                    raise InfeasibleBudgetError(msg, found[n].relative_error or 0.0)
        return found

    def _restored(self, number: int) -> list[Matrix]:
        """Return a layer's matrices from the checkpoint."""
        assert self._store is not None
        held = self._store.load(number, self._network.layers[number].name)
        assert held is not None
        return _from_arrays(held[0])

    def _put(self, number: int, parts: list[Matrix]) -> None:
        """Make a layer sparse: at once, or in parallel mode, where it would change what others see, in the end."""
        if self._parallel:
            self._waiting.append((number, parts))
        else:
            self._network.put(number, parts)

    def _layer(self, number: int, info: LayerInfo, programs: list[Program]) -> LayerReport:
        """Solve a layer and put it where it belongs; one without samples stays as it is."""
        goal, kept = self._plan.goals[number], self._plan.kept[number]
        assert goal is not None
        started = time.monotonic()
        if not programs or programs[0].inputs.shape[0] == 0:
            return _dense(info, UNREACHED)
        check_finite(info.name, programs)
        with in_layer(info.name):
            solved = self._solving.solve(programs, goal, kept)
        report = _reported(info, solved, time.monotonic() - started)
        if self._store is not None:
            self._store.save(number, info.name, _to_arrays(solved.parts), report.to_record())
        self._put(number, solved.parts)
        return report


def _name(solver: Any) -> str:
    """Return the name of a function, or of the class of what is called like one."""
    if isinstance(solver, partial):
        return _name(solver.func)
    where = solver if hasattr(solver, "__qualname__") else type(solver)
    return f"{where.__module__}.{where.__qualname__}"


def _dense(info: LayerInfo, status: str = "") -> LayerReport:
    status = status or ("kept dense" if not info.excluded else f"kept dense: {info.excluded}")
    return LayerReport(
        info.name, info.kind, info.shape, info.activation, info.n_weights, info.n_weights - info.n_zeros, info.flops,
        0.0, None, None, None, status, 0.0, included=not info.excluded and status != UNREACHED,
    )  # fmt: skip


def _reported(info: LayerInfo, solved: Solved, seconds: float) -> LayerReport:
    kept = sum(int(np.count_nonzero(weight)) for weight, _ in solved.parts)
    return LayerReport(
        info.name, info.kind, info.shape, info.activation, info.n_weights, kept, info.flops,
        solved.output_error, solved.held_out_error, solved.relative_error, solved.gap, solved.status, seconds,
        solved.note, density=thumbnail([weight for weight, _ in solved.parts]),
    )  # fmt: skip


def _points(curve: Curve) -> tuple[tuple[float, float], ...]:
    """Return a curve at the sparsities at which it was measured."""
    return tuple(zip(LEVELS, np.interp(LEVELS, curve.sparsities, curve.errors).tolist(), strict=True))


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
