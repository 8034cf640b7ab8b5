"""A pruned network is trained on with its zeros kept, and gains back what a high sparsity took."""

import torch
from sklearn.datasets import load_digits
from torch import nn

from sisopt.adapters.torch import keep_zeros, release_zeros, sparsify_model

torch.manual_seed(0)
digits = load_digits()
images, labels = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
training, test = slice(0, 1300), slice(1300, None)


def train(network, learning_rate, steps):
    optimizer = torch.optim.SGD(network.parameters(), lr=learning_rate, momentum=0.9, weight_decay=1e-4)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network.train()(images[training]), labels[training]).backward()
        optimizer.step()
    network.eval()


def accuracy(network):
    with torch.no_grad():
        return (network(images[test]).argmax(1) == labels[test]).float().mean().item()


model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))
train(model, 0.1, 300)
dense = accuracy(model)

report = sparsify_model(model, images[training].split(325), sparsity=0.985, effort="fast")
sparse = accuracy(model)

keep_zeros(model, report)
train(model, 0.05, 200)  # with momentum and weight decay: no optimizer moves the zeros
release_zeros(model)
tuned = accuracy(model)
zeros = sum(int((layer.weight == 0).sum()) for layer in model if isinstance(layer, nn.Linear))

print(f"accuracy: dense {dense:.1%}, with {report.sparsity:.1%} zeros {sparse:.1%}, fine-tuned {tuned:.1%}")
print(f"zeros: {report.n_weights - report.n_kept} before, {zeros} after")
