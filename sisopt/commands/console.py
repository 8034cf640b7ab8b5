"""What commands tell: results on stdout, everything else on stderr."""

# ruff: noqa: PLC0415  extras, and nothing that a mere --help would wait for
from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..errors import ConvergenceWarning, GeneralizationWarning

Tell = Callable[[str], None]


def fail(message: str) -> None:
    """Print why a command did not do what was asked."""
    print(f"sisopt: {message}", file=sys.stderr)


def printable(text: str) -> str:
    """Return text without what a terminal would obey or cannot show, such as escapes in the names of layers."""
    return "".join(each if each.isprintable() or each == "\n" else ascii(each)[1:-1] for each in text)


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Print warnings as a line on stderr, without the place in the code that they come from."""

    def show(message: Warning | str, *_: object, **__: object) -> None:
        fail(f"warning: {message}")

    with warnings.catch_warnings():
        for category in (ConvergenceWarning, GeneralizationWarning):
            warnings.simplefilter("always", category)
        warnings.showwarning = show
        yield


@contextmanager
def working(doing: str, *, quiet: bool) -> Iterator[Tell]:
    """Show on stderr what is being done and for how long, gone at the end; yield how to say what it is by now."""
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (SpinnerColumn("line"), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as bar:
        task = bar.add_task(escape(doing))
        yield lambda text: bar.update(task, description=escape(text))
