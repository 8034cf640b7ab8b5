"""Everything that is computed on interval targets, one output neuron (row) at a time.

Notation, for one row with samples k = 1..n and target S_k = [lo_k, hi_k]:

    e_k     = z_k - clip(z_k, lo_k, hi_k)                                    residual
    phi(z)  = 1/2 sum_k w_k e_k^2 + beta/2 sum_k v_k (z_k - c_k)^2           loss
    phi'_k  = w_k e_k + beta v_k (z_k - c_k)                                 gradient

``weights`` (w) has shape (rows, n), or (1, n) when all rows share it; ``sample_weights`` (v) has shape (n,);
``center`` (c) is read only where ``beta > 0`` and may be a (1, 1) dummy otherwise. These arrays and z are of one dtype,
float32 or float64; sums over samples are float64.

Both searches below look for the root of a function of one variable that is piecewise linear and never decreases, by
Newton's method inside a bracket: exact as soon as the root's own piece is reached.
"""

from __future__ import annotations

import numpy as np
from numba import njit

FAST = {"reassoc", "contract", "nsz"}  # lets sums vectorise; infinities, which the intervals hold, keep their meaning
MAX_ROOT_STEPS = 60
ROOT_ACCURACY = 50.0  # units of rounding, of the sum whose terms cancel at the root
MAX_EXTRAPOLATION = 32.0


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
def _rounded(value, like):
    """Return a number in the dtype of an array: mixed arithmetic would not vectorise."""
    out = np.empty(1, like.dtype)
    out[0] = value
    return out[0]


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
def gradient_rows(rows, z, lo, hi, weights, sample_weights, center, beta, gradient, active, phi):
    """Write phi', the curvature pattern and phi of the listed rows.

    ``active[i, k]`` is 1 where entry k has a weight and is curved at z_k: outside its interval, or on a point target.
    """
    n = z.shape[1]
    shared = weights.shape[0] == 1
    fidelity = _rounded(beta, z)
    for i in rows:
        w = weights[0] if shared else weights[i]
        total = 0.0
        for k in range(n):
            value = z[i, k]
            e = value - min(max(value, lo[i, k]), hi[i, k])
            gradient[i, k] = w[k] * e
            total += w[k] * e * e
            active[i, k] = (w[k] > 0.0) & ((e != 0.0) | (lo[i, k] == hi[i, k]))
        if beta > 0.0:
            for k in range(n):
                offset = z[i, k] - center[i, k]
                pull = fidelity * sample_weights[k] * offset
                gradient[i, k] += pull
                total += pull * offset
        phi[i] = 0.5 * total


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
def _shift_slope(z, t, lo, hi, w):
    """Return d/dt and d2/dt2 of 1/2 sum w e(z + t)^2, and the sum of |w e|."""
    slope = 0.0
    curvature = 0.0
    size = 0.0
    shift = _rounded(t, z)
    for k in range(z.size):
        value = z[k] + shift
        pull = w[k] * (value - min(max(value, lo[k]), hi[k]))
        slope += pull
        size += abs(pull)
        curvature += w[k] if pull != 0.0 else 0.0
    return slope, curvature, size


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
def _nearest_free(z, lo, hi, w, anchor):
    """Return the t nearest to ``anchor`` at which no weighted entry has a residual, known to exist."""
    lowest = -np.inf
    highest = np.inf
    for k in range(z.size):
        if w[k] > 0.0:
            lowest = max(lowest, lo[k] - z[k])
            highest = min(highest, hi[k] - z[k])
    return min(max(anchor, lowest), highest)


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
def _best_shift(z, lo, hi, w, v, center, beta, anchor):
    """Return the t nearest to ``anchor`` among the minimisers of phi(z + t), and the number of passes over z."""
    linear = 0.0
    quadratic = 0.0
    if beta > 0.0:
        for k in range(z.size):
            linear += beta * v[k] * (z[k] - center[k])
            quadratic += beta * v[k]
    left = -np.inf
    right = np.inf
    t = anchor
    passes = 0
    for _ in range(MAX_ROOT_STEPS):
        slope, curvature, size = _shift_slope(z, t, lo, hi, w)
        passes += 1
        if curvature == 0.0 and quadratic == 0.0:
            return (t if t == anchor else _nearest_free(z, lo, hi, w, anchor)), passes + 1
        pull = linear + quadratic * t
        slope += pull
        if abs(slope) <= ROOT_ACCURACY * np.finfo(z.dtype).eps * (size + abs(pull)):
            return t, passes
        if slope > 0.0:
            right = t
        else:
            left = t
        proposal = t - slope / (curvature + quadratic)
        if not (left < proposal < right):
            proposal = 0.5 * (left + right)
        if proposal == t or not np.isfinite(proposal):
            return t, passes
        t = proposal
    return t, passes


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
def refit_bias_rows(rows, z, lo, hi, weights, sample_weights, center, beta, bias, anchor):
    """Move z and bias of the listed rows to the best bias nearest to ``anchor``; return the passes over rows made."""
    shared = weights.shape[0] == 1
    passes = 0
    for i in rows:
        w = weights[0] if shared else weights[i]
        c = center[i] if beta > 0.0 else center[0]
        t, count = _best_shift(z[i], lo[i], hi[i], w, sample_weights, c, beta, anchor[i] - bias[i])
        passes += count
        shift = _rounded(t, z)
        if shift != 0.0:
            bias[i] += shift
            for k in range(z.shape[1]):
                z[i, k] += shift
    return passes


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
def slope_rows(z, step, alpha, lo, hi, weights, sample_weights, center, beta, slopes):
    """Write d/dalpha of phi(z + alpha step) of every row, at alpha (rows,)."""
    shared = weights.shape[0] == 1
    for i in range(z.shape[0]):
        w = weights[0] if shared else weights[i]
        total = 0.0
        for k in range(z.shape[1]):
            value = z[i, k] + alpha[i] * step[i, k]
            total += w[k] * (value - min(max(value, lo[i, k]), hi[i, k])) * step[i, k]
        if beta > 0.0:
            for k in range(z.shape[1]):
                total += beta * sample_weights[k] * (z[i, k] + alpha[i] * step[i, k] - center[i, k]) * step[i, k]
        slopes[i] = total


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
def _step_slope(z, step, alpha, lo, hi, w):
    """Return d/dalpha and d2/dalpha2 of 1/2 sum w e(z + alpha step)^2."""
    slope = 0.0
    curvature = 0.0
    factor = _rounded(alpha, z)
    for k in range(z.size):
        value = z[k] + factor * step[k]
        e = value - min(max(value, lo[k]), hi[k])
        pull = w[k] * step[k]
        slope += pull * e
        curvature += pull * step[k] if e != 0 else 0
    return slope, curvature


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
def _penalty_slopes(x, direction, alpha, thresholds):
    """Return the left and the right derivative of sum_j thresholds_j |x_j + alpha direction_j| in alpha."""
    left = 0.0
    right = 0.0
    for j in range(x.size):
        d = direction[j]
        if d != 0.0:
            value = x[j] + alpha * d
            if alpha == 1.0 and x[j] == -d:
                value = 0.0
            slope = thresholds[j] * abs(d)
            if value == 0.0:
                left -= slope
                right += slope
            elif (value > 0.0) == (d > 0.0):
                left += slope
                right += slope
            else:
                left -= slope
                right -= slope
    return left, right


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
def line_search(z, step, lo, hi, w, v, center, beta, slope, x, direction, thresholds, accuracy):
    """Minimise phi(z + alpha step) + sum_j thresholds_j |x_j + alpha direction_j| over alpha in (0, 32].

    ``slope`` is that of phi at 0. The full step 1 is tried first and kept where it is the minimiser up to ``accuracy``
    times the slope at 0. Returns alpha (0 where the step does not descend) and the passes over z.
    """
    start = slope + _penalty_slopes(x, direction, 0.0, thresholds)[1]
    if not start < 0.0:
        return 0.0, 0
    linear = 0.0
    quadratic = 0.0
    if beta > 0.0:
        for k in range(z.size):
            linear += beta * v[k] * (z[k] - center[k]) * step[k]
            quadratic += beta * v[k] * step[k] * step[k]
    tolerance = accuracy * -start
    left = 0.0
    right = np.inf
    alpha = 1.0
    passes = 0
    for _ in range(MAX_ROOT_STEPS):
        slope, curvature = _step_slope(z, step, alpha, lo, hi, w)
        slope += linear + quadratic * alpha
        curvature += quadratic
        below, above = _penalty_slopes(x, direction, alpha, thresholds)
        below += slope
        above += slope
        passes += 1
        if below <= tolerance and above >= -tolerance:
            return alpha, passes
        if above < 0.0:
            left = alpha
            proposal = alpha - above / curvature if curvature > 0.0 else MAX_EXTRAPOLATION
        else:
            right = alpha
            proposal = alpha - below / curvature if curvature > 0.0 else 0.0
        if proposal >= MAX_EXTRAPOLATION:
            if left >= MAX_EXTRAPOLATION:
                return left, passes
            proposal = MAX_EXTRAPOLATION
        if not (left < proposal < right):
            proposal = 0.5 * (left + right)
        if proposal == alpha:
            return alpha, passes
        alpha = proposal
    return left, passes


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
def search_rows(
    rows, z, step, shift, lo, hi, weights, sample_weights, center, beta, slopes, weight, direction, thresholds,
    accuracy, bias, alphas,
):  # fmt: skip
    """Search along the directions of the listed rows and go where it leads; return the passes over rows.

    Row ``rows[a]`` moves its ``weight`` by alphas[a] * direction[a], its ``bias`` by alphas[a] * shift[a] and its z by
    alphas[a] * step[a]; ``slopes[a]`` is the slope of phi there. A full step to zero ends at zero exactly.
    """
    shared = weights.shape[0] == 1
    passes = 0
    for a in range(rows.size):
        i = rows[a]
        w = weights[0] if shared else weights[i]
        c = center[i] if beta > 0.0 else center[0]
        alpha, count = line_search(
            z[i], step[a], lo[i], hi[i], w, sample_weights, c, beta, slopes[a], weight[i], direction[a],
            thresholds[i], accuracy,
        )  # fmt: skip
        passes += count
        alphas[a] = alpha
        if alpha == 0.0:
            continue
        bias[i] += alpha * shift[a]
        for j in range(weight.shape[1]):
            d = direction[a, j]
            if d != 0.0:
                weight[i, j] = 0.0 if alpha == 1.0 and weight[i, j] == -d else weight[i, j] + alpha * d
        factor = _rounded(alpha, z)
        for k in range(z.shape[1]):
            z[i, k] += factor * step[a, k]
    return passes
