"""An ONNX graph as the adapter reads it: who makes and who uses each value, and which values are constants.

The model that a graph is made of is never changed. What becomes of its constants is kept beside it as `Changes`, so
that the dense and the sparse model are the same graph, seen with and without them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
from onnx import external_data_helper, numpy_helper

Array = npt.NDArray[Any]

STANDARD = {"", "ai.onnx"}  # the two names of the domain of ONNX itself
VIEWS = {"Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze"}  # of constants: constants themselves
SHAPES = {"Shape", "Size"}  # what these tell of a value are not its entries
RANDOM = {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial"}
PLAIN = "fiub"  # kinds of NumPy's own dtypes: those of other formats are packed
INSIDE = -1  # in the place of an input: the value is used in a subgraph of the node


class Use(NamedTuple):
    """A node, by its number, and which of its inputs a value is."""

    node: int
    input: int


@dataclass
class Changes:
    """What is to become of a graph: constants with new values or new names, and inputs that take other constants."""

    values: dict[str, Array] = field(default_factory=dict)
    inputs: dict[Use, str] = field(default_factory=dict)


class Graph:
    """The main graph of a model; ``folder`` is where its external data lie."""

    def __init__(self, model: onnx.ModelProto, folder: Path | None = None) -> None:
        self.model, self.folder = model, folder
        self.nodes: list[onnx.NodeProto] = list(model.graph.node)
        self.outputs = {value.name for value in model.graph.output}
        self.opset = next((each.version for each in model.opset_import if each.domain in STANDARD), 1)
        self.sparse = {tensor.values.name: tensor for tensor in model.graph.sparse_initializer}
        self._tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        self.producer: dict[str, int] = {}
        self.uses: dict[str, list[Use]] = {}
        self.needs: list[list[str]] = []  # the values that each node takes, those of its subgraphs included
        for number, node in enumerate(self.nodes):
            tensor = _value_of(node)
            if tensor is not None:
                self._tensors[node.output[0]] = tensor
            self.producer.update((name, number) for name in node.output if name)
            for index, name in enumerate(node.input):
                if name:
                    self.uses.setdefault(name, []).append(Use(number, index))
            for name in set(_captured(node)):
                self.uses.setdefault(name, []).append(Use(number, INSIDE))
            self.needs.append(needs_of(node))
        self.inputs = [value for value in model.graph.input if value.name not in self._tensors]
        self.fixed = self._fixed()

    def is_tensor(self, name: str) -> bool:
        """Return whether a value is a constant by itself: an initialiser or what a node Constant holds."""
        return name in self._tensors

    def tensor(self, name: str) -> onnx.TensorProto:
        """Return a constant as the model holds it."""
        found: onnx.TensorProto = self._tensors[name]
        return found

    def constant(self, name: str) -> Array | None:
        """Return the value of a constant, or of a view of one; None where it is neither."""
        if name in self._tensors:
            return array_of(self._tensors[name], self.folder)
        if not self.is_constant(name):
            return None
        node = self.nodes[self.producer[name]]
        inputs = [None if not each else self.constant(each) for each in node.input]
        found: Array = _view(node, inputs)
        return found

    def is_constant(self, name: str) -> bool:
        """Return whether a value is a constant or a view of one."""
        if name in self._tensors:
            return True
        node = self.nodes[self.producer[name]] if name in self.producer else None
        return node is not None and is_op(node, VIEWS) and all(self.is_constant(each) for each in node.input if each)

    def telling(self, name: str) -> list[Use]:
        """Return the uses of a value that depend on its entries."""
        return [use for use in self.uses.get(name, []) if not is_op(self.nodes[use.node], SHAPES)]

    def is_sole(self, name: str, places: Collection[Use]) -> bool:
        """Return whether a constant is used at these places and nowhere else, and so what it is a view of."""
        if name in self.outputs or set(self.uses.get(name, [])) != set(places):
            return False
        if name in self._tensors:
            return True
        number = self.producer[name]
        return self.is_sole(self.nodes[number].input[0], [Use(number, 0)])

    def sharer(self, name: str, places: Collection[Use]) -> str:
        """Return the name of a node, or of what else, that uses a constant elsewhere than at these places."""
        other = next((use for use in self.uses.get(name, []) if use not in places), None)
        if other is not None:
            return label_of(self.nodes[other.node])
        if name in self.outputs:
            return "an output of the model"
        number = self.producer[name]
        return self.sharer(self.nodes[number].input[0], [Use(number, 0)])

    def source(self, name: str) -> str:
        """Return the name of the constant that a constant is a view of."""
        while name not in self._tensors:
            name = self.nodes[self.producer[name]].input[0]
        return name

    def replace(self, changes: Changes, places: Sequence[Use], values: Array) -> None:
        """Let inputs that are one and the same constant take other values, and nothing else that uses it."""
        name = self.nodes[places[0].node].input[places[0].input]
        if name in self._tensors and self.is_sole(name, places):
            changes.values[name] = values
            return
        fresh = changes.inputs.get(places[0]) or self._fresh(f"{self.source(name)}_sparse", changes)
        changes.values[fresh] = values
        changes.inputs.update(dict.fromkeys(places, fresh))

    def needed(self, names: Iterable[str]) -> list[int]:
        """Return the nodes, in order, that values depend on; constants are no nodes here."""
        found: set[int] = set()
        waiting = list(names)
        while waiting:
            name = waiting.pop()
            number = self.producer.get(name)
            if number is not None and number not in found and name not in self._tensors:
                found.add(number)
                waiting.extend(self.needs[number])
        return sorted(found)

    def _fresh(self, name: str, changes: Changes) -> str:
        """Return a name that is not taken."""
        taken = {*self._tensors, *self.producer, *changes.values, *(value.name for value in self.model.graph.input)}
        while name in taken:
            name += "_"
        return name

    def _fixed(self) -> set[str]:
        """Return the values that depend on constants alone."""
        fixed = {*self._tensors, *self.sparse}
        for number, node in enumerate(self.nodes):
            if self.needs[number] and not is_op(node, RANDOM) and all(name in fixed for name in self.needs[number]):
                fixed.update(node.output)
        return fixed


def is_op(node: onnx.NodeProto, *types: str | Collection[str]) -> bool:
    """Return whether a node is an operator of ONNX of one of these types."""
    return node.domain in STANDARD and any(
        node.op_type == t if isinstance(t, str) else node.op_type in t for t in types
    )


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """Return an attribute of a node: text as str, lists as lists."""
    for each in node.attribute:
        if each.name == name:
            value = onnx.helper.get_attribute_value(each)
            return value.decode() if isinstance(value, bytes) else value
    return default


def needs_of(node: onnx.NodeProto) -> list[str]:
    """Return the values that a node takes, those that its subgraphs take from outside included."""
    return [*(name for name in node.input if name), *dict.fromkeys(_captured(node))]


def label_of(node: onnx.NodeProto) -> str:
    """Return what to call a node in a message."""
    return node.name or f"{node.op_type} of {next(iter(node.output), '')}"


def array_of(tensor: onnx.TensorProto, folder: Path | None) -> Array:
    """Return the values of a tensor; those in another file, whose place onnx's checker has seen, as a map of it."""
    if folder is not None and external_data_helper.uses_external_data(tensor):
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        if dtype.kind in PLAIN and 0 not in tensor.dims:
            place = external_data_helper.ExternalDataInfo(tensor)
            shape = tuple(tensor.dims) or (1,)
            mapped = np.memmap(folder / place.location, dtype.newbyteorder("<"), "r", place.offset or 0, shape)
            return np.asarray(mapped).reshape(tuple(tensor.dims))
    found: Array = numpy_helper.to_array(tensor, "" if folder is None else str(folder))
    return found


def inner_nodes(node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
    """Yield the nodes of a node's subgraphs, and of theirs."""
    for graph in subgraphs(node):
        for each in graph.node:
            yield each
            yield from inner_nodes(each)


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Yield the graphs that a node has for attributes."""
    for each in node.attribute:
        if each.type == onnx.AttributeProto.GRAPH:
            yield each.g
        yield from each.graphs


def _captured(node: onnx.NodeProto) -> Iterator[str]:
    """Yield the values from outside that the subgraphs of a node use."""
    for graph in subgraphs(node):
        own = {value.name for value in (*graph.input, *graph.initializer)}
        own.update(tensor.values.name for tensor in graph.sparse_initializer)
        own.update(name for each in graph.node for name in each.output)
        for each in graph.node:
            yield from (name for name in (*each.input, *_captured(each)) if name and name not in own)
        yield from (value.name for value in graph.output if value.name not in own)


def _value_of(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """Return what a node Constant holds; None of other nodes, and where it is sparse."""
    if not is_op(node, "Constant") or len(node.attribute) != 1:
        return None
    given = node.attribute[0]
    if given.name == "value":
        held: onnx.TensorProto = given.t
        return held
    types = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    if given.name not in types:
        return None
    return numpy_helper.from_array(np.array(onnx.helper.get_attribute_value(given), types[given.name]))


def _view(node: onnx.NodeProto, inputs: Sequence[Array | None]) -> Array:
    """Return what one of VIEWS makes of constants."""
    values = inputs[0]
    assert values is not None
    second = inputs[1] if len(inputs) > 1 else None
    if node.op_type == "Transpose":
        return values.transpose(attribute(node, "perm"))
    if node.op_type == "Reshape":
        wanted = attribute(node, "shape") if second is None else second.tolist()
        if not attribute(node, "allowzero", 0):  # a 0 stands for the size that was there
            wanted = [values.shape[i] if size == 0 else size for i, size in enumerate(wanted)]
        return values.reshape(wanted)
    if node.op_type in ("Squeeze", "Unsqueeze"):
        axes = attribute(node, "axes") if second is None else second.tolist()
        if node.op_type == "Unsqueeze":
            return np.expand_dims(values, tuple(axes))
        return values.squeeze() if axes is None else values.squeeze(tuple(axes))
    return values
