"""Part of the samples, drawn evenly and always the same: where an approximation is enough to start from."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .problem import LayerProblem

Indices = npt.NDArray[np.intp]

WORTH = 2  # times as many samples as wanted before thinning pays
SEED = 20_210_708


def thinned_samples(n_samples: int, wanted: int) -> Indices | None:
    """Return ``wanted`` samples of all, ascending; None where these are not many more."""
    if n_samples <= WORTH * wanted:
        return None
    # one of each run of samples: even over time or space, and never in step with a period of the data
    edges = np.linspace(0, n_samples, wanted + 1).astype(np.intp)
    offsets = np.random.default_rng(SEED).random(wanted)
    return edges[:-1] + (offsets * np.diff(edges)).astype(np.intp)


def useful_samples(problem: LayerProblem, wanted: int) -> Indices | None:
    """Return ``wanted`` samples of a problem; None also where nothing on them has a weight."""
    samples = thinned_samples(problem.n_samples, wanted)
    if samples is None:
        return None
    given = (problem.sample_weights, problem.entry_weights)
    return samples if all(weights is None or weights[samples].any() for weights in given) else None


def thinned(problem: LayerProblem, samples: Indices) -> LayerProblem:
    """Return the problem on some of its samples, a copy."""
    assert problem.inputs is not None
    v, omega, s, z = problem.sample_weights, problem.entry_weights, problem.shift, problem._dense
    return LayerProblem(
        problem.inputs[samples],
        problem.weight,
        problem.bias,
        activation=problem.activation,
        preactivations=None if z is None else z[samples],
        shift=None if s is None else s[samples],
        tolerance=problem.tolerance,
        fidelity=problem.fidelity,
        entry_weights=None if omega is None else omega[samples],
        sample_weights=None if v is None else v[samples],
        penalty=problem.penalty,
        mask=problem.mask,
    )
