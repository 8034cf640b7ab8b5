"""What tells weights and calibration data apart: a hash of everything in them that has a value of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def digest(value: Any) -> str:
    """Return the hash of tensors, arrays, numbers and text, nested in any way, as attributes of objects too."""
    found = hashlib.sha256()
    _add(found, value)
    return found.hexdigest()


def _add(found: Any, value: Any, above: tuple[int, ...] = ()) -> None:
    """Add a value; ``above`` are the ids of the objects that it is an attribute of."""
    if isinstance(value, torch.Tensor) and value.layout != torch.strided:
        _add(found, ("sparse", value.to_dense()))
    elif isinstance(value, torch.Tensor):
        found.update(f"{value.dtype} {tuple(value.shape)}\n".encode())
        found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    elif isinstance(value, np.ndarray) and not value.dtype.hasobject:
        found.update(f"{value.dtype} {value.shape}\n".encode())
        found.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8))
    elif isinstance(value, Mapping):
        found.update(f"mapping {len(value)}\n".encode())
        for key in value:
            _add(found, (key, value[key]), above)
    elif isinstance(value, list | tuple):
        found.update(f"list {len(value)}\n".encode())
        for each in value:
            _add(found, each, above)
    elif value is None or isinstance(value, bool | int | float | complex | str | bytes | np.generic):
        found.update(f"{value!r}\n".encode())
    else:
        found.update(f"{type(value).__qualname__}\n".encode())
        if id(value) not in above:
            _add(found, getattr(value, "__dict__", None), (*above, id(value)))
