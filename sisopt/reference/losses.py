"""The loss phi in plain numpy: neuron by neuron and mini-batch by mini-batch, at its best bias."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import UnsupportedError
from ..problem import LayerProblem

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class NeuronTarget:
    """One neuron on all samples: phi = 1/2 sum weights dist(z, [lo, hi])**2 + 1/2 sum pull (z - center)**2."""

    lo: Array
    hi: Array
    weights: Array
    center: Array
    pull: Array

    def losses(self, z: Array) -> Array:
        """Return what every sample adds to phi at pre-activations z (n_samples,)."""
        e = z - np.clip(z, self.lo, self.hi)
        return np.asarray(0.5 * (self.weights * e * e + self.pull * (z - self.center) ** 2))

    def best_bias(self, z: Array, anchor: float) -> float:
        """Return the b nearest to ``anchor`` among the minimisers of phi(z + b), a root of its slope."""
        used, pulled = self.weights > 0, self.pull > 0
        low = float(np.max((self.lo - z)[used], initial=-np.inf))
        high = float(np.min((self.hi - z)[used], initial=np.inf))
        if low <= high and not pulled.any():
            return min(max(anchor, low), high)

        def slope(b: float) -> float:
            y = z + b
            return float(self.weights @ (y - np.clip(y, self.lo, self.hi)) + self.pull @ (y - self.center))

        ends = np.concatenate([(self.lo - z)[used], (self.hi - z)[used], (self.center - z)[pulled]])
        ends = ends[np.isfinite(ends)]
        left, right = float(ends.min()), float(ends.max())
        if slope(left) >= 0.0 or slope(right) <= 0.0:  # one end is the root, up to rounding
            return left if slope(left) >= 0.0 else right
        from scipy.optimize import brentq  # noqa: PLC0415  slow to import, and seldom needed

        return float(brentq(slope, left, right, xtol=1e-16 * (right - left), rtol=4 * np.finfo(float).eps))


@dataclass(frozen=True)
class CoupledSets:
    """All outputs of every sample: S_k = {anchor + c on the support, p <= anchor + c off it : c real}.

    The preimage of a softmax has full support, anchored at the dense pre-activations; that of a sparsemax is anchored
    at its threshold where the output is 0. phi = 1/2 sum weights dist(z, S)**2 + 1/2 sum pull |z - center|**2.
    """

    anchor: Array  # (n_samples, n_out), as are the next two
    support: npt.NDArray[np.bool_]
    center: Array
    weights: Array  # (n_samples,)
    pull: Array  # (n_samples,)

    def losses(self, z: Array) -> Array:
        """Return what every sample adds to phi at pre-activations z (n_samples, n_out)."""
        v = z - self.anchor
        off = -np.sort(-np.where(self.support, -np.inf, v), axis=1)
        count = self.support.sum(axis=1, keepdims=True)
        total = np.where(self.support, v, 0.0).sum(axis=1, keepdims=True)
        # c is the mean of v over the support and the largest entries off it: one more of those raises the mean for as
        # long as it lies above it, so that the best number of them has the largest mean.
        means = np.hstack([total, total + np.cumsum(off, axis=1)]) / (count + np.arange(v.shape[1] + 1))
        e = v - means.max(axis=1, keepdims=True)
        e = np.where(self.support, e, np.maximum(e, 0.0))
        off_center = z - self.center
        return np.asarray(0.5 * (self.weights * np.sum(e * e, axis=1) + self.pull * np.sum(off_center**2, axis=1)))


def neuron_target(problem: LayerProblem, i: int) -> NeuronTarget:
    """Return the target of neuron i on all samples."""
    target = problem.row_target(slice(i, i + 1))
    pull = problem.fidelity * target.sample_weights
    center = target.center[0] if problem.fidelity > 0 else np.zeros(pull.shape)
    return NeuronTarget(target.lo[0], target.hi[0], target.weights[0], center, pull)


def coupled_sets(problem: LayerProblem) -> CoupledSets:
    """Return the targets of a softmax, log-softmax or sparsemax layer.

    Raises
    ------
    UnsupportedError
        If outputs of one sample have different weights.
    """
    assert problem.preactivations is not None
    if problem.entry_weights is not None:
        msg = f"the reference takes no entry_weights with {problem.activation.name}; use sample_weights"
        raise UnsupportedError(msg)
    z = problem.preactivations.astype(np.float64)
    anchor, support = z, np.ones(z.shape, np.bool_)
    if problem.activation.name == "sparsemax":
        ordered = -np.sort(-z, axis=1)
        excess = (np.cumsum(ordered, axis=1) - 1.0) / np.arange(1, z.shape[1] + 1)
        threshold = excess.max(axis=1, keepdims=True)  # sum max(z - threshold, 0) = 1
        support = z > threshold
        anchor = np.where(support, z, threshold)
    s = 0.0 if problem.shift is None else problem.shift
    v = np.ones(problem.n_samples) if problem.sample_weights is None else problem.sample_weights
    return CoupledSets(anchor - s, support, z - s, v, problem.fidelity * v)


def group_losses(problem: LayerProblem, weight: Array, bias: Array, batches: Sequence[slice]) -> Array:
    """Return phi of every neuron on every mini-batch, (n_out, batches); of all neurons, (1, batches), if coupled."""
    if problem.statistics is not None:
        return refit_biases(problem, weight)[1][:, None]
    X = np.asarray(problem.inputs, dtype=np.float64)
    if problem.activation.couples_outputs:
        each = coupled_sets(problem).losses(X @ weight.T + bias)[None]
    else:
        each = np.stack([neuron_target(problem, i).losses(X @ w + bias[i]) for i, w in enumerate(weight)])
    return np.stack([each[:, batch].sum(axis=1) for batch in batches], axis=1)


def refit_biases(problem: LayerProblem, weight: Array) -> tuple[Array, Array]:
    """Return the best bias and the loss phi of every neuron at ``weight``, each (n_out,); not for coupled outputs."""
    if problem.statistics is not None:
        s = problem.statistics
        squares = np.einsum("ij,ij->i", weight, weight @ s.gram - 2.0 * s.cross) + s.energy
        return s.target_mean - weight @ s.input_mean, 0.5 * (1.0 + problem.fidelity) * np.maximum(squares, 0.0)
    bias, loss = problem.dense_bias, np.empty(problem.n_out)
    X = np.asarray(problem.inputs, dtype=np.float64)
    for i in range(problem.n_out):
        target, z = neuron_target(problem, i), X @ weight[i]
        if problem.has_bias:
            bias[i] = target.best_bias(z, bias[i])
        loss[i] = target.losses(z + bias[i]).sum()
    return bias, loss
