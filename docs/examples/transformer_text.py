"""A transformer that reads sentences of unequal length: padding counts nowhere, attention is made sparse as well."""

import torch
from torch import nn

from sisopt.adapters.torch import sparsify_model

torch.manual_seed(0)
N_TOPICS, N_WORDS, LENGTH = 8, 25, 16  # words are numbers: N_WORDS of each topic, as many of none, 0 is padding


class Reader(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        self.embedding = nn.Embedding(1 + (N_TOPICS + 1) * N_WORDS, width)
        layer = nn.TransformerEncoderLayer(width, 4, 64, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, N_TOPICS)

    def forward(self, input_ids, attention_mask):
        hidden = self.encoder(self.embedding(input_ids), src_key_padding_mask=attention_mask == 0)
        real = attention_mask[:, :, None]
        return self.head((hidden * real).sum(1) / real.sum(1))


def sentences(n):
    """Return a batch as tokenizers make it, for model(**batch), and the topics: a third of the words are of these."""
    topics = torch.randint(N_TOPICS, (n, 1))
    subjects = torch.where(torch.rand(n, LENGTH) < 1 / 3, topics, N_TOPICS)
    mask = (torch.arange(LENGTH) < torch.randint(6, LENGTH + 1, (n, 1))).long()
    ids = (1 + subjects * N_WORDS + torch.randint(N_WORDS, (n, LENGTH))) * mask
    return {"input_ids": ids, "attention_mask": mask}, topics[:, 0]


model = Reader()
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
for _ in range(150):
    batch, topics = sentences(64)
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(**batch), topics).backward()
    optimizer.step()
model.eval()


def accuracy(network, batch, topics):
    with torch.no_grad():
        return (network(**batch).argmax(1) == topics).float().mean().item()


test = sentences(500)
dense = accuracy(model, *test)
report = sparsify_model(
    model,
    [sentences(50)[0] for _ in range(6)],
    sparsity=0.7,
    exclude="head",
    goals={"encoder.layers.*.linear1": "2:4"},  # a pattern for some layers, the sparsity for the others
)
sparse = accuracy(model, *test)

print(report)
print(f"accuracy: dense {dense:.1%}, with {report.sparsity:.0%} zeros {sparse:.1%}")
