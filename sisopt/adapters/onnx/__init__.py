"""Sparse layers in ONNX models."""

try:
    import onnx  # noqa: F401
    import onnxruntime  # noqa: F401
except ModuleNotFoundError as error:
    msg = f'{error.name} is not installed: pip install "sisopt[onnx]"'
    raise ModuleNotFoundError(msg, name=error.name) from error

from .model import sparsify_onnx

__all__ = ["sparsify_onnx"]
