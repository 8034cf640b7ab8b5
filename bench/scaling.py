"""How the time of a solve grows with each size of the layer: curves, their slopes, and a picture of them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import sisopt
from bench.data import random_arrays

ACTIVATIONS = ("ReLU", "identity")
BASE = {"samples": 8000, "inputs": 256, "outputs": 128, "density": 0.1}
VARIED = {
    "samples": (4000, 8000, 16_000, 32_000, 64_000),
    "inputs": (64, 128, 256, 512, 1024),
    "outputs": (32, 64, 128, 256, 512),
    "density": (0.025, 0.05, 0.1, 0.2, 0.4),
}
MOST_SLOPE = {"samples": 1.05, "outputs": 1.05}  # floors
TOL = 1e-3
PATIENCE = 1.5  # seconds that the rounds at one size may take


@dataclass(frozen=True)
class Curve:
    """Seconds against one size, the others as in ``BASE``."""

    activation: str
    varied: str
    sizes: tuple[float, ...]
    seconds: tuple[float, ...]  # by the clock
    cpu_seconds: tuple[float, ...]  # of all cores together
    products: tuple[float, ...]

    @property
    def slope(self) -> float:
        """Exponent of the clock's time: least squares on logarithms."""
        return _slope(self.sizes, self.seconds)

    @property
    def cpu_slope(self) -> float:
        """Exponent of the time of all cores."""
        return _slope(self.sizes, self.cpu_seconds)

    @property
    def verdict(self) -> str:
        """Whether the floor holds."""
        if self.varied not in MOST_SLOPE:
            return ""
        floor = MOST_SLOPE[self.varied]
        return f"{floor} {'holds' if self.slope <= floor else 'MISSED'}"


def _slope(x: tuple[float, ...], y: tuple[float, ...]) -> float:
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def measure_curve(activation: str, varied: str) -> Curve:
    """Time `sisopt.LayerProblem` and `sisopt.solve`, float32, to a sparsity, at every size."""
    sizes = VARIED[varied]
    times = [_seconds(activation, **{**BASE, varied: size}) for size in sizes]
    return Curve(activation, varied, sizes, *map(tuple, zip(*times, strict=True)))


def _seconds(activation: str, samples: int, inputs: int, outputs: int, density: float) -> tuple[float, float, float]:
    """Return the least seconds, by the clock and of all cores, of as many rounds as patience allows; and products."""
    arrays = random_arrays(samples, inputs, outputs, np.float32)
    rounds: list[tuple[float, float]] = []
    while not rounds or (sum(wall for wall, _ in rounds) < PATIENCE and len(rounds) < 5):
        wall, cpu = time.perf_counter(), time.process_time()
        problem = sisopt.LayerProblem(*arrays, activation=activation.lower())
        solution = sisopt.solve(problem, sisopt.Sparsity(1.0 - density), tol=TOL)
        rounds.append((time.perf_counter() - wall, time.process_time() - cpu))
        assert solution.gap <= TOL
    wall_seconds, cpu_seconds = zip(*rounds, strict=True)
    return min(wall_seconds), min(cpu_seconds), solution.n_products


def draw(curves: list[Curve], path: Path) -> None:
    """Draw a panel for every size that was varied; shapes tell the curves apart, not colours."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullFormatter

    labels = {"samples": "samples", "inputs": "inputs", "outputs": "outputs", "density": "non-zero weights (%)"}
    styles = {"ReLU": ("o", "-", "#1f4e79"), "identity": ("s", "--", "#c55a11")}
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "sisopt", "font.size": 10}):
        figure = Figure(figsize=(9, 6.6), layout="constrained")
        axes = figure.subplots(2, 2, sharey=True).flat
        for axis, varied in zip(axes, VARIED, strict=True):
            scale = 100 if varied == "density" else 1
            for curve in (curve for curve in curves if curve.varied == varied):
                marker, line, color = styles[curve.activation]
                x = np.multiply(curve.sizes, scale)
                name = f"{curve.activation}, slope {curve.slope:.2f}"
                axis.loglog(x, curve.seconds, marker=marker, linestyle=line, color=color, label=name)
                name = f"all cores together, {curve.cpu_slope:.2f}"
                open_marker = {"markerfacecolor": "white", "markersize": 5, "linewidth": 0.8, "alpha": 0.8}
                axis.loglog(x, curve.cpu_seconds, marker=marker, linestyle=":", color=color, label=name, **open_marker)
                axis.set_xticks(x, [f"{size:g}" for size in x])
            axis.xaxis.set_minor_formatter(NullFormatter())
            axis.xaxis.set_tick_params(which="minor", bottom=False)
            axis.yaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds:g}"))
            axis.set(xlabel=labels[varied])
            axis.grid(which="major", linewidth=0.4)
            axis.legend(fontsize=8)
        for axis in figure.axes[::2]:
            axis.set_ylabel("seconds")
        path.parent.mkdir(exist_ok=True)
        figure.savefig(path, metadata={"Date": None, "Creator": None})
