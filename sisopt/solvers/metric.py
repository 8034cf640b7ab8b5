"""The metric in which forward-backward steps are taken: the Gram matrix of the inputs, in the precision of the solver.

In float64 it is exact. A float32 solver only needs a metric that is near: a line search follows every step. So there it
comes from part of the samples where these are many more than the inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import products
from ..gram_statistics import forget_constants, input_center, input_gram
from ..problem import LayerProblem
from ..thinning import useful_samples

Array = npt.NDArray[np.float64]

PER_INPUT, LEAST = 16, 1 << 13  # samples behind a thinned metric
CONSTANT = 1e-6  # relative spread of an input below which it counts as constant in float32
RIDGE = {np.dtype(np.float64): 1e-9, np.dtype(np.float32): 4e-6}  # of the diagonal: far above what rounding takes off


@dataclass(frozen=True)
class Metric:
    """``gram`` (n_in, n_in) = sum_k v_k (x_k - m)(x_k - m)' and ``center`` (n_in,) = m, zeros without a bias.

    ``exact`` tells whether all samples are in it.
    """

    gram: npt.NDArray[Any]
    center: Array
    exact: bool

    @property
    def ridge(self) -> float:
        """What to add to the diagonal, relative to it."""
        return RIDGE[self.gram.dtype]


def input_metric(problem: LayerProblem, dtype: np.dtype[Any], n_threads: int) -> tuple[Metric, float]:
    """Return the metric in a precision, and the work of forming it, 0 where it was cached."""
    if dtype == np.float64:
        gram, work = input_gram(problem, n_threads)
        return Metric(gram, input_center(problem), exact=True), work
    if "metric" in problem._cache:
        return problem._cache["metric"], 0.0
    assert problem.inputs is not None
    X, v, share = problem.inputs, problem.sample_weights, 1.0
    samples = useful_samples(problem, max(PER_INPUT * problem.n_in, LEAST))
    if samples is not None:
        X, v = X[samples], None if v is None else v[samples]
        share = samples.size / problem.n_samples
    center = products.column_means(X, v) if problem.has_bias else np.zeros(problem.n_in)
    gram = products.gram(X, center if problem.has_bias else None, v, n_threads, np.float32)
    if problem.has_bias:
        forget_constants(gram, center, X.shape[0] if v is None else float(v.sum()), CONSTANT)
    if share < 1.0:
        gram /= share
    metric = Metric(gram, center, samples is None)
    problem._cache["metric"] = metric
    return metric, 2.0 * X.shape[0] * problem.n_in**2
