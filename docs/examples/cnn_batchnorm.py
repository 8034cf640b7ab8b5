"""A convolutional network with batch normalisation, which is folded in to solve a layer and taken out again after."""

import torch
from sklearn.datasets import load_digits
from torch import nn

from sisopt.adapters.torch import sparsify_model

torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None]  # (n, 1, 8, 8)
labels = torch.tensor(digits.target)
training, test = slice(0, 1300), slice(1300, None)

model = nn.Sequential(
    nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
    nn.Conv2d(16, 32, 3, padding=1, stride=2, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
    nn.Conv2d(32, 32, 3, padding=1, groups=4), nn.BatchNorm2d(32), nn.ReLU(),
    nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 10),
)  # fmt: skip
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
for _ in range(52):
    chosen = torch.randint(1300, (100,))
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(images[chosen]), labels[chosen]).backward()
    optimizer.step()
model.eval()


def accuracy(network):
    with torch.no_grad():
        return (network(images[test]).argmax(1) == labels[test]).float().mean().item()


dense = accuracy(model)
report = sparsify_model(
    model,
    images[training].split(325),
    sparsity=0.8,
    max_samples=3000,  # places of images that a layer is solved on
)
sparse = accuracy(model)

print(report)
print(f"accuracy: dense {dense:.1%}, with {report.sparsity:.0%} zeros {sparse:.1%}")
