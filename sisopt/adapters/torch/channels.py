"""Where the outputs of every layer go in a model that torch.fx can trace: which weights and numbers belong to each.

The outputs of a linear layer or a convolution are *channels*. They go through operations that treat each channel by
itself (activations, batch normalisation, pooling, flattening) to the layers that read them. Whatever else is done with
them pins them: all of them are needed. A channel whose weights are all zero holds a constant, followed on its way by
running each operation on it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from .activations import DROPOUTS, PLAIN

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

_ELEMENTWISE_MODULES = {
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid),
    *(nn.Tanh, nn.Softplus, nn.Softsign, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish, nn.LogSigmoid, nn.Softshrink),
    *(nn.Hardshrink, nn.Tanhshrink, nn.Threshold, nn.Identity),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout),
}
_POOLS = ("MaxPool", "AvgPool", "AdaptiveMaxPool", "AdaptiveAvgPool")
_POOL_MODULES = {getattr(nn, f"{kind}{n}d"): n for kind in _POOLS for n in (1, 2, 3)}  # to spatial dimensions
_ELEMENTWISE_NAMES = {
    *(*PLAIN, *DROPOUTS, "gelu", "elu", "elu_", "celu", "celu_", "leaky_relu", "leaky_relu_", "softplus", "softshrink"),
    *("hardshrink", "tanhshrink", "threshold", "threshold_", "hardtanh", "hardtanh_", "clamp", "clamp_", "clip"),
    *("clip_", "clamp_min", "clamp_min_", "clamp_max", "clamp_max_", "contiguous", "clone", "detach"),
}
_POOL_NAMES = {
    f"{kind}_pool{n}d": n for kind in ("max", "avg", "adaptive_max", "adaptive_avg") for n in (1, 2, 3)
}  # fmt: skip
_SHAPE_NAMES = {"flatten", "view", "reshape", "mean", "squeeze"}


@dataclass(eq=False)
class Reader:
    """A layer that reads channels: column i of its matrix, or of its kernels, is channel ``columns[i]``."""

    layer: Any
    columns: torch.Tensor  # (n_in,) int64
    constants: torch.Tensor  # (n_in,) float64, NaN where an input is not constant
    pads: bool  # with zeros, which end a constant at the border


@dataclass(eq=False)
class Channels:
    """The outputs of a layer: modules on their way that have numbers for each, and layers that read them."""

    layer: Any
    name: str
    size: int
    pinned: str = ""  # why all of them must stay
    steps: list[tuple[Any, torch.Tensor]] = field(default_factory=list)  # modules, and the channel of each number
    readers: list[Reader] = field(default_factory=list)

    def pin(self, why: str) -> None:
        """Note why all channels must stay."""
        self.pinned = self.pinned or why


@dataclass(frozen=True, eq=False)
class _Value:
    """A tensor that holds channels along an axis."""

    channels: Channels
    columns: torch.Tensor  # (n,) int64: the channel of every entry of the axis
    constants: torch.Tensor  # (n,) float64, NaN where an entry is not constant
    axis: int


class ChannelTracer(fx.Interpreter):
    """Runs a traced model and follows the channels of its layers; ``found`` has them in order of execution."""

    def __init__(self, traced: fx.GraphModule, model: nn.Module) -> None:
        super().__init__(traced)
        self.found: list[Channels] = []
        self._values: dict[fx.Node, _Value] = {}
        calls = Counter(id(self.fetch_attr(str(n.target))) for n in traced.graph.nodes if n.op == "call_module")
        modules = {id(module): module for module in model.modules()}  # a module that is there twice counts once
        holders = Counter(id(p) for module in modules.values() for p in module.parameters(recurse=False))
        holders.update(id(self.fetch_attr(str(n.target))) for n in traced.graph.nodes if n.op == "get_attr")
        self._plain = {
            key
            for key, module in modules.items()
            if calls[key] == 1
            and not module._forward_hooks
            and not module._forward_pre_hooks
            and all(holders[id(p)] == 1 for p in module.parameters(recurse=False))
        }

    def run_node(self, n: fx.Node) -> Any:
        """Run a node, and note what it does with channels."""
        inputs = {node: self._values[node] for node in n.all_input_nodes if node in self._values}
        versions = {node: self.env[node]._version for node in inputs}
        result = super().run_node(n)
        in_place = [node for node in inputs if self.env[node]._version != versions[node] and len(node.users) > 1]
        given = n.args[0] if n.args and isinstance(n.args[0], fx.Node) else None
        others = [node for node in n.all_input_nodes if node is not given]
        alone = given is not None and not in_place and all(isinstance(self.env[node], int) for node in others)
        value = inputs.get(given) if given is not None and alone else None
        module = self.fetch_attr(str(n.target)) if n.op == "call_module" else None
        if type(module) in LAYERS and getattr(module, "groups", 1) == 1:
            self._layer(n, module, value, result)
            if value is not None:
                return result
        elif value is not None and isinstance(result, torch.Tensor):
            following = self._step(n, module, value, result)
            if following is not None:
                self._values[n] = following
                return result
        elif value is not None and _asks_for_batch_size(n):
            return result
        for each in inputs.values():
            each.channels.pin(f"{_described(n, module)} reads them" if n.op != "output" else "the model returns them")
        return result

    def _layer(self, n: fx.Node, layer: Any, value: _Value | None, result: torch.Tensor) -> None:
        """Note a layer: as a reader of channels, and as one that makes some."""
        linear = isinstance(layer, nn.Linear)
        axis = result.dim() - 1 if linear else 1
        batched = result.dim() > 1 if linear else result.dim() == layer.weight.dim()
        plain = batched and id(layer) in self._plain
        if value is not None:
            if plain and value.axis == axis:
                pads = not linear and layer.padding_mode == "zeros" and _padding(layer)
                value.channels.readers.append(Reader(layer, value.columns, value.constants, pads))
            else:
                value.channels.pin(f"{n.target} reads them in a way that is not understood")
        if plain:
            channels = Channels(layer, str(n.target), len(layer.weight))
            self.found.append(channels)
            zero = (layer.weight.reshape(len(layer.weight), -1) == 0).all(dim=1)
            self._values[n] = _Value(channels, torch.arange(channels.size), _constants(zero, layer.bias), axis)

    def _step(self, n: fx.Node, module: Any, value: _Value, result: torch.Tensor) -> _Value | None:
        """Return what becomes of channels in an operation on each by itself; None where it may be something else."""
        given = self.fetch_args_kwargs_from_env(n)[0][0]
        name = "" if module is not None else _function_name(n)
        n_spatial = _POOL_MODULES.get(type(module), _POOL_NAMES.get(name, 0))
        axis = value.axis
        if n_spatial or isinstance(module, NORMS) or (isinstance(module, nn.PReLU) and module.weight.numel() > 1):
            if axis != 1 or (n_spatial and given.dim() != n_spatial + 2):
                return None
        elif _is_depthwise(module):
            if axis != 1 or given.dim() != module.weight.dim():
                return None
        elif name == "pad":
            sizes = n.args[1] if len(n.args) > 1 else n.kwargs.get("pad")
            if not isinstance(sizes, tuple | list) or len(sizes) > 2 * (given.dim() - 1 - axis):
                return None
        elif isinstance(module, nn.Flatten) or name in _SHAPE_NAMES:
            return self._reshaped(n, module, name, value, given, result)
        elif type(module) not in _ELEMENTWISE_MODULES and name not in _ELEMENTWISE_NAMES:
            return None
        if name in DROPOUTS and not torch.equal(result, given):
            return None
        if module is not None and any(True for _ in module.parameters()) or isinstance(module, NORMS):
            if id(module) not in self._plain or (isinstance(module, NORMS) and module.running_mean is None):
                return None
            if not isinstance(module, nn.PReLU) or module.weight.numel() > 1:
                value.channels.steps.append((module, value.columns))
        constants = _after(lambda x: self._again(n, x), value.constants, given, axis)
        if _is_depthwise(module):
            zero = (module.weight.reshape(len(module.weight), -1) == 0).all(dim=1)
            constants = torch.where(zero.cpu(), _constants(zero, module.bias), constants)
        return _Value(value.channels, value.columns, constants, axis)

    def _reshaped(
        self, n: fx.Node, module: Any, name: str, value: _Value, given: torch.Tensor, result: torch.Tensor
    ) -> _Value | None:
        """Return what becomes of channels where dimensions behind them are averaged or flattened."""
        rest: tuple[Any, ...] = n.args[1:]
        if name in ("mean", "squeeze"):
            dims = rest[0] if rest else n.kwargs.get("dim")
            dims = (dims,) if isinstance(dims, int) else dims
            if not isinstance(dims, tuple | list) or not all(isinstance(d, int) for d in dims):
                return None
            if len(rest) > 1 or any(d % given.dim() <= value.axis for d in dims):
                return None
            constants = _after(lambda x: self._again(n, x), value.constants, given, value.axis)
            return _Value(value.channels, value.columns, constants, value.axis)
        if module is not None:
            flattens = (module.start_dim, module.end_dim) == (1, -1)
        elif name == "flatten":
            flattens = (rest, dict(n.kwargs)) in (((1,), {}), ((), {"start_dim": 1}))
        else:  # the second size must not be a number, which would be that of all channels
            sizes = rest[0] if len(rest) == 1 and isinstance(rest[0], tuple | list) else rest
            flattens = len(sizes) == 2 and isinstance(sizes[1], int) and sizes[1] == -1
        if not flattens or value.axis == 0 or result.dim() != 2 or len(result) != len(given):
            return None

        def spread(entries: torch.Tensor) -> torch.Tensor:
            shape = [-1 if axis == value.axis else 1 for axis in range(1, given.dim())]
            return entries.reshape(shape).expand(given.shape[1:]).reshape(-1)

        return _Value(value.channels, spread(value.columns), spread(value.constants), 1)

    def _again(self, n: fx.Node, given: torch.Tensor) -> torch.Tensor:
        """Return what a node makes of another tensor in the place of its first argument."""
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        found: torch.Tensor = getattr(self, n.op)(n.target, (given, *args[1:]), kwargs)
        return found


def _after(run: Callable[[torch.Tensor], torch.Tensor], constants: torch.Tensor, like: torch.Tensor, axis: int) -> Any:
    """Return constants after an operation: it is run on a tensor that is constant in every entry of an axis."""
    known = ~constants.isnan()
    if not known.any():
        return constants
    shape = [-1 if i == axis else 1 for i in range(like.dim())]
    filled = constants.nan_to_num().to(like).reshape(shape).expand(1, *like.shape[1:]).contiguous()
    outputs = run(filled).to("cpu", torch.float64)
    flat = outputs.movedim(axis, 0).reshape(len(constants), -1)
    low, high = flat.amin(dim=1), flat.amax(dim=1)
    same = high - low <= 4 * torch.finfo(like.dtype).eps * torch.maximum(high.abs(), low.abs())
    return torch.where(known & same, (low + high) / 2, torch.nan)


def _constants(zero: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Return the outputs of rows that are all zero, NaN for others."""
    value = torch.zeros(len(zero)) if bias is None else bias.detach()
    return torch.where(zero.cpu(), value.to("cpu", torch.float64), torch.nan)


def _is_depthwise(module: Any) -> bool:
    return type(module) in LAYERS[1:] and module.groups == module.in_channels == module.out_channels


def _padding(layer: Any) -> bool:
    """Return whether a convolution pads its inputs."""
    if isinstance(layer.padding, str):
        return bool(layer.padding == "same" and any(size > 1 for size in layer.kernel_size))
    return any(layer.padding)


def _function_name(n: fx.Node) -> str:
    """Return the name of a function or method of torch, "" for others."""
    if n.op == "call_method":
        return str(n.target)
    name = getattr(n.target, "__name__", "")
    return next((each for each in (name, *_POOL_NAMES) if n.target in _torch_functions(each)), "")


def _torch_functions(name: str) -> list[Any]:
    return [getattr(owner, name) for owner in (torch, F) if hasattr(owner, name)]


def _asks_for_batch_size(n: fx.Node) -> bool:
    """Return whether a node asks for the first size of a tensor and no other."""
    if n.op == "call_method" and n.target == "size":
        return n.args[1:] == (0,)
    users = list(n.users)
    return n.target is getattr and n.args[1] == "shape" and all(u.args[1:] == (0,) for u in users)


def _described(n: fx.Node, module: Any) -> str:
    if module is not None:
        return f"{n.target} ({type(module).__name__})"
    return getattr(n.target, "__name__", str(n.target))
