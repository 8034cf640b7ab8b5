"""Patterns: which weights of a layer may stay. Their numbers count what is KEPT, never what is removed."""

from .base import Pattern
from .entries import PerRow, Unstructured
from .groups import Blocks, Groups
from .nm import NM
from .registry import get_pattern

__all__ = ["NM", "Blocks", "Groups", "Pattern", "PerRow", "Unstructured", "get_pattern"]
