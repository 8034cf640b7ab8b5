"""How the error of a layer grows with its zeros: sampled, for an allocation of zeros over layers."""

from __future__ import annotations

import logging
import math
import time
import warnings
from contextlib import closing

import numpy as np
import numpy.typing as npt

from ..errors import GeneralizationWarning
from ..layer import sparsify
from ..threads import ordered_map, resolve_threads
from .allocation import Curve
from .checkpoint import Checkpoint
from .layers import LayerInfo, Network, Program
from .progress import progress_bar
from .solving import LayerGoal, Solving, check_finite, energies_of, in_layer, split_goals

LEVELS = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98)  # sparsities at which errors are sampled
FINE = np.linspace(0.02, 0.99, 98)  # those of a curve that is handed out
TINY = 1e-12  # an error that counts as none
BLOCKS, HELD_OUT = 20, 5  # of samples in their order; one block in so many is held out
PROGRAMS, ROWS, SAMPLES = 16, 64, 1 << 12  # of a curve, at most; rows are neurons of all its programs
LEAST_SAMPLES, ENTRIES = 1 << 10, 1 << 24  # samples of very wide layers are as many as so many entries of inputs are

log = logging.getLogger("sisopt.network")

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]


def error_curves(
    network: Network, numbers: list[int], flops: bool, solving: Solving, store: Checkpoint | None, progress: bool | None
) -> dict[int, Curve]:
    """Return the layers' errors at some sparsities, on the dense network's inputs, from some neurons of each.

    A layer that no sample reaches has none. Each goes into the checkpoint by itself, behind all layers.
    """
    layers = network.layers
    errors: dict[int, Array] = {}
    for number in numbers:
        found = None if store is None else store.load(len(layers) + number, _key(layers[number]))
        if found is not None and found[1] == {"levels": list(LEVELS)}:
            errors[number] = found[0]["errors"]
    missing = [number for number in numbers if number not in errors]
    if missing:
        _measure(network, missing, solving, store, progress, errors)
    curves = {}
    for number in numbers:
        if errors.get(number, np.empty(0)).size:
            layer = layers[number]
            cost = layer.flops / layer.n_weights if flops and layer.flops else 1.0
            curves[number] = Curve(layer.n_weights, cost, FINE, _between(errors[number]))
    return curves


def _measure(
    network: Network,
    numbers: list[int],
    solving: Solving,
    store: Checkpoint | None,
    progress: bool | None,
    errors: dict[int, Array],
) -> None:
    """Add the errors of some layers, each saved as soon as it is known."""
    layers = network.layers
    with progress_bar(len(numbers), progress) as bar, closing(network.visit(numbers, dense=True)) as visits:
        for number, programs in visits:
            name, started = layers[number].name, time.monotonic()
            bar.set_postfix_str(f"{name}: errors by sparsity")
            check_finite(name, programs)
            with in_layer(name):
                errors[number] = np.array(_errors(programs, solving))
            if store is not None:
                store.save(
                    len(layers) + number, _key(layers[number]), {"errors": errors[number]}, {"levels": list(LEVELS)}
                )
            found = ", ".join(f"{error:.4f}" for error in errors[number])
            log.debug("%s: errors by sparsity %s, %.1f s", name, found or "unknown", time.monotonic() - started)
            del programs  # one layer's data at a time
            bar.update()


def _key(layer: LayerInfo) -> str:
    """Return the name under which a checkpoint holds a curve."""
    return f"curve of {layer.name}"


def _between(errors: Array) -> Array:
    """Return errors at FINE from those at LEVELS: logarithms of both, errors and odds of a zero, are nearly in line.

    Straight lines between a few sparsities would make corners of the samples, and allocations stick to corners.
    """
    levels = np.asarray(LEVELS)
    logs = np.log(np.maximum(np.maximum.accumulate(errors), TINY))
    at, known = np.log(FINE / (1.0 - FINE)), np.log(levels / (1.0 - levels))
    found = np.interp(at, known, logs)
    for outside, (i, j) in ((at < known[0], (0, 1)), (at > known[-1], (-2, -1))):
        slope = (logs[j] - logs[i]) / (known[j] - known[i])
        found[outside] = logs[i if i == 0 else j] + slope * (at[outside] - known[i if i == 0 else j])
    curve: Array = np.minimum(np.exp(found), 1.0)
    return curve


def _errors(programs: list[Program], solving: Solving) -> list[float]:
    """Return the relative output errors of part of a layer at LEVELS, on samples held out where there are enough.

    Nothing where no sample reaches the layer.
    """
    usable = [p for p in programs if p.inputs.shape[0] > 0]
    if not usable:
        return []
    n_samples, n_in = usable[0].inputs.shape
    samples = _spread(n_samples, min(SAMPLES, max(LEAST_SAMPLES, ENTRIES // n_in)))
    block = np.arange(len(samples)) * BLOCKS // len(samples)  # neighbours tend to come from one image, or one text
    held, fitted = samples[block % HELD_OUT == HELD_OUT - 1], samples[block % HELD_OUT != HELD_OUT - 1]
    chosen = [usable[i] for i in _spread(len(usable), PROGRAMS)]
    rows = [_spread(len(p.weight), ROWS // len(chosen)) for p in chosen]
    parts = [_part(p, fitted, at) for p, at in zip(chosen, rows, strict=True)]
    judges = [_part(p, held if len(held) else fitted, at) for p, at in zip(chosen, rows, strict=True)]
    n_threads = resolve_threads(solving.n_threads)
    return [_error(parts, judges, level, solving, n_threads) for level in LEVELS]


def _error(parts: list[Program], judges: list[Program], level: float, solving: Solving, n_threads: int) -> float:
    """Return the relative output error of programs, made sparse together, on the judges' samples."""
    kept = round((1.0 - level) * sum(part.weight.size for part in parts))
    goals = split_goals(parts, LayerGoal(level), kept)
    outer, inner = (n_threads, 1) if len(parts) > 1 else (1, n_threads)

    def energies(job: tuple[Program, Program, LayerGoal]) -> tuple[float, float]:
        part, judge, goal = job
        layer = sparsify(
            part.inputs, part.weight, part.bias, activation=part.activation, sparsity=goal.sparsity, effort="fast",
            seed=solving.seed, n_threads=inner, validation_inputs=judge.inputs,
        )  # fmt: skip
        return energies_of(judge, (layer.weight, layer.bias), inner)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GeneralizationWarning)  # the held-out error is what counts here
        jobs = zip(parts, judges, goals, strict=True)
        difference, reference = np.sum(list(ordered_map(energies, jobs, outer)), axis=0)
    return min(math.sqrt(difference / reference), 1.0) if reference > 0.0 else float(difference > 0.0)


def _part(program: Program, samples: Indices, rows: Indices) -> Program:
    """Return some neurons of a program, its inputs and targets those of the dense network on some samples."""
    bias = None if program.bias is None else program.bias[rows]
    # a shift has no place beside samples held out: what is added to is matched as it is
    activation = program.activation if program.shift is None else "identity"
    return Program(program.inputs[samples], program.weight[rows], bias, activation, None)


def _spread(count: int, most: int) -> Indices:
    """Return at most ``most`` of so many indices, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.intp))
