"""Sparse layers in torch models."""

from .conversion import Conversion
from .layouts import to_semi_structured, to_sparse_bsr, to_sparse_csr
from .masks import keep_zeros, release_zeros, to_prune_masks
from .model import sparsify_model
from .shrink import remove_structured_zeros
from .sparse_files import load_sparse, save_sparse

__all__ = [
    "Conversion",
    "keep_zeros",
    "load_sparse",
    "release_zeros",
    "remove_structured_zeros",
    "save_sparse",
    "sparsify_model",
    "to_prune_masks",
    "to_semi_structured",
    "to_sparse_bsr",
    "to_sparse_csr",
]
