"""What a module's forward hands to the one torch function that multiplies by its weight.

Padding modes, paddings and output sizes are then those of the module itself, and a class of somebody else's that pads
in its own way is understood like torch's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch.overrides import TorchFunctionMode

from ....errors import UnsupportedError


class Interception(TorchFunctionMode):
    """While entered, calls of ``function`` are recorded and answered with what ``answer`` gives, not carried out."""

    def __init__(self, function: Callable[..., Any], answer: Callable[..., Any]) -> None:
        super().__init__()
        self._function, self._answer = function, answer
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Record or carry out one call."""
        if func is not self._function:
            return func(*args, **(kwargs or {}))
        self.calls.append((args, kwargs or {}))
        return self._answer(*args, **(kwargs or {}))


def arguments_of(
    function: Callable[..., Any], names: tuple[str, ...], module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """Return by name what ``module.forward`` gives to ``function`` (input, weight, bias, ...).

    The forward has to return what that one call returns, made with the module's own weight and bias: whatever else
    it does, the module is not the affine map that its programs are taken for, and it is refused.
    """
    result = object()
    forward: Callable[..., Any] = module.forward
    with Interception(function, lambda *_, **__: result) as seen:
        try:
            returned = forward(*args, **kwargs)
        except Exception as error:
            if not seen.calls:  # not ours: the module itself cannot take these arguments
                raise
            raise _foreign(module, function) from error
    if returned is not result or len(seen.calls) != 1:
        raise _foreign(module, function)
    positional, named = seen.calls[0]
    found: dict[str, Any] = dict(zip(names, positional, strict=False)) | named
    if found["weight"] is not module.weight or found.get("bias") is not module.bias:
        raise _foreign(module, function)
    return found


def _foreign(module: Any, function: Callable[..., Any]) -> UnsupportedError:
    """Return the refusal of a module whose forward is not the affine map of its weight."""
    name = getattr(function, "__name__", str(function))
    msg = (
        f"{type(module).__name__}.forward must return {name}(..., weight, bias) of its own weight and bias as it is, "
        f"but it does something else; exclude the module"
    )
    return UnsupportedError(msg)
