"""Kinds of torch modules that are made sparse: how each is taken apart into matrices and put together again."""

from __future__ import annotations

from torch import nn

from .attention import Attention
from .base import Call, Kind, Program
from .convolution import Convolution
from .linear import Linear, TransposedLinear, is_transposed_linear
from .recurrent import RecurrentCell, RecurrentLayer
from .refusals import refuse_quantized, refuse_weights
from .transposed import TransposedConvolution

__all__ = ["Call", "Kind", "Program", "kind_of"]

_KINDS: tuple[tuple[tuple[type[nn.Module], ...], Kind], ...] = (
    ((nn.Linear,), Linear()),
    ((nn.Conv1d, nn.Conv2d, nn.Conv3d), Convolution()),
    ((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), TransposedConvolution()),
    ((nn.MultiheadAttention,), Attention()),
    ((nn.LSTM, nn.GRU, nn.RNN), RecurrentLayer()),
    ((nn.LSTMCell, nn.GRUCell, nn.RNNCell), RecurrentCell()),
)


def kind_of(module: nn.Module) -> Kind | None:
    """Return the kind of a module, None for one without weights that are made sparse (norms, embeddings, containers).

    A MultiheadAttention's ``out_proj`` is the matter of the attention, whose forward never calls it: do not ask for
    modules inside one that has a kind.

    Raises
    ------
    UnsupportedError
        For quantized, parametrized, pruned, normalized and uninitialized modules.
    """
    refuse_quantized(module)
    kind = next((kind for types, kind in _KINDS if isinstance(module, types)), None)
    if kind is None and is_transposed_linear(module):
        kind = TransposedLinear()
    if kind is None:
        return None
    refuse_weights(module)
    if isinstance(module, nn.MultiheadAttention):
        refuse_weights(module.out_proj)
    return kind
