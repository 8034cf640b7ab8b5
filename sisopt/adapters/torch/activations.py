"""Which activation a call is: functions of torch, by name and arguments, to names of sisopt."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ...activations import Activation, get_activation
from ...activations.increasing import CELU, ELU, Softplus
from ...activations.piecewise import LeakyReLU
from ...errors import InvalidInputError

PLAIN = {
    "relu": "relu",
    "relu_": "relu",
    "relu6": "relu6",
    "sigmoid": "sigmoid",
    "sigmoid_": "sigmoid",
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
# Elementwise functions commute with these, and dropout does nothing in eval mode.
PASSING = {
    *(
        "view",
        "reshape",
        "permute",
        "transpose",
        "flatten",
        "contiguous",
        "squeeze",
        "unsqueeze",
        "movedim",
        "swapaxes",
    ),
    *("t", "unflatten", "view_as", "reshape_as", "alias", "detach", "clone", "_conj"),
    *("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"),
}
NORMS = {"batch_norm"}


def activation_of(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Activation | None:
    """Return the activation that a call computes of its first argument, None where it is none we know."""
    if name in PLAIN:
        return get_activation(PLAIN[name])
    special = _SPECIAL.get(name)
    if special is None:
        return None
    try:
        return special(*args[1:], **{key: value for key, value in kwargs.items() if key != "input"})
    except (InvalidInputError, TypeError):  # bounds that are tensors, or slopes that sisopt does not take
        return None


def _gelu(approximate: str = "none") -> Activation:
    return get_activation("gelu_tanh" if approximate == "tanh" else "gelu")


def _hardtanh(min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Activation | None:
    return _clamp(min_val, max_val)


def _clamp(min: Any = None, max: Any = None) -> Activation | None:
    bounds = (None if min is None else float(min), None if max is None else float(max))
    known = {(0.0, None): "relu", (0.0, 6.0): "relu6", (-1.0, 1.0): "hard_tanh"}
    return get_activation(known[bounds]) if bounds in known else None


def _leaky_relu(negative_slope: float = 0.01, inplace: bool = False) -> Activation:
    return LeakyReLU(negative_slope)


def _elu(alpha: float = 1.0, inplace: bool = False) -> Activation:
    return ELU(alpha)


def _celu(alpha: float = 1.0, inplace: bool = False) -> Activation:
    return CELU(alpha)


def _softplus(beta: float = 1.0, threshold: float = 20.0) -> Activation:
    return Softplus(beta)


_SPECIAL: dict[str, Callable[..., Activation | None]] = {
    **dict.fromkeys(("gelu",), _gelu),
    **dict.fromkeys(("hardtanh", "hardtanh_"), _hardtanh),
    **dict.fromkeys(("clamp", "clamp_", "clip", "clip_", "clamp_min", "clamp_min_"), _clamp),
    **dict.fromkeys(("leaky_relu", "leaky_relu_"), _leaky_relu),
    **dict.fromkeys(("elu", "elu_"), _elu),
    **dict.fromkeys(("celu", "celu_"), _celu),
    "softplus": _softplus,
}
