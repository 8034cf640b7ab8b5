"""Modules whose weights are not plain parameters: refused by name, each with what to do."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

from ....errors import UnsupportedError

_QUANTIZED = {"quantized", "quantizable", "qat"}  # parts of torch's package names
_WEIGHTED = ("Linear", "Conv", "LSTM", "GRU", "RNN", "MultiheadAttention")  # a quantized ReLU or addition is harmless


def refuse_quantized(module: nn.Module) -> None:
    """Raise UnsupportedError for quantized layers and those made for quantization."""
    for base in type(module).__mro__:
        parts = base.__module__.split(".")
        if parts[0] == "torch" and _QUANTIZED & set(parts) and any(name in base.__name__ for name in _WEIGHTED):
            msg = (
                f"{type(module).__name__} is a quantized layer ({base.__module__}.{base.__qualname__}): "
                f"make the float model sparse and quantize it afterwards, or exclude the module"
            )
            raise UnsupportedError(msg)


def refuse_weights(module: Any) -> None:
    """Raise UnsupportedError where a module's weights are computed from others, not there yet or not floating."""
    if isinstance(module, LazyModuleMixin):  # after its first call it is one no more
        raise _refusal(module, "is lazy and was not called yet", "run the model once on a batch first")
    if parametrize.is_parametrized(module):
        names = list(module.parametrizations)
        todo = "; ".join(f"torch.nn.utils.parametrize.remove_parametrizations(module, {name!r})" for name in names)
        found = f"has a parametrized {', '.join(names)}"
        raise _refusal(module, found, f"remove the parametrization first: {todo}")
    for name, parameter in module.named_parameters(recurse=False):
        stem, _, suffix = name.rpartition("_")
        if suffix == "orig":
            pruned = hasattr(module, f"{stem}_mask")
            what = "a pruning mask" if pruned else "spectral normalization"
            remove = "prune.remove" if pruned else "remove_spectral_norm"
            todo = f"remove it first: torch.nn.utils.{remove}(module, {stem!r})"
            raise _refusal(module, f"has {what} on its {stem}", todo)
        if suffix == "g" and hasattr(module, f"{stem}_v"):
            todo = f"remove it first: torch.nn.utils.remove_weight_norm(module, {stem!r})"
            raise _refusal(module, f"has weight normalization on its {stem}", todo)
        if not parameter.is_floating_point():
            raise _refusal(module, f"has a {name} of dtype {parameter.dtype}", "convert the module to float32 first")
        if parameter.is_meta:
            raise _refusal(module, f"has its {name} on the meta device, without numbers", "load the weights first")


def _refusal(module: Any, found: str, todo: str) -> UnsupportedError:
    """Return the refusal of a module."""
    return UnsupportedError(f"{parametrize.type_before_parametrizations(module).__name__} {found}: {todo}")
