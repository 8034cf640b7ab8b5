"""Which activation a call is: functions of torch, by name and arguments, to names of sisopt."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ...activations import Activation, get_activation
from ...activations.increasing import CELU, ELU, Softplus
from ...activations.piecewise import Clip, LeakyReLU, PReLU, SoftShrink
from ...errors import InvalidInputError

PLAIN = {
    "relu": "relu",
    "relu_": "relu",
    "relu6": "relu6",
    "sigmoid": "sigmoid",
    "sigmoid_": "sigmoid",
    "special_expit": "sigmoid",
    "tanh": "tanh",
    "tanh_": "tanh",
    "silu": "silu",
    "mish": "mish",
    "hardswish": "hard_swish",
    "hardsigmoid": "hard_sigmoid",
    "logsigmoid": "log_sigmoid",
    "log_sigmoid": "log_sigmoid",
    "softsign": "softsign",
    "selu": "selu",
    "selu_": "selu",
}
STRAIGHT = 15.0  # beta z above which softplus is z to single precision
# Shapes, which elementwise functions commute with, and copies.
PASSING = {
    *("view", "reshape", "view_as", "reshape_as", "flatten", "unflatten", "ravel", "squeeze", "unsqueeze"),
    *("permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "t"),
    *("contiguous", "clone", "detach", "alias"),
}
# In eval mode these return what they are given; one that does not is at work all the same, and is no activation.
DROPOUTS = {"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"}


def activation_of(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Activation | None:
    """Return the activation that a call computes of its first argument, None where it is none we know."""
    if name in PLAIN:
        return get_activation(PLAIN[name])
    special = _SPECIAL.get(name)
    if special is None:
        return None
    try:
        return special(*args[1:], **{key: value for key, value in kwargs.items() if key != "input"})
    except (InvalidInputError, TypeError):  # bounds or slopes that sisopt does not take
        return None


def _gelu(approximate: str = "none") -> Activation:
    return get_activation("gelu_tanh" if approximate == "tanh" else "gelu")


def _hardtanh(min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Activation | None:
    return _clamp(min_val, max_val)


def _clamp(min: Any = None, max: Any = None) -> Activation | None:
    if isinstance(min, torch.Tensor) or isinstance(max, torch.Tensor):  # bounds of entries or channels
        return None
    return Clip(-math.inf if min is None else float(min), math.inf if max is None else float(max))


def _clamp_max(max: Any) -> Activation | None:
    return _clamp(None, max)


def _leaky_relu(negative_slope: float = 0.01, inplace: bool = False) -> Activation:
    return LeakyReLU(negative_slope)


def _elu(alpha: float = 1.0, inplace: bool = False) -> Activation:
    return ELU(alpha)


def _celu(alpha: float = 1.0, inplace: bool = False) -> Activation:
    return CELU(alpha)


def _prelu(weight: torch.Tensor) -> Activation | None:
    return PReLU(weight.item()) if weight.numel() == 1 else None


def _softshrink(lambd: float = 0.5) -> Activation:
    return SoftShrink(lambd)


def _softplus(beta: float = 1.0, threshold: float = 20.0) -> Activation | None:
    return Softplus(beta) if threshold >= STRAIGHT else None


_SPECIAL: dict[str, Callable[..., Activation | None]] = {
    "gelu": _gelu,
    **dict.fromkeys(("hardtanh", "hardtanh_"), _hardtanh),
    **dict.fromkeys(("clamp", "clamp_", "clip", "clip_", "clamp_min", "clamp_min_"), _clamp),
    **dict.fromkeys(("leaky_relu", "leaky_relu_"), _leaky_relu),
    **dict.fromkeys(("elu", "elu_"), _elu),
    **dict.fromkeys(("celu", "celu_"), _celu),
    **dict.fromkeys(("clamp_max", "clamp_max_"), _clamp_max),
    "prelu": _prelu,
    "softplus": _softplus,
    "softshrink": _softshrink,
}
