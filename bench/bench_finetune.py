"""A convolutional network for images, pruned, then trained on for an epoch with its zeros kept.

The table closes a run, on the terminal and as Markdown in out/fine-tune.md.
"""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from torch import nn

from bench.datasets import Images, image_dataset
from bench.models.measure import solver
from bench.publish import marked
from bench.tables import OUT, Table
from bench.training import as_module, one_thread, trained
from sisopt.adapters.torch import keep_zeros, release_zeros, sparsify_model
from sisopt.network.atomic_files import replace_files

pytestmark = pytest.mark.filterwarnings("ignore::sisopt.GeneralizationWarning")

LEVELS = (0.9, 0.95, 0.98)
SEEDS = (0, 1, 2)
METHODS = {"magnitude": {"layer_solver": solver("magnitude")}, "sisopt": {}}
CALIBRATION = 2000  # images, of those that the network was not trained on
BATCH, RATE = 128, 1e-3  # a quarter of the rate that it was trained with at its peak; it falls to nothing


@pytest.fixture(scope="module")
def results():
    found: dict[tuple[float, str], list[tuple[float, float, float]]] = {}
    yield found
    if not found:
        return  # nothing could be had, or all failed: what an earlier run wrote stays
    rows = [
        (f"{level:.0%}".replace("%", " %"), method, *(f"{mean:.2f}" for mean in np.mean(each, axis=0)))
        for (level, method), each in found.items()
    ]
    n_networks = min(map(len, found.values()))
    title = f"{image_dataset().name}, accuracy in %: mean of {n_networks} networks"
    table = Table(title, ("zeros", "", "dense", "pruned", "after an epoch"), rows, (0, 1))
    print("\n".join(table.text()))
    OUT.mkdir(exist_ok=True)
    replace_files(OUT, {"fine-tune.md": marked({"finetune": table.markdown()}).encode()})


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("seed", SEEDS)
def bench_finetune(results, seed, level, method):
    data = image_dataset()
    model = as_module(trained("cnn", seed=seed))
    with one_thread():
        dense = accuracy(model, data.test)
        batches = torch.from_numpy(data.calibration.pixels[:CALIBRATION]).split(500)
        report = sparsify_model(model, batches, sparsity=level, progress=False, **METHODS[method])
        pruned = accuracy(model, data.test)
        keep_zeros(model, report)
        train_epoch(model, data.train, seed)
        release_zeros(model)
        tuned = accuracy(model, data.test)
    zeros = sum(int((p == 0).sum()) for p in model.parameters() if p.dim() > 1)
    assert zeros >= report.n_weights - report.n_kept
    results.setdefault((level, method), []).append((dense, pruned, tuned))


def train_epoch(model: nn.Module, images: Images, seed: int) -> None:
    """Train on all images once, with Adam and a rate that falls to nothing."""
    torch.manual_seed(seed)
    pixels, labels = torch.from_numpy(images.pixels), torch.from_numpy(images.labels)
    batches = torch.randperm(len(labels)).split(BATCH)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(batches))
    model.train()
    for rows in batches:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(pixels[rows]), labels[rows]).backward()
        optimizer.step()
        schedule.step()
    model.eval()


def accuracy(model: nn.Module, images: Images) -> float:
    """Return how many of the images get their label, in per cent."""
    with torch.no_grad():
        found = torch.cat([model(batch).argmax(1) for batch in torch.from_numpy(images.pixels).split(1000)])
    return 100.0 * float((found == torch.from_numpy(images.labels)).double().mean())
