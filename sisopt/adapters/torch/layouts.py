"""Linear layers in the sparse layouts that torch can multiply by: CSR, BSR, and 2:4 on GPUs that know it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ...errors import InvalidInputError, UnsupportedError
from ...validation import natural_number, number
from .conversion import Conversion
from .kinds.linear import is_transposed_linear
from .sparse_linear import SparseLinear
from .trace import sites_of

LEAST_SPARSITY = 0.8  # below, dense products are as fast or faster: docs/deploy.md has the measurements
_GROUP, _MOST = 4, 2  # of 2:4: entries of a group, non-zeros that it may have

Convert = Callable[[Any], tuple[nn.Module, str]]


def to_sparse_csr(model: nn.Module, *, least_sparsity: float = LEAST_SPARSITY, inplace: bool = False) -> Conversion:
    """Give linear layers with many zeros a weight in CSR, which inference multiplies by its non-zeros alone.

    Parameters
    ----------
    model : torch.nn.Module
        A model that was made sparse. Linear layers and Hugging Face's Conv1D are converted; torch has no products for
        others.
    least_sparsity : float, default 0.8
        Layers with a smaller share of zeros stay dense: they are slower in CSR, and at less than a half larger too.
    inplace : bool, default False
        Whether the model itself is changed; else a copy.

    Returns
    -------
    Conversion
        The model, for inference alone, and what was done to its layers.

    Raises
    ------
    InvalidInputError
        If no layer can be converted: the message has a reason for each.
    UnsupportedError
        If weights are computed from others: parametrized, masked or quantized.

    Examples
    --------
    >>> import torch
    >>> from sisopt.adapters.torch import to_sparse_csr
    >>> model = torch.nn.Sequential(torch.nn.Linear(100, 50), torch.nn.ReLU(), torch.nn.Linear(50, 10)).eval()
    >>> with torch.no_grad():
    ...     _ = model[0].weight.mul_(torch.arange(5000).reshape(50, 100) % 10 == 0)
    >>> conversion = to_sparse_csr(model)
    >>> print(conversion)
    0  CSR, 500 of 5000 weights stored
    2  as it was: dense, 0 % zeros
    >>> inputs = torch.randn(3, 100)
    >>> torch.allclose(conversion.model(inputs), model(inputs), atol=1e-5)
    True
    """
    least = number("least_sparsity", least_sparsity, low=0.0)

    def convert(layer: Any) -> tuple[nn.Module, str]:
        weight = _matrix(layer)
        _check_share("zeros", float((weight == 0).double().mean()), least)
        _check_product(weight, (1, 1), lambda each: each.to_sparse_csr())
        sparse = SparseLinear(weight.to_sparse_csr(), layer.bias)
        return sparse, f"CSR, {sparse.values.numel()} of {weight.numel()} weights stored"

    return _converted(model, convert, inplace)


def to_sparse_bsr(
    model: nn.Module,
    blocksize: int | tuple[int, int],
    *,
    least_sparsity: float = LEAST_SPARSITY,
    inplace: bool = False,
) -> Conversion:
    """Give linear layers with many blocks of zeros a weight in BSR: blocks that are not all zero, each stored whole.

    Parameters
    ----------
    model : torch.nn.Module
        A model that was made sparse, best with a pattern such as ``"16x16 blocks"``. Linear layers and Hugging Face's
        Conv1D are converted, where blocks fit into the weight without a remainder.
    blocksize : int or (int, int)
        Outputs and inputs of a block.
    least_sparsity : float, default 0.8
        Layers with a smaller share of blocks that are all zero stay dense.
    inplace : bool, default False
        Whether the model itself is changed; else a copy.

    Returns
    -------
    Conversion
        The model, for inference alone, and what was done to its layers.

    Raises
    ------
    InvalidInputError
        If no layer can be converted: the message has a reason for each.
    UnsupportedError
        If weights are computed from others: parametrized, masked or quantized.

    Examples
    --------
    >>> import torch
    >>> from sisopt.adapters.torch import to_sparse_bsr
    >>> model = torch.nn.Sequential(torch.nn.Linear(32, 32))
    >>> with torch.no_grad():
    ...     _ = model[0].weight.mul_(torch.eye(8).kron(torch.ones(4, 4)))  # blocks on the diagonal
    >>> print(to_sparse_bsr(model, 4))
    0  BSR, 8 of 64 blocks stored
    """
    sizes = blocksize if isinstance(blocksize, tuple | list) else (blocksize, blocksize)
    block = tuple(natural_number("blocksize", size) for size in sizes)
    if len(block) != 2 or 0 in block:
        msg = f"blocksize must be one or two positive numbers, got {blocksize!r}"
        raise InvalidInputError(msg)
    rows, columns = block
    least = number("least_sparsity", least_sparsity, low=0.0)

    def convert(layer: Any) -> tuple[nn.Module, str]:
        weight = _matrix(layer)
        n_out, n_in = weight.shape
        if n_out % rows or n_in % columns:
            msg = f"dense, blocks of {rows} x {columns} do not fit into {n_out} x {n_in}"
            raise UnsupportedError(msg)
        empty = (weight.reshape(n_out // rows, rows, n_in // columns, columns) == 0).all(dim=3).all(dim=1)
        _check_share("blocks of zeros", float(empty.double().mean()), least)
        _check_product(weight, block, lambda each: each.to_sparse_bsr((rows, columns)))
        sparse = SparseLinear(weight.to_sparse_bsr((rows, columns)), layer.bias)
        return sparse, f"BSR, {int((~empty).sum())} of {empty.numel()} blocks stored"

    return _converted(model, convert, inplace)


def to_semi_structured(model: nn.Module, *, inplace: bool = False) -> Conversion:
    """Give linear layers of pattern 2:4 the layout that GPUs multiply by at up to twice the speed.

    Parameters
    ----------
    model : torch.nn.Module
        A model that was made sparse with ``pattern="2:4"``, on a CUDA GPU of compute capability 8.0 (Ampere) or later
        and in a type that torch has such products for, float16 or bfloat16.
    inplace : bool, default False
        Whether the model itself is changed; else a copy.

    Returns
    -------
    Conversion
        The model, for inference alone, and what was done to its layers: weights are of
        `torch.sparse.SparseSemiStructuredTensor`.

    Raises
    ------
    InvalidInputError
        If no layer can be converted: the message has a reason for each.
    UnsupportedError
        If there is no such GPU, the model is not on it, or weights are computed from others.

    Examples
    --------
    >>> import torch, sisopt
    >>> from sisopt.adapters.torch import sparsify_model, to_semi_structured
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU()).eval()
    >>> report = sparsify_model(model, torch.randn(2, 100, 64), pattern="2:4", effort="fast")
    >>> try:
    ...     print(to_semi_structured(model))  # with a GPU: model.to("cuda", torch.float16)
    ... except sisopt.UnsupportedError as error:
    ...     print(str(error).split(" of ")[0])
    2:4 layers run on a CUDA GPU
    """
    _check_module(model)
    layers = [layer for layer in model.modules() if type(layer) is nn.Linear]
    if any(_is_semi_structured(layer.weight) for layer in layers):  # else the pattern is what is missing
        _check_gpu(layers)

    def convert(layer: Any) -> tuple[nn.Module, str]:
        weight = layer.weight.detach()
        if is_transposed_linear(layer) or not _is_semi_structured(weight):
            msg = "dense, not 2:4: some 4 inputs in a row have more than 2 weights"
            raise UnsupportedError(msg)
        try:
            packed = torch.sparse.to_sparse_semi_structured(weight)
        except (RuntimeError, ValueError, NotImplementedError) as error:  # torch says which types and shapes it takes
            msg = f"dense, torch refuses: {error}"
            raise UnsupportedError(msg) from error
        layer.weight = nn.Parameter(packed, requires_grad=False)
        return layer, f"2:4, {weight.numel() // 2} of {weight.numel()} weights stored"

    return _converted(model, convert, inplace)


def _converted(model: nn.Module, convert: Convert, inplace: bool) -> Conversion:
    """Return the model with its linear layers replaced; ``convert`` raises UnsupportedError where one stays."""
    _check_module(model)
    sites = {name: module for name, (module, _) in sites_of(model, lambda name, module: True).items()}
    found = model if inplace else copy.deepcopy(model)
    readers = [name for name, module in model.named_modules() if isinstance(module, nn.TransformerEncoderLayer)]
    changed, unchanged = {}, {}
    for name, site in sites.items():
        layer = found.get_submodule(name)
        if type(site) is not nn.Linear and not is_transposed_linear(site):
            unchanged[name] = f"dense, torch has no sparse products for {type(site).__name__}"
        elif any(name.startswith(f"{reader}." if reader else "") for reader in readers):
            unchanged[name] = "dense, TransformerEncoderLayer reads the weight without calling the layer"
        elif layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer):
            unchanged[name] = "dense, it has hooks or a forward of its own"
        else:
            try:
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)
                    new, changed[name] = convert(layer)
                new.train(layer.training)
                found = _put(found, layer, new)
            except UnsupportedError as reason:
                unchanged[name] = str(reason)
    if not changed:
        reasons = "; ".join(f"{name or type(model).__name__}: {why}" for name, why in unchanged.items())
        msg = f"model has no layer that can be converted ({reasons or 'it has no layers with weights'})"
        raise InvalidInputError(msg)
    return Conversion(found, changed, unchanged)


def _check_module(model: Any) -> None:
    if not isinstance(model, nn.Module):
        msg = f"model must be a torch.nn.Module, got {type(model).__name__}"
        raise InvalidInputError(msg)


def _put(model: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    """Put a module in the place of another, wherever the model holds it."""
    if model is old:
        return new
    for parent in model.modules():
        for name, child in list(parent._modules.items()):  # named_children() leaves repeated ones out
            if child is old:
                setattr(parent, name, new)
    return model


def _matrix(layer: Any) -> torch.Tensor:
    """Return the weight as (n_out, n_in)."""
    weight: torch.Tensor = layer.weight.detach()
    return weight.T if is_transposed_linear(layer) else weight


def _check_share(what: str, share: float, least: float) -> None:
    if share < least or share == 0:
        msg = f"dense, {share:.0%} {what}".replace("%", " %")
        raise UnsupportedError(msg)


def _check_product(
    weight: torch.Tensor, shape: tuple[int, ...], sparse: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """Raise where torch cannot multiply by such a weight: its builds differ in devices, types and blocks."""
    ones = torch.ones(shape, dtype=weight.dtype, device=weight.device)
    try:
        torch.mm(sparse(ones), ones.T)
    except (RuntimeError, NotImplementedError) as error:
        msg = f"dense, torch has no such products of {weight.dtype} on this {weight.device.type} ({error})"
        raise UnsupportedError(msg) from error


def _is_semi_structured(weight: torch.Tensor) -> bool:
    """Return whether each four entries in a row have two non-zeros at most."""
    if weight.shape[1] % _GROUP:
        return False
    groups = weight.detach().reshape(-1, _GROUP)
    return bool((groups.count_nonzero(dim=1) <= _MOST).all())


def _check_gpu(layers: list[nn.Linear]) -> None:
    """Raise where products with 2:4 weights have no GPU to run on."""
    if torch.version.cuda is None:
        missing = f"torch {torch.__version__} is built without CUDA"
    elif not torch.cuda.is_available():
        missing = "torch finds no GPU"
    elif not all(layer.weight.is_cuda for layer in layers):
        missing = "the model is not on it: model.to('cuda', torch.float16)"
    elif torch.cuda.get_device_capability(layers[0].weight.device) < (8, 0):
        missing = f"{torch.cuda.get_device_name(layers[0].weight.device)} is older"
    else:
        return
    msg = (
        f"2:4 layers run on a CUDA GPU of compute capability 8.0 or later, and {missing}. On a CPU torch has no "
        "products for them: keep them dense there, save_sparse makes the file small all the same"
    )
    raise UnsupportedError(msg)
