"""ALPS: ADMM on the number of weights with a penalty parameter that grows, then conjugate gradients on the support."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .pattern import Pattern
from .quadratic import damped_gram

Array = np.ndarray

RHO = 0.1  # in units of a Gram matrix with ones on its diagonal
MAX_ITERATIONS = 300
CHECK_EVERY = 3  # iterations between looks at the support
SETTLED = 30  # iterations after which nearly the same support is enough: NEARLY of the kept weights
NEARLY = 3e-4
GROWTH = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))  # a change of more than this share of the kept weights: rho times that
SHRINKAGE = 5.0  # rho is divided by this, and ADMM starts again, while the support has never moved much
LEAST_RHO = 1e-4  # where a support that no rho moves is the answer; below, rounding errors move it
CG_STEPS = 10


def alps(
    weight: Array, inputs: Array, *, sparsity: float | None = None, pattern: tuple[int, int] | None = None
) -> Array:
    """Prune a linear layer with ALPS.

    Minimises ``||X (W - W0)'||**2`` plus a ridge towards W0 over matrices that keep to the pattern. The Gram matrix is
    scaled to a diagonal of ones and decomposed once, so that a new rho costs a product. All but that is in float32.

    Parameters
    ----------
    weight : array, shape (n_out, n_in)
    inputs : array, shape (n_samples, n_in)
    sparsity, pattern
        What is kept: see `Pattern`.

    References
    ----------
    X. Meng, K. Behdin, H. Wang, R. Mazumder, "ALPS: Improved Optimization for Highly Sparse One-Shot Pruning for Large
    Language Models", NeurIPS 2024.
    """
    goal = Pattern(sparsity, pattern)
    count = goal.count(weight.shape)
    if count in (0, weight.size):
        return weight * (count > 0)
    gram = damped_gram(inputs)
    scale = np.sqrt(gram.diagonal())
    gram /= np.outer(scale, scale)
    eigenvalues, vectors = np.linalg.eigh(gram)
    gram, dense = gram.astype(np.float32), (weight * scale).astype(np.float32)
    target = dense @ gram
    pruned = _admm(dense, target, _shifted_inverse(eigenvalues, vectors, len(weight)), goal, count)
    mask = goal.keep(np.abs(pruned))
    return (_descend(np.where(mask, pruned, 0.0), target, gram, mask) / scale).astype(weight.dtype)


def _admm(
    dense: Array, target: Array, shifted_inverse: Callable[[float], Callable[[Array], Array]], goal: Pattern, count: int
) -> Array:
    """Return the last iterate of ADMM, whose largest entries tell the support."""
    rho, moved = RHO, False
    solve = shifted_inverse(rho)
    first = goal.keep(np.abs(dense))
    before = first
    sparse, dual = dense * first, np.zeros_like(dense)
    for iteration in range(1, MAX_ITERATIONS + 1):
        iterate = solve(target - dual + rho * sparse)
        shifted = iterate + dual / rho
        mask = goal.keep(np.abs(shifted))
        sparse = shifted * mask
        dual = rho * (shifted - sparse)
        if iteration % CHECK_EVERY:
            continue
        change = np.count_nonzero(mask != before) / count
        before = mask
        if iteration > SETTLED and change < NEARLY:
            break
        if moved or change > GROWTH[1][0]:
            if change == 0:
                break
            moved = True
            rho *= next(factor for share, factor in GROWTH if change > share)
        elif rho < LEAST_RHO:
            break
        else:
            rho /= SHRINKAGE
            if change > 0:
                sparse, dual = dense * first, np.zeros_like(dense)
        solve = shifted_inverse(rho)
    return iterate


def _shifted_inverse(eigenvalues: Array, vectors: Array, n_out: int) -> Callable[[float], Callable[[Array], Array]]:
    """Return rho -> (B -> B (G + rho I)^-1): by the inverse, or by its factors where the rows are few."""
    Q = vectors.astype(np.float32)
    few = 3 * n_out < len(Q)  # an inverse serves CHECK_EVERY = 3 iterations

    def at(rho: float) -> Callable[[Array], Array]:
        inverses = (1.0 / (np.maximum(eigenvalues, 0.0) + rho)).astype(np.float32)
        if few:
            return lambda right: ((right @ Q) * inverses) @ Q.T
        inverse = (Q * inverses) @ Q.T
        return lambda right: right @ inverse

    return at


def _descend(pruned: Array, target: Array, gram: Array, mask: Array) -> Array:
    """Take CG_STEPS steps of conjugate gradients, a row each, towards ``W gram = target`` on the support."""
    residual = (target - pruned @ gram) * mask
    direction = residual
    squares = np.einsum("ij,ij->i", residual, residual)
    for _ in range(CG_STEPS):
        image = (direction @ gram) * mask
        curvature = np.einsum("ij,ij->i", direction, image)
        step = np.divide(squares, curvature, out=np.zeros_like(squares), where=curvature > 0)[:, None]
        pruned = pruned + step * direction
        residual = residual - step * image
        previous, squares = squares, np.einsum("ij,ij->i", residual, residual)
        ratio = np.divide(squares, previous, out=np.zeros_like(squares), where=previous > 0)[:, None]
        direction = residual + ratio * direction
    return pruned
