"""A network's layers as fixed-width text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .report import LayerReport, NetworkReport

LONGEST_NAME = 32
TEXTS = ("layer", "kind", "shape", "activation", "status", "note")  # to the left, figures to the right
NOTHING = "-"


def layer_table(layers: Sequence[LayerReport], network: NetworkReport) -> list[str]:
    """Return the heading, a line per layer and one of totals; a column that no layer fills is left out."""
    table = [["layer", *short_names([layer.name for layer in layers]), "total"]]
    for title, get, total in _columns(network):
        cells = [get(layer) for layer in layers]
        if set(cells) - {"", NOTHING}:
            table.append([title, *cells, total])
    forms = [f"{'<' if cells[0] in TEXTS else '>'}{max(map(len, cells))}" for cells in table]
    return ["  " + "  ".join(map(format, line, forms)).rstrip() for line in zip(*table, strict=True)]


def _columns(network: NetworkReport) -> list[tuple[str, Callable[[LayerReport], str], str]]:
    """Return titles, what a layer says there, and what the line of totals says."""
    return [
        ("kind", lambda layer: layer.kind, ""),
        ("shape", lambda layer: "x".join(map(str, layer.shape)), ""),
        ("activation", lambda layer: layer.activation, ""),
        ("weights", lambda layer: f"{layer.n_weights:,}", f"{network.n_weights:,}"),
        ("zeros", lambda layer: f"{layer.sparsity:.2%}", f"{network.sparsity:.2%}"),
        ("MACs", lambda layer: _macs(layer.flops, layer.flops), _macs(network.flops, network.flops)),
        ("left", lambda layer: _macs(layer.flops_kept, layer.flops), _macs(network.flops_kept, network.flops)),
        ("output err", lambda layer: _figure(layer.output_error, ".4f"), ""),
        ("held out", lambda layer: _figure(layer.held_out_error, ".4f"), ""),
        ("rel. err", lambda layer: _figure(layer.relative_error, ".4f"), ""),
        ("gap", lambda layer: _figure(layer.gap, ".1e"), ""),
        ("seconds", lambda layer: f"{layer.seconds:.2f}", f"{network.seconds:.2f}"),
        ("status", lambda layer: layer.status, ""),
        ("note", lambda layer: layer.note, ""),
    ]


def short_names(names: Sequence[str]) -> list[str]:
    """Return names shortened in the middle, less so where two would come out the same."""
    limit, longest = LONGEST_NAME, max(map(len, names), default=0)
    while limit < longest and len({_short(name, limit) for name in names}) < len(set(names)):
        limit += 1
    return [_short(name, limit) for name in names]


def _short(name: str, limit: int) -> str:
    """Return a name of at most ``limit`` characters: its beginning and, a little more, its end."""
    if len(name) <= limit:
        return name
    head = (limit - 3) // 2
    return f"{name[:head]}...{name[len(name) - (limit - 3 - head) :]}"


def _macs(count: int, dense: int) -> str:
    """Return multiply-adds in four digits; a dash where the dense ones are not known."""
    if not dense:
        return NOTHING
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.4g}{unit}"
    return str(count)


def _figure(value: float | None, form: str) -> str:
    """Return a number in its format, a dash of none."""
    return NOTHING if value is None else format(value, form)
