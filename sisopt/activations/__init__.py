"""Activations: forward maps and the preimages of their outputs, by name or as objects."""

from .base import Activation
from .increasing import CELU, ELU, SELU, Softplus
from .piecewise import Clip, HardSigmoid, LeakyReLU, PReLU, SoftShrink, SquaredReLU
from .registry import activation_names, get_activation, register_activation

__all__ = [
    "CELU",
    "ELU",
    "SELU",
    "Activation",
    "Clip",
    "HardSigmoid",
    "LeakyReLU",
    "PReLU",
    "SoftShrink",
    "Softplus",
    "SquaredReLU",
    "activation_names",
    "get_activation",
    "register_activation",
]
