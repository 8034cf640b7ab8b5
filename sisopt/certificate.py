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

Array = npt.NDArray[np.float64]

FEASIBILITY = {np.dtype(np.float64): 1e-6, np.dtype(np.float32): 1e-5}


@dataclass(frozen=True)
class RowSums:
    """What bounds and gaps are made of, one number per output neuron; arrays of shape (n_out,).

    ``value`` = g(w_i), ``loss`` = phi_i, ``slope`` = <C_i, w_i>, ``dual_norm`` = max_j |C_ij| / a_ij.
    """

    value: Array
    loss: Array
    slope: Array
    dual_norm: Array

    @property
    def objective(self) -> float:
        """g(W)."""
        return float(self.value.sum())

    @property
    def radius(self) -> float:
        """sqrt(2 phi)."""
        return float(np.sqrt(2.0 * self.loss.sum()))


def row_sums(weight: Array, gradient: Array, loss: Array, thresholds: Array) -> RowSums:
    """Return the sums for weights W (n_out, n_in), C = grad' X of the same shape and phi (n_out,)."""
    size = np.abs(weight)
    value = np.where(size > 0, thresholds, 0.0) * size if np.isinf(thresholds).any() else thresholds * size
    return RowSums(
        value=value.sum(axis=1),
        loss=loss,
        slope=np.einsum("ij,ij->i", gradient, weight),
        dual_norm=(np.abs(gradient) / thresholds).max(axis=1),
    )


def _caps(sums: RowSums) -> Array:
    """Return the largest s_i with s_i * dual_norm_i <= 1: infinite for a loss that no weight can change."""
    none = np.where(sums.loss > 0, np.inf, 0.0)
    return np.divide(1.0, sums.dual_norm, out=none, where=(sums.dual_norm > 0) & (sums.loss > 0))


def penalized_row_gaps(sums: RowSums, multiplier: float) -> Array:
    """Return lambda g(w_i) + phi_i minus its best lower bound, per neuron.

    The bound of one neuron is max_t -t a_i - t**2 phi_i, a_i = slope_i - 2 phi_i, over 0 <= t <= lambda / dual_norm_i.
    """
    return multiplier * sums.value + sums.loss - _penalized_row_bounds(sums, multiplier)


def _penalized_row_bounds(sums: RowSums, multiplier: float) -> Array:
    a = sums.slope - 2.0 * sums.loss
    caps = multiplier * _caps(sums)
    best = np.divide(-a, 2.0 * sums.loss, out=np.zeros_like(a), where=sums.loss > 0)
    t = np.clip(best, 0.0, caps)
    return np.asarray(-t * a - t * t * sums.loss)


def penalized_bound(sums: RowSums, multiplier: float) -> float:
    """Return a lower bound on min lambda g + phi."""
    return max(0.0, float(_penalized_row_bounds(sums, multiplier).sum()))


def budget_bound(sums: RowSums, epsilon: float) -> float:
    """Return a lower bound on min g subject to sqrt(2 phi) <= epsilon.

    With s_i >= 0, s_i dual_norm_i <= 1 and R(s) = sqrt(2 sum_i s_i**2 phi_i), weak duality gives

        g* >= -sum_i s_i a_i - epsilon R(s),          a_i = slope_i - 2 phi_i,

    concave in s. At its maximiser s_i = clip(-a_i R / (2 phi_i epsilon), 0, 1 / dual_norm_i) for the one number R that
    agrees with itself; R is found by bisection, since s_i / R never increases with R.
    """
    caps = _caps(sums)
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


def kkt_violation(weight: Array, gradient: Array, thresholds: Array, multiplier: float) -> float:
    """Return max_ij dist(-C_ij, lambda a_ij d|w_ij|) / (lambda a_ij); 0 at an optimum of the penalised program."""
    if multiplier == 0.0:  # a dead layer: there is no gradient
        return 0.0
    scaled = gradient / thresholds / multiplier
    distance = np.where(weight == 0, np.maximum(np.abs(scaled) - 1.0, 0.0), np.abs(scaled + np.sign(weight)))
    return float(distance.max(initial=0.0))


def relative_gap(objective: float, bound: float) -> float:
    """Return (objective - bound) / objective, 0 where the objective is 0 (no bound can be above it)."""
    return max(0.0, (objective - bound) / objective) if objective > 0 else 0.0
