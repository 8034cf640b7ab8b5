"""What tells models and calibration data apart: a hash of everything in them that has a value of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx

from .graph import Graph, array_of


def digest(value: Any) -> str:
    """Return the hash of arrays, numbers and text, nested in any way."""
    found = hashlib.sha256()
    _add(found, value)
    return found.hexdigest()


def digest_of_graph(graph: Graph) -> str:
    """Return the hash of a graph: its nodes, what they mean, and its constants, wherever these are stored."""
    found = hashlib.sha256()
    for part in (graph.model.opset_import, graph.model.functions, graph.model.graph.node):
        for each in part:
            found.update(each.SerializeToString(deterministic=True))
    for tensor in graph.model.graph.initializer:
        if onnx.external_data_helper.uses_external_data(tensor):
            _add(found, (tensor.name, array_of(tensor, graph.folder)))
        else:
            found.update(tensor.SerializeToString(deterministic=True))
    return found.hexdigest()


def _add(found: Any, value: Any) -> None:
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        found.update(f"{value.dtype} {value.shape}\n".encode())
        found.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8))
    elif isinstance(value, np.ndarray):
        _add(found, (value.shape, value.tolist()))
    elif isinstance(value, Mapping):
        _add(found, [(key, value[key]) for key in value])
    elif isinstance(value, list | tuple):
        found.update(f"list {len(value)}\n".encode())
        for each in value:
            _add(found, each)
    else:
        found.update(f"{value!r}\n".encode())
