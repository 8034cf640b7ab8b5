"""Two forecasters of seasonal series, an LSTM and a network of linear layers: every gate is a layer of its own."""

import math

import torch
from torch import nn

from sisopt.adapters.torch import sparsify_model

torch.manual_seed(0)
PAST, FUTURE = 24, 6


def windows(n):
    """Return the past (n, PAST) and the future (n, FUTURE) of noisy waves with a trend."""
    t = torch.arange(PAST + FUTURE) + 100 * torch.rand(n, 1)
    waves = torch.sin(2 * math.pi * t / 12) + torch.rand(n, 1) * torch.cos(2 * math.pi * t / 6)
    series = waves + 0.02 * torch.randn(n, 1) * (t - t[:, :1]) + 0.05 * torch.randn(n, PAST + FUTURE)
    return series[:, :PAST], series[:, PAST:]


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(1, 24, batch_first=True)
        self.head = nn.Linear(24, FUTURE)

    def forward(self, past):
        return self.head(self.lstm(past[:, :, None])[0][:, -1])


class Blocks(nn.Module):
    """Each block forecasts what the blocks before it left unexplained, as in N-BEATS."""

    def __init__(self, n_blocks=2, width=64):
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(PAST, width), nn.ReLU(), nn.Linear(width, PAST + FUTURE)) for _ in range(n_blocks)
        )

    def forward(self, past):
        forecast = 0.0
        for block in self.blocks:
            explained, ahead = block(past).split([PAST, FUTURE], dim=1)
            past, forecast = past - explained, forecast + ahead
        return forecast


past, future = windows(500)
new_past, new_future = windows(300)
errors = {}
for model in (Recurrent(), Blocks()):
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(past), future).backward()
        optimizer.step()
    model.eval()
    report = sparsify_model(model, past.split(125), sparsity=0.8, inplace=False)  # the model itself stays dense
    with torch.no_grad():
        name = type(model).__name__
        errors[name] = [nn.functional.l1_loss(m(new_past), new_future).item() for m in (model, report.model)]
    print(report)
    print(f"{name}: mean error of forecasts {errors[name][0]:.3f} dense, {errors[name][1]:.3f} with 80% zeros\n")
