"""The scales of Douglas-Rachford splitting: units of the inputs, and when and by how much its metric changes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..penalties import Structure

Array = npt.NDArray[np.float64]

LEAST_REACH = 1e-2  # of an input, relative to the largest: smaller ones are taken for that
MOST_CHANGE = 5.0  # of rho at a time
LEAST_CHANGE = 1.3  # below which rho is left alone


def column_units(structure: Structure, diagonal: Array) -> Array:
    """Return units s (n_in,) in which W s meets inputs of more even size.

    A group's norm stays a multiple of a Euclidean norm only where the group lies in one column; elsewhere s = 1.
    """
    s = np.sqrt(np.sqrt(np.maximum(diagonal / (diagonal.max(initial=0.0) or 1.0), LEAST_REACH**2)))
    if structure.labels is not None:
        assert structure.group_weights is not None
        columns = np.broadcast_to(np.arange(s.size), structure.labels.shape)
        last = np.zeros(structure.group_weights.size, np.intp)
        last[structure.labels] = columns
        if (last[structure.labels] != columns).any():
            return np.ones(s.size)
    return s


def divided(structure: Structure, units: Array) -> Structure:
    """Return the penalty of W / units; units (n_in,) are equal within a group."""
    if structure.labels is None:
        return Structure(structure.factors / units)
    assert structure.group_weights is not None
    of_group = np.ones(structure.group_weights.size)
    of_group[structure.labels] = units
    weights = structure.group_weights / of_group
    return Structure(structure.factors / units, structure.labels, weights, structure.couples_rows)


def is_balancing_step(k: int) -> bool:
    """Return whether rho is set anew after step k: at 4, 6, 8, 12, 16, ..."""
    odd = k // (k & -k)  # k without its factors 2
    return k >= 4 and odd in (1, 3)


def changes_of(offsets: Array, scales: npt.ArrayLike) -> Array:
    """Return the factors of rho that bring the norms of t - p to their scales, 1 where they are slight."""
    known = (offsets > 0) & (np.asarray(scales) > 0)
    wanted = np.divide(offsets, scales, out=np.ones_like(offsets), where=known)
    wanted = np.clip(wanted, 1.0 / MOST_CHANGE, MOST_CHANGE)
    return np.where(np.maximum(wanted, 1.0 / wanted) < LEAST_CHANGE, 1.0, wanted)
