"""Activations by what they compute, however they are spelled: hard-swish and GELU often are several nodes.

The nodes that act entry by entry on a value, alone or with constants, form a cone above it. Where the cone narrows to
one value again, what it computes up to there is run on a grid of numbers and compared with the activations that are
known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx

from ...activations import Activation, activation_names, get_activation
from ...activations.base import Elementwise
from ...activations.increasing import CELU, ELU
from ...activations.piecewise import Clip, LeakyReLU, SoftShrink
from ...errors import InvalidInputError
from .graph import Graph, attribute, is_op
from .sessions import Stretch

Doubles = npt.NDArray[np.float64]

MOST_NODES = 16  # of a cone: the longest spelling of GELU takes nine
GRID = np.concatenate([np.linspace(-12.0, 12.0, 2401), [-1e-4, 1e-4, -30.0, 30.0]])
FAR = 1e4  # where activations are straight
ENDS = np.array([-FAR, FAR, -1.0, 8.0])
CLOSE = 3e-5  # relative: single precision keeps less, GELU and its approximation by tanh are 5e-4 apart

ENTRYWISE = {
    *("Relu", "Clip", "LeakyRelu", "PRelu", "ThresholdedRelu", "Elu", "Selu", "Celu", "Softplus", "Softsign", "Shrink"),
    *("Sigmoid", "HardSigmoid", "HardSwish", "Swish", "Tanh", "Gelu", "Mish", "Erf", "Atan", "Exp", "Log", "Sqrt"),
    *("Abs", "Neg", "Reciprocal", "Add", "Sub", "Mul", "Div", "Pow", "Min", "Max"),
}
COPIES = {"Identity", "Dropout", "Cast"}
MOVES = {"Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze"}  # entries to other places


@dataclass
class _Cone:
    """Values by what places their entries are at, and the nodes that make them, in order."""

    places: dict[str, int]
    nodes: list[int] = field(default_factory=list)


def activation_after(graph: Graph, value: str) -> Activation | None:
    """Return the activation that a value goes through and is used by nothing else than; None where there is none.

    Of several that nodes behind one another make, as ReLU and a clip after it, the last one counts.
    """
    found = None
    for nodes in _ends(graph, value, _cone(graph, value)):
        if not all(is_op(graph.nodes[each], MOVES, COPIES) for each in nodes):
            found = _recognised(_computed(graph, value, nodes)) or found
    return found


def _cone(graph: Graph, value: str) -> _Cone:
    """Return the nodes that act entry by entry on a value."""
    cone = _Cone({value: 0})
    waiting = {use.node for use in graph.telling(value)}
    while waiting and len(cone.nodes) < MOST_NODES:
        number = min(waiting)
        waiting.remove(number)
        node = graph.nodes[number]
        places = _places(graph, node, cone)
        if places is not None:
            cone.nodes.append(number)
            cone.places[node.output[0]] = places
            waiting.update(use.node for use in graph.telling(node.output[0]))
    return cone


def _places(graph: Graph, node: onnx.NodeProto, cone: _Cone) -> int | None:
    """Return where a node puts entries; None where it does more than that, or takes other values than the cone's."""
    if any(node.output[1:]) or not node.input:
        return None
    subject = cone.places.get(node.input[0])
    if is_op(node, MOVES):
        return None if subject is None else len(cone.nodes) + 1
    if is_op(node, COPIES):
        trains = node.op_type == "Dropout" and len(node.input) > 2 and node.input[2]
        to = attribute(node, "to") if node.op_type == "Cast" else onnx.TensorProto.FLOAT
        floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
        return subject if not trains and to in floats else None
    if not is_op(node, ENTRYWISE):
        return None
    places = {cone.places[name] for name in node.input if name in cone.places}
    others = [name for name in node.input if name and name not in cone.places]
    return places.pop() if len(places) == 1 and all(_is_scalar(graph, name) for name in others) else None


def _is_scalar(graph: Graph, name: str) -> bool:
    values = graph.constant(name) if graph.is_constant(name) else None
    return values is not None and values.size == 1


def _ends(graph: Graph, value: str, cone: _Cone) -> Iterator[list[int]]:
    """Yield the nodes, in order, up to each one at which the cone is one value again."""
    for number in cone.nodes:
        end = graph.nodes[number].output[0]
        inside = set(graph.needed([end])) & set(cone.nodes)
        through = [value, *(graph.nodes[each].output[0] for each in inside if each != number)]
        if all(
            name not in graph.outputs and all(use.node in inside for use in graph.telling(name)) for name in through
        ):
            yield sorted(inside)


def _computed(graph: Graph, value: str, numbers: list[int]) -> Doubles:
    """Return what nodes make of GRID and ENDS, in single precision."""
    nodes, constants = [], {}
    for number in numbers:
        node = graph.nodes[number]
        if is_op(node, MOVES, COPIES):
            nodes.append(onnx.helper.make_node("Identity", node.input[:1], node.output[:1]))
            continue
        nodes.append(node)
        for name in node.input:
            values = graph.constant(name) if name and graph.is_constant(name) else None
            if values is not None:
                constants[name] = values.astype(np.float32) if values.dtype.kind == "f" else values
    end = graph.nodes[numbers[-1]].output[0]
    given = {value: np.concatenate([GRID, ENDS]).astype(np.float32)}
    found: Doubles = Stretch(graph, nodes, given, [end], constants).run(given)[end].astype(np.float64).reshape(-1)
    return found


def _recognised(outputs: Doubles) -> Activation | None:
    """Return the activation that takes these values on GRID and ENDS; None where it is none that is known."""
    on_grid, (low, high, *near) = outputs[: GRID.size], outputs[GRID.size :].tolist()
    if not np.isfinite(on_grid).all():
        return None
    for make in _candidates(low, high, *near):
        try:
            activation = make()
        except InvalidInputError:  # bounds or slopes that sisopt does not take
            continue
        expected = activation.forward(GRID)
        if np.all(np.abs(on_grid - expected) <= CLOSE * np.maximum(1.0, np.abs(expected))):
            return activation
    return None


def _candidates(low: float, high: float, at_minus_one: float, at_eight: float) -> Iterator[Callable[[], Activation]]:
    """Yield what makes activations: those that these values tell the parameters of, then all by name."""
    yield lambda: Clip(-math.inf if low == -FAR else _short(low), math.inf if high == FAR else _short(high))
    yield lambda: LeakyReLU(_short(-at_minus_one))
    yield lambda: ELU(_short(-low))
    yield lambda: CELU(_short(-low))
    yield lambda: SoftShrink(_short(8.0 - at_eight))
    for name in activation_names():
        if isinstance(get_activation(name), Elementwise):
            yield lambda name=name: get_activation(name)  # type: ignore[misc]


def _short(value: float) -> float:
    """Return a number of single precision as people write it."""
    return float(f"{value:.6g}")
