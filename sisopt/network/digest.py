"""What tells weights and calibration data apart: a hash of everything in them that has a value of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Plain = Callable[[Any], Any]  # a framework's tensors as what is known here; anything else as it is


def digest(value: Any, plain: Plain = lambda value: value) -> str:
    """Return the hash of arrays, numbers and text, nested in any way, as attributes of objects too."""
    found = hashlib.sha256()
    _add(found, value, plain, ())
    return found.hexdigest()


def _add(found: Any, value: Any, plain: Plain, above: tuple[int, ...]) -> None:
    """Add a value; ``above`` are the ids of the objects that it is an attribute of."""
    value = plain(value)
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        found.update(f"{value.dtype} {value.shape}\n".encode())
        found.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8))
    elif isinstance(value, np.ndarray):
        _add(found, (value.shape, value.tolist()), plain, above)
    elif isinstance(value, bytes):
        found.update(f"bytes {len(value)}\n".encode())
        found.update(value)
    elif isinstance(value, Mapping):
        found.update(f"mapping {len(value)}\n".encode())
        for key in value:
            _add(found, (key, value[key]), plain, above)
    elif isinstance(value, list | tuple):
        found.update(f"list {len(value)}\n".encode())
        for each in value:
            _add(found, each, plain, above)
    elif value is None or isinstance(value, bool | int | float | complex | str | np.generic):
        found.update(f"{value!r}\n".encode())
    else:
        found.update(f"{type(value).__qualname__}\n".encode())
        if id(value) not in above:
            _add(found, getattr(value, "__dict__", None), plain, (*above, id(value)))
