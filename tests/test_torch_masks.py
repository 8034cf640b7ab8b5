"""Zeros of a sparse torch model stay zero in training, and masks come off without a trace."""

from __future__ import annotations

import copy
import doctest
import importlib
import itertools

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn.utils import parametrize, prune  # noqa: E402

from sisopt import InvalidInputError, UnsupportedError  # noqa: E402
from sisopt.adapters.torch import keep_zeros, release_zeros, sparsify_model, to_prune_masks  # noqa: E402

pytestmark = pytest.mark.usefixtures("seeded_torch")


class LSTM(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(5, 6, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        return self.head(self.lstm(x)[0])


class Cell(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.GRUCell(5, 6)

    def forward(self, x):
        return self.cell(x[:, 0])


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(8, 5)
        self.head = nn.Linear(5, 8, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x):
        return self.head(x + self.embedding(torch.zeros(1, dtype=torch.long)))


def attention():
    return nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)


MODELS = {
    "linear": (lambda: nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)), (4, 5)),
    "convolution": (lambda: nn.Sequential(nn.Conv2d(2, 6, 3, groups=2), nn.BatchNorm2d(6), nn.ReLU()), (4, 2, 6, 6)),
    "transposed": (lambda: nn.ConvTranspose1d(3, 4, 3), (4, 3, 6)),
    "lstm": (LSTM, (4, 7, 5)),
    "cell": (Cell, (4, 7, 5)),
    "attention": (attention, (4, 7, 8)),
    "tied": (Tied, (4, 5)),
}
OPTIMIZERS = {
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.05, weight_decay=0.1),
}
MASKS = {"prune": to_prune_masks, "parametrize": keep_zeros}


def sparse(name):
    """Return a model with zeros in all matrices but no biases, and an input."""
    make, shape = MODELS[name]
    model = make()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter *= torch.rand(parameter.shape) < 0.4
    return model.train(), torch.randn(shape)


def values(model):
    """Return the tensors of a model that is neither masked nor parametrized."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(found, wanted):
    return set(found) == set(wanted) and all(torch.equal(found[name], wanted[name]) for name in wanted)


def train(model, x, optimizer, steps=3):
    for _ in range(steps):
        optimizer.zero_grad()
        (model(x) - 1.0).square().sum().backward()
        optimizer.step()


def unmask(model, way):
    if way == "parametrize":
        return release_zeros(model)
    names = []
    for path, module in list(model.named_modules()):
        for name in [name for name, _ in module.named_parameters(recurse=False) if name.endswith("_orig")]:
            prune.remove(module, name.removesuffix("_orig"))
            names.append(".".join(filter(None, (path, name.removesuffix("_orig")))))
    return names


@pytest.mark.parametrize(("name", "way"), list(itertools.product(MODELS, MASKS)))
def test_masks_come_off_without_a_trace(name, way):
    model, x = sparse(name)
    before, outputs = values(model.eval()), model(x)
    matrices = {n for n, p in model.named_parameters(remove_duplicate=False) if p.dim() > 1}
    masked = MASKS[way](model)
    assert set(masked) == matrices
    assert torch.equal(model(x), outputs)
    assert set(unmask(model, way)) == matrices
    assert same(values(model), before)
    assert torch.equal(model(x), outputs)
    assert not prune.is_pruned(model)
    assert not any(map(parametrize.is_parametrized, model.modules()))
    assert type(model) is type(MODELS[name][0]())


@pytest.mark.parametrize(("name", "way", "optimizer"), list(itertools.product(MODELS, MASKS, OPTIMIZERS)))
def test_training_changes_all_weights_but_the_zeros(name, way, optimizer):
    model, x = sparse(name)
    before, trained_dense = values(model), copy.deepcopy(model)
    MASKS[way](model)
    train(model, x, OPTIMIZERS[optimizer](model.parameters()))
    outputs = model.eval()(x)
    unmask(model, way)
    after = values(model)
    for key, old in before.items():
        if old.dim() > 1:
            kept = old != 0
            assert (after[key][~kept] == 0).all()
            assert (after[key][kept] != old[kept]).float().mean() > 0.9
    torch.testing.assert_close(model(x), outputs)
    train(trained_dense, x, OPTIMIZERS[optimizer](trained_dense.parameters()))
    dense = values(trained_dense)  # without masks the zeros are gone: the test above is not empty
    assert any((dense[key][old == 0] != 0).any() for key, old in before.items() if old.dim() > 1)


@pytest.mark.parametrize("way", MASKS)
def test_every_step_sees_the_weights_that_the_last_one_left(way):
    # Attention reads its output projection without calling it, recurrent layers keep lists of their weights: trained
    # under masks, each must do what plain training with its gradients masked does.
    for name in ("attention", "lstm"):
        model, x = sparse(name)
        plain = copy.deepcopy(model)
        masks = {n: p.detach() != 0 for n, p in plain.named_parameters() if p.dim() > 1}
        for n, p in plain.named_parameters():
            if n in masks:
                p.register_hook(lambda gradient, mask=masks[n]: gradient * mask)
        MASKS[way](model)
        for each in (model, plain):
            train(each, x, torch.optim.SGD(each.parameters(), lr=0.01, momentum=0.9), steps=4)
        unmask(model, way)
        for key, value in values(plain).items():
            torch.testing.assert_close(model.state_dict()[key], value, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize("way", MASKS)
def test_inference_after_training_uses_the_last_weights(way):
    model, x = sparse("attention")
    MASKS[way](model)
    train(model, x, torch.optim.SGD(model.parameters(), lr=0.1))
    with torch.no_grad():  # torch's fast path reads the weights and calls none of the modules inside
        found = model.eval()(x)
        unmask(model, way)
        torch.testing.assert_close(found, model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "way"), list(itertools.product(MODELS, MASKS)))
def test_masked_models_can_be_copied_and_copies_are_independent(name, way):
    model, x = sparse(name)
    MASKS[way](model)
    twin = copy.deepcopy(model)
    unmask(model, way)
    before = values(model)
    train(twin, x, torch.optim.SGD(twin.parameters(), lr=0.1))
    with torch.no_grad():
        twin(x)
    late = copy.deepcopy(twin)
    unmask(twin, way)
    after = values(twin)
    assert same(values(model), before)
    assert not same(after, before)
    assert unmask(late, way)
    assert all(torch.equal(late.state_dict()[key], after[key]) for key in after if "running" not in key)


@pytest.mark.parametrize("way", MASKS)
def test_an_optimizer_made_before_goes_on(way):
    model, x = sparse("linear")
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    MASKS[way](model)
    train(model, x, optimizer)
    unmask(model, way)
    old = values(model)
    train(model, x, optimizer, steps=1)
    assert not same(values(model), old)


def test_the_state_of_kept_zeros_is_saved_and_loaded():
    model, x = sparse("lstm")
    other = copy.deepcopy(model)
    keep_zeros(model)
    keep_zeros(other)
    train(model, x, torch.optim.SGD(model.parameters(), lr=0.1))
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), model(x))


def test_a_report_says_which_layers():
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    with torch.no_grad():
        model[4].weight[0] = 0.0
    report = sparsify_model(model, torch.randn(2, 60, 5), sparsity=0.5, exclude="4", effort="fast", progress=False)
    assert (model[4].weight[0] == 0).all()
    assert keep_zeros(copy.deepcopy(model), report) == ["0.weight", "2.weight"]
    assert to_prune_masks(copy.deepcopy(model), report) == ["0.weight", "2.weight"]
    assert keep_zeros(model) == ["0.weight", "2.weight", "4.weight"]
    assert model[0].parametrizations.weight[0].mask.sum() == report.layers[0].n_kept


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("way", MASKS)
def test_other_dtypes(dtype, way):
    model, x = sparse("linear")
    model.to(dtype)
    before = values(model)
    MASKS[way](model)
    assert model(x.to(dtype)).dtype == dtype
    unmask(model, way)
    assert same(values(model), before)


@pytest.mark.parametrize("way", MASKS)
def test_what_cannot_be_masked_is_refused(way):
    with pytest.raises(InvalidInputError, match="no layer with zeros"):
        MASKS[way](nn.Linear(3, 4))
    model, _ = sparse("linear")
    report = sparsify_model(model.eval(), torch.randn(2, 60, 5), sparsity=0.5, effort="fast", progress=False)
    with pytest.raises(InvalidInputError, match="another model: it has a layer '0'"):
        MASKS[way](model[0], report)
    MASKS[way](model)
    with pytest.raises(UnsupportedError, match="layer '0'.*remove"):
        MASKS[way](model)


def test_a_model_whose_zeros_are_not_kept_is_left_alone():
    model, x = sparse("linear")
    parametrize.register_parametrization(model[0], "bias", nn.Identity())
    outputs = model(x)
    assert release_zeros(model) == []
    assert parametrize.is_parametrized(model[0])
    assert torch.equal(model(x), outputs)


@pytest.mark.parametrize("module", ["masks", "model"])
def test_the_examples_of_the_docstrings_run(module):
    outcome = doctest.testmod(importlib.import_module(f"sisopt.adapters.torch.{module}"))
    assert outcome.attempted > 4
    assert not outcome.failed
