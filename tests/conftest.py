"""Small random layers with their raw data, so that tests can compute everything again without the package's kernels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize

import sisopt
from sisopt.activations import MaxPool
from sisopt.penalties import GroupL2, SparseGroup

Array = np.ndarray

COUPLED = ("softmax", "log_softmax", "sparsemax")
KERNEL, BLOCK, N_LABELS = (1, 3), (2, 5), 5


@dataclass(frozen=True, eq=False)
class Layer:
    """A problem and what it was made from; phi, its gradient and its conjugate in plain numpy.

    phi(Z) = 1/2 sum omega dist(Z, S)**2 + 1/2 sum pull (Z - center)**2; omega and pull hold the sample weights. S is
    [lo, hi] entry by entry, or couples the outputs of a sample. The penalty is
    g(W) = sum factors |W| + sum_g kappa_g ||W_g||.

    What takes ``mu`` (broadcastable to (n, n_out)) multiplies the loss of every entry by it: sum_j mu_j phi_j.
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
    activation: str = "identity"
    extras: tuple[str, ...] = ()
    labels: Array | None = None  # (n_out, n_in): the group of every weight
    kappa: Array = field(default_factory=lambda: np.zeros(0))  # (n_groups,)

    def preactivations(self, weight: Array, bias: Array | None) -> Array:
        """Return X W' + b in float64, (n, n_out)."""
        Z = self.X.astype(np.float64) @ np.asarray(weight, dtype=np.float64).T
        return Z if bias is None else Z + np.asarray(bias, dtype=np.float64)

    def residual(self, Z: Array) -> Array:
        """Return Z less its projection on S, (n, n_out)."""
        if self.activation == "sparsemax":
            s = self.options.get("shift", 0.0)
            return sparsemax_residual(Z + s, self.center + s)
        if self.activation in COUPLED:
            r = Z - self.center
            return r - r.mean(axis=1, keepdims=True)
        return Z - np.clip(Z, self.lo, self.hi)

    def phi(self, weight: Array, bias: Array | None) -> float:
        """Return phi(W, b)."""
        return float(self.entry_losses(self.preactivations(weight, bias)).sum())

    def entry_losses(self, Z: Array) -> Array:
        """Return the summands of phi, (n, n_out)."""
        return 0.5 * (self.omega * self.residual(Z) ** 2 + self.pull * (Z - self.center) ** 2)

    def radius(self, weight: Array, bias: Array | None) -> float:
        """Return sqrt(2 phi)."""
        return math.sqrt(2.0 * self.phi(weight, bias))

    def slopes(self, weight: Array, bias: Array | None, mu: Array | float = 1.0) -> Array:
        """Return d phi / d Z, (n, n_out)."""
        Z = self.preactivations(weight, bias)
        return mu * (self.omega * self.residual(Z) + self.pull * (Z - self.center))

    def gradient(self, weight: Array, bias: Array | None, mu: Array | float = 1.0) -> Array:
        """Return d phi / d W, (n_out, n_in)."""
        return self.slopes(weight, bias, mu).T @ self.X.astype(np.float64)

    def norms(self, weight: Array) -> Array:
        """Return the Euclidean norms of the groups of W, (n_groups,)."""
        W = np.asarray(weight, dtype=np.float64)
        return np.array([np.linalg.norm(W[self.labels == g]) for g in range(self.kappa.size)])

    def penalty(self, weight: Array) -> float:
        """Return g(W), infinite where a forbidden weight is not zero."""
        W = np.abs(np.asarray(weight, dtype=np.float64))
        return float(np.sum(self.factors[W > 0] * W[W > 0])) + float(self.kappa @ self.norms(W))

    def dual_norms(self, gradient: Array) -> Array:
        """Return the dual norm of C for every weight, of its group where there are groups, (n_out, n_in)."""
        C = np.where(np.isinf(self.factors), 0.0, np.abs(gradient))
        if self.labels is None:
            return C / self.factors
        found = np.empty(C.shape)
        for g in range(self.kappa.size):
            own = self.labels == g
            low, high = 0.0, float(np.linalg.norm(C[own]) / self.kappa[g])
            a = np.where(np.isinf(self.factors[own]), 0.0, self.factors[own])
            for _ in range(100 if a.any() else 0):
                middle = 0.5 * (low + high)
                above = np.linalg.norm(np.maximum(C[own] - middle * a, 0.0)) > middle * self.kappa[g]
                low, high = (middle, high) if above else (low, middle)
            found[own] = high
        return found

    def conjugate(self, U: Array) -> Array:
        """Return phi*(U) of every neuron, sup_Z <U, Z> - phi(Z), (n_out,); intervals only."""
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

    def best_bias(self, weight: Array, mu: Array | float = 1.0) -> Array:
        """Return a bias that minimises phi for these weights, by bisection on its slope, (n_out,).

        Where outputs are coupled a quasi-Newton method finds all biases together.
        """
        Z = self.preactivations(weight, None)
        if self.activation in COUPLED:
            return self._best_common_bias(Z, mu)
        reach = 1.0 + np.abs(Z).max() + np.abs(self.center).max() + np.abs(self.lo[np.isfinite(self.lo)]).max(initial=0)
        low, high = np.full(Z.shape[1], -reach), np.full(Z.shape[1], reach)
        for _ in range(200):
            middle = 0.5 * (low + high)
            up = self.slopes(weight, middle, mu).sum(axis=0) > 0
            low, high = np.where(up, low, middle), np.where(up, middle, high)
        return high

    def _best_common_bias(self, Z: Array, mu: Array | float) -> Array:
        scale = float(np.sum(mu * (self.omega + self.pull)))

        def loss(b: Array) -> tuple[float, Array]:
            e, off = self.residual(Z + b), Z + b - self.center
            value = 0.5 * np.sum(mu * (self.omega * e**2 + self.pull * off**2))
            return float(value) / scale, np.sum(mu * (self.omega * e + self.pull * off), axis=0) / scale

        b = np.mean(self.center - Z, axis=0)
        for _ in range(3):  # a fresh start takes back what the line search lost to rounding
            b = minimize(loss, b, jac=True, method="BFGS", options={"gtol": 1e-13}).x
        return b

    @property
    def empty_bias(self) -> Array | None:
        """The best bias of the layer without weights."""
        return None if self.b is None else self.best_bias(np.zeros(self.W.shape))

    @property
    def empty_radius(self) -> float:
        """Radius of the best constant layer."""
        return self.radius(np.zeros(self.W.shape), self.empty_bias)

    def budgets(self, goal: sisopt.ErrorBudget) -> list[tuple[Any, float]]:
        """Return the entries (an index into (n, n_out)) and the epsilon of every budget of a goal."""
        n, n_out = self.center.shape
        v = self.options.get("sample_weights", np.ones(n))
        entries = self.entry_losses(self.preactivations(np.zeros(self.W.shape), self.empty_bias))
        if goal.per == "neuron":
            empty = np.sqrt(2.0 * entries.sum(axis=0))
            equal = goal.radius if goal.eta is None else math.sqrt(goal.eta * v.sum() / n_out)
            own = [equal if goal.relative_error is None else goal.relative_error * float(e) for e in empty]
            return [(np.s_[:, i], own[i]) for i in range(n_out)]
        whole = goal.radius
        if goal.relative_error is not None:
            whole = goal.relative_error * math.sqrt(2.0 * entries.sum())
        if goal.eta is not None:
            whole = math.sqrt(goal.eta * v.sum())
        if goal.per == "layer":
            return [(np.s_[:, :], whole)]
        batches = [np.s_[k : min(k + goal.batch_size, n), :] for k in range(0, n, goal.batch_size)]
        if goal.radius is not None:
            return [(j, goal.radius) for j in batches]
        return [(j, whole * math.sqrt(v[j[0]].sum() / v.sum())) for j in batches]

    def group_losses(self, weight: Array, bias: Array | None, goal: sisopt.ErrorBudget) -> Array:
        """Return phi of every budget of a goal, (J,)."""
        entries = self.entry_losses(self.preactivations(weight, bias))
        return np.array([entries[index].sum() for index, _ in self.budgets(goal)])

    def spread(self, duals: Array, goal: sisopt.ErrorBudget) -> Array:
        """Return the dual variable of the budget of every entry, (n, n_out)."""
        mu = np.zeros(self.center.shape)
        for (index, _), dual in zip(self.budgets(goal), duals, strict=True):
            mu[index] = dual
        return mu

    def again(self, **changes: Any) -> sisopt.LayerProblem:
        """Pose the problem afresh with other arguments; nothing that was cached comes along."""
        given = {"inputs": self.X, "weight": self.W, "bias": self.b, **self.options, **changes}
        return sisopt.LayerProblem(given.pop("inputs"), given.pop("weight"), given.pop("bias"), **given)


def sparsemax_residual(Z: Array, z0: Array) -> Array:
    """Return the residuals of Z on {p = z0 + c on the support of sparsemax(z0), p <= t + c elsewhere}, t its threshold.

    With the support tied, sum_support (z - z0 - c) + sum_else max(z - t - c, 0) = 0 fixes c. The left side is the
    largest of its linear pieces, so that c is the largest of their roots.
    """
    counts = np.arange(Z.shape[1] + 1)
    falling = -np.sort(-z0, axis=1)
    # the sum of max(z0 - t, 0) is the largest of its linear pieces, too
    threshold = ((np.cumsum(falling, axis=1) - 1.0) / counts[1:]).max(axis=1, keepdims=True)
    support = z0 > threshold
    tied = np.where(support, Z - z0, 0.0).sum(axis=1, keepdims=True)
    others = -np.sort(np.where(support, np.inf, threshold - Z), axis=1)  # the support comes last, at -inf
    sums = np.concatenate([tied, tied + np.cumsum(others, axis=1)], axis=1)
    c = (sums / (support.sum(axis=1, keepdims=True) + counts)).max(axis=1, keepdims=True)
    return np.where(support, Z - z0 - c, np.maximum(Z - threshold - c, 0.0))


def pooled(lo: Array, hi: Array, z: Array, windows: Array) -> tuple[Array, Array]:
    """Return the box (n, n_out) of max-pooling over windows of samples, from the intervals of its activation."""
    low, high = np.full(z.shape, -np.inf), np.full(z.shape, np.inf)
    for i in range(z.shape[1]):
        for window in windows:
            first = window[np.argmax(z[window, i])]
            high[window, i] = np.minimum(high[window, i], hi[first, i])
            low[first, i] = lo[first, i]
    return low, high


def squares(n: int) -> Array:
    """Return windows of 2 x 2 positions with a stride of 1 on images of 2 x 5 positions, (windows, 4)."""
    starts = np.arange(n // 10)[:, None] * 10 + np.arange(4)
    return (starts.ravel()[:, None] + np.array([0, 1, 5, 6])).astype(np.int64)


def group_penalty(name: str, shape: tuple[int, int], rng: np.random.Generator) -> tuple[Any, Array, Array, Array]:
    """Return a penalty on groups of this name with its labels, its kappa and its factors."""
    row, column = np.indices(shape)
    factors = np.zeros(shape)
    if name == "sparse-group":
        labels = rng.integers(0, N_LABELS, shape)
        labels.flat[:N_LABELS] = np.arange(N_LABELS)
        kappa, factors = rng.uniform(0.5, 2.0, N_LABELS), rng.uniform(0.5, 1.5, shape)
        return SparseGroup(labels, l1=factors, weights=kappa), labels, kappa, factors
    across = -(-shape[1] // BLOCK[1])
    labels = {
        "columns": column,
        "rows": row,
        "kernels": row * (shape[1] // KERNEL[1]) + column // KERNEL[1],
        "blocks": row // BLOCK[0] * across + column // BLOCK[1],
    }[name]
    sizes = {"kernel_size": KERNEL} if name == "kernels" else {"block": BLOCK} if name == "blocks" else {}
    kappa = np.sqrt(np.bincount(labels.ravel()))
    if name == "rows":
        kappa = rng.uniform(0.5, 2.0, shape[0])
        sizes["weights"] = kappa
    return GroupL2(name, **sizes), labels, kappa, factors


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
    """Build a random layer; ``extras`` names the arguments of LayerProblem to use as well, or a penalty on groups.

    The activation "max_pool" pools overlapping squares of samples after a ReLU.
    """
    rng = np.random.default_rng([seed, n, n_in, n_out])
    mixing = np.eye(n_in) + 0.3 * rng.standard_normal((n_in, n_in))
    X = (rng.standard_normal((n, n_in)) @ mixing + 0.3).astype(dtype) if inputs is None else inputs
    W = rng.standard_normal((n_out, n_in)).astype(dtype)
    b = (0.5 * rng.standard_normal(n_out)).astype(dtype) if bias else None
    options: dict[str, Any] = {"activation": MaxPool(squares(n)) if activation == "max_pool" else activation}
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
    factors, labels, kappa = np.ones((n_out, n_in)), None, np.zeros(0)
    if "penalty" in extras:
        factors = rng.uniform(0.5, 2.0, (n_out, n_in))
        options["penalty"] = sisopt.WeightedL1(factors)
    for name in ("columns", "rows", "kernels", "blocks", "sparse-group"):
        if name in extras:
            options["penalty"], labels, kappa, factors = group_penalty(name, (n_out, n_in), rng)
    s = options.get("shift", 0.0)
    Z = X.astype(np.float64) @ W.astype(np.float64).T + (0.0 if b is None else b.astype(np.float64)) + s
    if "preactivations" in extras:
        Z = Z + 0.3 * rng.standard_normal((n, n_out))
        options["preactivations"] = Z
    lo = hi = Z
    if activation not in COUPLED:
        inner = "relu" if activation == "max_pool" else activation
        target = sisopt.get_activation(inner).preimage(Z, options.get("tolerance", 0.0))
        lo, hi = target.lo, target.hi
    if activation == "max_pool":
        lo, hi = pooled(lo, hi, Z, squares(n))
    v = options.get("sample_weights", np.ones(n))[:, None]
    return Layer(
        problem=sisopt.LayerProblem(X, W, b, **options),
        X=X,
        W=W,
        b=b,
        lo=lo - s,
        hi=hi - s,
        center=Z - s,
        omega=v * options.get("entry_weights", np.ones((n, n_out))),
        pull=np.broadcast_to(options.get("fidelity", 0.0) * v, (n, n_out)),
        factors=np.where(options["mask"], factors, np.inf) if "mask" in options else factors,
        options=options,
        activation=activation,
        extras=extras,
        labels=labels,
        kappa=kappa,
    )


@pytest.fixture(scope="session")
def make_layer() -> Callable[..., Layer]:
    """Return the builder of small random layers."""
    return build_layer


@pytest.fixture
def seeded_torch() -> Iterator[None]:
    """Seed torch, and let it run on one thread: small tensors would only make others wait."""
    torch = pytest.importorskip("torch")
    n_threads = torch.get_num_threads()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)
