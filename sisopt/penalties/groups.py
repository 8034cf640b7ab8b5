"""Group norms, alone and with an l1 norm."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InvalidInputError
from .base import GroupPenalty, broadcast_factors, positive_factors
from .partition import KERNEL_NAMES, checked_groups, checked_sizes, couples_rows, partition
from .structure import Array, Structure, masked


@dataclass(frozen=True, eq=False)
class GroupL2(GroupPenalty):
    """Group norm, ``g(W) = sum_g kappa_g ||W_g||_2`` over a partition of the weights: groups vanish as a whole.

    Its proximity operator shrinks every group by the factor ``max(0, 1 - step kappa_g / ||W_g||)``, its dual norm is
    ``max_g ||C_g|| / kappa_g``.

    Parameters
    ----------
    groups : str, array of int or sequence of index arrays
        - "columns": the weights of one input;
        - "rows" or "filters": the weights of one output, in a convolution those of one filter;
        - "kernels": in a convolution, the weights from one input channel to one filter: within a row, consecutive
          runs of prod(kernel_size) columns, as ``conv.weight.flatten(1)`` of torch has them;
        - "channels": in a convolution, all kernels that read one input channel;
        - "blocks": blocks of ``block[0]`` rows and ``block[1]`` columns, the last ones smaller where they do not fit;
        - an integer array of weight's shape: the label of every weight, at least 0;
        - a list or tuple of index arrays into the row-major flattened weight, which hold every weight once.
    weights : float or array_like, shape (n_groups,), optional
        kappa_g, positive and finite; groups count in row-major order of their first weight, labels in ascending
        order, sequences as listed. Default: the square root of the number of weights in the group.
    kernel_size : tuple of int, optional
        That of the convolution, for "kernels" and "channels".
    block : tuple of int, optional
        Rows and columns of a block, for "blocks".

    Raises
    ------
    InvalidInputError
        If an argument is not what it should be; where it does not fit weight's shape, when it is first used.

    Examples
    --------
    >>> import numpy as np, sisopt
    >>> rng = np.random.default_rng(0)
    >>> inputs, weight = rng.normal(size=(200, 6)), rng.normal(size=(4, 6)) * [1, 1, 1, 0.1, 0.1, 0.1]
    >>> problem = sisopt.LayerProblem(inputs, weight, penalty=sisopt.GroupL2("columns"))
    >>> solution = sisopt.solve(problem, sisopt.ErrorBudget(relative_error=0.2))
    >>> np.flatnonzero(solution.weight.any(axis=0))  # the inputs that are still read
    array([0, 1, 2])

    References
    ----------
    M. Yuan, Y. Lin, "Model selection and estimation in regression with grouped variables", JRSS B 68, 2006.
    """

    groups: Any
    _: KW_ONLY
    weights: Any = None
    kernel_size: Any = None
    block: Any = None

    def __post_init__(self) -> None:
        _check(self)

    def structure(self, shape: tuple[int, int], mask: npt.NDArray[np.bool_] | None = None) -> Structure:
        """Return the groups for weights of a shape; ``mask`` is True where a weight may be non-zero.

        A mask does not change the weights kappa_g.
        """
        return _structure(self, np.zeros(shape), mask)


@dataclass(frozen=True, eq=False)
class SparseGroup(GroupPenalty):
    """Sparse-group norm, ``g(W) = sum_ij a_ij |W_ij| + sum_g kappa_g ||W_g||_2``: zeros also inside groups that stay.

    Its proximity operator is soft thresholding at ``step * a_ij`` followed by that of the group norm; its dual norm
    is the largest root, over groups, of ``||max(|C_g| - t a_g, 0)|| = t kappa_g``.

    Parameters
    ----------
    groups, weights, kernel_size, block
        As in `GroupL2`.
    l1 : float or array_like, broadcastable to (n_out, n_in), default 1
        The factors a_ij, positive and finite.

    Raises
    ------
    InvalidInputError
        If an argument is not what it should be; where it does not fit weight's shape, when it is first used.

    Examples
    --------
    >>> import sisopt
    >>> penalty = sisopt.SparseGroup("columns", weights=1.0)
    >>> penalty.prox([[3.0, 0.5], [1.0, 0.5]], 1.0)
    array([[1., 0.],
           [0., 0.]])

    References
    ----------
    N. Simon, J. Friedman, T. Hastie, R. Tibshirani, "A sparse-group lasso", J. Comput. Graph. Stat. 22, 2013.
    """

    groups: Any
    _: KW_ONLY
    l1: Any = 1.0
    weights: Any = None
    kernel_size: Any = None
    block: Any = None

    def __post_init__(self) -> None:
        factors = positive_factors("l1", " that broadcast to (n_out, n_in)", self.l1, 2)
        object.__setattr__(self, "l1", factors)
        _check(self)

    def structure(self, shape: tuple[int, int], mask: npt.NDArray[np.bool_] | None = None) -> Structure:
        """Return the factors and groups for weights of a shape; ``mask`` is True where a weight may be non-zero.

        A mask does not change the weights kappa_g.
        """
        return _structure(self, broadcast_factors("l1", self.l1, shape), mask)


def _check(penalty: GroupL2 | SparseGroup) -> None:
    groups = checked_groups(penalty.groups)
    checked = {
        "groups": groups,
        "kernel_size": checked_sizes("kernel_size", groups, KERNEL_NAMES, penalty.kernel_size),
        "block": checked_sizes("block", groups, ("blocks",), penalty.block),
    }
    if penalty.weights is not None:
        checked["weights"] = positive_factors("weights", ", one or one per group", penalty.weights, 1)
    for name, value in checked.items():
        object.__setattr__(penalty, name, value)


def _structure(penalty: GroupL2 | SparseGroup, factors: Array, mask: npt.NDArray[np.bool_] | None) -> Structure:
    labels, count = partition(penalty.groups, penalty.kernel_size, penalty.block, (factors.shape[0], factors.shape[1]))
    if penalty.weights is None:
        kappa = np.sqrt(np.bincount(labels.ravel(), minlength=count))
    elif penalty.weights.size in (1, count):
        kappa = np.array(np.broadcast_to(penalty.weights, (count,)))
    else:
        msg = f"weights must be one number or one per group, {count} groups for weight's shape {factors.shape}, "
        msg += f"got {penalty.weights.size}"
        raise InvalidInputError(msg)
    return Structure(masked(factors, mask), labels, kappa, couples_rows(labels, count))
