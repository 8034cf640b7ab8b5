"""Sparse models in files and at work: sizes of files, and CPU time of a batch in each form that a model can take."""

from __future__ import annotations

import copy
import gzip
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import sisopt
from bench.tables import Table
from sisopt.adapters.torch import load_sparse, remove_structured_zeros, save_sparse, to_sparse_bsr, to_sparse_csr

BATCHES = (1, 16, 128)
ROUNDS = 5
LEAST_SECONDS = 0.02  # that a model is called in a round, so that the clock's ticks do not count
WIDTHS = (1024, 2048, 2048, 1024)  # of the wide network
BLOCK = 16
DENSE, TUTORIAL, CSR, BSR, SMALLER = "dense", "CSR in nn.Linear", "to_sparse_csr", "to_sparse_bsr", "smaller"


@dataclass(frozen=True)
class FileResult:
    """Sizes in bytes and seconds of one model's files."""

    model: str
    zeros: float
    dense_bytes: int
    gzip_bytes: int
    sparse_bytes: int
    save_seconds: float
    load_seconds: float
    dense_load_seconds: float
    note: str = ""


@dataclass(frozen=True)
class TimeResult:
    """Milliseconds of CPU time for a batch, by size of the batch, of one model in one form."""

    model: str
    form: str
    milliseconds: dict[int, float]


def wide(pattern: str, sparsity: float | None, *, masked: bool = False, seed: int = 0) -> nn.Sequential:
    """Return a network of random weights with the largest left: only sizes and times are asked of it.

    ``masked``: by products with a mask, which leave zeros of either sign.
    """
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for n_in, n_out in zip(WIDTHS[:-1], WIDTHS[1:], strict=True):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    model = nn.Sequential(*layers[:-1])
    with torch.no_grad():
        for layer in model[::2]:
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)  # bytes that vary as those of trained weights
            if sparsity != 0:
                kept = sisopt.get_pattern(pattern).select(layer.weight.abs().numpy(), sparsity)
                layer.weight.mul_(torch.from_numpy(kept))
            if not masked:
                layer.weight[layer.weight == 0] = 0
    return model.eval()


def files_of(name: str, model: nn.Module, note: str = "") -> FileResult:
    """Return what a model's files take; `load_sparse` has to give back every bit."""
    tensors = {key: tensor.contiguous() for key, tensor in model.state_dict().items()}
    matrices = [tensor for tensor in tensors.values() if tensor.dim() > 1]
    zeros = sum(int((m == 0).sum()) for m in matrices) / sum(m.numel() for m in matrices)
    with tempfile.TemporaryDirectory() as folder:
        dense, sparse = Path(folder) / "dense.safetensors", Path(folder) / "sparse.safetensors"
        save_file(tensors, dense)
        save_seconds, _ = _seconds(lambda: save_sparse(sparse, model))
        load_seconds, loaded = _seconds(lambda: load_sparse(sparse))
        dense_load_seconds, _ = _seconds(lambda: [tensor.clone() for tensor in load_file(dense).values()])
        if not all(torch.equal(loaded[key], tensor) for key, tensor in tensors.items()):
            raise AssertionError(f"{name}: the file gave back other weights")
        zipped = len(gzip.compress(dense.read_bytes(), 6))
        sizes = (dense.stat().st_size, zipped, sparse.stat().st_size)
    return FileResult(name, zeros, *sizes, save_seconds, load_seconds, dense_load_seconds, note)


def forms_of(model: nn.Module, example: Tensor, wanted: Iterable[str]) -> dict[str, nn.Module]:
    """Return a model in the forms that are wanted; all give the outputs of the first."""
    make: dict[str, Callable[[], nn.Module]] = {
        DENSE: lambda: model,
        TUTORIAL: lambda: _as_in_tutorials(model),
        CSR: lambda: to_sparse_csr(model).model,
        BSR: lambda: to_sparse_bsr(model, BLOCK).model,
        SMALLER: lambda: remove_structured_zeros(model, example).model,
    }
    forms = {form: make[form]() for form in wanted}
    with torch.no_grad():
        outputs = {form: each(example) for form, each in forms.items()}
    for found in outputs.values():
        torch.testing.assert_close(found, outputs[DENSE], rtol=1e-3, atol=1e-4)
    return forms


def times_of(name: str, forms: Mapping[str, nn.Module], batch: Callable[[int], Tensor]) -> list[TimeResult]:
    """Return the least time of several rounds, the forms one after another in each."""
    best = {form: dict.fromkeys(BATCHES, float("inf")) for form in forms}
    with torch.no_grad():
        for size in BATCHES:
            inputs = batch(size)
            for _ in range(ROUNDS):
                for form, model in forms.items():
                    best[form][size] = min(best[form][size], _call_seconds(model, inputs))
    return [TimeResult(name, form, {size: 1e3 * s for size, s in found.items()}) for form, found in best.items()]


def file_table(results: Iterable[FileResult]) -> Table:
    """Return the sizes of files."""
    rows = []
    for r in results:
        ratios = (f"{r.dense_bytes / r.gzip_bytes:.1f}", f"**{r.dense_bytes / r.sparse_bytes:.1f}**")
        sizes = (f"{r.dense_bytes / 1e6:.2f}", f"{r.gzip_bytes / 1e6:.2f}", f"{r.sparse_bytes / 1e6:.2f}", *ratios)
        loads = (f"{1e3 * s:.1f}" for s in (r.save_seconds, r.load_seconds, r.dense_load_seconds))
        rows.append((r.model, f"{r.zeros:.1%}".replace("%", " %"), *sizes, *loads, r.note))
    head = (
        *("", "zeros", "dense, MB", "gzip, MB", "save_sparse, MB", "gzip, times smaller", "save_sparse, times smaller"),
        *("save_sparse, ms", "load_sparse, ms", "dense load, ms", ""),
    )
    return Table("Files of float32 weights", head, rows, (0, 10))


def time_table(results: Iterable[TimeResult]) -> Table:
    """Return the times, and how many times as fast as the dense form of the same model each is."""
    results = list(results)
    dense = {r.model: r.milliseconds for r in results if r.form == DENSE}
    rows = []
    for r in results:
        cells = []
        for size in BATCHES:
            speed = dense[r.model][size] / r.milliseconds[size]
            cells += [f"{r.milliseconds[size]:.3g}", "" if r.form == DENSE else f"×{speed:.2f}"]
        rows.append((r.model, r.form, *cells))
    head = ("", "form", *(text for size in BATCHES for text in (f"batch of {size}, ms", "speed")))
    return Table("CPU time of a batch on one thread, and speed beside the dense form", head, rows, (0, 1))


def _as_in_tutorials(model: nn.Module) -> nn.Module:
    """Return a copy whose linear layers have a CSR tensor in the place of their weight."""
    found = copy.deepcopy(model)
    for layer in found.modules():
        if isinstance(layer, nn.Linear):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                layer.weight = nn.Parameter(layer.weight.detach().to_sparse_csr(), requires_grad=False)
    return found


def _seconds(run: Callable[[], Any]) -> tuple[float, Any]:
    """Return the least process time of two calls, and what the last one returned."""
    best = float("inf")
    for _ in range(2):
        start = time.process_time()
        result = run()
        best = min(best, time.process_time() - start)
    return best, result


def _call_seconds(model: nn.Module, inputs: Tensor) -> float:
    """Return the process time of one call, from as many as fill a round."""
    n_calls, spent, start = 0, 0.0, time.process_time()
    while spent < LEAST_SECONDS:
        model(inputs)
        n_calls += 1
        spent = time.process_time() - start
    return spent / n_calls
