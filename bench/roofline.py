"""How far a solve is from the speed at which this machine can read and multiply its data.

The model. A solve reports its floating-point work over samples in *products*, one being that of ``X @ W.T``:
``2 n_samples n_in n_out`` operations. A product reads the inputs once and reads or writes one array of
(n_samples, n_out), both counted in the dtype of the inputs. The *roof* is the time below which the machine cannot do
this work: operations at the rate of its fastest float32 product, or bytes at the rate at which it reads, whichever is
more.
The unit of time is what NumPy's BLAS takes on all cores for one float32 ``X @ W.T`` of the layer's own sizes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

import sisopt
from bench.data import Arrays
from sisopt.threads import available_threads

PRODUCT, GRAM = "product", "Gram"
LEAST_SECONDS = 1.0  # a solve that takes longer should keep both cores busy: then it is run on one as well


@dataclass(frozen=True)
class Machine:
    """What the machine does at best, all cores at work."""

    flops: float  # float32 operations a second
    bytes: float  # read a second

    def roof_seconds(self, run: Roofline) -> float:
        """Return the time below which it cannot do the work of a solve."""
        return max(run.flops / self.flops, run.bytes / self.bytes)


@dataclass(frozen=True)
class Roofline:
    """One solve beside the limits of the machine.

    ``seconds`` and ``cpu_seconds`` begin with the caller's arrays and end with the certified answer, ``serial_seconds``
    is the same on one thread (None if nobody would wait for it), ``floor`` and ``aim`` are in units of
    ``unit_seconds``, the time of what ``unit`` names.
    """

    case: str
    seconds: float
    cpu_seconds: float
    serial_seconds: float | None
    products: float
    flops: float
    bytes: float
    unit: str
    unit_seconds: float
    floor: float | None
    aim: float | None
    gap: float
    sparsity: float

    @property
    def ratio(self) -> float:
        """Time of the solve in units."""
        return self.seconds / self.unit_seconds

    @property
    def cores(self) -> float:
        """Cores that were busy on average."""
        return self.cpu_seconds / self.seconds

    @property
    def speed_up(self) -> float | None:
        """Time on one thread over time on all cores."""
        return None if self.serial_seconds is None else self.serial_seconds / self.seconds

    @property
    def verdict(self) -> str:
        """Whether the floor holds."""
        if self.floor is None:
            return ""
        if self.ratio > self.floor:
            return f"{self.floor:g} MISSED"
        return f"{self.floor:g} holds" if self.aim is None or self.ratio > self.aim else f"aim {self.aim:g} holds"


def least_seconds(function: Callable[[], Any], patience: float = 1.0, most: int = 30) -> float:
    """Return the least time of some runs: at least 3, then as many as ``patience`` seconds allow."""
    seconds: list[float] = []
    while len(seconds) < 3 or (sum(seconds) < patience and len(seconds) < most):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def measure_machine() -> Machine:
    """Time a square float32 product, and the sums of an array too large for any cache."""
    size = 2048
    A = np.ones((size, size), np.float32)
    flops = 2 * size**3 / least_seconds(lambda: A @ A)
    data = np.ones((64 * available_threads(), 1 << 20), np.float32)  # 256 MiB for every core
    parts = np.array_split(data, available_threads())
    with ThreadPoolExecutor(len(parts)) as pool:
        read = data.nbytes / least_seconds(lambda: list(pool.map(_read, parts)))
    return Machine(flops, read)


def _read(rows: np.ndarray) -> None:
    for row in rows:
        np.dot(row, row)


def unit_seconds(unit: str, arrays: Arrays) -> float:
    """Return the time of one float32 product, or of forming Gram and cross products once, at BLAS speed."""
    X, W, _ = arrays
    if unit == GRAM:
        Z = X @ W.T
        return least_seconds(lambda: (X.T @ X, X.T @ Z))
    X, W = X.astype(np.float32, copy=False), W.astype(np.float32, copy=False)
    return least_seconds(lambda: X @ W.T)


def measure(
    case: str,
    arrays: Arrays,
    solve: Callable[[int | None], sisopt.Solution],
    *,
    unit: str = PRODUCT,
    rounds: int = 1,
    floor: float | None = None,
    aim: float | None = None,
) -> tuple[sisopt.Solution, Roofline]:
    """Time ``solve(n_threads)``, the least of some rounds, and the unit before and after it, for a busy machine."""
    unit_before = unit_seconds(unit, arrays)
    seconds = cpu_seconds = float("inf")
    for _ in range(rounds):
        wall, cpu = time.perf_counter(), time.process_time()
        solution = solve(None)
        elapsed, used = time.perf_counter() - wall, time.process_time() - cpu
        if elapsed < seconds:
            seconds, cpu_seconds = elapsed, used
    serial = least_serial(solve, rounds) if seconds > LEAST_SECONDS else None
    X, W, _ = arrays
    flops = solution.n_products * 2.0 * len(X) * W.size
    moved = solution.n_products * len(X) * sum(W.shape) * X.itemsize
    return solution, Roofline(
        case=case,
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        serial_seconds=serial,
        products=solution.n_products,
        flops=flops,
        bytes=moved,
        unit=unit,
        unit_seconds=min(unit_before, unit_seconds(unit, arrays)),
        floor=floor,
        aim=aim,
        gap=solution.gap,
        sparsity=solution.sparsity,
    )


def least_serial(solve: Callable[[int | None], sisopt.Solution], rounds: int) -> float:
    """Return the least time of the solve on one thread."""
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        solve(1)
        seconds.append(time.perf_counter() - start)
    return min(seconds)
