"""Sparse weights in small files: safetensors that hold, of every tensor with zeros, where its values are and which.

The header's metadata has one entry, ``sisopt sparse tensors`` (several would come in an order that changes): a JSON
object with ``version``, ``tensors`` and ``sha256``, the hash of ``tensors`` and of all data. ``tensors`` has an object
for every name of the state dict, in its order, of one of three kinds:

- ``name``, ``same_as``: the same memory as another tensor, stored under that name alone;
- ``name``, ``dtype``, ``shape``: as it is, under the key ``dense:<name>``;
- with ``kept``, ``planes`` and ``signs`` besides: ``mask:<name>`` has a bit for every entry in C order, the first in
  the highest bit of a byte, 1 where the entry is not zero; ``values:<name>`` has the ``kept`` entries that are not,
  first bytes first (little endian), then second ones, and so on: ``planes`` are the lengths of these parts. Where
  ``signs`` is true, ``signs:<name>`` has a bit for every zero, 1 where it is a negative one, as products with a mask
  leave them.

Masks and parts that are shorter than what they stand for are raw DEFLATE streams (RFC 1951).
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...errors import InvalidInputError, UnsupportedError
from ...network.atomic_files import file_to_write, replace_files
from .bitmasks import pack, require, unpack

FORMAT, VERSION = "sisopt sparse tensors", 1

_FLOATS = "float64 float32 float16 bfloat16 float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz complex64"
_OTHERS = "int64 int32 int16 int8 uint64 uint32 uint16 uint8 bool"
_DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in f"{_FLOATS} {_OTHERS}".split()}
_SIGNED_ZEROS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_ENTRY_BYTES = 150  # that the mask form takes more of the header
# What the reading of a file raises whose parts do not go together.
_DAMAGED = (AttributeError, LookupError, OverflowError, RecursionError, TypeError, ValueError, zlib.error)


def save_sparse(path: str | PathLike[str], model: nn.Module | Mapping[str, torch.Tensor]) -> int:
    """Write a state dict to a file in which zeros take nearly no room; every bit comes back.

    The file is in the safetensors format and appears whole or not at all, in place of an older one of its name. A
    tensor with zeros is stored as a bit mask and the values that are left, compressed without loss, where that is
    smaller; any other as it is. Names that share one tensor, as tied weights do, share it in the file too.

    Parameters
    ----------
    path : path
    model : torch.nn.Module or mapping of str to torch.Tensor
        A model, whose ``state_dict()`` is written, or a state dict: dense tensors of floating point, complex64,
        integers or bool.

    Returns
    -------
    int
        Size of the file, in bytes.

    Raises
    ------
    InvalidInputError
        If the folder does not exist, or a value is not a tensor with numbers in memory; nothing was written.
    UnsupportedError
        If a tensor is sparse already or of another dtype; nothing was written.
    OSError
        If the system refuses; an older file is intact.

    Examples
    --------
    >>> import tempfile, torch
    >>> from sisopt.adapters.torch import load_sparse, save_sparse
    >>> _ = torch.manual_seed(0)
    >>> weight = torch.randn(200, 100) * (torch.rand(200, 100) < 0.1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     size = save_sparse(f"{folder}/weight.safetensors", {"weight": weight})
    ...     same = torch.equal(load_sparse(f"{folder}/weight.safetensors")["weight"], weight)
    >>> same, 7 * size < weight.nbytes
    (True, True)
    """
    target = file_to_write(path)
    tensors = model.state_dict() if isinstance(model, nn.Module) else model
    if not isinstance(tensors, Mapping):
        msg = f"model must be a torch.nn.Module or a state dict, got {type(model).__name__}"
        raise InvalidInputError(msg)
    entries: list[dict[str, Any]] = []
    parts: dict[str, torch.Tensor] = {}
    first: dict[Any, str] = {}  # name by memory
    for name, tensor in tensors.items():
        _check(name, tensor)
        view = (tensor.shape, tensor.stride(), tensor.is_conj(), tensor.is_neg())
        place = (tensor.data_ptr(), tensor.device, tensor.dtype, *view)
        if tensor.numel() and place in first:
            entries.append({"name": name, "same_as": first[place]})
            continue
        first[place] = name
        dense = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
        entry = {"name": name, "dtype": str(dense.dtype).removeprefix("torch."), "shape": list(dense.shape)}
        bits = dense.reshape(-1).view(torch.uint8).numpy().view(f"<u{dense.element_size()}")
        extra, packed = pack(bits, signed_zeros=dense.dtype in _SIGNED_ZEROS)
        if sum(part.nbytes for part in packed.values()) + _ENTRY_BYTES < dense.nbytes:
            entries.append(entry | extra)
            parts |= {f"{part}:{name}": torch.from_numpy(data) for part, data in packed.items()}
        else:
            entries.append(entry)
            parts[f"dense:{name}"] = dense.clone()  # it may share memory with others
    described = {"version": VERSION, "sha256": _hash(entries, parts), "tensors": entries}
    data: bytes = _safetensors().save(parts, {FORMAT: json.dumps(described)})
    replace_files(target.parent, {target.name: data})
    return len(data)


def load_sparse(path: str | PathLike[str]) -> dict[str, torch.Tensor]:
    """Read a state dict that `save_sparse` wrote, to the bit; nothing in the file is executed.

    Parameters
    ----------
    path : path

    Returns
    -------
    dict of str to torch.Tensor
        Dense tensors on the CPU, in the order in which they were written: for ``model.load_state_dict``. Names that
        shared a tensor do so again.

    Raises
    ------
    InvalidInputError
        If the file is damaged, or was not written by `save_sparse`.
    UnsupportedError
        If it is of another version of the format.
    OSError
        If it cannot be read.

    Examples
    --------
    >>> import tempfile, torch
    >>> from sisopt.adapters.torch import load_sparse, save_sparse
    >>> model = torch.nn.Linear(10, 4)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = save_sparse(f"{folder}/model.safetensors", model)
    ...     tensors = load_sparse(f"{folder}/model.safetensors")
    >>> torch.nn.Linear(10, 4).load_state_dict(tensors)
    <All keys matched successfully>
    """
    _safetensors()
    from safetensors import SafetensorError, safe_open  # noqa: PLC0415  an extra

    with Path(path).open("rb"):  # the system's own error where there is nothing to read
        pass
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            parts = {key: file.get_tensor(key) for key in file.keys()}
        if FORMAT in metadata:
            described = json.loads(metadata[FORMAT])
            version, entries = described["version"], described["tensors"]
            if version == VERSION:
                require(described["sha256"] == _hash(entries, parts))
                return _unpacked(entries, parts)
    except (*_DAMAGED, SafetensorError) as error:
        msg = f"{path} is damaged or no safetensors file: restore it, or write it again with save_sparse"
        raise InvalidInputError(msg) from error
    if FORMAT in metadata:
        msg = f"{path} is of version {version} of the format, this sisopt reads {VERSION}"
        raise UnsupportedError(msg)
    msg = f"{path} was not written by save_sparse: safetensors.torch.load_file may read it"
    raise InvalidInputError(msg)


def _check(name: Any, tensor: Any) -> None:
    """Raise where a state dict holds what cannot be written."""
    if not isinstance(name, str):
        msg = f"names in a state dict must be str, got {name!r}"
        raise InvalidInputError(msg)
    if not isinstance(tensor, torch.Tensor):
        msg = f"{name!r} must be a tensor, got {type(tensor).__name__}: leave it out of the state dict"
        raise InvalidInputError(msg)
    if type(tensor) not in (torch.Tensor, nn.Parameter) or tensor.layout != torch.strided:
        found = f"layout {tensor.layout}" if tensor.layout != torch.strided else f"type {type(tensor).__name__}"
        msg = f"{name!r} must be a dense tensor, got {found}: save the model before its layers change their layout"
        raise UnsupportedError(msg)
    if tensor.is_meta:
        msg = f"{name!r} is on the meta device and has no values: load the weights first"
        raise InvalidInputError(msg)
    if tensor.dtype not in _DTYPES.values():
        msg = f"{name!r} is of dtype {tensor.dtype}; these can be written: {', '.join(_DTYPES)}"
        raise UnsupportedError(msg)


def _unpacked(entries: Any, parts: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the state dict; ValueError and its like where entries and parts do not go together."""
    found: dict[str, torch.Tensor] = {}
    used: set[str] = set()
    for entry in entries:
        name = entry["name"]
        if "same_as" in entry:
            found[name] = found[entry["same_as"]]
            continue
        shape, dtype = tuple(entry["shape"]), _DTYPES[entry["dtype"]]
        require(all(type(size) is int and size >= 0 for size in shape))
        if "planes" in entry:
            keys = {part: f"{part}:{name}" for part in ("mask", "values", *(["signs"] if entry["signs"] else []))}
            used.update(keys.values())
            data = {part: parts[key].numpy() for part, key in keys.items()}
            bits = unpack(math.prod(shape), dtype.itemsize, entry["kept"], entry["planes"], data)
            found[name] = torch.from_numpy(bits).view(dtype).reshape(shape)
        else:
            used.add(f"dense:{name}")
            found[name] = parts[f"dense:{name}"]
            require(found[name].shape == shape and found[name].dtype == dtype)
    require(len(found) == len(entries) and used == set(parts))
    return found


def _hash(entries: Any, parts: Mapping[str, torch.Tensor]) -> str:
    """Return the hash of what a file says about its tensors and of their data."""
    found = hashlib.sha256(json.dumps(entries).encode())
    for key in sorted(parts):
        found.update(parts[key].reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _safetensors() -> Any:
    """Return the module that writes the container, an extra."""
    try:
        import safetensors.torch  # noqa: PLC0415  an extra
    except ImportError as error:
        msg = 'sparse files need safetensors: pip install "sisopt[torch]"'
        raise ModuleNotFoundError(msg) from error
    return safetensors.torch
