"""A network that hears pitch, from the raw sound: strided one-dimensional convolutions, BatchNorm behind each ReLU."""

import math

import torch
from torch import nn

from sisopt.adapters.torch import sparsify_model

torch.manual_seed(0)
RATE, LENGTH, N_NOTES = 8000, 512, 12  # samples a second, samples of a sound, the semitones above A at 220 Hz


def sounds(n):
    """Return sounds (n, LENGTH) with overtones and noise, and which note each of them is."""
    notes = torch.randint(N_NOTES, (n,))
    frequency = 220.0 * 2.0 ** (notes / 12.0)
    t = torch.arange(LENGTH) / RATE
    overtones = sum(
        torch.rand(n, 1) / k * torch.sin(2 * math.pi * (k * frequency[:, None] * t + torch.rand(n, 1)))
        for k in (1, 2, 3, 4)
    )
    return overtones + 0.05 * torch.randn(n, LENGTH), notes


class Ear(nn.Module):
    """The convolutions come before ReLU and normalization, as in CREPE: what follows a layer is its ReLU."""

    def __init__(self):
        super().__init__()
        self.hearing = nn.Sequential(
            *(nn.Conv1d(1, 16, 64, stride=8), nn.ReLU(), nn.BatchNorm1d(16)),
            *(nn.Conv1d(16, 32, 16, stride=2), nn.ReLU(), nn.BatchNorm1d(32), nn.MaxPool1d(2)),
        )
        self.notes = nn.Linear(32 * 10, N_NOTES)

    def forward(self, waves):
        return self.notes(self.hearing(waves[:, None]).flatten(1))


def accuracy(model):
    with torch.no_grad():
        return (model(heard).argmax(1) == right).double().mean().item()


waves, notes = sounds(800)
heard, right = sounds(300)
model = Ear()
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
for _ in range(10):
    for at in torch.randperm(len(waves)).split(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(waves[at]), notes[at]).backward()
        optimizer.step()
model.eval()
dense = accuracy(model)
report = sparsify_model(model, waves[:300].split(100), sparsity=0.8)
sparse = accuracy(model)
print(report)
print(f"notes heard right: {dense:.1%} dense, {sparse:.1%} with 80% zeros")
