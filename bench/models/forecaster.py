"""A network in the manner of N-BEATS, trained here: from four years of a monthly series to its next year."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from bench.cache import cache_dir, store
from bench.models import Subject, in_batches
from bench.models.series import employment
from bench.training import one_thread

SEEDS = (0, 1, 2)
PAST, FUTURE = 48, 12  # months in and out
HELD_OUT = 24  # last months of every series: all forecasts that lie in them test, nothing of them trains
SCALE = 10.0  # of the network's numbers, which are relative changes
CALIBRATION, BATCH = 4000, 500


@dataclass(frozen=True)
class Recipe:
    """What the network is and how it is trained; ``version`` is for changes of code and data."""

    seed: int
    width: int = 256
    n_blocks: int = 3
    steps: int = 1500
    batch: int = 256
    rate: float = 1e-3
    version: int = 1


class Forecaster(nn.Module):
    """Blocks of dense layers with ReLU: each explains a part of the past, which it takes away, and adds to the future.

    A stack of N-BEATS's generic blocks, whose bases are learned.
    """

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(recipe.width) for _ in range(recipe.n_blocks))

    def forward(self, past: Tensor) -> Tensor:
        """Return the next `FUTURE` months, (n, 12), behind `PAST` ones, (n, 48)."""
        future = past.new_zeros(len(past), FUTURE)
        for block in self.blocks:
            explained, added = block(past)
            past, future = past - explained, future + added
        return future


class Block(nn.Module):
    """Four dense layers with ReLU and, behind them, a linear one each for the past and for the future."""

    def __init__(self, width: int) -> None:
        super().__init__()
        sizes = (PAST, width, width, width, width)
        pairs = zip(sizes[:-1], sizes[1:], strict=True)
        self.layers = nn.Sequential(*(layer for pair in pairs for layer in (nn.Linear(*pair), nn.ReLU())))
        self.backcast, self.forecast = nn.Linear(width, PAST), nn.Linear(width, FUTURE)

    def forward(self, past: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the block explains of the past and what it expects of the future."""
        hidden = self.layers(past)
        return self.backcast(hidden), self.forecast(hidden)


@dataclass(frozen=True, eq=False)
class Windows:
    """Pasts and futures of series, relative to the mean of the last year of the past."""

    past: Tensor  # (n, PAST)
    future: Tensor  # (n, FUTURE)
    level: Tensor  # (n, 1), that mean

    @staticmethod
    def of(pieces: np.ndarray) -> Windows:
        """Return the windows of pieces of series, (n, PAST + FUTURE)."""
        level = pieces[:, PAST - 12 : PAST].mean(axis=1, keepdims=True)
        changes = torch.from_numpy((SCALE * (pieces / level - 1)).astype(np.float32))
        return Windows(changes[:, :PAST], changes[:, PAST:], torch.from_numpy(level))

    def in_people(self, changes: Tensor) -> Tensor:
        """Return futures in the units of the series."""
        return self.level * (1 + changes.double() / SCALE)


def pieces(series: dict[str, np.ndarray], held_out: bool) -> np.ndarray:
    """Return all pieces of `PAST` + `FUTURE` months whose future lies in the held-out months, or before them."""
    length, found = PAST + FUTURE, []
    for values in series.values():
        part = values[-HELD_OUT - PAST :] if held_out else values[:-HELD_OUT]
        if len(part) >= length:
            found.append(np.lib.stride_tricks.sliding_window_view(part, length))
    return np.concatenate(found)


def smape(forecasts: Tensor, truth: Tensor) -> float:
    """Return the symmetric mean absolute percentage error: 0 to 200."""
    return 200.0 * float(((forecasts - truth).abs() / (forecasts.abs() + truth.abs())).mean())


def train(windows: Windows, recipe: Recipe) -> Forecaster:
    """Return a network trained with Adam, a learning rate that rises and falls, and the mean absolute error."""
    with one_thread():
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(recipe.seed)
            model = Forecaster(recipe)
        optimizer = torch.optim.Adam(model.parameters(), lr=recipe.rate)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.rate, total_steps=recipe.steps)
        rng = np.random.default_rng([recipe.seed, 1])
        for _ in range(recipe.steps):
            rows = torch.from_numpy(rng.integers(0, len(windows.past), recipe.batch))
            loss = nn.functional.l1_loss(model(windows.past[rows]), windows.future[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model


def load_or_train(windows: Windows, recipe: Recipe) -> Forecaster:
    """Return the network of a recipe, from the cache if it is there."""
    digest = hashlib.sha256(repr(recipe).encode()).hexdigest()[:8]
    name = f"networks/forecaster-{recipe.seed}-{digest}.pt"
    if not (cache_dir() / name).is_file():

        def write(folder: Path) -> None:
            (folder / name).parent.mkdir()
            torch.save(train(windows, recipe).state_dict(), folder / name)

        store(write, name)
    model = Forecaster(recipe)
    model.load_state_dict(torch.load(cache_dir() / name, weights_only=True))
    return model.eval()


def subject(seed: int = 0) -> Subject:
    """Return the network of a seed; the metric is its error in the months held out, in per cent."""
    series = employment()
    training, test = (Windows.of(pieces(series, held_out)) for held_out in (False, True))
    truth = test.in_people(test.future)
    rows = np.random.default_rng(0).choice(len(training.past), CALIBRATION, replace=False)
    return Subject(
        f"forecaster-{seed}",
        load_or_train(training, Recipe(seed)),
        list(training.past[rows].split(BATCH)),
        outputs=lambda model: in_batches(model, [test.past]),
        score=lambda outputs, _: {"sMAPE": smape(test.in_people(outputs), truth)},
        primary="sMAPE",
        higher_is_better=False,
        levels=(0.9,),
    )
