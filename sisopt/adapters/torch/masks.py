"""Zeros that stay zero while a sparse model is trained on: torch's pruning masks, or parametrizations.

Torch leaves four traps, each met here: a weight that is masked while gradients are recorded cannot be copied; the
forward of `MultiheadAttention` never calls its ``out_proj``, whose pruning hook would not run; a tied weight has a
holder for every module that shares it; and copies of a parametrized module share a class, which the release of one
would change for all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize, prune

from ...errors import InvalidInputError
from ...network import NetworkReport
from .trace import sites_of


def to_prune_masks(model: nn.Module, report: NetworkReport | None = None) -> list[str]:
    """Turn the zeros of a sparse model into masks of `torch.nn.utils.prune`, in place.

    Every weight with zeros becomes ``weight_orig``, a parameter, and ``weight_mask``, a buffer: what
    ``torch.nn.utils.prune`` offers then applies, and the zeros stay zero in training. ``prune.remove(module, name)``
    takes a mask away and leaves the zeros. Between a forward pass that records gradients and one that does not, torch
    cannot deepcopy the model.

    Parameters
    ----------
    model : torch.nn.Module
        A model that was made sparse.
    report : NetworkReport, optional
        Of `sparsify_model`: only the layers that it made sparse are masked; else all of supported types with zeros.

    Returns
    -------
    list of str
        Names of the weights that are masked now.

    Raises
    ------
    InvalidInputError
        If there is no weight with zeros, or the report is that of another model.
    UnsupportedError
        If a layer's weights are masked or parametrized already.

    Examples
    --------
    >>> import torch
    >>> from sisopt.adapters.torch import sparsify_model, to_prune_masks
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Sequential(torch.nn.Linear(20, 10), torch.nn.ReLU()).eval()
    >>> report = sparsify_model(model, torch.randn(2, 100, 20), sparsity=0.8)
    >>> to_prune_masks(model, report)
    ['0.weight']
    >>> torch.nn.utils.prune.is_pruned(model)
    True
    """
    weights = _with_zeros(model, report)
    for weight in weights:
        with torch.no_grad():  # else the masked weight would be no leaf, and the model could not be copied
            prune.custom_from_mask(weight.module, weight.parameter, weight.mask)  # type: ignore[no-untyped-call]
    projections = {id(weight.module) for weight in weights}
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention) and id(module.out_proj) in projections:
            module.register_forward_pre_hook(_mask_output_projection)
    return [weight.name for weight in weights]


def keep_zeros(model: nn.Module, report: NetworkReport | None = None) -> list[str]:
    """Fix the zeros of a sparse model, in place: they stay zero in training, whatever the optimizer.

    Every weight with zeros is parametrized (``torch.nn.utils.parametrize``) as its product with a mask. Parameters stay
    the objects that they were, so that an optimizer made before goes on. `release_zeros` makes weights plain again. As
    always with parametrizations, save the ``state_dict``, not the model.

    Parameters
    ----------
    model : torch.nn.Module
        A model that was made sparse.
    report : NetworkReport, optional
        Of `sparsify_model`: only the layers that it made sparse are masked; else all of supported types with zeros.

    Returns
    -------
    list of str
        Names of the weights whose zeros are kept.

    Raises
    ------
    InvalidInputError
        If there is no weight with zeros, or the report is that of another model.
    UnsupportedError
        If a layer's weights are masked or parametrized already.

    Examples
    --------
    >>> import torch
    >>> from sisopt.adapters.torch import keep_zeros, release_zeros, sparsify_model
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Sequential(torch.nn.Linear(20, 10), torch.nn.ReLU()).eval()
    >>> report = sparsify_model(model, torch.randn(2, 100, 20), sparsity=0.8)
    >>> keep_zeros(model, report)
    ['0.weight']
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    >>> model(torch.randn(5, 20)).sum().backward()
    >>> optimizer.step()
    >>> release_zeros(model)
    ['0.weight']
    >>> int((model[0].weight == 0).sum())
    160
    """
    weights = _with_zeros(model, report)
    for weight in weights:
        parametrize.register_parametrization(weight.module, weight.parameter, KeptZeros(weight.mask))
    return [weight.name for weight in weights]


def release_zeros(model: nn.Module) -> list[str]:
    """Undo `keep_zeros`, in place: weights are plain parameters again, with the zeros and values that they have now.

    Parameters
    ----------
    model : torch.nn.Module

    Returns
    -------
    list of str
        Names of the weights that were released; none where no zeros were kept.

    Examples
    --------
    >>> import torch
    >>> from sisopt.adapters.torch import keep_zeros, release_zeros
    >>> layer = torch.nn.Linear(10, 4)
    >>> with torch.no_grad():
    ...     _ = layer.weight.copy_(torch.eye(4, 10))
    >>> keep_zeros(layer), release_zeros(layer)
    (['weight'], ['weight'])
    >>> int((layer.weight == 0).sum())
    36
    """
    released = []
    for path, module in list(model.named_modules()):
        found = _kept(module)
        if found:
            cls = type(module)  # shared with copies of the module, and about to change
            module.__class__ = type(cls.__name__, cls.__bases__, dict(vars(cls)))
        for name in found:
            parametrize.remove_parametrizations(module, name)
            released.append(_joined(path, name))
    return released


class KeptZeros(nn.Module):
    """A parametrization: the weight times a fixed mask."""

    mask: torch.Tensor

    def __init__(self, mask: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the weight with its zeros."""
        return weight * self.mask


@dataclass(frozen=True)
class _Weight:
    """A parameter with zeros, and the module that holds it."""

    name: str  # from the model's root
    module: nn.Module
    parameter: str
    mask: torch.Tensor  # bool, True where it is not zero


def _with_zeros(model: nn.Module, report: NetworkReport | None) -> list[_Weight]:
    """Return the weights of layers that have zeros, once for every module that holds them."""
    chosen = {id(parameter) for parameter in _layer_weights(model, report)}
    found = []
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in chosen:
                mask = parameter.detach() != 0
                if not mask.all():
                    found.append(_Weight(_joined(path, name), module, name, mask))
    if not found:
        msg = "model has no layer with zeros: make it sparse first, with sparsify_model(model, batches, ...)"
        raise InvalidInputError(msg)
    return found


def _layer_weights(model: nn.Module, report: NetworkReport | None) -> Iterator[nn.Parameter]:
    """Yield the weights of the layers that a report names as sparse, of all layers where there is none."""
    sparse = [layer.name for layer in report.included if layer.sparsity > 0] if report is not None else None
    layers = sites_of(model, lambda name, module: sparse is None or name in sparse)
    for name in layers if sparse is None else sparse:
        if name not in layers:
            msg = f"report is of another model: it has a layer {name!r}, the model has none of that name"
            raise InvalidInputError(msg)
        module, kind = layers[name]
        for parameter in dict.fromkeys(each for program in kind.programs(module) for each in program.parameters):
            yield module.get_parameter(parameter)


def _kept(module: Any) -> list[str]:
    """Return the names of a module's weights whose zeros are kept."""
    if not parametrize.is_parametrized(module):
        return []
    lists = module.parametrizations.items()
    return [name for name, steps in lists if any(isinstance(step, KeptZeros) for step in steps)]


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _mask_output_projection(attention: Any, inputs: tuple[Any, ...]) -> None:
    """Run the pruning hook of a projection that is read but never called."""
    for hook in attention.out_proj._forward_pre_hooks.values():
        if isinstance(hook, prune.BasePruningMethod):
            hook(attention.out_proj, inputs)
