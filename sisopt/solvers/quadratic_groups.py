"""Targets that are points and weights in groups: one block coordinate descent on the Gram matrix per piece."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..certificate import penalized_row_gaps, row_sums
from ..gram_statistics import gram_statistics
from ..penalties import L1
from ..problem import LayerProblem
from ..threads import ordered_map
from .group_model import GroupModel
from .joint import pieces
from .newton import RowMemory
from .quadratic import QuadraticRows
from .rows import Limits, State

Array = npt.NDArray[np.float64]

EXACTNESS = 0.1  # of the tolerance is what a piece is solved to: searches over multipliers go straighter
MODEL_ACCURACY = 0.01


class QuadraticGroups:
    """Penalised solves in Gram space for penalties on groups of weights; the model of forward-backward is exact."""

    def __init__(self, problem: LayerProblem, state: State, n_threads: int) -> None:
        self.problem = problem
        self.state = state
        self._n_threads = n_threads
        self._statistics, work = gram_statistics(problem, n_threads)
        state.work += work
        self._scale = 1.0 + problem.fidelity
        self._pieces = pieces(problem)
        self._models: dict[int, GroupModel] = {}

    def solve(self, multiplier: float | Array, tolerances: Array, limits: Limits) -> None:
        """Bring the penalised gap of every row to its tolerance (n_out,), or stop at a limit.

        Rows that are tied share theirs. With ``multiplier`` 0 there is nothing about groups: rows are solved apart.
        """
        multipliers = np.broadcast_to(np.asarray(multiplier, dtype=np.float64), tolerances.shape)
        if not multipliers.all():
            plain = self.problem.with_mask(self.problem.mask, L1())
            QuadraticRows(plain, self.state, self._n_threads).solve(multiplier, tolerances, limits)
            return

        def part(piece: slice) -> int:
            return self._solve_piece(piece, multipliers[piece], EXACTNESS * tolerances[piece], limits)

        self.state.iterations += max(ordered_map(part, self._pieces, self._n_threads, limits.cancelled.set))

    def _solve_piece(self, piece: slice, multipliers: Array, tolerances: Array, limits: Limits) -> int:
        state, s = self.state, self._statistics
        structure = self.problem.structure.rows(piece)
        if piece.start not in self._models:
            self._models[piece.start] = GroupModel(s.gram, structure)
        W, cross = state.weight[piece], s.cross[piece]
        scale = np.full(W.shape[0], self._scale)
        memory = RowMemory()
        for iteration in range(limits.iterations + 1):
            C = self._scale * (W @ s.gram - cross)
            energy = self._scale * s.energy[piece]
            loss = 0.5 * (np.einsum("ij,ij->i", W, C - self._scale * cross) + energy)
            sums = row_sums(W, C, np.maximum(loss, 0.0), structure)
            state.put(np.arange(piece.start, piece.stop), sums)
            gaps, wanted = penalized_row_gaps(sums, multipliers), tolerances
            if structure.couples_rows:
                gaps, wanted = gaps.sum(keepdims=True), tolerances.sum(keepdims=True)
            if (gaps <= wanted).all() or not memory.see(float(gaps[gaps > wanted].sum())):
                break
            if iteration == limits.iterations or limits.out_of_time():
                break
            m = multipliers  # lambda_i g + phi_i has the minimiser of g + phi_i / lambda_i
            W[:], _ = self._models[piece.start].step(C / m[:, None], W, scale / m, 1.0, MODEL_ACCURACY)
        state.bias[piece] = s.target_mean[piece] - W @ s.input_mean
        return iteration
