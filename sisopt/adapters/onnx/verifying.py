"""Whether the finished model does what was promised: run by onnxruntime, on a calibration batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any

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


def verify_model(
    model: onnx.ModelProto | Path, dense: onnx.ModelProto | str | PathLike[str], feed: Mapping[str, Array]
) -> None:
    """Check that a model runs as users run it, and gives finite outputs where the dense one does.

    Raises
    ------
    SisoptError
        If it does not.
    """
    try:
        found = _outputs(model, feed)
    except Exception as error:  # onnxruntime's exceptions have no class in common
        msg = f"the sparse model does not run: {error}"
        raise SisoptError(msg) from error
    endless = [name for name, values in found.items() if not _is_finite(values)]
    if endless:
        before = _outputs(dense, feed)
        endless = [name for name in endless if _is_finite(before[name])]
    if endless:
        msg = f"the sparse model's output {endless[0]!r} holds NaN or infinite values, the dense one's does not"
        raise SisoptError(msg)


def _outputs(model: onnx.ModelProto | str | PathLike[str], feed: Mapping[str, Array]) -> dict[str, Any]:
    """Return the outputs of a model by name, run with all of onnxruntime's optimisations."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = QUIET
    given = model.SerializeToString() if isinstance(model, onnx.ModelProto) else fspath(model)
    session = onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    values = session.run(names, {value.name: feed[value.name] for value in session.get_inputs()})
    return dict(zip(names, values, strict=True))


def _is_finite(values: Any) -> bool:
    """Return whether an output holds no NaN and nothing infinite; what is no array of floats does not."""
    return not isinstance(values, np.ndarray) or values.dtype.kind != "f" or bool(np.isfinite(values).all())


def _check(layer: Layer, parts: Sequence[Part], inputs: Array, values: Array) -> None:
    """Compare a layer's pre-activations at some positions with what its matrices make of its inputs there."""
    kind, followed = layer.site.kind, layer.followed
    assert kind is not None and followed is not None
    call = kind.call(inputs)
    at = np.unique(np.linspace(0, max(call.n_positions - 1, 0), MOST).astype(np.int64))[: call.n_positions]
    found = followed.slope * kind.outputs(values)[at].astype(np.float64) + followed.shift
    # inputs and matrices are seen in float32, whatever the model computes in
    rounding = ROUNDING * float(max(np.finfo(values.dtype).eps, np.finfo(np.float32).eps))
    start = 0
    for p, (matrix, bias) in enumerate(parts):
        rows = slice(start, start + len(matrix))
        start = rows.stop
        X, W = call.inputs(p, at).astype(np.float64), matrix.astype(np.float64)
        b = np.zeros(len(W)) if bias is None else bias.astype(np.float64)
        size = np.abs(X) @ np.abs(W).T + np.abs(b) + np.abs(followed.affine.offset[rows])
        wanted = X @ W.T + b
        # tokens of padding may come as NaN: nothing is promised there
        off = np.isfinite(wanted) & ~(np.abs(found[:, rows] - wanted) <= rounding * size + 1e-30)
        if off.any():
            msg = (
                f"layer {layer.info.name!r}: {off.mean():.1%} of the pre-activations in the sparse model are not those "
                "of the matrix that was found; please report this, with the model's nodes around that layer"
            )
            raise SisoptError(msg)
