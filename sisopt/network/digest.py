"""What tells weights, data and functions apart: a hash of everything in them that has a value of its own.

It is the same in every process, whatever the addresses and the order of sets are. A function is its code and what it
has caught or is bound to, not the global names that it looks up.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, ItemsView, Mapping, Set, ValuesView
from dataclasses import is_dataclass
from functools import partial
from os import PathLike, fspath
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np

Plain = Callable[[Any], Any]  # a framework's tensors as what is known here; anything else as it is

DEEP = 100  # objects within objects that are gone into, in data

_CONTAINERS = (np.ndarray, Mapping, list, tuple, Set, ValuesView, ItemsView, deque)


def digest(value: Any, plain: Plain = lambda value: value) -> str:
    """Return the hash of arrays, numbers and text, nested in any way, as attributes of objects too."""
    return _Digest(plain, DEEP).of(value)


def digest_of_call(function: Any, plain: Plain = lambda value: value) -> str:
    """Return the hash of a function, or of an object that is called like one.

    Of the objects that it has caught the attributes count; of objects that these hold, dataclasses aside, no more than
    the types: caches and counters are kept there.
    """
    return _Digest(plain, 1).of(function)


class _Digest:
    """A hash in the making; ``depth`` objects within objects are gone into."""

    def __init__(self, plain: Plain, depth: int) -> None:
        self._plain, self._depth = plain, depth
        self._found = hashlib.sha256()
        self._objects: dict[int, tuple[int, Any]] = {}  # seen, by id: they stay, else ids return

    def of(self, value: Any, above: tuple[int, ...] = (), depth: int = 0) -> str:
        self._add(value, above, depth)
        return self._found.hexdigest()

    def _add(self, value: Any, above: tuple[int, ...], depth: int) -> None:
        """Add a value; ``above`` are the ids of what it is a part of, ``depth`` of these are objects."""
        value = self._plain(value)
        if isinstance(value, np.ndarray) and not value.dtype.hasobject:
            self._note(f"{value.dtype} {value.shape}")
            self._found.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
        elif isinstance(value, bytes):
            self._note(f"bytes {len(value)}")
            self._found.update(value)
        elif value is None or isinstance(value, bool | int | float | complex | str | np.generic):
            self._note(repr(value))
        elif isinstance(value, PathLike):
            self._add(fspath(value), above, depth)
        elif id(value) in above:
            self._note("above")
        elif isinstance(value, _CONTAINERS):
            parts = _entries(value)
            if isinstance(value, Set):
                parts = sorted(_Digest(self._plain, self._depth).of(each, (*above, id(value)), depth) for each in parts)
            self._note(f"{'mapping' if isinstance(value, Mapping) else 'list'} {len(parts)}")
            for each in parts:
                self._add(each, (*above, id(value)), depth)
        else:
            self._note(f"{type(value).__module__}.{type(value).__qualname__}")
            self._add_object(value, above, depth)

    def _add_object(self, value: Any, above: tuple[int, ...], depth: int) -> None:
        function = _parts_of_function(value)
        if function is not None:
            self._add(function, (*above, id(value)), depth)
        elif id(value) in self._objects:
            self._note(f"again {self._objects[id(value)][0]}")
        elif depth < self._depth or is_dataclass(value):
            self._objects[id(value)] = len(self._objects), value
            self._add(_parts(value), (*above, id(value)), depth + 1)

    def _note(self, text: str) -> None:
        self._found.update(f"{text}\n".encode())


def _entries(value: Any) -> list[Any]:
    """Return what a container holds; keys of a mapping come with their values."""
    if isinstance(value, np.ndarray):
        return [value.shape, value.tolist()]
    return [(key, value[key]) for key in value] if isinstance(value, Mapping) else list(value)


def _parts_of_function(value: Any) -> tuple[Any, ...] | None:
    """Return what a function is made of, None for what is no function, class, module or code."""
    if isinstance(value, type | ModuleType | BuiltinFunctionType):
        return getattr(value, "__module__", None), getattr(value, "__qualname__", value.__name__)
    if isinstance(value, CodeType):
        return value.co_code, value.co_names, value.co_consts
    if isinstance(value, FunctionType):
        caught = [cell.cell_contents for cell in value.__closure__ or () if _is_full(cell)]
        return value.__qualname__, value.__code__, value.__defaults__, value.__kwdefaults__, caught
    if isinstance(value, MethodType):
        return value.__func__, value.__self__
    return (value.func, value.args, value.keywords) if isinstance(value, partial) else None


def _parts(value: Any) -> Any:
    """Return what an object holds: as an array, in attributes, or what it is made anew from."""
    if hasattr(value, "__array__") or hasattr(value, "__array_interface__"):
        return np.asarray(value)
    names = [name for cls in type(value).__mro__ for name in _slots(cls) if hasattr(value, name)]
    held = {**getattr(value, "__dict__", {}), **{name: getattr(value, name) for name in names}}
    if held:
        return held
    try:
        return value.__reduce_ex__(2)
    except Exception:  # it cannot be told: its type has to do
        return None


def _slots(cls: type) -> list[str]:
    found = cls.__dict__.get("__slots__", ())
    names = (found,) if isinstance(found, str) else found
    hidden = f"_{cls.__name__.lstrip('_')}"
    return [f"{hidden}{name}" if name.startswith("__") and not name.endswith("__") else name for name in names]


def _is_full(cell: Any) -> bool:
    """Return whether a variable that a function has caught has a value yet."""
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False
