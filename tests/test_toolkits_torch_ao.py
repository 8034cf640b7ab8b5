"""A sparsifier of torch.ao.pruning, by sisopt: prepare, calibrate, step, squash."""

from __future__ import annotations

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torch.ao.pruning")

from torch import nn  # noqa: E402
from torch.nn.utils import parametrize  # noqa: E402

import sisopt  # noqa: E402
from sisopt import InvalidInputError, UnsupportedError  # noqa: E402
from sisopt.adapters.toolkits.torch_ao import SisoptSparsifier  # noqa: E402

pytestmark = pytest.mark.usefixtures("seeded_torch")


def network():
    return nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 6))


def zeros(tensor):
    return int((tensor == 0).sum())


def hooks_of(model):
    return sum(len(module._forward_pre_hooks) for module in model.modules())


def test_every_layer_is_made_from_the_dense_networks_inputs_and_outputs():
    model, inputs = network(), torch.randn(300, 12)
    dense = copy.deepcopy(model)
    sparsifier = SisoptSparsifier(0.6)
    sparsifier.prepare(
        model,
        [{"tensor_fqn": "0.weight", "activation": "relu"}, {"tensor_fqn": "2.weight", "sparsity_level": 0.5}],
    )
    for batch in inputs.split(100):
        assert torch.equal(model(batch), dense(batch))
    sparsifier.step()
    sparsifier.squash_mask()
    assert hooks_of(model) == 0 and not parametrize.is_parametrized(model[0])
    assert model.state_dict().keys() == dense.state_dict().keys()
    with torch.no_grad():
        hidden = dense[1](dense[0](inputs)).numpy()
    for number, X, options in (
        (0, inputs.numpy(), {"activation": "relu", "sparsity": 0.6}),
        (2, hidden, {"sparsity": 0.5}),
    ):
        W, b = (t.detach().numpy() for t in (dense[number].weight, dense[number].bias))
        wanted = sisopt.sparsify(X, W, b, **options)
        assert np.array_equal(model[number].weight.detach().numpy(), wanted.weight)
        assert np.array_equal(model[number].bias.detach().numpy(), wanted.bias)


def test_the_defaults_take_all_linear_layers_and_the_mask_is_in_the_state():
    model, inputs = network().to(torch.bfloat16), torch.randn(200, 12, dtype=torch.bfloat16)
    sparsifier = SisoptSparsifier(0.75, effort="fast", max_samples=100)
    sparsifier.prepare(model, None)
    model(inputs)
    sparsifier.step()
    for fqn, number, count in (("0.weight", 0, 180), ("2.weight", 2, 90)):
        assert zeros(sparsifier.state_dict()["state"][fqn]["mask"]) == zeros(model[number].weight) == count
        assert model[number].weight.dtype == torch.bfloat16
    before = model(inputs)
    sparsifier.squash_mask(params_to_keep=("sparsity_level",))
    assert torch.equal(model(inputs), before) and model[0].sparse_params == {"sparsity_level": 0.75}


def test_a_later_step_starts_from_the_dense_network():
    inputs, found = torch.randn(200, 12), []
    model = network()
    for levels in ((0.8,), (0.5, 0.8)):
        twin = copy.deepcopy(model)
        sparsifier = SisoptSparsifier(levels[0], effort="fast")
        sparsifier.prepare(twin, None)
        twin(inputs)
        for level in levels:
            for group in sparsifier.groups:  # as torch's schedulers do
                group["sparsity_level"] = level
            sparsifier.step()
            twin(inputs)
        sparsifier.squash_mask()
        found.append(twin.state_dict())
    assert zeros(found[0]["0.weight"]) == 192
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_a_mask_of_the_configuration_is_kept():
    model, inputs = network(), torch.randn(200, 12)
    mask = torch.ones(20, 12)
    mask[:, :3] = 0
    sparsifier = SisoptSparsifier(0.5, effort="fast")
    sparsifier.prepare(model, [{"tensor_fqn": "0.weight", "mask": mask}])
    model(inputs)
    sparsifier.step()
    sparsifier.step()
    sparsifier.squash_mask()
    assert not model[0].weight[:, :3].any() and zeros(model[0].weight) == 120
    assert zeros(mask) == 60  # the caller's own


def test_other_layers_than_linear_and_patterns():
    model = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, bias=False))
    sparsifier = SisoptSparsifier(effort="fast")
    config = [{"tensor_fqn": "0.weight"}, {"tensor_fqn": "2.weight", "pattern": "2:4", "sparsity_level": None}]
    sparsifier.prepare(model, config)
    model(torch.randn(4, 2, 8, 8))
    sparsifier.step()
    sparsifier.squash_mask()
    assert zeros(model[0].weight) == 72
    assert (model[2].weight.reshape(-1, 4).count_nonzero(dim=1) == 2).all()


def test_what_cannot_be_done_is_said():
    sparsifier, model = SisoptSparsifier(0.5, effort="fast"), network()
    sparsifier.prepare(model, None)
    with pytest.raises(InvalidInputError, match="between prepare"):
        sparsifier.step()
    model[0](torch.randn(50, 12))
    with pytest.warns(UserWarning, match=r"2\.weight stays dense"):
        sparsifier.step()
    sparsifier.squash_mask()
    assert zeros(model[0].weight) == 120 and zeros(model[2].weight) == 0
    refused = network()
    with pytest.raises(UnsupportedError, match=r"0\.bias"):
        SisoptSparsifier().prepare(refused, [{"tensor_fqn": "2.weight"}, {"tensor_fqn": "0.bias"}])
    assert hooks_of(refused) == 0
