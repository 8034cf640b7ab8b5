"""The ``sisopt`` command.

Everything beyond the standard library is imported where it is used: ``--help`` and ``--version`` answer at once, and a
missing extra gets a message instead of a traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import SisoptError

if TYPE_CHECKING:
    import click

    from .demo import Result, Settings

USER_ERROR = 2
INTERRUPTED = 130  # 128 + SIGINT, what a shell expects
EXTRA_OF = {"click": "cli", "rich": "demo", "matplotlib": "demo", "sklearn": "demo"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Parameters
    ----------
    arguments : sequence of str, optional
        What follows the command's name; by default that of the process.
    """
    try:
        return _run(sys.argv[1:] if arguments is None else list(arguments))
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRA_OF:
            raise
        _fail(f'{package} is not installed. Install it with\n\n    pip install "sisopt[{EXTRA_OF[package]}]"\n')
        return USER_ERROR
    except SisoptError as error:
        _fail(str(error))
        return USER_ERROR
    except KeyboardInterrupt:
        _fail("interrupted")
        return INTERRUPTED


def _fail(message: str) -> None:
    print(f"sisopt: {message}", file=sys.stderr)


def _run(arguments: list[str]) -> int:
    import click

    try:
        status = _commands().main(arguments, prog_name="sisopt", standalone_mode=False)
    except click.Abort:  # how click reports Ctrl-C
        raise KeyboardInterrupt from None
    except click.ClickException as error:
        error.show()
        return error.exit_code
    return status if isinstance(status, int) else 0


def _commands() -> click.Group:
    import click

    @click.group(context_settings={"help_option_names": ["-h", "--help"]})
    @click.version_option(_version(), "-V", "--version", message="%(prog)s %(version)s")
    def group() -> None:
        """Sparse neural-network layers by certified convex optimisation."""

    @group.command()
    @click.option(
        "--out",
        "folder",
        type=click.Path(file_okay=False, path_type=Path),
        default=Path("out"),
        show_default=True,
        help="Folder for the picture; made if it is not there.",
    )
    @click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Split and training.")
    @click.option("--quick", is_flag=True, help="A smaller network and fewer sparsities: a few seconds.")
    def demo(folder: Path, seed: int, quick: bool) -> None:
        """Sparsify a network for handwritten digits.

        A ReLU network is trained on scikit-learn's scans of digits, and every layer made sparse at several sparsities.
        Prints errors, certified gaps and accuracies beside those of magnitude pruning, and saves a picture.
        """
        from .demo import QUICK, Settings

        try:
            folder.mkdir(parents=True, exist_ok=True)  # before the work, not after it
        except OSError as error:
            msg = f"cannot make the folder: {error.strerror}"
            raise click.BadParameter(msg, param_hint="--out") from None
        _demo(replace(QUICK if quick else Settings(), seed=seed), folder)

    return group


def _version() -> str:
    from . import __version__

    return __version__


def _demo(settings: Settings, folder: Path) -> None:
    import matplotlib  # noqa: F401  if it is missing, say so before the work
    import sklearn  # noqa: F401
    from rich.console import Console

    from . import demo_report

    result = _with_progress(settings)
    console = Console()
    console.print(demo_report.layer_table(result), demo_report.network_table(result))
    picture = demo_report.save_picture(result, folder / demo_report.PICTURE_NAME)
    console.print(
        f"{result.n_images} images trained the network and calibrated the layers, {result.n_held_out} were held out.\n"
        f"{result.seconds:.1f} s in all, training and compiling included."
    )
    console.print(f"Picture: {picture.resolve()}", soft_wrap=True, highlight=False)


def _with_progress(settings: Settings) -> Result:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from .demo import run

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


if __name__ == "__main__":
    sys.exit(main())
