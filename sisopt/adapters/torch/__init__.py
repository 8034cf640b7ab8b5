"""Sparse layers in torch models."""

from .masks import keep_zeros, release_zeros, to_prune_masks
from .model import sparsify_model

__all__ = ["keep_zeros", "release_zeros", "sparsify_model", "to_prune_masks"]
