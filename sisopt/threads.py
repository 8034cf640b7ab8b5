"""The only place that knows threads.

Work is cut into pieces whose sizes do not depend on the number of threads; every piece runs on one thread with one
BLAS thread, and results come back in order. So the bits are the same whatever ``n_threads`` is, and rows in a pool
never fight BLAS for the cores.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from itertools import chain, islice
from typing import Any, TypeVar

from threadpoolctl import ThreadpoolController

from .validation import positive_integer

T = TypeVar("T")
R = TypeVar("R")


@cache
def _blas_libraries() -> list[Any]:
    import scipy.linalg.blas  # noqa: F401, PLC0415  numba calls SciPy's BLAS, a second copy beside NumPy's

    return list(ThreadpoolController().select(user_api="blas").lib_controllers)


def _set_blas_threads(library: Any, n_threads: int) -> None:
    """Set a BLAS library's threads, for the process, whichever thread asks.

    threadpoolctl lets one thread at a time set OpenBLAS's limit and ignores the others; nobody is left in control here,
    because the last solve to end need not be the first that began.
    """
    release = getattr(library, "clear_controlling_thread", lambda force: None)
    release(force=True)
    library.set_num_threads(n_threads)
    release(force=True)


class _SerialBlas:
    """One BLAS thread while anyone is inside; the first in sets the limit, the last out lifts it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before: list[tuple[Any, int]] = []

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            if self._inside == 0:
                self._before = [(library, library.get_num_threads()) for library in _blas_libraries()]
                for library, _ in self._before:
                    _set_blas_threads(library, 1)
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if self._inside == 0:
                    self.lift()

    def lift(self) -> None:
        """Give BLAS back the threads that it had."""
        for library, n_threads in self._before:
            _set_blas_threads(library, n_threads)
        self._before = []


serial_blas = _SerialBlas()


def _reset_after_fork() -> None:
    """Forget the parent's solves: a fork amid one leaves a child in which nobody would lift the limit."""
    serial_blas.lift()
    serial_blas.__init__()  # type: ignore[misc]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)


def available_threads() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def resolve_threads(n_threads: int | None) -> int:
    """Return the number of threads to use: ``n_threads``, or all available cores for None."""
    return available_threads() if n_threads is None else positive_integer("n_threads", n_threads)


def ordered_map(
    function: Callable[[T], R], items: Iterable[T], n_threads: int, cancel: Callable[[], None] = lambda: None
) -> Iterator[R]:
    """Yield ``function(item)`` in the order of ``items``, with at most ``n_threads + 1`` results alive at a time.

    ``cancel`` is called when an exception (Ctrl-C, say) ends the map, before running calls are waited for.
    """
    with serial_blas():
        rest = iter(items)
        first = list(islice(rest, 2))
        if n_threads == 1 or len(first) < 2:  # starting a thread costs more than a small piece of work
            yield from map(function, chain(first, rest))
            return
        with ThreadPoolExecutor(n_threads) as pool:
            waiting: deque[Future[R]] = deque()
            try:
                for item in chain(first, rest):
                    waiting.append(pool.submit(function, item))
                    if len(waiting) > n_threads:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            except BaseException:
                cancel()
                raise
            finally:
                for future in waiting:
                    future.cancel()
