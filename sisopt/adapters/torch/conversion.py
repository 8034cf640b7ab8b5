"""What became of the layers of a model that was made ready to be deployed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Conversion:
    """A converted model, and what was done to its layers; printing it shows a line for each.

    Attributes
    ----------
    model : torch.nn.Module
        The converted model.
    changed : mapping of str to str
        Layers that were changed, by name, and how.
    unchanged : mapping of str to str
        Layers that stay as they were, by name, and why.

    Examples
    --------
    >>> import torch
    >>> from sisopt.adapters.torch import to_sparse_csr
    >>> layer = torch.nn.Linear(10, 4)
    >>> with torch.no_grad():
    ...     _ = layer.weight.copy_(torch.eye(4, 10))
    >>> conversion = to_sparse_csr(torch.nn.Sequential(layer))
    >>> conversion.changed, conversion.unchanged
    ({'0': 'CSR, 4 of 40 weights stored'}, {})
    """

    model: nn.Module
    changed: Mapping[str, str]
    unchanged: Mapping[str, str]

    def __str__(self) -> str:
        rows = [(name or "(model)", "", how) for name, how in self.changed.items()]
        rows += [(name or "(model)", "as it was: ", why) for name, why in self.unchanged.items()]
        width = max((len(name) for name, _, _ in rows), default=0)
        return "\n".join(f"{name:{width}}  {kept}{text}" for name, kept, text in rows)
