"""How the error of a layer grows with its zeros: sampled, for an allocation of zeros over layers."""

from __future__ import annotations

import warnings
from contextlib import closing

import numpy as np
import numpy.typing as npt

from ..errors import GeneralizationWarning
from ..layer import sparsify
from .allocation import Curve
from .checkpoint import Checkpoint
from .layers import Network, Program
from .progress import progress_bar
from .solving import Solving, check_finite

LEVELS = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98)  # sparsities at which errors are sampled
FINE = np.linspace(0.02, 0.99, 98)  # those of a curve that is handed out
TINY = 1e-12  # an error that counts as none
HELD_OUT = 5  # one sample in so many is held out
ROWS, SAMPLES = 64, 1 << 12  # neurons and samples of a curve, at most

Array = npt.NDArray[np.float64]


def error_curves(
    network: Network, numbers: list[int], flops: bool, solving: Solving, store: Checkpoint | None, progress: bool | None
) -> list[Curve]:
    """Return the layers' errors at some sparsities, on the dense network's inputs, from some neurons of each."""
    layers = network.layers
    found = None if store is None else store.load(len(layers), "curves")
    if found is not None:
        errors = found[0]["errors"]
    else:
        errors = np.ones((len(numbers), len(LEVELS)))
        with progress_bar(len(numbers), progress) as bar, closing(network.visit(numbers, dense=True)) as visits:
            for number, programs in visits:
                bar.set_postfix_str(f"{layers[number].name}: errors by sparsity")
                check_finite(layers[number].name, programs)
                errors[numbers.index(number)] = _errors(programs, solving)
                bar.update()
        if store is not None:
            store.save(len(layers), "curves", {"errors": errors}, {})
    curves = []
    for number, row in zip(numbers, errors, strict=True):
        layer = layers[number]
        cost = layer.flops / layer.n_weights if flops and layer.flops else 1.0
        curves.append(Curve(layer.n_weights, cost, FINE, _between(row)))
    return curves


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
    """Return the relative output errors of part of a layer at LEVELS."""
    usable = [p for p in programs if p.inputs.shape[0] > 0]
    if not usable:
        return list(LEVELS)
    program = max(usable, key=lambda p: p.weight.size)
    rows = np.unique(np.linspace(0, len(program.weight) - 1, ROWS).round().astype(int))
    samples = np.unique(np.linspace(0, len(program.inputs) - 1, SAMPLES).round().astype(int))
    held = samples[HELD_OUT - 1 :: HELD_OUT]  # what a small set can be fitted to tells little of the network's data
    fitted = np.setdiff1d(samples, held) if len(held) else samples
    errors = []
    for level in LEVELS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", GeneralizationWarning)  # the held-out error is what counts here
            layer = sparsify(
                program.inputs[fitted], program.weight[rows], None if program.bias is None else program.bias[rows],
                activation=program.activation, sparsity=level, effort="fast", seed=solving.seed,
                n_threads=solving.n_threads, validation_inputs=program.inputs[held] if len(held) else None,
            )  # fmt: skip
        error = layer.output_error if layer.held_out_error is None else layer.held_out_error
        errors.append(min(error, 1.0))
    return errors
