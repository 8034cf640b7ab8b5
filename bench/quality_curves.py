"""The picture of the bench of quality: errors against sparsity, a panel for every group of layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from bench.quality import LEVELS, METHODS
from bench.quality_floors import geometric_mean
from bench.quality_results import LayerResult
from bench.quality_tables import panels

ZEROS = [level for level in LEVELS if level != "2:4"]
STYLES = {  # marker, line, shade: told apart without colours
    "magnitude": ("v", ":", "0.55"),
    "magnitude + refit": ("v", "-", "0.55"),
    "Wanda": ("x", ":", "0.55"),
    "SparseGPT": ("D", "--", "0.45"),
    "Boža ADMM": ("^", "-.", "0.35"),
    "ALPS": (">", "-", "0.35"),
    "OBC": ("s", "--", "0.35"),
    "lasso": ("+", ":", "0.45"),
    "lasso + refit": ("+", "-", "0.45"),
    "Net-Trim": ("*", ":", "0.45"),
    "sisopt": ("o", "-", "black"),
    "sisopt, fast": ("o", "--", "black"),
}
OURS = {"sisopt": {"linewidth": 2.2}, "sisopt, fast": {"linewidth": 1.4, "markerfacecolor": "white"}}


def curve(results: Sequence[LayerResult], method: str) -> list[tuple[int, float]]:
    """Return (index of the level, geometric mean of the errors), NaN where the method did not run on all of the layers.

    A line has a gap there: drawn through, it would tell of errors that nobody measured.
    """
    points = []
    for index, level in enumerate(ZEROS):
        errors = [result.error for result in results if (result.level, result.method) == (level, method)]
        whole = errors and len(errors) == len({result.layer for result in results if result.level == level})
        points.append((index, geometric_mean(errors) if whole else math.nan))
    return points


def draw(results: Sequence[LayerResult], path: Path) -> None:
    """Draw the curves of all methods."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    groups = panels(results)
    n_rows = -(-len(groups) // 3)
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "sisopt", "font.size": 10}):
        figure = Figure(figsize=(11, 3.6 * n_rows + 0.7), layout="constrained")
        axes = figure.subplots(n_rows, 3, squeeze=False).flat
        handles = {}
        for axis, (name, of) in zip(axes, groups.items(), strict=False):
            for method in METHODS:
                points = curve(of, method)
                if not all(math.isnan(error) for _, error in points):
                    marker, line, shade = STYLES[method]
                    look = {"markersize": 5, "linewidth": 1.0, **OURS.get(method, {})}
                    style = {"marker": marker, "linestyle": line, "color": shade, "label": method, **look}
                    (handles[method],) = axis.semilogy(*zip(*points, strict=True), **style)
            axis.set_xticks(range(len(ZEROS)), [level.removesuffix(" %") for level in ZEROS])
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter(FuncFormatter(lambda error, _: f"{error:g}"))
            axis.yaxis.set_minor_formatter(NullFormatter())
            axis.set_title(name, fontsize=10)
            axis.set_xlabel("zeros (%)")
            axis.grid(linewidth=0.3)
        for axis in list(axes)[len(groups) :]:
            axis.set_visible(False)
        for axis in figure.axes[::3]:
            axis.set_ylabel("error of the outputs, test inputs")
        order = [method for method in METHODS if method in handles]
        legend = [handles[method] for method in order]
        figure.legend(legend, order, loc="outside lower center", ncols=6, fontsize=9, handlelength=3.5)
        path.parent.mkdir(exist_ok=True)
        figure.savefig(path, metadata={"Date": None, "Creator": None} if path.suffix == ".svg" else None)
