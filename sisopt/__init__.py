"""Sparse neural networks by convex optimization, layer by layer, after training, with certificates."""

from . import reference
from .activations import Activation, activation_names, get_activation, register_activation
from .dispatch import solve
from .errors import ConvergenceWarning, InfeasibleBudgetError, InvalidInputError, SisoptError, UnsupportedError
from .goals import ErrorBudget, Penalized, Sparsity
from .layer import SparseLayer, Stage, sparsify
from .penalties import L1, WeightedL1
from .precompile import warmup
from .problem import LayerProblem
from .solution import Progress, Solution, Status

__version__ = "0.1.0"

__all__ = [
    "L1",
    "Activation",
    "ConvergenceWarning",
    "ErrorBudget",
    "InfeasibleBudgetError",
    "InvalidInputError",
    "LayerProblem",
    "Penalized",
    "Progress",
    "SisoptError",
    "Solution",
    "SparseLayer",
    "Sparsity",
    "Stage",
    "Status",
    "UnsupportedError",
    "WeightedL1",
    "activation_names",
    "get_activation",
    "reference",
    "register_activation",
    "solve",
    "sparsify",
    "warmup",
]
