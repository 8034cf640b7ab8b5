"""A network's report, drawn with matplotlib: black ink, told apart by shapes and strokes as well as by colours."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from .report_table import short_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure as Figure

    from .report import LayerReport, NetworkReport

MANY = 8  # layers that get a curve in a style of their own
MARKERS, STROKES = "os^Dv", ("-", "--", "-.", ":")  # 5 and 4: as pairs they repeat after 20
LEAST_GAP = 1e-9  # smaller ones are drawn here
NAMED = 60  # layers of which each has its name at the axis
WIDTH, LINE, REST = 9.0, 0.19, 1.1  # inches: of a figure, of a layer, of what is around layers
CURVES_HEIGHT = 3.6

Panel = Callable[["Axes", "NetworkReport"], None]


def overview(report: NetworkReport) -> Figure:
    """Return all panels that there is something to draw in."""
    panels = [_draw_zeros, *_known_panels(report)]
    lines = _lines_height(report)
    curves = has_points(report)
    figure = _figure(lines + CURVES_HEIGHT * curves)
    grid = figure.add_gridspec(1 + curves, len(panels), height_ratios=[lines, CURVES_HEIGHT][: 1 + curves])
    for number, draw in enumerate(panels):
        _draw_lines(figure.add_subplot(grid[0, number]), report, draw, named=number == 0)
    if curves:
        _draw_curves(figure.add_subplot(grid[1, :]), report)
    return figure


def curves_figure(report: NetworkReport) -> Figure:
    """Return how errors grow with zeros."""
    figure = _figure(CURVES_HEIGHT)
    _draw_curves(figure.subplots(), report)
    return figure


def errors_figure(report: NetworkReport) -> Figure | None:
    """Return the layers' errors and certified gaps; nothing where none is known."""
    panels = _known_panels(report)
    if not panels:
        return None
    figure = _figure(_lines_height(report))
    for number, (axes, draw) in enumerate(zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True)):
        _draw_lines(axes, report, draw, named=number == 0)
    return figure


def has_points(report: NetworkReport) -> bool:
    """Return whether there is a curve, or an error of a sparse layer."""
    return any(layer.curve or _reached(layer) for layer in report.layers)


def svg_of(draw: Callable[[NetworkReport], Figure | None], report: NetworkReport) -> str | None:
    """Return a figure as an SVG element for a page: the same for the same report, whatever the caller's style."""
    _matplotlib()
    from matplotlib import style  # noqa: PLC0415  an extra

    stream = io.StringIO()
    with style.context(["default", {"svg.fonttype": "none", "svg.hashsalt": "sisopt"}]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the browser has its own fonts
        figure = draw(report)
        if figure is None:
            return None
        figure.savefig(
            stream, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
    text = stream.getvalue()
    # names of groups would be there twice in a page with two pictures; a "<" in a text is written otherwise
    return re.sub(r'<g id="[^"]*">', "<g>", text[text.index("<svg") :])


def _matplotlib() -> Any:
    """Return matplotlib, an extra."""
    try:
        import matplotlib.figure  # noqa: PLC0415  an extra
    except ModuleNotFoundError as error:
        msg = 'drawing a report needs matplotlib: pip install "sisopt[plot]"'
        raise ModuleNotFoundError(msg, name=error.name) from None
    return matplotlib


def _figure(height: float) -> Figure:
    """Return a figure of its own: no display is needed, and pyplot does not hold on to it."""
    figure: Figure = _matplotlib().figure.Figure(figsize=(WIDTH, height), layout="constrained")
    return figure


def _lines_height(report: NetworkReport) -> float:
    """Return the inches that a line per layer takes; beyond ``NAMED`` lines come closer."""
    n = len(report.layers)
    return REST + LINE * min(n, NAMED) + 0.25 * LINE * max(0, n - NAMED)


def _known_panels(report: NetworkReport) -> list[Panel]:
    """Return how to draw what is known of the layers' errors."""
    panels: list[Panel] = []
    if any(layer.output_error or layer.held_out_error for layer in report.layers):
        panels.append(_draw_errors)
    if any(layer.gap is not None for layer in report.layers):
        panels.append(_draw_gaps)
    return panels


def _draw_lines(axes: Axes, report: NetworkReport, draw: Panel, *, named: bool) -> None:
    """Draw a panel with a line per layer, the first at the top."""
    draw(axes, report)
    n = len(report.layers)
    every = -(-n // NAMED) or 1
    names = _names(report.layers) if named else [""] * n
    axes.set_yticks(range(0, n, every), labels=names[::every], parse_math=False, fontsize=8)
    axes.set_ylim(n - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    _finish(axes, "x")


def _draw_zeros(axes: Axes, report: NetworkReport) -> None:
    at = range(len(report.layers))
    axes.barh(at, [100.0] * len(at), height=0.7, color="none", edgecolor="0.6", linewidth=0.6)
    axes.barh(at, [100.0 * layer.sparsity for layer in report.layers], height=0.7, color="0.35")
    axes.axvline(100.0 * report.sparsity, color="C1", linestyle="--", linewidth=1.2)
    axes.set_xlim(0.0, 100.0)
    axes.set_title("zeros, %\ndashed: of all", fontsize=9)


def _draw_errors(axes: Axes, report: NetworkReport) -> None:
    looks: tuple[tuple[str, dict[str, Any]], ...] = (
        ("output_error", {"marker": "o", "color": "C0"}),
        ("held_out_error", {"marker": "D", "color": "C1", "markerfacecolor": "none"}),
    )
    for name, look in looks:
        known = [(getattr(layer, name), n) for n, layer in enumerate(report.layers) if getattr(layer, name)]
        if known:
            axes.plot(*zip(*known, strict=True), linestyle="", markersize=5, **look)
    axes.set_xscale("log")
    _plain_figures(axes.xaxis, 1.5)
    axes.set_title("output error\ndiamonds: held out", fontsize=9)


def _draw_gaps(axes: Axes, report: NetworkReport) -> None:
    known = [(max(layer.gap, LEAST_GAP), n) for n, layer in enumerate(report.layers) if layer.gap is not None]
    axes.plot(*zip(*known, strict=True), linestyle="", marker="^", markersize=5, color="C2")
    tol = report.options.get("tol")
    title = "certified gap" + f"; {LEAST_GAP:g}: or less" * any(gap == LEAST_GAP for gap, _ in known)
    if isinstance(tol, float) and tol > 0.0:
        axes.axvline(tol, color="0.3", linestyle=":", linewidth=1.2)
        title += "\ndotted: wanted"
    axes.set_xscale("log")
    _plain_figures(axes.xaxis, 1.5, "{x:.0e}")
    axes.set_title(title, fontsize=9)


def _draw_curves(axes: Axes, report: NetworkReport) -> None:
    """Draw errors over zeros, and where each layer ended; of many layers those with the largest errors stand out."""
    known = [layer for layer in report.layers if layer.curve or _reached(layer)]
    names = _names(report.layers)
    loudest = sorted(known, key=lambda layer: -(layer.output_error or 0.0))[:MANY]
    handles: list[Any] = []
    labels: list[str] = []
    for layer, name in zip(report.layers, names, strict=True):
        if layer not in known:
            continue
        if any(layer is each for each in loudest):
            n = len(handles)
            look: dict[str, Any] = {
                "color": f"C{n}",
                "linestyle": STROKES[n % len(STROKES)],
                "marker": MARKERS[n % len(MARKERS)],
            }
            handles.append(_draw_curve(axes, layer, look, 1.4))
            labels.append(name)
        else:
            _draw_curve(axes, layer, {"color": "0.7", "linestyle": "-", "marker": "o"}, 0.7)
    if len(known) > len(loudest):
        (other,) = axes.plot([], [], color="0.7", marker="o", linewidth=0.7)
        handles.append(other)
        labels.append(f"{len(known) - len(loudest)} others, with smaller errors")
    axes.set_yscale("log")
    _plain_figures(axes.yaxis, 3.5)
    axes.set_xlabel("zeros, %")
    axes.set_ylabel("output error")
    lines = "lines: errors that zeros cost each layer; " * any(layer.curve for layer in known)
    axes.set_title(f"{lines}marks: where the layers ended", fontsize=9)
    # names are set after: a legend leaves out what begins with an underscore
    legend = axes.legend(handles, [str(n) for n in range(len(handles))], fontsize=7, framealpha=0.6, loc="center left",
                         bbox_to_anchor=(1.0, 0.5))  # fmt: skip
    for text, label in zip(legend.get_texts(), labels, strict=True):
        text.set_parse_math(False)
        text.set_text(label)
    _finish(axes, "both")


def _draw_curve(axes: Axes, layer: LayerReport, look: dict[str, Any], width: float) -> Any:
    """Draw a layer's curve and the point where it ended, and return what stands for both in a legend."""
    line = look | {"marker": ""}
    points = [(100.0 * sparsity, error) for sparsity, error in layer.curve if error > 0.0]
    if points:
        axes.plot(*zip(*points, strict=True), linewidth=width, **line)
    if _reached(layer):
        axes.plot([100.0 * layer.sparsity], [layer.output_error or 0.0], markersize=6, **(look | {"linestyle": ""}))
    return axes.plot([], [], linewidth=width, markersize=6, **look)[0]


def _reached(layer: LayerReport) -> bool:
    """Return whether a layer has zeros and an error that can be drawn."""
    return bool(layer.output_error) and layer.sparsity > 0.0


def _names(layers: Sequence[LayerReport]) -> list[str]:
    """Return names short enough for an axis, without what no font draws."""
    return ["".join(c if c.isprintable() else "\ufffd" for c in name) for name in short_names([x.name for x in layers])]


def _plain_figures(axis: Axis, decades: float, form: str = "{x:g}") -> None:
    """Give a logarithmic axis figures that are read at a glance, more of them where it has few decades."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter  # noqa: PLC0415  an extra

    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 10.0**decades * low else (1.0,)))
    axis.set_major_formatter(StrMethodFormatter(form))
    axis.set_minor_formatter(NullFormatter())


def _finish(axes: Axes, grid: Any) -> None:
    axes.grid(axis=grid, color="0.85", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
