"""Pruning in torch's own way, by sisopt: exact zeros, new values, a bias that goes with them, masks that were there."""

from __future__ import annotations

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn.utils import prune  # noqa: E402

import sisopt  # noqa: E402
from sisopt import InvalidInputError, UnsupportedError  # noqa: E402
from sisopt.adapters.toolkits.modules import ModuleSamples, Wanted  # noqa: E402
from sisopt.adapters.toolkits.torch_prune import SisoptPruning  # noqa: E402

pytestmark = pytest.mark.usefixtures("seeded_torch")


def zeros(tensor):
    return int((tensor == 0).sum())


def error(module, inputs, outputs):
    with torch.no_grad():
        return float((module(inputs).float() - outputs).norm() / outputs.norm())


def dense_outputs(module, inputs):
    with torch.no_grad():
        return module(inputs)


def test_weight_and_bias_are_those_of_sparsify():
    linear, inputs = nn.Linear(12, 8), torch.randn(300, 12)
    W, b = (t.detach().numpy().copy() for t in (linear.weight, linear.bias))
    wanted = sisopt.sparsify(inputs.numpy(), W, b, activation="relu", sparsity=0.7)
    SisoptPruning.apply(linear, "weight", inputs, sparsity=0.7, activation="relu")
    assert np.array_equal(linear.weight.detach().numpy(), wanted.weight)
    assert np.array_equal(linear.bias.detach().numpy(), wanted.bias)
    assert not np.array_equal(wanted.bias, b)


def test_what_torch_does_with_pruned_modules_applies():
    linear, inputs = nn.Linear(12, 8), torch.randn(300, 12)
    parameter = linear.weight
    method = SisoptPruning.apply(linear, "weight", inputs, sparsity=0.75, effort="fast")
    assert isinstance(method, SisoptPruning) and prune.is_pruned(linear)
    assert linear.weight_orig is parameter  # an optimizer that holds it goes on
    assert zeros(linear.weight_mask) == zeros(linear.weight) == 72
    twin = copy.deepcopy(linear)
    assert torch.equal(twin(inputs), linear(inputs))
    optimizer = torch.optim.SGD(linear.parameters(), lr=0.1)
    linear(inputs).square().sum().backward()
    optimizer.step()
    linear(inputs)
    assert zeros(linear.weight) == 72 and not torch.equal(linear.weight, twin.weight)
    prune.remove(twin, "weight")
    assert set(twin.state_dict()) == {"weight", "bias"} and zeros(twin.weight) == 72


def test_zeros_of_an_earlier_mask_stay_and_count():
    linear, inputs = nn.Linear(12, 8), torch.randn(300, 12)
    outputs = dense_outputs(linear, inputs)
    prune.random_unstructured(linear, "weight", amount=0.25)
    earlier = linear.weight_mask.clone()
    SisoptPruning.apply(linear, "weight", inputs, sparsity=0.5, outputs=outputs, effort="fast")
    assert zeros(linear.weight) == 48
    assert not linear.weight_mask[earlier == 0].any()
    SisoptPruning.apply(linear, "weight", inputs, sparsity=0.75, outputs=outputs, effort="fast")  # once more
    assert zeros(linear.weight) == 72
    assert error(linear, inputs, outputs) < 0.8


def test_targets_are_dense_outputs_where_inputs_come_from_a_sparse_module():
    first, second = nn.Linear(12, 20), nn.Linear(20, 6)
    inputs = torch.randn(400, 12)
    hidden = dense_outputs(first, inputs)
    outputs = dense_outputs(second, hidden)
    SisoptPruning.apply(first, "weight", inputs, sparsity=0.7)
    by_then, own = dense_outputs(first, inputs), copy.deepcopy(second)
    SisoptPruning.apply(second, "weight", by_then, sparsity=0.3, outputs=outputs)
    SisoptPruning.apply(own, "weight", by_then, sparsity=0.3)
    assert error(second, by_then, outputs) < 0.95 * error(own, by_then, outputs)


def test_a_bias_that_is_pruned_itself_is_held():
    linear, inputs = nn.Linear(12, 8), torch.randn(300, 12) + 1
    prune.l1_unstructured(linear, "bias", amount=3)
    W, b = linear.weight.detach().numpy().copy(), linear.bias.detach().numpy().copy()
    SisoptPruning.apply(linear, "weight", inputs, sparsity=0.5, activation="relu")
    wanted = sisopt.sparsify(inputs.numpy(), W, shift=b, activation="relu", sparsity=0.5)
    assert np.array_equal(linear.bias.detach().numpy(), b) and zeros(linear.bias) == 3
    assert np.array_equal(linear.weight.detach().numpy(), wanted.weight)


@pytest.mark.parametrize(
    ("module", "shape", "kept"),
    [
        (nn.Conv2d(4, 6, 3, padding=1, groups=2, padding_mode="reflect"), (8, 4, 6, 6), 43),
        (nn.ConvTranspose2d(3, 4, 3, stride=2), (8, 3, 5, 5), 43),
        (nn.Conv1d(4, 6, 3, bias=False), (20, 4, 15), 29),
        (nn.Linear(9, 8), (5, 30, 9), 29),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_layers_keep_shape_dtype_and_exact_counts(module, shape, kept, dtype):
    module, inputs = copy.deepcopy(module), torch.randn(shape)
    outputs = dense_outputs(module, inputs)
    module = module.to(dtype)
    smallest = copy.deepcopy(module)
    SisoptPruning.apply(module, "weight", inputs.to(dtype), sparsity=0.6, outputs=outputs, effort="fast")
    prune.l1_unstructured(smallest, "weight", amount=0.6)
    assert module.weight_orig.dtype == module.weight.dtype == dtype
    assert module.weight.numel() - zeros(module.weight) == kept
    assert error(module, inputs.to(dtype), outputs) < error(smallest, inputs.to(dtype), outputs)


def test_a_pattern_holds():
    linear = nn.Linear(16, 8)
    SisoptPruning.apply(linear, "weight", torch.randn(200, 16), pattern="2:4", effort="fast")
    assert (linear.weight.reshape(-1, 4).count_nonzero(dim=1) == 2).all()


def test_refusals_leave_the_module_as_it_is():
    linear, inputs = nn.Linear(12, 8), torch.randn(50, 12)
    before = copy.deepcopy(linear.state_dict())
    with pytest.raises(InvalidInputError, match="name must be 'weight'"):
        SisoptPruning.apply(linear, "bias", inputs, sparsity=0.5)
    with pytest.raises(InvalidInputError, match="sparsity"):
        SisoptPruning.apply(linear, "weight", inputs, sparsity=1.5)
    with pytest.raises(InvalidInputError, match="max_samples"):
        SisoptPruning.apply(linear, "weight", inputs, sparsity=0.5, max_samples=0)
    with pytest.raises(UnsupportedError, match="LayerNorm"):
        SisoptPruning.apply(nn.LayerNorm(12), "weight", inputs, sparsity=0.5)
    assert not prune.is_pruned(linear)
    assert all(torch.equal(before[name], tensor) for name, tensor in linear.state_dict().items())


@pytest.mark.parametrize(
    ("module", "shape"), [(nn.Linear(6, 3), (40, 6)), (nn.Conv2d(2, 4, 3, groups=2), (6, 2, 6, 6))]
)
def test_samples_do_not_depend_on_how_data_are_cut(module, shape):
    data, found = torch.randn(shape), []
    for size in (1, 4, shape[0]):
        samples = ModuleSamples(module, module.weight, module.bias, most=20, seed=3)
        for batch in data.split(size):
            samples.record(module, (batch,), {}, outputs=module(batch))
        assert len(samples) == 20
        found.append((samples._rows, samples.sparse(module.weight, module.bias, Wanted(0.5, effort="fast"))))
    whole = ModuleSamples(module, module.weight, module.bias, most=10**6)
    whole.record(module, (data,), {})
    assert len({tuple(row) for row in whole._rows[0]} & {tuple(row) for row in found[0][0][0]}) == 20
    for rows, (weight, bias, _) in found[1:]:
        assert np.array_equal(rows[0], found[0][0][0])
        assert torch.equal(weight, found[0][1][0]) and torch.equal(bias, found[0][1][1])


def test_modules_without_a_matrix_are_refused():
    with pytest.raises(UnsupportedError, match="Embedding has no weight that can be made sparse here"):
        SisoptPruning.apply(nn.Embedding(5, 3), "weight", torch.zeros(4, dtype=torch.long), sparsity=0.5)


@pytest.mark.parametrize("shape", [(300, 10), (200, 12), (100, 10)])
def test_outputs_that_are_not_of_the_inputs_are_refused(shape):
    layer = nn.Linear(20, 10)
    with pytest.raises(InvalidInputError, match=r"outputs must hold those of the inputs, \(200, 10\) in rows"):
        SisoptPruning.apply(layer, "weight", torch.randn(200, 20), outputs=torch.randn(shape), sparsity=0.5)
