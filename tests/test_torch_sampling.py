"""Samples that a layer of a torch model is solved on: from all batches and calls, none of padding, as many as asked."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from sisopt import InvalidInputError, MaxPool  # noqa: E402
from sisopt.adapters.torch import sparsify_model  # noqa: E402
from sisopt.network.samples import Draws, quotas  # noqa: E402

pytestmark = pytest.mark.usefixtures("seeded_torch")


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 4)

    def forward(self, x, attention_mask):
        return self.linear(x)


def seen_by(model, batches, **options):
    """Return the inputs that each layer is solved on."""
    seen = []

    def solver(inputs, weight, bias, goal):
        seen.append(inputs.copy())
        return weight, bias

    sparsify_model(model, batches, sparsity=0.5, layer_solver=solver, progress=False, inplace=False, **options)
    return seen


@pytest.mark.parametrize(
    ("total", "sizes", "wanted"),
    [
        (10, [1, 1, 1], [3, 3, 4]),
        (2, [1, 1, 1, 1], [0, 1, 0, 1]),  # spread, not the first two
        (100, [10, 30], [25, 75]),
        (7, [], []),
        (7, [0, 0], [0, 0]),
    ],
)
def test_batches_give_by_their_size(total, sizes, wanted):
    assert quotas(total, sizes) == wanted


def test_what_small_batches_cannot_give_comes_from_others():
    batches = [torch.randn(10, 6), torch.randn(5000, 6), torch.randn(10, 6)]
    (seen,) = seen_by(nn.Sequential(nn.Linear(6, 4)).eval(), batches, max_samples=1000)
    assert len(seen) == 1000


def test_what_padding_takes_comes_from_later_batches():
    mask = torch.zeros(4, 10, dtype=torch.long)
    mask[:, :2] = 1
    batches = [{"x": torch.randn(4, 10, 3), "attention_mask": each} for each in (mask, torch.ones_like(mask))]
    (seen,) = seen_by(Reader().eval(), batches, max_samples=40)
    assert len(seen) == 40  # 8 tokens of the first batch, 32 of the second


def test_tokens_with_time_first_know_their_padding():
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    x = torch.zeros(3, 2, 3)
    x[mask.T == 1] = 1.0
    (seen,) = seen_by(Reader().eval(), [{"x": x, "attention_mask": mask}])
    assert seen.shape == (3, 3) and (seen == 1.0).all()


def test_what_calls_that_are_not_made_take_comes_from_later_batches():
    draws = Draws(10, [5, 5], seed=0, number=0)
    draw = next(draws.of_batch(0, 2))  # the other call is not made
    assert len(draw(50, None)) == 2
    assert [len(draw(50, None)) for draw in draws.of_batch(1, 2)] == [5, 3]


@pytest.mark.parametrize(
    "kind",
    [
        np.array,
        list,
        lambda mask: torch.tensor(mask)[:, None, None],  # one for all heads and queries
        lambda mask: torch.tensor(mask)[:, None, None].float(),
        lambda mask: torch.tensor(mask)[:, None, None].float().log(),  # such as are added to scores
    ],
    ids=["array", "list", "4-d", "4-d of floats", "added"],
)
def test_padding_is_told_by_masks_of_any_kind(kind):
    x = torch.randn(2, 3, 3)
    (seen,) = seen_by(Reader().eval(), [{"x": x, "attention_mask": kind([[1, 1, 0], [1, 0, 0]])}])
    assert torch.equal(torch.from_numpy(seen), x.reshape(6, 3)[[0, 1, 3]])


def test_all_steps_of_a_cell_are_drawn_from():
    class Steps(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.RNNCell(1, 4)

        def forward(self, x):
            h = x.new_zeros(len(x), 4)
            for t in range(100):
                h = self.cell(torch.full((len(x), 1), float(t)), h)
            return h

    seen = seen_by(Steps().eval(), [torch.zeros(5, 1)] * 2, max_samples=80)[0]
    assert len(seen) == 80
    assert seen[:, 0].min() < 5 and seen[:, 0].max() > 95
    assert len(np.unique(seen[:, 0])) >= 40


@pytest.mark.parametrize("n", [0, 10**12])
def test_an_impossible_number_of_samples_is_refused(n):
    with pytest.raises(InvalidInputError, match="max_samples must be at least 1 and at most 100,000,000"):
        sparsify_model(nn.Sequential(nn.Linear(3, 2)).eval(), [torch.zeros(4, 3)], sparsity=0.5, max_samples=n)


def test_windows_of_samples_are_refused():
    with pytest.raises(InvalidInputError, match="windows of a max-pool count samples"):
        sparsify_model(
            nn.Sequential(nn.Linear(3, 2)).eval(), [torch.zeros(4, 3)], sparsity=0.5,
            activations={"0": MaxPool(np.array([[0, 1], [2, 3]]))},
        )  # fmt: skip
