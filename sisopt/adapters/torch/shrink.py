"""Zeros taken out: neurons, filters and channels of which nothing is left, or that nothing reads."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn

from ...errors import InvalidInputError, UnsupportedError
from .channels import LAYERS, NORMS, Channels, ChannelTracer, Reader
from .conversion import Conversion
from .forwards import eval_mode, tensors_in

_ROUNDING = 1e3  # units in the last place of the largest output: sums in another order differ by less
_MOST_ROUNDING = 0.05  # of the largest output, in types of 16 bits


def remove_structured_zeros(model: nn.Module, example_inputs: Any) -> Conversion:
    """Return a smaller dense model with the same outputs: what does nothing is removed from its layers.

    A neuron, a filter or a channel is removed where the layers that read it have only zeros for it, or where it has
    only zeros itself; the constant that it then holds goes into the biases of those layers. This makes others do
    nothing, so it is done until nothing more is found. Followed are linear layers and convolutions through activations,
    batch normalisation, depthwise convolutions, pooling and flattening, as `torch.fx` sees them. Layers whose outputs
    go anywhere else, into an addition for one, keep all of these; what leaves or enters the model keeps its shape.

    Parameters
    ----------
    model : torch.nn.Module
        A model that was made sparse, best with a pattern such as ``"columns"`` or ``"filters"``. It stays as it is.
    example_inputs : tensor, tuple, list or mapping
        ``model(inputs)``, ``model(*inputs)`` or ``model(**inputs)`` is called to follow the channels, and to compare
        the outputs of both models.

    Returns
    -------
    Conversion
        The smaller model, of the same classes, and what was done to its layers. It computes what the given model does
        in eval mode, for inputs of these sizes and with the other arguments as they are in the example. Its
        ``state_dict`` fits no model of the original sizes: save the original, with `save_sparse`, and make it smaller
        after loading.

    Raises
    ------
    InvalidInputError
        If an argument is not what it should be.
    UnsupportedError
        If torch.fx cannot trace the model, or the outputs of the smaller model are not the same.

    Examples
    --------
    >>> import torch
    >>> from sisopt.adapters.torch import remove_structured_zeros
    >>> model = torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.ReLU(), torch.nn.Linear(30, 5)).eval()
    >>> with torch.no_grad():
    ...     model[0].weight[:8] = 0  # these neurons are constant
    ...     model[2].weight[:, 8:18] = 0  # and these are never read
    >>> inputs = torch.randn(4, 20)
    >>> smaller = remove_structured_zeros(model, inputs)
    >>> print(smaller)
    0  20 -> 30 is 20 -> 12
    2  30 -> 5 is 12 -> 5
    >>> torch.allclose(smaller.model(inputs), model(inputs), atol=1e-5)
    True
    """
    if not isinstance(model, nn.Module):
        msg = f"model must be a torch.nn.Module, got {type(model).__name__}"
        raise InvalidInputError(msg)
    args, kwargs = _arguments(example_inputs)
    smaller = copy.deepcopy(model)
    sizes = {name: _sizes(module) for name, module in model.named_modules() if type(module) in LAYERS}
    with eval_mode(model, smaller), torch.no_grad():
        wanted = model(*copy.deepcopy(args), **copy.deepcopy(kwargs))  # some models write to what they are given
        traced, values = _traced(smaller, args, kwargs)
        while True:
            tracer = ChannelTracer(traced, smaller)
            tracer.run(*copy.deepcopy(values))
            removed = [_remove(channels) for channels in reversed(tracer.found)]
            if not any(removed):
                break
        _compare(wanted, smaller(*copy.deepcopy(args), **copy.deepcopy(kwargs)))
    found = {channels.name: _why(channels) for channels in tracer.found}
    changed, unchanged = {}, {}
    for name, before in sizes.items():
        after = _sizes(smaller.get_submodule(name))
        if after != before:
            changed[name] = f"{before} is {after}"
        else:
            unchanged[name] = found.get(name, "in no chain that is understood")
    return Conversion(smaller, changed, unchanged)


def _arguments(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return how the model is called."""
    if isinstance(example_inputs, torch.Tensor):
        return (example_inputs,), {}
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, tuple | list):
        return tuple(example_inputs), {}
    msg = f"example_inputs must be a tensor, tuple, list or mapping, got {type(example_inputs).__name__}"
    raise InvalidInputError(msg)


def _traced(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[fx.GraphModule, list[Any]]:
    """Return the model's graph and the values of its placeholders; arguments not given are fixed to their defaults."""
    signature = inspect.signature(model.forward)
    bound = signature.bind(*args, **kwargs)
    given = set(bound.arguments)
    bound.apply_defaults()
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    values = {name: value for name, value in bound.arguments.items() if signature.parameters[name].kind not in several}
    fixed = {name: value for name, value in values.items() if name not in given}
    try:
        graph = fx.Tracer().trace(model, concrete_args=fixed or None)
    except Exception as error:  # whatever the model's own code raises when it is given no numbers
        msg = f"torch.fx cannot trace the model ({error}): give its parts that are chains of layers one by one"
        raise UnsupportedError(msg) from error
    return fx.GraphModule(model, graph), list(values.values())


def _remove(channels: Channels) -> bool:
    """Remove the channels that do nothing; return whether there were any."""
    if channels.pinned:
        return False
    _merge(channels)
    keep = ~_removable(channels)
    if not keep.any():
        keep[0] = True  # layers of size 0 do not run everywhere
    if keep.all():
        return False
    for reader in channels.readers:
        _fold(reader, ~keep[reader.columns])
        columns = keep[reader.columns]
        _slice(reader.layer, "weight", columns, dim=1)
        _set_size(reader.layer, "in", int(columns.sum()))
    for module, of in channels.steps:
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if tensor.dim():  # not the number of batches
                _slice(module, name, keep[of])
        size = int(keep[of].sum())
        if isinstance(module, NORMS):
            module.num_features = size
        elif isinstance(module, nn.PReLU):
            module.num_parameters = size
        else:
            module.in_channels = module.out_channels = module.groups = size
    _slice(channels.layer, "weight", keep)
    if channels.layer.bias is not None:
        _slice(channels.layer, "bias", keep)
    _set_size(channels.layer, "out", int(keep.sum()))
    return True


def _merge(channels: Channels) -> None:
    """Let one constant channel do what several do, where none can go into a bias: a padded convolution reads them."""
    if len(channels.readers) != 1 or not channels.readers[0].pads:
        return
    (reader,) = channels.readers
    c, weight = reader.constants, reader.layer.weight
    (columns,) = (_is_read(reader) & ~c.isnan() & (c != 0)).nonzero(as_tuple=True)
    if len(columns) > 1:
        largest = columns[c[columns].abs().argmax()]
        shares = (c[columns] / c[largest]).to(weight.device)
        one = torch.tensordot(weight[:, columns].double(), shares, dims=([1], [0])).to(weight.dtype)
        weight[:, columns] = 0
        weight[:, largest] = one


def _removable(channels: Channels) -> torch.Tensor:
    """Return which channels can be removed, were they not pinned, bool (size,)."""
    found = torch.ones(channels.size, dtype=torch.bool)
    for reader in channels.readers:
        needed = _is_read(reader) & (reader.constants.isnan() | (reader.pads & (reader.constants != 0)))
        found[reader.columns[needed]] = False
    return found


def _is_read(reader: Reader) -> torch.Tensor:
    """Return which columns of a layer have weights, bool (n_in,)."""
    weight = reader.layer.weight
    read: torch.Tensor = (weight != 0).transpose(0, 1).reshape(weight.shape[1], -1).any(dim=1).cpu()
    return read


def _fold(reader: Reader, removed: torch.Tensor) -> None:
    """Add what constant inputs contribute to a layer's bias."""
    layer, constants = reader.layer, reader.constants.nan_to_num() * (removed & _is_read(reader))
    if not constants.any():
        return
    weight = layer.weight.detach().to("cpu", torch.float64)
    more = weight.reshape(*weight.shape[:2], -1).sum(dim=2) @ constants
    if layer.bias is None:
        layer.bias = nn.Parameter(more.to(layer.weight), requires_grad=layer.weight.requires_grad)
    else:
        layer.bias += more.to(layer.bias)


def _slice(module: Any, name: str, keep: torch.Tensor, dim: int = 0) -> None:
    """Leave some entries of a parameter or buffer."""
    old = getattr(module, name)
    new = old.detach().index_select(dim, keep.nonzero()[:, 0].to(old.device)).contiguous()
    if isinstance(old, nn.Parameter):
        new = nn.Parameter(new, requires_grad=old.requires_grad)
    setattr(module, name, new)


def _set_size(layer: Any, side: str, size: int) -> None:
    setattr(layer, f"{side}_{'features' if isinstance(layer, nn.Linear) else 'channels'}", size)


def _sizes(layer: Any) -> str:
    """Return a layer's sizes as a report shows them."""
    if isinstance(layer, nn.Linear):
        return f"{layer.in_features} -> {layer.out_features}"
    return f"{layer.in_channels} -> {layer.out_channels}"


def _why(channels: Channels) -> str:
    """Return why a layer's outputs are as many as before."""
    if channels.pinned:
        return f"all outputs stay: {channels.pinned}"
    padded = torch.zeros(channels.size, dtype=torch.bool)
    for reader in channels.readers:
        if reader.pads:
            padded[reader.columns[_is_read(reader) & ~reader.constants.isnan()]] = True
    n = int(padded.sum())
    return "nothing to remove" if n == 0 else f"{n} constant output stays: zero padding ends it at the border"


def _compare(wanted: Any, found: Any) -> None:
    """Raise where two models' outputs are not the same."""
    pairs = list(zip(tensors_in(wanted), tensors_in(found), strict=True))
    for old, new in pairs:
        if old.shape != new.shape:
            difference, scale = float("inf"), 1.0
        else:
            same = (old == new) | (old.isnan() & new.isnan())
            apart = torch.where(same, 0.0, (new.double() - old.double()).abs())  # infinities may be equal
            difference = float(apart.max()) if old.numel() else 0.0
            scale = float(old[old.isfinite()].abs().max()) if old.isfinite().any() else 0.0
        eps = torch.finfo(old.dtype).eps if old.is_floating_point() else 0.0
        if not difference <= min(_ROUNDING * eps, _MOST_ROUNDING) * scale:
            msg = (
                f"the outputs of the smaller model differ by {difference:.2g}, the largest is {scale:.2g}: the model "
                "does something with its channels that torch.fx does not see, or is not the same at every call; it is "
                "as it was"
            )
            raise UnsupportedError(msg)
