"""Partitions of the weights into groups, by name, by labels or by indices."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np

from ..errors import InvalidInputError
from .structure import Labels

NAMES = ("columns", "rows", "filters", "kernels", "channels", "blocks")
KERNEL_NAMES = ("kernels", "channels")  # those that need a kernel size


def checked_groups(groups: Any) -> Any:
    """Return the name of a partition, a read-only copy of an array of labels, or a tuple of arrays of indices."""
    wanted = (
        f"groups must be one of {', '.join(map(repr, NAMES))}, an integer array of labels of weight's shape, or a "
        "sequence of index arrays into the row-major flattened weight"
    )
    if isinstance(groups, str):
        if groups not in NAMES:
            msg = f"{wanted}, got {groups!r}"
            raise InvalidInputError(msg)
        return "rows" if groups == "filters" else groups
    if isinstance(groups, np.ndarray) and groups.dtype != object:
        if groups.ndim != 2 or groups.dtype.kind not in "iu":
            msg = f"{wanted}; got an array of dtype {groups.dtype} and shape {groups.shape}"
            raise InvalidInputError(msg)
        if groups.size and groups.min() < 0:
            msg = f"groups must give every weight a label of at least 0, got {groups.min()}; a single weight may be one"
            raise InvalidInputError(msg)
        return _frozen(groups)
    try:
        parts = tuple(np.array(part) for part in groups)
    except (TypeError, ValueError):
        msg = f"{wanted}, got {type(groups).__name__}"
        raise InvalidInputError(msg) from None
    for position, part in enumerate(parts):
        if part.ndim != 1 or part.dtype.kind not in "iu" or part.size == 0:
            msg = f"{wanted}; group {position} has dtype {part.dtype} and shape {part.shape}"
            raise InvalidInputError(msg)
    return tuple(map(_frozen, parts))


def checked_sizes(name: str, groups: Any, users: tuple[str, ...], value: Any) -> tuple[int, ...] | None:
    """Return a tuple of positive integers where ``groups`` is one of the names that use it, else None."""
    used = isinstance(groups, str) and groups in users
    if value is None and not used:
        return None
    if not used:
        msg = f"{name} goes with groups={' or '.join(map(repr, users))}; leave it out"
        raise InvalidInputError(msg)
    try:
        sizes = tuple(operator.index(size) for size in value)
    except TypeError:
        sizes = ()
    if not sizes or min(sizes) < 1 or (name == "block" and len(sizes) != 2):
        example = "the (rows, columns) of a block" if name == "block" else "that of the convolution, such as (3, 3)"
        msg = f"{name} must be a tuple of positive integers, {example}, for groups={groups!r}, got {value!r}"
        raise InvalidInputError(msg)
    return sizes


def partition(
    groups: Any, kernel_size: tuple[int, ...] | None, block: tuple[int, ...] | None, shape: tuple[int, int]
) -> tuple[Labels, int]:
    """Return the group of every weight, (n_out, n_in), numbered from 0, and the number of groups.

    Raises
    ------
    InvalidInputError
        If the groups do not fit the shape, overlap or leave a weight out.
    """
    n_out, n_in = shape
    rows, columns = np.arange(n_out, dtype=np.intp)[:, None], np.arange(n_in, dtype=np.intp)[None]
    if isinstance(groups, np.ndarray):
        if groups.shape != shape:
            msg = f"groups of shape {groups.shape} must have weight's shape {shape}"
            raise InvalidInputError(msg)
        names, labels = np.unique(groups, return_inverse=True)
        return labels.reshape(shape).astype(np.intp, copy=False), names.size
    if isinstance(groups, tuple):
        return _from_indices(groups, shape), len(groups)
    if groups == "columns":
        labels, count = columns, n_in
    elif groups == "rows":
        labels, count = rows, n_out
    elif groups == "blocks":
        assert block is not None
        across = -(-n_in // block[1])
        labels, count = rows // block[0] * across + columns // block[1], -(-n_out // block[0]) * across
    else:
        assert kernel_size is not None
        length = math.prod(kernel_size)
        if n_in % length:
            msg = (
                f"kernel_size {kernel_size} holds {length} weights, which does not divide weight's {n_in} columns; "
                "give that of the convolution"
            )
            raise InvalidInputError(msg)
        n_channels = n_in // length
        channels = columns // length
        if groups == "channels":
            labels, count = channels, n_channels
        else:
            labels, count = rows * n_channels + channels, n_out * n_channels
    return np.array(np.broadcast_to(labels, shape)), count


def _from_indices(groups: tuple[Labels, ...], shape: tuple[int, int]) -> Labels:
    size = math.prod(shape)
    for position, part in enumerate(groups):
        outside = part[(part < 0) | (part >= size)]
        if outside.size:
            msg = f"groups must hold indices of weight's {size} entries, 0 to {size - 1}; "
            msg += f"group {position} holds {outside[0]}"
            raise InvalidInputError(msg)
    members = np.concatenate(groups) if groups else np.empty(0, np.intp)
    counts = np.bincount(members, minlength=size)
    wrong = np.flatnonzero(counts != 1)
    if wrong.size:
        first = int(wrong[0])
        found = "no group" if counts[first] == 0 else f"{counts[first]} places"
        msg = (
            f"groups must hold each of weight's {size} entries once, but weight {first} (row {first // shape[1]}, "
            f"column {first % shape[1]}) is in {found}"
        )
        raise InvalidInputError(msg)
    labels = np.empty(size, np.intp)
    for label, part in enumerate(groups):
        labels[part] = label
    return labels.reshape(shape)


def couples_rows(labels: Labels, n_groups: int) -> bool:
    """Return whether some group holds weights of several rows."""
    rows = np.broadcast_to(np.arange(labels.shape[0], dtype=np.intp)[:, None], labels.shape)
    last = np.zeros(n_groups, np.intp)
    last[labels] = rows
    return bool((last[labels] != rows).any())


def _frozen(array: np.ndarray[Any, Any]) -> Labels:
    copy = array.astype(np.intp)
    copy.flags.writeable = False
    return copy
