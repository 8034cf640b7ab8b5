"""Linear layers in sparse layouts give the outputs of the dense ones; what stays dense is named, with its reason."""

from __future__ import annotations

import copy
import doctest
import importlib
import io

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn.utils import prune  # noqa: E402

from sisopt import InvalidInputError, UnsupportedError  # noqa: E402
from sisopt.adapters.torch import to_semi_structured, to_sparse_bsr, to_sparse_csr  # noqa: E402
from sisopt.adapters.torch.layouts import _is_semi_structured  # noqa: E402

WAYS = {"csr": to_sparse_csr, "bsr": lambda model, **options: to_sparse_bsr(model, 4, **options)}

pytestmark = pytest.mark.usefixtures("seeded_torch")


class Conv1D(nn.Module):
    """As in transformers: a linear layer with its weight as (n_in, n_out)."""

    def __init__(self, nf, nx):
        super().__init__()
        self.nf = nf
        self.weight = nn.Parameter(torch.randn(nx, nf))
        self.bias = nn.Parameter(torch.randn(nf))

    def forward(self, x):
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.shape[:-1], self.nf)


def thin(model, share=0.1, size=4):
    """Leave a share of the blocks of each matrix, at least one."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                rows, columns = parameter.shape[0] // size, parameter.shape[1] // size
                kept = torch.zeros(rows * columns)
                kept[torch.randperm(rows * columns)[: max(1, int(share * rows * columns))]] = 1
                kept = kept.reshape(rows, columns)
                parameter.mul_(kept.repeat_interleave(size, 0).repeat_interleave(size, 1))
    return model.eval()


def mlp():
    return nn.Sequential(nn.Linear(40, 32), nn.ReLU(), nn.Linear(32, 32, bias=False), nn.Tanh(), nn.Linear(32, 8))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", [(7, 40), (1, 40), (40,), (2, 3, 40), (0, 40)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_outputs_stay_the_same(way, shape, dtype):
    model, x = thin(mlp()).to(dtype), torch.randn(shape, dtype=dtype)
    conversion = WAYS[way](model)
    assert list(conversion.changed) == ["0", "2", "4"]
    assert conversion.unchanged == {}
    torch.testing.assert_close(conversion.model(x), model(x))
    strided = torch.randn(*shape[:-1], 80, dtype=dtype)[..., ::2]
    torch.testing.assert_close(conversion.model(strided), model(strided))


@pytest.mark.parametrize("way", WAYS)
def test_the_model_itself_is_changed_only_on_demand(way):
    model = thin(mlp())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    conversion = WAYS[way](model)
    assert conversion.model is not model
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert isinstance(model[0], nn.Linear)
    conversion.model[0].values.zero_()
    assert model[0].weight.any()
    assert WAYS[way](model, inplace=True).model is model
    assert not isinstance(model[0], nn.Linear)


@pytest.mark.parametrize("way", WAYS)
def test_converted_models_are_copied_saved_and_loaded(way):
    model, x = thin(mlp()), torch.randn(5, 40)
    converted = WAYS[way](model).model
    twin = copy.deepcopy(converted)
    with torch.no_grad():
        twin[0].values.mul_(2)
    torch.testing.assert_close(converted(x), model(x))
    file = io.BytesIO()
    torch.save(converted.state_dict(), file)
    file.seek(0)
    twin.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(twin(x), converted(x))
    torch.testing.assert_close(converted.double()(x.double()), model.double()(x.double()))
    dense = model[0].weight
    assert torch.equal(converted[0].weight.to_dense(), dense)
    assert not any(p.requires_grad for p in converted.parameters())


def test_fewer_numbers_are_held():
    model = thin(nn.Sequential(nn.Linear(200, 200)))
    (found,) = to_sparse_csr(model).model
    assert found.values.numel() == model[0].weight.count_nonzero()
    assert 3 * sum(buffer.nbytes for buffer in found.buffers()) < model[0].weight.nbytes


def test_layers_that_stay_dense_are_named_with_their_reasons():
    attention = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model = nn.ModuleDict(
        {
            "sparse": thin(nn.Linear(40, 32)),
            "dense": nn.Linear(40, 32),
            "less": thin(nn.Linear(40, 32), 0.5),
            "odd": thin(nn.Linear(40, 32), 0.1, 2),
            "conv": nn.Conv2d(3, 4, 3),
            "bfloat": thin(nn.Linear(40, 32)).bfloat16(),
            "block": thin(attention),
        }
    )
    csr = to_sparse_csr(model)
    assert csr.changed.keys() == {"sparse", "odd"}
    assert csr.unchanged["dense"] == "dense, 0 % zeros"
    assert "no sparse products for Conv2d" in csr.unchanged["conv"]
    assert "torch.bfloat16 on this cpu" in csr.unchanged["bfloat"]
    assert "without calling" in csr.unchanged["block.linear1"]
    assert "no sparse products for MultiheadAttention" in csr.unchanged["block.self_attn"]
    assert "less" in to_sparse_csr(model, least_sparsity=0.3).changed
    lines = str(csr).splitlines()
    assert len(lines) == len(csr.changed) + len(csr.unchanged)
    assert lines[0].startswith("sparse") and "CSR" in lines[0]
    with torch.no_grad():  # the fast path of these layers reads weights
        x = torch.randn(2, 5, 16)
        torch.testing.assert_close(csr.model["block"](x), model["block"](x))
    with pytest.raises(InvalidInputError, match="sparse: dense, blocks of 16 x 16 do not fit into 32 x 40"):
        to_sparse_bsr(model, 16, least_sparsity=0.01)
    assert to_sparse_bsr(model, 4).unchanged["odd"].endswith("% blocks of zeros")


def test_blocks_that_torch_cannot_multiply_by_are_refused_with_its_words():
    model = thin(mlp())
    try:
        conversion = to_sparse_bsr(model, (4, 2))
    except InvalidInputError as error:  # MKL's
        assert "torch has no such products" in str(error)
    else:
        x = torch.randn(5, 40)
        torch.testing.assert_close(conversion.model(x), model(x))


@pytest.mark.parametrize("way", WAYS)
def test_shared_transposed_and_lone_layers(way):
    layer, x = thin(nn.Linear(16, 16)), torch.randn(3, 16)
    model = nn.Sequential(layer, nn.ReLU(), layer, layer)
    found = WAYS[way](model).model
    assert found[0] is found[2] is found[3] and not isinstance(found[0], nn.Linear)
    torch.testing.assert_close(found(x), model(x))
    torch.testing.assert_close(WAYS[way](layer).model(x), layer(x))
    transposed = thin(nn.Sequential(Conv1D(32, 16)))
    torch.testing.assert_close(WAYS[way](transposed).model(x[None]), transposed(x[None]))


def test_what_cannot_be_converted_is_refused():
    for way in WAYS.values():
        with pytest.raises(InvalidInputError, match=r"0: dense, 0 % (blocks of )?zeros; 2: .*; 4: "):
            way(mlp())
        with pytest.raises(InvalidInputError, match="it has no layers with weights"):
            way(nn.ReLU())
        with pytest.raises(InvalidInputError, match=r"must be a torch.nn.Module, got dict"):
            way({})
        masked = thin(mlp())
        prune.l1_unstructured(masked[0], "weight", 0.5)
        with pytest.raises(UnsupportedError, match=r"layer '0'.*prune.remove"):
            way(masked)
    for blocksize in (0, (4, 4, 4), -1, 2.5):
        with pytest.raises(InvalidInputError, match="blocksize"):
            to_sparse_bsr(thin(mlp()), blocksize)


def two_of_four(shape):
    weight = torch.randn(shape)
    smallest = weight.reshape(-1, 4).abs().topk(2, dim=1, largest=False).indices
    return weight.reshape(-1, 4).scatter(1, smallest, 0.0).reshape(shape)


def test_the_pattern_2_of_4_is_checked():
    weight = two_of_four((32, 64))
    assert _is_semi_structured(weight)
    assert _is_semi_structured(torch.zeros(3, 4))
    weight[5, :4] = torch.tensor([1.0, 0.0, 1.0, 1.0])
    assert not _is_semi_structured(weight)
    assert not _is_semi_structured(two_of_four((4, 8))[:, :6])
    assert not _is_semi_structured(torch.tensor([[0, 0, 1.0, 1.0, 1.0, 1.0, 0, 0], [0, 1.0, 1.0, 1.0, 0, 0, 0, 0]]))


def test_without_a_gpu_2_of_4_is_refused_and_what_is_missing_is_said():
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    with pytest.raises(InvalidInputError, match=r"0: dense, not 2:4.*2: dense, not 2:4"):
        to_semi_structured(model)
    with torch.no_grad():
        model[0].weight.copy_(two_of_four((64, 64)))
    before = model[0].weight.clone()
    with pytest.raises(UnsupportedError, match=r"capability 8.0.*(built without CUDA|finds no GPU|not on it)"):
        to_semi_structured(model)
    assert torch.equal(model[0].weight, before)
    with pytest.raises(InvalidInputError, match="must be a torch.nn.Module"):
        to_semi_structured([])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_2_of_4_gives_the_same_outputs():
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("needs compute capability 8.0")
    model = nn.Sequential(nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 128)).cuda().half().eval()
    with torch.no_grad():
        model[0].weight.copy_(two_of_four((128, 128)))
    conversion = to_semi_structured(model)
    assert list(conversion.changed) == ["0"]
    x = torch.randn(64, 128, device="cuda", dtype=torch.float16)
    torch.testing.assert_close(conversion.model(x), model(x), rtol=1e-2, atol=1e-2)


def test_the_examples_of_the_docstrings_run():
    outcome = doctest.testmod(importlib.import_module("sisopt.adapters.torch.layouts"))
    assert outcome.attempted > 4
    assert not outcome.failed


def test_layers_with_hooks_stay_as_they_are():
    model = nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 20)).eval()
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight[torch.rand(layer.weight.shape) < 0.9] = 0.0
    model[0].register_forward_hook(lambda module, args, output: 2 * output)
    conversion = to_sparse_csr(model)
    assert conversion.unchanged == {"0": "dense, it has hooks or a forward of its own"}
    x = torch.randn(5, 40)
    torch.testing.assert_close(conversion.model(x), model(x))
    assert not any(module.training for module in conversion.model.modules())


def test_a_share_that_is_no_number_is_refused():
    with pytest.raises(InvalidInputError, match="least_sparsity must be"):
        to_sparse_csr(nn.Sequential(nn.Linear(4, 3)), least_sparsity="a")
