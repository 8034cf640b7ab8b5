"""Every method on one layer: how far its outputs are from the dense layer's on test inputs, and its CPU time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

import sisopt
from bench.layers import BenchLayer
from bench.networks import activate
from bench.quality_results import LayerResult, Results, digest
from bench.rivals.pattern import Pattern
from bench.rivals.pruning import MOST_INPUTS, PRUNERS, RELU_PRUNERS, SUPPORTS

Array = np.ndarray
Pair = tuple[Array, Array | None]

LEVELS: dict[str, dict] = {  # what rivals are asked for
    "50 %": {"sparsity": 0.5},
    "70 %": {"sparsity": 0.7},
    "80 %": {"sparsity": 0.8},
    "90 %": {"sparsity": 0.9},
    "95 %": {"sparsity": 0.95},
    "2:4": {"pattern": (2, 4)},
}
OURS = {"sisopt": "default", "sisopt, fast": "fast"}  # effort
RIVALS = (*PRUNERS, *RELU_PRUNERS)
METHODS = (*RIVALS, *OURS)
REFERENCE = "ALPS"  # whose errors and times the others' are divided by
# With more inputs a rival is left out. OBC takes 20 s on 784 -> 512, spent because none other is as good there.
LIMITS = {**MOST_INPUTS, "OBC": 784, "lasso": 576}
FEW_LEVELS = ("50 %", "90 %", "2:4")
ALL_LEVELS = {"OBC": 576, "lasso": 288, "lasso + refit": 288, "Net-Trim": 0}  # with more inputs: the few levels
ROUNDS, PATIENCE = 3, 0.5  # a method is timed as often, or until it took so many seconds; the least counts


def measure_layer(layer: BenchLayer, results: Results, methods: Sequence[str] = METHODS) -> None:
    """Run the methods on the layer at every level that they can do, unless the results have them already."""
    data = digest((), (layer.weight, layer.bias, layer.inputs, layer.test_inputs))
    with threadpool_limits(1):
        outputs = outputs_of(layer, layer.weight, layer.bias)
        for level in LEVELS:
            for method in methods:
                stamp = f"{code_stamp(method)} {data}"
                if not runs(method, layer, level) or results.has((layer.group, layer.name, level, method), stamp):
                    continue
                arrays = (layer.inputs, layer.weight, layer.bias)
                (weight, bias), seconds = least_cpu_seconds(partial(prune, method, *arrays, layer.activation, level))
                assert np.count_nonzero(weight) <= Pattern(**LEVELS[level]).count(weight.shape)
                error = relative_error(outputs_of(layer, weight, bias), outputs)
                sizes = (layer.activation, len(layer.inputs), *layer.weight.shape[::-1])
                results.add(LayerResult(layer.group, layer.name, *sizes, level, method, error, seconds, stamp))


def runs(method: str, layer: BenchLayer, level: str) -> bool:
    """Return whether a method can do this, and soon enough."""
    n_in = layer.weight.shape[1]
    if method in OURS:
        return True
    if not set(LEVELS[level]) <= set(SUPPORTS[method]) or n_in > LIMITS.get(method, n_in):
        return False
    if method in RELU_PRUNERS and layer.activation != "relu":
        return False
    return level in FEW_LEVELS or n_in <= ALL_LEVELS.get(method, n_in)


def prune(
    method: str,
    inputs: Array,
    weight: Array,
    bias: Array,
    activation: str,
    level: str,
    preactivations: Array | None = None,
) -> Pair:
    """Return weight and bias of the layer pruned by the method.

    The rivals take the layer as it is; we also hear which ``preactivations`` it should have, where they are not those
    of the layer on these inputs.
    """
    if method in PRUNERS:
        return PRUNERS[method](weight, inputs, **LEVELS[level]), bias
    if method in RELU_PRUNERS:
        return RELU_PRUNERS[method](weight, inputs, bias, **LEVELS[level])
    goal = {name: ":".join(map(str, value)) if name == "pattern" else value for name, value in LEVELS[level].items()}
    layer = sisopt.sparsify(
        inputs,
        weight,
        bias,
        activation=activation,
        preactivations=preactivations,
        effort=OURS[method],
        n_threads=1,
        **goal,
    )
    return layer.weight, layer.bias


def outputs_of(layer: BenchLayer, weight: Array, bias: Array | None) -> Array:
    """Return the outputs on the test inputs with another weight and bias."""
    return activate(layer.activation, layer.test_inputs @ weight.T + bias)


def relative_error(outputs: Array, wanted: Array) -> float:
    """Return ``||outputs - wanted|| / ||wanted||``."""
    return float(np.linalg.norm(outputs - wanted) / np.linalg.norm(wanted))


def least_cpu_seconds(call: Callable[[], Pair]) -> tuple[Pair, float]:
    """Return what the call returns, and the least CPU time of some rounds."""
    rounds: list[float] = []
    while not rounds or (sum(rounds) < PATIENCE and len(rounds) < ROUNDS):
        start = time.process_time()
        result = call()
        rounds.append(time.process_time() - start)
    return result, min(rounds)


def code_stamp(method: str, *files: Path) -> str:
    """Return a digest of the code that a method's results depend on: these files, this one, its own.

    The reference is measured again whenever we are, so that times are compared within one run.
    """
    return _digest_of_code(method in OURS or method == REFERENCE, files)


@cache
def _digest_of_code(with_ours: bool, files: tuple[Path, ...]) -> str:
    here = Path(__file__)
    rivals = here.parent.glob("rivals/*.py")
    ours = Path(sisopt.__file__).parent.rglob("*.py") if with_ours else ()
    return digest([here, *files, *rivals, *ours])


def warm_up() -> None:
    """Prune layers of no size, so that nothing is compiled or loaded while it is timed."""
    rng = np.random.default_rng(0)
    inputs, weight, bias = (rng.standard_normal(shape).astype(np.float32) for shape in ((40, 8), (4, 8), 4))
    for method in METHODS:
        activations = ("relu",) if method in RELU_PRUNERS else ("relu", "identity", "gelu", "tanh")
        for activation in activations if method in OURS else activations[:1]:
            for level in ("50 %", "2:4"):
                if method in OURS or set(LEVELS[level]) <= set(SUPPORTS[method]):
                    prune(method, inputs, weight, bias, activation, level)
