"""What tells models in ONNX apart."""

from __future__ import annotations

import onnx

from ...network.digest import digest
from .graph import Graph, array_of


def digest_of_graph(graph: Graph) -> str:
    """Return the hash of a graph: its nodes, what they mean, and its constants, wherever these are stored."""
    parts = (graph.model.opset_import, graph.model.functions, graph.model.graph.node)
    content: list[object] = [each.SerializeToString(deterministic=True) for part in parts for each in part]
    for tensor in graph.model.graph.initializer:
        if onnx.external_data_helper.uses_external_data(tensor):
            content.append((tensor.name, digest(array_of(tensor, graph.folder))))
        else:
            content.append(digest(tensor.SerializeToString(deterministic=True)))
    return digest(content)
