"""The tables of the bench of quality, block by block as they stand on its page."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from bench.quality import LEVELS, METHODS, REFERENCE
from bench.quality_floors import (
    Verdict,
    accuracies,
    geometric_mean,
    has_few_samples,
    layer_verdicts,
    network_verdicts,
    ratios,
    spread,
)
from bench.quality_networks import DENSE
from bench.quality_results import LayerResult, NetworkResult
from bench.tables import Table

SPLIT = {"random": ("random", "random, fewer samples than inputs")}  # what differs too much to be averaged


def panels(results: Iterable[LayerResult]) -> dict[str, list[LayerResult]]:
    """Return the results group by group; that of random layers in two, by the number of their samples."""
    found: dict[str, list[LayerResult]] = {}
    for result in results:
        names = SPLIT.get(result.group)
        found.setdefault(names[has_few_samples(result)] if names else result.group, []).append(result)
    return found


def blocks(layers: Sequence[LayerResult], networks: Sequence[NetworkResult]) -> dict[str, list[Table]]:
    """Return the tables by the names of the marks between which they stand."""
    found: dict[str, list[Table]] = {}
    if layers:
        by_panel = panels(layers).items()
        found["layer_floors"] = [floors_table("Floors: layers", layer_verdicts(layers))]
        found["groups"] = [group_table(name, results) for name, results in by_panel]
        found["layers"] = [errors_table(name, results) for name, results in by_panel]
        found["times"] = [times_table(layers)]
    if networks:
        found["network_floors"] = [floors_table("Floors: networks", network_verdicts(networks))]
        found["networks"] = [network_table(networks, name) for name in dict.fromkeys(x.network for x in networks)]
    return found


def floors_table(title: str, verdicts: Iterable[Verdict]) -> Table:
    """Return what we ask of ourselves, and the verdicts."""
    rows = [
        (v.floor, v.asked, "" if v.figure is None else f"{v.figure:.3f}", v.text, str(v.cases), v.worst)
        for v in verdicts
    ]
    return Table(title, ("", "asked", "found", "verdict", "cases", "worst"), rows, left=(0, 1, 3, 5))


def group_table(group: str, results: Sequence[LayerResult]) -> Table:
    """Return the geometric mean over the layers of each method's error over the reference's, level by level."""
    rows = []
    for method in _measured(results):
        cells = []
        for level in LEVELS:
            found = ratios(results, method, [REFERENCE], lambda result, level=level: result.level == level)
            partial = len(found) < len({result.layer for result in results if result.level == level})
            cells.append(f"{geometric_mean(found.values()):.3f}{'*' if partial else ''}" if found else "")
        rows.append((method, *cells))
    n_layers = len({result.layer for result in results})
    title = f"{group} ({n_layers} layers): error over that of {REFERENCE}, geometric mean"
    return Table(title, ("", *LEVELS), rows)


def errors_table(group: str, results: Sequence[LayerResult]) -> Table:
    """Return all errors."""
    methods = _measured(results)
    errors = {(result.layer, result.level, result.method): f"{result.error:.4f}" for result in results}
    rows = [
        (layer, level, *(errors.get((layer, level, method), "") for method in methods))
        for layer in dict.fromkeys(result.layer for result in results)
        for level in LEVELS
    ]
    return Table(f"{group}: errors", ("layer", "zeros", *methods), rows, left=(0, 1))


def times_table(results: Sequence[LayerResult]) -> Table:
    """Return each layer's CPU time with the reference, and the other methods' over it, the levels together."""
    methods = [method for method in _measured(results) if method != REFERENCE]
    seconds = {(result.layer, result.level, result.method): result.cpu_seconds for result in results}
    rows = []
    for layer, result in {result.layer: result for result in results}.items():
        cells = []
        for method in methods:
            both = [level for level in LEVELS if all((layer, level, name) in seconds for name in (method, REFERENCE))]
            ours, theirs = (sum(seconds[layer, level, name] for level in both) for name in (method, REFERENCE))
            cells.append(f"{ours / theirs:.2f}" if both else "")
        size = f"{result.n_samples} x {result.n_in} -> {result.n_out}"
        total = sum(seconds.get((layer, level, REFERENCE), 0.0) for level in LEVELS)
        rows.append((layer, size, f"{total:.2f}", *cells))
    return Table(
        f"CPU time over that of {REFERENCE}", ("layer", "size", f"{REFERENCE}, s", *methods), rows, left=(0, 1)
    )


def network_table(results: Sequence[NetworkResult], network: str) -> Table:
    """Return test accuracies, mean and spread over the seeds."""
    of = [result for result in results if result.network == network]
    levels = [level for level in dict.fromkeys(result.level for result in of) if level != DENSE]
    present = {result.method for result in of}
    rows = [
        (method, *(_percent(accuracies(of, network, level, method)) for level in levels))
        for method in METHODS
        if method in present
    ]
    seeds = len({result.seed for result in of})
    dense = _percent(accuracies(of, network, DENSE, DENSE))
    title = f"{network.upper()}: test accuracy in %, mean ± standard deviation of {seeds} seeds; dense {dense}"
    return Table(title, ("", *levels), rows)


def _measured(results: Iterable[LayerResult]) -> list[str]:
    present = {result.method for result in results}
    return [method for method in METHODS if method in present]


def _percent(values: Sequence[float]) -> str:
    return f"{100 * statistics.fmean(values):.2f} ± {100 * spread(values):.2f}" if values else ""
