"""What tells weights and calibration data in torch apart."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn

from ...network.digest import digest as digest_of_arrays
from ...network.digest import digest_of_call as digest_of_plain_call


def digest(value: Any) -> str:
    """Return the hash of tensors, arrays, numbers and text, nested in any way, as attributes of objects too."""
    return digest_of_arrays(value, _plain)


def digest_of_call(function: Any) -> str:
    """Return the hash of a function, and of what it has caught."""
    return digest_of_plain_call(function, _plain)


def digest_of_modules(model: nn.Module) -> str:
    """Return the hash of what a model's modules are and say of themselves, and of the settings of torch's own ones.

    Attributes of others do not count: counters and caches are among them.
    """
    return digest(
        [
            (name, type(module).__module__, type(module).__qualname__, _said(module), _settings(module))
            for name, module in model.named_modules()
        ]
    )


def _said(module: nn.Module) -> str:
    """Return what a module says of itself, addresses aside."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", module.extra_repr())


def _settings(module: nn.Module) -> dict[str, Any]:
    """Return the attributes of one of torch's modules that are numbers or text, or tuples of these."""
    if not type(module).__module__.startswith("torch.nn."):
        return {}
    public = {name: value for name, value in vars(module).items() if not name.startswith("_") and name != "training"}
    return {name: value for name, value in sorted(public.items()) if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(each) for each in value)
    return value is None or isinstance(value, bool | int | float | str)


def _plain(value: Any) -> Any:
    """Return a tensor as its layout, dtype, shape and bytes, a module as what it is and its state."""
    if isinstance(value, nn.Module):
        return digest_of_modules(value), value.state_dict()
    if not isinstance(value, torch.Tensor):
        return value
    if value.is_nested:
        return "nested", value.unbind()
    about = str(value.layout), str(value.dtype), tuple(value.shape)
    if value.is_meta:
        return about
    dense = value.detach() if value.layout == torch.strided else value.detach().to_dense()
    plain = dense.cpu().resolve_conj().resolve_neg().contiguous()
    return *about, plain.reshape(-1).view(torch.uint8).numpy()
