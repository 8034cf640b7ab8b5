"""Penalties by name."""

from __future__ import annotations

from ..errors import InvalidInputError
from .base import Penalty
from .groups import GroupL2
from .l1 import L1

_BARE = {"columns": "columns", "rows": "rows", "filters": "rows"}  # groups that need no sizes


def get_penalty(penalty: str | Penalty) -> Penalty:
    """Return the penalty object for a name ("l1", "columns", "rows" or "filters") or an object.

    Raises
    ------
    InvalidInputError
        If it is neither.
    """
    wanted = "penalty must be 'l1', 'columns', 'rows' or a penalty object such as sisopt.GroupL2('columns')"
    if isinstance(penalty, str):
        name = penalty.lower()
        if name == "l1":
            return L1()
        if name in _BARE:
            return GroupL2(_BARE[name])
        msg = f"{wanted}, got {penalty!r}"
        if name in ("kernels", "channels"):
            msg += f"; give the convolution's kernel: GroupL2({name!r}, kernel_size=(3, 3))"
        elif name == "blocks":
            msg += "; give the block: GroupL2('blocks', block=(4, 4))"
        raise InvalidInputError(msg)
    if isinstance(penalty, type) or not hasattr(penalty, "structure"):
        found = f"the class {penalty.__name__}" if isinstance(penalty, type) else f"a {type(penalty).__name__}"
        msg = f"{wanted}, got {found}"
        raise InvalidInputError(msg)
    return penalty
