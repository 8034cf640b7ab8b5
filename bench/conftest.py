"""Fixtures of the benches, and the table that closes a run: every solver beside ours on the same problem."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

import sisopt


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


_ENTRIES: list[Entry] = []
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
    long solves a ``share`` of the neurons, and its time and objective are divided by that.
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
        _ENTRIES.append(Entry(case, solver, seconds, cpu_seconds, objective, note, ours))
        return result

    return run


@pytest.fixture
def fact() -> Callable[[str], None]:
    """Return a function that adds a line below the closing table."""
    return _FACTS.append


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the ratios: time of each solver over ours, in this run."""
    write = terminalreporter.write_line
    for case in dict.fromkeys(entry.case for entry in _ENTRIES):
        entries = [entry for entry in _ENTRIES if entry.case == case]
        ours = next((entry for entry in entries if entry.ours), None)
        write("")
        write(case)
        write(f"  {'solver':<28} {'seconds':>9} {'cpu s':>9} {'x ours':>8} {'x cpu':>8}  {'objective':>13}  accuracy")
        for entry in entries:
            ratio = f"{entry.seconds / ours.seconds:8.1f}" if ours else " " * 8
            cpu = f"{entry.cpu_seconds / ours.cpu_seconds:8.1f}" if ours else " " * 8
            write(
                f"  {entry.solver:<28} {entry.seconds:9.4f} {entry.cpu_seconds:9.4f} {ratio} {cpu}  "
                f"{entry.objective:13.8g}  {entry.note}"
            )
    if _FACTS:
        write("")
    for line in _FACTS:
        write(line)
