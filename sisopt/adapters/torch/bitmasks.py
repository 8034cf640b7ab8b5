"""The mask form of an array: a bit for every entry that is not zero, and the entries that are not, compressed."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]

# Bytes of weights look random: some are frequent, and runs are all that repeats. Masks of patterns do repeat.
_FOR_VALUES = (zlib.Z_HUFFMAN_ONLY, zlib.Z_RLE)
_FOR_MASKS = (*_FOR_VALUES, zlib.Z_DEFAULT_STRATEGY)


def pack(bits: npt.NDArray[Any], *, signed_zeros: bool) -> tuple[dict[str, Any], dict[str, Bytes]]:
    """Return the form of an array of unsigned integers: its numbers, and its parts by name.

    ``signed_zeros``: whether an entry of which the highest bit alone is set is a zero too.
    """
    size = bits.itemsize
    stays, signs = bits != 0, None
    if signed_zeros:
        negative = bits == 1 << (8 * size - 1)
        if negative.any():
            stays &= ~negative
            signs = negative[~stays]
    columns = bits[stays].view(np.uint8).reshape(-1, size)
    planes = [_deflated(np.ascontiguousarray(plane), _FOR_VALUES) for plane in columns.T]
    parts = {"mask": _deflated(np.packbits(stays), _FOR_MASKS), "values": np.concatenate(planes)}
    if signs is not None:
        parts["signs"] = _deflated(np.packbits(signs), _FOR_MASKS)
    return {"kept": len(columns), "planes": [len(plane) for plane in planes], "signs": signs is not None}, parts


def unpack(n: int, size: int, kept: int, planes: list[int], parts: dict[str, Bytes]) -> Bytes:
    """Return the bytes of the array of n entries, ``size`` bytes each, that was packed.

    Raises
    ------
    ValueError, TypeError, LookupError, OverflowError, zlib.error
        If the parts are not those of such an array: no more is unpacked than it asks for.
    """
    stays = _flags(parts["mask"], n)
    require(len(planes) == size and np.count_nonzero(stays) == kept and len(parts["values"]) == sum(planes))
    streams = np.split(parts["values"], np.cumsum(planes)[:-1])
    columns = np.stack([_inflated(stream, kept) for stream in streams], axis=1)
    bits = np.zeros(n, f"<u{size}")
    bits[stays] = columns.reshape(-1).view(bits.dtype)
    if "signs" in parts:
        bits[~stays] = _flags(parts["signs"], n - kept).astype(bits.dtype) << (8 * size - 1)
    return bits.view(np.uint8)


def require(agreed: bool) -> None:
    """Raise ValueError where what a file says does not go together."""
    if not agreed:
        msg = "the parts of the file do not go together"
        raise ValueError(msg)


def _flags(data: Bytes, n: int) -> npt.NDArray[np.bool_]:
    """Return the n bits of a mask."""
    flags: npt.NDArray[np.bool_] = np.unpackbits(_inflated(data, -(-n // 8)), count=n).view(np.bool_)
    return flags


def _deflated(data: Bytes, strategies: tuple[int, ...]) -> Bytes:
    """Return the shortest of the data and its compressed forms."""
    best = data
    for strategy in strategies:
        deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS, strategy=strategy)
        packed = deflate.compress(data.data) + deflate.flush()
        if len(packed) < len(best):
            best = np.frombuffer(bytearray(packed), np.uint8)
    return best


def _inflated(data: Bytes, size: int) -> Bytes:
    """Return what `_deflated` was given, of a known size."""
    if len(data) >= size:
        found = data
    else:
        inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        found = np.frombuffer(inflate.decompress(data.tobytes(), size + 1), np.uint8)
        require(inflate.eof and not inflate.unused_data)
    require(len(found) == size)
    return found
