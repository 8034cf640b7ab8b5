"""sparsify_model(): the counts that were asked for, the errors that are reported, and a model left as it was else."""

from __future__ import annotations

import collections
import copy
import dataclasses
import functools
import math
import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from sisopt import InfeasibleBudgetError, InvalidInputError, UnsupportedError  # noqa: E402
from sisopt.adapters.torch import sparsify_model  # noqa: E402
from sisopt.adapters.torch.forwards import copied  # noqa: E402
from sisopt.network import LayerGoal, NetworkReport  # noqa: E402
from sisopt.patterns import get_pattern  # noqa: E402

fast = functools.partial(sparsify_model, effort="fast", allocation="uniform")

pytestmark = pytest.mark.usefixtures("seeded_torch")


def bits(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def assert_bits(model, wanted):
    found = model.state_dict()
    assert set(found) == set(wanted)
    assert [key for key in wanted if not same(found[key], wanted[key])] == []


def same(a, b):
    return a.dtype == b.dtype and torch.equal(torch.nan_to_num(a), torch.nan_to_num(b))


def mlp(*widths, activation=nn.ReLU):
    layers = []
    for n_in, n_out in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(n_in, n_out), activation()]
    return nn.Sequential(*layers[:-1]).eval()


def nonzeros(model, *names):
    return sum(int(torch.count_nonzero(model.get_parameter(name))) for name in names)


def magnitude(inputs, weight, bias, goal):
    """A solver that is quick and depends on its inputs."""
    if goal.pattern is not None or goal.sparsity is None:
        raise NotImplementedError
    order = np.argsort(np.abs(weight) * np.linalg.norm(inputs, axis=0), axis=None, kind="stable")
    sparse = weight.copy()
    sparse.flat[order[: weight.size - round((1 - goal.sparsity) * weight.size)]] = 0.0
    return sparse, bias


quick = functools.partial(sparsify_model, layer_solver=magnitude)


def relative(found, wanted):
    with torch.no_grad():
        return float((found.double() - wanted.double()).norm() / wanted.double().norm())


class Wrapped(nn.Module):
    """A model that does with its modules what a function says."""

    def __init__(self, function, **modules):
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self._function = function
        self.eval()

    def forward(self, *args, **kwargs):
        return self._function(self, *args, **kwargs)


# ---- what is asked for


@pytest.mark.parametrize("sparsity", [0.0, 1 / 3, 0.777, 0.95, 1.0])
def test_the_total_is_exact(sparsity):
    model = mlp(7, 11, 5, 3)
    report = fast(model, torch.randn(2, 60, 7), sparsity=sparsity)
    total = 7 * 11 + 11 * 5 + 5 * 3
    wanted = round((1 - sparsity) * total)
    assert nonzeros(model, "0.weight", "2.weight", "4.weight") == report.n_kept == wanted
    assert report.sparsity == 1 - wanted / total
    for layer in report.layers:
        assert abs(layer.n_kept - (1 - sparsity) * layer.n_weights) < 1
    assert report.model is model
    assert all(np.isfinite(value).all() for value in map(torch.Tensor.numpy, model.state_dict().values()))


def test_a_sparsity_of_0_changes_no_bit():
    model = mlp(7, 11, 5)
    wanted = bits(model)
    report = fast(model, torch.randn(2, 60, 7), sparsity=0.0)
    assert_bits(model, wanted)
    assert [layer.status for layer in report.layers] == ["kept dense: allocated no zeros"] * 2


def test_two_of_four_along_the_inputs_of_the_matrix():
    model = Wrapped(
        lambda m, x: m.fc(torch.relu(m.conv(x)).flatten(1)), conv=nn.Conv2d(2, 4, 2), fc=nn.Linear(4 * 9, 6)
    )
    report = fast(model, torch.randn(2, 20, 2, 4, 4), pattern="2:4")
    for weight in (model.conv.weight, model.fc.weight):
        groups = (weight.detach().flatten(1).reshape(len(weight), -1, 4) != 0).sum(-1)
        assert groups.max() == 2
        assert groups.float().mean() > 1.95
    assert report.sparsity == pytest.approx(0.5, abs=0.01)
    assert report.options["pattern"] == "2:4"


def test_two_of_four_with_a_sparsity_that_agrees():
    model = mlp(7, 9, 5)
    report = fast(model, torch.randn(2, 60, 7), pattern="2:4", sparsity=0.5)
    wanted = [get_pattern("2:4").count(shape) for shape in ((9, 7), (5, 9))]
    assert [layer.n_kept for layer in report.layers] == wanted


def test_goals_by_glob():
    model = mlp(8, 12, 12, 12, 6)
    dense = bits(model)
    goals = {"0": 0.25, "[24]": {"pattern": "2:4"}, "2": 0.9, "6": None}
    report = fast(model, torch.randn(2, 60, 8), sparsity=0.5, goals=goals)
    assert [layer.n_kept for layer in report.layers] == [72, 72, 72, 72]
    assert_bits(model[6], {key: dense[f"6.{key}"] for key in ("weight", "bias")})
    assert report.layers[3].status == "kept dense"


def test_the_sparsity_is_over_layers_without_a_goal_of_their_own():
    model = mlp(8, 12, 12, 6)
    report = quick(model, torch.randn(2, 60, 8), sparsity=0.777, goals={"2": np.float32(0.5)})
    assert report.layers[1].n_kept == 72
    assert report.layers[0].n_kept + report.layers[2].n_kept == round((1 - 0.777) * (96 + 72))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({}, "nothing is asked for"),
        ({"sparsity": 0.5, "relative_error": 0.1}, "takes one of sparsity and relative_error"),
        ({"sparsity": 1.5}, r"sparsity must be a number in \[0, 1\]"),
        ({"sparsity": 0.5, "goals": {"x*": 0.5}}, "'x\\*' matches no layer; there are 0, 2"),
        ({"sparsity": 0.5, "goals": {"0": True}}, r"goals\['0'\] must be a sparsity"),
        ({"sparsity": 0.5, "goals": {"0": {"what": 1}}}, r"goals\['0'\] must be a sparsity"),
        ({"sparsity": 0.5, "include": "x*"}, "include: 'x\\*' matches no layer; the model's layers are 0, 2"),
        ({"sparsity": 0.5, "include": nn.Conv2d}, "include: .*Conv2d.* matches no layer"),
        ({"sparsity": 0.5, "include": nn.ReLU}, "include: .*ReLU.* matches only ReLU, not made sparse"),
        ({"sparsity": 0.5, "include": []}, "include and exclude leave no layer"),
        ({"sparsity": 0.5, "exclude": "*"}, "include and exclude leave no layer: the model's layers are 0, 2"),
        ({"sparsity": 0.5, "goals": {nn.Linear: 0.5}}, "goals must be a mapping of globs"),
        ({"sparsity": 0.5, "goals": ["0"]}, "goals must be a mapping of globs"),
        ({"sparsity": 0.5, "forward": "x"}, "forward must be a function"),
        ({"sparsity": 0.5, "layer_solver": "x"}, "layer_solver must be a function"),
        ({"sparsity": 0.5, "checkpoint": 123}, "checkpoint must be the path of a folder"),
        ({"sparsity": 0.5, "activations": {0: "relu"}}, "activations must be a mapping of globs"),
        ({"sparsity": 0.5, "exclude": ["0", "y"]}, "exclude: 'y' matches no layer"),
        ({"sparsity": 0.5, "exclude": 3}, "exclude takes globs of names and types of modules, got 3"),
        ({"sparsity": 0.5, "include": [int]}, "include takes globs"),
        ({"sparsity": 0.5, "activations": {"z": "relu"}}, "activations: 'z' matches no layer"),
        ({"sparsity": 0.5, "activations": {"0": "rleu"}}, r"activations\['0'\]: activation must be a known name"),
        ({"sparsity": 0.5, "activations": "relu"}, "activations must be a mapping"),
        ({"sparsity": 0.5, "allocation": "best"}, "allocation must be one of"),
        ({"relative_error": 0.5, "allocation": "error"}, "allocation='error' distributes a sparsity"),
        ({"sparsity": 0.5, "mode": "both"}, "mode must be one of"),
        ({"sparsity": 0.5, "effort": "huge"}, "effort must be one of"),
        ({"sparsity": 0.5, "max_samples": 0}, "max_samples must be at least 1"),
        ({"sparsity": 0.5, "n_threads": 0}, "n_threads must be"),
        ({"sparsity": 0.5, "seed": -1}, "seed must be"),
    ],
)
def test_requests_that_make_no_sense_change_nothing(options, match):
    model = mlp(6, 8, 4)
    wanted = bits(model)
    with pytest.raises(InvalidInputError, match=match):
        sparsify_model(model, torch.randn(1, 30, 6), **options)
    assert_bits(model, wanted)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"include": "blocks.*"}, {"blocks.0", "blocks.1"}),
        ({"include": nn.Conv1d}, {"conv"}),
        ({"include": [nn.Conv1d, "head"]}, {"conv", "head"}),
        ({"exclude": "head"}, {"conv", "blocks.0", "blocks.1"}),
        ({"exclude": (nn.Linear,)}, {"conv"}),
        ({"include": "b*", "exclude": "*.0"}, {"blocks.1"}),
    ],
)
def test_layers_are_chosen_by_name_and_type(options, names):
    blocks = nn.Sequential(nn.Linear(12, 8), nn.Linear(8, 8))
    model = Wrapped(
        lambda m, x: m.head(m.blocks(m.conv(x).flatten(1))),
        conv=nn.Conv1d(1, 3, 3), blocks=blocks, head=nn.Linear(8, 4),
    )  # fmt: skip
    dense = bits(model)
    report = quick(model, torch.randn(2, 40, 1, 6), sparsity=0.5, **options)
    assert {layer.name for layer in report.included} == names
    for layer in report.layers:
        if layer.name in names:
            assert layer.n_kept == layer.n_weights // 2 or layer.name == "conv"
        else:
            assert "kept dense: " in layer.status
            assert torch.equal(model.get_parameter(f"{layer.name}.weight"), dense[f"{layer.name}.weight"])
    assert report.n_kept == round(0.5 * sum(layer.n_weights for layer in report.included))


def test_activations_can_be_overruled():
    model = mlp(6, 8, 4)
    report = fast(model, torch.randn(1, 60, 6), sparsity=0.5, activations={"0": "tanh"})
    assert [layer.activation for layer in report.layers] == ["tanh", "identity"]


# ---- kinds of layers, ties


def test_an_embedding_tied_with_a_head_keeps_the_head_dense():
    model = Wrapped(lambda m, x: m.head(torch.relu(m.fc(m.emb(x)))), emb=nn.Embedding(9, 6), fc=nn.Linear(6, 6))
    model.head = nn.Linear(6, 9, bias=False).eval()
    model.head.weight = model.emb.weight
    dense = bits(model)
    report = quick(model, torch.randint(0, 9, (2, 20, 5)), sparsity=0.5)
    status = {layer.name: layer.status for layer in report.layers}
    assert status == {"fc": "done", "head": "kept dense: shares its weight with emb"}
    assert torch.equal(model.emb.weight, dense["emb.weight"])
    assert report.sparsity == 0.5


def tied_by_parameter(a, b):
    b.weight = a.weight


def tied_by_memory(a, b):
    b.weight = nn.Parameter(a.weight.data)


def tied_by_bias(a, b):
    b.bias = a.bias


@pytest.mark.parametrize("tie", [tied_by_parameter, tied_by_memory, tied_by_bias])
def test_layers_that_share_a_parameter_are_treated_once(tie):
    model = mlp(6, 6, 6, 4)
    tie(model[0], model[2])
    report = fast(model, torch.randn(2, 40, 6), sparsity=0.5)
    what = "bias" if tie is tied_by_bias else "weight"
    assert [layer.status.split(": ")[-1] for layer in report.layers][1] == f"shares its {what} with 0"
    assert nonzeros(model, "0.weight") == 18
    assert torch.count_nonzero(model[2].weight) == (36 if tie is tied_by_bias else 18)
    assert report.included[0].output_error == pytest.approx(report.layers[0].output_error)


def test_a_layer_tied_to_one_that_never_runs_is_made_sparse():
    model = Wrapped(lambda m, x: m.b(x), a=nn.Linear(6, 6), b=nn.Linear(6, 6))
    model.a.weight = model.b.weight
    report = fast(model, torch.randn(2, 40, 6), sparsity=0.5)
    assert [(layer.name, layer.status) for layer in report.layers][1] == ("a", "kept dense: never reached")
    assert nonzeros(model, "b.weight") == report.n_kept == 18


def test_a_module_under_two_names_is_one_layer_called_twice():
    fc = nn.Linear(6, 6)
    model = Wrapped(lambda m, x: m.head(torch.relu(m.b(torch.relu(m.a(x))))), a=fc, b=fc, head=nn.Linear(6, 4))
    report = fast(model, torch.randn(2, 40, 6), sparsity=0.5)
    assert [(layer.name, layer.activation, layer.n_kept) for layer in report.layers] == [
        ("a", "identity", 18), ("head", "identity", 12),
    ]  # fmt: skip


@pytest.mark.parametrize("groups", [2, 8])
@pytest.mark.parametrize("bias", [True, False])
def test_grouped_convolutions_with_a_norm(groups, bias):
    conv, norm = nn.Conv2d(8, 8, 3, groups=groups, bias=bias, padding=1), randomized(nn.BatchNorm2d(8))
    model = Wrapped(lambda m, x: torch.relu(m.norm(m.conv(x))), conv=conv, norm=norm)
    x = torch.randn(2, 10, 8, 6, 6)
    check_reported(model, x, sparsity=0.61)


def test_other_kinds_run_and_are_exact():
    class Many(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.ConvTranspose1d(2, 4, 3, stride=2)
            self.rnn = nn.LSTM(4, 6, bidirectional=True, batch_first=True)
            self.attention = nn.MultiheadAttention(12, 3, batch_first=True)
            self.cell = nn.GRUCell(12, 5)

        def forward(self, x):
            x, _ = self.rnn(self.up(x).transpose(1, 2))
            x, _ = self.attention(x, x, x)
            return self.cell(x[:, -1])

    model = Many().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = fast(model, torch.randn(2, 30, 2, 4), sparsity=0.7)
    assert [layer.name for layer in report.layers] == ["up", "rnn", "attention", "cell"]
    weights = [name for name, p in model.named_parameters() if p.dim() > 1]
    assert nonzeros(model, *weights) == report.n_kept == round((1 - 0.7) * report.n_weights)


# ---- batch normalisation: what is reported is what the sparse model does


def randomized(norm):
    with torch.no_grad():
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2.0)
        if norm.weight is not None:
            norm.weight.normal_()
            norm.bias.normal_()
    return norm


def check_reported(model, batches, **options):
    """The error reported of the last layer is that of the model's outputs, the count that of its weights."""
    dense = copy.deepcopy(model)
    report = fast(model, batches, max_samples=10**6, **options)
    flat = batches.flatten(0, 1)
    with torch.no_grad():
        error = relative(model(flat), dense(flat))
    last = report.layers[-1]
    assert last.output_error == pytest.approx(error, rel=1e-3)
    assert 1e-4 < error < 1
    assert nonzeros(model, *(f"{layer.name}.weight" for layer in report.layers)) == report.n_kept
    assert report.n_kept == round((1 - options["sparsity"]) * report.n_weights)
    return report


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_batch_norms_are_folded_and_taken_out_again(bias, affine):
    model = Wrapped(
        lambda m, x: torch.relu(m.bn2(m.conv2(torch.relu(m.bn1(m.conv1(x)))))),
        conv1=nn.Conv2d(2, 6, 3, bias=bias), bn1=randomized(nn.BatchNorm2d(6, affine=affine)),
        conv2=nn.Conv2d(6, 5, 3, bias=bias), bn2=randomized(nn.BatchNorm2d(5)),
    )  # fmt: skip
    before = bits(model)
    report = check_reported(model, torch.randn(2, 12, 2, 8, 8), sparsity=0.5)
    found = "batch norm, relu" if bias or affine else "identity"
    assert [layer.activation for layer in report.layers] == [found, "batch norm, relu"]
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed >= {"conv1.weight", "conv2.weight"}
    assert not any("running" in key or key in ("bn1.weight", "bn2.weight") for key in changed)
    assert ("bn2.bias" in changed) is not bias


@pytest.mark.parametrize("bias", [True, False])
def test_a_channel_that_its_norm_switches_off(bias):
    norm = randomized(nn.BatchNorm1d(6))
    with torch.no_grad():
        norm.weight[2] = 0.0
    model = Wrapped(lambda m, x: torch.relu(m.norm(m.fc(x))), fc=nn.Linear(9, 6, bias=bias), norm=norm)
    dense, x = copy.deepcopy(model), torch.randn(2, 60, 9)
    report = fast(model, x, sparsity=0.5)
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
    assert nonzeros(model, "fc.weight") == report.n_kept <= 27
    assert not model.fc.weight[2].any()
    with torch.no_grad():
        found, wanted = model(x.flatten(0, 1)), dense(x.flatten(0, 1))
    assert report.layers[0].output_error == pytest.approx(relative(found, wanted), rel=1e-3)
    torch.testing.assert_close(found[:, 2], wanted[:, 2])


def test_the_error_of_a_deep_model_is_that_of_its_last_layer():
    model = mlp(8, 16, 16, 5)
    check_reported(model, torch.randn(3, 50, 8), sparsity=0.6)


# ---- data


class Tokens(nn.Module):
    """Embeds nothing: takes vectors, masks attention, and treats tokens one by one else."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.fc1, self.fc2 = nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x, attention_mask):
        y, _ = self.attention(x, x, x, key_padding_mask=attention_mask == 0, need_weights=False)
        return self.fc2(torch.nn.functional.gelu(self.fc1(x + y)))


@pytest.mark.parametrize("kind", [dict, collections.UserDict])
def test_padding_never_enters_the_data(kind):
    lengths = torch.tensor([7, 3, 5, 1, 0, 6])
    mask = (torch.arange(7) < lengths[:, None]).long()
    mask[4, 0] = 1  # attention to nothing is not a number
    x = torch.randn(2, 6, 7, 8)
    found = []
    for filler in (0.0, 1e6):
        torch.manual_seed(1)
        model = Tokens().eval()
        filled = torch.where(mask[..., None] == 1, x, torch.tensor(filler))
        batches = [kind({"x": batch, "attention_mask": mask}) for batch in filled]
        fast(model, batches, sparsity=0.5)
        found.append(bits(model))
    assert_bits(model, found[0])


@pytest.mark.parametrize("padded", ["queries", "keys"])
def test_padding_on_one_side_of_an_attention(padded):
    def forward(model, batch):
        query, keys = batch["x"]
        mask = batch["attention_mask"] == 0
        return model(query, keys, keys, key_padding_mask=mask if padded == "keys" else None)[0]

    x = torch.randn(4, 3, 8), torch.randn(4, 7, 8)
    real = torch.ones(4, 3 if padded == "queries" else 7, dtype=torch.long)
    real[0, 1:], real[1, 2:] = 0, 0
    x[padded == "keys"][real == 0] = 1e6
    model = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    seen = []

    def unchanged(inputs, weight, bias, goal):
        seen.append(float(np.abs(inputs).max()))
        return weight, bias

    report = fast(model, [{"x": x, "attention_mask": real}], sparsity=0.5, forward=forward, layer_solver=unchanged)
    assert len(seen) == 4 and max(seen) < 10
    assert report.layers[0].output_error < 1e-5  # targets are of the same tokens


def test_max_samples_are_drawn_reproducibly():
    x, found = torch.randn(3, 50, 8), []
    for seed in (0, 0, 1):
        torch.manual_seed(1)
        model, sizes = mlp(8, 12, 4), []

        def solver(inputs, weight, bias, goal, sizes=sizes):
            sizes.append(len(inputs))
            return magnitude(inputs, weight, bias, goal)

        sparsify_model(model, x, sparsity=0.5, layer_solver=solver, max_samples=40, seed=seed)
        assert sizes == [40, 40]
        found.append(bits(model))
    assert_bits(model, found[2])
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])
    assert not all(torch.equal(found[0][key], found[2][key]) for key in found[0])


def test_fewer_samples_than_max_samples_are_all_used():
    seen = []

    def solver(inputs, weight, bias, goal):
        seen.append(inputs.copy())
        return weight, bias

    x = torch.randn(3, 5, 4)
    sparsify_model(mlp(4, 3), x, sparsity=0.5, layer_solver=solver)
    np.testing.assert_array_equal(seen[0], x.flatten(0, 1).numpy())


def test_sequential_inputs_come_from_sparse_layers_parallel_ones_from_dense_layers():
    x, inputs = torch.randn(1, 50, 6), {}

    def solver(inputs_, weight, bias, goal):
        inputs.setdefault(mode, []).append(inputs_.copy())
        return magnitude(inputs_, weight, bias, goal)

    for mode in ("sequential", "parallel"):
        torch.manual_seed(1)
        model = mlp(6, 8, 4)
        dense = copy.deepcopy(model)
        sparsify_model(model, x, sparsity=0.5, mode=mode, layer_solver=solver)
        source = model if mode == "sequential" else dense
        with torch.no_grad():
            np.testing.assert_array_equal(inputs[mode][1], source[:2](x[0]).numpy())
        assert nonzeros(model, "0.weight", "2.weight") == 40
    np.testing.assert_array_equal(inputs["parallel"][0], inputs["sequential"][0])


def test_layers_without_samples_stay_dense_to_the_last_bit():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.unused = nn.Linear(6, 6), nn.Linear(6, 6)
            self.empty, self.norm = nn.Linear(6, 6, bias=False), randomized(nn.BatchNorm1d(6))

        def forward(self, x):
            return self.fc(x).sum() + torch.relu(self.norm(self.empty(x[x[:, 0] > 100.0]))).sum()

    model = Branches().eval()
    dense = bits(model)
    report = fast(model, torch.randn(2, 40, 6), sparsity=0.5)
    assert {layer.name: layer.status for layer in report.layers if layer.name != "fc"} == {
        "unused": "kept dense: never reached", "empty": "kept dense: no sample reaches it",
    }  # fmt: skip
    assert_bits(model, dense | {key: value for key, value in bits(model).items() if key.startswith("fc")})
    assert nonzeros(model, "fc.weight") == 18


def test_experts_that_other_tokens_reach_by_then():
    """What sparse layers send elsewhere has no counterpart among the dense network's tokens."""

    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate, self.expert = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x):
            return self.expert(x[self.gate(x)[:, 0] > 0])

    model = Experts().eval()
    x = torch.randn(3, 40, 6)
    report = quick(model, x, sparsity=0.9)
    with torch.no_grad():
        assert report.layers[0].status == "done"
    assert report.layers[1].status in ("done", "kept dense: no sample reaches it")
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


# ---- allocation


@pytest.mark.parametrize("allocation", ["error", "flops"])
def test_allocations_meet_the_whole_networks_target(allocation):
    model = Wrapped(
        lambda m, x: m.fc(torch.relu(m.conv(x)).flatten(1)), conv=nn.Conv2d(1, 4, 3), fc=nn.Linear(4 * 16, 6)
    )
    report = fast(model, torch.randn(2, 30, 1, 6, 6), sparsity=0.7, allocation=allocation)
    conv, fc = report.layers
    assert (conv.n_weights, conv.flops, fc.n_weights, fc.flops) == (36, 36 * 16, 384, 384)
    if allocation == "error":
        assert report.n_kept == round(0.3 * 420)
    else:
        assert 0 <= 0.3 * report.flops - report.flops_kept < 16
    assert conv.sparsity != pytest.approx(fc.sparsity, abs=0.02)


# ---- other solvers, budgets


def test_a_layer_solver_is_called_with_matrices_and_goals():
    seen = []

    def solver(inputs, weight, bias, goal):
        seen.append((inputs.shape, weight.copy(), bias, goal))
        assert inputs.dtype == weight.dtype == np.float32
        return weight * 0, bias

    model = Wrapped(lambda m, x: m.fc(m.conv(x).flatten(1)), conv=nn.Conv1d(2, 4, 3, groups=2), fc=nn.Linear(16, 3))
    dense = bits(model)
    report = sparsify_model(
        model, torch.randn(2, 30, 2, 6), sparsity=0.5, goals={"fc": {"pattern": "2:4"}}, layer_solver=solver
    )
    shapes = [(shape, weight.shape, bias.shape) for shape, weight, bias, _ in seen]
    assert shapes == [((240, 3), (2, 3), (2,))] * 2 + [((60, 16), (3, 16), (3,))]
    np.testing.assert_array_equal(seen[0][1], dense["conv.weight"][:2].flatten(1).numpy())
    assert seen[2][3] == LayerGoal(pattern="2:4")
    assert all(goal.pattern is None for *_, goal in seen[:2])
    assert sum(round((1 - goal.sparsity) * 6) for *_, goal in seen[:2]) == 6
    assert report.n_kept == 0
    assert report.options["layer_solver"].endswith("solver")


@pytest.mark.parametrize(
    ("answer", "match"),
    [
        (lambda w, b: w, "layer 'x.0': layer_solver must return a pair"),
        (lambda w, b: (w[:, :2], b), r"layer 'x.0': weight from layer_solver must have shape \(4, 6\)"),
        (lambda w, b: (w * np.nan, b), "layer 'x.0': weight from layer_solver must be finite"),
        (lambda w, b: (w, None), "layer 'x.0': bias from layer_solver must be an array"),
        (lambda w, b: (w, b[1:]), "layer 'x.0': bias from layer_solver must have shape"),
        (lambda w, b: ("w", b), "layer 'x.0': weight from layer_solver must hold real numbers"),
    ],
)
def test_answers_of_a_solver_that_do_not_fit_are_refused(answer, match):
    model = Wrapped(lambda m, x: m.x(x), x=nn.Sequential(nn.Linear(6, 4)))
    dense = bits(model)
    with pytest.raises(InvalidInputError, match=match):
        sparsify_model(model, torch.randn(1, 30, 6), sparsity=0.5, layer_solver=lambda x, w, b, goal: answer(w, b))
    assert_bits(model, dense)


def test_budgets():
    model = mlp(8, 12, 5)
    dense, x = copy.deepcopy(model), torch.randn(2, 80, 8)
    report = fast(model, x, relative_error=0.2)
    for layer in report.layers:
        assert 0 < layer.relative_error <= 0.2 * (1 + 1e-5)
        assert 0 < layer.n_kept < layer.n_weights
        assert layer.gap is not None
    with torch.no_grad():
        error = relative(model(x.flatten(0, 1)), dense(x.flatten(0, 1)))
    assert report.layers[1].output_error == pytest.approx(error, rel=1e-3)


@pytest.mark.parametrize("strict", [True, False])
def test_budgets_that_sparse_inputs_cannot_keep(strict):
    model, x = mlp(8, 12, 5), torch.randn(2, 80, 8)
    dense = copy.deepcopy(model)
    run = functools.partial(fast, model, x, relative_error=0.01, goals={"0": 0.9}, strict=strict)
    if strict:
        with pytest.raises(InfeasibleBudgetError, match="layer '2': ") as caught:
            run()
        assert caught.value.least_relative_error > 0.01
        assert_bits(model, bits(dense))
        return
    last = run().layers[1]
    assert last.status == "budget unattainable"
    assert last.relative_error > 0.01
    assert last.note == f"the least attainable relative error is {last.relative_error:.4g}" or "least" in last.note
    with torch.no_grad():
        found, wanted = model(x.flatten(0, 1)), dense(x.flatten(0, 1))
        plain = model[:2](x.flatten(0, 1)) @ dense[2].weight.T + dense[2].bias
    assert last.output_error == pytest.approx(relative(found, wanted), rel=1e-3)
    assert relative(found, wanted) < relative(plain, wanted)


# ---- the model: modes, dtypes, copies


def test_train_mode_is_told_and_put_back_module_by_module():
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 4))
    model[1].eval()
    before, stats = [module.training for module in model.modules()], bits(model[1])
    with pytest.warns(UserWarning, match="train mode") as caught:
        fast(model, torch.randn(2, 40, 6), sparsity=0.5, exclude="4")
    assert caught[0].filename == __file__
    assert [module.training for module in model.modules()] == before
    assert torch.equal(model[1].running_mean, stats["running_mean"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quick(model.eval(), torch.randn(2, 40, 6), sparsity=0.5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_come_back_in_their_dtype(dtype):
    model = mlp(8, 12, 5).to(dtype)
    report = fast(model, torch.randn(2, 60, 8, dtype=dtype), sparsity=0.5)
    assert {value.dtype for value in model.state_dict().values()} == {dtype}
    assert nonzeros(model, "0.weight", "2.weight") == report.n_kept == 78
    with torch.no_grad():
        assert torch.isfinite(model(torch.randn(3, 8, dtype=dtype))).all()


@pytest.mark.parametrize("mode", ["sequential", "parallel"])
def test_a_copy_is_made_sparse_where_the_model_is_to_stay(mode):
    model, found = mlp(6, 8, 4), []
    dense, x = bits(model), torch.randn(2, 40, 6)
    report = fast(model, x, sparsity=0.5, mode=mode, inplace=False)
    assert_bits(model, dense)
    assert report.model is not model
    assert nonzeros(report.model, "0.weight", "2.weight") == 40
    assert all(parameter.requires_grad for parameter in report.model.parameters())
    found = bits(report.model)
    fast(model, x, sparsity=0.5, mode=mode)
    assert_bits(model, found)


def test_identities_of_parameters_and_their_gradients_stay():
    model = mlp(6, 8, 4)
    model(torch.randn(5, 6)).sum().backward()
    model[0].bias.requires_grad_(False)
    before = {name: (p, p.grad, p.requires_grad) for name, p in model.named_parameters()}
    fast(model, torch.randn(2, 40, 6), sparsity=0.5)
    for name, parameter in model.named_parameters():
        assert before[name] == (parameter, parameter.grad, parameter.requires_grad) or parameter is before[name][0]
        assert parameter.grad is before[name][1]
        assert parameter.requires_grad is before[name][2]
    model(torch.randn(5, 6)).sum().backward()


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu")])
def test_callers_contexts_stay_as_they_are(context):
    model = mlp(6, 8, 4)
    with context():
        modes = (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"))
        report = quick(model, torch.randn(2, 40, 6), sparsity=0.5)
        assert modes == (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"))
    assert report.n_kept == 40
    assert torch.is_grad_enabled()
    model(torch.randn(5, 6)).sum().backward()


def test_what_a_model_does_to_its_batches_stays_in_its_pass():
    a, b, batches = nn.Linear(6, 8), nn.Linear(8, 4), [{"x": torch.randn(40, 6)} for _ in range(2)]
    in_place = Wrapped(lambda self, x: self.b(torch.relu(self.a(x.sub_(1.0)))), a=a, b=b)
    pure = Wrapped(lambda self, x: self.b(torch.relu(self.a(x - 1.0))), a=copy.deepcopy(a), b=copy.deepcopy(b))
    before = copy.deepcopy(batches)
    for model in (in_place, pure):
        quick(model, batches, sparsity=0.5, forward=lambda model, batch: model(batch.pop("x")))
    assert_bits(in_place, bits(pure))
    for batch, wanted in zip(batches, before, strict=True):
        assert torch.equal(batch["x"], wanted["x"])


Pair = collections.namedtuple("Pair", "x y")


@dataclasses.dataclass
class Fields(collections.OrderedDict):
    x: object = None
    late: object = dataclasses.field(init=False)


@pytest.mark.parametrize("kind", [tuple, list, Pair._make])
@pytest.mark.parametrize("array", [torch.clone, lambda x: x.numpy().copy()])
def test_copies_of_batches(kind, array):
    x = torch.ones(3)
    given = {"pair": kind([array(x), 3]), "count": collections.Counter(a=2), "fields": Fields(x=array(x))}
    given["fields"]["x"] = given["fields"].x
    found = copied(given)
    assert found is not given and type(found["pair"]) is type(given["pair"])
    assert found["count"] == {"a": 2}
    for part in (found["pair"][0], found["fields"].x, found["fields"]["x"]):
        part[:] = 0.0
    for part in (given["pair"][0], given["fields"].x, given["fields"]["x"]):
        assert (part == 1.0).all()


def test_the_number_of_threads_changes_no_bit():
    found = []
    for n_threads in (1, 2):
        torch.manual_seed(1)
        model = Wrapped(
            lambda m, x: m.fc(torch.relu(m.bn(m.conv(x))).flatten(1)),
            conv=nn.Conv2d(8, 8, 3, groups=8, bias=False), bn=randomized(nn.BatchNorm2d(8)), fc=nn.Linear(8 * 9, 6),
        )  # fmt: skip
        fast(model, torch.randn(2, 30, 8, 5, 5), sparsity=0.6, n_threads=n_threads)
        found.append(bits(model))
    assert_bits(model, found[0])


# ---- the report


def test_reports_go_through_json():
    model = mlp(8, 12, 5)
    report = fast(
        model, torch.randn(2, 60, 8), sparsity=0.5, goals={"0": {"sparsity": np.float64(0.25)}, "2": 1}, exclude="0"
    )
    again = NetworkReport.from_json(report.to_json())
    assert again == report
    assert again.model is None
    assert again.options["goals"] == {"0": {"sparsity": 0.25}, "2": 1.0}
    assert "excluded" in report.table()


def test_no_terminal_no_progress_bar(capfd):
    quick(mlp(6, 8, 4), torch.randn(2, 40, 6), sparsity=0.5)
    assert capfd.readouterr() == ("", "")
    quick(mlp(6, 8, 4), torch.randn(2, 40, 6), sparsity=0.5, progress=True)
    assert "layer" in capfd.readouterr().err


# ---- bad input


def test_activations_that_are_no_numbers_name_the_layer():
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x):
            return self.second(torch.log(self.first(x)))

    model = Broken().eval()
    dense = bits(model)
    for mode in ("sequential", "parallel"):
        with pytest.raises(InvalidInputError, match="inputs of layer 'second' hold NaN"):
            fast(model, torch.randn(2, 40, 6), sparsity=0.5, include="second", mode=mode)
        assert_bits(model, dense)
    with torch.no_grad():
        model.first.weight[1, 2] = math.nan
    with pytest.raises(InvalidInputError, match="layer 'first'"):
        fast(model, torch.randn(2, 40, 6), sparsity=0.5)


@pytest.mark.parametrize(
    ("batches", "error", "match"),
    [
        ([], InvalidInputError, "batches holds none"),
        (iter([]), InvalidInputError, "had been used up"),
        (None, InvalidInputError, "must be an iterable of batches"),
        (3, InvalidInputError, "must be an iterable of batches"),
        ([np.zeros((5, 6), np.float32)], InvalidInputError, "must hold tensors.*ndarray.*forward="),
        ({"x": 1}, InvalidInputError, "got a mapping: is it one batch"),
        (["x"], InvalidInputError, "must hold tensors.*str"),
        ([torch.randn(5, 7)], RuntimeError, "shapes"),
    ],
)
def test_batches_that_are_none(batches, error, match):
    model = mlp(6, 8, 4)
    dense = bits(model)
    with pytest.raises(error, match=match):
        fast(model, batches, sparsity=0.5)
    assert_bits(model, dense)


def test_a_generator_of_batches_is_gone_through_once():
    report = quick(mlp(6, 8, 4), (torch.randn(20, 6) for _ in range(3)), sparsity=0.5)
    assert report.n_kept == 40


def test_labels_among_the_batches():
    model, pairs = mlp(6, 8, 4), [(torch.randn(20, 6), torch.zeros(20)) for _ in range(2)]
    with pytest.raises(TypeError) as caught:
        fast(model, pairs, sparsity=0.5)
    assert "forward=lambda model, batch: model(batch[0])" in caught.value.__notes__[0]
    report = quick(model, pairs, sparsity=0.5, forward=lambda model, batch: model(batch[0]))
    assert report.n_kept == 40


def test_batches_of_any_type_with_a_forward():
    class Batch:
        def __init__(self):
            self.x = torch.randn(20, 6)

    report = quick(mlp(6, 8, 4), [Batch(), Batch()], sparsity=0.5, forward=lambda model, batch: model(batch.x))
    assert report.n_kept == 40


def old_weight_norm(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model[0] = nn.utils.weight_norm(model[0])


def new_weight_norm(model):
    nn.utils.parametrizations.weight_norm(model[0])


def pruned(model):
    nn.utils.prune.random_unstructured(model[0], "weight", 0.5)


def quantized(model):
    import torch.ao.nn.qat as qat
    from torch.ao.quantization import default_qconfig

    model[0] = qat.Linear(6, 8, qconfig=default_qconfig)


@pytest.mark.parametrize("change", [old_weight_norm, new_weight_norm, pruned, quantized])
def test_layers_whose_weights_are_computed_are_refused_by_name(change):
    model, x = mlp(6, 8, 4), torch.randn(2, 40, 6)
    change(model)
    model.eval()
    dense = bits(model)
    with pytest.raises(UnsupportedError, match="layer '0': "):
        fast(model, x, sparsity=0.5)
    assert_bits(model, dense)
    if change in (new_weight_norm, quantized):  # torch cannot copy the others
        report = quick(model, x, sparsity=0.5, exclude="0")
        assert [(layer.name, layer.n_kept) for layer in report.layers] == [("2", 16)]


def test_weights_on_the_meta_device_are_refused():
    with torch.device("meta"):
        model = mlp(6, 8, 4)
    with pytest.raises(InvalidInputError, match="0.weight is on the meta device"):
        fast(model, torch.randn(2, 40, 6), sparsity=0.5)


def test_weights_made_in_inference_mode_are_refused():
    with torch.inference_mode():
        model = mlp(6, 8, 4)
    with pytest.raises(InvalidInputError, match="0.weight was made in torch.inference_mode"):
        fast(model, torch.randn(2, 40, 6), sparsity=0.5)
    assert quick(model, torch.randn(2, 40, 6), sparsity=0.5, inplace=False).n_kept == 40


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.jit
def test_compiled_and_scripted_modules_are_refused_by_name():
    model = mlp(6, 8, 4)
    with pytest.raises(UnsupportedError, match="model is compiled: give the model before torch.compile"):
        fast(torch.compile(model), torch.randn(2, 40, 6), sparsity=0.5)
    model[2] = torch.jit.trace(model[2], torch.randn(2, 8))
    with pytest.raises(UnsupportedError, match="module '2' is a ScriptModule"):
        fast(model, torch.randn(2, 40, 6), sparsity=0.5, exclude="2")


def test_models_that_cannot_be_copied_are_refused_and_need_no_copy_in_parallel():
    model, x = mlp(6, 8, 4), torch.randn(2, 40, 6)
    model.last = model(x[0])  # computed, with a gradient
    with pytest.raises(UnsupportedError, match='model cannot be copied .* ask for mode="parallel"'):
        fast(model, x, sparsity=0.5)
    assert quick(model, x, sparsity=0.5, mode="parallel").n_kept == 40


class Noisy(nn.Linear):
    def forward(self, x):
        return super().forward(x) * 2


def test_a_layer_of_another_forward_is_refused_by_name():
    model = nn.Sequential(nn.Linear(6, 8), Noisy(8, 4)).eval()
    with pytest.raises(UnsupportedError, match="layer '1': Noisy.forward must return"):
        fast(model, torch.randn(2, 40, 6), sparsity=0.5)


@pytest.mark.parametrize("model", [nn.Sequential(nn.ReLU()), nn.Embedding(4, 3), nn.LayerNorm(6)])
def test_models_without_layers_are_refused(model):
    with pytest.raises(InvalidInputError, match="no layers that can be made sparse"):
        fast(model.eval(), torch.randn(2, 5, 6), sparsity=0.5, forward=lambda model, batch: batch)


def test_other_objects_are_no_models():
    with pytest.raises(InvalidInputError, match="must be a torch.nn.Module, got function"):
        fast(lambda x: x, torch.randn(2, 5, 6), sparsity=0.5)


def test_a_model_that_is_a_single_layer():
    model = nn.Linear(6, 4).eval()
    report = fast(model, torch.randn(2, 40, 6), sparsity=0.5)
    assert nonzeros(model, "weight") == report.n_kept == 12


def test_functions_unknown_to_the_trace_stay_where_they_are():
    """Max-pooling, GLU and a normalisation over features: their layers are identity, and the model is as reported."""
    model = Wrapped(
        lambda m, x: m.fc(m.norm(nn.functional.glu(nn.functional.max_pool2d(m.conv(x), 2), 1).flatten(1))),
        conv=nn.Conv2d(1, 6, 3), norm=nn.LayerNorm(12), fc=nn.Linear(12, 5),
    )  # fmt: skip
    report = check_reported(model, torch.randn(2, 40, 1, 6, 6), sparsity=0.4)
    assert [layer.activation for layer in report.layers] == ["identity", "identity"]


def test_wrong_data_behind_a_layer_leave_the_model_as_it_was():
    class Breaks(nn.Module):
        def forward(self, x):
            return x / 0.0

    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), Breaks(), nn.Linear(8, 3)).eval()
    before = bits(model)
    with pytest.raises(InvalidInputError, match="layer '3' hold NaN"):
        fast(model, [torch.randn(40, 6)], sparsity=0.5)
    assert_bits(model, before)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.MultiheadAttention])
def test_models_run_under_autocast(kind):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(8, 8)
            self.second = kind(8, 8, batch_first=True) if kind is nn.LSTM else kind(8, 2, batch_first=True)

        def forward(self, x):
            h = self.first(x)
            return self.second(h)[0] if isinstance(self.second, nn.LSTM) else self.second(h, h, h)[0]

    def forward(model, batch):
        with torch.autocast("cpu", torch.bfloat16):
            return model(batch)

    report = fast(Model().eval(), [torch.randn(10, 6, 8)], sparsity=0.5, forward=forward)
    assert report.sparsity == 0.5


@pytest.mark.parametrize("allocation", ["uniform", "error"])
def test_zeros_that_are_there_already_are_told(allocation):
    model, batches = mlp(20, 30, 10), [torch.randn(200, 20)]
    fast(model, batches, sparsity=0.8)
    before = bits(model)
    report = fast(model, batches, sparsity=0.5, allocation=allocation)
    assert_bits(model, before)
    assert report.sparsity == 0.8
    assert report.n_kept == nonzeros(model, "0.weight", "2.weight")
