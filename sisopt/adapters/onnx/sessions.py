"""Parts of a graph run by onnxruntime, node by node as they stand.

Sessions fuse nothing and use one thread each, so that a value has the same bits whatever part of the graph it is
computed in; batches run side by side. Constants are handed over beside the part's model, which therefore stays small,
and huge ones are inputs of it, of which onnxruntime makes no copy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime

from ...errors import UnsupportedError
from .graph import Array, Graph, array_of, needs_of

INLINE = 1 << 10  # bytes of a constant that goes into the model
HUGE = 1 << 26  # bytes of a constant that is an input
LEAST_IR = 4  # since which constants are no inputs
QUIET = 3  # onnxruntime tells errors alone
HANDED = "fiub"  # kinds of NumPy's own dtypes, which can be handed over


class Stretch:
    """Some nodes of a graph, in order, from values that are given to values that are asked for.

    Parameters
    ----------
    graph : Graph
    nodes : sequence of onnx.NodeProto
    given : mapping of str to ndarray
        Values of the types that will be given.
    wanted : sequence of str
    constants : mapping of str to ndarray
        Those that take the place of the graph's, or are new.
    """

    def __init__(
        self,
        graph: Graph,
        nodes: Sequence[onnx.NodeProto],
        given: Mapping[str, Array],
        wanted: Sequence[str],
        constants: Mapping[str, Array],
    ) -> None:
        self._wanted = list(wanted)
        made = {name for node in nodes for name in node.output}
        used = dict.fromkeys(name for node in nodes for name in needs_of(node))
        model = onnx.ModelProto()
        model.ir_version = max(graph.model.ir_version, LEAST_IR)
        model.opset_import.extend(graph.model.opset_import)
        model.functions.extend(graph.model.functions)
        part = model.graph
        part.name = "part"
        part.node.extend(nodes)
        options = onnxruntime.SessionOptions()
        handed: dict[str, Array] = {}
        self._takes = []
        for name in used:
            if name in given:
                self._takes.append(name)
                kind = onnx.helper.np_dtype_to_tensor_dtype(given[name].dtype)
                part.input.append(onnx.helper.make_tensor_value_info(name, kind, None))
            elif name in graph.sparse:
                part.sparse_initializer.append(graph.sparse[name])
            elif name not in made:
                _add_constant(part, handed, name, graph, constants)
        self._lent = {name: handed.pop(name) for name in list(handed) if handed[name].nbytes > HUGE}
        for name, values in self._lent.items():
            kind = onnx.helper.np_dtype_to_tensor_dtype(values.dtype)
            part.input.append(onnx.helper.make_tensor_value_info(name, kind, values.shape))
            part.initializer.remove(next(each for each in part.initializer if each.name == name))
        part.output.extend(onnx.ValueInfoProto(name=name) for name in self._wanted)
        self._handed = {name: onnxruntime.OrtValue.ortvalue_from_numpy(values) for name, values in handed.items()}
        if self._handed:
            options.add_external_initializers(list(self._handed), list(self._handed.values()))
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = QUIET
        try:
            self._session = onnxruntime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its exceptions have no class in common
            msg = f"onnxruntime cannot run this model on the CPU: {error}"
            raise UnsupportedError(msg) from error

    def run(self, given: Mapping[str, Array]) -> dict[str, Any]:
        """Return the values that are asked for, by name."""
        found = self._session.run(self._wanted, {**self._lent, **{name: given[name] for name in self._takes}})
        return dict(zip(self._wanted, found, strict=True))


def _add_constant(
    part: onnx.GraphProto, handed: dict[str, Array], name: str, graph: Graph, constants: Mapping[str, Array]
) -> None:
    """Put a constant into a model, or the fact that it is handed over."""
    values = constants[name] if name in constants else None
    tensor = part.initializer.add()
    if values is None:
        held = graph.tensor(name)
        if not onnx.external_data_helper.uses_external_data(held) and held.ByteSize() <= INLINE:
            tensor.CopyFrom(held)
            tensor.name = name
            return
        values = array_of(held, graph.folder)
    if values.nbytes <= INLINE or values.dtype.kind not in HANDED:
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, name))
        return
    handed[name] = np.ascontiguousarray(values)
    tensor.name, tensor.data_type = name, onnx.helper.np_dtype_to_tensor_dtype(values.dtype)
    tensor.dims.extend(values.shape)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="handed over")
