"""The sparse model: made of the dense one and its changes, checked, and written whole or not at all."""

from __future__ import annotations

import math
import os
import secrets
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import onnx
from onnx import external_data_helper, numpy_helper

from ...errors import InvalidInputError, SisoptError
from ...network.atomic_files import TEMPORARY, make_folder, sync_folder
from .graph import Changes, Graph, needs_of, subgraphs

MOST_BYTES = (1 << 31) - (1 << 24)  # of constants in one file: protobuf ends at 2 GiB
LEAST_EXTERNAL = 1 << 10  # bytes of a constant that is worth a place in another file
FORMAT = "protobuf"  # whatever a file is called: onnx would go by its suffix
INPUTS_ALONE = 4  # since which version constants need not be inputs too


def read_model(path: Path) -> onnx.ModelProto:
    """Return the model of a file, external data left where they are."""
    try:
        return onnx.load_model(path, FORMAT, load_external_data=False)
    except OSError as error:
        msg = f"model {path} cannot be read: {error.strerror or error}"
        raise InvalidInputError(msg) from error
    except Exception as error:  # what protobuf raises has no public class
        msg = f"model {path} is no ONNX model: {error}"
        raise InvalidInputError(msg) from error


def has_external(model: onnx.ModelProto) -> bool:
    """Return whether constants of a model are in other files."""
    return any(external_data_helper.uses_external_data(tensor) for tensor in _initialisers(model.graph))


def constant_bytes(model: onnx.ModelProto) -> int:
    """Return the memory that the constants of a model take."""
    return sum(
        math.prod(tensor.dims) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        for tensor in _initialisers(model.graph)
    )


def needs_data_file(model: onnx.ModelProto) -> bool:
    """Return whether the constants of a model are written to a file of their own."""
    return has_external(model) or constant_bytes(model) > MOST_BYTES


def check(model: onnx.ModelProto | Path, what: str, error_type: type[SisoptError] = InvalidInputError) -> None:
    """Refuse a model that onnx's checker refuses."""
    try:
        onnx.checker.check_model(str(model) if isinstance(model, Path) else model)
    except onnx.checker.ValidationError as error:
        msg = f"{what} is not valid ONNX: {error}"
        raise error_type(msg) from error


def data_file(output: Path) -> Path:
    """Return where the external data of a model are written."""
    return output.with_name(f"{output.name}.data")


def check_output(output: Path, external: bool, overwrite: bool) -> None:
    """Refuse files that cannot be written, and to write over others, unless that is wanted."""
    for path in (output, data_file(output)) if external else (output,):
        if path.exists() and not path.is_file():
            msg = f"output: {path} is {'a folder' if path.is_dir() else 'no ordinary file'}; name a file"
            raise InvalidInputError(msg)
        if path.exists() and not overwrite:
            msg = f"output: {path} exists; name another file, or write over it with overwrite=True"
            raise InvalidInputError(msg)
    above = next(folder for folder in output.absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        msg = f"output: {above} {'cannot be written to' if above.is_dir() else 'is no folder'}; name another file"
        raise InvalidInputError(msg)


def sparse_model(graph: Graph, changes: Changes) -> onnx.ModelProto:
    """Return a copy of a model with its changes made, all constants in it, and without what they left unused."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    waiting = dict(changes.values)
    for tensor in model.graph.initializer:
        if tensor.name in waiting:
            tensor.CopyFrom(numpy_helper.from_array(waiting.pop(tensor.name), tensor.name))
    for node in model.graph.node:
        if node.op_type == "Constant" and node.output[0] in waiting:
            tensor = numpy_helper.from_array(waiting.pop(node.output[0]), node.attribute[0].t.name)
            del node.attribute[:]  # it may have held its numbers another way, such as value_floats
            node.attribute.append(onnx.helper.make_attribute("value", tensor))
    for name, values in waiting.items():
        model.graph.initializer.append(numpy_helper.from_array(values, name))
        if model.ir_version < INPUTS_ALONE:
            kind = onnx.helper.np_dtype_to_tensor_dtype(values.dtype)
            model.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, values.shape))
    left = []
    for use, name in changes.inputs.items():
        node = model.graph.node[use.node]
        left.append(node.input[use.input])
        node.input[use.input] = name
    _remove_unused(model.graph, left)
    if graph.folder is not None:
        external_data_helper.load_external_data_for_model(model, str(graph.folder))
    return model


def write_model(model: onnx.ModelProto, output: Path, external: bool, verify: Callable[[Path], None]) -> None:
    """Write a model, its constants beside it if ``external``, once ``verify`` has seen the files under other names.

    Whatever happens, there is the old model, or none, or the new one: never one with another's constants.

    Raises
    ------
    SisoptError
        If the system refuses: there is no room, for one.
    """
    data = data_file(output)
    scratch = output.parent / f"{TEMPORARY}{secrets.token_hex(8)}"
    try:
        make_folder(output.parent)
        scratch.mkdir()
        written = scratch / output.name
        if external:
            onnx.save_model(
                model, written, FORMAT, save_as_external_data=True, all_tensors_to_one_file=True,
                location=data.name, size_threshold=LEAST_EXTERNAL,
            )  # fmt: skip
        else:
            onnx.save_model(model, written, FORMAT)
        files = [path for path in (scratch / data.name, written) if path.exists()]
        for path in files:
            _sync(path)
        verify(written)
        if len(files) > 1 and output.exists():
            output.unlink()
            sync_folder(output.parent)
        for path in files:
            os.replace(path, output.parent / path.name)
            sync_folder(output.parent)
    except OSError as error:
        msg = f"output {output} cannot be written: {error.strerror or error}"
        raise SisoptError(msg) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _remove_unused(graph: onnx.GraphProto, names: Iterable[str]) -> None:
    """Remove constants, and views of them, that nothing uses any more."""
    uses = Counter(each for node in graph.node for each in needs_of(node))
    uses.update(value.name for value in graph.output)
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if uses[name]:
            continue
        for part in (graph.initializer, graph.input, graph.value_info):
            for each in [each for each in part if each.name == name]:
                part.remove(each)
        for node in [node for node in graph.node if list(node.output) == [name]]:
            waiting.extend(node.input)
            uses.subtract(needs_of(node))
            graph.node.remove(node)


def _initialisers(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Yield the constants of a graph and of those inside of it, and what nodes Constant hold."""
    yield from graph.initializer
    for node in graph.node:
        for inner in subgraphs(node):
            yield from _initialisers(inner)
        yield from (each.t for each in node.attribute if each.type == onnx.AttributeProto.TENSOR)


def _sync(path: Path) -> None:
    """Wait until a file is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
