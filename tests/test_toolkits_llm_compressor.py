"""The modifier in llm-compressor's own oneshot(), on a tiny Llama with random weights."""

from __future__ import annotations

import copy

import pytest

pytest.importorskip("llmcompressor")

import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.pruning import SparseGPTModifier
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import sisopt
from sisopt.adapters.toolkits import modules
from sisopt.adapters.toolkits.llm_compressor import SisoptModifier

N_TOKENS, N_TEXTS, LENGTH = 64, 24, 32
OPTIONS = {"targets": ["Linear"], "ignore": ["re:.*lm_head"]}
FAST = {"effort": "fast", **OPTIONS}

pytestmark = pytest.mark.usefixtures("seeded_torch")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return where the model lies: llm-compressor wants one that has a name."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=N_TOKENS, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, attention_bias=True,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("llama")
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(path)
    return path


@pytest.fixture
def model(folder):
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)


def texts():
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, N_TOKENS, (N_TEXTS, LENGTH), generator=generator)


def run(model, recipe):
    words = Tokenizer(WordLevel({str(i): i for i in range(N_TOKENS)}, unk_token="0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="0")
    data = Dataset.from_dict({"input_ids": texts().tolist(), "attention_mask": [[1] * LENGTH] * N_TEXTS})
    oneshot(
        model=model, dataset=data, recipe=recipe, processor=tokenizer, num_calibration_samples=N_TEXTS,
        max_seq_length=LENGTH, log_dir=None,
    )  # fmt: skip
    return model


def matrices(model):
    return {name: p for name, p in model.model.layers.named_parameters() if p.dim() > 1}


def zeros(model):
    return {name: int((p == 0).sum()) for name, p in matrices(model).items()}


def logits(model):
    with torch.no_grad():
        return model(texts()).logits


def hooks_of(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_all_layers_get_exact_zeros_and_keep_outputs_better_than_sparsegpt(model):
    rival, dense = copy.deepcopy(model), logits(model)
    before, bias = hooks_of(model), model.model.layers[0].self_attn.q_proj.bias.clone()
    run(model, SisoptModifier(sparsity=0.6, activations={"re:.*gate_proj$": "silu"}, **OPTIONS))
    run(rival, SparseGPTModifier(sparsity=0.6, **OPTIONS))
    for name, count in zeros(model).items():
        size = matrices(model)[name].numel()
        assert count == size - round(0.4 * size), name
    assert not (model.lm_head.weight == 0).any() and not (model.model.embed_tokens.weight == 0).any()
    assert not torch.equal(model.model.layers[0].self_attn.q_proj.bias, bias)
    assert hooks_of(model) == before
    assert (logits(model) - dense).norm() < 0.95 * (logits(rival) - dense).norm()


def test_runs_give_the_same_bits_and_the_first_layer_is_that_of_sparsify(model):
    twin, q = copy.deepcopy(model), model.model.layers[0].self_attn.q_proj
    found = []
    handle = q.register_forward_pre_hook(lambda module, args: found.append(args[0].detach()))
    logits(model)
    handle.remove()
    W, b = q.weight.detach().numpy().copy(), q.bias.detach().numpy().copy()
    wanted = sisopt.sparsify(found[0].reshape(-1, 32).numpy(), W, b, sparsity=0.5, effort="fast")
    for each in (model, twin):
        run(each, SisoptModifier(sparsity=0.5, **FAST))
    assert all(torch.equal(p, matrices(twin)[name]) for name, p in matrices(model).items())
    torch.testing.assert_close(q.weight.detach(), torch.from_numpy(wanted.weight), rtol=1e-3, atol=1e-4)


def test_what_follows_a_layer_is_told(model, monkeypatch):
    told = []

    def spy(inputs, weight, bias, **options):
        told.append((weight.shape, options["activation"]))
        return sisopt.sparsify(inputs, weight, bias, **options)

    monkeypatch.setattr(modules, "sparsify", spy)
    run(model, SisoptModifier(sparsity=0.5, activations={"re:.*gate_proj$": "silu"}, **FAST))
    assert [name for _, name in told] == (["identity"] * 4 + ["silu"] + ["identity"] * 2) * 2
    assert {shape for shape, name in told if name == "silu"} == {(48, 32)}


def test_a_recipe_names_it_and_a_pattern_counts_what_is_removed(model):
    recipe = """
    pruning_stage:
      pruning_modifiers:
        SisoptModifier:
          sparsity: 0.25
          mask_structure: "1:4"
          effort: fast
          targets: ["re:.*mlp.*_proj"]
    """
    run(model, recipe)
    for name, p in matrices(model).items():
        if "mlp" in name:
            assert (p.reshape(-1, 4).count_nonzero(dim=1) == 3).all(), name
        else:
            assert not (p == 0).any(), name


def test_zeros_that_were_there_stay_where_that_is_asked(model):
    q = model.model.layers[0].self_attn.q_proj
    with torch.no_grad():
        q.weight[:, ::4] = 0
    run(model, SisoptModifier(sparsity=0.5, preserve_sparsity_mask=True, **FAST))
    assert not q.weight[:, ::4].any() and int((q.weight == 0).sum()) == 512


def test_half_precision_stays(folder):
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    run(model, SisoptModifier(sparsity=0.5, max_samples=200, **FAST))
    assert all(p.dtype == torch.bfloat16 for p in model.parameters())
    assert all(
        count == p.numel() // 2 for count, p in zip(zeros(model).values(), matrices(model).values(), strict=True)
    )


def test_layers_that_no_token_reaches_stay_dense(model):
    class Seldom(torch.nn.Module):
        """A projection beside the model's own, for no token at all."""

        def __init__(self, own):
            super().__init__()
            self.own, self.expert = own, torch.nn.Linear(32, 32, bias=False)

        def forward(self, x):
            return self.own(x) + self.expert(x[:, :0]).sum()

    attention = model.model.layers[1].self_attn
    attention.q_proj = Seldom(attention.q_proj)
    run(model, SisoptModifier(sparsity=0.5, **FAST))
    assert not (attention.q_proj.expert.weight == 0).any()
    assert int((attention.q_proj.own.weight == 0).sum()) == 512
