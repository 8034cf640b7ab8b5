"""What JSON can hold, from what Python and numpy give."""

from __future__ import annotations

import json
import math
import numbers
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import InvalidInputError


def json_value(name: str, value: object) -> Any:
    """Return ``value`` as it comes back from JSON: dicts, lists, str, int, float, bool, None; NaN and inf as None."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return finite_or_none(float(value))
    if isinstance(value, list | tuple):
        return [json_value(name, entry) for entry in value]
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                msg = f"{name} must have keys that are strings, got {key!r}"
                raise InvalidInputError(msg)
        return {str(key): json_value(f"{name}[{key!r}]", entry) for key, entry in value.items()}
    msg = f"{name} must be what JSON can hold, got {type(value).__name__}"
    raise InvalidInputError(msg)


def json_text(tree: Any) -> str:
    """Return what `json_value` made as text, readable and the same for the same values."""
    return json.dumps(tree, indent=1, allow_nan=False) + "\n"


def finite_or_none(value: float | None) -> float | None:
    """Return a finite number as a float, everything else as None: JSON has no other."""
    try:
        return None if value is None or not math.isfinite(value) else float(value)
    except OverflowError:  # an integer beyond all floats
        return None
