"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

IN = click.Path(exists=True, dir_okay=False, readable=True, path_type=Path)
OUT = click.Path(path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)
FRACTION = click.FloatRange(0.0, 1.0)

force = click.option("--force", is_flag=True, help="Replace files that are there already.")
quiet = click.option("-q", "--quiet", is_flag=True, help="Print errors and warnings only.")
json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
threads = click.option("--threads", type=click.IntRange(1), help="Threads; by default all cores.")
seed = click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Of random choices."
)
effort = click.option(
    "--effort", type=click.Choice(["fast", "default", "full"]), default="default", show_default=True,
    help="How much to try; full solves and certifies the convex program too.",
)  # fmt: skip
tol = click.option("--tol", type=float, default=1e-3, show_default=True, help="Relative gap that certifies.")


def goals(command: Command) -> Command:
    """Add the options that say what is asked for."""
    for option in (
        click.option("--pattern", help='Which weights may stay: "2:4" (2 of every 4), "4x4 blocks", "columns", ...'),
        click.option("--relative-error", type=FRACTION, help="Error to keep: 0 is the dense layer, 1 a constant one."),
        click.option("--sparsity", type=FRACTION, help="Fraction of weights that become zero."),
    ):
        command = option(command)
    return command


def check_goal(sparsity: float | None, relative_error: float | None, pattern: str | None) -> None:
    """Refuse a command that asks for nothing, or for two things."""
    if sparsity is None and relative_error is None and pattern is None:
        msg = "say what to ask for: --sparsity 0.8, --relative-error 0.1, or --pattern 2:4"
        raise click.UsageError(msg, click.get_current_context())
    if sparsity is not None and relative_error is not None:
        msg = "--sparsity and --relative-error do not go together: the zeros follow from the error"
        raise click.UsageError(msg, click.get_current_context())
