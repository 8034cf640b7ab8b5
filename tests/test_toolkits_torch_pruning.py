"""Importance for Torch-Pruning: scores of channels from group programs, in groups and pruners of the real package."""

from __future__ import annotations

import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")
tp = pytest.importorskip("torch_pruning")

from torch import nn  # noqa: E402

from sisopt import Sparsity  # noqa: E402
from sisopt.adapters.toolkits.channel_scores import group_scores  # noqa: E402
from sisopt.adapters.toolkits.torch_pruning import SisoptImportance  # noqa: E402

pytestmark = pytest.mark.usefixtures("seeded_torch")


def perceptron():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 5))


class Convolutional(nn.Module):
    """Batch normalisation, a residual addition, depthwise and grouped convolutions, a flattened image."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.depthwise, self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 8, 1, groups=2)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.hidden, self.head = nn.Linear(6 * 36, 10), nn.Linear(10, 4)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(x + self.grouped(self.depthwise(x)))
        x = torch.relu(self.up(x)).flatten(1)
        return self.head(torch.relu(self.hidden(x)))


def groups_of(model, example, ignored):
    return list(tp.DependencyGraph().build_dependency(model, example).get_all_groups(ignored_layers=ignored))


def test_channels_that_say_nothing_new_score_least():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((500, 6))
    X[:, 4] = 3.0  # constant: the bias does what it can do
    W = rng.standard_normal((10, 6))
    W[:, 1] = 0
    b = np.zeros(10)
    names, scores = group_scores(X, W, b, 1, np.arange(6), Sparsity(0.5))
    assert list(names) == list(range(6))
    assert scores[1] < 0.1 and scores[4] < 1e-6
    assert set(np.argsort(scores)[:2]) == {1, 4}
    assert (scores > 1).sum() == 3 and scores.max() == 2.0
    for scale in (1e-3, 1e3):  # what one layer scales, the next may undo
        X[:, 0], W[:, 0] = X[:, 0] * scale, W[:, 0] / scale
        _, again = group_scores(X, W, b, 1, np.arange(6), Sparsity(0.5))
        assert np.array_equal(np.argsort(again), np.argsort(scores))
        X[:, 0], W[:, 0] = X[:, 0] / scale, W[:, 0] * scale


def test_groups_of_several_columns_and_of_rows():
    rng = np.random.default_rng(1)
    X, W = rng.standard_normal((300, 12)), rng.standard_normal((6, 12))
    W[:, 4:8] = 0
    names, scores = group_scores(X, W, None, 1, np.array([7, 2, 5]), Sparsity(0.3))  # a kernel of 4 taps
    assert list(names) == [2, 5, 7]
    assert scores[0] == scores.min() < 0.2
    W[3] = 0
    names, scores = group_scores(X, W, None, 0, np.arange(6), Sparsity(0.5))
    assert len(names) == 6 and scores[3] == scores.min() < 0.01


def test_a_group_gets_a_score_for_every_channel_of_its_root():
    model, inputs = perceptron(), torch.randn(200, 8)
    importance = SisoptImportance(model, inputs.split(50))
    assert model.training and not any(module._forward_pre_hooks for module in model.modules())
    (second, first) = groups_of(model, inputs[:2], [model[4]])
    for group, n in ((first, 16), (second, 12)):
        scores = importance(group)
        assert scores.shape == (n,) and scores.dtype == torch.float32 and scores.isfinite().all()
        assert torch.equal(scores, SisoptImportance(model, inputs.split(200))(group))
    graph = tp.DependencyGraph().build_dependency(model, inputs[:2])
    some = graph.get_pruning_group(model[0], tp.prune_linear_out_channels, idxs=[2, 6, 9])
    assert importance(some).tolist() == pytest.approx(importance(first)[[2, 6, 9]].tolist())


def test_neurons_that_no_layer_reads_are_scored_where_they_are_written():
    model, inputs = nn.Sequential(nn.Linear(8, 6)), torch.randn(100, 8)
    with torch.no_grad():
        model[0].weight[2] = 0
    (group,) = groups_of(model, inputs[:2], [])
    scores = SisoptImportance(model, [inputs])(group)
    assert scores.shape == (6,) and scores.argmin() == 2


def test_a_dead_channel_and_a_copy_of_another_go_first():
    model, inputs = perceptron(), torch.randn(400, 8)
    with torch.no_grad():
        model[0].bias[:8] = -100.0  # never above zero
    tp.pruner.BasePruner(
        model,
        inputs[:2],
        importance=SisoptImportance(model, [inputs]),
        pruning_ratio=0.5,
        ignored_layers=[model[2], model[4]],
    ).step()
    assert model[0].out_features == 8 and (model[0].bias > -50).all()


def test_less_is_lost_than_by_magnitude():
    lost = {}
    for name in ("sisopt", "magnitude"):
        torch.manual_seed(0)
        model, inputs = perceptron().eval(), torch.randn(400, 8)
        with torch.no_grad():
            model[0].weight[::2] *= 4  # large neurons that the next layer hardly reads
            model[0].bias[::2] *= 4
            model[2].weight[:, ::2] /= 40
            dense = model(inputs)
        chosen = SisoptImportance(model, [inputs]) if name == "sisopt" else tp.importance.GroupMagnitudeImportance()
        options = {"pruning_ratio": 0.5, "ignored_layers": [model[2], model[4]]}
        tp.pruner.BasePruner(model, inputs[:2], importance=chosen, **options).step()
        with torch.no_grad():
            lost[name] = float((model(inputs) - dense).norm())
    assert lost["sisopt"] < 0.5 * lost["magnitude"]


@pytest.mark.parametrize("global_pruning", [False, True])
def test_a_pruner_takes_it_in_steps(global_pruning):
    model, images = Convolutional(), torch.randn(20, 1, 3, 3)
    n_weights = sum(p.numel() for p in model.parameters())
    pruner = tp.pruner.BasePruner(
        model, images[:2], importance=SisoptImportance(model, [(images,)], max_samples=100), pruning_ratio=0.5,
        iterative_steps=2, global_pruning=global_pruning, ignored_layers=[model.head],
    )  # fmt: skip
    pruner.step()
    pruner.step()
    assert model(images).shape == (20, 4)
    assert sum(p.numel() for p in model.parameters()) < 0.5 * n_weights
    assert model.norm.num_batches_tracked == 0  # as scores were made in eval mode


def test_a_missing_package_is_named_with_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    monkeypatch.delitem(sys.modules, "sisopt.adapters.toolkits.torch_pruning")
    with pytest.raises(ModuleNotFoundError, match=r'pip install "sisopt\[torch-pruning\]"'):
        import sisopt.adapters.toolkits.torch_pruning  # noqa: F401
