"""Activations: forward maps and the preimages of their outputs, by name or as objects."""

from .base import Activation
from .coupled import LogSoftmax, Softmax, Sparsemax
from .increasing import CELU, ELU, SELU, Softplus
from .piecewise import Clip, HardSigmoid, LeakyReLU, PReLU, SoftShrink, SquaredReLU
from .pooling import MaxPool
from .registry import activation_names, get_activation, register_activation
from .windows import pooling_windows

__all__ = [
    "CELU",
    "ELU",
    "SELU",
    "Activation",
    "Clip",
    "HardSigmoid",
    "LeakyReLU",
    "LogSoftmax",
    "MaxPool",
    "PReLU",
    "SoftShrink",
    "Softmax",
    "Softplus",
    "Sparsemax",
    "SquaredReLU",
    "activation_names",
    "get_activation",
    "pooling_windows",
    "register_activation",
]
