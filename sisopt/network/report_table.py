"""A network's layers as a table: its columns, and the table as fixed-width text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .report import LayerReport, NetworkReport

LONGEST_NAME = 32
NOTHING = "-"


class Column(NamedTuple):
    """A column: what a layer says there, what the line of totals says, and the figure that layers are sorted by."""

    title: str
    text: Callable[[LayerReport], str]
    total: str = ""
    value: Callable[[LayerReport], float | None] | None = None  # None: words, to the left


def layer_table(layers: Sequence[LayerReport], network: NetworkReport) -> list[str]:
    """Return the heading, a line per layer and one of totals; a column that no layer fills is left out."""
    columns = filled_columns(layers, network)
    table = [["layer", *short_names([layer.name for layer in layers]), "total"]]
    table += [[column.title, *map(column.text, layers), column.total] for column in columns]
    sides = ["<", *("<" if column.value is None else ">" for column in columns)]
    forms = [f"{side}{max(map(len, cells))}" for side, cells in zip(sides, table, strict=True)]
    return ["  " + "  ".join(map(format, line, forms)).rstrip() for line in zip(*table, strict=True)]


def filled_columns(layers: Sequence[LayerReport], network: NetworkReport) -> list[Column]:
    """Return the columns that some layer fills, names aside."""
    return [column for column in _columns(network) if {column.text(layer) for layer in layers} - {"", NOTHING}]


def _columns(network: NetworkReport) -> list[Column]:
    """Return all columns, names aside."""
    return [
        Column("kind", lambda layer: layer.kind),
        Column("shape", lambda layer: "x".join(map(str, layer.shape))),
        Column("activation", lambda layer: layer.activation),
        Column("weights", lambda layer: f"{layer.n_weights:,}", f"{network.n_weights:,}",
               lambda layer: layer.n_weights),
        Column("zeros", lambda layer: f"{layer.sparsity:.2%}", f"{network.sparsity:.2%}", lambda layer: layer.sparsity),
        Column("MACs", lambda layer: macs(layer.flops, layer.flops), macs(network.flops, network.flops),
               lambda layer: layer.flops or None),
        Column("left", lambda layer: macs(layer.flops_kept, layer.flops), macs(network.flops_kept, network.flops),
               lambda layer: layer.flops_kept if layer.flops else None),
        Column("output err", lambda layer: _figure(layer.output_error, ".4f"), "", lambda layer: layer.output_error),
        Column("held out", lambda layer: _figure(layer.held_out_error, ".4f"), "", lambda layer: layer.held_out_error),
        Column("rel. err", lambda layer: _figure(layer.relative_error, ".4f"), "", lambda layer: layer.relative_error),
        Column("gap", lambda layer: _figure(layer.gap, ".1e"), "", lambda layer: layer.gap),
        Column("seconds", lambda layer: f"{layer.seconds:.2f}", f"{network.seconds:.2f}", lambda layer: layer.seconds),
        Column("status", lambda layer: layer.status),
        Column("note", lambda layer: layer.note),
    ]  # fmt: skip


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


def macs(count: int, dense: int) -> str:
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
