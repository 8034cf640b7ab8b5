"""Certificates: lower bounds from dual points, gaps and optimality violations, all in float64.

A dual point is one non-negative factor t_i per output neuron times the gradient rows grad_i = d phi / d z_i, taken at
the best bias (so that its sum over samples vanishes where a bias is fitted). Because the conjugate of the loss obeys

    phi_i*(t grad_i) <= t (<grad_i, z_i> - 2 phi_i) + t**2 phi_i          (equality without fidelity)

and <grad_i, z_i> = <C_i, w_i> with C = grad' X, four sums per neuron are all that a bound needs: `RowSums`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .penalties import Structure

Array = npt.NDArray[np.float64]

MAX_BOUND_STEPS = 30
INVALID = 1e-4  # a bound further above the objective of an iterate that keeps the budget cannot be rounding
BALANCED = 1e-7  # of a row's sum of |grad|: a sum of grad beyond it is no dual point, where a bias is fitted
FEASIBILITY = {np.dtype(np.float64): 1e-6, np.dtype(np.float32): 1e-5}


@dataclass(frozen=True)
class RowSums:
    """What bounds and gaps are made of, one number per output neuron; arrays of shape (n_out,).

    ``value`` = g(w_i), ``loss`` = phi_i, ``slope`` = <C_i, w_i>, ``dual_norm`` the least t with C_i in t times the unit
    ball of the dual norm; where groups of weights span rows it is the layer's, and ``value`` a share of theirs.
    ``uniform``: targets couple the outputs of a sample, so that all neurons need one factor.

    Examples
    --------
    A neuron whose inputs are the unit vectors, with dense weights 2 and 1, at weights 1.5 and 0.5:

    >>> import numpy as np
    >>> from sisopt.certificate import RowSums
    >>> sums = RowSums(np.array([2.0]), np.array([0.25]), np.array([-1.0]), np.array([0.5]))
    >>> sums.objective, round(sums.radius, 4)
    (2.0, 0.7071)
    """

    value: Array
    loss: Array
    slope: Array
    dual_norm: Array
    uniform: bool = False

    @property
    def objective(self) -> float:
        """g(W)."""
        return float(self.value.sum())

    @property
    def radius(self) -> float:
        """sqrt(2 phi)."""
        return float(np.sqrt(2.0 * self.loss.sum()))

    @property
    def radius_rows(self) -> Array:
        """sqrt(2 phi_i) of every neuron, (n_out,)."""
        return np.asarray(np.sqrt(2.0 * self.loss))


def row_sums(weight: Array, gradient: Array, loss: Array, structure: Structure, uniform: bool = False) -> RowSums:
    """Return the sums for weights W (n_out, n_in), C = grad' X of the same shape and phi (n_out,).

    Examples
    --------
    >>> import numpy as np, sisopt
    >>> from sisopt.certificate import row_sums
    >>> weight, gradient = np.array([[1.5, 0.5]]), np.array([[-0.5, -0.5]])
    >>> sums = row_sums(weight, gradient, np.array([0.25]), sisopt.L1().structure((1, 2)))
    >>> sums.value, sums.slope, sums.dual_norm
    (array([2.]), array([-1.]), array([0.5]))
    """
    slope = np.einsum("ij,ij->i", gradient, weight)
    return RowSums(structure.values(weight), loss, slope, structure.dual_norms(gradient), uniform)


def balanced(gradient: Array, coupled: bool) -> npt.NDArray[np.bool_]:
    """Return which rows of d phi / d z (r, n_samples) add up to zero, (r,), as they do at the best bias.

    Rows that are fitted up to rounding do not; where targets couple the outputs one such row spoils all.
    """
    good = np.abs(gradient.sum(axis=1)) <= BALANCED * np.abs(gradient).sum(axis=1)
    return np.full(good.size, good.all()) if coupled else good


def _caps(sums: RowSums) -> Array:
    """Return the largest s_i with s_i * dual_norm_i <= 1: infinite for a loss that no weight can change."""
    if sums.uniform:
        top = float(sums.dual_norm.max())
        return np.full(sums.loss.size, 0.0 if sums.loss.sum() == 0 else 1.0 / top if top > 0 else np.inf)
    none = np.where(sums.loss > 0, np.inf, 0.0)
    return np.divide(1.0, sums.dual_norm, out=none, where=(sums.dual_norm > 0) & (sums.loss > 0))


def penalized_row_gaps(sums: RowSums, multiplier: float | Array) -> Array:
    """Return lambda g(w_i) + phi_i minus its best lower bound, per neuron.

    The bound of one neuron is max_t -t a_i - t**2 phi_i, a_i = slope_i - 2 phi_i, over 0 <= t <= lambda / dual_norm_i.
    """
    return multiplier * sums.value + sums.loss - _penalized_row_bounds(sums, multiplier)


def _penalized_row_bounds(sums: RowSums, multiplier: float | Array) -> Array:
    a = sums.slope - 2.0 * sums.loss
    caps = multiplier * _caps(sums)
    if sums.uniform:
        phi = float(sums.loss.sum())
        factor = min(max(-float(a.sum()) / (2.0 * phi), 0.0), float(caps[0])) if phi > 0 else 0.0
        return np.asarray(-factor * a - factor**2 * sums.loss)
    best = np.divide(-a, 2.0 * sums.loss, out=np.zeros_like(a), where=sums.loss > 0)
    t = np.clip(best, 0.0, caps)
    return np.asarray(-t * a - t * t * sums.loss)


def penalized_bound(sums: RowSums, multiplier: float) -> float:
    """Return a lower bound on min lambda g + phi.

    Examples
    --------
    Of the neuron of `RowSums`, whose weights are optimal at 0.5: objective and bound agree.

    >>> import numpy as np
    >>> from sisopt.certificate import RowSums, penalized_bound
    >>> sums = RowSums(np.array([2.0]), np.array([0.25]), np.array([-1.0]), np.array([0.5]))
    >>> 0.5 * sums.objective + sums.loss.sum(), penalized_bound(sums, 0.5)
    (np.float64(1.25), 1.25)
    """
    return max(0.0, float(_penalized_row_bounds(sums, multiplier).sum()))


def budget_bound(sums: RowSums, epsilon: float) -> float:
    """Return a lower bound on min g subject to sqrt(2 phi) <= epsilon.

    With s_i >= 0, s_i dual_norm_i <= 1 and R(s) = sqrt(2 sum_i s_i**2 phi_i), weak duality gives

        g* >= -sum_i s_i a_i - epsilon R(s),          a_i = slope_i - 2 phi_i,

    concave in s. At its maximiser s_i = clip(-a_i R / (2 phi_i epsilon), 0, 1 / dual_norm_i) for the one number R that
    agrees with itself; R is found by bisection, since s_i / R never increases with R.

    Examples
    --------
    Of the neuron of `RowSums`, whose weights are optimal for their own radius:

    >>> import numpy as np
    >>> from sisopt.certificate import RowSums, budget_bound
    >>> sums = RowSums(np.array([2.0]), np.array([0.25]), np.array([-1.0]), np.array([0.5]))
    >>> sums.objective, round(budget_bound(sums, sums.radius), 6)
    (2.0, 2.0)
    """
    caps = _caps(sums)
    if sums.uniform:
        whole, cap = float((sums.slope - 2.0 * sums.loss).sum()), float(caps[0])
        return max(0.0, cap * (-whole - epsilon * sums.radius)) if np.isfinite(cap) else 0.0
    fixed = np.isinf(caps)  # their best s_i takes 2 phi_i off the squared budget, exactly
    epsilon = float(np.sqrt(max(epsilon**2 - 2.0 * float(sums.loss[fixed].sum()), 0.0))) if fixed.any() else epsilon
    caps[fixed] = 0.0
    a = sums.slope - 2.0 * sums.loss
    useful = (caps > 0) & (a < 0)
    if not useful.any():
        return 0.0
    a, phi, caps = a[useful], sums.loss[useful], caps[useful]
    if epsilon <= 0.0:
        return float(-(caps * a).sum())

    def scales(R: float) -> Array:
        return np.minimum(-a * R / (2.0 * phi * epsilon), caps)

    def excess(s: Array, R: float) -> float:
        return float(np.sqrt(2.0 * (s * s * phi).sum())) - R

    high = float(np.sqrt(2.0 * (caps * caps * phi).sum()))
    low = 0.0
    for _ in range(100):
        middle = 0.5 * (low + high)
        if not low < middle < high:
            break
        if excess(scales(middle), middle) > 0:
            low = middle
        else:
            high = middle
    s = scales(high)
    return max(0.0, float(-(s * a).sum() - epsilon * np.sqrt(2.0 * (s * s * phi).sum())))


def batch_bound(sums: RowSums, parts: Array, duals: Array, radii: Array) -> float:
    """Return a lower bound on min g subject to sqrt(2 phi_j) <= epsilon_j for every mini-batch j.

    ``sums`` are those of ``sum_j mu_j phi_j`` with the ``duals`` mu (J,) and b at its best for it; ``parts`` (n_out, J)
    holds phi_ij of neuron i on batch j. With s_i >= 0, s_i dual_norm_i <= 1 weak duality gives

        g* >= -sum_i s_i a_i - sum_j epsilon_j mu_j sqrt(2 sum_i s_i**2 phi_ij),    a_i = slope_i - 2 sum_j mu_j phi_ij,

    concave in s. The best s is approached by the fixed point of its stationarity; every s gives a bound.

    Examples
    --------
    With one mini-batch it is `budget_bound`:

    >>> import numpy as np
    >>> from sisopt.certificate import RowSums, batch_bound
    >>> sums = RowSums(np.array([2.0]), np.array([0.25]), np.array([-1.0]), np.array([0.5]))
    >>> bound = batch_bound(sums, np.array([[0.25]]), np.array([1.0]), np.array([sums.radius]))
    >>> round(bound, 6)
    2.0
    """
    caps = _caps(sums)
    a, spread = sums.slope - 2.0 * sums.loss, 2.0 * duals**2 * parts
    if sums.uniform:
        s = caps if np.isfinite(caps).all() else np.zeros_like(caps)
        return max(0.0, -float(s @ a) - float(radii @ np.sqrt(s**2 @ spread)))
    best, s = 0.0, np.minimum(caps, 1.0)
    for _ in range(MAX_BOUND_STEPS):
        lengths = np.sqrt(s**2 @ spread)
        best = max(best, -float(s @ a) - float(radii @ lengths))
        price = spread @ np.divide(radii, lengths, out=np.zeros_like(radii), where=lengths > 0)
        steps = np.divide(-a, price, out=s.copy(), where=price > 0)
        s = np.where(a < 0, np.minimum(steps, caps), 0.0)
    return best


def neuron_bound(sums: RowSums, losses: Array, duals: Array, radii: Array) -> float:
    """Return a lower bound on min g subject to sqrt(2 phi_i) <= epsilon_i for every neuron i.

    ``sums`` are those of ``sum_i mu_i phi_i`` with the ``duals`` mu (n_out,), ``losses`` (n_out,) the phi_i. As in
    `batch_bound`, where nothing is left to balance: every s_i is at its cap or 0.

    Examples
    --------
    With one neuron it is `budget_bound`:

    >>> import numpy as np
    >>> from sisopt.certificate import RowSums, neuron_bound
    >>> sums = RowSums(np.array([2.0]), np.array([0.25]), np.array([-1.0]), np.array([0.5]))
    >>> round(neuron_bound(sums, sums.loss, np.array([1.0]), sums.radius_rows), 6)
    2.0
    """
    return float(neuron_bound_terms(sums, losses, duals, radii).sum())


def neuron_bound_terms(sums: RowSums, losses: Array, duals: Array, radii: Array) -> Array:
    """Return the terms of `neuron_bound`, (n_out,): bounds of every neuron's own program where no group spans rows."""
    caps = np.where(np.isinf(_caps(sums)), 0.0, _caps(sums))
    gains = -(sums.slope - 2.0 * sums.loss) - radii * duals * np.sqrt(2.0 * losses)
    return np.asarray(caps * np.maximum(gains, 0.0))


def relative_gap(objective: float, bound: float) -> float:
    """Return (objective - bound) / objective, 0 where the objective is 0 (no bound can be above it).

    Examples
    --------
    >>> from sisopt.certificate import relative_gap
    >>> relative_gap(2.0, 1.5), relative_gap(0.0, 0.0)
    (0.25, 0.0)
    """
    return max(0.0, (objective - bound) / objective) if objective > 0 else 0.0
