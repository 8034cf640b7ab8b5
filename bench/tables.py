"""The tables that close a run, as text for the terminal and as Markdown for the documentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.roofline import GRAM, PRODUCT, Machine, Roofline
from bench.scaling import BASE, Curve

LEAST_SPEED_UP = 1.7  # of two threads over one
OUT = Path(__file__).parent.parent / "out"  # where tables and pictures go


@dataclass(frozen=True)
class Entry:
    """One solver on one case; ``ours`` marks the one that the others are divided by."""

    case: str
    solver: str
    seconds: float
    cpu_seconds: float
    objective: float
    note: str
    ours: bool
    floor: float | None


@dataclass(frozen=True)
class Table:
    """A title, a head and rows of cells; the first column and ``left`` ones are text, the others are numbers."""

    title: str
    head: tuple[str, ...]
    rows: list[tuple[str, ...]]
    left: tuple[int, ...] = (0,)

    def text(self) -> list[str]:
        """Return lines with aligned columns."""
        columns = list(zip(self.head, *self.rows, strict=True))
        widths = [max(map(len, column)) for column in columns]
        lines = []
        for row in (self.head, *self.rows):
            cells = zip(row, widths, strict=True)
            lines.append("  ".join(x.ljust(w) if i in self.left else x.rjust(w) for i, (x, w) in enumerate(cells)))
        return ["", self.title, *(f"  {line.rstrip()}" for line in lines)]

    def markdown(self) -> list[str]:
        """Return the lines of a Markdown table under a bold title."""
        rule = tuple("---" if i in self.left else "---:" for i in range(len(self.head)))
        lines = ["| " + " | ".join(row) + " |" for row in (self.head, rule, *self.rows)]
        return [line.replace("->", "→") for line in (f"**{self.title}**", "", *lines, "")]


def roofline_tables(runs: Sequence[Roofline], machine: Machine) -> list[Table]:
    """Return a table for every unit: the solves beside the limits of the machine."""
    titles = {
        PRODUCT: "Roofline: ratio to one float32 product X W'",
        GRAM: "Roofline: ratio to forming the Gram and cross products once, in the same dtype",
    }
    head = (
        "case",
        "s",
        "products",
        "GFLOP",
        "GB",
        "of roof",
        "ratio",
        "floor",
        "cores",
        f"2nd core (floor {LEAST_SPEED_UP})",
        "gap",
        "zeros",
    )
    tables = []
    for unit, title in titles.items():
        rows = [
            (
                run.case,
                _seconds(run.seconds),
                f"{run.products:.1f}",
                f"{run.flops / 1e9:.4g}",
                f"{run.bytes / 1e9:.3g}",
                f"{machine.roof_seconds(run) / run.seconds:.0%}",
                f"{run.ratio:.1f}",
                run.verdict,
                f"{run.cores:.2f}",
                _speed_up(run.speed_up),
                f"{run.gap:.1e}",
                f"{run.sparsity:.1%}",
            )
            for run in runs
            if run.unit == unit
        ]
        tables += [Table(title, head, rows)] if rows else []
    return tables


def rival_tables(entries: Sequence[Entry]) -> list[Table]:
    """Return a table for every case: time of each solver over ours, in this run."""
    return [
        _rivals(case, [entry for entry in entries if entry.case == case])
        for case in dict.fromkeys(entry.case for entry in entries)
    ]


def _rivals(case: str, entries: Sequence[Entry]) -> Table:
    ours = next((entry for entry in entries if entry.ours), None)
    rows = []
    for entry in entries:
        ratio, cpu, floor = "", "", ""
        if ours is not None:
            ratio = f"{entry.seconds / ours.seconds:.1f}"
            cpu = f"{entry.cpu_seconds / ours.cpu_seconds:.1f}"
            if entry.floor is not None:
                floor = f"{entry.floor:g} {'holds' if entry.seconds >= entry.floor * ours.seconds else 'MISSED'}"
        times = (_seconds(entry.seconds), _seconds(entry.cpu_seconds))
        rows.append((entry.solver, *times, ratio, cpu, floor, f"{entry.objective:.8g}", entry.note))
    head = ("solver", "seconds", "cpu s", "× ours", "× cpu", "floor", "objective", "accuracy")
    return Table(case, head, rows, left=(0, 7))


def scaling_table(curves: Sequence[Curve]) -> Table:
    """Return the curves, a row for each."""
    rows = []
    for curve in curves:
        seconds, products = (" ".join(f"{x:.3g}" for x in values) for values in (curve.seconds, curve.products))
        sizes = " ".join(f"{size:g}" for size in curve.sizes)
        slopes = (f"{curve.slope:.2f}", curve.verdict, f"{curve.cpu_slope:.2f}")
        rows.append((curve.activation, f"{curve.varied} {sizes}", *slopes, seconds, products))
    head = ("activation", "against", "slope", "floor", "cpu slope", "seconds", "products")
    base = ", ".join(f"{size:g} {name}" for name, size in BASE.items())
    return Table(f"Scaling: one size varied, the others as in {base}", head, rows, left=(0, 1, 5, 6))


def profile_table(profiles: Mapping[str, Sequence[tuple[str, float]]]) -> Table:
    """Return the functions that took most of every case."""
    rows = [(case, ", ".join(f"{name} {share:.0%}" for name, share in shares)) for case, shares in profiles.items()]
    return Table("Where the time goes, on one thread", ("case", "own time"), rows, left=(0, 1))


def _speed_up(speed_up: float | None) -> str:
    if speed_up is None:
        return ""
    return f"×{speed_up:.2f}" + ("" if speed_up >= LEAST_SPEED_UP else " MISSED")


def _seconds(seconds: float) -> str:
    return f"{seconds:.4f}" if seconds < 1 else f"{seconds:.2f}"
