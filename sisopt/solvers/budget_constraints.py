"""The budgets as functions of the weights, c_j = 2 phi_j - epsilon_j**2, and their gradients, a few samples at a time.

A point is held as a matrix U (n_out, width) with Z = [X - m, s] U', width = n_in + 1, m the mean of the inputs and s
the root of the mean of their variances: the bias is b = s U_last - W m. Without a bias U = W. Projections in U's metric
do not suffer from inputs far from zero as those in (W, b) do; W and the penalty are untouched.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import products
from ..activations.pooling import MaxPool
from ..budgets import Budgets
from ..errors import InvalidInputError, UnsupportedError
from ..problem import LayerProblem
from ..targets import Interval, Target
from .rows import Limits

Array = npt.NDArray[np.float64]

KEPT_BYTES = 1 << 25  # blocks of inputs and targets in float64 that are kept where all of them fit


class OutOfTime(Exception):
    """A limit was reached between two blocks of samples."""


@dataclass(frozen=True)
class _Block:
    """Consecutive samples (T), ready for products: features [X - m, s] (T, width) and what is asked of Z."""

    features: Array
    target: Target
    weights: Array | None  # of the squared residuals, broadcasts to (T, n_out)
    center: Array | None  # the dense pre-activations (T, n_out), with fidelity
    pulls: Array  # beta v, (T, 1)

    def slopes(self, point: Array) -> tuple[Array, Array]:
        """Return d phi / d Z, (T, n_out), at a point U (n_out, width), and 2 phi of every neuron, (n_out,)."""
        z = self.features @ point.T
        e = self.target.residual(z)
        slope = e if self.weights is None else self.weights * e
        loss = np.einsum("ki,ki->i", slope, e)
        if self.center is not None:
            offset = z - self.center
            pull = self.pulls * offset
            loss += np.einsum("ki,ki->i", pull, offset)
            slope = slope + pull
        return slope, loss


class BudgetConstraints:
    """The functions c_j of a problem and its budgets; see the module's docstring.

    With one budget per neuron the row i of U is alone in c_i; otherwise all rows share every c_j: ``programs`` counts
    the independent projections, n_out or 1. ``sizes`` (J,) is what violations are measured against: epsilon_j**2 or,
    where that is 0, the squared size of the group's pre-activations. ``size`` is the norm of the dense layer's U,
    ``work`` counts operations.

    Raises
    ------
    UnsupportedError
        If the problem holds sums instead of inputs, every neuron has a budget and the activation couples them, or
        windows of a pooling may reach over batches that are read one by one.
    InvalidInputError
        If mini-batches have budgets but the data come in other batches.
    """

    def __init__(self, problem: LayerProblem, budgets: Budgets) -> None:
        self.problem, self.budgets = problem, budgets
        self.work = 0.0
        self._stream = problem.batches
        if problem.inputs is None and self._stream is None:
            msg = "method 'sis' goes through the inputs, and this problem holds sums over them: use 'forward-backward'"
            raise UnsupportedError(msg)
        if problem.activation.couples_outputs and budgets.per == "neuron":
            name = problem.activation.name
            msg = f"activation {name!r} couples the outputs of a sample: budgets are per='layer' or per='batch' with it"
            raise UnsupportedError(msg)
        self._pooled: Interval | None = None
        if isinstance(problem.activation, MaxPool):
            self._pooled = self._pooled_target(problem.activation)
        self._cuts = self._sample_cuts()
        self._kept: list[_Block] | None = None
        self._forbidden = None if problem.mask is None or problem.mask.all() else ~problem.mask
        self.center, self.scale = np.zeros(problem.n_in), 1.0
        self.sizes = np.maximum(budgets.radii.astype(np.float64) ** 2, 0.0)  # against which violations are measured
        self._look()
        self.size = float(np.linalg.norm(self.point(problem.weight.astype(np.float64), problem.dense_bias))) or 1.0

    @property
    def separable(self) -> bool:
        """Whether every neuron has its own budget."""
        return self.budgets.per == "neuron"

    @property
    def n_rounds(self) -> int:
        """Number of groups that are met one after the other: mini-batches, or everything at once."""
        return self.budgets.size if self.budgets.per == "batch" else 1

    @property
    def programs(self) -> int:
        """Number of independent projections."""
        return self.problem.n_out if self.separable else 1

    def point(self, weight: Array, bias: Array) -> Array:
        """Return U (n_out, width) for weights (n_out, n_in), zero where the mask says so, and a bias (n_out,)."""
        W = weight if self._forbidden is None else np.where(self._forbidden, 0.0, weight)
        if not self.problem.has_bias:
            return np.array(W, dtype=np.float64)
        return np.column_stack([W, (bias + W @ self.center) / self.scale])

    def layer(self, point: Array) -> tuple[Array, Array]:
        """Return the weights (n_out, n_in) and the bias (n_out,) of a point."""
        if not self.problem.has_bias:
            return point.copy(), np.zeros(point.shape[0])
        W = point[:, :-1].copy()
        return W, self.scale * point[:, -1] - W @ self.center

    def groups(self, limits: Limits) -> Iterator[tuple[int, Iterable[_Block]]]:
        """Yield the groups that are met one after the other, in order, with their blocks."""
        if self.budgets.per == "batch":
            for j, block in enumerate(self._blocks(limits)):
                yield j, (block,)
        else:
            yield 0, self._blocks(limits)

    def measure(self, group: int, blocks: Iterable[_Block], point: Array, ignored: float) -> tuple[Array, Array | None]:
        """Return c_j and grad c_j of a group at a point, over ``sizes``: (programs,) and (n_out, width).

        The gradient of a mini-batch whose c_j is at most ``ignored`` times its size is not computed: None.
        """
        per_batch = self.budgets.per == "batch"
        group_of = slice(None) if self.separable else slice(group, group + 1)
        sizes, squares = self.sizes[group_of], self.budgets.radii[group_of] ** 2
        loss = np.zeros(self.programs)
        gradient = np.zeros(point.shape)
        for block in blocks:
            slope, losses = block.slopes(point)
            loss += losses if self.separable else losses.sum()
            product = 2.0 * slope.size * self.problem.n_in
            self.work += product
            if per_batch and loss[0] - squares[0] <= ignored * sizes[0]:
                return (loss - squares) / sizes, None
            gradient += slope.T @ block.features
            self.work += product
        gradient *= (2.0 / sizes)[:, None]
        if self._forbidden is not None:
            gradient[:, : self.problem.n_in][self._forbidden] = 0.0
        return (loss - squares) / sizes, gradient

    def _pooled_target(self, activation: MaxPool) -> Interval:
        """Return the target of all samples (n_samples, n_out): windows do not care for mini-batches."""
        problem = self.problem
        if problem.preactivations is None:
            msg = "activation 'max_pool' couples samples, which batches read one by one may separate: pass arrays"
            raise UnsupportedError(msg)
        z = np.ascontiguousarray(problem.preactivations.T, dtype=np.float64)
        target = activation.preimage(z, problem.tolerance)
        return Interval(target.lo.T, target.hi.T)

    def _sample_cuts(self) -> tuple[slice, ...]:
        """Return the slices of samples that are read at a time."""
        problem, budgets = self.problem, self.budgets
        if self._stream is None:
            if budgets.per == "batch":
                return budgets.batches
            return tuple(products.sample_blocks(problem.n_samples, problem.n_in))
        cuts: tuple[slice, ...] = self._stream.slices
        if budgets.per == "batch" and cuts != budgets.batches:
            msg = (
                f"batch_size must be that of the batches the data come in ({len(cuts)} of them, the first of "
                f"{cuts[0].stop} samples): a mini-batch with a budget of its own is read whole"
            )
            raise InvalidInputError(msg)
        return cuts

    def _read(self) -> Iterator[tuple[slice, npt.NDArray[Any], npt.NDArray[Any]]]:
        if self._stream is not None:
            yield from self._stream
            return
        X, Z = self.problem.inputs, self.problem.preactivations
        assert X is not None
        assert Z is not None
        for samples in self._cuts:
            yield samples, X[samples], Z[samples]

    def _look(self) -> None:
        """Find the centre and the scale of the inputs, and what violations of a budget of 0 are measured against."""
        total, squares, weight = np.zeros(self.problem.n_in), np.zeros(self.problem.n_in), 0.0
        energy = np.zeros(self.sizes.size)
        place: int | slice
        for j, (samples, X, Z) in enumerate(self._read()):
            v = self._sample_weights(samples)
            block = X.astype(np.float64, copy=False)
            ones = np.ones(block.shape[0]) if v is None else v
            total += ones @ block
            squares += ones @ (block * block)
            weight += float(ones.sum())
            energies = ones @ np.square(Z.astype(np.float64, copy=False))
            place = slice(None) if self.separable else j if self.budgets.per == "batch" else 0
            energy[place] += energies if self.separable else energies.sum()
        self.sizes = np.where(self.sizes > 0, self.sizes, np.where(energy > 0, energy, 1.0))
        if self.problem.has_bias:
            self.center = total / weight
            variance = float(np.maximum(squares / weight - self.center**2, 0.0).mean())
            self.scale = float(np.sqrt(variance)) if variance > 0 else 1.0

    def _blocks(self, limits: Limits) -> Iterator[_Block]:
        """Yield the blocks of one pass; raise OutOfTime between two of them."""
        source: Iterable[_Block] = self._kept if self._kept is not None else self._prepared()
        for block in source:
            if limits.out_of_time():
                raise OutOfTime
            yield block

    def _prepared(self) -> Iterator[_Block]:
        problem = self.problem
        arrays = problem.n_in + 1 + 3 * problem.n_out
        keep = self._stream is None and 8 * problem.n_samples * arrays <= KEPT_BYTES
        kept = []
        for samples, X, Z in self._read():
            block = self._prepare(samples, X, Z)
            if keep:
                kept.append(block)
            yield block
        if keep:
            self._kept = kept

    def _sample_weights(self, samples: slice) -> Array | None:
        v = self.problem.sample_weights
        return None if v is None else v[samples]

    def _prepare(self, samples: slice, X: npt.NDArray[Any], Z: npt.NDArray[Any]) -> _Block:
        problem = self.problem
        features = X.astype(np.float64)
        if problem.has_bias:
            features = np.column_stack([features - self.center, np.full(X.shape[0], self.scale)])
        z = np.array(Z, dtype=np.float64, order="C")
        target: Target
        if self._pooled is None:
            target = problem.activation.preimage(z, problem.tolerance)
        else:
            target = Interval(self._pooled.lo[samples], self._pooled.hi[samples])
        if problem.shift is not None:
            shift = problem.shift[samples].astype(np.float64)
            target, z = target.shifted(shift), z - shift
        v = self._sample_weights(samples)
        column = np.ones((X.shape[0], 1)) if v is None else v[:, None]
        weights = None if v is None else column
        if problem.entry_weights is not None:
            weights = problem.entry_weights[samples] * column
        return _Block(features, target, weights, z if problem.fidelity > 0 else None, problem.fidelity * column)
