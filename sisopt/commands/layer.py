"""``sisopt layer``: one layer, from arrays in a file to arrays in a file."""

# ruff: noqa: PLC0415  extras, and nothing that a mere --help would wait for
from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from . import options

if TYPE_CHECKING:
    from ..solution import Progress
    from ..sparse_layer import SparseLayer
    from .console import Tell
    from .files import Arrays

NEEDED, KNOWN = ("inputs", "weight"), ("inputs", "weight", "bias", "preactivations")


@click.command(
    epilog="""
\b
Example:
  sisopt layer data.npz --activation relu --sparsity 0.9 -o sparse.npz
\b
with data.npz from
  numpy.savez("data.npz", inputs=X, weight=W, bias=b)   # (n_samples, n_in), (n_out, n_in), (n_out,)
"""
)
@click.argument("data", type=options.IN)
@click.option("-o", "--output", type=options.OUT, required=True, help="The .npz file to write.")
@click.option("--activation", default="identity", show_default=True, help="What follows the layer: relu, gelu, ...")
@options.goals
@options.effort
@options.seed
@options.tol
@click.option("--max-seconds", type=click.FloatRange(0.0), help="Time for the convex program.")
@options.threads
@options.force
@options.quiet
@options.json
def layer(data: Path, output: Path, *, force: bool, quiet: bool, as_json: bool, **asked: Any) -> None:
    """Make one layer sparse, from file to file.

    DATA, an .npz file, holds "inputs" (samples in rows) and "weight" (outputs in rows), "bias" where there is one, and
    "preactivations" where the outputs to keep are not those of this weight on these inputs. What comes out holds
    "weight" and "bias" of the same shapes and dtypes; integers become float64.
    """
    from .. import sparsify
    from . import console, files

    options.check_goal(asked["sparsity"], asked["relative_error"], asked["pattern"])
    files.check_target("--output", output, force=force)
    arrays: dict[str, Any] = {**arrays_of(data)}
    with console.plain_warnings(), console.working(f"making {data.name} sparse", quiet=quiet) as tell:
        found = sparsify(n_threads=asked.pop("threads"), callback=_follow(tell), **arrays, **asked)
    parts = {"weight": found.weight} | ({} if found.bias is None else {"bias": found.bias})
    files.write_file("--output", output, files.archive_of(parts), force=force)
    if as_json:
        from ..network.json_values import json_text, json_value

        click.echo(json_text(json_value("result", _record(found, output))), nl=False)
    elif not quiet:
        click.echo(f"{found}\nWritten: {output}")


def arrays_of(data: Path) -> Arrays:
    """Return the arrays of a layer; a name that is not known may be one that was misspelt."""
    from .files import read_arrays

    arrays = read_arrays(data)
    for name in NEEDED:
        if name not in arrays:
            msg = f"{data} holds no {name!r} but {', '.join(map(repr, arrays)) or 'nothing'}"
            raise click.BadParameter(msg)
    for name in arrays:
        if name not in KNOWN:
            msg = f"{data} holds {name!r}, which is none of {', '.join(KNOWN)}: leave it out"
            raise click.BadParameter(msg)
    return arrays


def _follow(tell: Tell) -> Any:
    """Return what tells how far the convex program is."""

    def follow(progress: Progress) -> None:
        tell(f"convex program: round {progress.round}, gap {progress.gap:.1e}")

    return follow


def _record(found: SparseLayer, output: Path) -> dict[str, Any]:
    """Return what JSON says of a layer."""
    return {
        "output": str(output),
        "shape": found.weight.shape,
        "n_weights": found.weight.size,
        "n_kept": int((found.weight != 0).sum()),
        "sparsity": found.sparsity,
        "relative_error": found.relative_error,
        "output_error": found.output_error,
        "held_out_error": found.held_out_error,
        "gap": None if found.convex is None else found.convex.gap,
        "status": None if found.convex is None else found.convex.status.name.lower(),
        "settings": str(found.settings),
        "seconds": sum(stage.seconds for stage in found.stages),
    }
