"""Weighted lasso problems on a curvature matrix: the inner step of every solver, one output neuron (row) at a time."""

from __future__ import annotations

import numpy as np
from numba import njit

FAST = {"reassoc", "contract", "nsz"}  # lets sums vectorise; NaN and infinities keep their meaning
SWEEPS_PER_ROUND = 3
FIRST_SWEEPS, SMALL = 8, 64  # sweeps that are tried before a factorisation of more than a small support
BLOCK = 32  # coordinates between two products of `block_sweeps`
BLOCK_PASSES = 2  # over a block: cheap next to the product, and neighbours tend to be correlated
RIDGE = 1e-11  # relative to the diagonal: far above rounding in the factor, far below any tolerance on the step


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
def _violation(x, r, thresholds):
    """Return the largest distance of -r_j from thresholds_j times the subdifferential of |.| at x_j."""
    worst = 0.0
    for j in range(x.size):
        if x[j] > 0.0:
            d = abs(r[j] + thresholds[j])
        elif x[j] < 0.0:
            d = abs(r[j] - thresholds[j])
        else:
            d = abs(r[j]) - thresholds[j]
        worst = max(worst, d)
    return worst


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
def _update(H, r, x, j, value):
    """Set x_j to ``value`` and keep r = q + H x."""
    delta = value - x[j]
    x[j] = value
    for i in range(r.size):
        r[i] += H[j, i] * delta


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
def _sweep(H, r, x, thresholds, support_only):
    """One pass of exact coordinate minimisation."""
    for j in range(x.size):
        old = x[j]
        if support_only and old == 0.0:
            continue
        h = H[j, j]
        t = thresholds[j]
        if h <= 0.0:  # no curvature: |x_j| only costs, unless r_j pulls harder than the threshold
            if old != 0.0 and t > 0.0 and abs(r[j]) <= t:
                _update(H, r, x, j, 0.0)
            continue
        u = h * old - r[j]
        new = (u - t) / h if u > t else ((u + t) / h if u < -t else 0.0)
        if new != old:
            _update(H, r, x, j, new)


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
def _support_step(H, r, x, thresholds):
    """Step towards the minimiser over the support with the signs kept; return True where it was reached.

    Coordinates that would change sign become zero, all at once where that descends, else up to the first of them.
    """
    support = np.flatnonzero(x)
    s = support.size
    A = np.empty((s, s))
    scale = np.empty(s)
    for a in range(s):
        h = H[support[a], support[a]]
        if h <= 0.0:
            return False
        scale[a] = 1.0 / np.sqrt(h)
    step = np.empty(s)
    for a in range(s):
        j = support[a]
        for b in range(s):
            A[a, b] = H[j, support[b]] * scale[a] * scale[b]
        A[a, a] = 1.0 + RIDGE * s
        step[a] = -(r[j] + np.sign(x[j]) * thresholds[j]) * scale[a]
    L = np.linalg.cholesky(A)
    for a in range(s):
        total = step[a]
        for b in range(a):
            total -= L[a, b] * step[b]
        step[a] = total / L[a, a]
    for a in range(s - 1, -1, -1):
        step[a] /= L[a, a]
        value = step[a]
        for b in range(a):
            step[b] -= L[a, b] * value

    first = 1.0  # the step at which the first coordinate reaches zero
    for a in range(s):
        step[a] *= scale[a]
        old = x[support[a]]
        if thresholds[support[a]] > 0.0 and old * (old + step[a]) <= 0.0:
            first = min(first, -old / step[a])
    if first >= 1.0:
        for a in range(s):
            _update(H, r, x, support[a], x[support[a]] + step[a])
        return True

    trial = r.copy()
    full = step.copy()
    linear = 0.0
    for a in range(s):
        j = support[a]
        old = x[j]
        new = old + step[a]
        if thresholds[j] > 0.0 and old * new <= 0.0:
            new = 0.0
        step[a] = new - old
        linear += r[j] * (new - old) + thresholds[j] * (abs(new) - abs(old))
        for i in range(r.size):
            trial[i] += H[j, i] * (new - old)
    quadratic = 0.0
    for a in range(s):
        quadratic += (trial[support[a]] - r[support[a]]) * step[a]
    if linear + 0.5 * quadratic < 0.0:
        r[:] = trial
        for a in range(s):
            x[support[a]] += step[a]
    else:
        for a in range(s):
            j = support[a]
            new = x[j] + first * full[a]
            if thresholds[j] > 0.0 and x[j] * (x[j] + full[a]) <= 0.0 and -x[j] / full[a] == first:
                new = 0.0
            _update(H, r, x, j, new)
    return False


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
def lasso(H, r, x, thresholds, tolerance, max_rounds):
    """Minimise 1/2 d'Hd + r'd + sum_j thresholds_j |x_j + d_j| over d, in place: x becomes x + d and r becomes r + Hd.

    Primal:  P(d) as above, H symmetric positive semidefinite, (m, m), float64; r is the gradient at the given x.
    Dual:    max_u -1/2 u'Hu + ...  is never formed: the outer certificate is, on the data.
    Stops when every coordinate satisfies its optimality condition to ``tolerance`` (units of the gradient):
    dist(-r_j, thresholds_j d|x_j|) <= tolerance, or after ``max_rounds`` rounds.

    A round is one step to the minimiser on the support by Cholesky, a full sweep of coordinate descent and a few sweeps
    over the support. Coordinates without curvature go to zero where
    they cost anything.
    Returns the number of floating-point operations.
    """
    m = x.size
    work = 0.0
    for _ in range(FIRST_SWEEPS if np.count_nonzero(x) > SMALL else 0):
        if _violation(x, r, thresholds) <= tolerance:
            return work
        _sweep(H, r, x, thresholds, False)
        work += 2.0 * m * np.count_nonzero(x)
    for _ in range(max_rounds):
        if _violation(x, r, thresholds) <= tolerance:
            break
        s = np.count_nonzero(x)
        if s > 0:
            work += s * s * s / 3.0 + 2.0 * m * s
            if _support_step(H, r, x, thresholds) and _violation(x, r, thresholds) <= tolerance:
                break
        _sweep(H, r, x, thresholds, False)
        for _ in range(SWEEPS_PER_ROUND):
            _sweep(H, r, x, thresholds, True)
        work += 2.0 * m * np.count_nonzero(x) * (1 + SWEEPS_PER_ROUND)
    return work


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
def model_rows(rows, weight, gradient, thresholds, metric, scales, near, ridge, accuracy, max_rounds, direction, work):
    """Write the directions of the lasso models of the listed rows in one metric, and the work spent on each.

    Row ``i = rows[a]`` minimises C_a'd + scales_a / 2 d'Md + sum_j t_ij |w_ij + d_j| over the columns with a weight or
    with |C_aj| > near t_ij; M is the ``metric`` plus ``ridge`` times its diagonal. ``direction`` (rows, m) is zero
    elsewhere. Stops as `lasso` does, at ``accuracy`` times the violation that it starts from.
    """
    for a in range(rows.size):
        w, c, t = weight[rows[a]], gradient[a], thresholds[rows[a]]
        columns = np.flatnonzero((w != 0.0) | (np.abs(c) > near * t))
        m = columns.size
        unit = np.empty(m)  # of coordinates in which violations compare
        g, x, bars = np.empty(m), np.empty(m), np.empty(m)
        violation = 0.0
        for p in range(m):
            j = columns[p]
            h = scales[a] * (1.0 + ridge) * metric[j, j]
            unit[p] = 1.0 / np.sqrt(h) if h > 0.0 else 1.0
            g[p], x[p], bars[p] = c[j] * unit[p], w[j] / unit[p], t[j] * unit[p]
            if x[p] != 0.0:
                violation = max(violation, abs(g[p] + np.sign(x[p]) * bars[p]))
            else:
                violation = max(violation, abs(g[p]) - bars[p])
        H = np.empty((m, m))
        for p in range(m):
            row = metric[columns[p]]
            factor = scales[a] * unit[p]
            for q in range(m):
                H[p, q] = factor * unit[q] * row[columns[q]]
            H[p, p] *= 1.0 + ridge
        work[a] = lasso(H, g, x, bars, accuracy * violation, max_rounds)
        direction[a] = 0.0
        for p in range(m):
            j = columns[p]
            direction[a, j] = -w[j] if x[p] == 0.0 else x[p] * unit[p] - w[j]


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
def block_sweeps(H, Q, W, thresholds, n_sweeps):
    """Sweep coordinate descent over many lasso problems that share H, in place, a block of coordinates at a time.

    Primal:  min over every column w of W of 1/2 w'Hw - q'w + sum_j t_j |w_j|, with q and t the columns of Q and
             ``thresholds``; W, Q and ``thresholds`` are (m, r), H (m, m) symmetric positive semidefinite, all float64.
    Dual:    none is formed: the caller's certificate is.
    No stopping rule: ``n_sweeps`` sweeps are made, none of which ascends.

    The gradient on a block comes from one product with the weights as they are, which costs a fraction of the rank-one
    updates that it replaces and gathers no rounding. Coordinates without curvature go to zero where they cost anything.
    """
    m, r = W.shape
    products = np.empty((BLOCK, r))
    delta = np.empty(r)
    for _ in range(n_sweeps):
        for start in range(0, m, BLOCK):
            stop = min(start + BLOCK, m)
            R = products[: stop - start]
            np.dot(H[start:stop], W, R)
            R -= Q[start:stop]
            for _ in range(BLOCK_PASSES):
                for j in range(start, stop):
                    g, w, t = R[j - start], W[j], thresholds[j]
                    h = H[j, j]
                    if h <= 0.0:
                        for i in range(r):
                            if t[i] > 0.0 and abs(g[i]) <= t[i]:
                                w[i] = 0.0
                        continue
                    inverse = 1.0 / h
                    largest = 0.0
                    for i in range(r):
                        u = h * w[i] - g[i]
                        new = (u - min(max(u, -t[i]), t[i])) * inverse
                        delta[i] = new - w[i]
                        w[i] = new
                        largest = max(largest, abs(delta[i]))
                    if largest == 0.0:
                        continue
                    for k in range(start, stop):
                        h = H[j, k]
                        row = R[k - start]
                        for i in range(r):
                            row[i] += h * delta[i]


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
def rescale(matrix, unit):
    """Multiply matrix[a, b] by unit[a] * unit[b], in place."""
    for a in range(unit.size):
        for b in range(unit.size):
            matrix[a, b] *= unit[a] * unit[b]


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
def submatrix(matrix, place, out):
    """Write matrix[place][:, place] to ``out``."""
    for a in range(place.size):
        row = matrix[place[a]]
        for b in range(place.size):
            out[a, b] = row[place[b]]


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
def gather(inputs, samples, columns, center, out):
    """Write inputs[samples][:, columns] - center[columns] to ``out`` in float64."""
    for a in range(samples.size):
        row = inputs[samples[a]]
        for b in range(columns.size):
            out[a, b] = row[columns[b]] - center[columns[b]]
