"""Whether the finished model does what was promised: run by onnxruntime, on a calibration batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from ...errors import SisoptError
from .graph import Array, Changes, Graph
from .network import Part
from .passes import Passes
from .planning import Layer
from .sessions import QUIET

MOST = 256  # positions of a layer that are looked at
ROUNDING = 2.0**8  # roundings of all that is added up in a pre-activation, at most


def verify_layers(
    dense: Graph,
    sparse: Graph,
    layers: Sequence[Layer],
    promised: Mapping[int, Sequence[Part]],
    feed: Mapping[str, Array],
) -> None:
    """Check that the pre-activations in a sparse model are those of the matrices that were found.

    Raises
    ------
    SisoptError
        If a layer's are others: what was written is not what was found.
    """
    places = []
    for number in promised:
        site, followed = layers[number].site, layers[number].followed
        assert followed is not None
        first = dense.nodes[site.calls[0]]
        at = sparse.producer[first.output[0]]
        places.append((at, number, sparse.nodes[at].input[site.data], False))
        if followed.end:
            places.append((sparse.producer[followed.end] + 1, number, followed.end, True))
    passes = Passes(sparse, Changes(), [feed], [(name, at) for at, _, name, _ in places], 1 << 62, 1)
    inputs: dict[int, Array] = {}
    for at, number, name, is_end in sorted(places, key=lambda place: place[0]):
        (values,) = passes.reach([name], at)
        if is_end:
            _check(layers[number], promised[number], inputs.pop(number), values[name])
        else:
            inputs[number] = values[name]


def verify_model(model: onnx.ModelProto | Path, feed: Mapping[str, Array]) -> None:
    """Check that a model runs as users run it, with all of onnxruntime's optimisations."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = QUIET
    given = str(model) if isinstance(model, Path) else model.SerializeToString()
    try:
        session = onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])
        session.run(None, {value.name: feed[value.name] for value in session.get_inputs()})
    except Exception as error:  # its exceptions have no class in common
        msg = f"the sparse model does not run: {error}"
        raise SisoptError(msg) from error


def _check(layer: Layer, parts: Sequence[Part], inputs: Array, values: Array) -> None:
    """Compare a layer's pre-activations at some positions with what its matrices make of its inputs there."""
    kind, followed = layer.site.kind, layer.followed
    assert kind is not None and followed is not None
    call = kind.call(inputs)
    at = np.unique(np.linspace(0, max(call.n_positions - 1, 0), MOST).astype(np.int64))[: call.n_positions]
    found = followed.slope * kind.outputs(values)[at].astype(np.float64) + followed.shift
    rounding = ROUNDING * float(np.finfo(values.dtype).eps)
    start = 0
    for p, (matrix, bias) in enumerate(parts):
        rows = slice(start, start + len(matrix))
        start = rows.stop
        X, W = call.inputs(p, at).astype(np.float64), matrix.astype(np.float64)
        b = np.zeros(len(W)) if bias is None else bias.astype(np.float64)
        size = np.abs(X) @ np.abs(W).T + np.abs(b) + np.abs(followed.affine.offset[rows])
        off = np.abs(found[:, rows] - (X @ W.T + b)) > rounding * size + 1e-30
        if off.any():
            msg = (
                f"layer {layer.info.name!r}: {off.mean():.1%} of the pre-activations in the sparse model are not those "
                "of the matrix that was found; please report this, with the model's nodes around that layer"
            )
            raise SisoptError(msg)
