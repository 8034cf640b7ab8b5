"""Kinds of torch modules: programs times drawn inputs are the module's outputs; what is assigned is what it uses."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402
from torch.nn.utils import parametrizations, prune, rnn, spectral_norm, weight_norm  # noqa: E402

from sisopt import UnsupportedError  # noqa: E402
from sisopt.adapters.torch.kinds import kind_of  # noqa: E402

close = {"rtol": 1e-5, "atol": 2e-6}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def randn(*shape):
    return torch.randn(*shape)


def inputs_of(module, *args, **kwargs):
    """Return the inputs of every program at all positions."""
    kind = kind_of(module)
    call = kind.call(module, args, kwargs)
    everywhere = torch.arange(call.n_positions)
    return [call.inputs(number, everywhere) for number in range(len(kind.programs(module)))]


def preactivations(module, inputs):
    """Return X W' + b of every program."""
    found = []
    for x, program in zip(inputs, kind_of(module).programs(module), strict=True):
        z = x.float() @ torch.from_numpy(program.weight).T
        found.append(z if program.bias is None else z + torch.from_numpy(program.bias))
    return found


def check_drawn(module, *args, **kwargs):
    """Drawn positions are the rows of all positions, in the order drawn, repeated ones too."""
    kind = kind_of(module)
    call, inputs = kind.call(module, args, kwargs), inputs_of(module, *args, **kwargs)
    at = torch.randint(call.n_positions, (17,))
    for number, everywhere in enumerate(inputs):
        assert torch.equal(call.inputs(number, at), everywhere[at])


def check_programs(module):
    """Programs cover each weight once, are copies, and round-trip bit for bit."""
    kind, before = kind_of(module), {name: p.clone() for name, p in module.named_parameters()}
    programs = kind.programs(module)
    for program in programs:
        assert program.weight.dtype == np.float32 and program.weight.ndim == 2 and program.weight.flags.c_contiguous
        assert program.bias is None or program.bias.shape == program.weight.shape[:1]
    covered = {name for program in programs for name in program.parameters}
    assert sum(program.weight.size for program in programs) == sum(before[name].numel() for name in covered)
    labels = [program.label for program in programs]
    assert len(set(labels)) == len(labels) and (labels != [""]) == (len(labels) > 1 or "l0" in labels)
    for number, program in enumerate(programs):
        kind.assign(module, number, program.weight, program.bias)
    assert all(torch.equal(p, before[name]) for name, p in module.named_parameters())
    for program in programs:
        program.weight[:] = 7
    assert all(torch.equal(p, before[name]) for name, p in module.named_parameters())


def assign_changed(module):
    """Give every program a new sparse matrix and a new bias; return them."""
    kind, new = kind_of(module), []
    for number, program in enumerate(kind.programs(module)):
        weight = torch.randn(program.weight.shape).numpy() * (torch.rand(program.weight.shape) < 0.5).numpy()
        bias = None if program.bias is None else torch.randn(len(program.bias)).numpy()
        weight.setflags(write=False)
        kind.assign(module, number, weight, bias)
        new.append((weight, bias))
    for program, (weight, bias) in zip(kind.programs(module), new, strict=True):
        np.testing.assert_array_equal(program.weight, weight)
        if bias is not None:
            np.testing.assert_allclose(program.bias, bias, **close)


def check_affine(module, *args, channels=-1, **kwargs):
    """Check all claims for a module whose output is its groups' X W' + b side by side, at all positions in order."""
    module.eval()
    check_programs(module)
    check_drawn(module, *args, **kwargs)
    inputs = inputs_of(module, *args, **kwargs)
    for _ in range(2):
        output = module(*args, **kwargs).movedim(channels, -1)
        torch.testing.assert_close(
            torch.cat(preactivations(module, inputs), dim=1), output.reshape(-1, output.shape[-1]), **close
        )
        assign_changed(module)


# Linear layers


@pytest.mark.parametrize("shape", [(5,), (4, 5), (2, 3, 5), (2, 3, 2, 5)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_layers(shape, bias):
    check_affine(nn.Linear(5, 3, bias=bias), randn(*shape))
    check_affine(nn.Linear(5, 3, bias=bias), input=randn(*shape))


class Conv1D(nn.Module):
    """As in transformers.pytorch_utils."""

    def __init__(self, nf, nx):
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf)), nn.Parameter(torch.randn(nf))

    def forward(self, x):
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(x.size()[:-1] + (self.nf,))


def test_linear_layers_that_keep_their_weight_transposed():
    check_affine(Conv1D(4, 3), randn(2, 5, 3))
    check_affine(Conv1D(4, 3), x=randn(2, 5, 3))


def test_padding_of_tokens():
    padding = torch.tensor([[True, True, False], [True, False, False]])
    linear, tokens = nn.Linear(4, 2), randn(2, 3, 4)
    kind = kind_of(linear)
    real = kind.call(linear, (tokens,), {}).kept(padding)
    assert torch.equal(tokens.reshape(-1, 4)[real], tokens[padding])
    assert kind.call(linear, (randn(7, 4),), {}).kept(padding) is None
    assert kind.call(linear, (randn(2, 5, 4),), {}).kept(padding) is None
    assert kind.call(linear, (randn(2, 7, 3, 4),), {}).kept(padding) is None
    assert kind.call(linear, (randn(2, 3, 3, 4),), {}).kept(padding) is None  # tokens of heads, or heads of tokens?
    heads = randn(2, 3, 7, 4)  # of every token
    real = kind.call(linear, (heads,), {}).kept(padding)
    assert torch.equal(heads.reshape(-1, 4)[real], heads[padding].reshape(-1, 4))
    assert kind.call(nn.Linear(3, 2), (randn(2, 3),), {}).kept(padding) is None
    line, image = nn.Conv1d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 1)
    assert torch.equal(kind_of(line).call(line, (randn(2, 2, 3),), {}).kept(padding), padding.reshape(-1))
    assert kind_of(line).call(line, (randn(2, 2, 4),), {}).kept(padding) is None
    assert kind_of(image).call(image, (randn(2, 2, 2, 3),), {}).kept(padding) is None


# Convolutions

CONVOLUTIONS = [
    (1, {"kernel_size": 3}),
    (1, {"kernel_size": 4, "padding": "same", "dilation": 3}),
    (1, {"kernel_size": 3, "padding": "valid", "stride": 3}),
    (1, {"kernel_size": 5, "stride": 2, "padding": 4, "dilation": 2, "groups": 2}),
    (2, {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0), "dilation": (1, 2)}),
    (2, {"kernel_size": 3, "padding": 2, "stride": 3, "groups": 4, "bias": False}),
    (2, {"kernel_size": (2, 3), "padding": "same", "groups": 2}),
    (2, {"kernel_size": (4, 1), "padding": (2, 0)}),
    (2, {"kernel_size": 1}),
    (3, {"kernel_size": (2, 3, 2), "stride": (1, 2, 2), "padding": (0, 1, 1), "dilation": (2, 1, 1)}),
    (3, {"kernel_size": 2, "groups": 2, "padding": "same"}),
]
SIZES = {1: (11,), 2: (7, 6), 3: (5, 4, 6)}


@pytest.mark.parametrize(("dims", "settings"), CONVOLUTIONS)
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_convolutions(dims, settings, mode):
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    module = kind(4, 8, padding_mode=mode, **settings)
    check_affine(module, randn(2, 4, *SIZES[dims]), channels=1)
    check_affine(module, randn(4, *SIZES[dims]), channels=0)


def test_columns_of_a_convolution_are_its_weight_unfolded():
    module = nn.Conv2d(3, 4, (2, 3))
    (program,) = kind_of(module).programs(module)
    np.testing.assert_array_equal(program.weight, module.weight.reshape(4, -1).numpy())


def test_convolutions_of_memory_formats():
    module = nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)
    check_affine(module, randn(2, 4, 5, 6).to(memory_format=torch.channels_last), channels=1)


def test_a_convolution_of_many_positions_is_not_unfolded():
    module = nn.Conv2d(1, 1, 31, padding=15)
    call = kind_of(module).call(module, (torch.zeros(1, 1, 1, 1).expand(60, 1, 1300, 1300),), {})
    assert call.n_positions == 60 * 1300**2  # 97 billion entries
    module = nn.Conv1d(1, 1, 5001, padding=2500)
    signal = randn(1, 1, 400_000)
    at = torch.tensor([0, 399_999, 200_000])  # an unfolded input would take 8 GB
    x = kind_of(module).call(module, (signal,), {}).inputs(0, at)
    assert torch.equal(x[2], signal[0, 0, 197_500:202_501])
    assert torch.equal(x[0, 2500:], signal[0, 0, :2501]) and not x[0, :2500].any()


class SamePadding(nn.Conv2d):
    """Pads on its own, as ports of TensorFlow models do."""

    def forward(self, x):
        x = functional.pad(x, (0, 1, 1, 2))
        return functional.conv2d(x, weight=self.weight, bias=self.bias, stride=self.stride, groups=self.groups)


class Standardized(nn.Conv2d):
    def forward(self, x):
        return functional.conv2d(x, self.weight / self.weight.std(), self.bias)


class Adapted(nn.Linear):
    def forward(self, x):
        return functional.linear(x, self.weight, self.bias) + x.sum()


class Scaled(nn.Linear):
    def forward(self, x):
        return functional.linear(x, self.weight, self.bias).mul(2)


class Unused(nn.Linear):
    def forward(self, x):
        return x @ self.weight.T + self.bias


class Biased(nn.Linear):
    def forward(self, x):
        return functional.linear(x, self.weight, self.bias + 1)


class Twice(nn.Linear):
    def forward(self, x):
        functional.linear(x, self.weight, self.bias)
        return functional.linear(2 * x, self.weight, self.bias)


class Aside(nn.Linear):
    def forward(self, x):
        self.aside = functional.linear(x, self.weight, self.bias)
        return x


class Careful(nn.Linear):
    """Casts its weight, which changes nothing here."""

    def forward(self, x):
        return functional.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype))


def test_classes_of_somebody_elses_that_compute_the_same():
    check_affine(SamePadding(4, 6, 3, stride=2, groups=2), randn(2, 4, 7, 6), channels=1)
    check_affine(Careful(4, 3), randn(2, 4))


@pytest.mark.parametrize("made", [Adapted, Scaled, Unused, Biased, Twice, Aside])
def test_classes_of_somebody_elses_that_compute_something_else_are_refused(made):
    module = made(4, 4)
    with pytest.raises(UnsupportedError, match=f"{made.__name__}.forward must return linear"):
        kind_of(module).call(module, (randn(2, 4),), {})


def test_a_convolution_with_a_weight_of_its_own_making_is_refused():
    module = Standardized(4, 4, 3)
    with pytest.raises(UnsupportedError, match=r"Standardized.forward must return conv2d"):
        kind_of(module).call(module, (randn(2, 4, 5, 5),), {})


def test_an_error_of_the_modules_own_is_not_hidden():
    with pytest.raises(TypeError, match="argument"):
        kind_of(nn.Linear(2, 2)).call(nn.Linear(2, 2), (randn(2, 2), 1, 2), {})


TRANSPOSED = [
    (1, {"kernel_size": 3}),
    (1, {"kernel_size": 4, "stride": 2, "padding": 1}),
    (1, {"kernel_size": 5, "stride": 3, "padding": 2, "output_padding": 2, "dilation": 2, "groups": 2}),
    (2, {"kernel_size": (3, 4), "stride": 2, "padding": (1, 2), "output_padding": (1, 0)}),
    (2, {"kernel_size": 2, "stride": 3, "groups": 4, "bias": False}),
    (2, {"kernel_size": 3, "dilation": (1, 2), "stride": (2, 1)}),
    (3, {"kernel_size": (2, 3, 1), "stride": (2, 1, 2), "padding": (0, 1, 0), "groups": 2}),
]


@pytest.mark.parametrize(("dims", "settings"), TRANSPOSED)
def test_transposed_convolutions(dims, settings):
    kind = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 1]
    module = kind(4, 8, **settings)
    sizes = [size - 2 for size in SIZES[dims]]
    check_affine(module, randn(2, 4, *sizes), channels=1)
    check_affine(module, randn(4, *sizes), channels=0)


def test_transposed_convolutions_of_a_given_output_size():
    module = nn.ConvTranspose2d(3, 2, 3, stride=2)
    check_affine(module, randn(2, 3, 4, 5), output_size=[10, 11], channels=1)


# Attention


def attend(module, projected, mask):
    """Attend by hand from projected queries, keys and values (n_batch, length, n)."""
    heads = [part.unflatten(-1, (module.num_heads, module.head_dim)).transpose(1, 2) for part in projected]
    scores = heads[0] @ heads[1].transpose(-1, -2) / math.sqrt(module.head_dim) + mask
    return (scores.softmax(-1) @ heads[2]).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("separate", [True, False])
def test_attention(batch_first, bias, separate):
    widths = {"kdim": 5, "vdim": 3} if separate else {}
    module = nn.MultiheadAttention(8, 2, bias=bias, batch_first=batch_first, **widths).eval()
    query, key, value = randn(3, 4, 8), randn(3, 4, widths.get("kdim", 8)), randn(3, 4, widths.get("vdim", 8))
    padded = torch.tensor([[False] * 4, [False, False, False, True], [False, True, True, True]])
    args = [x if batch_first else x.transpose(0, 1) for x in (query, key, value)]
    check_programs(module)
    check_drawn(module, *args, key_padding_mask=padded)
    for _ in range(2):
        inputs = inputs_of(module, *args, key_padding_mask=padded)
        for x, given in zip(inputs, (query, key, value), strict=False):
            assert torch.equal(x, given.flatten(0, 1))
        z = preactivations(module, inputs)
        mask = torch.zeros(3, 1, 1, 4).masked_fill(padded[:, None, None], -torch.inf)
        attended = attend(module, [part.unflatten(0, (3, 4)) for part in z[:3]], mask)
        torch.testing.assert_close(inputs[3], attended.flatten(0, 1), **close)
        output = module(*args, key_padding_mask=padded)[0]
        output = output if batch_first else output.transpose(0, 1)
        torch.testing.assert_close(z[3], output.flatten(0, 1), **close)
        assign_changed(module)
    call = kind_of(module).call(module, tuple(args), {"key_padding_mask": padded})
    assert torch.equal(query.flatten(0, 1)[call.kept(~padded)], query[~padded])
    assert call.kept(padded[:, :3]) is None
    activations = [program.activation for program in kind_of(module).programs(module)]
    assert activations == ["identity", "identity", "identity", None]


@pytest.mark.parametrize("lengths", [(2, 5), (5, 2)])
@pytest.mark.parametrize("padded", ["queries", "keys"])
def test_padding_of_queries_or_keys_alone(lengths, padded):
    module = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    query, memory = (randn(3, n, 8) for n in lengths)
    tokens = query if padded == "queries" else memory
    padding = torch.ones(tokens.shape[:2], dtype=torch.bool)
    padding[0, 1:], padding[1] = False, False
    call = kind_of(module).call(module, (query, memory, memory), {})
    at = torch.nonzero(call.kept(padding)).reshape(-1)
    assert len(at) == 2 * max(lengths)  # of the two sequences that are not empty
    numbers = [0, 3] if padded == "queries" else [1, 2]
    for number in range(3):
        given = query if number == 0 else memory
        real = given[padding] if number in numbers else given[[0, 2]].flatten(0, 1)
        same = (call.inputs(number, at)[:, None] == real).all(dim=2)
        assert torch.equal(same.sum(dim=1), torch.ones(len(at)))
        assert same.any(dim=0).all()


@pytest.mark.parametrize("unbatched", [True, False])
@pytest.mark.parametrize("lengths", [(2, 5), (6, 4)])
def test_attention_across_sequences_of_other_lengths(unbatched, lengths):
    module = nn.MultiheadAttention(8, 2, add_bias_kv=True, add_zero_attn=True, batch_first=True).eval()
    query, memory = randn(2, lengths[0], 8), randn(2, lengths[1], 8)
    if unbatched:
        query, memory = query[0], memory[0]
    check_drawn(module, query, memory, memory, need_weights=False)
    inputs = inputs_of(module, query, memory, memory, need_weights=False)
    rows, tokens = [], [part.reshape(-1, 8) for part in (query, memory, memory)]
    for x, given in zip(inputs, tokens, strict=False):  # every token, as often as any other or once more
        same = (x[:, None] == given).all(dim=2)
        assert torch.equal(same.sum(dim=1), torch.ones(len(x)))
        assert same.sum(dim=0).max() - same.sum(dim=0).min() <= 1
        assert same.any(dim=0).all()
        rows.append(same.int().argmax(dim=1))
    output = module(query, memory, memory)[0].reshape(-1, 8)
    torch.testing.assert_close(preactivations(module, inputs)[3], output[rows[0]], **close)
    call = kind_of(module).call(module, (query, memory, memory), {})
    assert call.n_positions == max(len(part) for part in tokens)
    assert call.kept(torch.ones(2, 3, dtype=torch.bool)) is None


def test_attention_as_an_encoder_calls_it():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    seen = []

    def hook(module, args, kwargs):
        seen.append(kind_of(module).call(module, args, kwargs))

    layer.self_attn.register_forward_pre_hook(hook, with_kwargs=True)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        x = randn(3, 5, 8)
        causal = nn.Transformer.generate_square_subsequent_mask(5)
        layer(x, src_mask=causal, is_causal=True)
        expected = layer.self_attn(x, x, x, attn_mask=causal)[0]
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    attended = seen[0].inputs(3, torch.arange(15))
    output = attended @ layer.self_attn.out_proj.weight.T + layer.self_attn.out_proj.bias
    torch.testing.assert_close(output, expected.reshape(15, 8), **close)


# Recurrent modules

CELLS = {"LSTM": nn.LSTMCell, "GRU": nn.GRUCell, "RNN": nn.RNNCell}


def advance(mode, z, hidden, cell):
    """Return the next state and cell from the pre-activations of the gates of one layer and direction."""
    if mode == "LSTM":
        cell = z[1].sigmoid() * cell + z[0].sigmoid() * z[2].tanh()
        return z[3].sigmoid() * cell.tanh(), cell
    if mode == "GRU":
        new = (z[2] + z[0].sigmoid() * z[3]).tanh()
        return (1 - z[1].sigmoid()) * new + z[1].sigmoid() * hidden, cell
    return z[0].relu() if mode == "RELU" else z[0].tanh(), cell


def check_layers(module, x, lengths, states, inputs):
    """Check inputs (n_batch, length, n) of all programs by running every sequence alone, step by step, from them.

    Yields the outputs of the last layer for every sequence.
    """
    mode = module.mode.removeprefix("RNN_")
    z = preactivations(module, inputs)
    n_directions = 1 + module.bidirectional
    n_programs = len(inputs) // (module.num_layers * n_directions)
    n_gates = {"LSTM": 4, "GRU": 4}.get(mode, 1)
    for index, length in enumerate(lengths):
        below = x[index, :length]
        for layer in range(module.num_layers):
            outputs = []
            for direction in range(n_directions):
                run = layer * n_directions + direction
                parts = slice(run * n_programs, (run + 1) * n_programs)
                hidden, cell = states[0][run, index], states[-1][run, index]
                before, unprojected, found = [None] * length, [None] * length, [None] * length
                for step in reversed(range(length)) if direction else range(length):
                    before[step] = hidden
                    here = [part[index, step] for part in z[parts]]
                    hidden, cell = advance(mode, here[:n_gates], hidden, cell)
                    if module.proj_size:
                        unprojected[step], hidden = hidden, here[n_gates]
                    found[step] = hidden
                both = torch.cat([below, torch.stack(before)], dim=1)
                expected = {"GRU": [both, both, below, torch.stack(before)]}.get(mode, [both] * n_gates)
                expected += [torch.stack(unprojected)] if module.proj_size else []
                for part, rows in zip(inputs[parts], expected, strict=True):
                    torch.testing.assert_close(part[index, :length], rows, **close)
                outputs.append(torch.stack(found))
            below = torch.cat(outputs, dim=1)
        yield below


LAYERS = [
    (nn.LSTM, {}),
    (nn.LSTM, {"num_layers": 2, "bidirectional": True, "batch_first": True}),
    (nn.LSTM, {"proj_size": 2, "num_layers": 2, "bidirectional": True}),
    (nn.LSTM, {"proj_size": 2, "bias": False, "batch_first": True}),
    (nn.GRU, {"num_layers": 2, "batch_first": True}),
    (nn.GRU, {"bidirectional": True, "bias": False}),
    (nn.RNN, {"num_layers": 2}),
    (nn.RNN, {"nonlinearity": "relu", "bidirectional": True, "batch_first": True}),
]


def initial(module, n_batch):
    """Return initial states: those of an RNN or GRU, or of an LSTM with its cells."""
    n_runs = module.num_layers * (1 + module.bidirectional)
    hidden = randn(n_runs, n_batch, module.proj_size or module.hidden_size)
    return (hidden, randn(n_runs, n_batch, module.hidden_size)) if module.mode == "LSTM" else hidden


@pytest.mark.parametrize(("made", "settings"), LAYERS)
@pytest.mark.parametrize("form", ["padded", "packed", "sorted", "single"])
@pytest.mark.parametrize("given", [True, False])
def test_recurrent_layers(made, settings, form, given):
    module = made(3, 4, **settings).eval()
    check_programs(module)
    lengths = {"padded": [5, 5], "packed": [2, 5, 3], "sorted": [4, 3, 1], "single": [5]}[form]
    n_batch, length = len(lengths), max(lengths)
    x, states = randn(n_batch, length, 3), initial(module, n_batch)
    if not given:
        states = tuple(0 * s for s in states) if module.mode == "LSTM" else 0 * states
    if form in ("packed", "sorted"):
        argument = rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=form == "sorted")
        order = argument._replace(data=torch.arange(len(argument.data)))
        back = rnn.pad_packed_sequence(order, batch_first=True)[0]  # (n_batch, length): which position
    else:
        argument = x if module.batch_first else x.transpose(0, 1)
        back = torch.arange(n_batch * length).reshape(length, n_batch).T
    hx = states
    if form == "single":
        argument = x[0]
        hx = tuple(s[:, 0] for s in states) if module.mode == "LSTM" else states[:, 0]
    args = (argument, hx) if given else (argument,)
    check_drawn(module, *args)
    for _ in range(2):
        inputs = [part[back] for part in inputs_of(module, *args)]
        output = module(*args)[0]
        if form in ("packed", "sorted"):
            output = rnn.pad_packed_sequence(output, batch_first=True)[0]
        elif form == "single":
            output = output[None]
        elif not module.batch_first:
            output = output.transpose(0, 1)
        states_of = states if module.mode == "LSTM" else (states,)
        runs = check_layers(module, x, lengths, states_of, inputs)
        for found, expected, length in zip(runs, output, lengths, strict=True):
            torch.testing.assert_close(found, expected[:length], **close)
        assign_changed(module)


@pytest.mark.parametrize("batch_first", [True, False])
def test_padding_of_recurrent_layers(batch_first):
    padding = torch.tensor([[True, True, True], [True, False, False]])
    module, x = nn.GRU(4, 2, batch_first=batch_first), randn(2, 3, 4)
    call = kind_of(module).call(module, (x if batch_first else x.transpose(0, 1),), {})
    real = call.kept(padding).nonzero().flatten()
    rows = call.inputs(2, real)  # the new gate's inputs are x alone
    assert {tuple(row.tolist()) for row in rows} == {tuple(row.tolist()) for row in x[padding]}
    packed = rnn.pack_padded_sequence(x, [3, 1], batch_first=True)
    assert kind_of(module).call(module, (packed,), {}).kept(padding) is None


@pytest.mark.parametrize("mode", ["LSTM", "GRU", "TANH", "RELU"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5,), ()])
def test_recurrent_cells(mode, bias, shape):
    settings = {"nonlinearity": mode.lower()} if mode in ("TANH", "RELU") else {}
    module = CELLS.get(mode, nn.RNNCell)(3, 4, bias=bias, **settings)
    check_programs(module)
    x, hidden, cell = randn(*shape, 3), randn(*shape, 4), randn(*shape, 4)
    hx = (hidden, cell) if mode == "LSTM" else hidden
    check_drawn(module, x, hx)
    for states in (hx, None):
        before = (hidden, cell) if states is not None else (0 * hidden, 0 * cell)
        inputs = inputs_of(module, x) if states is None else inputs_of(module, x, hx=states)
        next_hidden, next_cell = advance(mode, preactivations(module, inputs), *(s.reshape(-1, 4) for s in before))
        output = module(x, states)
        torch.testing.assert_close(next_hidden, (output[0] if mode == "LSTM" else output).reshape(-1, 4), **close)
        if mode == "LSTM":
            torch.testing.assert_close(next_cell, output[1].reshape(-1, 4), **close)
        assign_changed(module)


def test_activations_of_gates():
    def activations(module):
        return {program.label: program.activation for program in kind_of(module).programs(module)}

    assert activations(nn.RNNCell(2, 2, nonlinearity="relu")) == {"": "relu"}
    assert activations(nn.RNN(2, 2, bidirectional=True)) == {"l0": "tanh", "l0_reverse": "tanh"}
    gates = {"reset": "sigmoid", "update": "sigmoid", "new_input": "identity", "new_state": "identity"}
    assert activations(nn.GRUCell(2, 2)) == gates
    gates = {"input": "sigmoid", "forget": "sigmoid", "cell": "tanh", "output": "sigmoid", "projection": "identity"}
    assert activations(nn.LSTM(2, 2, proj_size=1)) == {f"l0.{name}": value for name, value in gates.items()}


def test_the_second_bias_of_a_gate_stays_and_the_unchanged_entries_of_the_first():
    module = nn.LSTMCell(3, 4)
    kind, before = kind_of(module), {name: p.clone() for name, p in module.named_parameters()}
    program = kind.programs(module)[1]
    bias = program.bias.copy()
    bias[2] += 1
    kind.assign(module, 1, program.weight, bias)
    assert torch.equal(module.bias_hh, before["bias_hh"])
    assert (module.bias_ih != before["bias_ih"]).nonzero().flatten().tolist() == [6]


def test_biases_whose_sum_is_rounded_round_trip():
    module = nn.GRU(3, 4)
    module.bias_hh_l0 *= 1e4
    assert not torch.equal(module.bias_ih_l0 + module.bias_hh_l0 - module.bias_hh_l0, module.bias_ih_l0)
    check_programs(module)


# Dtypes, random numbers, gradients


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("made", "shape"),
    [
        (lambda: nn.Linear(4, 3), (2, 4)),
        (lambda: nn.Conv2d(4, 6, 3, groups=2), (2, 4, 5, 5)),
        (lambda: nn.ConvTranspose1d(4, 6, 3), (2, 4, 5)),
        (lambda: nn.LSTM(4, 3), (5, 2, 4)),
        (lambda: nn.GRUCell(4, 3), (2, 4)),
    ],
)
def test_half_precision(dtype, made, shape):
    module, x = made().to(dtype), randn(*shape).to(dtype)
    check_programs(module)
    check_drawn(module, x)
    kind = kind_of(module)
    program = kind.programs(module)[0]
    bias = None if program.bias is None else program.bias + 1
    kind.assign(module, 0, program.weight * 1.7, bias)
    assert all(parameter.dtype == dtype for parameter in module.parameters())
    again = kind.programs(module)[0]
    np.testing.assert_array_equal(again.weight, torch.tensor(program.weight * 1.7).to(dtype).float().numpy())
    np.testing.assert_allclose(again.bias, bias, rtol=2e-2)


def test_calls_draw_no_random_numbers_and_leave_no_gradients():
    for module, args in [
        (nn.LSTM(3, 4, num_layers=2, dropout=0.5).train(), (randn(5, 2, 3),)),
        (nn.MultiheadAttention(4, 2, batch_first=True).eval(), (randn(2, 3, 4),) * 3),
        (nn.Conv2d(3, 4, 3), (randn(2, 3, 5, 5),)),
    ]:
        state = torch.get_rng_state()
        with torch.enable_grad():
            inputs = inputs_of(module, *args)
        assert torch.equal(torch.get_rng_state(), state)
        assert not any(part.requires_grad for part in inputs)


# Refusals


class OwnLSTM(nn.LSTM):
    def forward(self, x):
        return super().forward(x.flip(0))


class OwnAttention(nn.MultiheadAttention):
    def forward(self, x):
        return super().forward(x, x, 2 * x)


def test_recurrent_modules_and_attention_with_a_forward_of_their_own_are_refused():
    for module, shape in [(OwnLSTM(3, 4), (5, 2, 3)), (OwnAttention(4, 2), (5, 2, 4))]:
        with pytest.raises(UnsupportedError, match=f"{type(module).__name__} has a forward of its own"):
            kind_of(module).call(module, (randn(*shape),), {})


def test_modules_without_weights_to_make_sparse_have_no_kind():
    others = [nn.LayerNorm(3), nn.BatchNorm2d(3), nn.Embedding(4, 3), nn.ReLU(), nn.Sequential(nn.Linear(2, 2))]
    others += [torch.ao.nn.quantized.FloatFunctional(), parametrizations.weight_norm(nn.Bilinear(2, 2, 2))]
    assert [kind_of(module) for module in others] == [None] * len(others)


def quantized():
    model = nn.Sequential(nn.Linear(4, 4), nn.LSTM(4, 4))
    return list(torch.ao.quantization.quantize_dynamic(model, {nn.Linear, nn.LSTM}, inplace=False))


def meant_for_training():
    return torch.ao.nn.qat.Linear(4, 4, qconfig=torch.ao.quantization.get_default_qat_qconfig("fbgemm"))


@pytest.mark.filterwarnings("ignore")
def test_quantized_modules_are_refused():
    modules = [*quantized(), meant_for_training(), torch.ao.nn.quantized.Conv2d(2, 2, 1)]
    modules += [torch.ao.nn.quantizable.LSTM(2, 2), torch.ao.nn.quantizable.MultiheadAttention(2, 1)]
    for module in modules:
        with pytest.raises(UnsupportedError, match=rf"{type(module).__name__} is a quantized layer .*exclude"):
            kind_of(module)


def weight_normed(module):
    with pytest.warns(FutureWarning):
        return weight_norm(module)


def integers():
    module = nn.Linear(3, 3)
    module.weight = nn.Parameter(torch.ones(3, 3, dtype=torch.int8), requires_grad=False)
    return module


def attention_with(change):
    module = nn.MultiheadAttention(4, 2)
    change(module)
    return module


REFUSED = [
    (
        lambda: parametrizations.weight_norm(nn.Linear(3, 3)),
        r"^Linear has a parametrized weight: .*remove_parametrizations\(module, 'weight'\)",
    ),
    (lambda: parametrizations.orthogonal(nn.Conv2d(3, 3, 1)), "^Conv2d has a parametrized weight"),
    (lambda: spectral_norm(nn.Linear(3, 3)), r"^Linear has spectral.*remove_spectral_norm\(module, 'weight'\)"),
    (lambda: weight_normed(nn.Conv1d(3, 3, 1)), r"^Conv1d has weight normal.*remove_weight_norm\(module, 'weight'\)"),
    (lambda: prune.random_unstructured(nn.Linear(3, 3), "bias", 1), r"pruning mask.*prune.remove\(module, 'bias'\)"),
    (lambda: prune.identity(nn.GRU(3, 3), "weight_hh_l0"), r"GRU has.*prune.remove\(module, 'weight_hh_l0'\)"),
    (lambda: attention_with(lambda m: prune.identity(m.out_proj, "weight")), "pruning mask on its weight"),
    (lambda: attention_with(lambda m: prune.identity(m, "in_proj_weight")), "MultiheadAttention has a pruning mask"),
    (lambda: nn.LazyConv2d(3, 3), "LazyConv2d is lazy and was not called yet: run the model once"),
    (lambda: nn.Linear(3, 3, device="meta"), "Linear has its weight on the meta device"),
    (integers, r"Linear has a weight of dtype torch.int8"),
]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("made", "message"), REFUSED)
def test_weights_that_are_not_plain_parameters_are_refused(made, message):
    module = made()
    with pytest.raises(UnsupportedError, match=message):
        kind_of(module)


def test_lazy_modules_have_a_kind_once_they_have_weights():
    module = nn.LazyLinear(3)
    module.load_state_dict(nn.Linear(4, 3).state_dict())  # of which it takes the weights, but not yet the sizes
    with pytest.raises(UnsupportedError, match="LazyLinear is lazy"):
        kind_of(module)
    module(randn(2, 4))
    assert kind_of(module) is kind_of(nn.Linear(2, 2))


def test_tokens_one_after_another_keep_their_padding():
    linear = torch.nn.Linear(3, 2)
    padding = torch.tensor([[True, True, False], [True, False, False]])
    for shape in ((2, 3, 3), (6, 3)):
        call = kind_of(linear).call(linear, (torch.zeros(shape),), {})
        assert call.kept(padding).tolist() == [True, True, False, True, False, False]
    call = kind_of(linear).call(linear, (torch.zeros(3, 2, 3),), {})  # time first
    assert call.kept(padding).tolist() == [True, True, True, False, False, False]
    for shape in ((5, 3), (2, 3)):
        assert kind_of(linear).call(linear, (torch.zeros(shape),), {}).kept(padding) is None
