"""Sparse neural networks by convex optimization, layer by layer, after training, with certificates."""

from importlib import metadata as _metadata

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
from .errors import (
    CheckpointError,
    ConvergenceWarning,
    GeneralizationWarning,
    InfeasibleBudgetError,
    InvalidInputError,
    SisoptError,
    UnsupportedError,
)
from .goals import ErrorBudget, Penalized, Sparsity
from .layer import sparsify
from .patterns import NM, Blocks, Groups, Pattern, PerRow, Unstructured, get_pattern
from .penalties import L1, GroupL2, SparseGroup, WeightedL1
from .precompile import warmup
from .problem import LayerProblem
from .solution import Progress, Solution, Status
from .sparse_layer import Settings, SparseLayer, Stage

try:
    __version__ = _metadata.version("sisopt")
except _metadata.PackageNotFoundError:  # a tree that is not installed
    __version__ = "0+unknown"

__all__ = [
    "Activation",
    "BatchStream",
    "Blocks",
    "CheckpointError",
    "ConvergenceWarning",
    "ErrorBudget",
    "GeneralizationWarning",
    "GroupL2",
    "Groups",
    "InfeasibleBudgetError",
    "InvalidInputError",
    "L1",
    "LayerProblem",
    "LogSoftmax",
    "MaxPool",
    "NM",
    "Pattern",
    "Penalized",
    "PerRow",
    "Progress",
    "Settings",
    "SisoptError",
    "Softmax",
    "Solution",
    "SparseGroup",
    "SparseLayer",
    "Sparsemax",
    "Sparsity",
    "Stage",
    "Status",
    "Unstructured",
    "UnsupportedError",
    "WeightedL1",
    "activation_names",
    "get_activation",
    "get_pattern",
    "pooling_windows",
    "reference",
    "register_activation",
    "solve",
    "sparsify",
    "warmup",
]
