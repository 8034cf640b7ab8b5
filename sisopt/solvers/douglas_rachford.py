"""Douglas-Rachford splitting in graph form: budgets of any grouping are kept without a search for a multiplier.

The program is min g(W) + f(U) over the graph {(W, U) : U = X W' + 1 b', b free}, with f the indicator of
{2 phi_j(U) <= epsilon_j**2 for every group j}, or phi / lambda in the penalised form. With t = (t_W, t_U), in the
metric rho_W ||W||**2 + rho_U ||U||_v**2 (v the sample weights), one step is

    p = prox(t)                        W: prox_{g / rho_W};  U: the residual of every group shrinks to its budget
    q = projection of 2 p - t          (I + omega G) q_W = c + omega (D - mean D)' V (X - m),  omega = rho_U / rho_W,
                                       with (c, D) = 2 p - t, m the mean input, V = diag(v), G = (X - m)' V (X - m);
                                       q_b = mean D - q_W m,  q_U = X q_W' + 1 q_b'
    t <- t + relaxation (q - p)

so the bias is eliminated exactly and a step costs two products with X. The dual variable of U is rho_U V (t_U - p_U),
normal to the set at p_U, and that of W, rho_W (t_W - p_W), a subgradient of g at p_W.

Speed hangs on rho: at the steps 2**a and 3 * 2**a both are set anew, to the ratio of the dual variable's norm to a
primal scale: the norm of W and, for U, a fraction of the norm of the dense pre-activations about their means. Where
every output neuron has a program of its own, it has its own rho_U too, and one eigendecomposition of G serves them all;
elsewhere a change costs a Cholesky factor. Columns of W are measured in units s_j = G_jj**(1/4), which the formulas
above leave out.

References: N. Parikh, S. Boyd, "Block splitting for distributed optimization", 2014; C. Fougner, S. Boyd, "Parameter
selection and preconditioning for a graph form solver", 2018; P.-L. Lions, B. Mercier, "Splitting algorithms for the sum
of two nonlinear operators", 1979.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from .. import products
from ..budgets import Budgets
from ..gram_statistics import input_center, input_gram
from ..penalties import Structure
from ..problem import LayerProblem
from ..threads import ordered_map, serial_blas
from .balancing import changes_of, column_units, divided, is_balancing_step
from .resolvents import CholeskyResolvent, EigenResolvent, Resolvent
from .splitting_parts import CoupledPart, IntervalPart, Part

Array = npt.NDArray[np.float64]

RELAXATION = 1.8
FIRST_STEP = 0.5  # 1 / rho_W at the start, relative to ||W||**2 / g(W)
FIRST_SPREAD = 0.1  # 1 / rho_U at the start, relative to the same times the largest diagonal entry of G
SPREAD = 0.35  # of the dense pre-activations' spread: how far t_U should be from p_U
NO_BUDGET = 1e-9  # of that spread: smaller budgets do not divide dual variables
FIRST_BALANCES = 4  # at a start with dual variables


class GraphSplitting:
    """Steps of the splitting; see the module's docstring. It never decides that it is done.

    Between steps it holds one array of (n_out, n_samples), the ends of the intervals (two more, or one where targets
    are points) and a few of W's size; during a step one chunk of neurons a thread besides. The bits do not depend on
    the number of threads.

    Parameters
    ----------
    problem : LayerProblem
        In memory, without fidelity and entry weights. Budgets of neurons want targets that do not couple outputs.
    structure : Structure
        The penalty's numbers for the layer's weights, the mask taken into account.
    target : Budgets or float
        The budgets; or lambda of ``lambda g + phi``.
    n_threads : int
    start : tuple of ndarray, optional
        ``(weight, bias)`` to start from; default: the dense layer.
    duals : ndarray, shape (J,), optional
        mu_j to start from, with ``start``; default: 0.

    Attributes
    ----------
    weight, bias : ndarray
        p_W (n_out, n_in), with exact zeros, and the bias (n_out,) that goes with it; the budgets hold in the limit.
    graph_weight : ndarray, shape (n_out, n_in)
        q_W, dense: with `duals` the better dual candidate of the two.
    iterations : int
        Completed steps.
    work : float
        Floating-point work over samples.
    """

    def __init__(
        self,
        problem: LayerProblem,
        structure: Structure,
        target: Budgets | float,
        n_threads: int,
        start: tuple[Array, Array] | None = None,
        duals: Array | None = None,
    ) -> None:
        self.problem, self.structure, self.target, self.n_threads = problem, structure, target, n_threads
        n = problem.n_samples
        self._batches = target.batches if isinstance(target, Budgets) else (slice(0, n),)
        self._separate = not problem.activation.couples_outputs and (
            not isinstance(target, Budgets) or target.per == "neuron"
        )
        self._v = np.ones(n) if problem.sample_weights is None else problem.sample_weights.copy()
        self.iterations = 0
        with serial_blas():
            self._gram, self.work = input_gram(problem, n_threads)
            self._center = input_center(problem)
            self._units = column_units(structure, np.diagonal(self._gram))
            self._scaled = divided(structure, self._units)
            self._begin(*((problem.weight, problem.dense_bias) if start is None else start))
            if duals is not None:
                self._begin_at(duals)

    def _begin(self, weight: Array, bias: Array) -> None:
        """Put t on the graph at the starting point, and set the first rho."""
        problem = self.problem
        W = self.structure.prox(np.asarray(weight, dtype=np.float64), 0.0)  # zero where a mask forbids
        self._weight_point = W * self._units
        self._mean = bias + W @ self._center  # mean D of the last step, (n_out,)
        self._squares = np.zeros((problem.n_out, len(self._batches)))
        self._spreads = np.zeros(problem.n_out)
        self._parts: list[Part] = []

        def part(rows: slice) -> Part:
            return self._open(rows, W[rows], bias[rows])

        for piece in ordered_map(part, problem.chunks(), self.n_threads):
            self._parts.append(piece)
        self.work += 2.0 * problem.n_samples * W.size
        size = (W if W.any() else self.structure.prox(problem.weight.astype(np.float64), 0.0)) * self._units
        price = float(self._scaled.values(size).sum())
        unit = float(np.vdot(size, size)) / price if price > 0 else 1.0
        gram = self._gram / (self._units * self._units[:, None])
        reach = float(np.diagonal(gram).max(initial=0.0)) or 1.0
        self._rho_weight = 1.0 / (FIRST_STEP * unit)
        self._rho = np.full(problem.n_out, 1.0 / (FIRST_SPREAD * unit * reach))  # rho_U of every row
        self._resolvent: Resolvent = EigenResolvent(gram) if self._separate else CholeskyResolvent(gram)
        self._resolvent.set_ratio(self._rho / self._rho_weight)
        self.graph_weight = W
        self._refresh()

    def _begin_at(self, duals: Array) -> None:
        """Put the dual variables where the multipliers mu_j (J,) and the residuals at the starting point say."""
        target = self.target
        by_neuron = isinstance(target, Budgets) and target.per == "neuron"
        mu = np.broadcast_to(duals[:, None] if by_neuron else duals, self._squares.shape)
        pull = np.empty_like(self._weight_point)

        def part(piece: Part) -> None:
            assert self.problem.inputs is not None
            rows, moved = piece.rows, np.empty_like(piece.t)
            piece.reflect(-0.5 * mu[rows] / self._rho[rows, None], moved)  # t + (mu / rho) e
            dual = (moved - piece.t) * (self._rho[rows, None] * self._v)
            pull[rows] = products.backward(dual, self.problem.inputs, self._center)
            piece.t[:] = moved
            piece.measure(self._squares[rows])

        self._map(part)
        self.work += 2.0 * self.problem.n_samples * pull.size
        self._weight_point = self._weight_point - pull / self._units / self._rho_weight
        self._refresh()
        for _ in range(FIRST_BALANCES):
            self._balance()

    def _open(self, rows: slice, weight: Array, bias: Array) -> Part:
        """Produce a chunk's target, its pre-activations at the start and the spread of its dense ones."""
        problem = self.problem
        assert problem.inputs is not None
        t = np.zeros((bias.size, problem.n_samples))
        self._spreads[rows] = self._spread(rows)
        if weight.any():
            products.forward(problem.inputs, weight, t)
        t += bias[:, None]
        if problem.activation.couples_outputs:
            piece: Part = CoupledPart(rows, t, problem.coupled_target(), self._v, self._batches)
        else:
            target = problem.row_target(rows)
            hi = target.lo if np.array_equal(target.lo, target.hi) else target.hi
            piece = IntervalPart(rows, t, target.lo, hi, self._v, self._batches)
        piece.measure(self._squares[rows])
        return piece

    def _spread(self, rows: slice) -> Array:
        """Return the norms of the dense pre-activations, less what biases and common shifts can do, (r,)."""
        problem = self.problem
        assert problem.preactivations is not None
        z = problem.preactivations[:, rows].T.astype(np.float64)
        if problem.has_bias:
            z -= (z @ self._v / problem.total_weight)[:, None]
        if problem.activation.couples_outputs:
            z -= z.mean(axis=0)
        return np.asarray(np.sqrt((z * z) @ self._v))

    def step(self) -> None:
        """Make one step."""
        with serial_blas():
            reflected = 2.0 * self._near - self._weight_point
            graph_weight = np.empty_like(reflected)
            self._map(lambda piece: self._step_part(piece, reflected[piece.rows], graph_weight))
            self.work += 4.0 * self.problem.n_samples * graph_weight.size
            self._weight_point = self._weight_point + RELAXATION * (graph_weight - self._near)
            self.graph_weight = graph_weight / self._units
            self.iterations += 1
            self._refresh()
            if is_balancing_step(self.iterations):
                self._balance()

    def _step_part(self, piece: Part, reflected: Array, graph_weight: Array) -> None:
        """Project a chunk of rows on the graph and move its part of t_U."""
        X = self.problem.inputs
        assert X is not None
        rows, shrinkage = piece.rows, self._shrinkage[piece.rows]
        D = np.empty_like(piece.t)
        piece.reflect(shrinkage, D)
        has_bias = self.problem.has_bias
        if has_bias:
            self._mean[rows] = D @ self._v / self.problem.total_weight
            D -= self._mean[rows, None]
        if self.problem.sample_weights is not None:
            D *= self._v
        pull = products.backward(D, X, self._center if has_bias else None)
        q = self._resolvent.solve(rows, reflected + (self._rho[rows, None] / self._rho_weight) * (pull / self._units))
        graph_weight[rows] = q
        q = q / self._units
        products.forward(X, q, D)
        if has_bias:
            D += (self._mean[rows] - q @ self._center)[:, None]
        piece.advance(shrinkage, D, RELAXATION, self._squares[rows])

    @property
    def duals(self) -> Array:
        """mu_j >= 0 of L = g + 1/2 sum_j mu_j (2 phi_j - epsilon_j**2), (J,); (1 / lambda,) in the penalised form."""
        target = self.target
        if not isinstance(target, Budgets):
            return np.array([1.0 / target])
        norms, shrinkage = self._norms(), self._shrinkage
        if target.per == "neuron":
            rho, c, spread = self._rho, shrinkage[:, 0], self._spreads
        else:
            rho, c, spread = self._rho[:1], shrinkage[0], np.array([np.linalg.norm(self._spreads)])
        dual = rho * c * norms
        divisor = np.maximum(target.radii, NO_BUDGET * spread)
        return np.divide(dual, divisor, out=np.zeros_like(dual), where=divisor > 0)

    def _norms(self) -> Array:
        """Return the distance of t_U from the target in every group, (J,)."""
        assert isinstance(self.target, Budgets)
        return np.sqrt(self.target.group_losses(self._squares))

    def _refresh(self) -> None:
        """Set the proximal point from t: W itself, U by the shrinkage of its residuals (n_out, batches)."""
        self._near = self._scaled.prox(self._weight_point, 1.0 / self._rho_weight)
        self.weight = self._near / self._units
        self.bias = self._mean - self.weight @ self._center if self.problem.has_bias else np.zeros(self._mean.size)
        target = self.target
        if not isinstance(target, Budgets):
            c = (1.0 / (1.0 + target * self._rho))[:, None]
        else:
            norms = self._norms()
            c = np.divide(norms - target.radii, norms, out=np.zeros_like(norms), where=norms > target.radii)
            c = c[:, None] if target.per == "neuron" else c[None]
        self._shrinkage = np.empty(self._squares.shape)
        self._shrinkage[:] = c

    def _balance(self) -> None:
        """Set rho_W and rho_U anew where the dual variables ask for it; p and the dual variables stay."""
        off = self._weight_point - self._near
        weight_change = float(changes_of(np.array([np.linalg.norm(off)]), np.linalg.norm(self._near))[0])
        offs, scales = np.sqrt((self._shrinkage**2 * self._squares).sum(axis=1)), SPREAD * self._spreads
        if not self._separate:
            offs, scales = (np.full(offs.size, np.linalg.norm(array)) for array in (offs, scales))
        changes = changes_of(offs, scales)
        if weight_change == 1.0 and (changes == 1.0).all():
            return
        self._weight_point = self._near + off / weight_change
        self._map(lambda piece: self._scale_part(piece, 1.0 / changes[piece.rows]))
        self._rho_weight *= weight_change
        self._rho = self._rho * changes
        self._resolvent.set_ratio(self._rho / self._rho_weight)
        self._refresh()

    def _scale_part(self, piece: Part, factors: Array) -> None:
        piece.scale_dual(self._shrinkage[piece.rows], factors, self._squares[piece.rows])

    def _map(self, function: Callable[[Part], None]) -> None:
        for _ in ordered_map(function, self._parts, self.n_threads):
            pass
