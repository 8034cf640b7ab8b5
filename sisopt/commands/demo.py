"""``sisopt demo``: what sisopt does, on a network that it trains."""

# ruff: noqa: PLC0415  extras, and nothing that a mere --help would wait for
from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from . import options

if TYPE_CHECKING:
    from ..demo import Result, Settings


@click.command()
@click.option(
    "--out", "folder", type=options.FOLDER, default=Path("out"), show_default=True,
    help="Folder for picture and report; made if it is not there. Those of an earlier run are replaced.",
)  # fmt: skip
@options.seed
@click.option("--quick", is_flag=True, help="A smaller network and fewer sparsities: a few seconds.")
def demo(folder: Path, seed: int, quick: bool) -> None:
    """Sparsify a network for handwritten digits.

    A ReLU network is trained on scikit-learn's scans of digits, and every layer made sparse at several sparsities.
    Prints errors, certified gaps and accuracies beside those of magnitude pruning, and saves a picture and a report.
    """
    from ..demo import QUICK, Settings

    try:
        folder.mkdir(parents=True, exist_ok=True)  # before the work, not after it
    except OSError as error:
        msg = f"cannot make the folder: {error.strerror}"
        raise click.BadParameter(msg, param_hint="--out") from None
    _demo(replace(QUICK if quick else Settings(), seed=seed), folder)


def _demo(settings: Settings, folder: Path) -> None:
    import jinja2  # noqa: F401  if it is missing, say so before the work
    import matplotlib  # noqa: F401
    import sklearn  # noqa: F401
    from rich.console import Console

    from .. import demo_report
    from . import files

    for name in (demo_report.PICTURE_NAME, demo_report.TREE_NAME, demo_report.PAGE_NAME):
        files.check_target("--out", folder / name, force=True)
    result = _with_progress(settings)
    console = Console()
    console.print(demo_report.layer_table(result), demo_report.network_table(result))
    picture = demo_report.save_picture(result, folder / demo_report.PICTURE_NAME)
    page, tree = demo_report.save_report(result, folder)
    console.print(
        f"{result.n_images} images trained the network and calibrated the layers, {result.n_held_out} were held out.\n"
        f"{result.seconds:.1f} s in all, training and compiling included."
    )
    for name, path in (("Picture", picture), ("Report for sisopt show", tree), ("Report to open in a browser", page)):
        console.print(f"{name}: {path.resolve()}", soft_wrap=True, highlight=False, markup=False)


def _with_progress(settings: Settings) -> Result:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from ..demo import run

    columns = (
        TextColumn("{task.description:<32}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    # On stderr and gone at the end: what stays on stdout are the tables.
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=None)

        def report(done: int, total: int, doing: str) -> None:
            bar.update(task, completed=done, total=total, description=doing)

        return run(settings, report)
