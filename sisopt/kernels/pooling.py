"""Max-pooling over windows of samples, and the intervals that keep its outputs; one row after the other.

``windows`` (n_windows, window_size) lists sample indices, -1 where a window has no entry; every window has one.
"""

from __future__ import annotations

import numpy as np
from numba import njit

FAST = {"contract", "nsz"}


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
def largest_in_windows(values, windows, out):
    """Write the largest value of every window to ``out`` (rows, n_windows); ``values`` is (rows, n_samples)."""
    for i in range(values.shape[0]):
        row = values[i]
        for w in range(windows.shape[0]):
            largest = -np.inf
            for j in range(windows.shape[1]):
                k = windows[w, j]
                if k >= 0:
                    largest = max(largest, row[k])
            out[i, w] = largest


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)
def pooled_intervals(z, inner_lo, inner_hi, windows, lo, hi):
    """Write the box around z (rows, n_samples) that keeps the largest R of every window, R non-decreasing.

    [inner_lo, inner_hi] keep R itself. In every window the first largest entry of z keeps its own interval, the others
    stay below its upper end; an entry of several windows satisfies all of them, one of none is free.
    """
    for i in range(z.shape[0]):
        row = z[i]
        lo[i] = -np.inf
        hi[i] = np.inf
        for w in range(windows.shape[0]):
            winner = -1
            for j in range(windows.shape[1]):
                k = windows[w, j]
                if k >= 0 and (winner < 0 or row[k] > row[winner]):
                    winner = k
            lo[i, winner] = inner_lo[i, winner]
            top = inner_hi[i, winner]
            for j in range(windows.shape[1]):
                k = windows[w, j]
                if k >= 0:
                    hi[i, k] = min(hi[i, k], top)
