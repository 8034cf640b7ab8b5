"""Sparse neural networks by convex optimization, layer by layer, after training, with certificates."""

from .activations import Activation, activation_names, get_activation, register_activation
from .dispatch import solve
from .errors import ConvergenceWarning, InfeasibleBudgetError, InvalidInputError, SisoptError, UnsupportedError
from .goals import ErrorBudget, Penalized, Sparsity
from .penalties import L1, WeightedL1
from .problem import LayerProblem
from .solution import Progress, Solution, Status

__version__ = "0.1.0"
