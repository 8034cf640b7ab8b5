"""`torch.ao.pruning`: a sparsifier that fits the weights that it keeps."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn
from torch.ao.pruning import BaseSparsifier  # type: ignore[attr-defined]

from ...activations import Activation
from ...errors import InvalidInputError, UnsupportedError
from ...patterns import Pattern
from .modules import MAX_SAMPLES, ModuleSamples, Wanted


class SisoptSparsifier(BaseSparsifier):
    """Sparsity by `sisopt.sparsify`: ``prepare``, run the model on calibration data, ``step``, ``squash_mask``.

    Between ``prepare`` and the first ``step`` samples of what reaches the modules are recorded. Every step makes all of
    them sparse, from the weights and the bias that they had when prepared: a later one, with another
    ``sparsity_level``, undoes what was trained since. Inputs and targets are those of the dense model.

    Parameters
    ----------
    sparsity_level : float, default 0.5
        Fraction of zeros. This and what follows are defaults: an entry of the configuration, such as
        ``{"tensor_fqn": "0.weight", "sparsity_level": 0.8, "activation": "relu"}``, may say otherwise. With a ``mask``
        there, weights where it is 0 stay zero and count.
    pattern, activation, effort, seed
        See `sisopt.sparsify`. With a pattern "N:M" ``sparsity_level`` has to agree, or be None.
    max_samples : int
        Samples of each module that are kept, drawn with ``seed``: tokens, rows of a batch or places of an image.

    Examples
    --------
    >>> import torch
    >>> from sisopt.adapters.toolkits.torch_ao import SisoptSparsifier
    >>> model = torch.nn.Sequential(torch.nn.Linear(20, 10), torch.nn.ReLU())
    >>> sparsifier = SisoptSparsifier(sparsity_level=0.8, activation="relu")
    >>> sparsifier.prepare(model, [{"tensor_fqn": "0.weight"}])
    >>> _ = model(torch.randn(200, 20))
    >>> sparsifier.step()
    >>> sparsifier.squash_mask()
    >>> int((model[0].weight == 0).sum())
    160
    """

    def __init__(
        self,
        sparsity_level: float | None = 0.5,
        *,
        pattern: str | Pattern | None = None,
        activation: str | Activation = "identity",
        effort: str = "default",
        max_samples: int = MAX_SAMPLES,
        seed: int = 0,
    ) -> None:
        super().__init__(
            {"sparsity_level": sparsity_level, "pattern": pattern, "activation": activation, "effort": effort}
        )
        self._max_samples, self._seed = max_samples, seed
        self._dense: dict[str, tuple[ModuleSamples, torch.Tensor, torch.Tensor | None, torch.Tensor]] = {}
        self._hooks: list[Any] = []

    def prepare(self, model: nn.Module, config: list[dict[str, Any]] | None = None) -> None:
        """Parametrize the weights of a configuration, by default of all Linear modules, and begin to record."""
        super().prepare(model, config)  # type: ignore[no-untyped-call]
        try:
            self._take_weights()
        except (InvalidInputError, UnsupportedError):
            super().squash_mask()  # as it was
            self.groups.clear()
            self._dense.clear()
            raise

    def _take_weights(self) -> None:
        """Keep the dense weights, and begin to record."""
        for group in self.groups:
            module, bias = group["module"], getattr(group["module"], "bias", None)
            if group["tensor_name"] != "weight" or len(module.parametrizations["weight"]) != 1:
                msg = f"{group['tensor_fqn']}: only a 'weight' without other parametrizations can be made sparse"
                raise UnsupportedError(msg)
            weight, mask = module.weight.detach().clone(), module.parametrizations["weight"][0].mask.clone()
            samples = ModuleSamples(module, weight, bias, self._max_samples, self._seed)
            self._dense[group["tensor_fqn"]] = samples, weight, None if bias is None else bias.detach().clone(), mask
        for group in self.groups:  # once none has been refused
            samples, *_ = self._dense[group["tensor_fqn"]]
            self._hooks.append(group["module"].register_forward_pre_hook(samples.record, with_kwargs=True))

    def step(self, use_path: bool = True) -> None:
        """Make the weights sparse; recording ends."""
        if not any(len(samples) for samples, *_ in self._dense.values()):
            msg = "no inputs were recorded: run the model on calibration data between prepare() and step()"
            raise InvalidInputError(msg)
        self._remove_hooks()
        super().step(use_path)

    def update_mask(self, module: Any, tensor_name: str, tensor_fqn: str = "", **group: Any) -> None:
        """Write the mask, the weights and the bias of a module."""
        samples, weight, bias, mask = self._dense[tensor_fqn]
        if not len(samples):
            warnings.warn(f"{tensor_fqn} stays dense: no sample reached it", UserWarning, stacklevel=4)
            return
        wanted = Wanted(group["sparsity_level"], group["pattern"], group["activation"], group["effort"], self._seed)
        weight, bias, _ = samples.sparse(weight, bias, wanted, mask=mask)
        parametrized = module.parametrizations[tensor_name]
        parametrized[0].mask = self.state[tensor_fqn]["mask"] = (weight != 0).to(
            mask
        )  # a new one: the old is the caller's
        parametrized.original.copy_(weight)
        if bias is not None:
            module.bias.copy_(bias)

    def squash_mask(self, *args: Any, **kwargs: Any) -> None:
        """Make the weights plain parameters again, with their zeros; samples are given up."""
        super().squash_mask(*args, **kwargs)
        self._remove_hooks()
        self._dense.clear()

    def _remove_hooks(self) -> None:
        while self._hooks:
            self._hooks.pop().remove()
