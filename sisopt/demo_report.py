"""The demo, shown: tables for a terminal, a picture, and a report of one network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from .network import LayerReport, NetworkReport
from .network.atomic_files import replace_files

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.table import Table

    from .demo import LayerRow, Result

PICTURE_NAME, PAGE_NAME, TREE_NAME = "sisopt-demo.png", "sisopt-demo.html", "sisopt-demo.json"
REPORTED = 0.9  # the sparsity of the network that is reported: the largest one up to here
TOL = 1e-3  # the gap that `sisopt.sparsify` asks for
OURS, MAGNITUDE = "sisopt", "magnitude pruning"


def layer_table(result: Result) -> Table:
    """Return the table of all layers at all sparsities; 80 columns hold it."""
    from rich import box
    from rich.table import Table

    table = Table(
        title="Every layer, behind layers that are already sparse",
        caption="error: ‖R(Z) − Y‖ / ‖Y‖, Y of the dense network\nmagnitude: largest weights kept, just as many",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("zeros", justify="right")
    table.add_column("layer", no_wrap=True)
    for heading in ("calibration\nerror", "held-out\nerror", "magnitude\nheld-out", "certified\ngap", "seconds"):
        table.add_column(heading, justify="right")
    previous: LayerRow | None = None
    for row in result.layers:
        if previous is not None and row.sparsity != previous.sparsity:
            table.add_section()
        table.add_row(
            f"{1 - row.n_kept / row.size:.1%}",
            row.layer,
            f"{row.calibration_error:.4f}",
            f"{row.held_out_error:.4f}",
            f"{row.magnitude_error:.4f}",
            f"{row.gap:.1e}",
            f"{row.seconds:.2f}",
        )
        previous = row
    return table


def network_table(result: Result) -> Table:
    """Return the table of the network's accuracy at all sparsities."""
    from rich import box
    from rich.table import Table

    table = Table(title=f"Accuracy on {result.n_held_out} images that nothing was fitted to", box=box.SIMPLE_HEAD)
    for heading in ("zeros", "dense", OURS, MAGNITUDE):
        table.add_column(heading, justify="right", min_width=8)
    for row in result.networks:
        table.add_row(
            f"{row.sparsity:.0%}",
            f"{result.dense_accuracy:.1%}",
            f"{row.accuracy:.1%}",
            f"{row.magnitude_accuracy:.1%}",
        )
    return table


def save_picture(result: Result, path: Path) -> Path:
    """Draw accuracy against sparsity and the error-sparsity curve of a layer into a PNG file, and return its path."""
    # The figure's own canvas instead of pyplot: no display is needed and the caller's backend is left alone.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 3.7), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    _draw_accuracy(left, result)
    _draw_errors(right, result)
    figure.savefig(path, metadata={"Software": None})  # no version in the file: same result, same bytes
    return path


def network_report(result: Result) -> NetworkReport:
    """Return the report of one of the networks; its curves are what the others say of each layer."""
    sparsity = max((row.sparsity for row in result.networks if row.sparsity <= REPORTED), default=None)
    chosen = [row for row in result.layers if row.sparsity == sparsity]
    layers = [
        LayerReport(
            row.layer, "dense", row.shape, "identity" if row is chosen[-1] else "relu", row.size, row.n_kept, row.size,
            row.calibration_error, row.held_out_error, None, row.gap, "optimal" if row.gap <= TOL else "stopped",
            row.seconds, density=row.density,
            curve=tuple((r.sparsity, r.calibration_error) for r in result.layers if r.layer == row.layer),
        )
        for row in chosen
    ]  # fmt: skip
    options = {
        "network": "handwritten digits, sisopt demo", "sparsity": sparsity, "allocation": "uniform",
        "mode": "sequential", "effort": "full", "seed": result.settings.seed, "tol": TOL,
    }  # fmt: skip
    return NetworkReport(tuple(layers), options)


def save_report(result: Result, folder: Path) -> tuple[Path, Path]:
    """Write the report as a page and as JSON, and return their paths."""
    report = network_report(result)
    page, tree = folder / PAGE_NAME, folder / TREE_NAME
    report.to_html(page)
    replace_files(folder, {tree.name: report.to_json().encode()})
    return page, tree


def curve_layer(result: Result) -> str:
    """Return the name of the layer whose errors are drawn: the one with most weights."""
    return max(result.layers, key=lambda row: row.size).layer


def _draw_accuracy(axes: Axes, result: Result) -> None:
    zeros = [100 * row.sparsity for row in result.networks]
    ours = [100 * row.accuracy for row in result.networks]
    magnitude = [100 * row.magnitude_accuracy for row in result.networks]
    axes.axhline(100 * result.dense_accuracy, color="0.45", linestyle=":", label="dense network")
    axes.plot(zeros, ours, color="C0", linestyle="-", marker="o", label=OURS)
    axes.plot(zeros, magnitude, color="C1", linestyle="--", marker="s", markerfacecolor="white", label=MAGNITUDE)
    axes.set_title("Accuracy on handwritten digits, held out", fontsize=10)
    axes.set_ylabel("accuracy, %")
    _finish(axes, zeros, legend_at="lower left")


def _draw_errors(axes: Axes, result: Result) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    name = curve_layer(result)
    rows = [row for row in result.layers if row.layer == name]
    zeros = [100 * row.sparsity for row in rows]
    ours = [row.held_out_error for row in rows]
    magnitude = [row.magnitude_error for row in rows]
    axes.plot(zeros, magnitude, color="C1", linestyle="--", marker="s", markerfacecolor="white", label=MAGNITUDE)
    axes.plot(zeros, ours, color="C0", linestyle="-", marker="o", label=OURS)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_title(f"Error of layer {name}, held out", fontsize=10)
    axes.set_ylabel("‖R(Z) − Y‖ / ‖Y‖")
    _finish(axes, zeros, legend_at="upper left")


def _finish(axes: Axes, zeros: list[float], legend_at: Literal["lower left", "upper left"]) -> None:
    axes.set_xticks(zeros)
    axes.set_xlabel("zeros in every layer, %")
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc=legend_at, frameon=False, fontsize=9)
