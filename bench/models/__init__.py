"""Models that others trained, and one that the bench trains: images, audio, text, time series."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from bench.models.fetch import Unavailable

__all__ = ["Subject", "Unavailable", "subjects"]


@dataclass(frozen=True, eq=False)
class Subject:
    """A model to prune, the data to do it with and what it is judged by, on other data.

    ``score(outputs, dense)`` compares the outputs on the test data with those that the model gives as it comes here,
    which are computed at once: the model itself may be pruned afterwards.
    """

    name: str
    model: Any  # torch.nn.Module in eval mode, float32
    batches: list[Any]  # for calibration: a tensor for model(batch), a dict for model(**batch)
    outputs: Callable[[Any], Any]  # of a model on the test data
    score: Callable[[Any, Any], dict[str, float]]
    primary: str  # the metric that ranks
    levels: tuple[float | str, ...]  # sparsities, or patterns like "2:4"
    include: tuple[str, ...] = ("*",)  # globs of the names of layers
    exclude: tuple[str, ...] = ()
    higher_is_better: bool = True  # of the primary metric
    reference: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "reference", self.outputs(self.model))

    def metrics(self, model: Any) -> dict[str, float]:
        """Return what a model of the same shape, pruned or not, is worth."""
        return self.score(self.outputs(model), self.reference)

    @property
    def dense(self) -> dict[str, float]:
        """Return the metrics of the model as it came."""
        return self.score(self.reference, self.reference)


def subjects() -> dict[str, Callable[[], Subject]]:
    """Return what makes each subject: it raises `Unavailable` where something cannot be had."""
    from bench.models import crepe, digits, efficientnet, forecaster, minilm

    return {
        "digits": digits.subject,
        "efficientnet": efficientnet.subject,
        "crepe": crepe.subject,
        "minilm": minilm.subject,
        **{f"forecaster-{seed}": partial(forecaster.subject, seed) for seed in forecaster.SEEDS},
    }


def in_batches(model: Any, batches: list[Any]) -> Any:
    """Return the outputs of a model on batches, one under another, without gradients."""
    import torch

    with torch.inference_mode():
        return torch.cat([model(**batch) if isinstance(batch, dict) else model(batch) for batch in batches])


def agreement(ours: Any, theirs: Any) -> float:
    """Return in how many of the entries two tensors are equal, in per cent."""
    return 100.0 * float((ours == theirs).double().mean())


def mean_cosine(ours: Any, theirs: Any) -> float:
    """Return the mean cosine of the angles between the rows of two tensors; a row of zeros is at a right angle."""
    import torch

    return float(torch.nn.functional.cosine_similarity(ours.double(), theirs.double(), dim=1).mean())
