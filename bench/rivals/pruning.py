"""The rivals that prune a layer, by name, and what each can be asked for."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .alps import alps
from .boza import boza
from .lasso import lasso, lasso_refit
from .magnitude import magnitude, magnitude_refit
from .nettrim_sparsity import net_trim_to_sparsity
from .obc import obc
from .sparsegpt import sparsegpt
from .wanda import wanda

# (weight, inputs, *, sparsity or pattern) -> weight. They neither know nor change the bias, and take the layer for
# linear. Which weights they may keep: see pattern.Pattern.
PRUNERS: dict[str, Callable[..., np.ndarray]] = {
    "magnitude": magnitude,
    "magnitude + refit": magnitude_refit,
    "Wanda": wanda,
    "SparseGPT": sparsegpt,
    "Boža ADMM": boza,
    "ALPS": alps,
    "OBC": obc,
    "lasso": lasso,
    "lasso + refit": lasso_refit,
}

# For ReLU layers: (weight, inputs, bias, *, sparsity) -> (weight, bias).
RELU_PRUNERS: dict[str, Callable[..., tuple[np.ndarray, np.ndarray | None]]] = {"Net-Trim": net_trim_to_sparsity}

# The keywords that each understands.
SUPPORTS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(PRUNERS, ("sparsity", "pattern")),
    **dict.fromkeys(RELU_PRUNERS, ("sparsity",)),
}

# Above so many inputs a rival takes minutes and is left out.
MOST_INPUTS: dict[str, int] = {"OBC": 512, "Net-Trim": 256}
