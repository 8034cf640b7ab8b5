"""Structured zeros are taken out of chains of layers, and the outputs stay what they were."""

from __future__ import annotations

import copy
import doctest
import importlib

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from sisopt import Groups, InvalidInputError, UnsupportedError  # noqa: E402
from sisopt.adapters.torch import keep_zeros, remove_structured_zeros, sparsify_model, to_prune_masks  # noqa: E402

pytestmark = pytest.mark.usefixtures("seeded_torch")


def prepared(model, x=None):
    """Return a model in eval mode whose normalisations have seen data and have numbers of their own."""
    if x is not None:
        model.train()(x)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-1, 1)
    return model.eval()


def silence(layer, rows=(), columns=()):
    """Set rows and columns of a layer's matrix, or filters and channels, to zero."""
    with torch.no_grad():
        layer.weight[list(rows)] = 0
        layer.weight[:, list(columns)] = 0


def check(model, x, changed):
    """Shrink a model; its outputs and the sizes of the layers that changed must be as told."""
    before = copy.deepcopy(model.state_dict())
    found = remove_structured_zeros(model, x)
    assert dict(found.changed) == changed
    after = model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    args = (x,) if isinstance(x, torch.Tensor) else x
    with torch.no_grad():
        outputs, wanted = found.model(*args), model(*args)
    torch.testing.assert_close(outputs, wanted, rtol=1e-4, atol=1e-5)
    again = remove_structured_zeros(found.model, x)
    assert not again.changed
    return found


def test_neurons_go_that_nothing_reads_or_that_are_constant():
    model = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 8), nn.Sigmoid(), nn.Linear(8, 3)).eval()
    silence(model[0], rows=(0, 1))
    silence(model[2], rows=(7,), columns=(4, 5, 6))
    silence(model[4], columns=(0,))
    found = check(
        model, torch.randn(5, 6), {"0": "6 -> 10 is 6 -> 5", "2": "10 -> 8 is 5 -> 6", "4": "8 -> 3 is 6 -> 3"}
    )
    assert [p.shape for p in found.model.parameters()] == [(5, 6), (5,), (6, 5), (6,), (3, 6), (3,)]
    assert found.model[0].out_features == found.model[2].in_features == 5


def test_inputs_and_outputs_of_the_model_stay():
    model = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 8)).eval()
    silence(model[0], columns=(0, 1, 2))
    silence(model[2], rows=(0, 1))
    found = check(model, torch.randn(5, 6), {})
    assert found.unchanged == {"0": "nothing to remove", "2": "all outputs stay: the model returns them"}


def test_what_is_removed_makes_others_do_nothing_forward_and_backward():
    layers = [nn.Linear(6, 6, bias=i != 3) for i in range(6)]
    model = nn.Sequential(*(each for layer in layers for each in (layer, nn.Tanh()))).eval()
    with torch.no_grad():
        layers[0].weight[0] = 0  # constant, and all that neuron 1 of the next layer reads
        layers[1].weight[1, 1:] = 0
        layers[2].weight[2, :] = 0
        layers[2].weight[2, 1] = 1
        layers[5].weight[:, 5] = 0  # not read, and the only one to read neuron 4 of the layer before
        layers[4].weight[:5, 4] = 0
    sizes = {"0": "6 -> 6 is 6 -> 5", "2": "6 -> 6 is 5 -> 5", "4": "6 -> 6 is 5 -> 5", "6": "6 -> 6 is 5 -> 5"}
    check(model, torch.randn(5, 6), {**sizes, "8": "6 -> 6 is 5 -> 5", "10": "6 -> 6 is 5 -> 6"})


def test_a_bias_is_made_where_a_constant_needs_one():
    model = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 3, bias=False)).eval()
    silence(model[0], rows=(2,))
    found = check(model, torch.randn(5, 6), {"0": "6 -> 10 is 6 -> 9", "2": "10 -> 3 is 9 -> 3"})
    assert found.model[2].bias is not None
    silence(model[2], columns=(2,))
    assert check(model, torch.randn(5, 6), dict(found.changed)).model[2].bias is None


def test_one_neuron_is_left_where_none_does_anything():
    model = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 3)).eval()
    silence(model[2], columns=range(10))
    check(model, torch.randn(5, 6), {"0": "6 -> 10 is 6 -> 1", "2": "10 -> 3 is 1 -> 3"})


class Conv(nn.Module):
    """Convolutions with all that may lie between them, written as functions and as modules."""

    def __init__(self, d=2):
        super().__init__()
        conv, norm = (nn.Conv1d, nn.BatchNorm1d) if d == 1 else (nn.Conv2d, nn.BatchNorm2d)
        self.d = d
        self.first, self.norm = conv(3, 12, 3, bias=False), norm(12)
        self.second, self.pool = conv(12, 10, 3), (nn.MaxPool1d if d == 1 else nn.MaxPool2d)(2)
        self.depthwise, self.slopes = conv(10, 10, 3, groups=10), nn.PReLU(10)
        self.third = conv(10, 8, 1)
        self.flat, self.columns, self.head = nn.Linear(8 * 3**d, 16), nn.BatchNorm1d(16), nn.Linear(16, 4)

    def forward(self, x, scale=None):
        if scale is not None:
            x = x * scale
        average = F.avg_pool1d if self.d == 1 else F.avg_pool2d
        x = F.relu(self.norm(self.first(x)), inplace=True)
        x = self.pool(F.leaky_relu(self.second(x), 0.1))
        x = average(self.third(self.slopes(self.depthwise(x))).sigmoid(), 2)
        x = x.view(x.size(0), -1)
        return self.head(F.dropout(torch.tanh(self.columns(self.flat(x))), training=self.training))


@pytest.mark.parametrize("d", [1, 2])
def test_channels_are_followed_through_everything_that_keeps_them_apart(d):
    x = torch.randn(6, 3, *[20] * d)
    model = prepared(Conv(d), x)
    silence(model.first, rows=(0, 1, 2))
    silence(model.second, rows=(3, 4), columns=(2, 3))
    silence(model.depthwise, rows=(4, 5))
    silence(model.third, rows=(7,), columns=(6,))
    with torch.no_grad():
        model.flat.weight.view(16, 8, -1)[:, 1] = 0  # the columns of a whole channel
        model.flat.weight.view(16, 8, -1)[:, 2, 0] = 0  # and of a part of one
    silence(model.flat, rows=(0,))
    silence(model.head, columns=(1, 2))
    n = 3**d
    sizes = {
        "first": "3 -> 12 is 3 -> 8", "second": "12 -> 10 is 8 -> 6", "depthwise": "10 -> 10 is 6 -> 6",
        "third": "10 -> 8 is 6 -> 6", "flat": f"{8 * n} -> 16 is {6 * n} -> 13", "head": "16 -> 4 is 13 -> 4",
    }  # fmt: skip
    found = check(model, x, sizes)
    assert found.model.norm.num_features == len(found.model.norm.running_var) == 8
    assert found.model.slopes.num_parameters == found.model.depthwise.groups == 6
    torch.testing.assert_close(found.model(2 * x), model(2 * x), rtol=1e-4, atol=1e-5)


def padded(mode="zeros"):
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 5, 3, padding=1, padding_mode=mode),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 2),
    ).eval()  # fmt: skip
    silence(model[0], rows=(1, 2, 3, 4))
    with torch.no_grad():
        model[0].bias[1:5] = torch.tensor([-1.0, 0.5, 0.7, 0.9])  # one of the four is zero behind the activation
    return model


def test_constants_that_zero_padding_ends_become_one_channel():
    found = check(padded(), torch.randn(4, 3, 7, 7), {"0": "3 -> 8 is 3 -> 5", "2": "8 -> 5 is 5 -> 5"})
    silence(found.model[0], rows=(0,))  # its bias may be negative: then it is removed, else it joins the other
    check(found.model, torch.randn(4, 3, 7, 7), {"0": "3 -> 5 is 3 -> 4", "2": "5 -> 5 is 4 -> 5"})
    model = padded()
    with torch.no_grad():
        model[0].bias[1:4] = -1
    found = check(model, torch.randn(4, 3, 7, 7), {"0": "3 -> 8 is 3 -> 5", "2": "8 -> 5 is 5 -> 5"})
    check(found.model, torch.randn(4, 3, 9, 5), {})


@pytest.mark.parametrize("mode", ["replicate", "reflect", "circular"])
def test_constants_that_padding_goes_on_with_go_into_the_bias(mode):
    check(padded(mode), torch.randn(4, 3, 7, 7), {"0": "3 -> 8 is 3 -> 4", "2": "8 -> 5 is 4 -> 5"})


def test_constants_do_not_pass_an_average_that_counts_padding():
    def make(**options):
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AvgPool2d(3, padding=1, **options), nn.Conv2d(8, 5, 1)).eval()
        silence(model[0], rows=(1,))
        return model

    x = torch.randn(4, 3, 9, 9)
    check(make(), x, {})
    check(make(count_include_pad=False), x, {"0": "3 -> 8 is 3 -> 7", "2": "8 -> 5 is 7 -> 5"})


def test_padding_of_places_is_followed_and_padding_of_channels_is_not():
    class Padded(nn.Module):
        def __init__(self, sizes):
            super().__init__()
            self.a, self.b, self.sizes = nn.Conv2d(3, 8, 1), nn.Conv2d(8 + (len(sizes) > 4) * 2, 5, 3), sizes

        def forward(self, x):
            return self.b(F.pad(self.a(x), self.sizes))

    x = torch.randn(2, 3, 6, 6)
    for sizes, changed in (
        (
            (1, 1, 1, 1),
            {"a": "3 -> 8 is 3 -> 7", "b": "8 -> 5 is 7 -> 5"},
        ),  # a zero channel; constants end at the border
        ((0, 0, 0, 0, 1, 1), {}),
    ):
        model = Padded(sizes).eval()
        silence(model.a, rows=(1, 2))
        with torch.no_grad():
            model.a.bias[1] = 0
        check(model, x, changed)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.inner, self.outer = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        return self.head(x + self.outer(torch.relu(self.inner(x)))).mean((2, 3))


def test_what_is_added_stays_and_what_lies_inside_goes():
    model = Residual().eval()
    for layer in (model.stem, model.inner, model.outer):
        silence(layer, rows=(1, 2, 3))
    found = check(model, torch.randn(2, 3, 5, 5), {"inner": "8 -> 8 is 8 -> 5", "outer": "8 -> 8 is 5 -> 8"})
    assert found.unchanged["stem"] == "all outputs stay: add reads them"
    assert found.unchanged["head"] == "all outputs stay: the model returns them"


class Unclear(nn.Module):
    """One linear layer read in many ways, one by one."""

    def __init__(self, way):
        super().__init__()
        self.a, self.b, self.c, self.way = nn.Linear(6, 12), nn.Linear(12, 12), nn.Linear(12, 4), way
        self.norm, self.batch_norm = nn.LayerNorm(12), nn.BatchNorm1d(5)
        self.hooked = nn.Linear(12, 12)
        self.hooked.register_forward_hook(lambda module, args, output: output.flip(-1))

    def forward(self, x):
        h = torch.relu(self.a(x))
        found = {
            "layer norm": lambda: self.norm(h),
            "softmax": lambda: h.softmax(-1),
            "multiplied": lambda: h * h,
            "cut": lambda: torch.cat((h[:, :6], h[:, 6:]), 1),
            "fixed size": lambda: h.view(-1, 12),
            "size of all": lambda: h.view(h.size(0), h.size(1)),
            "shape": lambda: h / h.shape[1],
            "twice": lambda: self.b(self.b(h)),
            "weight": lambda: h @ self.b.weight,
            "hook": lambda: self.hooked(h),
            "sorted": lambda: h.sort().values,
            "keywords": lambda: self.b(input=h),
            "functional": lambda: F.linear(h, self.c.weight.repeat(3, 1)),
            "read and returned": lambda: h,
        }[self.way]()
        return (self.c(found), h) if self.way == "read and returned" else self.c(found)


WAYS = (
    *("layer norm", "softmax", "multiplied", "cut", "fixed size", "size of all", "shape", "twice", "weight", "hook"),
    *("sorted", "keywords", "functional", "read and returned"),
)


@pytest.mark.parametrize("way", WAYS)
def test_what_is_unclear_stays(way):
    model = Unclear(way).eval()
    silence(model.a, rows=(0, 1, 2))
    found = check(model, torch.randn(5, 6), {})
    assert found.unchanged["a"].startswith("all outputs stay: ")


def test_an_operation_in_place_on_a_value_with_other_readers_stays():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 12), nn.Linear(12, 4), nn.Linear(12, 4)

        def forward(self, x):
            h = self.a(x)
            return self.b(F.relu(h, inplace=True)) + self.c(h)

    model = Both().eval()
    silence(model.a, rows=(0, 1, 2))
    check(model, torch.randn(5, 6), {})


def test_two_readers_must_agree():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.trunk, self.left, self.right = nn.Linear(6, 12), nn.Linear(12, 4), nn.Linear(12, 3)

        def forward(self, x, *, scale=2.0):
            h = torch.tanh(self.trunk(x))
            return {"left": self.left(torch.flatten(h, start_dim=1)), "right": [self.right(h), x.shape[0]]}

    model = Heads().eval()
    silence(model.left, columns=(0, 1, 2))
    silence(model.right, columns=(2, 3))
    silence(model.trunk, rows=(7,))
    sizes = {"trunk": "6 -> 12 is 6 -> 10", "left": "12 -> 4 is 10 -> 4", "right": "12 -> 3 is 10 -> 3"}
    found = remove_structured_zeros(model, {"x": torch.randn(5, 6)})
    assert dict(found.changed) == sizes


def test_positions_of_a_sequence_are_no_channels():
    model = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 9), nn.Flatten(), nn.Linear(7 * 9, 2)).eval()
    silence(model[0], rows=(0, 1))
    silence(model[2], columns=(3,))
    with torch.no_grad():
        model[4].weight.view(2, 7, 9)[:, :, 4:6] = 0
    sizes = {"0": "6 -> 9 is 6 -> 6", "2": "9 -> 9 is 6 -> 7", "4": "63 -> 2 is 49 -> 2"}
    check(model, torch.randn(5, 7, 6), sizes)
    pooled = nn.Sequential(nn.Linear(6, 9), nn.MaxPool1d(3), nn.Linear(3, 2)).eval()
    silence(pooled[0], rows=(0, 1))
    check(pooled, torch.randn(5, 7, 6), {})


def test_grouped_convolutions_and_tied_weights_stay():
    model = nn.Sequential(nn.Conv2d(4, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1, groups=2), nn.Conv2d(8, 8, 1)).eval()
    for layer in (model[0], model[2], model[3]):
        silence(layer, rows=(1, 2))
    check(model, torch.randn(2, 4, 5, 5), {})
    tied = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6)).eval()
    tied[4].weight = tied[0].weight
    silence(tied[0], rows=(1, 2))
    check(tied, torch.randn(2, 6), {})
    for way in (keep_zeros, to_prune_masks):
        masked = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6)).eval()
        silence(masked[0], rows=(1, 2))
        way(masked)
        check(masked, torch.randn(2, 6), {})


def test_modes_and_whether_parameters_learn_stay():
    model = prepared(nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 2)), torch.randn(5, 6))
    silence(model[3], columns=(0, 1))
    model.train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    found = remove_structured_zeros(model, (torch.randn(5, 6),)).model
    assert [m.training for m in found.modules()] == [m.training for m in model.modules()]
    assert [p.requires_grad for p in found.parameters()] == [p.requires_grad for p in model.parameters()]
    assert model.training and model[0].weight.shape == (9, 6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_dtypes(dtype):
    model = nn.Sequential(nn.Linear(6, 10), nn.Sigmoid(), nn.Linear(10, 3)).to(dtype).eval()
    silence(model[0], rows=(0, 1, 2))
    x = torch.randn(5, 6, dtype=dtype)
    found = remove_structured_zeros(model, x).model
    assert found[2].weight.shape == (3, 7)
    assert found(x).dtype == dtype
    wanted = model(x).detach()
    torch.testing.assert_close(found(x), wanted, rtol=0, atol=2 * torch.finfo(dtype).eps * float(wanted.abs().max()))


def test_outputs_that_are_not_the_same_are_refused():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 10), nn.Linear(10, 3)

        def forward(self, x):
            return self.b(self.a(x)) * self.a.out_features  # a number in the graph, whatever it came from

    model = Counting().eval()
    silence(model.b, columns=(0, 1))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UnsupportedError, match=r"differ by .* it is\s+as it was"):
        remove_structured_zeros(model, torch.randn(5, 6))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_what_cannot_be_followed_is_refused():
    class Branching(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(UnsupportedError, match="torch.fx cannot trace"):
        remove_structured_zeros(Branching(), torch.ones(3))
    with pytest.raises(InvalidInputError, match="must be a torch.nn.Module"):
        remove_structured_zeros({}, torch.ones(3))
    with pytest.raises(InvalidInputError, match="example_inputs must be"):
        remove_structured_zeros(nn.Linear(3, 3), 7)
    assert not remove_structured_zeros(nn.Linear(3, 3), torch.ones(2, 3)).changed


def test_patterns_of_sparsify_model_are_taken_out():
    model = nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(8 * 9, 20), nn.ReLU(), nn.Linear(20, 4),
    ).eval()  # fmt: skip
    channels = {"pattern": Groups("channels", kernel_size=(3, 3)), "sparsity": 0.5}
    goals = {"0": None, "8": {"pattern": "columns", "sparsity": 0.6}, "*": channels}
    x = torch.randn(2, 60, 2, 8, 8)
    report = sparsify_model(model, x, goals=goals, effort="fast", progress=False)
    sizes = {"0": "2 -> 8 is 2 -> 4", "2": "8 -> 8 is 4 -> 4", "6": "72 -> 20 is 36 -> 8", "8": "20 -> 4 is 8 -> 4"}
    found = check(report.model, x[0], sizes)
    assert str(found).splitlines()[0] == "0  2 -> 8 is 2 -> 4"


def test_the_examples_of_the_docstrings_run():
    outcome = doctest.testmod(importlib.import_module("sisopt.adapters.torch.shrink"))
    assert outcome.attempted > 4
    assert not outcome.failed


def test_a_model_that_writes_to_its_inputs_can_be_made_smaller():
    class Adds(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))

        def forward(self, x):
            x += 1
            return self.layers(x)

    model, x = Adds().eval(), torch.randn(3, 4)
    with torch.no_grad():
        model.layers[2].weight[:, :4] = 0.0
    before = x.clone()
    assert remove_structured_zeros(model, x).model.layers[0].out_features == 2
    assert torch.equal(x, before)
