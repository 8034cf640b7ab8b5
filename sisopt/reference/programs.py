"""The programs in the words of cvxpy: the penalised one, the one with budgets, and the least budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..penalties import Structure
from .engine import Engine
from .groups import Groups
from .pieces import NeuronProgram, Piece

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Posed:
    """Neurons in the words of cvxpy, their unknowns in units of ``length``.

    The squared norms of ``residuals[j]`` sum to (2 phi_j - constants[j]) / units[j]**2.
    """

    rows: Sequence[NeuronProgram]
    unknowns: list[Any]
    residuals: list[list[Any]]  # of every group
    constants: Array  # (J,)
    units: Array  # (J,)
    length: float
    constraints: list[Any]

    def write(self, weight: Array, bias: Array) -> None:
        """Write the values found to W (n_out, n_in) and, at the mean input, b (n_out,)."""
        for row, u in zip(self.rows, self.unknowns, strict=True):
            n = row.columns.size
            if u.size:
                weight[row.index, row.columns] = self.length * u.value[:n] / row.scales
            if u.size > n:
                bias[row.index] = self.length * u.value[n]


def pose(cp: Any, rows: Sequence[NeuronProgram], groups: Groups, units: Array, length: float) -> Posed:
    """Write neurons down, the residuals of group j in units of units[j] > 0, pre-activations in units of ``length``."""
    unknowns: list[Any] = []
    constraints: list[Any] = []
    residuals: list[list[Any]] = [[] for _ in units]
    constants = np.zeros(units.size)
    coupled = next((piece.shift.shape[1] for row in rows for piece in row.pieces if piece.shift is not None), 0)
    common = cp.Variable(coupled) if coupled else None
    for row in rows:
        u = cp.Variable(row.pieces[0].design.shape[1])
        unknowns.append(u)
        for batch, piece in enumerate(row.pieces):
            j = groups.of(row.index, batch)
            constants[j] += piece.constant
            residuals[j] += _residuals(cp, piece, u, common, float(units[j]), length, constraints)
    return Posed(rows, unknowns, residuals, constants, units, length, constraints)


def _residuals(
    cp: Any, piece: Piece, u: Any, common: Any, unit: float, length: float, constraints: list[Any]
) -> list[Any]:
    """Return the residuals of a piece; those with one end are slacks, whose ``constraints`` are appended."""
    found, ratio = [], length / unit
    if piece.aim.size:
        moved = 0.0 if piece.shift is None else (ratio * piece.shift) @ common
        found.append((ratio * piece.design) @ u - piece.aim / unit - moved)
    if piece.low.size:
        slack = cp.Variable(piece.low.size)
        found.append(slack)
        for sign, end in ((1.0, piece.high), (-1.0, piece.low)):
            bounded = np.isfinite(end)
            if bounded.any():
                side = (sign * ratio * piece.side[bounded]) @ u - sign * end[bounded] / unit
                if piece.side_shift is not None:
                    side = side - (sign * ratio * piece.side_shift[bounded]) @ common
                constraints.append(slack[bounded] >= side)
    return found


def _penalty(cp: Any, posed: Posed, structure: Structure) -> Any:
    """Return g of the neurons posed; weights that are not free belong to no norm."""
    terms: list[Any] = []
    members: dict[int, list[Any]] = {}
    for row, u in zip(posed.rows, posed.unknowns, strict=True):
        factors = posed.length * structure.factors[row.index, row.columns] / row.scales
        if factors.any():
            terms.append(factors @ cp.abs(u[: row.columns.size]))
        if structure.labels is not None:
            labels = structure.labels[row.index, row.columns]
            for label in np.unique(labels):
                here = np.flatnonzero(labels == label)
                members.setdefault(int(label), []).append(cp.multiply(posed.length / row.scales[here], u[here]))
    if structure.group_weights is not None:
        terms += [structure.group_weights[label] * cp.norm(cp.hstack(parts), 2) for label, parts in members.items()]
    return cp.sum(cp.hstack(terms)) if terms else cp.Constant(0.0)


def solve_penalized(engine: Engine, posed: Posed, structure: Structure, multiplier: float) -> None:
    """Minimise multiplier * g + phi; the neurons were posed as one group."""
    squares = sum(map(engine.cp.sum_squares, posed.residuals[0]))  # one by one: a slack then needs no copy of itself
    penalty = _penalty(engine.cp, posed, structure)
    # CLARABEL is at times short of its tolerance where a quadratic objective meets the cones of groups.
    as_cone = structure.labels is not None
    engine.run(multiplier / posed.units[0] ** 2 * penalty + 0.5 * squares, posed.constraints, as_cone=as_cone)


def solve_least(engine: Engine, posed: Posed) -> None:
    """Minimise the largest of sqrt(2 phi_j) / units[j]."""
    cp = engine.cp
    largest = cp.Variable()
    balls = [
        cp.norm(cp.hstack([*residuals, float(np.sqrt(constant)) / unit]), 2) <= largest
        for residuals, constant, unit in zip(posed.residuals, posed.constants, posed.units, strict=True)
        if residuals
    ]
    engine.run(largest, [*posed.constraints, *balls])


def ball_radii(groups: Groups, rows: Sequence[NeuronProgram], decided: Array) -> tuple[Array, npt.NDArray[np.bool_]]:
    """Return what is left of every budget, (J,), and where nothing is.

    ``decided`` (J,) is the loss of the neurons that are not among ``rows``. Where no more than rounding is left, the
    budget asks for the least loss there is: the radius is then the largest that counts as nothing.
    """
    squares = groups.radii**2 - 2.0 * decided
    for row in rows:
        for batch, piece in enumerate(row.pieces):
            squares[groups.of(row.index, batch)] -= piece.constant
    exact = squares <= groups.resolution**2
    return np.sqrt(np.maximum(squares, (0.5 * groups.resolution) ** 2)), exact


def solve_budgets(
    engine: Engine, posed: Posed, structure: Structure, exact: npt.NDArray[np.bool_], size: float
) -> Array:
    """Minimise g with the residuals of a group in the unit ball, or zero where ``exact``; return the duals mu, (J,).

    ``size`` brings the objective to order 1, whatever the units.
    """
    cp = engine.cp
    penalty = _penalty(cp, posed, structure)
    constraints, balls = list(posed.constraints), {}
    for j, residuals in enumerate(posed.residuals):
        if residuals and exact[j]:
            constraints += [residual == 0 for residual in residuals]
        elif residuals:
            balls[j] = cp.norm(cp.hstack(residuals), 2) <= 1.0
    engine.run(penalty / size, [*constraints, *balls.values()])
    # Loosening ball j by the factor 1 + t lowers g / size by dual t and raises 2 phi_j by 2 units**2 t, while
    # d g / d (2 phi_j) = -mu_j / 2: hence mu_j = dual size / units**2.
    duals = np.where(exact & np.array([bool(residuals) for residuals in posed.residuals]), np.inf, 0.0)
    for j, ball in balls.items():
        duals[j] = max(float(ball.dual_value), 0.0) * size / posed.units[j] ** 2
    return duals
