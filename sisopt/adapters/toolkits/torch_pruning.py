"""Torch-Pruning: the importance of channels, by a convex program whose penalty is on groups of weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from ...goals import Sparsity
from ...network.samples import listed
from .channel_scores import group_scores
from .modules import record_modules

try:
    import torch_pruning as tp
except ModuleNotFoundError as error:
    msg = f'{error.name} is not installed: pip install "sisopt[torch-pruning]"'
    raise ModuleNotFoundError(msg, name=error.name) from error

Array = npt.NDArray[Any]

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
READERS = (tp.prune_conv_in_channels, tp.prune_linear_in_channels)
WRITERS = (tp.prune_conv_out_channels, tp.prune_linear_out_channels)


class SisoptImportance(tp.importance.Importance):  # type: ignore[misc]
    """Importance of channels for the layers that read them, in place of ``GroupMagnitudeImportance``.

    For each of these layers, sparse weights that keep its outputs are found under a penalty on the norms of the weights
    that read a channel, each norm times the channel's standard deviation. Channels that the solution reads score 1 and
    more, up to 2, by these products; others less than 1, by how near they are to entering the solution. Scores are
    means over the readers. Where no linear layer or convolution reads the channels, the neurons that write them are the
    groups.

    Parameters
    ----------
    model : torch.nn.Module
        The model that the pruner is given. It runs in eval mode here, and again once layers have changed.
    batches : iterable
        Calibration batches, ``model(batch)``; tuples and lists as ``model(*batch)``, mappings as ``model(**batch)``.
    sparsity : float, default 0.5
        Fraction of zeros that the programs aim at: about the pruner's ``pruning_ratio``.
    max_samples, seed : int
        Samples of each layer, rows of a batch or places of an image, and what draws them.
    """

    def __init__(
        self, model: nn.Module, batches: Iterable[Any], *, sparsity: float = 0.5, max_samples: int = 2000, seed: int = 0
    ) -> None:
        self._model, self._batches = model, listed(batches)
        self._goal, self._max_samples, self._seed = Sparsity(sparsity), max_samples, seed
        self._record()

    @torch.no_grad()
    def __call__(self, group: Any) -> torch.Tensor | None:
        """Return a score for every channel of a group; None where no layer with weights has a part in it."""
        items = [item for item in group if len(self._samples.get(item.dep.layer, ()))]
        if any(item.dep.layer.weight.shape != self._shapes[item.dep.layer] for item in items):  # pruned since
            self._record()
        place = {root: number for number, root in enumerate(group[0].root_idxs)}
        for functions, axis in ((READERS, 1), (WRITERS, 0)):
            found = [
                self._scores(item.dep.layer, axis, item.idxs, [place[root] for root in item.root_idxs], len(place))
                for item in items
                if item.dep.pruning_fn in functions and all(root in place for root in item.root_idxs)
            ]
            if found:
                return torch.from_numpy(np.mean(found, axis=0)).to(items[0].dep.layer.weight.device, torch.float32)
        return None

    def _record(self) -> None:
        layers = [module for module in self._model.modules() if isinstance(module, LAYERS)]
        self._samples = record_modules(self._model, self._batches, layers, self._max_samples, self._seed)
        self._shapes = {layer: layer.weight.shape for layer in layers}

    def _scores(self, layer: Any, axis: int, channels: list[int], places: list[int], n: int) -> Array:
        """Return scores (n,), those of a layer's rows or columns, whose ``channels`` have ``places`` among the n."""
        parts = self._samples[layer].programs(layer.weight, layer.bias)
        side = "in" if axis else "out"
        count = getattr(layer, f"{side}_channels", None) or getattr(layer, f"{side}_features")
        group_of = np.arange(n, n + count)  # others are groups of their own, whose scores nobody asks for
        group_of[channels] = places
        totals, counts = np.zeros(n), np.zeros(n)
        for (X, program), groups in zip(parts, np.split(group_of, len(parts)), strict=True):
            names, scores = group_scores(X, program.weight, program.bias, axis, groups, self._goal)
            ours = names < n
            totals[names[ours]] += scores[ours]
            counts[names[ours]] += 1
        return totals / np.maximum(counts, 1)
