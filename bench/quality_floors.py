"""What we ask of ourselves in the bench of quality, and whether it holds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from bench.quality import OURS, REFERENCE, RIVALS
from bench.quality_results import LayerResult, NetworkResult

DEFAULT, FAST = OURS
LARGE = 256**2  # weights from which on a layer's time counts
Where = Callable[[LayerResult], bool]
Ratios = dict[tuple[str, str], float]  # by layer and level


@dataclass(frozen=True)
class Verdict:
    """A floor: what was asked, what was found, where it was worst; ``figure`` is None where nothing was measured."""

    floor: str
    asked: str
    figure: float | None
    cases: int
    worst: str
    holds: bool

    @property
    def text(self) -> str:
        """Return the verdict in a word."""
        return "not measured" if self.figure is None else "met" if self.holds else "MISSED"


def geometric_mean(values: Iterable[float]) -> float:
    """Return the geometric mean of positive numbers."""
    return math.exp(statistics.fmean(map(math.log, values)))


def ratios(results: Iterable[LayerResult], method: str, others: Sequence[str], where: Where) -> Ratios:
    """Return the method's error over the least of the others', on every layer and level where there are both."""
    errors: dict[tuple[str, str], dict[str, float]] = {}
    for result in filter(where, results):
        errors.setdefault((result.layer, result.level), {})[result.method] = result.error
    found = {}
    for case, of in errors.items():
        least = min((of[other] for other in others if other in of), default=None)
        if method in of and least is not None:
            found[case] = of[method] / least
    return found


def time_ratios(results: Iterable[LayerResult], method: str) -> dict[str, float]:
    """Return the method's CPU time over the reference's, all levels together, on every large layer."""
    large = [result for result in results if result.n_in * result.n_out >= LARGE]
    levels = {(result.layer, result.level): result.cpu_seconds for result in large if result.method == REFERENCE}
    sums: dict[str, list[float]] = {}
    for result in large:
        if result.method == method and (result.layer, result.level) in levels:
            ours, theirs = sums.setdefault(result.layer, [0.0, 0.0])
            sums[result.layer] = [ours + result.cpu_seconds, theirs + levels[result.layer, result.level]]
    return {layer: ours / theirs for layer, (ours, theirs) in sums.items()}


def layer_verdicts(results: Sequence[LayerResult]) -> list[Verdict]:
    """Return the verdicts on single layers: errors, then time."""
    unstructured = {group: _both(_in_group(group), _unstructured) for group in ("trained ReLU", "random")}
    trained = unstructured["trained ReLU"]

    def against(others: Sequence[str], where: Where, method: str = DEFAULT) -> Ratios:
        return ratios(results, method, others, where)

    at_90 = _both(trained, lambda result: result.level == "90 %")
    found = [
        _mean("trained ReLU, over ALPS", 0.85, against([REFERENCE], trained), aim=0.75),
        _each("trained ReLU, over the best rival, each", 1.0, against(RIVALS, trained), below=True),
        _mean("trained ReLU, 90 %, over SparseGPT", 0.45, against(["SparseGPT"], at_90)),
    ]
    linear = against([REFERENCE], _both(_in_group("trained linear"), _unstructured))
    found += [_mean("trained linear, over ALPS", 1.0, linear), _each("trained linear, over ALPS, each", 1.02, linear)]
    for group in ("GELU", "tanh"):
        smooth = _both(_in_group(group), _unstructured)
        found.append(_mean(f"{group}, over ALPS", 0.97, against([REFERENCE], smooth)))
    few = _both(unstructured["random"], has_few_samples)
    groups = {
        "trained ReLU": (0.9, _in_group("trained ReLU")),
        "random ReLU": (0.9, _both(_in_group("random"), lambda result: result.activation == "relu")),
        "the other layers": (1.0, lambda result: result.activation != "relu"),
    }
    found += [
        _each("random, over ALPS, each", 1.01, against([REFERENCE], unstructured["random"])),
        _each("fewer samples than inputs, over the best rival, each", 1.0, against(RIVALS, few)),
        *(
            _mean(f"2:4, {name}, over the best rival", limit, against(RIVALS, _both(group, _two_of_four)))
            for name, (limit, group) in groups.items()
        ),
    ]
    for method, limit, aim in ((DEFAULT, 5.0, 2.0), (FAST, 1.0, 0.5)):
        floor = f"{method}: CPU time over ALPS's, each layer of 256 x 256 and more"
        times = {(layer, "all levels"): ratio for layer, ratio in time_ratios(results, method).items()}
        found.append(_each(floor, limit, times, aim=aim))
    fast = against([REFERENCE], trained, FAST)
    return [*found, _each(f"{FAST}: trained ReLU, over ALPS, each", 1.0, fast, below=True)]


def network_verdicts(results: Sequence[NetworkResult]) -> list[Verdict]:
    """Return the verdicts on whole networks: is our mean accuracy ahead of every rival's by more than the spread?"""
    verdicts = []
    for network in dict.fromkeys(result.network for result in results):
        for level in ("90 %", "95 %"):
            of = {method: accuracies(results, network, level, method) for method in (*RIVALS, DEFAULT)}
            means = {method: statistics.fmean(found) for method, found in of.items() if found}
            best = max((method for method in means if method != DEFAULT), key=lambda x: means[x], default=None)
            margin, spread_, worst = None, 0.0, ""
            if best is not None and DEFAULT in means:
                margin, spread_ = means[DEFAULT] - means[best], max(spread(of[DEFAULT]), spread(of[best]))
                worst = f"{best} is next"
            floor = f"{network.upper()}, {level}: points of accuracy ahead of every rival"
            holds = margin is not None and margin > spread_
            figure = None if margin is None else 100 * margin
            verdicts.append(Verdict(floor, f"> {100 * spread_:.2f} (spread)", figure, len(of[DEFAULT]), worst, holds))
    return verdicts


def accuracies(results: Iterable[NetworkResult], network: str, level: str, method: str) -> list[float]:
    """Return the accuracies of a method, a seed each."""
    return [x.accuracy for x in results if (x.network, x.level, x.method) == (network, level, method)]


def spread(values: Sequence[float]) -> float:
    """Return the standard deviation; 0 for a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def has_few_samples(result: LayerResult) -> bool:
    """Return whether the layer has fewer samples than inputs."""
    return result.n_samples < result.n_in


def _mean(floor: str, limit: float, found: Ratios, aim: float | None = None) -> Verdict:
    figure = geometric_mean(found.values()) if found else None
    holds = figure is not None and figure <= limit
    return Verdict(floor, f"<= {limit:.2f}" + _aimed(aim), figure, len(found), _worst(found), holds)


def _each(floor: str, limit: float, found: Ratios, *, below: bool = False, aim: float | None = None) -> Verdict:
    figure = max(found.values(), default=None)
    holds = figure is not None and (figure < limit if below else figure <= limit)
    missed = sum(ratio > limit or (below and ratio == limit) for ratio in found.values())
    worst = _worst(found) + (f"; {missed} of {len(found)} miss it" if missed else "")
    return Verdict(floor, f"{'<' if below else '<='} {limit:.2f}" + _aimed(aim), figure, len(found), worst, holds)


def _worst(found: Ratios) -> str:
    if not found:
        return ""
    (layer, level), ratio = max(found.items(), key=lambda item: item[1])
    return f"{layer}, {level}: {ratio:.3f}"


def _aimed(aim: float | None) -> str:
    return "" if aim is None else f" (aim {aim:g})"


def _both(first: Where, second: Where) -> Where:
    return lambda result: first(result) and second(result)


def _in_group(group: str) -> Where:
    return lambda result: result.group == group


def _unstructured(result: LayerResult) -> bool:
    return result.level != "2:4"


def _two_of_four(result: LayerResult) -> bool:
    return result.level == "2:4"
