"""``sisopt onnx``: a model in ONNX, from file to file."""

# ruff: noqa: PLC0415  extras, and nothing that a mere --help would wait for
from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..network.planning import ALLOCATIONS, MODES
from . import options
from .files import Arrays

BATCH = 32  # samples of a batch where the model leaves that open


@click.command(
    epilog="""
\b
Example:
  sisopt onnx model.onnx calibration.npz --sparsity 0.8 -o sparse.onnx --html report.html
\b
with calibration.npz from
  numpy.savez("calibration.npz", **{"input": images})   # an array for each input of the model, samples first
"""
)
@click.argument("model", type=options.IN)
@click.argument("calibration", type=options.IN)
@click.option("-o", "--output", type=options.OUT, required=True, help="The .onnx file to write.")
@options.goals
@click.option(
    "--allocation",
    type=click.Choice(ALLOCATIONS),
    help="How zeros are shared out over layers; by default where they cost least, evenly with --pattern.",
)
@click.option("--mode", type=click.Choice(MODES), help="Whether layers make up for errors of those before them.")
@click.option("--include", multiple=True, help="Layers by a glob of names or of node types; may be repeated.")
@click.option("--exclude", multiple=True, help="Layers that stay dense; may be repeated.")
@options.effort
@options.seed
@click.option("--batch-size", type=click.IntRange(1), help=f"Samples run at once; by default the model's, or {BATCH}.")
@click.option("--max-samples", type=click.IntRange(1), help="Samples, tokens or places that a layer is solved on.")
@click.option(
    "--checkpoint", type=options.FOLDER, help="Folder from which the same call goes on after an interruption."
)
@click.option("--report", "tree", type=options.OUT, help="Write the report as JSON, for sisopt show.")
@click.option("--html", type=options.OUT, help="Write the report as a page.")
@options.threads
@options.force
@options.quiet
@options.json
def onnx(
    model: Path, calibration: Path, output: Path, tree: Path | None, html: Path | None, *, batch_size: int | None,
    threads: int | None, force: bool, quiet: bool, as_json: bool, **asked: Any,
) -> int:  # fmt: skip
    """Make an ONNX model sparse, from file to file.

    CALIBRATION, an .npz file, holds an array for each input of MODEL by its name, samples along the first axis. Labels
    are not needed.
    """
    from ..adapters.onnx import sparsify_onnx
    from ..adapters.onnx.writing import data_file, needs_data_file, read_model
    from . import console, files

    options.check_goal(asked["sparsity"], asked["relative_error"], asked["pattern"])
    pages = [(option, path) for option, path in (("--report", tree), ("--html", html)) if path is not None]
    read = read_model(model)
    models = [output, data_file(output)] if needs_data_file(read) else [output]
    sources = [("CALIBRATION", calibration)]
    if not files.same_file(model, output):  # the sparse model may take the place of the dense one, reports may not
        sources.append(("MODEL", model))
    files.check_targets([*(("--output", path) for path in models), *pages], sources, force=force)
    if html is not None:
        files.check_page_extra()
    fixed = _batch_of(read)
    batches = _batches(calibration, batch_size or fixed or BATCH, whole=fixed is not None)
    given = {name: value for name, value in asked.items() if value not in (None, ())}
    with console.plain_warnings():
        _, report = sparsify_onnx(
            model,
            batches,
            output=output,
            overwrite=force,
            progress=False if quiet else None,
            n_threads=threads,
            **given,
        )
    if tree is not None:
        files.write_file("--report", tree, report.to_json().encode(), force=force)
    if html is not None:
        files.write_file("--html", html, report.to_html().encode(errors="replace"), force=force)
    if as_json:
        click.echo(report.to_json(), nl=False)
    elif not quiet:
        click.echo(console.printable(report.table()))
        for path in (output, *(path for _, path in pages)):
            click.echo(f"Written: {path}")
    missed = [layer.name for layer in report.layers if "unattainable" in layer.status]
    if missed:
        console.fail(
            f"--relative-error could not be kept by {', '.join(missed)}: these have the least error that they can"
        )
    return 1 if missed else 0


def _batches(path: Path, size: int, *, whole: bool) -> list[Arrays]:
    """Return the calibration data, some samples at a time; all batches whole, or the last one shorter."""
    from .files import read_arrays

    arrays = read_arrays(path)
    lengths = {name: array.shape[0] if array.ndim else 0 for name, array in arrays.items()}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        found = ", ".join(f"{name}: {length}" for name, length in lengths.items()) or "no arrays"
        msg = f"{path} must hold arrays with the same number of samples, at least one, got {found}"
        raise click.BadParameter(msg, param_hint="CALIBRATION")
    (length,) = set(lengths.values())
    if whole and length < size:
        msg = f"{path} holds {length} samples, and the model takes {size} at a time"
        raise click.BadParameter(msg, param_hint="CALIBRATION")
    if whole and length % size:
        click.echo(f"sisopt: the last {length % size} samples are left out: the model takes {size} at a time", err=True)
        length -= length % size
    starts = range(0, length, size)
    return [{name: array[start : start + size] for name, array in arrays.items()} for start in starts]


def _batch_of(model: Any) -> int | None:
    """Return the size of the batches that a model takes, None where it leaves that open."""
    graph = model.graph
    constants = {each.name for each in graph.initializer}
    shapes = [value.type.tensor_type.shape.dim for value in graph.input if value.name not in constants]
    return max((shape[0].dim_value for shape in shapes if shape), default=0) or None
