"""Fixtures of the benches, and the tables that close a run: on the terminal, and as Markdown in out/performance.md."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import sisopt
from bench.data import Arrays
from bench.roofline import Machine, Roofline, measure, measure_machine
from bench.scaling import ACTIVATIONS, VARIED, Curve, draw
from bench.tables import OUT, Entry, Table, profile_table, rival_tables, roofline_tables, scaling_table

_ENTRIES: list[Entry] = []
_ROOFLINES: list[Roofline] = []
_MACHINES: list[Machine] = []
_CURVES: list[Curve] = []
_PROFILES: dict[str, list[tuple[str, float]]] = {}
_FACTS: list[str] = []


@pytest.fixture(scope="session", autouse=True)
def _compiled() -> Iterator[None]:
    """Compile before anything is timed."""
    sisopt.warmup()
    yield


@pytest.fixture
def timed(benchmark: Any) -> Callable[..., Any]:
    """Return run(case, solver, function, ...): benchmarks a solve and enters it in the closing table.

    ``set_up`` makes a fresh problem for every round, so that nothing cached beside it is timed away. The seconds
    entered are the least of the rounds: several for us, one for rivals that take minutes. A rival that would take too
    long solves a ``share`` of the neurons, and its time and objective are divided by that. ``floor`` is how many times
    as long as ours a rival should take.
    """

    def run(
        case: str,
        solver: str,
        function: Callable[[Any], Any],
        set_up: Callable[[], Any],
        *,
        rounds: int = 1,
        describe: Callable[[Any], str] = lambda result: "",
        ours: bool = False,
        share: float = 1.0,
        floor: float | None = None,
    ) -> Any:
        best = [float("inf"), float("inf")]

        def once(problem: Any) -> Any:
            wall, cpu = time.perf_counter(), time.process_time()
            result = function(problem)
            best[0] = min(best[0], time.perf_counter() - wall)
            best[1] = min(best[1], time.process_time() - cpu)
            return result

        result = benchmark.pedantic(once, setup=lambda: ((set_up(),), {}), rounds=rounds, iterations=1)
        note = describe(result)
        benchmark.extra_info.update(objective=result.objective, note=note)
        seconds, cpu_seconds, objective = best[0] / share, best[1] / share, float(result.objective) / share
        _ENTRIES.append(Entry(case, solver, seconds, cpu_seconds, objective, note, ours, floor))
        return result

    return run


@pytest.fixture
def roofline() -> Callable[..., sisopt.Solution]:
    """Return run(case, arrays, solve, ...): `bench.roofline.measure`, entered in the closing table."""

    def run(case: str, arrays: Arrays, solve: Callable[[int | None], sisopt.Solution], **options: Any) -> Any:
        solution, entry = measure(case, arrays, solve, **options)
        _ROOFLINES.append(entry)
        _MACHINES.append(measure_machine())
        return solution

    return run


@pytest.fixture
def scaling() -> Callable[[Curve], None]:
    """Return a function that adds a curve to the closing table."""
    return _CURVES.append


@pytest.fixture
def profiled() -> Callable[[str, list[tuple[str, float]]], None]:
    """Return a function that adds a case, and the share of its time that each function took, to the closing table."""
    return _PROFILES.__setitem__


@pytest.fixture
def fact() -> Callable[[str], None]:
    """Return a function that adds a line below the closing tables."""
    return _FACTS.append


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the tables and write them down, each kind between the marks that it has in docs/performance.md."""
    tables: dict[str, list[Table]] = {"rivals": rival_tables(_ENTRIES)}
    if _PROFILES:
        tables["profile"] = [profile_table(_PROFILES)]
    if _CURVES:
        tables["scaling"] = [scaling_table(_CURVES)]
    if _ROOFLINES:
        best = Machine(max(m.flops for m in _MACHINES), max(m.bytes for m in _MACHINES))
        tables["roofline"] = roofline_tables(_ROOFLINES, best)
        _FACTS.append(
            f"this machine at best: {best.flops / 1e9:.0f} GFLOP/s in float32, {best.bytes / 1e9:.0f} GB/s read"
        )
    blocks = {name: [line for table in kind for line in table.markdown()] for name, kind in tables.items()}
    blocks["facts"] = [f"- {line}" for line in _FACTS]
    for line in [*(line for kind in tables.values() for table in kind for line in table.text()), "", *_FACTS]:
        terminalreporter.write_line(line)
    written = [
        "\n".join((f"<!-- {name}:start -->", *lines, f"<!-- {name}:end -->", ""))
        for name, lines in blocks.items()
        if lines
    ]
    if written:
        OUT.mkdir(exist_ok=True)
        (OUT / "performance.md").write_text("\n".join(written), encoding="utf-8")
    if len(_CURVES) == len(VARIED) * len(ACTIVATIONS):
        draw(_CURVES, OUT / "performance-scaling.svg")
