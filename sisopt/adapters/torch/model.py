"""sparsify_model(): a torch model made sparse in one call."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from os import PathLike
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ...activations import Activation
from ...errors import InfeasibleBudgetError, InvalidInputError, UnsupportedError
from ...network import LayerSolver, NetworkReport, sparsify_network
from ...network.samples import MAX_MEMORY, MAX_SAMPLES, Sampling, listed
from ...patterns import Pattern
from .forwards import call_model, copied, eval_mode
from .network import TorchNetwork
from .planning import Selector, choice, plan_layers
from .samples import batch_size
from .trace import sites_of, trace


def sparsify_model(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    sparsity: float | None = None,
    relative_error: float | None = None,
    pattern: str | Pattern | None = None,
    goals: Mapping[str, Any] | None = None,
    include: Selector | Iterable[Selector] | None = None,
    exclude: Selector | Iterable[Selector] | None = None,
    activations: Mapping[str, str | Activation] | None = None,
    allocation: str | None = None,
    mode: str = "sequential",
    forward: Callable[[nn.Module, Any], object] | None = None,
    layer_solver: LayerSolver | None = None,
    effort: str = "default",
    seed: int = 0,
    max_samples: int = MAX_SAMPLES,
    max_memory: int = MAX_MEMORY,
    checkpoint: str | PathLike[str] | None = None,
    progress: bool | None = None,
    strict: bool = False,
    n_threads: int | None = None,
    inplace: bool = True,
) -> NetworkReport:
    """Make the layers of a torch model sparse, first to last, on calibration batches.

    Every layer gets sparse weights, and a bias to go with them, that keep its outputs: on inputs that come from the
    layers before it as they are by then, with the pre-activations of the dense model for a target. What follows a
    layer, an activation or a batch normalisation and then an activation, is found by watching the model run once, and
    counts as part of it.

    Parameters
    ----------
    model : torch.nn.Module
        Runs in eval mode meanwhile. Made sparse are Linear, convolutions and transposed convolutions of all
        dimensions, groups and paddings, Hugging Face's Conv1D, MultiheadAttention, and LSTM, GRU and RNN layers and
        cells; embeddings and everything else stay as they are.
    batches : iterable
        Calibration batches without labels: for a tensor ``model(batch)`` is called, for a tuple or list
        ``model(*batch)``, for a mapping ``model(**batch)``. Where a mapping holds an ``attention_mask``, tokens of
        which it is 0 count nowhere.
    sparsity, relative_error, pattern, goals, allocation, mode, layer_solver, strict
        What is asked, see `sisopt.network.sparsify_network`; the sparsity is over the weights of all layers that are
        included and have no goal of their own.
    include, exclude : str, type, or several of them, optional
        Which layers: globs of names such as "encoder.*.fc?", types such as ``torch.nn.Conv2d``. All by default, the
        head too.
    activations : mapping, optional
        Glob of names -> activation, where what was found is to be overruled.
    forward : callable, optional
        (model, batch) -> anything, how a batch is given to the model.
    effort, seed, n_threads
        See `sisopt.sparsify`.
    max_samples : int, default 10000
        Samples that a layer is solved on, tokens or places of images: drawn from those of all batches.
    max_memory : int
        Bytes that one layer's data and the forward passes under way may take: data beyond it lie in a file, passes run
        again for every layer.
    checkpoint : path, optional
        A folder to which every finished layer is written; the same call goes on from there, to the same bits.
    progress : bool, optional
        Whether to draw a progress bar; by default where there is a terminal to draw it on.
    inplace : bool, default True
        Whether the model itself is changed; else ``report.model`` is a sparse copy.

    Returns
    -------
    NetworkReport
        What was done to every layer; its ``model`` is the sparse model.

    Raises
    ------
    InvalidInputError
        If an argument is not what it should be, or a layer's data hold NaN; the model is as it was.
    UnsupportedError
        If the model holds quantized, parametrized or compiled layers, which are named, or cannot be copied.
    CheckpointError
        If the checkpoint is damaged, belongs to another call, or cannot be written.
    InfeasibleBudgetError
        If ``strict`` and a layer cannot keep its budget; the model is as it was.

    Warns
    -----
    UserWarning
        If the model, or a part of it, is in train mode; it is evaluated in eval mode.

    Examples
    --------
    >>> import torch
    >>> from sisopt.adapters.torch import sparsify_model
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.ReLU(), torch.nn.Linear(30, 10)).eval()
    >>> report = sparsify_model(model, torch.randn(4, 100, 20), sparsity=0.8)
    >>> report.sparsity
    0.8

    References
    ----------
    S. Verma, J.-C. Pesquet, "Sparsifying Networks via Subdifferential Inclusion", ICML 2021.
    """
    _check_model(model)
    if forward is not None and not callable(forward):
        msg = f"forward must be a function (model, batch) -> anything, got {forward!r}"
        raise InvalidInputError(msg)
    wanted = choice(include, exclude, activations)
    sampling = Sampling.checked(max_samples, max_memory, seed)
    data = listed(batches)
    run = call_model if forward is None else forward
    _check_tensors(model, inplace)
    sites_of(model, wanted.takes)  # refusals come before the copy, which some models do not allow
    twin = _copy_of(model) if not inplace or mode == "sequential" else model
    dense, sparse = (twin, model) if inplace else (model, twin)
    with _evaluating(model, twin):
        sites = trace(dense, lambda: run(dense, copied(data[0])), wanted.takes)
        layers = plan_layers(model, sites, wanted, batch_size(data[0]))  # in a copy, what shares memory does no more
        network = TorchNetwork(sparse, dense, data, run, layers, sampling)
        try:
            report = sparsify_network(
                network, sparsity=sparsity, relative_error=relative_error, pattern=pattern, goals=goals,
                allocation=allocation, mode=mode, layer_solver=layer_solver, effort=effort, seed=seed,
                checkpoint=checkpoint, progress=progress, strict=strict, n_threads=n_threads,
            )  # fmt: skip
        except (InvalidInputError, InfeasibleBudgetError):
            if dense is not sparse:
                sparse.load_state_dict(dense.state_dict())
            raise
    return replace(report, model=sparse)


def _check_model(model: Any) -> None:
    """Refuse what is no model, or one whose modules are compiled: hooks and functions cannot be watched there."""
    if not isinstance(model, nn.Module):
        msg = f"model must be a torch.nn.Module, got {type(model).__name__}"
        raise InvalidInputError(msg)
    for name, module in model.named_modules():
        where = f"module {name!r}" if name else "model"
        if isinstance(module, torch.jit.ScriptModule):
            msg = f"{where} is a ScriptModule of torch.jit, which cannot be watched: give what it was made from"
            raise UnsupportedError(msg)
        if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
            msg = f"{where} is compiled: give the model before torch.compile (its _orig_mod), and compile it afterwards"
            raise UnsupportedError(msg)


def _check_tensors(model: nn.Module, inplace: bool) -> None:
    written = inplace and not torch.is_inference_mode_enabled()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            continue  # its layer is refused by name
        if tensor.device.type == "meta":
            msg = f"model: {name} is on the meta device and has no values: load the weights first"
            raise InvalidInputError(msg)
        if written and tensor.is_inference():
            msg = f"model: {name} was made in torch.inference_mode and cannot be written to: ask for inplace=False"
            raise InvalidInputError(msg)


def _copy_of(model: nn.Module) -> nn.Module:
    """Return a copy of a model: what its layers gave before they were sparse is their target."""
    try:
        return copy.deepcopy(model)
    except (RuntimeError, TypeError) as error:  # of tensors that were computed, and of what cannot be pickled
        msg = (
            f"model cannot be copied ({error}): remove what it keeps beside its parameters, such as activations, masks "
            'and normalized weights, or ask for mode="parallel", which needs no copy in place'
        )
        raise UnsupportedError(msg) from error


@contextmanager
def _evaluating(model: nn.Module, twin: nn.Module) -> Iterator[None]:
    """Put the models in eval mode, every module back where it was after."""
    if any(module.training for module in model.modules()):
        msg = "model, or a part of it, is in train mode: it is evaluated in eval mode, and put back after"
        warnings.warn(msg, UserWarning, stacklevel=4)
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # it would bypass the modules inside
    try:
        with eval_mode(model, twin):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
