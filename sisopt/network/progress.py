"""A progress bar where there is a terminal and tqdm to draw it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def progress_bar(total: int, progress: bool | None) -> Iterator[Any]:
    """Yield a progress bar; a silent one where tqdm is not installed, or there is no terminal."""
    try:
        from tqdm.auto import tqdm  # noqa: PLC0415  an extra
    except ImportError:
        yield _Silent()
        return
    with tqdm(total=total, unit="layer", disable=None if progress is None else not progress) as bar:
        yield bar


class _Silent:
    """A progress bar that draws nothing."""

    def set_postfix_str(self, text: str) -> None:
        """Do nothing."""

    def update(self) -> None:
        """Do nothing."""
