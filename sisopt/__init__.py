"""Sparse neural networks by convex optimization, layer by layer, after training, with certificates."""

from . import reference
from .activations import (
    Activation,
    LogSoftmax,
    MaxPool,
    Softmax,
    Sparsemax,
    activation_names,
    get_activation,
    pooling_windows,
    register_activation,
)
from .batches import BatchStream
from .dispatch import solve
from .errors import ConvergenceWarning, InfeasibleBudgetError, InvalidInputError, SisoptError, UnsupportedError
from .goals import ErrorBudget, Penalized, Sparsity
from .layer import SparseLayer, Stage, sparsify
from .penalties import L1, GroupL2, SparseGroup, WeightedL1
from .precompile import warmup
from .problem import LayerProblem
from .solution import Progress, Solution, Status

__version__ = "0.1.0"

__all__ = [
    "Activation",
    "BatchStream",
    "ConvergenceWarning",
    "ErrorBudget",
    "GroupL2",
    "InfeasibleBudgetError",
    "InvalidInputError",
    "L1",
    "LayerProblem",
    "LogSoftmax",
    "MaxPool",
    "Penalized",
    "Progress",
    "SisoptError",
    "Softmax",
    "Solution",
    "SparseGroup",
    "SparseLayer",
    "Sparsemax",
    "Sparsity",
    "Stage",
    "Status",
    "UnsupportedError",
    "WeightedL1",
    "activation_names",
    "get_activation",
    "pooling_windows",
    "reference",
    "register_activation",
    "solve",
    "sparsify",
    "warmup",
]
