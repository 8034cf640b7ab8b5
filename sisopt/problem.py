"""LayerProblem: one layer, its calibration data and its penalty, checked once and never copied."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from . import products
from .activations import Activation, get_activation
from .errors import InvalidInputError
from .penalties import Penalty, get_penalty
from .validation import as_float_array, broadcast, check_shape, number

Array = npt.NDArray[np.float64]

CHUNK_BYTES = 1 << 22  # one array (rows of outputs) x (all samples) of a chunk in float64
MAX_CHUNK_ROWS = 64
MIN_CHUNK_ROWS = 8
CHUNKS = 8  # that a layer is cut into, where its size allows


@dataclass(frozen=True)
class RowTarget:
    """The target of a few output neurons (rows) on all samples, as the kernels read it.

    ``lo``, ``hi`` are (rows, n_samples); ``center`` (the dense pre-activations) likewise, or (1, 1) without fidelity;
    ``weights`` is (rows, n_samples), or (1, n_samples) where all rows share them; ``sample_weights`` (n_samples,).
    """

    lo: Array
    hi: Array
    center: Array
    weights: Array
    sample_weights: Array
    fidelity: float


@dataclass(frozen=True)
class GramStatistics:
    """Sufficient statistics of an identity layer, centred where the layer has a bias.

    ``gram`` = sum_k v_k (x_k - m)(x_k - m)', ``cross`` = sum_k v_k (z_k - t)(x_k - m)' and ``energy`` = sum_k v_k
    (z_k - t)**2, with the means m and t (zero without a bias) and the total weight V = sum_k v_k.
    """

    gram: Array  # (n_in, n_in)
    cross: Array  # (n_out, n_in)
    energy: Array  # (n_out,)
    input_mean: Array  # (n_in,)
    target_mean: Array  # (n_out,)
    total_weight: float


@dataclass(frozen=True, eq=False, init=False, repr=False)
class LayerProblem:
    """A layer ``y = R(W x + b)`` with calibration data, posed as a convex program.

    With S_ki = R^{-1}({y_ki}) the set of pre-activations that give the dense layer's output on sample k, the loss is

        phi(W, b) = 1/2 sum_ki v_k omega_ki dist(w_i'x_k + b_i, S_ki)**2 + beta/2 sum_ki v_k (w_i'x_k + b_i - z_ki)**2

    and ``radius = sqrt(2 phi)``. Goals combine it with a penalty g(W); see `solve`.

    Parameters
    ----------
    inputs : array_like, shape (n_samples, n_in)
        What reaches the layer on calibration data, float32 or float64 (other real dtypes are converted). Kept by
        reference, never written to.
    weight : array_like, shape (n_out, n_in)
        The dense layer's W. Solutions come back in its dtype (integers as float64).
    bias : array_like, shape (n_out,), optional
        The dense layer's b, never penalised. None fits no bias.
    activation : str or Activation, default "identity"
        R: a name from `sisopt.activation_names` or an activation object.
    preactivations : array_like, shape (n_samples, n_out), optional
        The dense network's pre-activations z, shift included. Default: ``inputs @ weight.T + bias + shift``. Given
        where the inputs come from a network that is already sparse, while the target stays the dense network's.
    shift : array_like, broadcastable to (n_samples, n_out), optional
        A known term s added before the activation, R(W x + b + s), such as a residual branch.
    tolerance : float, default 0
        Outputs within this distance of the dense ones count as the same (units of outputs).
    fidelity : float, default 0
        beta >= 0, the weight of the plain distance to the dense pre-activations.
    entry_weights : array_like, broadcastable to (n_samples, n_out), optional
        omega >= 0 of every entry. Default: 1.
    sample_weights : array_like, shape (n_samples,), optional
        v >= 0 of every sample. Default: 1.
    penalty : str or penalty object, default "l1"
        g.
    mask : array_like of bool, shape (n_out, n_in), optional
        True where a weight may be non-zero. Default: everywhere.

    Raises
    ------
    InvalidInputError
        If an argument is not finite, real and of the right shape; the message names it.

    References
    ----------
    S. Verma, J.-C. Pesquet, "Sparsifying Networks via Subdifferential Inclusion", ICML 2021.
    """

    inputs: npt.NDArray[Any] | None
    weight: npt.NDArray[Any]
    bias: npt.NDArray[Any] | None
    activation: Activation
    preactivations: npt.NDArray[Any] | None
    shift: npt.NDArray[Any] | None
    tolerance: float
    fidelity: float
    entry_weights: npt.NDArray[Any] | None
    sample_weights: Array | None
    penalty: Penalty
    mask: npt.NDArray[np.bool_] | None
    statistics: GramStatistics | None
    n_samples: int
    _cache: dict[str, Any] = field(compare=False)

    def __init__(
        self,
        inputs: npt.ArrayLike,
        weight: npt.ArrayLike,
        bias: npt.ArrayLike | None = None,
        *,
        activation: str | Activation = "identity",
        preactivations: npt.ArrayLike | None = None,
        shift: npt.ArrayLike | None = None,
        tolerance: float = 0.0,
        fidelity: float = 0.0,
        entry_weights: npt.ArrayLike | None = None,
        sample_weights: npt.ArrayLike | None = None,
        penalty: str | Penalty = "l1",
        mask: npt.ArrayLike | None = None,
    ) -> None:
        X = as_float_array("inputs", inputs, 2)
        n_samples, n_in = X.shape
        if n_samples == 0:
            msg = f"inputs must hold at least one sample, got shape {X.shape}"
            raise InvalidInputError(msg)
        W, b = _dense_layer(weight, bias, n_in, f"to match inputs of shape {X.shape}")
        data_shape = (n_samples, W.shape[0])
        meaning = "(n_samples, n_out)"
        s = omega = v = None
        if shift is not None:
            s = broadcast("shift", as_float_array("shift", shift, None), data_shape, meaning)
        if entry_weights is not None:
            omega = as_float_array("entry_weights", entry_weights, None)
            omega = broadcast("entry_weights", omega, data_shape, meaning)
            _check_weights("entry_weights", omega)
        if sample_weights is not None:
            v = as_float_array("sample_weights", sample_weights, 1, dtype=np.float64)
            check_shape("sample_weights", v, (n_samples,), "(one per sample)")
            _check_weights("sample_weights", v)
        if preactivations is not None:
            Z = as_float_array("preactivations", preactivations, 2)
            check_shape("preactivations", Z, data_shape, meaning)
        else:
            Z = _dense_preactivations(X, W, b, s)
        self._set(
            inputs=X,
            weight=W,
            bias=b,
            activation=get_activation(activation),
            preactivations=Z,
            shift=s,
            tolerance=number("tolerance", tolerance, low=0.0),
            fidelity=number("fidelity", fidelity, low=0.0),
            entry_weights=omega,
            sample_weights=v,
            penalty=get_penalty(penalty),
            mask=_check_mask(mask, W.shape),
            statistics=None,
            n_samples=n_samples,
            _cache={},
        )

    def _set(self, **fields: Any) -> None:
        for name, value in fields.items():
            object.__setattr__(self, name, value)
        self.thresholds()  # fails early where the penalty's weights do not fit

    @classmethod
    def from_gram(
        cls,
        gram: npt.ArrayLike,
        cross: npt.ArrayLike | None = None,
        *,
        weight: npt.ArrayLike,
        n_samples: int,
        bias: npt.ArrayLike | None = None,
        energy: npt.ArrayLike | None = None,
        input_sum: npt.ArrayLike | None = None,
        target_sum: npt.ArrayLike | None = None,
        activation: str | Activation = "identity",
        penalty: str | Penalty = "l1",
        mask: npt.ArrayLike | None = None,
    ) -> LayerProblem:
        """Pose an identity layer from sums over samples, for tools that keep no inputs.

        Parameters
        ----------
        gram : array_like, shape (n_in, n_in)
            ``X.T @ X``, a sum, not a mean.
        cross : array_like, shape (n_out, n_in), optional
            ``Z.T @ X`` for target pre-activations Z; default: those of the dense layer.
        weight, bias, penalty, mask
            As in `LayerProblem`.
        n_samples : int
            Number of samples behind the sums.
        energy : array_like, shape (n_out,), optional
            ``(Z ** 2).sum(0)``; needed with ``cross``.
        input_sum : array_like, shape (n_in,), optional
            ``X.sum(0)``; needed with a bias.
        target_sum : array_like, shape (n_out,), optional
            ``Z.sum(0)``; needed with ``cross`` and a bias.
        activation : str or Activation
            Only "identity": every other target needs the inputs themselves.

        Raises
        ------
        InvalidInputError
            If an argument is missing, misshapen, not finite, or ``gram`` is not symmetric positive semidefinite.
        UnsupportedError
            If ``activation`` is not the identity.
        """
        from .gram_statistics import statistics_from_sums  # noqa: PLC0415  it builds on this module

        R = get_activation(activation)
        G = as_float_array("gram", gram, 2, dtype=np.float64)
        check_shape("gram", G, (G.shape[0], G.shape[0]), "(n_in, n_in)")
        W, b = _dense_layer(weight, bias, G.shape[0], f"to match gram of shape {G.shape}")
        statistics, count = statistics_from_sums(R, G, cross, W, b, n_samples, energy, input_sum, target_sum)
        problem = cls.__new__(cls)
        problem._set(
            inputs=None,
            weight=W,
            bias=b,
            activation=R,
            preactivations=None,
            shift=None,
            tolerance=0.0,
            fidelity=0.0,
            entry_weights=None,
            sample_weights=None,
            penalty=get_penalty(penalty),
            mask=_check_mask(mask, W.shape),
            statistics=statistics,
            n_samples=count,
            _cache={},
        )
        return problem

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        extras = "".join(
            f", {name}={getattr(self, name):g}" for name in ("tolerance", "fidelity") if getattr(self, name) > 0
        )
        return (
            f"LayerProblem({self.n_samples} samples, {self.n_in} inputs -> {self.n_out} outputs, "
            f"activation={self.activation.name!r}, bias={self.has_bias}{extras})"
        )

    @property
    def n_in(self) -> int:
        """Number of inputs of the layer."""
        return int(self.weight.shape[1])

    @property
    def n_out(self) -> int:
        """Number of output neurons."""
        return int(self.weight.shape[0])

    @property
    def has_bias(self) -> bool:
        """Whether a bias is fitted."""
        return self.bias is not None

    @property
    def dense_bias(self) -> Array:
        """The dense bias in float64, zeros where there is none, shape (n_out,)."""
        return np.zeros(self.n_out) if self.bias is None else self.bias.astype(np.float64)

    @property
    def total_weight(self) -> float:
        """Sum of the sample weights: the number of samples where there are none."""
        if self.statistics is not None:
            return self.statistics.total_weight
        return float(self.n_samples) if self.sample_weights is None else float(self.sample_weights.sum())

    def thresholds(self) -> Array:
        """Return the penalty's factor of every |W_ij|, (n_out, n_in), infinite where the mask forbids a weight."""
        factors = np.broadcast_to(self.penalty.thresholds(self.weight.shape), self.weight.shape)
        return factors if self.mask is None else np.where(self.mask, factors, np.inf)

    def chunks(self) -> list[slice]:
        """Return the chunks of output neurons that are solved together; they depend on the sizes alone."""
        wanted = max(MIN_CHUNK_ROWS, -(-self.n_out // CHUNKS))
        rows = min(MAX_CHUNK_ROWS, wanted, max(1, CHUNK_BYTES // (8 * self.n_samples)))
        return [slice(i, min(i + rows, self.n_out)) for i in range(0, self.n_out, rows)]

    def row_target(self, rows: slice) -> RowTarget:
        """Produce the target of a chunk of output neurons: S - s, transposed, in float64."""
        assert self.preactivations is not None
        z = np.ascontiguousarray(self.preactivations.T[rows], dtype=np.float64)
        interval = self.activation.preimage(z, self.tolerance)
        lo, hi = interval.lo, interval.hi
        if self.shift is not None:
            s = self.shift.T[rows]
            lo, hi, z = lo - s, hi - s, z - s
        v = np.ones(self.n_samples) if self.sample_weights is None else self.sample_weights
        weights = v[None]
        if self.entry_weights is not None:
            weights = self.entry_weights.T[rows] * v
        return RowTarget(
            lo=np.ascontiguousarray(lo),
            hi=np.ascontiguousarray(hi),
            center=z if self.fidelity > 0 else np.zeros((1, 1)),
            weights=np.ascontiguousarray(weights, dtype=np.float64),
            sample_weights=v,
            fidelity=self.fidelity,
        )

    def outputs(self, weight: npt.ArrayLike, bias: npt.ArrayLike | None, rows: slice) -> tuple[Array, Array]:
        """Return the outputs of a chunk of neurons, of the given layer and of the dense one, each (rows, n_samples)."""
        assert self.inputs is not None
        assert self.preactivations is not None
        W = np.ascontiguousarray(np.asarray(weight, dtype=np.float64)[rows])
        z = products.forward(self.inputs, W, np.empty((W.shape[0], self.n_samples)))
        if bias is not None:
            z += np.asarray(bias, dtype=np.float64)[rows, None]
        if self.shift is not None:
            z += self.shift.T[rows]
        dense = self.preactivations.T[rows].astype(np.float64)
        return self.activation.forward(z), self.activation.forward(dense)

    def replace(self, **changes: Any) -> LayerProblem:
        """Return a copy with other penalty, mask or fidelity, sharing the data and what was computed from it."""
        other = LayerProblem.__new__(LayerProblem)
        other.__setstate__({**self.__dict__, **changes})
        return other


def _dense_layer(
    weight: npt.ArrayLike, bias: npt.ArrayLike | None, n_in: int, meaning: str
) -> tuple[npt.NDArray[Any], npt.NDArray[Any] | None]:
    if np.asarray(weight).dtype == np.float16:
        msg = "weight must be float32 or float64, got float16: convert it, solve, and round the answer back"
        raise InvalidInputError(msg)
    W = as_float_array("weight", weight, 2)
    if W.shape[0] == 0 or W.shape[1] == 0:
        msg = f"weight must have at least one output and one input, got shape {W.shape}"
        raise InvalidInputError(msg)
    if W.shape[1] != n_in:
        msg = f"weight must have shape (n_out, {n_in}) {meaning}, got {W.shape}"
        raise InvalidInputError(msg)
    if bias is None:
        return W, None
    b = as_float_array("bias", bias, 1)
    check_shape("bias", b, (W.shape[0],), "(one per output)")
    return W, b


def _dense_preactivations(
    X: npt.NDArray[Any], W: npt.NDArray[Any], b: npt.NDArray[Any] | None, s: npt.NDArray[Any] | None
) -> npt.NDArray[Any]:
    """Return X W' + b + s as (n_samples, n_out) float64, stored neuron by neuron."""
    z = np.empty((W.shape[0], X.shape[0]))
    products.forward(X, W.astype(np.float64), z)
    if b is not None:
        z += b[:, None]
    if s is not None:
        z += s.T
    if not np.isfinite(z).all():
        msg = "inputs and weight are finite but their product is not: scale the inputs down"
        raise InvalidInputError(msg)
    z.flags.writeable = False
    return z.T


def _check_weights(name: str, array: npt.NDArray[Any]) -> None:
    if (array < 0).any():
        msg = f"{name} must not be negative, got a least entry of {array.min():g}"
        raise InvalidInputError(msg)
    if not (array > 0).any():
        msg = f"{name} must not all be zero"
        raise InvalidInputError(msg)


def _check_mask(mask: npt.ArrayLike | None, shape: tuple[int, ...]) -> npt.NDArray[np.bool_] | None:
    if mask is None:
        return None
    array = np.asarray(mask)
    if array.dtype != np.bool_:
        msg = f"mask must be boolean (True where a weight may be non-zero), got dtype {array.dtype}"
        raise InvalidInputError(msg)
    check_shape("mask", array, shape, "(that of weight)")
    return array
