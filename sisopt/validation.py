"""Arrays in: shapes, dtypes, finiteness, and every message about them."""

from __future__ import annotations

import math
import mmap
import operator
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import InvalidInputError

PER_SAMPLE = ("inputs", "preactivations", "shift", "entry_weights", "sample_weights")
LARGEST = 1e70  # products of two squares of such numbers, summed over all samples, are still finite
_CHECK_ENTRIES = 1 << 20  # entries examined at a time, so that a check never costs a copy


def as_float_array(
    name: str, value: npt.ArrayLike, ndim: int | None, *, dtype: npt.DTypeLike | None = None
) -> npt.NDArray[Any]:
    """Return ``value`` as a read-only float32 or float64 view (a converted copy for other real dtypes).

    Raises
    ------
    InvalidInputError
        If it is not real and numeric, has another number of dimensions or a non-finite entry.
    """
    try:
        array = np.asarray(value)
    except (ValueError, RuntimeError) as error:  # tensors that record gradients raise the latter
        msg = f"{name} cannot be read as an array: {error}"
        raise InvalidInputError(msg) from None
    if array.dtype.kind not in "fiub":
        msg = f"{name} must hold real numbers, got dtype {array.dtype}"
        raise InvalidInputError(msg)
    if ndim is not None and array.ndim != ndim:
        msg = f"{name} must have {ndim} dimension{'s' if ndim != 1 else ''}, got shape {array.shape}"
        raise InvalidInputError(msg)
    if dtype is None:
        dtype = array.dtype if array.dtype in (np.float32, np.float64) else np.float64
        if array.dtype == np.float16:
            dtype = np.float32
    array = array.astype(dtype, copy=False).view(np.ndarray)
    check_finite(name, array)
    view = array.view()
    view.flags.writeable = False
    return view


def check_finite(name: str, array: npt.NDArray[Any]) -> None:
    """Raise if an entry is NaN or infinite, naming the first one; a few rows at a time."""
    for start, block in _row_blocks(array):
        finite = np.isfinite(block)
        if not finite.all():
            index = np.argwhere(~finite)[0]
            place = ", ".join(map(str, [start + index[0], *index[1:]]))
            advice = "; remove or impute such samples" if name in PER_SAMPLE else ""
            msg = f"{name} must be finite, got {block[tuple(index)]} at [{place}]{advice}"
            raise InvalidInputError(msg)


def check_size(name: str, array: npt.NDArray[Any]) -> None:
    """Raise if entries are so large that their squares overflow on the way."""
    size = largest(array)
    if not size <= LARGEST:
        msg = f"{name} must be at most {LARGEST:g} in size, got {size:g}: squares overflow, scale them down"
        raise InvalidInputError(msg)


def largest(array: npt.NDArray[Any]) -> float:
    """Return the largest absolute value, 0 of nothing, NaN where there is one; a few rows at a time."""
    ends = [(block.min(initial=0.0), block.max(initial=0.0)) for _, block in _row_blocks(array)]
    return float(np.abs(np.array(ends, dtype=np.float64)).max(initial=0.0))


def _row_blocks(array: npt.NDArray[Any]) -> Iterator[tuple[int, npt.NDArray[Any]]]:
    """Yield an array a few rows at a time, with the number of the first."""
    if array.ndim == 0:
        array = array.reshape(1)
    rows = max(1, _CHECK_ENTRIES // max(1, math.prod(array.shape[1:])))
    for start in range(0, array.shape[0], rows):
        yield start, array[start : start + rows]


def bytes_in_memory(array: npt.NDArray[Any]) -> int:
    """Return what an array takes of memory: nothing where a file backs it."""
    owner: Any = array
    while isinstance(owner, np.ndarray):
        if isinstance(owner, np.memmap):
            return 0
        owner = owner.base
    return 0 if isinstance(owner, mmap.mmap) else array.nbytes


def check_shape(name: str, array: npt.NDArray[Any], shape: tuple[int, ...], meaning: str) -> None:
    """Raise unless ``array`` has ``shape``; ``meaning`` tells where that shape comes from."""
    if array.shape != shape:
        msg = f"{name} must have shape {shape} {meaning}, got {array.shape}"
        raise InvalidInputError(msg)


def broadcast(name: str, array: npt.NDArray[Any], shape: tuple[int, ...], meaning: str) -> npt.NDArray[Any]:
    """Return ``array`` broadcast to ``shape`` (a view) or raise."""
    try:
        return np.broadcast_to(array, shape)
    except ValueError:
        msg = f"{name} must broadcast to {shape} {meaning}, got shape {array.shape}"
        raise InvalidInputError(msg) from None


def number(name: str, value: object, *, low: float = -math.inf, above: float = -math.inf) -> float:
    """Return a finite float that is at least ``low`` and greater than ``above``."""
    try:
        result = math.nan if isinstance(value, str | bytes | bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        result = math.nan
    if not (math.isfinite(result) and result >= low and result > above):
        bound = f" of at least {low:g}" if low > -math.inf else f" above {above:g}" if above > -math.inf else ""
        msg = f"{name} must be a finite number{bound}, got {value!r}"
        raise InvalidInputError(msg)
    return result


def natural_number(name: str, value: object) -> int:
    """Return an integer of at least 0."""
    try:
        result = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        result = -1
    if result < 0:
        msg = f"{name} must be an integer of at least 0, got {value!r}"
        raise InvalidInputError(msg)
    return result


def positive_integer(name: str, value: object) -> int:
    """Return an integer of at least 1."""
    try:
        result = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        result = 0
    if result < 1:
        msg = f"{name} must be an integer of at least 1, got {value!r}"
        raise InvalidInputError(msg)
    return result


def dense_layer(
    weight: npt.ArrayLike, bias: npt.ArrayLike | None, n_in: int, meaning: str
) -> tuple[npt.NDArray[Any], npt.NDArray[Any] | None]:
    """Return the checked weight (n_out, n_in) and bias (n_out,); ``meaning`` tells where n_in comes from."""
    if getattr(weight, "dtype", None) == np.float16:
        msg = "weight must be float32 or float64, got float16: convert it, solve, and round the answer back"
        raise InvalidInputError(msg)
    W = as_float_array("weight", weight, 2)
    if W.shape[0] == 0 or W.shape[1] == 0:
        msg = f"weight must have at least one output and one input, got shape {W.shape}"
        raise InvalidInputError(msg)
    if W.shape[1] != n_in:
        msg = f"weight must have shape (n_out, {n_in}) {meaning}, got {W.shape}"
        raise InvalidInputError(msg)
    if bias is None:
        return W, None
    b = as_float_array("bias", bias, 1)
    check_shape("bias", b, (W.shape[0],), "(one per output)")
    return W, b


def check_weights(name: str, array: npt.NDArray[Any]) -> None:
    """Raise unless the weights of a sum are non-negative and not all zero."""
    positive = False
    for _, block in _row_blocks(array):
        least = block.min()
        if least < 0:
            msg = f"{name} must not be negative, got an entry of {least:g}"
            raise InvalidInputError(msg)
        positive = positive or block.max() > 0
    if not positive:
        msg = f"{name} must not all be zero"
        raise InvalidInputError(msg)


def check_mask(mask: npt.ArrayLike | None, shape: tuple[int, ...]) -> npt.NDArray[np.bool_] | None:
    """Return a mask of the given shape, or None."""
    if mask is None:
        return None
    try:
        array = np.asarray(mask)
    except ValueError as error:
        msg = f"mask cannot be read as an array: {error}"
        raise InvalidInputError(msg) from None
    if array.dtype != np.bool_:
        msg = f"mask must be boolean (True where a weight may be non-zero), got dtype {array.dtype}"
        raise InvalidInputError(msg)
    check_shape("mask", array, shape, "(that of weight)")
    return array
