"""``sisopt show``: a report that was written as JSON, as a table or as a page."""

# ruff: noqa: PLC0415  extras, and nothing that a mere --help would wait for
from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from . import options

if TYPE_CHECKING:
    from ..network import NetworkReport


@click.command(
    epilog="""
\b
Example, with report.json from report.to_json() or sisopt onnx --report:
  sisopt show report.json --html report.html
"""
)
@click.argument("report", type=options.IN)
@click.option("--html", type=options.OUT, help="Write a page to look at in a browser; it needs no other file.")
@options.force
@options.quiet
def show(report: Path, html: Path | None, *, force: bool, quiet: bool) -> None:
    """Show what became of a network.

    REPORT is a report in JSON. A line per layer is printed, and a page written where one is asked for.
    """
    from . import console, files

    if html is not None:
        files.check_targets([("--html", html)], [("REPORT", report)], force=force)
        files.check_page_extra()
    found = _read(report)
    if not quiet:
        click.echo(console.printable(found.table()))
    if html is not None:
        files.write_file("--html", html, found.to_html().encode(errors="replace"), force=force)
        if not quiet:
            click.echo(f"Page: {html.resolve()}")


def _read(path: Path) -> NetworkReport:
    from ..errors import InvalidInputError
    from ..network import NetworkReport

    try:
        return NetworkReport.from_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, InvalidInputError) as error:
        msg = f"{path}: {error}"
        raise click.BadParameter(msg) from None
