"""``sisopt bench``: how long a layer takes on this machine, and what comes of it."""

# ruff: noqa: PLC0415  extras, and nothing that a mere --help would wait for
from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import click

from . import options

if TYPE_CHECKING:
    from rich.table import Table

    from .files import Arrays

SAMPLES, N_IN, N_OUT = 2500, 256, 128  # of the layer that is made up
HELD_OUT = 5  # one sample in so many is for measuring alone
EFFORTS = ("fast", "default", "full")


@dataclass(frozen=True)
class Row:
    """What a method made of the layer; errors are ``||R(Z) - Y|| / ||Y||``."""

    method: str
    sparsity: float
    calibration_error: float
    held_out_error: float
    gap: float | None
    seconds: float


@click.command(
    epilog="""
\b
Examples:
  sisopt bench
  sisopt bench data.npz --activation gelu --sparsity 0.9
\b
The whole suite, with other methods beside, is "make bench" in a checkout.
"""
)
@click.argument("data", type=options.IN, required=False)
@click.option("--activation", default="relu", show_default=True, help="What follows the layer: relu, gelu, ...")
@click.option("--sparsity", type=options.FRACTION, default=0.8, show_default=True, help="Fraction of zero weights.")
@options.seed
@options.threads
@options.json
def bench(
    data: Path | None, *, activation: str, sparsity: float, seed: int, threads: int | None, as_json: bool
) -> None:
    """Time sisopt on this machine.

    One layer is made sparse by magnitude pruning and with all efforts. It is yours, from DATA, an .npz file as "sisopt
    layer" takes it; or one that is made up, of random weights: its times tell how fast the machine is, its errors
    little about trained layers. A fifth of the samples is held out.
    """
    from .. import warmup
    from . import console

    arrays = _made_up(seed) if data is None else _own(data)
    _check(arrays, activation)
    n_out, n_in = arrays["weight"].shape
    with console.plain_warnings(), console.working("compiling", quiet=False) as tell:
        started = perf_counter()
        warmup()
        compiling = perf_counter() - started
        rows = []
        for method in ("magnitude", *EFFORTS):
            tell(f"{n_in} -> {n_out}, {method}")
            rows.append(_run(method, arrays, activation, sparsity, seed, threads))
    about = dict(_about(arrays, activation, threads, compiling))
    if as_json:
        from ..network.json_values import json_text, json_value

        click.echo(json_text(json_value("result", about | {"rows": [asdict(row) for row in rows]})), nl=False)
    else:
        from rich.console import Console

        Console().print(_table(rows))
        for name, value in about.items():
            click.echo(f"{name.replace('_', ' ')}: {f'{value:.1f} s' if isinstance(value, float) else value}")


def _own(path: Path) -> Arrays:
    """Return the arrays of a layer."""
    from .layer import arrays_of

    arrays = arrays_of(path)
    if arrays.pop("preactivations", None) is not None:
        click.echo("sisopt: preactivations are left aside: outputs are compared to the layer's own", err=True)
    return arrays


def _check(arrays: Arrays, activation: str) -> None:
    """Refuse what cannot be measured, before anything is compiled."""
    from .. import LayerProblem

    LayerProblem(arrays["inputs"], arrays["weight"], arrays.get("bias"), activation=activation)
    if len(arrays["inputs"]) < HELD_OUT:
        msg = f"it holds {len(arrays['inputs'])} samples, and one in {HELD_OUT} is held out: give {HELD_OUT} or more"
        raise click.BadParameter(msg, param_hint="DATA")


def _made_up(seed: int) -> Arrays:
    """Return a layer with random weights behind a ReLU, on inputs that depend on one another."""
    import numpy as np

    rng = np.random.default_rng(seed)
    spread = rng.normal(size=(N_IN, N_IN)) * np.arange(1, N_IN + 1)[:, None] ** -0.5
    return {
        "inputs": np.maximum(rng.normal(size=(SAMPLES, N_IN)) @ spread, 0.0),
        "weight": rng.normal(size=(N_OUT, N_IN)) / np.sqrt(N_IN),
        "bias": rng.normal(size=N_OUT) / 10,
    }


def _run(method: str, arrays: Arrays, activation: str, sparsity: float, seed: int, threads: int | None) -> Row:
    """Return what a method makes of the samples that are not held out."""
    import numpy as np

    from .. import LayerProblem, get_pattern, sparsify
    from ..evaluation import output_error

    X, W, b = arrays["inputs"], arrays["weight"], arrays.get("bias")
    held = np.arange(len(X)) % HELD_OUT == HELD_OUT - 1
    started = perf_counter()
    gap = None
    if method == "magnitude":
        weight, bias = np.where(get_pattern(None).select(np.abs(W), sparsity), W, 0.0), b
    else:
        layer = sparsify(X[~held], W, b, activation=activation, sparsity=sparsity, effort=method, seed=seed,
                         n_threads=threads)  # fmt: skip
        weight, bias, gap = layer.weight, layer.bias, None if layer.convex is None else layer.convex.gap
    seconds = perf_counter() - started
    fitted, judged = (
        output_error(LayerProblem(X[rows], W, b, activation=activation), weight, bias) for rows in (~held, held)
    )
    return Row(method, float(np.mean(weight == 0)), fitted, judged, gap, seconds)


def _about(arrays: Arrays, activation: str, threads: int | None, compiling: float) -> Iterator[tuple[str, Any]]:
    """Yield what the figures depend on."""
    import numpy as np

    from .. import __version__
    from ..threads import resolve_threads

    n_out, n_in = arrays["weight"].shape
    yield "layer", f"{n_in} -> {n_out}, {activation}, {len(arrays['inputs'])} samples"
    yield "machine", f"{platform.machine()}, {os.cpu_count()} cores, {resolve_threads(threads)} threads"
    yield "versions", f"sisopt {__version__}, numpy {np.__version__}, Python {platform.python_version()}"
    yield "compiling", compiling


def _table(rows: list[Row]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("method")
    for heading in ("zeros", "calibration\nerror", "held-out\nerror", "certified\ngap", "seconds"):
        table.add_column(heading, justify="right")
    for row in rows:
        name = row.method if row.method == "magnitude" else f"sisopt, {row.method}"
        gap = "-" if row.gap is None else f"{row.gap:.1e}"
        errors = (f"{row.calibration_error:.4f}", f"{row.held_out_error:.4f}")
        table.add_row(name, f"{row.sparsity:.1%}", *errors, gap, f"{row.seconds:.2f}")
    return table
