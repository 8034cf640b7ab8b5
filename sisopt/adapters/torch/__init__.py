"""Sparse layers in torch models."""

from .model import sparsify_model

__all__ = ["sparsify_model"]
