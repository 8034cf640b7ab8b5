"""llm-compressor 0.14: a modifier beside SparseGPT's, for recipes and `oneshot`."""

from __future__ import annotations

from typing import Any

import torch

from .modules import ModuleSamples, Wanted

try:
    from compressed_tensors.utils import align_module_device, match_targets, update_offload_parameter
    from llmcompressor.core import State
    from llmcompressor.modifiers.factory import ModifierFactory
    from llmcompressor.modifiers.pruning.sparsegpt.sgpt_base import SparsityModifierBase
    from llmcompressor.utils.metric_logging import CompressionLogger
    from loguru import logger
    from pydantic import Field, PrivateAttr
except ModuleNotFoundError as error:
    msg = f'{error.name} is not there: this adapter needs llm-compressor 0.14, pip install "sisopt[llm-compressor]"'
    raise ModuleNotFoundError(msg, name=error.name) from error


class SisoptModifier(SparsityModifierBase):  # type: ignore[misc]
    """Sparsity by `sisopt.sparsify`, in place of ``SparseGPTModifier``.

    To import this module registers the name "SisoptModifier" for recipes in YAML. A layer's inputs come from layers
    that are sparse already, unless ``oneshot`` is told ``propagate_error=False``; its target is what its dense weights
    make of them. Layers that no token reaches stay dense.

    Parameters
    ----------
    sparsity, mask_structure, targets, ignore
        As for ``SparseGPTModifier``: note that llm-compressor's "N:M" counts weights that are REMOVED, so that "1:4"
        is `sisopt`'s "3:4".
    activations : dict, optional
        Target, such as "re:.*gate_proj" -> the activation that follows, such as "silu". Default: identity.
    preserve_sparsity_mask : bool, default False
        Whether weights that are zero stay so, and count.
    effort, seed
        See `sisopt.sparsify`.
    max_samples : int, default 4096
        Tokens that each layer is solved on, drawn with ``seed``.
    """

    activations: dict[str, str] = Field(default_factory=dict)
    preserve_sparsity_mask: bool = False
    effort: str = "default"
    max_samples: int = 4096
    seed: int = 0

    _samples: dict[Any, ModuleSamples] = PrivateAttr(default_factory=dict)

    def calibrate_module(self, module: Any, args: tuple[torch.Tensor, ...], _output: torch.Tensor) -> None:
        """Record samples of the module's inputs."""
        if module not in self._samples:
            self._samples[module] = ModuleSamples(module, module.weight, module.bias, self.max_samples, self.seed)
        self._samples[module].record(module, args, {})

    def compress_modules(self) -> None:
        """Make the modules sparse that were called since the last time."""
        for module, samples in self._samples.items():
            name = self._module_names[module].rstrip(".")  # what is a target itself has an empty name inside of it
            if not len(samples):
                logger.warning(f"{name} stays dense: no token reached it")
                continue
            logger.info(f"Sparsifying {name} using {len(samples)} tokens")
            with torch.no_grad(), align_module_device(module), CompressionLogger(module) as metrics:
                mask = module.weight != 0 if self.preserve_sparsity_mask else None
                weight, bias, error = samples.sparse(module.weight, module.bias, self._wanted(name, module), mask=mask)
                metrics.set_results(name="sisopt", loss=error)
            update_offload_parameter(module, "weight", weight)
            if bias is not None:
                update_offload_parameter(module, "bias", bias)
        self._samples.clear()

    def on_finalize(self, state: State, **kwargs: Any) -> bool:
        """Forget the modules."""
        if not self.ended_:
            self.on_calibration_end(state, None)
        for record in (self._samples, self._module_names, self._module_sparsities, self._target_layers):
            record.clear()
        return True

    def _wanted(self, name: str, module: torch.nn.Module) -> Wanted:
        """Return what is asked of a module."""
        removed, group = self._prune_n, self._prune_m
        pattern = f"{group - removed}:{group}" if removed else None
        found = match_targets(name, module, self.activations)
        activation = self.activations[found[0]] if found else "identity"
        return Wanted(self._module_sparsities[module], pattern, activation, self.effort, self.seed)


ModifierFactory.register("SisoptModifier", SisoptModifier)
