"""Forward passes that stop at layers: held or replayed they give the same, and nothing of them stays."""

from __future__ import annotations

import warnings
from contextlib import contextmanager

import pytest

torch = pytest.importorskip("torch")

import numpy as np  # noqa: E402
from torch import nn  # noqa: E402

from sisopt.adapters.torch import sparsify_model  # noqa: E402
from sisopt.adapters.torch.forwards import Passes  # noqa: E402

pytestmark = pytest.mark.usefixtures("seeded_torch")


class Net(nn.Module):
    """Layers called in the order that a batch asks for."""

    def __init__(self, n_layers=4, width=6):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(n_layers))
        self.n_forwards = 0

    def forward(self, x, order=None):
        self.n_forwards += 1
        for number in range(len(self.layers)) if order is None else order:
            x = torch.relu(self.layers[number](x))
        return x


class Contexts(Net):
    """Runs its layers in a context of torch."""

    def __init__(self, context):
        super().__init__()
        self.context = context

    def forward(self, x):
        with self.context():
            return super().forward(x)


def passes_of(model, batches, *, holds):
    modules = dict(model.named_modules())
    return Passes(modules, [lambda batch=batch: model(*batch) for batch in batches], holds)


def inputs_of_all(model, batches, *, holds, change=None, names=None):
    """Return what every layer is given in every batch; each layer is changed before the next is reached."""
    passes = passes_of(model, batches, holds=holds)
    found = []
    try:
        for name in names or [f"layers.{n}" for n in range(len(model.layers))]:
            for number in range(len(batches)):
                stops = passes.reach(name, number, every=False)
                found.append([stop.args[0].clone() for stop in stops])
            if change is not None:
                change(passes.modules[name])
    finally:
        passes.close()
    assert_clean(model)
    return found


def assert_same(found, wanted):
    assert [len(each) for each in found] == [len(each) for each in wanted]
    for a, b in zip(found, wanted, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def assert_clean(*models):
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    assert not torch.is_autocast_enabled("cpu")
    for model in models:
        for module in model.modules():
            assert not module._forward_pre_hooks
            assert not module._forward_hooks


def halve(module):
    with torch.no_grad():
        module.weight.mul_(0.5)


def randn_batches(n=3, width=6):
    return [(torch.randn(5, width),) for _ in range(n)]


@pytest.mark.parametrize("change", [None, halve])
def test_held_and_replayed_passes_give_the_same_bits(change):
    batches = randn_batches()
    found = []
    for holds in (True, False):
        torch.manual_seed(1)
        model = Net()
        found.append(inputs_of_all(model, batches, holds=holds, change=change))
        assert model.n_forwards == len(batches) * (1 if holds else len(model.layers))
    assert_same(*found)


def test_batches_that_call_modules_in_another_order():
    batches = [(torch.randn(5, 6), order) for order in ([0, 1, 2, 3], [3, 1, 0, 2], [2, 3], [])]
    found = []
    for holds in (True, False):
        torch.manual_seed(1)
        found.append(inputs_of_all(Net(), batches, holds=holds, change=halve))
    assert_same(*found)
    assert [len(each) for each in found[0]] == [1, 1, 0, 0] * 2 + [1, 1, 1, 0] * 2


def test_every_call_of_a_module_that_is_called_more_than_once():
    model = Net(2)
    x = torch.randn(5, 6)
    passes = passes_of(model, [(x, [0, 1, 0, 0])], holds=True)
    stops = passes.reach("layers.0", 0, every=True)
    with torch.no_grad():
        h = torch.relu(model.layers[1](torch.relu(model.layers[0](x))))
        wanted = [x, h, torch.relu(model.layers[0](h))]
    assert_same([[stop.args[0] for stop in stops]], [wanted])
    assert_clean(model)


def test_what_a_model_changes_in_place_after_a_call_does_not_reach_earlier_stops():
    class InPlace(Net):
        def forward(self, x):
            x = x.clone()
            for _ in range(2):
                x += self.layers[0](x)
                x.relu_()
            return x

    model, x = InPlace(), torch.randn(5, 6)
    passes = passes_of(model, [(x,)], holds=True)
    first, second = passes.reach("layers.0", 0, every=True)
    assert torch.equal(first.args[0], x)
    with torch.no_grad():
        assert torch.equal(second.args[0], torch.relu(x + model.layers[0](x)))


@contextmanager
def double_by_default():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


CONTEXTS = [
    torch.no_grad,
    torch.enable_grad,
    torch.inference_mode,
    lambda: torch.autocast("cpu", torch.bfloat16),
    lambda: torch.autocast("cpu", torch.float16),
    lambda: torch.device("cpu"),
    lambda: torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
    warnings.catch_warnings,
    double_by_default,
]


@pytest.mark.parametrize("context", CONTEXTS)
def test_contexts_that_a_model_enters_end_with_it(context):
    batches, found = randn_batches(), []
    filters = warnings.filters
    for holds in (True, False):
        torch.manual_seed(1)
        found.append(inputs_of_all(Contexts(context), batches, holds=holds, change=halve))
        assert torch.backends.cuda.flash_sdp_enabled()
        assert torch.get_default_dtype() == torch.float32
        assert warnings.filters is filters
    assert_same(*found)


class Noisy(Net):
    def forward(self, x):
        with torch.random.fork_rng():
            torch.manual_seed(5)
            for layer in self.layers:
                x = torch.relu(layer(x)) + 0.1 * torch.randn(len(x), 6)
            return x + torch.rand(1)


@pytest.mark.parametrize("kind", [Noisy, lambda: Noisy().double()])
def test_random_numbers_are_those_of_the_pass(kind):
    batches, found, state = randn_batches(), [], torch.get_rng_state()
    for holds in (True, False):
        torch.manual_seed(1)
        model = kind()
        batches = [tuple(t.to(model.layers[0].weight.dtype) for t in batch) for batch in batches]
        torch.set_rng_state(state)
        found.append(inputs_of_all(model, batches, holds=holds, change=halve))
        assert torch.equal(torch.get_rng_state(), state)
    assert_same(*found)


def test_between_stops_gradients_are_as_the_caller_has_them():
    model = Contexts(torch.inference_mode)
    for inner in (model, Net()):
        passes = passes_of(inner, randn_batches(), holds=True)
        for number in range(3):
            passes.reach("layers.1", number, every=False)
            assert_clean()
        passes.close()
        assert_clean(inner)


@pytest.mark.parametrize("holds", [True, False])
def test_a_model_that_catches_exceptions(holds):
    class Catching(Net):
        def forward(self, x):
            for layer in self.layers:
                try:
                    x = torch.relu(layer(x))
                except Exception:
                    x = x * 0
            return x

    batches, wanted = randn_batches(), None
    for net in (Net, Catching):
        torch.manual_seed(1)
        found = inputs_of_all(net(), batches, holds=holds)
        assert_same(found, wanted or found)
        wanted = found


@pytest.mark.parametrize("holds", [True, False])
@pytest.mark.parametrize("error", [ValueError("of the model"), KeyboardInterrupt(), SystemExit(3)])
def test_an_exception_of_the_model_propagates_and_leaves_nothing(holds, error):
    class Failing(Net):
        def forward(self, x):
            x = self.layers[0](x)
            if self.n_forwards >= 0 and len(x) == 4:
                raise error
            return super().forward(x)

    model = Failing()
    batches = [(torch.randn(5, 6),), (torch.randn(4, 6),), (torch.randn(5, 6),)]
    passes = passes_of(model, batches, holds=holds)
    for number in range(3):
        passes.reach("layers.0", number, every=False)
    passes.reach("layers.1", 0, every=False)
    with pytest.raises(type(error)) as caught:
        passes.reach("layers.1", 1, every=False)
    assert caught.value is error
    assert_clean(model)
    assert len(passes.reach("layers.1", 2, every=False)) == 1
    passes.close()
    assert_clean(model)


def test_closing_unwinds_held_passes():
    unwound = []

    class Unwinding(Net):
        def forward(self, x):
            try:
                return super().forward(x)
            finally:
                unwound.append(len(x))

    model = Unwinding()
    passes = passes_of(model, [(torch.randn(n, 6),) for n in (2, 3, 4)], holds=True)
    for number in range(3):
        passes.reach("layers.2", number, every=False)
    assert not unwound
    passes.close()
    assert sorted(unwound) == [2, 3, 4]
    passes.close()
    assert len(unwound) == 3
    assert_clean(model)


def test_passes_that_never_began_close():
    passes = passes_of(Net(), randn_batches(), holds=True)
    passes.close()
    passes.reach("layers.0", 2, every=False)
    passes.close()


def bits(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def solved(model, batches, **options):
    return sparsify_model(model, batches, sparsity=0.6, effort="fast", **options)


def halving(inputs, weight, bias, goal):
    """A solver that depends on its inputs."""
    order = np.argsort(np.abs(weight) * np.linalg.norm(inputs, axis=0), axis=None)
    sparse = weight.copy()
    sparse.flat[order[: round(goal.sparsity * weight.size)]] = 0.0
    return sparse, bias


@pytest.mark.parametrize("model_of", [Net, *(lambda c=c: Contexts(c) for c in CONTEXTS)])
def test_max_memory_decides_how_and_changes_no_bit(model_of):
    batches = [torch.randn(40, 6) for _ in range(3)]
    found = []
    for max_memory in (1 << 30, 1):
        torch.manual_seed(1)
        model = model_of().eval()
        before = model.n_forwards
        solved(model, batches, max_memory=max_memory, layer_solver=halving)
        found.append(bits(model))
        assert_clean(model)
        if model_of is Net:
            assert model.n_forwards - before == (3 if max_memory > 1 else 3 * 4)
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])


@pytest.mark.parametrize("error", [RuntimeError("solver"), KeyboardInterrupt()])
@pytest.mark.parametrize("max_memory", [1 << 30, 1])
@pytest.mark.parametrize("mode", ["sequential", "parallel"])
def test_an_exception_of_a_solver_leaves_nothing(error, max_memory, mode):
    def failing(inputs, weight, bias, goal):
        calls.append(1)
        if len(calls) == 2:
            raise error
        return weight * 0, bias

    calls = []
    model = Net()
    model.layers[1].eval()
    training = [module.training for module in model.modules()]
    with pytest.warns(UserWarning, match="train mode"), pytest.raises(type(error)) as caught:
        solved(model, [torch.randn(40, 6)], max_memory=max_memory, mode=mode, layer_solver=failing)
    assert caught.value is error
    assert_clean(model)
    assert training == [module.training for module in model.modules()]
    assert torch.backends.mha.get_fastpath_enabled()
    assert not model.layers[0].weight.any()
    assert model.layers[1].weight.all()
