"""The Gram metric of scaled inputs, in which refinements step: G, its diagonal nearly ones, and (G + shift I)^-1.

Where inputs outnumber the samples by far, G has the rank of these and is never formed: it is V diag(values) V' from an
eigendecomposition over samples, and (G + s I)^-1 = I / s + V diag(1 / (values + s) - 1 / s) V'.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, reduce
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import products
from ..gram_statistics import constant_inputs, forget_constants
from ..problem import LayerProblem
from ..threads import ordered_map, serial_blas

Array = npt.NDArray[np.float64]
Floats = npt.NDArray[Any]
Solve = Callable[[Floats], Floats]

CONSTANT = {np.dtype(np.float64): 1e-13, np.dtype(np.float32): 1e-6}  # relative spread of an input that counts as none
ROWS = 128  # of a product with the Gram matrix that one thread makes, at most
SERIAL = 1 << 24  # multiply-adds of a product that is not worth parting
FEW_ROWS = 3  # inputs per output neuron above which an inverse is not worth forming
WIDE = 2  # inputs per sample above which the Gram matrix is not worth forming
FLOOR = 1e-3  # of the mean square of what inputs add to outputs
WIDE_SAMPLES = 4000  # that a refinement looks at where inputs are more than WIDE times as many: it decomposes these
NULL = 1e-10  # of the largest eigenvalue: smaller ones count as zero
COLUMNS = 1 << 10  # inputs that are scaled together


class Metric:
    """What the two have in common; ``reach`` (n_in,) is s_j, ``inverse`` 1 / s_j, 0 for an input that is constant.

    ``squares`` (n_in,) are those of the inputs' norms, ``dense`` (n_in,) the mean squares of their dense weights.
    """

    def __init__(self, squares: Floats, dense: Array, dtype: np.dtype[Any], n_threads: int) -> None:
        self.dtype, self.n_threads = dtype, n_threads
        self.reach: Array = np.sqrt(_widened(squares.astype(np.float64), dense))
        self.inverse: Array = np.divide(1.0, self.reach, out=np.zeros_like(self.reach), where=self.reach > 0)

    def times(self, left: Floats) -> Floats:
        """Return U G, (n_out, n_in)."""
        raise NotImplementedError

    def shifted(self, shift: float, n_out: int) -> Solve:
        """Return R -> R (G + shift I)^-1 for R (n_out, n_in)."""
        raise NotImplementedError


class DenseMetric(Metric):
    """The Gram matrix itself."""

    def __init__(self, gram: Floats, dense: Array, dtype: np.dtype[Any], n_threads: int) -> None:
        super().__init__(np.diagonal(gram), dense, dtype, n_threads)
        self.gram: Floats = (gram * self.inverse[:, None] * self.inverse).astype(dtype)

    def times(self, left: Floats) -> Floats:
        """See `Metric`."""
        return parted_product(left, self.gram, self.n_threads)

    def shifted(self, shift: float, n_out: int) -> Solve:
        """See `Metric`: by the inverse, or by its factors where the rows are few."""
        values, vectors = self._decomposition
        root: Floats = vectors * np.sqrt((1.0 / (values + shift)).astype(self.dtype))
        factors: tuple[Floats, ...] = (root, root.T) if len(values) > FEW_ROWS * n_out else (root @ root.T,)

        def solve(right: Floats) -> Floats:
            return reduce(lambda left, factor: parted_product(left, factor, self.n_threads), factors, right)

        return solve

    @cached_property
    def _decomposition(self) -> tuple[Floats, Floats]:
        """The eigenvalues, none below 0, and the eigenvectors."""
        values, vectors = np.linalg.eigh(self.gram)
        return np.maximum(values, 0.0), vectors


class ThinMetric(Metric):
    """Its eigenvectors of values that are not zero, in float64 throughout.

    What is not in their span is divided by the shift alone, and the values reach as many times that as there are
    inputs: in float32, the rounding of the span would come out larger than what lies in it.
    """

    def __init__(self, problem: LayerProblem, center: Array, dtype: np.dtype[Any], n_threads: int) -> None:
        X, v = problem.inputs, problem.sample_weights
        assert X is not None
        roots = None if v is None else np.sqrt(v)[:, None]
        edges = range(0, problem.n_in, COLUMNS)

        def scaled(start: int) -> tuple[Floats, Array]:
            block = X[:, start : start + COLUMNS].astype(np.float64)
            if problem.has_bias:
                block -= center[start : start + COLUMNS]
            if roots is not None:
                block *= roots
            squares = np.einsum("ij,ij->j", block, block)
            if problem.has_bias:
                about = center[start : start + COLUMNS]
                squares[constant_inputs(squares, about, problem.total_weight, CONSTANT[dtype])] = 0.0
            return block, squares

        blocks, squares = zip(*ordered_map(scaled, edges, n_threads), strict=True)
        super().__init__(np.concatenate(squares), mean_squares(problem), dtype, n_threads)
        for start, block in zip(edges, blocks, strict=True):
            block *= self.inverse[start : start + COLUMNS]
        kernel = np.zeros((problem.n_samples, problem.n_samples))
        for product in ordered_map(lambda block: block @ block.T, blocks, n_threads):
            kernel += product
        values, basis = np.linalg.eigh(kernel)
        real = values > NULL * values[-1]
        self._values: Array = values[real]
        basis = basis[:, real] / np.sqrt(self._values)
        self._vectors: Array = np.concatenate(list(ordered_map(lambda block: block.T @ basis, blocks, n_threads)))

    def times(self, left: Floats) -> Floats:
        """See `Metric`."""
        return self._between(left, self._values).astype(self.dtype)

    def shifted(self, shift: float, n_out: int) -> Solve:
        """See `Metric`."""
        inner, outer = 1.0 / (self._values + shift) - 1.0 / shift, 1.0 / shift
        return lambda right: (outer * right + self._between(right, inner)).astype(self.dtype)

    def _between(self, left: Floats, values: Array) -> Array:
        """Return U V diag(values) V' in float64."""
        seen = parted_product(left.astype(np.float64), self._vectors, self.n_threads)
        return parted_product(seen * values, self._vectors.T, self.n_threads)


def metric_of(problem: LayerProblem, center: Array, dtype: np.dtype[Any], n_threads: int) -> Metric:
    """Return the metric of a problem's inputs, in products of ``dtype``."""
    assert problem.inputs is not None
    if is_wide(problem):
        return ThinMetric(problem, center, dtype, n_threads)
    about = center if problem.has_bias else None
    gram = products.gram(problem.inputs, about, problem.sample_weights, n_threads, dtype.type)
    if problem.has_bias:
        forget_constants(gram, center, problem.total_weight, CONSTANT[dtype])
    return DenseMetric(gram, mean_squares(problem), dtype, n_threads)


def mean_squares(problem: LayerProblem) -> Array:
    """Return the mean squares of the dense weights of every input, (n_in,)."""
    W = problem.masked(problem.weight)
    squares: Array = np.einsum("ij,ij->j", W, W, dtype=np.float64) / len(W)
    return squares


def _widened(squares: Array, dense: Array) -> Array:
    """Return the squares of reaches, those of rare inputs raised to what their dense weights make of them.

    An input that hardly moves on these samples may move elsewhere, and nothing else would keep its weights from what
    fits a sample or two: so all reach at least as far as a share of the mean, in outputs, where scale does not matter.
    """
    reached = squares * dense
    real = reached > 0
    if not real.any():
        return squares
    least = FLOOR * reached[real].mean()
    return np.where(real, squares + np.divide(least, dense, out=np.zeros_like(dense), where=real), squares)


def most_samples(problem: LayerProblem, least: int, per_input: int) -> int:
    """Return how many samples a refinement looks at: ``per_input`` for every input, ``least`` in any case."""
    return WIDE_SAMPLES if problem.n_in > WIDE * WIDE_SAMPLES else max(least, per_input * problem.n_in)


def is_wide(problem: LayerProblem) -> bool:
    """Return whether a Gram matrix of the inputs would be much larger than the inputs."""
    return problem.n_in > WIDE * problem.n_samples


def parted_product(left: Floats, right: Floats, n_threads: int) -> Floats:
    """Return ``left @ right``, rows of ``left`` over the threads, columns of ``right`` where rows are few."""
    n_rows, n_columns = left.shape[0], right.shape[1]
    if left.size * n_columns <= SERIAL:
        with serial_blas():
            return left @ right
    out = np.empty((n_rows, n_columns), left.dtype)

    def rows(part: slice) -> None:
        np.matmul(left[part], right, out=out[part])

    def columns(part: slice) -> None:
        np.matmul(left, right[:, part], out=out[:, part])

    # parts are the same for any number of threads: the bits depend on them
    size, count, part = (n_rows, ROWS, rows) if n_rows > ROWS else (n_columns, -(-n_columns // 2), columns)
    for _ in ordered_map(part, (slice(i, i + count) for i in range(0, size, count)), n_threads):
        pass
    return out
