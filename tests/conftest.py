"""Small random layers with their raw data, so that tests can compute everything again without the package's kernels."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import sisopt

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class Layer:
    """A problem and what it was made from; phi, its gradient and its conjugate in plain numpy.

    phi(Z) = 1/2 sum omega dist(Z, [lo, hi])**2 + 1/2 sum pull (Z - center)**2; omega and pull hold the sample weights.
    """

    problem: sisopt.LayerProblem
    X: Array  # (n, n_in)
    W: Array  # (n_out, n_in), as given
    b: Array | None  # (n_out,), as given
    lo: Array  # (n, n_out)
    hi: Array  # (n, n_out)
    center: Array  # (n, n_out): the dense pre-activations less the shift
    omega: Array  # (n, n_out)
    pull: Array  # (n, n_out)
    factors: Array  # (n_out, n_in): the penalty's, infinite where the mask forbids a weight
    options: dict[str, Any]  # what the problem was made with, beside inputs, weight and bias

    def preactivations(self, weight: Array, bias: Array | None) -> Array:
        """Return X W' + b in float64, (n, n_out)."""
        Z = self.X.astype(np.float64) @ np.asarray(weight, dtype=np.float64).T
        return Z if bias is None else Z + np.asarray(bias, dtype=np.float64)

    def phi(self, weight: Array, bias: Array | None) -> float:
        """Return phi(W, b)."""
        return self._phi(self.preactivations(weight, bias))

    def _phi(self, Z: Array) -> float:
        e = Z - np.clip(Z, self.lo, self.hi)
        return 0.5 * float(np.sum(self.omega * e**2) + np.sum(self.pull * (Z - self.center) ** 2))

    def radius(self, weight: Array, bias: Array | None) -> float:
        """Return sqrt(2 phi)."""
        return math.sqrt(2.0 * self.phi(weight, bias))

    def slopes(self, weight: Array, bias: Array | None) -> Array:
        """Return d phi / d Z, (n, n_out)."""
        Z = self.preactivations(weight, bias)
        return self.omega * (Z - np.clip(Z, self.lo, self.hi)) + self.pull * (Z - self.center)

    def gradient(self, weight: Array, bias: Array | None) -> Array:
        """Return d phi / d W, (n_out, n_in)."""
        return self.slopes(weight, bias).T @ self.X.astype(np.float64)

    def penalty(self, weight: Array) -> float:
        """Return g(W), infinite where a forbidden weight is not zero."""
        W = np.abs(np.asarray(weight, dtype=np.float64))
        return float(np.sum(self.factors[W > 0] * W[W > 0]))

    def conjugate(self, U: Array) -> Array:
        """Return phi*(U) of every neuron, sup_Z <U, Z> - phi(Z), (n_out,)."""
        curvature = self.omega + self.pull
        with np.errstate(divide="ignore", invalid="ignore"):
            inside = np.where(self.pull > 0, self.center + U / self.pull, np.copysign(np.inf, U))
            end = np.where(inside > self.hi, self.hi, self.lo)
            beyond = (U + np.where(self.omega > 0, self.omega * end, 0.0) + self.pull * self.center) / curvature
            Z = np.where((inside >= self.lo) & (inside <= self.hi), inside, beyond)
            Z = np.where(U == 0, np.where(self.pull > 0, Z, np.clip(0.0, self.lo, self.hi)), Z)
            e = Z - np.clip(Z, self.lo, self.hi)
            loss = 0.5 * (np.where(self.omega > 0, self.omega * e**2, 0.0) + self.pull * (Z - self.center) ** 2)
        return np.sum(U * Z - loss, axis=0)

    def best_bias(self, weight: Array) -> Array:
        """Return a bias that minimises phi for these weights, by bisection on its slope, (n_out,)."""
        Z = self.preactivations(weight, None)
        reach = 1.0 + np.abs(Z).max() + np.abs(self.center).max() + np.abs(self.lo[np.isfinite(self.lo)]).max(initial=0)
        low, high = np.full(Z.shape[1], -reach), np.full(Z.shape[1], reach)
        for _ in range(200):
            middle = 0.5 * (low + high)
            up = self.slopes(weight, middle).sum(axis=0) > 0
            low, high = np.where(up, low, middle), np.where(up, middle, high)
        return high

    @property
    def empty_radius(self) -> float:
        """Radius of the best constant layer."""
        nothing = np.zeros(self.W.shape)
        return self.radius(nothing, None if self.b is None else self.best_bias(nothing))

    def again(self, **changes: Any) -> sisopt.LayerProblem:
        """Pose the problem afresh with other arguments; nothing that was cached comes along."""
        given = {"inputs": self.X, "weight": self.W, "bias": self.b, **self.options, **changes}
        return sisopt.LayerProblem(given.pop("inputs"), given.pop("weight"), given.pop("bias"), **given)


def build_layer(
    activation: str = "relu",
    *,
    extras: tuple[str, ...] = (),
    n: int = 80,
    n_in: int = 10,
    n_out: int = 3,
    bias: bool = True,
    dtype: type = np.float64,
    seed: int = 0,
    inputs: Array | None = None,
) -> Layer:
    """Build a random layer; ``extras`` names the arguments of LayerProblem to use as well."""
    rng = np.random.default_rng([seed, n, n_in, n_out])
    mixing = np.eye(n_in) + 0.3 * rng.standard_normal((n_in, n_in))
    X = (rng.standard_normal((n, n_in)) @ mixing + 0.3).astype(dtype) if inputs is None else inputs
    W = rng.standard_normal((n_out, n_in)).astype(dtype)
    b = (0.5 * rng.standard_normal(n_out)).astype(dtype) if bias else None
    options: dict[str, Any] = {"activation": activation}
    if "shift" in extras:
        options["shift"] = rng.standard_normal((n, n_out))
    if "entry_weights" in extras:
        options["entry_weights"] = rng.uniform(0.2, 1.0, (n, n_out))
    if "sample_weights" in extras:
        options["sample_weights"] = rng.uniform(0.0, 2.0, n)
        options["sample_weights"][:3] = 0.0
    if "fidelity" in extras:
        options["fidelity"] = 0.2
    if "tolerance" in extras:
        options["tolerance"] = 0.1
    if "mask" in extras:
        options["mask"] = rng.random((n_out, n_in)) < 0.8
        options["mask"][:, 0] = True
    factors = np.ones((n_out, n_in))
    if "penalty" in extras:
        factors = rng.uniform(0.5, 2.0, (n_out, n_in))
        options["penalty"] = sisopt.WeightedL1(factors)
    s = options.get("shift", 0.0)
    Z = X.astype(np.float64) @ W.astype(np.float64).T + (0.0 if b is None else b.astype(np.float64)) + s
    if "preactivations" in extras:
        Z = Z + 0.3 * rng.standard_normal((n, n_out))
        options["preactivations"] = Z
    target = sisopt.get_activation(activation).preimage(Z, options.get("tolerance", 0.0))
    v = options.get("sample_weights", np.ones(n))[:, None]
    return Layer(
        problem=sisopt.LayerProblem(X, W, b, **options),
        X=X,
        W=W,
        b=b,
        lo=target.lo - s,
        hi=target.hi - s,
        center=Z - s,
        omega=v * options.get("entry_weights", np.ones((n, n_out))),
        pull=np.broadcast_to(options.get("fidelity", 0.0) * v, (n, n_out)),
        factors=np.where(options["mask"], factors, np.inf) if "mask" in options else factors,
        options=options,
    )


@pytest.fixture(scope="session")
def make_layer() -> Callable[..., Layer]:
    """Return the builder of small random layers."""
    return build_layer
