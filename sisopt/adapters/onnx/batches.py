"""Calibration batches as onnxruntime takes them: arrays by the names of the model's inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx

from ...errors import InvalidInputError
from ...network.samples import listed
from .graph import Array, Graph


def feeds_of(graph: Graph, batches: Iterable[Any]) -> list[dict[str, Array]]:
    """Return batches as mappings from inputs to arrays of their types."""
    return [_feed(graph, number, batch) for number, batch in enumerate(listed(batches))]


def _feed(graph: Graph, number: int, batch: Any) -> dict[str, Array]:
    """Return a batch, by the names of the inputs."""
    names = [value.name for value in graph.inputs]
    if isinstance(batch, Mapping):
        found = dict(batch)
    elif isinstance(batch, list | tuple):
        if len(batch) > len(names):
            msg = (
                f"batch {number} has {len(batch)} entries for {len(names)} inputs; a tuple or list holds one per input"
            )
            raise InvalidInputError(msg)
        found = dict(zip(names, batch, strict=False))
    else:
        found = {names[0]: batch} if names else {}
    missing = [name for name in names if name not in found]
    unknown = [name for name in found if name not in names]
    if missing or unknown or (not isinstance(batch, Mapping | list | tuple) and len(names) != 1):
        what = "".join(f", without {name!r}" for name in missing) + "".join(f", with {name!r}" for name in unknown)
        msg = (
            f"batch {number} must have the model's inputs {', '.join(map(repr, names)) or '(none)'}; it comes{what[1:]}"
        )
        raise InvalidInputError(msg)
    return {value.name: _array(number, value, found[value.name]) for value in graph.inputs}


def _array(number: int, value: onnx.ValueInfoProto, given: Any) -> Array:
    """Return an input of a batch in the type that the model wants, where nothing but precision is lost."""
    array = np.asarray(given)
    kind = value.type.tensor_type.elem_type
    if not kind:  # no tensor, or one of unknown type
        return array
    wanted = onnx.helper.tensor_dtype_to_np_dtype(kind)
    if array.dtype != wanted and not np.can_cast(array.dtype, wanted, "same_kind"):
        msg = f"input {value.name!r} of batch {number} must be {wanted}, got {array.dtype}"
        raise InvalidInputError(msg)
    if not _in_range(array, wanted):
        msg = f"input {value.name!r} of batch {number} must be {wanted}, got values from {array.min()} to {array.max()}"
        raise InvalidInputError(msg)
    shape = value.type.tensor_type.shape.dim
    sizes = [size.dim_value if size.dim_value > 0 else size.dim_param or "any" for size in shape]  # -1: open, too
    fits = len(sizes) == array.ndim and all(
        isinstance(s, str) or s == n for s, n in zip(sizes, array.shape, strict=True)
    )
    if value.type.tensor_type.HasField("shape") and not fits:
        msg = f"input {value.name!r} of batch {number} must be ({', '.join(map(str, sizes))}), got {array.shape}"
        raise InvalidInputError(msg)
    return array.astype(wanted, copy=False)


def _in_range(array: Array, wanted: np.dtype[Any]) -> bool:
    """Return whether integers stay what they are in another type of integers; those beyond it would wrap around."""
    if not array.size or array.dtype.kind not in "iu" or wanted.kind not in "iu":
        return True
    limits = np.iinfo(wanted)
    return limits.min <= int(array.min()) and int(array.max()) <= limits.max
