"""The scheme of the SIS paper: Douglas-Rachford on the weights, with the data visited one mini-batch at a time.

The primal is min g(W) over the (W, b) that keep every budget, C = {2 phi_j <= epsilon_j**2 for all j}. One iteration is

    W_n = prox_{gamma g}(What_n)
    (Wtilde_n, btilde_n) = proj_C(2 W_n - What_n, b_n)
    What_{n+1} = What_n + relaxation (Wtilde_n - W_n)
    b_{n+1} = b_n + relaxation (btilde_n - b_n)

with the projection of `haugazeau`, whose errors must add up to a finite sum: its tolerance t_n falls like
(n + 1)**-1.1. It projects onto the budgets (1 - t_n) epsilon_j**2 up to t_n, so that Wtilde_n keeps the budgets
themselves, and W_n sooner than in the limit. The bias takes part in the coordinates that `budget_constraints`
describes. Memory is a few arrays of W's size and one mini-batch.

The scheme has no dual variable of its own. At a solution -sum_j mu_j (d phi_j / d Z)' X is a subgradient of g for some
mu >= 0; on the support, where g is smooth, that is a system of linear equations in mu, solved by non-negative least
squares. It never decides that it is done: that is for the certificate of its iterates.

References: S. Verma, J.-C. Pesquet, "Sparsifying Networks via Subdifferential Inclusion", ICML 2021; P. L. Combettes,
J.-C. Pesquet, "A Douglas-Rachford splitting approach to nonsmooth convex variational signal recovery", 2007.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from ..budgets import Budgets
from ..errors import InvalidInputError
from ..penalties import Structure
from ..problem import LayerProblem
from ..validation import number, positive_integer
from .budget_constraints import BudgetConstraints
from .haugazeau import Outcome, Projection, project
from .rows import Limits

Array = npt.NDArray[np.float64]

RELAXATION = 1.6
FIRST_TOLERANCE = 0.1
DECAY = 1.1  # of the projections' tolerance with the iterations
SLACK = 4.0  # times the projections' tolerance: a budget kept with more to spare does not bind
STEP = 0.1  # default gamma, relative to ||W||**2 / g(W) of the dense weights


class SubdifferentialInclusion:
    """Steps of the scheme; see the module's docstring.

    Parameters
    ----------
    problem : LayerProblem
        In memory, or over a stream of mini-batches.
    structure : Structure
        The penalty's numbers for the layer's weights, the mask taken into account.
    budgets : Budgets
        epsilon_j per layer, mini-batch or neuron.
    start : tuple of ndarray, optional
        ``(weight, bias)`` to start from; default: the dense layer.
    relaxation : float
        In (0, 2), exclusive.
    gamma : float, optional
        The step of the proximity operator, > 0, in units of W**2 / g. Large steps make few iterations with long
        projections. Default: 0.1 ||W||**2 / g(W) of the dense weights.
    tolerance : float
        t_0, in (0, 1).
    max_passes : int
        Passes over the data that one projection may take.

    Attributes
    ----------
    weight, bias : ndarray
        W_n (n_out, n_in), with exact zeros, and its bias (n_out,); the budgets hold in the limit, often before.
    projected_weight, projected_bias : ndarray
        Wtilde_n and btilde_n, of an iterate before: positive budgets hold, zeros appear in the limit.
    projection : Projection or None
        The last projection, and how it ended.
    iterations : int
        Completed iterations.
    passes : float
        Products with all inputs, ``work`` over that of one; a pass takes one, and another one where budgets are missed.
    work : float
        Floating-point work over samples.
    """

    def __init__(
        self,
        problem: LayerProblem,
        structure: Structure,
        budgets: Budgets,
        start: tuple[Array, Array] | None = None,
        *,
        relaxation: float = RELAXATION,
        gamma: float | None = None,
        tolerance: float = FIRST_TOLERANCE,
        max_passes: int = 10_000,
    ) -> None:
        self.structure = structure
        self.relaxation = number("relaxation", relaxation, above=0.0)
        if self.relaxation >= 2.0:
            msg = f"relaxation must be below 2, got {relaxation!r}"
            raise InvalidInputError(msg)
        self.gamma = default_gamma(problem, structure) if gamma is None else number("gamma", gamma, above=0.0)
        self.tolerance = number("tolerance", tolerance, above=0.0)
        if self.tolerance >= 1.0:
            msg = f"tolerance must be below 1, got {tolerance!r}"
            raise InvalidInputError(msg)
        self.max_passes = positive_integer("max_passes", max_passes)
        self.constraints = BudgetConstraints(problem, budgets)
        weight, bias = (problem.weight.astype(np.float64), problem.dense_bias) if start is None else start
        self._point = self.constraints.point(weight, bias)  # (What, b)
        self._near = self._prox()  # (W, b)
        self._projected = self._point.copy()
        self.projection: Projection | None = None
        self.iterations = 0

    @property
    def weight(self) -> Array:
        """W_n, (n_out, n_in), with exact zeros."""
        return self.constraints.layer(self._near)[0]

    @property
    def bias(self) -> Array:
        """The bias that goes with ``weight``, (n_out,)."""
        return self.constraints.layer(self._near)[1]

    @property
    def projected_weight(self) -> Array:
        """Wtilde_n, (n_out, n_in), which keeps the budgets up to the tolerance."""
        return self.constraints.layer(self._projected)[0]

    @property
    def projected_bias(self) -> Array:
        """The bias that goes with ``projected_weight``, (n_out,)."""
        return self.constraints.layer(self._projected)[1]

    @property
    def work(self) -> float:
        """Floating-point work over samples."""
        return self.constraints.work

    @property
    def passes(self) -> float:
        """Products with all inputs."""
        problem = self.constraints.problem
        return self.work / (2.0 * problem.n_samples * problem.n_in * problem.n_out)

    def step(self, limits: Limits) -> Outcome:
        """Do one iteration; look at the limits before every mini-batch.

        Returns how the projection ended. Unless that is `Outcome.REACHED` the iterate is the one before: the time was
        up, ``max_passes`` were not enough, or the budgets cannot be kept.
        """
        anchor = 2.0 * self._near - self._point
        tolerance = self.tolerance * (self.iterations + 1) ** -DECAY

        def projection(margin: float) -> Projection:
            return project(
                self.constraints,
                anchor,
                tolerance=tolerance,
                margin=margin,
                max_passes=self.max_passes,
                limits=limits,
            )

        found = projection(tolerance)
        if found.outcome is Outcome.EMPTY:  # the tightened budgets may be too tight where the given ones are not
            found = projection(0.0)
        self.projection = found
        if found.outcome is Outcome.REACHED:
            self._projected = found.point
            self._point = self._point + self.relaxation * (found.point - self._near)
            self._near = self._prox()
            self.iterations += 1
        return found.outcome

    def duals(self) -> Array:
        """Return mu >= 0, (J,), of L = g + 1/2 sum_j mu_j (2 phi_j - epsilon_j**2) at the present weights.

        It costs one pass. The equations are those of the support; where they outgrow W's size, as many as fit in it
        are taken, at even distances.
        """
        slope = self._slope()
        if self.constraints.separable:  # one unknown per neuron
            C = np.where(self.weight != 0, next(self._gradients())[1], 0.0)
            squares = np.einsum("ij,ij->i", C, C)
            along = -np.einsum("ij,ij->i", C, slope)
            quotients = np.divide(along, squares, out=np.zeros_like(along), where=squares > 0)
            return np.asarray(np.maximum(quotients, 0.0))
        n_groups = self.constraints.n_rounds
        support = np.flatnonzero(self.weight)
        if support.size == 0:
            return np.zeros(n_groups)
        most = max(1, slope.size // n_groups)
        if support.size > most:
            support = support[np.linspace(0, support.size - 1, most).astype(np.intp)]
        equations = np.zeros((support.size, n_groups))
        slack = -SLACK * self.tolerance * (self.iterations + 1) ** -DECAY
        for j, (excess, gradient) in enumerate(self._gradients()):
            if excess[0] >= slack:  # a budget that does not bind has no price
                equations[:, j] = gradient.ravel()[support]
        from scipy.optimize import nnls  # noqa: PLC0415  slow to import, and seldom needed

        duals: Array = nnls(equations, -slope.ravel()[support])[0]
        return duals

    def _prox(self) -> Array:
        n_in = self.constraints.problem.n_in
        near = self._point.copy()
        near[:, :n_in] = self.structure.prox(near[:, :n_in], self.gamma)
        return near

    def _gradients(self) -> Iterator[tuple[Array, Array]]:
        """Yield c_j over its size, and (d phi_j / d Z)' X (n_out, n_in) at the present weights, round by round."""
        constraints = self.constraints
        for j, blocks in constraints.groups(Limits(0)):
            excess, gradient = constraints.measure(j, blocks, self._near, -math.inf)
            assert gradient is not None
            sizes = constraints.sizes if constraints.separable else constraints.sizes[j : j + 1]
            yield excess, 0.5 * sizes[:, None] * gradient[:, : constraints.problem.n_in]

    def _slope(self) -> Array:
        """Return the gradient of g where W is not zero, and 0 elsewhere, (n_out, n_in)."""
        structure, W = self.structure, self.weight
        slope = np.where(W != 0, structure.factors, 0.0) * np.sign(W)
        if structure.labels is not None:
            assert structure.group_weights is not None
            kappa = structure.group_weights
            squares = np.bincount(structure.labels.ravel(), weights=(W * W).ravel(), minlength=kappa.size)
            price = np.divide(kappa, np.sqrt(squares), out=np.zeros_like(kappa), where=squares > 0)
            slope += price[structure.labels] * W
        return slope


def default_gamma(problem: LayerProblem, structure: Structure) -> float:
    """Return a step in units of W**2 / g, from the dense weights."""
    W = problem.weight.astype(np.float64)
    if structure.forbidden is not None:
        W[structure.forbidden] = 0.0
    size = float(structure.values(W).sum())
    return STEP * float(np.sum(W * W)) / size if size > 0 else 1.0
