"""spgl1: basis pursuit denoising by spectral projected gradients, one output neuron at a time."""

from __future__ import annotations

import numpy as np
from spgl1 import spg_bpdn


def solve_rows(inputs: np.ndarray, preactivations: np.ndarray, radii: np.ndarray, tol: float) -> np.ndarray:
    """Return for every neuron i the w_i of least l1 norm with ``||inputs w_i - preactivations_i|| <= radii_i``.

    ``tol`` is given to each of spgl1's tolerances. Shapes (n_samples, n_in), (n_samples, n_out), (n_out,); the answer
    is (n_out, n_in).
    """
    tolerances = {"opt_tol": tol, "dec_tol": tol, "bp_tol": tol, "ls_tol": tol}
    answers = (
        spg_bpdn(inputs, z, radius, iter_lim=10_000, **tolerances)[0]
        for z, radius in zip(np.ascontiguousarray(preactivations.T), radii, strict=True)
    )
    return np.array(list(answers))
