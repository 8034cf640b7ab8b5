"""Targets: the sets that the new pre-activations may lie in without changing the outputs."""

from .base import CoupledTarget, Target, kernel_array
from .coupled import Line, SparsemaxSet
from .interval import Interval, RowTarget

__all__ = ["CoupledTarget", "Interval", "Line", "RowTarget", "SparsemaxSet", "Target", "kernel_array"]
