"""Targets that couple the outputs of a sample: each set holds z + c 1 with z, for every real c.

Notation, for one sample with outputs i = 1..m, a level l_i of every output and a support, a non-empty set of outputs:

    S   = {p : p_i = l_i + c on the support, p_i <= l_i + c elsewhere, c real}           target
    c   = argmin_c 1/2 sum_support (u_i - c)^2 + 1/2 sum_elsewhere max(u_i - c, 0)^2,    u = z - l
    e_i = u_i - c on the support, max(u_i - c, 0) elsewhere                              residual z - proj_S(z)

c is the mean of u over the support and over those other outputs where u_i > c: found by adding these in falling order,
O(m log m). A line has all outputs in the support. Arrays of samples are (n_samples, m); everything is exact but for
rounding, so no kernel iterates.
"""

from __future__ import annotations

import numpy as np
from numba import njit

FAST = {"reassoc", "contract", "nsz"}  # lets sums vectorise; NaN and infinities keep their meaning


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
def _common_shift(u, support, above):
    """Return c of one sample; ``above`` (m,) is scratch."""
    total = 0.0
    count = 0
    for i in range(u.size):
        if support[i]:
            total += u[i]
            count += 1
    c = total / count
    total = 0.0
    n_above = 0
    for i in range(u.size):
        if support[i]:
            total += u[i] - c
        elif u[i] > c:
            above[n_above] = u[i] - c
            n_above += 1
    c += total / count  # what the first mean lost to rounding, as where u is nearly constant and far from zero
    if n_above == 0:
        return c
    rise = 0.0
    total = 0.0
    ordered = np.sort(above[:n_above])
    for j in range(n_above - 1, -1, -1):
        if ordered[j] <= rise:
            break
        total += ordered[j]
        count += 1
        rise = total / count
    return c + rise


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
def common_shifts(z, level, support, shifts):
    """Write c of every sample to ``shifts`` (n_samples,)."""
    u = np.empty(z.shape[1])
    above = np.empty(z.shape[1])
    for k in range(z.shape[0]):
        for i in range(u.size):
            u[i] = z[k, i] - level[k, i]
        shifts[k] = _common_shift(u, support[k], above)


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
def residuals(z, level, support, out):
    """Write e of every sample to ``out`` (n_samples, m)."""
    above = np.empty(z.shape[1])
    for k in range(z.shape[0]):
        u = out[k]
        for i in range(u.size):
            u[i] = z[k, i] - level[k, i]
        c = _common_shift(u, support[k], above)
        for i in range(u.size):
            e = u[i] - c
            u[i] = e if e > 0.0 or support[k, i] else 0.0


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
def line_residuals(z, center, out):
    """Write e of every sample to ``out`` (n_samples, m) where all outputs are in the support: z - center, centred."""
    for k in range(z.shape[0]):
        u = out[k]
        total = 0.0
        for i in range(u.size):
            u[i] = z[k, i] - center[k, i]
            total += u[i]
        c = total / u.size
        total = 0.0
        for i in range(u.size):
            u[i] -= c
            total += u[i]
        c = total / u.size
        for i in range(u.size):
            u[i] -= c


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
def shift_gradient(z, bias, level, support, sample_weights, gradient, members, ends):
    """Write g = sum_k v_k e_k(z_k + bias) and what its derivative needs.

    ``members[ends[k - 1] : ends[k]]`` lists the outputs of sample k where e_k is curved: the support and those above c.
    Returns sum_k v_k |e_k|_1 and sum_k v_k max_i(|z_ki|, |bias_i|, |level_ki|): rounding of g, and of what it is
    computed from, is in proportion to them.
    """
    m = z.shape[1]
    u = np.empty(m)
    above = np.empty(m)
    gradient[:] = 0.0
    size = 0.0
    reach = 0.0
    n_members = 0
    for k in range(z.shape[0]):
        v = sample_weights[k]
        if v > 0.0:
            largest = 0.0
            for i in range(m):
                u[i] = z[k, i] + bias[i] - level[k, i]
                largest = max(largest, abs(z[k, i]), abs(bias[i]), abs(level[k, i]))
            c = _common_shift(u, support[k], above)
            for i in range(m):
                e = u[i] - c
                if support[k, i] or e > 0.0:
                    gradient[i] += v * e
                    size += v * abs(e)
                    members[n_members] = i
                    n_members += 1
            reach += v * largest
        ends[k] = n_members
    return size, reach


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
def shift_curvature(members, ends, sample_weights, direction, out):
    """Write H d to ``out``, H = sum_k v_k (I_k - 1_k 1_k' / |k|) with I_k, 1_k on the members of sample k."""
    out[:] = 0.0
    start = 0
    for k in range(ends.size):
        end = ends[k]
        if end > start:
            total = 0.0
            for a in range(start, end):
                total += direction[members[a]]
            mean = total / (end - start)
            v = sample_weights[k]
            for a in range(start, end):
                out[members[a]] += v * (direction[members[a]] - mean)
        start = end


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
def shift_diagonal(members, ends, sample_weights, out):
    """Write the diagonal of H to ``out`` (m,)."""
    out[:] = 0.0
    start = 0
    for k in range(ends.size):
        end = ends[k]
        if end > start:
            pull = sample_weights[k] * (1.0 - 1.0 / (end - start))
            for a in range(start, end):
                out[members[a]] += pull
        start = end


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
def _root(parent, i):
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
def shift_components(members, ends, label):
    """Write the least output of its connected component to ``label`` (m,): outputs are linked by samples they share.

    The vectors that are constant on every component are those with H d = 0.
    """
    for i in range(label.size):
        label[i] = i
    start = 0
    for k in range(ends.size):
        end = ends[k]
        if end > start:
            first = _root(label, members[start])
            for a in range(start + 1, end):
                other = _root(label, members[a])
                label[max(first, other)] = min(first, other)
                first = min(first, other)
        start = end
    for i in range(label.size):
        label[i] = _root(label, i)
