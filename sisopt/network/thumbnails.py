"""Where a layer's weights are: a small map of their density, the same size for large layers and small ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

LARGEST = 48  # rows and columns of a map, at most
FULL = 255  # what a place says in which no weight is zero

Map = npt.NDArray[np.uint8]


def thumbnail(matrices: Sequence[npt.NDArray[Any]]) -> tuple[str, ...]:
    """Return how dense the places of a layer's matrices are, as `text_of` writes it; nothing where there are none.

    The rows of a map are outputs, those of several matrices one below the other; its columns are inputs. A place is 0
    where all weights are zero, and only there.
    """
    matrices = [matrix for matrix in matrices if matrix.size]
    if not matrices:
        return ()
    n_columns = min(LARGEST, *(matrix.shape[1] for matrix in matrices))
    rows = np.concatenate([_shares(matrix, n_columns) for matrix in matrices])
    edges = _edges(len(rows), min(LARGEST, len(rows)))
    means = np.add.reduceat(rows, edges[:-1], axis=0) / np.diff(edges)[:, None]
    return text_of(np.ceil(FULL * means).astype(np.uint8))


def text_of(densities: Map) -> tuple[str, ...]:
    """Return a map as text, two hexadecimal digits a place."""
    return tuple(row.tobytes().hex() for row in np.ascontiguousarray(densities))


def map_of(text: Sequence[str]) -> Map:
    """Return the map that `text_of` wrote.

    Raises
    ------
    ValueError
        If it is something else, or too large.
    """
    rows = [np.frombuffer(bytes.fromhex(row), dtype=np.uint8) for row in text]
    widths = {len(row) for row in rows}
    if len(rows) > LARGEST or len(widths) != 1 or not 0 < max(widths) <= LARGEST:
        msg = f"a map has at most {LARGEST} rows of one length, at most {LARGEST} too"
        raise ValueError(msg)
    return np.stack(rows)


def _shares(matrix: npt.NDArray[Any], n_columns: int) -> npt.NDArray[np.float64]:
    """Return the fraction of weights that are not zero in stretches of every row, (n_rows, n_columns)."""
    edges = _edges(matrix.shape[1], n_columns)
    counts = np.add.reduceat(matrix != 0, edges[:-1], axis=1, dtype=np.int64)
    shares: npt.NDArray[np.float64] = counts / np.diff(edges)
    return shares


def _edges(size: int, n_parts: int) -> npt.NDArray[np.int64]:
    """Return where parts of about equal size begin, and the end."""
    return np.arange(n_parts + 1) * size // n_parts
