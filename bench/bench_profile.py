"""Where the time of a solve goes: functions by their own time, kernels and BLAS counted to who calls them."""

from __future__ import annotations

import cProfile
import pstats
import re
from pathlib import Path

import pytest

import sisopt
from bench.bench_roofline import CASES

PROFILED = (
    "ReLU 512 -> 256, 5000 samples, float32",
    "ReLU 64 -> 16, 1000000 samples, float32",
    "ReLU convolution 576 -> 64, 200000 positions, float32",
    "identity 512 -> 256, 5000 samples, budget 0.2, float32",
)
MOST = 8  # functions in the table


@pytest.mark.parametrize("name", PROFILED)
def bench_profile(profiled, name):
    case = CASES[name]
    arrays = case.arrays()
    profile = cProfile.Profile()
    profile.enable()
    problem = sisopt.LayerProblem(*arrays, activation=case.activation)
    sisopt.solve(problem, case.goal, tol=case.tol, n_threads=1)  # a profile sees one thread
    profile.disable()
    profiled(name, own_shares(profile))


def own_shares(profile: cProfile.Profile) -> list[tuple[str, float]]:
    """Return the functions that took most and the share of all time that each spent itself."""
    stats = pstats.Stats(profile)
    shares = [(_label(*where), own / stats.total_tt) for where, (_, _, own, _, _) in stats.stats.items()]
    return sorted(shares, key=lambda named: -named[1])[:MOST]


def _label(file: str, line: int, name: str) -> str:
    if file != "~":
        return f"{Path(file).stem}.{name}"
    built_in = re.match(r"<method '(\w+)' of '([\w.]+)' objects>", name)
    return f"{built_in[2]}.{built_in[1]}" if built_in else name.strip("<>")
