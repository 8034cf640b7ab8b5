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
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from typing import Any, TypeVar

from threadpoolctl import ThreadpoolController

from .validation import positive_integer

T = TypeVar("T")
R = TypeVar("R")


@cache
def _blas() -> ThreadpoolController:
    import scipy.linalg.blas  # noqa: F401, PLC0415  numba calls SciPy's BLAS, a second copy beside NumPy's

    return ThreadpoolController().select(user_api="blas")


class _SerialBlas:
    """One BLAS thread while anyone is inside; the first in sets the limit, the last out lifts it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._limit: AbstractContextManager[Any] | None = None

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            if self._inside == 0:
                self._limit = _blas().limit(limits=1)
                self._limit.__enter__()
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if self._inside == 0 and self._limit is not None:
                    self._limit.__exit__(None, None, None)
                    self._limit = None


serial_blas = _SerialBlas()


def _reset_after_fork() -> None:
    if serial_blas._limit is not None:  # the fork happened inside: lift the limit that nobody else will
        serial_blas._limit.__exit__(None, None, None)
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
        if n_threads == 1:
            yield from map(function, items)
            return
        with ThreadPoolExecutor(n_threads) as pool:
            waiting: deque[Future[R]] = deque()
            try:
                for item in items:
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
