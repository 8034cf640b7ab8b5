"""The best bias of a target that couples outputs: Newton's method on a convex piecewise quadratic function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..kernels.coupled import shift_components, shift_curvature, shift_diagonal, shift_gradient
from .base import Array

NEWTON_STEPS = 200
LINE_STEPS = 40
CONJUGATE_STEPS = 500
CONJUGATE_ACCURACY = 1e-8  # of a Newton step, which the next one corrects
SLOPE_ACCURACY = 1e-2  # of the slope at 0, at the end of a line search
GRADIENT_ACCURACY = 1e-14  # of the sum of the absolute values whose signed sum vanishes
EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Point:
    """A bias, the gradient there and what it is accurate to."""

    bias: Array
    gradient: Array
    rounding: float

    @property
    def size(self) -> float:
        """The largest entry of the gradient."""
        return float(np.abs(self.gradient).max())


class BiasLoss:
    """phi(b) = 1/2 sum_k v_k (dist(z_k + b, S_k)**2 + beta |C(z_k + b - c_k)|**2), C taking the mean over outputs off.

    S_k as in `sisopt.kernels.coupled`; the gradient is piecewise linear and every gradient adds up to zero.
    """

    def __init__(
        self,
        z: Array,
        level: Array,
        support: npt.NDArray[np.bool_],
        sample_weights: Array,
        off: Array,
        fidelity: float,
    ) -> None:
        n_samples, n_out = z.shape
        self.data = (level, support, sample_weights)
        self.z = z
        self.pull = fidelity * (off - off.mean())  # off (n_out,) = sum_k v_k (z_k - c_k)
        self.stiffness = fidelity * float(sample_weights.sum())
        self.members = np.empty(n_samples * n_out, dtype=np.int32)  # written only as far as outputs are curved
        self.ends = np.empty(n_samples, dtype=np.int64)

    def at(self, bias: Array) -> Point:
        """Return the gradient at a bias, whose piece `newton_direction` then works on."""
        g = np.empty(bias.size)
        size, reach = shift_gradient(self.z, bias, *self.data, g, self.members, self.ends)
        pull = self.pull + self.stiffness * (bias - bias.mean())
        size += float(np.abs(pull).sum())
        return Point(bias, g + pull, GRADIENT_ACCURACY * size + EPS * reach)

    def newton_direction(self, gradient: Array) -> Array:
        """Return the d of least norm with H d = -gradient on the present piece, by conjugate gradients.

        Where beta = 0, H is the Laplacian of the graph that links outputs which are curved in one sample. The gradient
        adds up to zero on every component of it but for rounding, which is taken off; d does not move what is free.
        """
        v = self.data[-1]
        label = np.zeros(gradient.size, dtype=np.int64)
        if self.stiffness == 0.0:
            shift_components(self.members, self.ends, label)
        counts = np.maximum(np.bincount(label, minlength=label.size), 1)

        def balanced(values: Array) -> Array:
            sums = np.bincount(label, weights=values, minlength=label.size)
            return np.asarray(values - (sums / counts)[label])

        diagonal = np.empty(gradient.size)
        shift_diagonal(self.members, self.ends, v, diagonal)
        diagonal += self.stiffness
        scale = np.divide(1.0, diagonal, out=np.zeros_like(diagonal), where=diagonal > 0.0)
        d, bent = np.zeros(gradient.size), np.empty(gradient.size)
        r = balanced(-gradient)
        s = scale * r
        direction = s
        energy = float(r @ s)
        wanted = CONJUGATE_ACCURACY**2 * energy
        for _ in range(min(CONJUGATE_STEPS, 2 * r.size + 10)):
            if energy <= wanted:
                break
            shift_curvature(self.members, self.ends, v, direction, bent)
            bent += self.stiffness * direction
            bend = float(direction @ bent)
            if bend <= 0.0:
                break
            alpha = energy / bend
            d += alpha * direction
            r = balanced(r - alpha * bent)
            s = scale * r
            last, energy = energy, float(r @ s)
            direction = s + (energy / last) * direction
        return balanced(d)


def best_common_bias(
    z: Array,
    level: Array,
    support: npt.NDArray[np.bool_],
    sample_weights: Array,
    anchor: Array,
    center: Array | None,
    fidelity: float,
) -> Array:
    """Return a minimiser b (n_out,) of 1/2 sum_k v_k (dist(z_k + b, S_k)**2 + beta |z_k + b - c_k|**2).

    Newton's method from the anchor with exact line searches, which makes every step descend. Stops when the gradient,
    or the slope along the step, vanishes up to rounding of the terms that the gradient sums.
    """
    total = float(sample_weights.sum())
    off = np.zeros(anchor.size) if center is None else sample_weights @ (z - center)
    start = anchor
    if center is not None and total > 0.0:
        # The sets leave the common shift free: fidelity alone decides on it.
        start = anchor - anchor.mean() - off.mean() / total
    loss = BiasLoss(z, level, support, sample_weights, off, fidelity)
    best = point = loss.at(start)
    for _ in range(NEWTON_STEPS):
        d = loss.newton_direction(point.gradient)
        if point.size <= point.rounding or -(d @ point.gradient) <= point.rounding * np.abs(d).sum():
            break
        point = _line_search(loss.at, point, d)
        best = point if point.size < best.size else best
    return best.bias


def _line_search(at: Callable[[Array], Point], point: Point, d: Array) -> Point:
    """Return the point b + alpha d where the slope nearly vanishes, evaluated last.

    The slope d'g(b + alpha d) never falls in alpha: a bracketed secant search (Illinois) from alpha = 1 finds its root.
    """
    start = left_slope = float(d @ point.gradient)
    left, right, right_slope = 0.0, np.inf, np.inf
    alpha = 1.0
    side = 0  # of the root that the last trial was on
    for _ in range(LINE_STEPS):
        trial = at(point.bias + alpha * d)
        slope = float(d @ trial.gradient)
        if abs(slope) <= SLOPE_ACCURACY * -start or trial.size <= trial.rounding:
            break
        if slope < 0.0:
            left, left_slope = alpha, slope
            right_slope *= 0.5 if side < 0 else 1.0
            side = -1
        else:
            right, right_slope = alpha, slope
            left_slope *= 0.5 if side > 0 else 1.0
            side = 1
        alpha = 2.0 * alpha if right == np.inf else left - left_slope * (right - left) / (right_slope - left_slope)
        if not left < alpha < right:
            break
    return trial
