"""What tells weights and calibration data in torch apart."""

from __future__ import annotations

from typing import Any

import torch

from ...network.digest import digest as digest_of_arrays


def digest(value: Any) -> str:
    """Return the hash of tensors, arrays, numbers and text, nested in any way, as attributes of objects too."""
    return digest_of_arrays(value, _plain)


def _plain(value: Any) -> Any:
    """Return a tensor as its layout, dtype, shape and bytes."""
    if not isinstance(value, torch.Tensor):
        return value
    dense = value.detach() if value.layout == torch.strided else value.detach().to_dense()
    content = dense.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return str(value.layout), str(value.dtype), tuple(value.shape), content
