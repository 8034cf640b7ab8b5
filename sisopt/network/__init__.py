"""Many layers: in order, with a share of the zeros each, resumable, reported; no framework."""

from .layers import LayerInfo, Network, Program
from .report import LayerReport, NetworkReport
from .run import sparsify_network
from .solving import LayerGoal, LayerSolver

__all__ = [
    "LayerGoal",
    "LayerInfo",
    "LayerReport",
    "LayerSolver",
    "Network",
    "NetworkReport",
    "Program",
    "sparsify_network",
]
