"""What is added to a layer's outputs is known to its program, where it is there before the layer runs."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

import numpy as np  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from sisopt.adapters.torch import sparsify_model  # noqa: E402
from sisopt.adapters.torch.residuals import Source  # noqa: E402
from sisopt.adapters.torch.trace import _Watch, trace  # noqa: E402
from sisopt.network import run  # noqa: E402

pytestmark = pytest.mark.usefixtures("seeded_torch")


class Model(nn.Module):
    """A forward function and its modules."""

    def __init__(self, function, **modules):
        super().__init__()
        self.function = function
        for name, module in modules.items():
            setattr(self, name, module)
        self.eval()

    def forward(self, *args, **kwargs):
        return self.function(self, *args, **kwargs)


def two(function):
    return Model(function, one=nn.Linear(6, 6), other=nn.Linear(6, 6), norm=nn.LayerNorm(6), drop=nn.Dropout())


def shifts(model, *args):
    return {site.name: (site.shift, site.activation.name) for site in trace(model, lambda: model(*args))}


@pytest.mark.parametrize(
    "function, shift, activation",
    [
        (lambda m, x: x + m.other(x), Source("other", 0), "identity"),
        (lambda m, x: m.other(x) + x, Source("other", 0), "identity"),
        (lambda m, x: torch.relu(torch.add(x, m.other(x))), Source("other", 0), "relu"),
        (lambda m, x: F.gelu(x + m.drop(m.other(torch.relu(m.one(x))))), Source("one", 0), "gelu"),
        (lambda m, x: m.norm(x) + m.other(torch.tanh(x)), Source("norm", None), "identity"),
        (lambda m, x: m.one(x).add_(m.other(x)).relu_(), Source("one", None), "relu"),
        (lambda m, x: (h := x * 2) + m.other(input=torch.relu(m.one(input=h))), Source("one", "input"), "identity"),
    ],
)
def test_a_summand_is_found_where_it_is_seen_first(function, shift, activation):
    model = two(lambda m, x: function(m, x.clone()))
    assert shifts(model, torch.randn(5, 6))["other"] == (shift, activation)


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: torch.add(x, m.other(x), alpha=2),
        lambda m, x: x[:1] + m.other(x),
        lambda m, x: 1.0 + m.other(x),
        lambda m, x: m.other(x) + x.sum(),
        lambda m, x: m.other(x) * x,
        lambda m, x: m.other(x) + m.one(x),  # one runs after other
        lambda m, x: m.other(x) + torch.relu(x),  # no module is given it, none returns it
        lambda m, x: m.other(x) + x.mul_(2),
        lambda m, x: (y := m.other(x)) + y,
        lambda m, x: m.other(x).T.reshape(-1, 6) + x,
        lambda m, x: (x + (y := m.other(x)), y),
        lambda m, x: m.norm(m.norm(x)) + m.other(torch.tanh(x)) + m.norm(x),
        lambda m, x: m.other(m.other(x)) + x,
    ],
)
def test_what_is_not_known_before_the_layer_runs_is_no_shift(function):
    model = two(lambda m, x: function(m, x.clone()))
    assert shifts(model, torch.randn(6, 6))["other"] == (None, "identity")


def test_what_a_sum_goes_into_counts_only_if_that_is_all():
    model = two(lambda m, x: ((y := (h := x.clone()) + m.other(h)), torch.relu(y)))
    assert shifts(model, torch.randn(5, 6))["other"] == (Source("other", 0), "identity")


class Block(nn.Module):
    """As in ResNet: the sum is made in place."""

    def __init__(self, width, stride=1, groups=1):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, groups=groups, bias=False), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.down = None
        if stride > 1:
            self.down = nn.Sequential(nn.Conv2d(width, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x):
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += x if self.down is None else self.down(x)
        return self.relu(y)


def resnet():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), Block(4, groups=2), Block(4, 2), nn.Flatten())
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    return model.eval()


def test_blocks_with_and_without_a_layer_on_the_way_around():
    found = shifts(resnet(), torch.randn(2, 3, 8, 8))
    assert found["2.conv2"] == (Source("1", None), "relu")
    assert found["3.conv2"] == (None, "identity")
    assert found["3.down.0"] == (Source("3.bn2", None), "relu")


def programs_of(model, batches, monkeypatch, **options):
    """Return the programs of all layers, as they come to be solved."""
    found = {}
    layer = run._Run._layer

    def seen(self, number, info, programs):
        found[info.name] = [
            {key: None if getattr(p, key) is None else getattr(p, key).copy() for key in KEYS} for p in programs
        ]
        return layer(self, number, info, programs)

    monkeypatch.setattr(run._Run, "_layer", seen)
    report = sparsify_model(model, batches, effort="fast", progress=False, inplace=False, n_threads=1, **options)
    monkeypatch.undo()
    return found, report


KEYS = ("inputs", "weight", "bias", "preactivations", "shift")


def test_the_shift_is_that_of_the_sparse_network_and_the_target_holds_the_dense_one(monkeypatch):
    model, images = resnet(), torch.randn(6, 3, 8, 8)
    found, report = programs_of(model, images.split(3), monkeypatch, sparsity=0.5)
    with torch.no_grad():
        dense, sparse = (m[1](m[0](images)).movedim(1, -1).reshape(-1, 4).numpy() for m in (model, report.model))
        y = model[2].relu(model[2].bn1(model[2].conv1(model[1](model[0](images)))))
        sums = model[2].bn2(model[2].conv2(y)).movedim(1, -1).reshape(-1, 4).numpy() + dense
    parts = found["2.conv2"]
    assert len(parts) == 2
    for group, part in enumerate(parts):
        rows = slice(2 * group, 2 * group + 2)
        np.testing.assert_allclose(part["shift"], sparse[:, rows], atol=1e-6)
        np.testing.assert_allclose(part["preactivations"], sums[:, rows], atol=1e-5)
    assert all(part["shift"] is None for part in found["2.conv1"])


@pytest.mark.parametrize("mode", ["sequential", "parallel"])
def test_held_and_replayed_passes_give_the_same_bits(mode, monkeypatch):
    model, batches = resnet(), torch.randn(6, 3, 8, 8).split(2)
    held, _ = programs_of(model, batches, monkeypatch, sparsity=0.5, mode=mode)
    replayed, _ = programs_of(model, batches, monkeypatch, sparsity=0.5, mode=mode, max_memory=1)
    for name, parts in held.items():
        for part, again in zip(parts, replayed[name], strict=True):
            for key in KEYS:
                assert (part[key] is None) == (again[key] is None)
                np.testing.assert_array_equal(part[key], again[key])
    assert (held["2.conv2"][0]["preactivations"] is None) == (mode == "parallel")


class Stream(nn.Module):
    """A residual stream, as of transformers."""

    def __init__(self, width=12):
        super().__init__()
        self.into, self.up, self.down = nn.Linear(6, width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.last, self.drop = nn.Linear(width, width), nn.Dropout()

    def forward(self, x, residual=True, **_):
        h = self.into(x)
        y = self.drop(self.down(F.gelu(self.up(h))))
        h = h + y if residual else 2 * y
        return h + self.last(h)


def test_errors_of_a_stream_are_made_good_by_the_layers_that_add_to_it(monkeypatch):
    model, data, new = Stream().eval(), torch.randn(4, 40, 6), torch.randn(8, 40, 6)

    def error():
        options = {"sparsity": 0.5, "allocation": "uniform", "effort": "fast", "progress": False}
        report = sparsify_model(model, data.split(2), inplace=False, **options)
        with torch.no_grad():
            return float((report.model(new) - model(new)).norm() / model(new).norm())

    known = error()
    monkeypatch.setattr(_Watch, "_shifted", lambda self, both, marks: (None, None))
    assert known < 0.6 * error()


def test_batches_that_go_another_way_than_the_first_are_left_out_where_the_summand_is_missing(monkeypatch):
    class Odd(Stream):
        def forward(self, x, residual=True):
            h = torch.tanh(self.into(x))  # seen first where it goes into self.up
            return h + self.down(F.gelu(self.up(h)) if residual else torch.cat((h, h), -1))

    model = Odd().eval()
    batches = [{"x": torch.randn(5, 6)}, {"x": torch.randn(3, 6), "residual": False}]
    found, _ = programs_of(model, batches, monkeypatch, sparsity=0.5)
    assert found["down"][0]["shift"].shape == found["down"][0]["preactivations"].shape == (5, 12)
    assert found["into"][0]["inputs"].shape == (8, 6)


def test_tokens_of_padding_are_no_part_of_the_shift(monkeypatch):
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    batches = [{"x": torch.randn(2, 4, 6), "attention_mask": mask}]
    model = Stream().eval()
    found, report = programs_of(model, batches, monkeypatch, sparsity=0.5)
    with torch.no_grad():
        stream = report.model.into(batches[0]["x"])[mask.bool()].numpy()
    np.testing.assert_allclose(found["down"][0]["shift"], stream, atol=1e-6)


def test_a_forward_in_inference_mode_has_no_shifts_and_runs():
    def forward(model, batch):
        with torch.inference_mode():
            return model(batch)

    model = Stream().eval()
    report = sparsify_model(model, [torch.randn(40, 6)], sparsity=0.5, effort="fast", forward=forward, progress=False)
    assert report.sparsity == 0.5


def test_what_another_solver_is_given_is_as_before():
    seen = []

    def solver(inputs, weight, bias, goal):
        seen.append(weight.shape)
        return np.where(np.abs(weight) > np.median(np.abs(weight)), weight, 0.0), bias

    sparsify_model(Stream().eval(), [torch.randn(40, 6)], sparsity=0.5, layer_solver=solver, progress=False)
    assert seen == [(12, 6), (24, 12), (12, 24), (12, 12)]


def test_a_layer_with_a_shift_keeps_its_error_budget():
    model = Stream().eval()
    report = sparsify_model(model, [torch.randn(200, 6)], relative_error=0.2, effort="fast", progress=False)
    assert all(0 < layer.relative_error <= 0.2 + 1e-6 for layer in report.included)
    assert 0.1 < report.sparsity
