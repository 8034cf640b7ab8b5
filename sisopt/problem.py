"""LayerProblem: one layer, its calibration data and its penalty, checked once and never copied."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from . import products
from .activations import Activation, get_activation
from .activations.base import Elementwise
from .batches import BatchStream
from .errors import InvalidInputError
from .penalties import Penalty, Structure, get_penalty
from .sums import GramStatistics, statistics_from_sums
from .targets import CoupledTarget, Interval, RowTarget
from .validation import (
    LARGEST,
    as_float_array,
    broadcast,
    bytes_in_memory,
    check_mask,
    check_shape,
    check_size,
    check_weights,
    dense_layer,
    largest,
    number,
)

Array = npt.NDArray[np.float64]

KEPT_BYTES = 1 << 26  # of pre-activations that are kept however small the inputs are; else up to half of the inputs
PIECE = 1 << 16  # entries of a target that are produced at a time


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
        g: "l1", "columns" or "rows" (group norms of inputs or of neurons), or an object such as `WeightedL1`,
        `GroupL2` and `SparseGroup`.
    mask : array_like of bool, shape (n_out, n_in), optional
        True where a weight may be non-zero. Default: everywhere.

    Raises
    ------
    InvalidInputError
        If an argument is not finite, real and of the right shape; the message names it.

    Examples
    --------
    >>> import numpy as np, sisopt
    >>> rng = np.random.default_rng(0)
    >>> problem = sisopt.LayerProblem(rng.normal(size=(200, 8)), rng.normal(size=(3, 8)), activation="relu")
    >>> problem.n_samples, problem.n_in, problem.n_out
    (200, 8, 3)
    >>> solution = sisopt.solve(problem, sisopt.ErrorBudget(relative_error=0.2))
    >>> solution.gap < 1e-4
    True

    References
    ----------
    S. Verma, J.-C. Pesquet, "Sparsifying Networks via Subdifferential Inclusion", ICML 2021.
    """

    inputs: npt.NDArray[Any] | None
    weight: npt.NDArray[Any]
    bias: npt.NDArray[Any] | None
    activation: Activation
    shift: npt.NDArray[Any] | None
    tolerance: float
    fidelity: float
    entry_weights: npt.NDArray[Any] | None
    sample_weights: Array | None
    penalty: Penalty
    mask: npt.NDArray[np.bool_] | None
    statistics: GramStatistics | None
    batches: BatchStream | None
    n_samples: int
    structure: Structure = field(init=False)
    own_targets: bool  # whether the targets are those of weight and inputs
    _dense: npt.NDArray[Any] | None  # the pre-activations, where they were given or are kept
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
        W, b = dense_layer(weight, bias, n_in, f"to match inputs of shape {X.shape}")
        data_shape = (n_samples, W.shape[0])
        meaning = "(n_samples, n_out)"
        s = omega = v = None
        if shift is not None:
            s = broadcast("shift", as_float_array("shift", shift, None), data_shape, meaning)
        if entry_weights is not None:
            omega = as_float_array("entry_weights", entry_weights, None)
            omega = broadcast("entry_weights", omega, data_shape, meaning)
            check_weights("entry_weights", omega)
        if sample_weights is not None:
            v = as_float_array("sample_weights", sample_weights, 1, dtype=np.float64)
            check_shape("sample_weights", v, (n_samples,), "(one per sample)")
            check_weights("sample_weights", v)
        if preactivations is None:
            Z = _kept_preactivations(X, W, b, s)
        else:
            Z = as_float_array("preactivations", preactivations, 2)
            check_shape("preactivations", Z, data_shape, meaning)
            check_size("preactivations", Z)
        check_size("inputs", X)
        self._set(
            inputs=X,
            weight=W,
            bias=b,
            activation=get_activation(activation),
            shift=s,
            tolerance=number("tolerance", tolerance, low=0.0),
            fidelity=number("fidelity", fidelity, low=0.0),
            entry_weights=omega,
            sample_weights=v,
            penalty=get_penalty(penalty),
            mask=check_mask(mask, W.shape),
            statistics=None,
            batches=None,
            n_samples=n_samples,
            own_targets=preactivations is None,
            _dense=Z,
            _cache={},
        )

    def _set(self, **fields: Any) -> None:
        for name, value in fields.items():
            object.__setattr__(self, name, value)
        if self.activation.couples_outputs and self.tolerance > 0:
            self.activation.preimage(np.zeros((1, self.n_out)), self.tolerance)  # refuses
        object.__setattr__(self, "structure", self.penalty.structure((self.n_out, self.n_in), self.mask))

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
        R = get_activation(activation)
        G = as_float_array("gram", gram, 2, dtype=np.float64)
        check_shape("gram", G, (G.shape[0], G.shape[0]), "(n_in, n_in)")
        W, b = dense_layer(weight, bias, G.shape[0], f"to match gram of shape {G.shape}")
        statistics, count = statistics_from_sums(R, G, cross, W, b, n_samples, energy, input_sum, target_sum)
        return cls._pose(
            weight=W,
            bias=b,
            activation=R,
            penalty=get_penalty(penalty),
            mask=check_mask(mask, W.shape),
            statistics=statistics,
            n_samples=count,
        )

    @classmethod
    def from_batches(
        cls,
        batches: Iterable[Any] | BatchStream,
        weight: npt.ArrayLike,
        bias: npt.ArrayLike | None = None,
        *,
        activation: str | Activation = "identity",
        tolerance: float = 0.0,
        fidelity: float = 0.0,
        penalty: str | Penalty = "l1",
        mask: npt.ArrayLike | None = None,
    ) -> LayerProblem:
        """Pose a layer over mini-batches that are read again and again, so that the data may be larger than memory.

        Only ``method="sis"`` solves such a problem.

        Parameters
        ----------
        batches : iterable of (inputs, preactivations), or BatchStream
            Mini-batches, each of shapes (T, n_in) and (T, n_out); without pre-activations those of the dense layer.
            Anything that can be iterated more than once and gives the same batches every time; arrays on disk are cut
            by `BatchStream.from_arrays`.
        weight, bias, activation, tolerance, fidelity, penalty, mask
            As in `LayerProblem`.

        Raises
        ------
        InvalidInputError
            If an argument or a batch is not what it should be; also later, if batches change between passes.
        """
        stream = batches if isinstance(batches, BatchStream) else BatchStream(batches, weight, bias)
        W, b = dense_layer(weight, bias, stream.n_in, f"to match batches of {stream.n_in} inputs")
        return cls._pose(
            weight=W,
            bias=b,
            activation=get_activation(activation),
            tolerance=number("tolerance", tolerance, low=0.0),
            fidelity=number("fidelity", fidelity, low=0.0),
            penalty=get_penalty(penalty),
            mask=check_mask(mask, W.shape),
            batches=stream,
            n_samples=stream.n_samples,
        )

    @classmethod
    def _pose(cls, **fields: Any) -> LayerProblem:
        """Return a problem without inputs from checked fields."""
        absent = ("inputs", "_dense", "shift", "entry_weights", "sample_weights", "statistics", "batches")
        problem = cls.__new__(cls)
        plain = {"own_targets": False, "tolerance": 0.0, "fidelity": 0.0, "_cache": {}}
        nothing: dict[str, Any] = {**dict.fromkeys(absent), **plain}
        problem._set(**{**nothing, **fields})
        return problem

    def __getstate__(self) -> dict[str, Any]:
        kept = {name: value for name, value in self.__dict__.items() if name != "structure"}
        return {**kept, "_cache": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._set(**state)

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

    def allowed(self) -> npt.NDArray[np.bool_]:
        """Return where a weight may be non-zero, (n_out, n_in)."""
        return np.ones(self.weight.shape, np.bool_) if self.mask is None else self.mask

    def masked(self, weight: npt.NDArray[Any]) -> Array:
        """Return weights (n_out, n_in) in float64, a copy that is zero where the mask forbids them."""
        return np.where(self.allowed(), weight, 0.0).astype(np.float64, copy=False)

    def chunks(self, count: int = products.CHUNKS) -> list[slice]:
        """Return the chunks of output neurons that are computed together; they depend on the sizes alone."""
        if self.activation.couples_outputs:
            return [slice(0, self.n_out)]
        return products.row_chunks(self.n_out, self.n_samples, self.n_in, count)

    @property
    def preactivations(self) -> npt.NDArray[Any] | None:
        """The dense network's z, shift included, (n_samples, n_out); None without inputs.

        Computed anew each time where it would take too much memory to be kept.
        """
        if self._dense is not None or self.inputs is None:
            return self._dense
        return products.dense_preactivations(self.inputs, self.weight, self.bias, self.shift)

    def dense_rows(self, rows: slice) -> Array:
        """Return the dense pre-activations, shift included, of a chunk of output neurons, (rows, n_samples), float64.

        Not to be written to: they may be a view. Where they are not kept, this costs a product.
        """
        if self._dense is not None:
            return np.ascontiguousarray(self._dense.T[rows], dtype=np.float64)
        assert self.inputs is not None
        return products.dense_rows(self.inputs, self.weight, self.bias, self.shift, rows)

    def row_target(self, rows: slice, dtype: type[np.floating[Any]] = np.float64) -> RowTarget:
        """Produce the target of a chunk of output neurons: S - s, transposed, computed in float64 and kept in dtype."""
        z = self.dense_rows(rows)
        lo, hi = np.empty(z.shape, dtype), np.empty(z.shape, dtype)
        center = np.zeros((1, 1), dtype) if self.fidelity == 0 else np.empty(z.shape, dtype)
        shift = None if self.shift is None else self.shift.T[rows]
        for piece in self.pieces(z.shape):
            interval = self.activation.preimage(z[piece], self.tolerance)
            assert isinstance(interval, Interval)
            s = 0.0 if shift is None else shift[piece]
            np.subtract(interval.lo, s, out=lo[piece], casting="same_kind")
            np.subtract(interval.hi, s, out=hi[piece], casting="same_kind")
            if self.fidelity > 0:
                np.subtract(z[piece], s, out=center[piece], casting="same_kind")
        v = np.ones(self.n_samples, dtype) if self.sample_weights is None else self.sample_weights.astype(dtype)
        weights = v[None]
        if self.entry_weights is not None:
            weights = np.empty(z.shape, dtype)
            given = 1.0 if self.sample_weights is None else self.sample_weights
            np.multiply(self.entry_weights.T[rows], given, out=weights, casting="same_kind", dtype=np.float64)
        return RowTarget(lo=lo, hi=hi, center=center, weights=weights, sample_weights=v, fidelity=self.fidelity)

    def pieces(self, shape: tuple[int, ...]) -> Iterator[tuple[slice, slice]]:
        """Yield pieces of (rows, n_samples) on which the activation can act alone, small where it can."""
        rows = shape[0] if self.activation.couples_outputs else 1
        along = shape[1]
        if isinstance(self.activation, Elementwise):
            along = max(1, PIECE // rows)
        down = max(rows, PIECE // along)
        for i in range(0, shape[0], down):
            for k in range(0, shape[1], along):
                yield slice(i, min(i + down, shape[0])), slice(k, min(k + along, shape[1]))

    def coupled_target(self) -> CoupledTarget:
        """Produce the target of an activation that couples outputs: S - s of all samples."""
        assert self.preactivations is not None
        z = np.ascontiguousarray(self.preactivations, dtype=np.float64)
        target = self.activation.preimage(z, self.tolerance)
        assert isinstance(target, CoupledTarget)
        return target if self.shift is None else target.shifted(self.shift)

    def with_sample_weights(self, sample_weights: Array) -> LayerProblem:
        """Return a copy with other sample weights (n_samples,), sharing the data."""
        kept = {name: self._cache[name] for name in ("quadratic",) if name in self._cache}
        return self._with(sample_weights=sample_weights, _cache=kept)

    def with_mask(self, mask: npt.NDArray[np.bool_] | None, penalty: Penalty | None = None) -> LayerProblem:
        """Return a copy with another mask (n_out, n_in) or penalty that shares the data and what came of them."""
        g = self.penalty if penalty is None else penalty
        return self._with(mask=mask, penalty=g)

    def with_loss(self, **changes: Any) -> LayerProblem:
        """Return a copy with another fidelity, tolerance or entry weights, sharing data and what came of the inputs."""
        kept = {name: self._cache[name] for name in ("gram", "center", "metric") if name in self._cache}
        return self._with(**changes, _cache=kept)

    def with_rows(self, rows: npt.NDArray[np.intp]) -> LayerProblem:
        """Return the layer of some of the output neurons with the l1 penalty, sharing the inputs."""
        z, s, omega = self._dense, self.shift, self.entry_weights
        return LayerProblem(
            self.inputs,  # type: ignore[arg-type]
            self.weight[rows],
            None if self.bias is None else self.bias[rows],
            activation=self.activation,
            preactivations=None if z is None else z[:, rows],
            shift=None if s is None else s[:, rows],
            tolerance=self.tolerance,
            fidelity=self.fidelity,
            entry_weights=None if omega is None else omega[:, rows],
            sample_weights=self.sample_weights,
            mask=None if self.mask is None else self.mask[rows],
        )

    def _with(self, **changes: Any) -> LayerProblem:
        other = LayerProblem.__new__(LayerProblem)
        other._set(**{**self.__dict__, **changes})
        return other


def _kept_preactivations(
    X: npt.NDArray[Any], W: npt.NDArray[Any], b: npt.NDArray[Any] | None, s: npt.NDArray[Any] | None
) -> npt.NDArray[Any] | None:
    """Return the dense pre-activations, (n_samples, n_out), or None where they would take too much memory; checked."""
    if 8 * X.shape[0] * W.shape[0] <= max(KEPT_BYTES, bytes_in_memory(X) // 2):
        return products.dense_preactivations(X, W, b, s)
    with np.errstate(over="ignore"):
        reach = largest(X) * float(np.abs(W).sum(axis=1, dtype=np.float64).max())
    reach += sum(largest(part) for part in (b, s) if part is not None)
    if not reach <= LARGEST:  # then products tell
        for rows in products.row_chunks(W.shape[0], *X.shape):
            check_size("inputs, or their products with weight,", products.dense_rows(X, W, b, s, rows))
    return None
