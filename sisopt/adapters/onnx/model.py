"""sparsify_onnx(): an ONNX model made sparse in one call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import onnx

from ...activations import Activation
from ...errors import InvalidInputError, SisoptError
from ...network import LayerSolver, NetworkReport, sparsify_network
from ...network.samples import MAX_MEMORY, MAX_SAMPLES, Sampling
from ...patterns import Pattern
from .batches import feeds_of
from .graph import Graph
from .network import OnnxNetwork
from .planning import Globs, choice, plan_layers
from .sites import find_sites
from .verifying import verify_layers, verify_model
from .writing import (
    MOST_BYTES,
    check,
    check_output,
    constant_bytes,
    has_external,
    needs_data_file,
    read_model,
    sparse_model,
    write_model,
)


def sparsify_onnx(
    model: onnx.ModelProto | str | PathLike[str],
    batches: Iterable[Any],
    *,
    sparsity: float | None = None,
    relative_error: float | None = None,
    pattern: str | Pattern | None = None,
    goals: Mapping[str, Any] | None = None,
    output: str | PathLike[str] | None = None,
    overwrite: bool = False,
    include: Globs | None = None,
    exclude: Globs | None = None,
    activations: Mapping[str, str | Activation] | None = None,
    allocation: str | None = None,
    mode: str = "sequential",
    layer_solver: LayerSolver | None = None,
    effort: str = "default",
    seed: int = 0,
    max_samples: int = MAX_SAMPLES,
    max_memory: int = MAX_MEMORY,
    checkpoint: str | PathLike[str] | None = None,
    progress: bool | None = None,
    strict: bool = False,
    n_threads: int | None = None,
) -> tuple[onnx.ModelProto | Path, NetworkReport]:
    """Make the layers of an ONNX model sparse, first to last, on calibration batches.

    Every layer gets sparse weights, and a bias to go with them, that keep its outputs: on inputs that come from the
    layers before it as they are by then, with the pre-activations of the dense model for a target. What follows a
    layer, constants that are added or multiplied by, a batch normalisation and an activation, is read from the graph
    and counts as part of it. The sparse model is checked by onnx, and run by onnxruntime on a batch, before it is
    returned or written.

    Parameters
    ----------
    model : onnx.ModelProto or path
        Never changed. Made sparse are Conv, Gemm and MatMul with a constant; everything else stays as it is.
    batches : iterable
        Calibration batches without labels: mappings from the model's inputs to arrays; tuples or lists with the inputs
        in order; or arrays, where there is one input. Where a mapping holds an ``attention_mask``, tokens of which it
        is 0 count nowhere.
    sparsity, relative_error, pattern, goals, allocation, mode, layer_solver, strict
        What is asked, see `sisopt.network.sparsify_network`; the sparsity is over the weights of all layers that are
        included and have no goal of their own.
    output : path, optional
        A file to write the sparse model to, whole or not at all. Constants lie in a second file, ``output`` with
        ".data" behind it, if the model's did so or are too large for one.
    overwrite : bool, default False
        Whether ``output`` may replace a file, the model's own included.
    include, exclude : str or several, optional
        Which layers: globs of names such as "*/attention/*", or of types of nodes such as "Conv". All by default.
    activations : mapping, optional
        Glob of names -> activation, where what was found is to be overruled.
    effort, seed, n_threads
        See `sisopt.sparsify`.
    max_samples : int, default 10000
        Samples that a layer is solved on, tokens or places of images: drawn from those of all batches.
    max_memory : int
        Bytes that one layer's data and the forward passes under way may take: data beyond it lie in a file, passes run
        again for every layer.
    checkpoint : path, optional
        A folder to which every finished layer is written; the same call goes on from there, to the same bits.
    progress : bool, optional
        Whether to draw a progress bar; by default where there is a terminal to draw it on.

    Returns
    -------
    model : onnx.ModelProto or pathlib.Path
        The sparse model, or ``output`` where that is given.
    report : NetworkReport
        What was done to every layer; its ``model`` is the sparse model or its path, too.

    Raises
    ------
    InvalidInputError
        If an argument is not what it should be, or a layer's data hold NaN.
    UnsupportedError
        If no layer can be made sparse, with the reasons, onnxruntime cannot run the model on the CPU, or new weights do
        not fit into float16.
    SisoptError
        If the sparse model does not do what was promised, or the system does not write it.
    CheckpointError
        If the checkpoint is damaged, belongs to another call, or cannot be written.

    Examples
    --------
    >>> import numpy as np, onnx
    >>> from sisopt.adapters.onnx import sparsify_onnx
    >>> graph = "agraph (float[n, 20] x) => (float[n, 30] y) { z = MatMul(x, w)  y = Relu(z) }"
    >>> model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {graph}')
    >>> rng = np.random.default_rng(0)
    >>> weight = onnx.numpy_helper.from_array(rng.normal(size=(20, 30)).astype(np.float32), "w")
    >>> model.graph.initializer.extend([weight])
    >>> sparse, report = sparsify_onnx(model, [rng.normal(size=(200, 20))], sparsity=0.8)
    >>> report.sparsity
    0.8

    References
    ----------
    S. Verma, J.-C. Pesquet, "Sparsifying Networks via Subdifferential Inclusion", ICML 2021.
    """
    wanted = choice(include, exclude, activations)
    sampling = Sampling.checked(max_samples, max_memory, seed)
    graph = _graph(model)
    external = needs_data_file(graph.model)
    if output is not None:
        check_output(Path(output), external, overwrite)
    elif constant_bytes(graph.model) > MOST_BYTES:
        msg = "the sparse model is too large to be returned: name a file to write it to with output="
        raise InvalidInputError(msg)
    feeds = feeds_of(graph, batches)
    layers = plan_layers(graph, find_sites(graph), wanted, feeds[0])
    network = OnnxNetwork(graph, feeds, layers, sampling, n_threads)
    report = sparsify_network(
        network, sparsity=sparsity, relative_error=relative_error, pattern=pattern, goals=goals, allocation=allocation,
        mode=mode, layer_solver=layer_solver, effort=effort, seed=seed, checkpoint=checkpoint, progress=progress,
        strict=strict, n_threads=n_threads,
    )  # fmt: skip
    found = sparse_model(graph, network.changes)

    def verify(given: onnx.ModelProto | Path) -> None:
        check(given, "the sparse model", SisoptError)
        read = Graph(read_model(given), given.parent) if isinstance(given, Path) else Graph(given)
        verify_layers(graph, read, layers, network.promised, feeds[0])
        verify_model(given, model, feeds[0])

    if output is None:
        verify(found)
        return found, replace(report, model=found)
    write_model(found, Path(output), external, verify)
    return Path(output), replace(report, model=Path(output))


def _graph(model: Any) -> Graph:
    """Return the graph of a valid model."""
    if isinstance(model, onnx.ModelProto):
        if has_external(model):
            msg = "model has external data that are not loaded: give its path, or load it with onnx.load(path)"
            raise InvalidInputError(msg)
        if constant_bytes(model) > MOST_BYTES:
            msg = "model is too large for onnx's checker: save it with external data and give its path"
            raise InvalidInputError(msg)
        check(model, "model")
        return Graph(model)
    if not isinstance(model, str | PathLike):
        msg = f"model must be an onnx.ModelProto or a path, got {type(model).__name__}"
        raise InvalidInputError(msg)
    path = Path(model)
    read = read_model(path)
    check(path, f"model {path}")
    return Graph(read, path.parent)
