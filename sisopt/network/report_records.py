"""What the record of a layer in a report must look like."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import InvalidInputError
from .json_values import finite_or_none
from .thumbnails import map_of

MOST = 1 << 63  # of what is counted; beyond it a file is damaged
ERRORS = ("output_error", "held_out_error", "relative_error", "gap")
COUNTS = ("n_weights", "n_kept", "flops")
TEXTS = ("name", "kind", "activation", "status", "note")
LATER = ("curve", "density")  # that reports of earlier versions do not have


def checked_entry(record: Mapping[str, Any], name: str) -> Any:
    """Return an entry of a layer's record, of the type that it must have; nothing for one that came later."""
    if name not in record:
        if name in LATER:
            return ()
        msg = f"{name} is missing"
        raise InvalidInputError(msg)
    value = record[name]
    good, wanted = _verdict(name, value)
    if not good:
        msg = f"{name} must be {wanted}, got {value!r:.60}"
        raise InvalidInputError(msg)
    return value


def _verdict(name: str, value: Any) -> tuple[bool, str]:
    """Return whether an entry is of its type, and what that is."""
    if name == "shape":
        return isinstance(value, list) and all(map(_is_count, value)), "a list of sizes"
    if name in COUNTS:
        return _is_count(value), "a count"
    if name == "included":
        return isinstance(value, bool), "true or false"
    if name in TEXTS:
        return _is_text(value), "text"
    if name == "curve":
        return isinstance(value, list) and all(map(_is_point, value)), "a list of pairs (sparsity, error)"
    if name == "density":
        return _is_map(value), "a list of lines of hexadecimal digits"
    return _is_size(value) or (value is None and name in ERRORS), "a number of at least 0"


def _is_count(value: object) -> bool:
    """Return whether a value is an integer of at least 0."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MOST


def _is_text(value: object) -> bool:
    """Return whether a value is text that can be written, which halves of characters cannot."""
    return isinstance(value, str) and not any("\ud800" <= each <= "\udfff" for each in value)


def _is_size(value: object) -> bool:
    """Return whether a value is a number of at least 0."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0


def _is_number(value: object) -> bool:
    """Return whether a value is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_point(value: object) -> bool:
    """Return whether a value is a pair of finite numbers."""
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(_is_number(x) and finite_or_none(x) is not None for x in value)
    )


def _is_map(value: object) -> bool:
    """Return whether a value is a thumbnail's text, or none."""
    if not isinstance(value, list) or not all(isinstance(row, str) for row in value):
        return False
    try:
        return not value or map_of(value).size > 0
    except ValueError:
        return False
