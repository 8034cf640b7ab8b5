"""The page on embedding is true: the Python of every section runs, where the toolkit that it is about is there."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest

PAGE = Path(__file__).parent.parent / "docs" / "embedding.md"
NEEDS = {  # what each section with code is about, and the packages that it imports
    "One function": [],
    "torch.nn.utils.prune": ["torch", "greenlet"],
    "torch.ao.pruning": ["torch", "greenlet"],
    "scikit-learn": ["sklearn"],
    "llm-compressor": ["llmcompressor"],
    "Torch-Pruning": ["torch_pruning"],
}


def sections():
    if not PAGE.exists():
        pytest.skip("not in this distribution")
    _, *parts = re.split(r"^## (.*)\n", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    blocks = {
        title: re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
        for title, text in zip(parts[::2], parts[1::2], strict=True)
    }
    return {title: found for title, found in blocks.items() if found}


def a_tiny_language_model(folder):
    """Return what the section on llm-compressor says that a reader has."""
    import torch
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({str(i): i for i in range(64)}, unk_token="0"))
    texts = torch.randint(0, 64, (24, 32)).tolist()
    return {
        "model": LlamaForCausalLM.from_pretrained(folder),
        "tokenizer": PreTrainedTokenizerFast(tokenizer_object=words, pad_token="0"),
        "dataset": Dataset.from_dict({"input_ids": texts, "attention_mask": [[1] * 32] * 24}),
    }


@pytest.mark.parametrize("title", NEEDS)
def test_code_of_a_section_runs_in_order(title, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for package in NEEDS[title]:
        pytest.importorskip(package)
    namespace = a_tiny_language_model(tmp_path / "model") if title == "llm-compressor" else {}
    with warnings.catch_warnings():
        if title == "scikit-learn":
            warnings.simplefilter("ignore", pytest.importorskip("sklearn.exceptions").ConvergenceWarning)
        for block in sections()[title]:
            exec(compile(block, str(PAGE), "exec"), namespace)
    assert capsys.readouterr().out.strip()


def test_every_section_with_code_is_run():
    assert set(sections()) == set(NEEDS)
