"""A torch module whose weights a toolkit keeps in its own way: samples of its calls, and sparse tensors from these."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.utils import parametrize

from ...activations import Activation
from ...errors import InvalidInputError, UnsupportedError
from ...goals import Sparsity
from ...layer import sparsify
from ...patterns import Pattern

try:
    from ...network.samples import quotas
    from ..torch.forwards import call_model, eval_mode
    from ..torch.kinds import Program, kind_of
    from ..torch.samples import as_array
except ModuleNotFoundError as error:
    msg = f'{error.name} is not installed: pip install "sisopt[torch]"'
    raise ModuleNotFoundError(msg, name=error.name) from error

Floats = npt.NDArray[np.float32]

MAX_SAMPLES = 10_000


@dataclass(frozen=True)
class Wanted:
    """What is asked of a module, see `sisopt.sparsify`."""

    sparsity: float | None = None
    pattern: str | Pattern | None = None
    activation: str | Activation = "identity"
    effort: str = "default"
    seed: int = 0


class ModuleSamples:
    """Inputs of a module's calls at ``most`` positions at most: tokens, rows of a batch, places of an image.

    All positions are as likely to be among them, and which ones are does not depend on how calls cut them into batches.

    Parameters
    ----------
    module : torch.nn.Module
        Linear, a convolution or transposed convolution, Hugging Face's Conv1D. Its weights may be masked or
        parametrized; they are not looked at.
    weight, bias : torch.Tensor
        What stands for its weights, for their shapes.
    most, seed : int
    """

    def __init__(
        self, module: nn.Module, weight: torch.Tensor, bias: torch.Tensor | None, most: int = MAX_SAMPLES, seed: int = 0
    ) -> None:
        if most < 1:
            msg = f"max_samples must be at least 1, got {most}"
            raise InvalidInputError(msg)
        twin = _with_tensors(module, weight, bias)
        kind = kind_of(twin)
        if kind is None or any(program.parameters != ("weight",) for program in kind.programs(twin)):
            msg = f"{type(twin).__name__} has no weight that can be made sparse here: Linear and convolutions have one"
            raise UnsupportedError(msg)
        self._kind, self._most = kind, most
        self._n_out = sum(len(program.weight) for program in kind.programs(twin))
        # calls are taken apart without numbers: nothing is kept of weights that a toolkit may move elsewhere
        self._twin = _with_tensors(module, weight.to("meta"), None if bias is None else bias.to("meta"))
        self._rng = np.random.default_rng(seed)
        self._keys = np.empty(0)
        self._rows: list[Floats] = []

    def __len__(self) -> int:
        return len(self._keys)

    def record(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: torch.Tensor | None = None
    ) -> None:
        """Take samples of a call; the signature is that of a hook. With ``outputs``, these are targets."""
        with torch.no_grad():
            call = self._kind.call(self._twin, args, kwargs)
            n_old = len(self._keys)
            keys = np.concatenate([self._keys, self._rng.random(call.n_positions)])
            kept = np.sort(np.argsort(keys, kind="stable")[: self._most])
            old, new = kept[kept < n_old], torch.from_numpy(kept[kept >= n_old] - n_old)
            if not len(new):
                return
            rows = [as_array(call.inputs(number, new)) for number in range(getattr(self._twin, "groups", 1))]
            if outputs is not None:
                targets = _rows_of(outputs, self._twin.weight)
                wanted = (call.n_positions, self._n_out)
                if targets.shape != wanted:
                    msg = f"outputs must hold those of the inputs, {wanted} in rows, got {tuple(targets.shape)}"
                    raise InvalidInputError(msg)
                rows.append(as_array(targets)[new.numpy()])
        if n_old:
            rows = [np.concatenate([was[old], now]) for was, now in zip(self._rows, rows, strict=True)]
        self._keys, self._rows = keys[kept], rows

    def programs(self, weight: torch.Tensor, bias: torch.Tensor | None) -> list[tuple[Floats, Program]]:
        """Return the matrices that the tensors hold, one for every group of channels, each with its inputs."""
        programs = self._kind.programs(_with_tensors(self._twin, weight, bias))
        return list(zip(self._rows[: len(programs)], programs, strict=True))

    def sparse(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        wanted: Wanted,
        *,
        mask: torch.Tensor | None = None,
        holds_bias: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None, float]:
        """Return sparse weights, the bias to go with them, and the relative error: the largest, if there are groups.

        Weights where ``mask`` is 0 are zero. A bias that is held is a known term, and none is fitted.
        """
        twin = _with_tensors(self._twin, weight.clone(), None if bias is None else bias.clone())
        programs = self._kind.programs(twin)
        allowed: list[npt.NDArray[np.bool_] | None] = [None] * len(programs)
        if mask is not None:
            masked = _with_tensors(self._twin, mask.to(weight.dtype), None)
            allowed = [program.weight != 0 for program in self._kind.programs(masked)]
        errors, first = [], 0
        for number, (program, sparsity) in enumerate(zip(programs, _shares(wanted, programs), strict=True)):
            targets = slice(first, first := first + len(program.weight))
            layer = sparsify(
                self._rows[number], program.weight, None if holds_bias else program.bias,
                activation=wanted.activation, sparsity=sparsity, pattern=wanted.pattern, mask=allowed[number],
                shift=program.bias if holds_bias else None,
                preactivations=self._rows[-1][:, targets] if len(self._rows) > len(programs) else None,
                effort=wanted.effort, seed=wanted.seed,
            )  # fmt: skip
            self._kind.assign(twin, number, layer.weight, layer.bias)
            errors.append(layer.relative_error)
        return twin.weight.detach(), None if bias is None else twin.bias.detach(), max(errors)


def record_modules(
    model: nn.Module, batches: Iterable[Any], modules: Iterable[Any], most: int, seed: int
) -> dict[nn.Module, ModuleSamples]:
    """Return samples of what reaches modules while a model runs on batches, in eval mode."""
    found = {module: ModuleSamples(module, module.weight, module.bias, most, seed) for module in modules}
    hooks = [m.register_forward_pre_hook(samples.record, with_kwargs=True) for m, samples in found.items()]
    try:
        with eval_mode(model), torch.no_grad():
            for batch in batches:
                call_model(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _with_tensors(module: nn.Module, weight: torch.Tensor, bias: torch.Tensor | None) -> Any:
    """Return a module that computes what another does, but with plain parameters of its own."""
    cls: Any = parametrize.type_before_parametrizations(module)
    twin = cls.__new__(cls)
    own = ("weight", "bias", "forward")  # attributes of modules that are masked, or whose parameters lie elsewhere
    vars(twin).update({name: value for name, value in vars(module).items() if name not in own})
    tensors = {"weight": weight, "bias": bias}
    parameters = {n: None if t is None else nn.Parameter(t.detach(), requires_grad=False) for n, t in tensors.items()}
    vars(twin).update(_parameters=parameters, _buffers={}, _modules={})
    return twin


def _rows_of(outputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return a module's output as (n_positions, n_out): channels come before the places of an image, else last."""
    channels = outputs.dim() - (weight.dim() - 1)
    return outputs.movedim(channels, -1).reshape(-1, outputs.shape[channels])


def _shares(wanted: Wanted, programs: Sequence[Program]) -> list[float | None]:
    """Return the sparsity of every group: the same up to one weight, and together exactly what is asked."""
    if len(programs) == 1 or wanted.sparsity is None or wanted.pattern not in (None, "unstructured"):
        return [wanted.sparsity] * len(programs)
    kept = Sparsity(wanted.sparsity).kept(sum(program.weight.size for program in programs))
    shares = quotas(kept, [1] * len(programs))
    return [1.0 - share / program.weight.size for share, program in zip(shares, programs, strict=True)]
