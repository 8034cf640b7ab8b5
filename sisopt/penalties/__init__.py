"""Penalties g that make the weights sparse: value, proximity operator, dual norm, and their structure for solvers."""

from .base import Penalty
from .groups import GroupL2, SparseGroup
from .l1 import L1, WeightedL1
from .registry import get_penalty
from .structure import Structure

__all__ = ["L1", "GroupL2", "Penalty", "SparseGroup", "Structure", "WeightedL1", "get_penalty"]
