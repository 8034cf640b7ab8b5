"""A pruned network leaves the notebook: a file ten times smaller, sparse products, structured zeros taken out."""

import os
import tempfile
import time

import torch
from sklearn.datasets import load_digits
from torch import nn

from sisopt.adapters.torch import load_sparse, remove_structured_zeros, save_sparse, sparsify_model, to_sparse_csr

torch.manual_seed(0)
torch.set_num_threads(1)
digits = load_digits()
images, labels = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
training, test = slice(0, 1300), slice(1300, None)


def network():
    return nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))


def accuracy(model):
    with torch.no_grad():
        return (model(images[test]).argmax(1) == labels[test]).float().mean().item()


def milliseconds(model):
    """Least CPU time of a batch of 64."""
    times = []
    with torch.no_grad():
        for _ in range(50):
            start = time.process_time()
            model(images[:64])
            times.append(time.process_time() - start)
    return 1e3 * min(times)


model = network()
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
for _ in range(150):
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(images[training]), labels[training]).backward()
    optimizer.step()
model.eval()
dense = accuracy(model)

# Zeros anywhere: small files and, from 90 % on, faster products.
report = sparsify_model(model, images[training].split(325), sparsity=0.9, effort="fast", inplace=False)
with tempfile.TemporaryDirectory() as folder:
    torch.save(report.model.state_dict(), f"{folder}/dense.pt")
    before = os.path.getsize(f"{folder}/dense.pt")
    after = save_sparse(f"{folder}/sparse.safetensors", report.model)
    loaded = network().eval()  # as elsewhere: the code of the network, and the file
    loaded.load_state_dict(load_sparse(f"{folder}/sparse.safetensors"))
conversion = to_sparse_csr(loaded)
print(f"file: {before:,} bytes with torch.save, {after:,} with save_sparse")
print(conversion)

# Zeros in whole columns: the neurons that they read are gone, and what is left is a small dense network.
columns = {"0": None, "*": {"pattern": "columns", "sparsity": 0.75}}
structured = sparsify_model(model, images[training].split(325), goals=columns, effort="fast", inplace=False)
smaller = remove_structured_zeros(structured.model, images[:2])
print(smaller)

forms = {
    "dense": (model, dense),
    "CSR, 90 % zeros": (conversion.model, accuracy(conversion.model)),
    "a quarter of the columns": (smaller.model, accuracy(smaller.model)),
}
for name, (form, share) in forms.items():
    print(f"{name}: accuracy {share:.1%}, {milliseconds(form):.2f} ms a batch")
