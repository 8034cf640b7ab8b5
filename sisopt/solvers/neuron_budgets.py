"""One budget per neuron: as many searches for a multiplier as there are neurons, run side by side.

The program of neuron i is min g(w_i) subject to sqrt(2 phi_i) <= epsilon_i. All rows are solved in the same rounds,
each at its own multiplier lambda_i = 1 / mu_i, found by a bracketed secant in logarithms and met by a last scaling of
w_i. A row rests once the gap of its own program is within its tolerance.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from ..certificate import RowSums, neuron_bound_terms
from .multiplier import EXPECTED, LEAST_LOG_RATIO, LEAST_TIGHTENING, LOOSE, SCALINGS, TIGHT, LogSecant
from .rounds import RowSolver
from .rows import Limits

Array = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

ROUNDING = 1e-9  # of a budget: how much more may be attained while it counts as kept


class NeuronSearch:
    """The searches of all neurons.

    ``radii`` are the epsilon_i, ``empty`` the radii at W = 0 and the best b, ``largest`` the multipliers from which on
    w_i = 0 is optimal, all (n_out,). ``weight``, ``bias`` and ``duals`` are the best known for every row,
    ``dual_weight`` the weights that gave the best bounds.
    """

    def __init__(self, solver: RowSolver, radii: Array, empty: Array, largest: Array, duals: Array | None) -> None:
        self.solver = solver
        state = solver.state
        self._radii, self._empty, self._largest = radii, empty, largest
        self._idle = (radii >= empty) | (largest == 0.0)  # w_i = 0 is optimal
        n = radii.size
        self._best_value = np.where(self._idle, 0.0, np.inf)
        self._bounds, self._tighten = np.zeros(n), np.full(n, TIGHT)
        self._distance = np.ones(n)
        relative = np.divide(radii, empty, out=np.ones(n), where=empty > 0)
        guess = largest * np.maximum(np.maximum(relative**3, 0.2 * relative**2), 1e-8)
        if duals is not None:
            known = np.divide(1.0, duals, out=np.full(n, np.inf), where=duals > 0)
            guess = np.where(known < largest, known, guess)
        self._multipliers = np.where(self._idle, np.maximum(largest, 1.0), np.maximum(guess, 1e-300))
        self._searches = [LogSecant(slope=0.7, high=math.log(top) if top > 0 else math.inf) for top in largest.tolist()]
        self.weight = np.where(self._idle[:, None], 0.0, state.weight)
        state.weight[self._idle] = 0.0
        self.dual_weight = self.weight.copy()
        self.bias = state.bias.copy()
        self._best_multipliers = self._multipliers.copy()
        self._stuck = np.zeros(n, np.bool_)

    @property
    def iterations(self) -> int:
        """Steps of the slowest row."""
        return self.solver.state.iterations

    @property
    def work(self) -> float:
        """Floating-point work over samples."""
        return self.solver.state.work

    @property
    def duals(self) -> Array:
        """mu_i = 1 / lambda_i, (n_out,); 0 for rows that need no weights."""
        return np.where(self._idle, 0.0, 1.0 / self._best_multipliers)

    def advance(self, limits: Limits, tol: float) -> bool:
        """Do one round; return whether there is more to do."""
        state = self.solver.state
        share = np.where(np.isfinite(self._best_value), self._best_value, state.value)
        goal = 0.5 * tol * (share + share.mean())  # what the rows' gaps may be, in units of g
        live = ~(self._idle | self._stuck | (self._best_value - self._bounds <= goal))
        if not live.any():
            return False
        m, size = self._multipliers, state.value
        objective = m * np.where(size > 0, size, state.loss / m)
        needed = self._tighten * np.maximum(m * goal, 1e-3 * tol * objective)
        needed = np.minimum(needed, LOOSE * objective)
        loose = 0.1 * np.minimum(EXPECTED * self._distance, 1.0) ** 2 * self._radii**2
        steps = state.iterations
        self.solver.solve(m, np.where(live, np.maximum(needed, loose), np.inf), limits)
        sums = state.sums()
        self._note(sums, live)
        bearable = m * np.maximum(goal, 0.0)
        excess = np.log(np.maximum(sums.radius_rows, 1e-300) / self._aim(bearable))
        self._scale(sums, live, bearable, limits)
        self._propose(live & (self._best_value - self._bounds > goal), excess, state.iterations == steps)
        return True

    def _aim(self, bearable: Array) -> Array:
        """Return radii inside the budgets by what the gaps can bear; dg_i/d(epsilon_i**2 / 2) = -1 / lambda_i."""
        return self._radii * (1.0 - np.minimum(0.1 * bearable / self._radii**2, 0.02))

    def _note(self, sums: RowSums, live: Flags) -> None:
        """Keep better bounds and better weights inside the budgets."""
        state = self.solver.state
        bounds = neuron_bound_terms(sums, sums.loss, np.ones(sums.loss.size), self._radii)
        higher = bounds > self._bounds
        self._bounds[higher], self.dual_weight[higher] = bounds[higher], state.weight[higher]
        inside: Flags = sums.radius_rows <= self._radii * (1.0 + ROUNDING)
        better = live & inside & (sums.value < self._best_value)
        self._best_value[better] = sums.value[better]
        self.weight[better], self.bias[better] = state.weight[better], state.bias[better]
        self._best_multipliers[better] = self._multipliers[better]

    def _scale(self, sums: RowSums, live: Flags, bearable: Array, limits: Limits) -> None:
        """Scale rows onto their budgets where that is expected to cost less than is bearable."""
        state = self.solver.state
        for _ in range(SCALINGS):
            wanted, movable = 0.5 * self._aim(bearable) ** 2 - sums.loss, live & (sums.slope < 0)
            t = np.divide(wanted, sums.slope, out=np.zeros(wanted.size), where=movable)
            cheap: Flags = (t * t * self._empty**2 <= bearable) & (np.abs(t) > ROUNDING)
            chosen = movable & cheap
            if not chosen.any() or limits.out_of_time():
                return
            state.weight[chosen] *= 1.0 + t[chosen, None]
            self.solver.solve(self._multipliers, np.full(t.size, np.inf), limits)
            sums = state.sums()
            self._note(sums, chosen)
            live = chosen & (self._best_value - self._bounds > bearable / self._multipliers)

    def _propose(self, live: Flags, excess: Array, idle: bool) -> None:
        for i in np.flatnonzero(live).tolist():
            search, x = self._searches[i], math.log(self._multipliers[i])
            proposal = search.propose(x, float(excess[i]))
            if proposal < math.log(self._largest[i]) + LEAST_LOG_RATIO:
                self._stuck[i] = True
                continue
            if idle or search.width < 1e-3:
                search.forget(math.log(self._largest[i]))
                self._tighten[i] *= TIGHT
                self._distance[i] *= TIGHT
            else:
                self._distance[i] = abs(excess[i])
            if self._tighten[i] < LEAST_TIGHTENING:
                self._stuck[i] = True
            self._multipliers[i] = math.exp(proposal)
