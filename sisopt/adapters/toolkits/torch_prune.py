"""`torch.nn.utils.prune`: a pruning method that fits the weights that it keeps."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.utils import prune

from ...activations import Activation
from ...errors import InvalidInputError
from ...patterns import Pattern
from .modules import MAX_SAMPLES, ModuleSamples, Wanted


class SisoptPruning(prune.BasePruningMethod):
    """Pruning by `sisopt.sparsify`, for ``SisoptPruning.apply(module, "weight", inputs, sparsity=0.8)``.

    Parameters
    ----------
    kept : torch.Tensor of bool
        True where a weight stays.

    Examples
    --------
    >>> import torch
    >>> from sisopt.adapters.toolkits.torch_prune import SisoptPruning
    >>> layer = torch.nn.Linear(20, 10)
    >>> _ = SisoptPruning.apply(layer, "weight", torch.randn(200, 20), activation="relu", sparsity=0.8)
    >>> torch.nn.utils.prune.is_pruned(layer), int(layer.weight_mask.sum())
    (True, 40)
    """

    PRUNING_TYPE = "global"  # else containers would hand over a list of entries in place of a matrix

    def __init__(self, kept: torch.Tensor) -> None:
        self._kept = kept

    def compute_mask(self, t: torch.Tensor, default_mask: torch.Tensor) -> torch.Tensor:
        """Return the mask, 0 also where ``default_mask`` is."""
        return default_mask * self._kept.to(default_mask)

    @classmethod
    def apply(  # type: ignore[override]
        cls,
        module: Any,
        name: str,
        inputs: torch.Tensor,
        *,
        sparsity: float | None = None,
        pattern: str | Pattern | None = None,
        activation: str | Activation = "identity",
        outputs: torch.Tensor | None = None,
        effort: str = "default",
        max_samples: int = MAX_SAMPLES,
        seed: int = 0,
    ) -> prune.BasePruningMethod:
        """Prune a module's weight, in place.

        As always with these methods, ``weight_mask`` holds the zeros and ``weight_orig`` the values; the kept ones, and
        the module's bias, are new. A bias that is pruned itself stays as it is. Weights that an earlier mask has set to
        zero stay zero, and count.

        Parameters
        ----------
        module : torch.nn.Module
            Linear, a convolution or transposed convolution, or Hugging Face's Conv1D.
        name : str
            "weight".
        inputs : torch.Tensor
            What the module is given on calibration data: of modules before it that are sparse already, if there are.
        outputs : torch.Tensor, optional
            What the module returned in the dense network, for as many samples. Default: what it returns on ``inputs``
            as it is.
        sparsity, pattern, activation, effort, seed
            See `sisopt.sparsify`; ``activation`` is what follows the module.
        max_samples : int
            Positions that are used, drawn with ``seed``: tokens, rows of a batch or places of an image.

        Returns
        -------
        torch.nn.utils.prune.BasePruningMethod
        """
        if name != "weight":
            msg = f"name must be 'weight', got {name!r}"
            raise InvalidInputError(msg)
        mask = getattr(module, "weight_mask", None)
        weight = module.weight if mask is None else module.weight_orig * mask
        bias = getattr(module, "bias", None)
        own_bias = isinstance(bias, nn.Parameter)  # of a pruned one the attribute is a product
        samples = ModuleSamples(module, weight, bias, max_samples, seed)
        samples.record(module, (inputs,), {}, outputs)
        wanted = Wanted(sparsity, pattern, activation, effort, seed)
        weight, bias, _ = samples.sparse(weight, bias, wanted, mask=mask, holds_bias=not own_bias)
        with torch.no_grad():  # what a module holds between calls must be a leaf, lest it cannot be copied
            method = super().apply(module, name, weight != 0)  # type: ignore[no-untyped-call]
            module.weight_orig.copy_(weight)
            if own_bias:
                module.bias.copy_(bias)
            module.weight = method.apply_mask(module)
        return method  # type: ignore[no-any-return]
