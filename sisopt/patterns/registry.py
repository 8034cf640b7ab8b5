"""Patterns by name."""

from __future__ import annotations

import re

from ..errors import InvalidInputError
from .base import Pattern, kept_of
from .entries import PerRow, Unstructured
from .groups import Blocks, Groups
from .nm import NM

_NAMED: dict[str, Pattern] = {
    "unstructured": Unstructured(),
    "per-row": PerRow(),
    "columns": Groups("columns"),
    "rows": Groups("rows"),
    "filters": Groups("filters"),
}
_NEEDED = ("needs_sparsity", "count", "select", "holds", "validate")
_NM = re.compile(r"(\d+)\s*:\s*(\d+)")
_BLOCKS = re.compile(r"(\d+)\s*x\s*(\d+)\s+blocks")


def get_pattern(pattern: str | Pattern | None, sparsity: float | None = None) -> Pattern:
    """Return the pattern for a name or an object, None for "unstructured".

    Parameters
    ----------
    pattern : str, Pattern or None
        - "unstructured": any round((1 - sparsity) * size) weights are KEPT;
        - "per-row": the same number, as many in every row up to one;
        - "N:M", such as "2:4": N weights are KEPT of every M consecutive inputs of a row, see `NM`;
        - "RxC blocks", such as "4x4 blocks", "columns", "rows" or "filters": whole groups are KEPT, see `Groups`;
        - an object such as ``Groups("kernels", kernel_size=(3, 3))``.
    sparsity : float, optional
        Where it is given, it is checked: a number in [0, 1], for "N:M" 1 - N/M.

    Raises
    ------
    InvalidInputError
        If it is neither a known name nor a pattern, or the sparsity is not what it should be.

    Examples
    --------
    >>> import sisopt
    >>> sisopt.get_pattern("2:4")
    NM(kept=2, of=4)
    >>> print(sisopt.get_pattern("2:4"))
    2:4 (2 KEPT of every 4 inputs)
    >>> sisopt.get_pattern("4x4 blocks", sparsity=0.5).count((8, 8), 0.5)
    32
    """
    found = _found(pattern)
    if isinstance(found, NM):
        found.check_agreement(sparsity)
    elif sparsity is not None:
        kept_of(1, sparsity, found)
    return found


def _found(pattern: str | Pattern | None) -> Pattern:
    if pattern is None:
        return _NAMED["unstructured"]
    wanted = (
        f"pattern must be {', '.join(map(repr, _NAMED))}, 'N:M' such as '2:4' (2 KEPT of every 4), 'RxC blocks' such "
        "as '4x4 blocks', or a pattern object such as sisopt.Groups('kernels', kernel_size=(3, 3))"
    )
    if not isinstance(pattern, str):
        if isinstance(pattern, type) or not all(hasattr(pattern, name) for name in _NEEDED):
            found = f"the class {pattern.__name__}" if isinstance(pattern, type) else f"a {type(pattern).__name__}"
            msg = f"{wanted}, got {found}"
            raise InvalidInputError(msg)
        return pattern
    name = pattern.strip().lower()
    if name in _NAMED:
        return _NAMED[name]
    if numbers := _NM.fullmatch(name):
        return _parsed_nm(pattern, *map(int, numbers.groups()))
    if numbers := _BLOCKS.fullmatch(name):
        return Blocks((int(numbers[1]), int(numbers[2])))
    msg = f"{wanted}, got {pattern!r}"
    if name in ("kernels", "channels"):
        msg += f"; give the convolution's kernel: Groups({name!r}, kernel_size=(3, 3))"
    elif name == "blocks":
        msg += "; give the block: '4x4 blocks'"
    raise InvalidInputError(msg)


def _parsed_nm(pattern: str, kept: int, of: int) -> NM:
    if not 1 <= kept <= of:
        msg = f"pattern 'N:M' needs 1 <= N <= M, as N weights are KEPT of every M inputs, got {pattern!r}"
        raise InvalidInputError(msg)
    return NM(kept, of)
