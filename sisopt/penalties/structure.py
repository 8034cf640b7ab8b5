"""Structure: the numbers of a penalty for weights of one shape, and all that is computed from them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ..errors import UnsupportedError
from ..kernels.group_norms import mixed_dual_norms

Array = npt.NDArray[np.float64]
Labels = npt.NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Structure:
    """The penalty ``g(W) = sum_ij a_ij |W_ij| + sum_g kappa_g ||W_g||_2`` on weights of shape (r, n_in).

    Weights that a mask forbids are zero; they belong to no norm, and gradients there are ignored.

    Attributes
    ----------
    factors : ndarray, shape (r, n_in)
        a_ij: infinite where a mask forbids the weight, 0 where only the group pays.
    labels : ndarray of int, shape (r, n_in), or None
        The group of every weight; None where there are no groups.
    group_weights : ndarray, shape (n_groups,), or None
        kappa_g > 0.
    couples_rows : bool
        Whether some group spans several rows.
    """

    factors: Array
    labels: Labels | None = None
    group_weights: Array | None = None
    couples_rows: bool = False

    @cached_property
    def forbidden(self) -> npt.NDArray[np.bool_] | None:
        """Where weights must be zero, (r, n_in); None if nowhere."""
        infinite = np.isinf(self.factors)
        return infinite if infinite.any() else None

    @cached_property
    def has_factors(self) -> bool:
        """Whether a single weight pays by itself."""
        return self.labels is None or bool(np.any((self.factors > 0) & np.isfinite(self.factors)))

    @cached_property
    def is_plain(self) -> bool:
        """Whether g is a multiple of the l1 norm of the weights that are allowed."""
        finite = self.factors[np.isfinite(self.factors)]
        return self.labels is None and (finite.size == 0 or bool((finite == finite[0]).all()))

    def values(self, weight: Array) -> Array:
        """Return g row by row, (r,); the sum over rows is g(W).

        The norm of a group that spans several rows is shared among them in proportion to their squared norms.
        """
        size = np.abs(weight)
        if self.forbidden is None:
            total = (self.factors * size).sum(axis=1)
        else:
            total = (np.where(size > 0, self.factors, 0.0) * size).sum(axis=1)
        if self.labels is not None:
            assert self.group_weights is not None
            norms = self._norms(size)
            price = np.divide(self.group_weights, norms, out=np.zeros_like(norms), where=norms > 0)
            total += np.einsum("ij,ij,ij->i", price[self.labels], size, size)
        return np.asarray(total)

    def slopes(self, weight: Array, direction: Array) -> tuple[Array, Array]:
        """Return the left and the right derivative of g along a direction row by row, each (r,).

        Norms of groups that span rows are shared among them so that the sums over rows are right.
        """
        factors = self._allowed(self.factors)
        smooth = np.einsum("ij,ij,ij->i", factors, np.sign(weight), direction)
        kink = np.einsum("ij,ij->i", factors, np.where(weight == 0, np.abs(direction), 0.0))
        if self.labels is not None:
            assert self.group_weights is not None
            norms, speeds = self._norms(weight), self._norms(direction)
            price = np.divide(self.group_weights, norms, out=np.zeros_like(norms), where=norms > 0)
            smooth += np.einsum("ij,ij,ij->i", price[self.labels], weight, direction)
            starts = (norms == 0) & (speeds > 0)
            price = np.divide(self.group_weights, speeds, out=np.zeros_like(norms), where=starts)
            kink += np.einsum("ij,ij,ij->i", price[self.labels], direction, direction)
        return smooth - kink, smooth + kink

    def dual_norms(self, gradient: Array) -> Array:
        """Return, row by row, the least t with C_i in t times the unit ball of the dual norm, (r,).

        Where groups span rows all entries hold the largest of all. For a group with factors it is the root of

            ||max(|C_g| - t a_g, 0)||_2 = t kappa_g,

        which is ``||C_g|| / kappa_g`` where its factors are 0.
        """
        if self.labels is None:
            return np.asarray((np.abs(gradient) / self.factors).max(axis=1, initial=0.0))
        assert self.group_weights is not None
        size = self._allowed(np.abs(gradient))
        if self.has_factors:
            norms = mixed_dual_norms(size, np.ascontiguousarray(self.factors), self.labels, self.group_weights)
        else:
            norms = self._norms(size) / self.group_weights
        if self.couples_rows:
            return np.full(self.factors.shape[0], norms.max(initial=0.0))
        return np.asarray(self._allowed(norms[self.labels]).max(axis=1, initial=0.0))

    def prox(self, weight: Array, step: float) -> Array:
        """Return argmin_V step * g(V) + 1/2 ||V - W||**2, (r, n_in).

        Soft thresholding at step * a_ij, then every group shrinks by the factor max(0, 1 - step kappa_g / norm): the
        second map keeps signs and zeros, so that their composition is the proximity operator of the sum.
        """
        W = self._allowed(weight)
        if self.has_factors:
            factors = self._allowed(self.factors)
            W = np.sign(W) * np.maximum(np.abs(W) - step * factors, 0.0)
        if self.labels is None:
            return W
        assert self.group_weights is not None
        norms = self._norms(W)
        kept = np.maximum(norms - step * self.group_weights, 0.0)
        shrink = np.divide(kept, norms, out=np.zeros_like(norms), where=norms > 0)
        return np.asarray(shrink[self.labels] * W)

    def kkt_violation(self, weight: Array, gradient: Array, multiplier: float) -> float:
        """Return the largest distance of -C from lambda dg(W); 0 at an optimum of the penalised program.

        Distances are Euclidean over a group, relative to lambda kappa_g; without groups, relative to lambda a_ij.
        """
        if multiplier == 0.0:  # a dead layer: there is no gradient
            return 0.0
        if self.labels is None:
            scaled = gradient / self.factors / multiplier
            distance = np.where(weight == 0, np.maximum(np.abs(scaled) - 1.0, 0.0), np.abs(scaled + np.sign(weight)))
            return float(distance.max(initial=0.0))
        assert self.group_weights is not None
        C = self._allowed(gradient) / multiplier
        a = self._allowed(self.factors)
        norms = self._norms(weight)
        price = np.divide(self.group_weights, norms, out=np.zeros_like(norms), where=norms > 0)
        smooth = np.abs(C + price[self.labels] * weight + a * np.sign(weight))
        distance = np.where(weight == 0, np.maximum(np.abs(C) - a, 0.0), smooth)
        slack = np.where(norms > 0, 0.0, self.group_weights)  # what the norm itself takes where the group is zero
        excess = np.maximum(self._norms(distance) - slack, 0.0) / self.group_weights
        return float(excess.max(initial=0.0))

    def rows(self, index: slice | Labels) -> Structure:
        """Return the structure of some rows.

        Raises
        ------
        UnsupportedError
            If groups span rows and not all rows are asked for, in order.
        """
        if self.labels is None:
            return Structure(self.factors[index])
        if self.couples_rows:
            every = np.arange(self.factors.shape[0])
            if not np.array_equal(every[index], every):
                msg = "groups that span several rows cannot be split by rows"
                raise UnsupportedError(msg)
            return self
        assert self.group_weights is not None
        labels = self.labels[index]
        used = np.zeros(self.group_weights.size, np.bool_)
        used[labels] = True
        return Structure(self.factors[index], (np.cumsum(used) - 1)[labels], self.group_weights[used])

    def _allowed(self, array: Array) -> Array:
        return array if self.forbidden is None else np.where(self.forbidden, 0.0, array)

    def _norms(self, array: Array) -> Array:
        """Return the Euclidean norm of every group, (n_groups,)."""
        assert self.labels is not None
        assert self.group_weights is not None
        largest = float(np.abs(array).max(initial=0.0))
        if largest == 0.0:
            return np.zeros(self.group_weights.size)
        scaled = (array / largest).ravel()
        squares = np.bincount(self.labels.ravel(), weights=scaled * scaled, minlength=self.group_weights.size)
        return np.asarray(largest * np.sqrt(squares))


def masked(factors: Array, mask: npt.NDArray[np.bool_] | None) -> Array:
    """Return the factors, infinite where the mask forbids a weight."""
    return factors if mask is None else np.where(mask, factors, np.inf)
