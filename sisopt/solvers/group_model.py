"""The model step under a penalty on groups: rows on one curvature matrix, coupled where groups span them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import UnsupportedError
from ..kernels.group_descent import DIAGONAL, ROTATED, STEPWISE, group_descent
from ..penalties import Structure

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]

MAX_ROUNDS = 200
SMALL = 32  # columns up to which eigenvectors are always worth having; beyond, only while they fit twice H's memory
NULL = 1e-14  # eigenvalues below this, times their number and the largest, are rounding


class GroupModel:
    """Minimise ``sum_i [c_i'd_i + 1/2 s_i d_i'H d_i] + multiplier * g(W + D)`` over D, rows i with scales s_i.

    Groups that share rows are solved together, by block coordinate descent with exact or nearly exact minimisation of
    every group (see `sisopt.kernels.group_descent`); rows that share no group are solved apart. What depends on H and
    the penalty alone is computed once, here.

    Parameters
    ----------
    curvature : ndarray, shape (m, m)
        H, symmetric positive semidefinite; never written to.
    structure : Structure
        The penalty on weights of shape (r, m), with groups.

    Raises
    ------
    UnsupportedError
        If the penalty has no groups.
    """

    def __init__(self, curvature: Array, structure: Structure) -> None:
        if structure.labels is None or structure.group_weights is None:
            msg = "a penalty without groups is solved row by row"
            raise UnsupportedError(msg)
        self._H = np.require(curvature, np.float64, ["C", "W"])  # one type of array, one compiled kernel
        self._n_rows = structure.factors.shape[0]
        self._movable = np.isfinite(structure.factors) & (np.diagonal(self._H) > 0)
        self._dropped = np.isfinite(structure.factors) & ~self._movable
        self._component_of_row, n_components = _row_components(structure.labels, self._movable)

        # one entry a weight, sorted by component, group, row and column
        rows, columns = np.nonzero(self._movable)
        labels = structure.labels[rows, columns]
        order = np.lexsort((columns, rows, labels, self._component_of_row[rows]))
        rows, labels, self._columns = rows[order], labels[order], columns[order].astype(np.intp)
        self._factors = structure.factors[rows, self._columns]
        new_group = np.flatnonzero(np.diff(labels, prepend=-1))
        new_part = np.flatnonzero((np.diff(labels, prepend=-1) != 0) | (np.diff(rows, prepend=-1) != 0))
        self._part_entries = _pointers(new_part, rows.size)
        self._group_parts = _pointers(np.searchsorted(new_part, new_group), new_part.size)
        self._group_weights = structure.group_weights[labels[new_group]]
        components = np.arange(n_components + 1)
        self._component_groups = np.searchsorted(self._component_of_row[rows[new_group]], components).astype(np.intp)

        by_component = np.argsort(self._component_of_row, kind="stable")
        self._rows = by_component.astype(np.intp)
        self._component_rows = np.searchsorted(self._component_of_row[by_component], components).astype(np.intp)
        place = np.empty(self._n_rows, np.intp)  # of a row within its component
        place[by_component] = np.arange(self._n_rows) - self._component_rows[self._component_of_row[by_component]]
        self._part_row = place[rows[new_part]]
        self._prepare_groups()

    def _prepare_groups(self) -> None:
        """Decide how every group is minimised, and decompose H on the columns of those that want it."""
        sizes = np.diff(self._part_entries)
        n_groups = self._group_weights.size
        group_of_part = np.repeat(np.arange(n_groups), np.diff(self._group_parts))
        widest = np.zeros(n_groups, np.intp)
        np.maximum.at(widest, group_of_part, sizes)
        paying = np.zeros(n_groups, np.bool_)
        np.logical_or.at(paying, np.repeat(group_of_part, sizes), self._factors > 0)
        self._kinds = np.where(widest <= 1, DIAGONAL, np.where(paying, STEPWISE, ROTATED)).astype(np.intp)

        self._part_basis = np.full(sizes.size, -1, np.intp)
        known: dict[bytes, int] = {}
        values: list[Array] = []
        vectors: list[Array] = []
        room = 2 * self._H.size
        for g in np.flatnonzero(self._kinds == ROTATED):
            for p in range(self._group_parts[g], self._group_parts[g + 1]):
                columns = self._columns[self._part_entries[p] : self._part_entries[p + 1]]
                key = columns.tobytes()
                if key not in known:
                    if columns.size > SMALL:
                        room -= columns.size**2
                        if room < 0:
                            self._kinds[g] = STEPWISE
                            break
                    e, Q = np.linalg.eigh(self._H[np.ix_(columns, columns)])
                    e[e <= NULL * columns.size * e[-1]] = 0.0
                    known[key] = len(values)
                    values.append(e)
                    vectors.append(np.ascontiguousarray(Q).ravel())
                self._part_basis[p] = known[key]
        self._basis_values = np.cumsum([0, *map(len, values)], dtype=np.intp)
        self._basis_vectors = np.cumsum([0, *map(len, vectors)], dtype=np.intp)
        self._values = np.concatenate(values) if values else np.empty(0)
        self._vectors = np.concatenate(vectors) if vectors else np.empty(0)

    def step(
        self,
        gradient: Array,
        weight: Array,
        scale: Array,
        multiplier: float,
        accuracy: float,
        rows: Indices | None = None,
    ) -> tuple[Array, float]:
        """Return the new weights W + D, with exact zeros, and the floating-point work.

        Solves until the largest violation of a group's optimality condition, over all groups of rows that hang
        together, is at most ``accuracy`` times that at D = 0. Weights that the mask forbids stay as they are; weights
        on inputs without curvature become zero.

        Parameters
        ----------
        gradient, weight : ndarray, shape (k, m)
            C and W of the rows.
        scale : ndarray, shape (k,)
            s_i, positive.
        multiplier : float
            lambda > 0.
        accuracy : float
            Between 0 and 1.
        rows : ndarray of int, shape (k,), optional
            Which rows of the structure are given, in any order; default all. Rows that share a group come together.
        """
        if rows is None:
            rows = np.arange(self._n_rows)
        place = np.full(self._n_rows, -1, np.intp)
        place[rows] = np.arange(rows.size)
        components = np.unique(self._component_of_row[rows])
        if np.diff(self._component_rows)[components].sum() != rows.size:
            msg = "rows that share a group cannot be solved apart; give all of them"
            raise UnsupportedError(msg)
        V = np.where(self._dropped[rows], 0.0, weight)
        R, s = np.asarray(gradient, dtype=np.float64), np.asarray(scale, dtype=np.float64)
        work = 0.0
        for c in components:
            own = place[self._rows[self._component_rows[c] : self._component_rows[c + 1]]]
            Vc, Rc = V[own], R[own]
            work += group_descent(
                self._H, Rc, Vc, s[own], self._component_groups[c], self._component_groups[c + 1], self._group_parts,
                self._part_entries, self._part_row, self._columns, self._factors, self._group_weights, self._kinds,
                self._part_basis, self._basis_values, self._basis_vectors, self._values, self._vectors,
                float(multiplier), float(accuracy), MAX_ROUNDS,
            )  # fmt: skip
            V[own] = Vc
        return V, work


def _row_components(labels: Indices, movable: npt.NDArray[np.bool_]) -> tuple[Indices, int]:
    """Return the component of every row, (r,), and their number; rows that share a group are in one."""
    n_rows = labels.shape[0]
    rows = np.nonzero(movable)[0]
    n_groups = int(labels.max(initial=0)) + 1
    from scipy.sparse import coo_array  # noqa: PLC0415  slow to import, and seldom needed
    from scipy.sparse.csgraph import connected_components  # noqa: PLC0415  slow to import, and seldom needed

    edges = coo_array((np.ones(rows.size, np.int8), (rows, n_rows + labels[movable])), shape=2 * (n_rows + n_groups,))
    _, found = connected_components(edges, directed=False)
    names, components = np.unique(found[:n_rows], return_inverse=True)
    return components.astype(np.intp), names.size


def _pointers(starts: npt.NDArray[Any], end: int) -> Indices:
    return np.append(starts, end).astype(np.intp)
