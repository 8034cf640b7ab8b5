"""What follows a layer in a model's forward pass: found where it is known, identity where it is not."""

from __future__ import annotations

import dataclasses
import weakref

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from sisopt import UnsupportedError, get_activation  # noqa: E402
from sisopt.activations.increasing import CELU, ELU, Softplus  # noqa: E402
from sisopt.activations.piecewise import Clip, LeakyReLU, PReLU, SoftShrink  # noqa: E402
from sisopt.adapters.torch.trace import sites_of, trace  # noqa: E402

pytestmark = pytest.mark.usefixtures("seeded_torch")


class Model(nn.Module):
    """Modules by name, and a forward over them."""

    def __init__(self, forward, **modules):
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self._function = forward

    def forward(self, *args):
        return self._function(self, *args)


def traced(model, *args):
    """Return the sites of a model by name; no hook stays."""
    model.eval()
    with torch.no_grad():
        wanted = model(*(arg.clone() for arg in args))
    sites = trace(model, lambda: model(*(arg.clone() for arg in args)))
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    with torch.no_grad():
        torch.testing.assert_close(model(*args), wanted, rtol=0, atol=0)
    return {site.name: site for site in sites}


def after_linear(function):
    """Return what is found to follow a linear layer that a function is applied to, and that another layer takes up."""
    model = Model(lambda m, x: m.head(function(m.fc(x))), fc=nn.Linear(4, 6), head=nn.Linear(6, 6))
    return traced(model, torch.randn(5, 4))["fc"].activation


def identity():
    return get_activation("identity")


@pytest.mark.parametrize(
    ("function", "wanted"),
    [
        (nn.ReLU(), "relu"),
        (nn.ReLU(inplace=True), "relu"),
        (F.relu, "relu"),
        (F.relu_, "relu"),
        (torch.relu, "relu"),
        (lambda y: y.relu(), "relu"),
        (lambda y: y.relu_(), "relu"),
        (lambda y: F.relu(input=y), "relu"),
        (lambda y: torch.clamp(y, min=0), "relu"),
        (lambda y: y.clamp(0), "relu"),
        (lambda y: y.clamp_min_(0), "relu"),
        (nn.ReLU6(), "relu6"),
        (F.relu6, "relu6"),
        (lambda y: torch.clip(y, 0, 6), "relu6"),
        (nn.Hardtanh(), "hard_tanh"),
        (nn.Hardtanh(-2, 3), Clip(-2.0, 3.0)),
        (lambda y: y.clamp(-0.5, 2), Clip(-0.5, 2.0)),
        (lambda y: y.clamp_max(1), Clip(-float("inf"), 1.0)),
        (nn.LeakyReLU(), LeakyReLU(0.01)),
        (nn.LeakyReLU(0.2, inplace=True), LeakyReLU(0.2)),
        (lambda y: F.leaky_relu(y, negative_slope=0.3), LeakyReLU(0.3)),
        (nn.PReLU(init=0.4), PReLU(0.4000000059604645)),
        (nn.GELU(), "gelu"),
        (nn.GELU(approximate="tanh"), "gelu_tanh"),
        (lambda y: F.gelu(y, approximate="tanh"), "gelu_tanh"),
        (nn.SiLU(), "silu"),
        (nn.Mish(), "mish"),
        (nn.Hardswish(), "hard_swish"),
        (nn.Hardsigmoid(), "hard_sigmoid"),
        (nn.LogSigmoid(), "log_sigmoid"),
        (nn.Softsign(), "softsign"),
        (nn.SELU(), "selu"),
        (nn.ELU(0.5), ELU(0.5)),
        (lambda y: F.elu_(y, 0.5), ELU(0.5)),
        (nn.CELU(2.0), CELU(2.0)),
        (nn.Softplus(2.0), Softplus(2.0)),
        (nn.Softshrink(0.3), SoftShrink(0.3)),
        (nn.Tanh(), "tanh"),
        (torch.tanh, "tanh"),
        (torch.sigmoid, "sigmoid"),
        (lambda y: y.sigmoid_(), "sigmoid"),
        (torch.special.expit, "sigmoid"),
    ],
)
def test_activations_are_found_however_they_are_called(function, wanted):
    wanted = get_activation(wanted)
    assert after_linear(function) == wanted
    y = torch.linspace(-8, 8, 161, dtype=torch.float64)
    with torch.no_grad():
        out = function(y.float().clone())
    torch.testing.assert_close(out.double(), torch.from_numpy(wanted.forward(y.numpy())), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(
    "function",
    [
        lambda y: torch.relu(nn.Dropout(0.5).eval()(y)),
        lambda y: torch.relu(F.dropout(y, 0.3, training=False)),
        lambda y: torch.relu(y.view(-1)).view(-1, 6),
        lambda y: torch.relu(y.reshape(5, 2, 3).permute(2, 0, 1)).permute(1, 2, 0).reshape(5, 6),
        lambda y: torch.relu(y.T.contiguous().t()) if False else torch.relu(y.t().contiguous()).t(),
        lambda y: torch.relu(y.unsqueeze(0).flatten(0, 1).clone()),
        lambda y: torch.relu(y.reshape(y.shape[0], -1)) if y.dim() == 2 and y.dtype == torch.float32 else y,
        lambda y: torch.relu(y.view_as(torch.empty(5, 2, 3))).view(5, 6),
    ],
)
def test_shapes_and_dropout_between_a_layer_and_its_activation_pass(function):
    assert after_linear(function).name == "relu"


def with_bounds(y):
    return torch.clamp(y, min=torch.zeros(6))


def as_bound(y):
    return torch.clamp(torch.zeros(5, 6), min=y)


def as_bound_of_one_entry(y):
    return torch.clamp(torch.ones(5, 6), min=y[:1, :1])


def written_into(y):
    out = torch.zeros(5, 12)
    out[:, :6] = y
    out[:, 6:] = torch.relu(y)
    return out[:, :6] + out[:, 6:]


def overwritten(y):
    y[:, 0] = y[:, 1]
    return torch.relu(y)


def seen_through_a_view(y):
    y.view(-1).mul_(2)
    return torch.relu(y)


def lends_its_shape(y):
    h = torch.ones(30).view_as(y)
    return torch.relu(h) + torch.tanh(y) * 0 + y


def looked_at(y):
    return torch.relu(y) * float(y.detach().abs().max().item())


def read_out(y):
    return torch.relu(y) + torch.from_numpy(y.numpy())


@pytest.mark.parametrize(
    "function",
    [
        lambda y: y,
        lambda y: torch.relu(y) + y,
        lambda y: y + torch.relu(y),
        lambda y: y * torch.sigmoid(y),
        lambda y: torch.relu(y) + torch.tanh(y),
        lambda y: F.glu(torch.cat([y, y], 1)),
        lambda y: torch.cat([torch.relu(half) for half in y.chunk(2, 1)], 1),
        lambda y: torch.relu(y + 1),
        lambda y: torch.relu(y.add_(1)),
        lambda y: torch.relu(y[:, :3]).repeat(1, 2),
        lambda y: F.max_pool1d(y, 2, 1, 0).repeat(1, 2)[:, :6],
        lambda y: F.layer_norm(y, (6,)),
        lambda y: F.relu(F.dropout(y, 1.0, training=True)),
        lambda y: torch.softmax(y, -1),
        lambda y: F.softplus(y, 1.0, 1.0),
        lambda y: F.prelu(y, torch.full((6,), 0.2)),
        lambda y: F.leaky_relu(y, -0.1),
        lambda y: F.hardshrink(y),
        with_bounds,
        as_bound,
        as_bound_of_one_entry,
        written_into,
        overwritten,
        seen_through_a_view,
        lends_its_shape,
        looked_at,
        read_out,
    ],
)
def test_what_is_not_known_for_certain_is_identity(function):
    assert after_linear(function) == identity()


def test_what_the_model_returns_beside_its_activation_is_a_use():
    model = Model(lambda m, x: {"hidden": (y := m.fc(x)), "out": [torch.relu(y)]}, fc=nn.Linear(4, 6))
    assert traced(model, torch.randn(5, 4))["fc"].activation == identity()
    model = Model(lambda m, x: {"out": [torch.relu(m.fc(x))]}, fc=nn.Linear(4, 6))
    assert traced(model, torch.randn(5, 4))["fc"].activation.name == "relu"


def test_attributes_of_a_value_are_no_use_of_it():
    def forward(m, x):
        y = m.conv(x)
        n, channels, *_ = y.shape
        assert y.size(0) == n and y.dim() == 4 and y.is_floating_point() and y.dtype == torch.float32
        assert y.numel() == n * channels * 16 and y.device.type == "cpu" and y.stride()
        return torch.relu(y).reshape(n, -1)

    model = Model(forward, conv=nn.Conv2d(1, 3, 3))
    assert traced(model, torch.randn(2, 1, 6, 6))["conv"].activation.name == "relu"


def test_residual_blocks():
    def forward(m, x):
        y = torch.relu(m.bn1(m.conv1(x)))
        y = m.bn2(m.conv2(y))
        y += m.skip(x)
        return torch.relu(y)

    model = Model(
        forward, conv1=nn.Conv2d(3, 4, 3, padding=1), bn1=nn.BatchNorm2d(4), conv2=nn.Conv2d(4, 4, 3, padding=1),
        bn2=nn.BatchNorm2d(4), skip=nn.Conv2d(3, 4, 1),
    )  # fmt: skip
    sites = traced(model, torch.randn(2, 3, 6, 6))
    found = {name: (site.norm, site.activation.name) for name, site in sites.items()}
    # the sum is known when the last of its layers runs
    assert found == {"conv1": ("bn1", "relu"), "conv2": ("bn2", "identity"), "skip": (None, "relu")}
    assert list(sites) == ["conv1", "conv2", "skip"]


def norm_after(layer, norm, between=lambda y: y, *, inputs, after=torch.relu):
    model = Model(lambda m, x: after(m.norm(between(m.layer(x)))), layer=layer, norm=norm)
    site = traced(model, inputs)["layer"]
    return site.norm, site.activation.name


FOUND, UNFOUND = ("norm", "relu"), (None, "identity")


@pytest.mark.parametrize(
    ("layer", "norm", "between", "shape"),
    [
        (nn.Linear(4, 6), nn.BatchNorm1d(6), lambda y: y, (5, 4)),
        (nn.Linear(4, 6), nn.BatchNorm1d(6), lambda y: y.transpose(1, 2), (3, 5, 4)),
        (nn.Linear(4, 6), nn.BatchNorm1d(6), lambda y: y.transpose(1, 2), (3, 6, 4)),
        (nn.Linear(4, 6), nn.BatchNorm1d(6), lambda y: y.reshape(-1, 6), (3, 5, 4)),
        (nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5), lambda y: F.dropout(y, 0.5, False), (2, 2, 6, 6)),
        (nn.Conv2d(4, 6, 3, groups=2, bias=False), nn.BatchNorm2d(6), lambda y: y, (2, 4, 6, 6)),
        (nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, affine=False), lambda y: y, (2, 4, 6, 6)),
        (nn.ConvTranspose2d(4, 6, 3), nn.BatchNorm2d(6), lambda y: y, (2, 4, 6, 6)),
        (nn.Conv1d(2, 3, 3), nn.SyncBatchNorm(3), lambda y: y, (2, 2, 9)),
        (nn.Conv1d(2, 5, 4), nn.BatchNorm1d(5), lambda y: y.flatten(1), (2, 2, 4)),
    ],
)
def test_batch_norms_by_rows_of_the_matrix_are_found(layer, norm, between, shape):
    assert norm_after(layer, norm, between, inputs=torch.randn(shape)) == FOUND


@pytest.mark.parametrize(
    ("layer", "norm", "between", "shape"),
    [
        (nn.Linear(4, 6), nn.BatchNorm1d(6), lambda y: y, (3, 6, 4)),  # over the tokens, of which there are as many
        (nn.Linear(4, 6), nn.BatchNorm1d(5), lambda y: y, (3, 5, 4)),
        (nn.Linear(4, 6), nn.BatchNorm1d(6), lambda y: y.t().contiguous(), (6, 4)),
        (nn.Conv1d(2, 6, 1), nn.BatchNorm1d(6), lambda y: y.transpose(1, 2), (3, 2, 6)),
        (nn.Conv1d(2, 3, 3), nn.BatchNorm1d(21), lambda y: y.flatten(1), (2, 2, 9)),
        (nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5, track_running_stats=False), lambda y: y, (2, 2, 6, 6)),
        (nn.Conv2d(2, 5, 3, bias=False), nn.BatchNorm2d(5, affine=False), lambda y: y, (2, 2, 6, 6)),
        (nn.Conv2d(2, 5, 3), nn.InstanceNorm2d(5, track_running_stats=True), lambda y: y, (2, 2, 6, 6)),
        (nn.Conv2d(2, 5, 3), nn.GroupNorm(5, 5), lambda y: y, (2, 2, 6, 6)),
        (nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5), lambda y: y * 2, (2, 2, 6, 6)),
    ],
)
def test_other_norms_end_the_search(layer, norm, between, shape):
    assert norm_after(layer, norm, between, inputs=torch.randn(shape)) == UNFOUND


class PlusOne(nn.BatchNorm2d):
    """A normalisation that keeps its scale less one."""

    def forward(self, x):
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight + 1, self.bias, False, 0.1, self.eps)


class WithActivation(nn.BatchNorm2d):
    """A normalisation with an activation of its own."""

    def forward(self, x):
        return F.silu(super().forward(x))


def test_norms_derived_from_torch_are_what_they_do():
    conv, x = nn.Conv2d(2, 5, 3), torch.randn(2, 2, 6, 6)
    assert norm_after(conv, PlusOne(5), inputs=x) == UNFOUND
    assert norm_after(conv, WithActivation(5), inputs=x) == ("norm", "silu")


def test_a_norm_that_several_layers_share_is_part_of_none():
    model = Model(
        lambda m, x: torch.relu(m.bn(m.b(torch.relu(m.bn(m.a(x)))))),
        a=nn.Linear(4, 4, bias=False), b=nn.Linear(4, 4, bias=False), bn=nn.BatchNorm1d(4),
    )  # fmt: skip
    sites = traced(model, torch.randn(5, 4))
    assert [(s.norm, s.activation.name) for s in sites.values()] == [UNFOUND, UNFOUND]


def test_normed_values_that_are_used_twice():
    model = Model(lambda m, x: (y := m.bn(m.conv(x))) + torch.relu(y), conv=nn.Conv1d(2, 3, 3), bn=nn.BatchNorm1d(3))
    site = traced(model, torch.randn(2, 2, 8))["conv"]
    assert (site.norm, site.activation.name) == ("bn", "identity")
    model = Model(lambda m, x: (y := m.conv(x)).sum() + m.bn(y), conv=nn.Conv1d(2, 3, 3), bn=nn.BatchNorm1d(3))
    site = traced(model, torch.randn(2, 2, 8))["conv"]
    assert (site.norm, site.activation.name) == UNFOUND


def test_sites_come_in_the_order_of_their_calls_those_never_called_last():
    model = Model(
        lambda m, x: m.b(m.a(m.a(m.c(x)).relu()).relu()),
        unused=nn.Linear(4, 4), a=nn.Linear(4, 4), b=nn.Linear(4, 4), c=nn.Linear(4, 4),
    )  # fmt: skip
    sites = traced(model, torch.randn(5, 4))
    assert [(site.name, site.n_calls) for site in sites.values()] == [("c", 1), ("a", 2), ("b", 1), ("unused", 0)]
    assert sites["a"].activation == identity()  # what follows differs from call to call, or may


def test_positions_and_sizes_of_the_first_call():
    model = Model(lambda m, x: m.fc(m.conv(x).flatten(1)), conv=nn.Conv2d(1, 2, 3), fc=nn.Linear(32, 4))
    sites = traced(model, torch.randn(7, 1, 6, 6))
    assert (sites["conv"].positions, sites["conv"].input_bytes) == (7 * 16, 7 * 36 * 4)
    assert (sites["fc"].positions, sites["fc"].input_bytes) == (7, 7 * 32 * 4)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_transformer_layers(activation):
    layer = nn.TransformerEncoderLayer(8, 2, 16, activation=activation, batch_first=True).eval()
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        sites = {site.name: site for site in trace(layer, lambda: layer(torch.randn(3, 5, 8)))}
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
    assert {name: site.activation.name for name, site in sites.items()} == {
        "self_attn": "identity", "linear1": activation, "linear2": "identity",
    }  # fmt: skip
    assert all(site.n_calls == 1 for site in sites.values())


def test_modules_inside_of_one_that_is_a_site_are_no_sites():
    attention = nn.MultiheadAttention(8, 2)
    assert list(sites_of(attention, lambda name, module: True)) == [""]
    assert list(sites_of(nn.Sequential(attention, nn.Linear(8, 8)), lambda name, module: True)) == ["0", "1"]


def test_a_refusal_names_the_layer_and_is_not_for_those_left_out():
    model = nn.Sequential(nn.Linear(4, 4), nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)))
    with pytest.raises(UnsupportedError, match="layer '1': .* has a parametrized weight"):
        trace(model, lambda: model(torch.randn(2, 4)))
    sites = trace(model, lambda: model(torch.randn(2, 4)), lambda name, module: name != "1")
    assert [site.name for site in sites] == ["0"]


def test_an_error_of_the_model_leaves_no_hooks():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(5, 4)).eval()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        trace(model, lambda: model(torch.randn(2, 4)))
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_the_trace_does_not_keep_activations_alive():
    alive = []

    def forward(m, x):
        for layer in m.layers:
            x = torch.relu(layer(x))
            alive.append(weakref.ref(x))
        assert sum(ref() is not None for ref in alive) <= 1
        return x

    model = Model(forward, layers=nn.ModuleList(nn.Linear(4, 4) for _ in range(5)))
    trace(model, lambda: model(torch.randn(2, 4)))
    assert len(alive) == 5


def test_what_is_returned_within_an_object_is_a_use():
    @dataclasses.dataclass
    class Out:
        logits: torch.Tensor
        likelihoods: torch.Tensor

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x):
            z = self.linear(x)
            return Out(z, torch.relu(z))

    model, x = Both().eval(), torch.randn(5, 4)
    assert trace(model, lambda: model(x))[0].activation.name == "identity"
    assert trace(model, lambda: None if model(x) else None)[0].activation.name == "identity"  # and nothing returned


def test_what_a_hook_makes_of_an_output_is_a_use():
    model, x = nn.Sequential(nn.Linear(4, 3), nn.Tanh()).eval(), torch.randn(5, 4)
    assert trace(model, lambda: model(x))[0].activation.name == "tanh"
    model[0].register_forward_hook(lambda module, args, output: 5 * output)
    assert trace(model, lambda: model(x))[0].activation.name == "identity"


def test_an_offset_that_two_normalisations_share_stays():
    class Branches(nn.Module):
        def __init__(self, bias):
            super().__init__()
            self.c, self.n, self.m = nn.Conv2d(2, 4, 3, bias=bias), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
            self.d = nn.Conv2d(2, 4, 3)
            self.m.bias = self.n.bias

        def forward(self, x):
            return torch.relu(self.n(self.c(x))) + self.m(self.d(x))

    x = torch.randn(2, 2, 6, 6)
    for bias, norm in ((True, "n"), (False, None)):
        model = Branches(bias).eval()
        assert {site.name: site for site in trace(model, lambda m=model: m(x))}["c"].norm == norm
