"""How the error of a layer grows with its zeros: sampled, for an allocation of zeros over layers."""

from __future__ import annotations

import numpy as np

from ..layer import sparsify
from .allocation import Curve
from .checkpoint import Checkpoint
from .layers import Network, Program
from .progress import progress_bar
from .solving import Solving, check_finite

LEVELS = (0.5, 0.7, 0.8, 0.9, 0.95)  # sparsities at which errors are sampled
ROWS, SAMPLES = 64, 1 << 12  # neurons and samples of a curve, at most


def error_curves(
    network: Network, numbers: list[int], flops: bool, solving: Solving, store: Checkpoint | None, progress: bool | None
) -> list[Curve]:
    """Return the layers' errors at some sparsities, on the dense network's inputs, from some neurons of each."""
    layers, curves = network.layers, {}
    found = None if store is None else store.load(len(layers), "curves")
    if found is not None:
        errors = found[0]["errors"]
    else:
        errors = np.ones((len(numbers), len(LEVELS)))
        with progress_bar(len(numbers), progress) as bar:
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
    rows = np.unique(np.linspace(0, len(program.weight) - 1, ROWS).round().astype(int))
    samples = np.unique(np.linspace(0, len(program.inputs) - 1, SAMPLES).round().astype(int))
    errors = []
    for level in LEVELS:
        layer = sparsify(
            program.inputs[samples], program.weight[rows], None if program.bias is None else program.bias[rows],
            activation=program.activation, sparsity=level, effort="fast", seed=solving.seed,
            n_threads=solving.n_threads,
        )  # fmt: skip
        errors.append(min(layer.output_error, 1.0))
    return errors
