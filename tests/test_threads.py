"""Threads: results in order, errors passed on, one BLAS thread inside and what there was before outside."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from sisopt import InvalidInputError
from sisopt.threads import available_threads, ordered_map, resolve_threads, serial_blas

ROOT = Path(__file__).parents[1]


def blas_threads():
    # NumPy's and SciPy's copies: another package may bring one that was built for a single thread
    ours = ("numpy", "scipy")
    return {
        library["num_threads"]
        for library in threadpool_info()
        if library["user_api"] == "blas" and any(name in library["filepath"].rsplit("/", 2)[-2] for name in ours)
    }


@pytest.fixture
def two_blas_threads():
    """Let BLAS use two threads, whatever the machine has, so that a limit can be seen to come and go."""
    with threadpool_limits(2, user_api="blas"):
        if blas_threads() != {2}:
            pytest.skip("this BLAS has one thread only")
        yield
        assert blas_threads() == {2}


@pytest.mark.parametrize("n_threads", [1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 3, 20])
def test_results_come_in_the_order_of_the_items(count, n_threads):
    def slow_at_first(i):
        time.sleep(0.002 * (i % 3 == 0))
        return i * i

    assert list(ordered_map(slow_at_first, range(count), n_threads)) == [i * i for i in range(count)]


@pytest.mark.parametrize("n_threads", [1, 2, 4])
def test_no_more_calls_run_at_once_than_there_are_threads(n_threads):
    running, most, lock = [0], [0], threading.Lock()

    def work(_):
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.005)
        with lock:
            running[0] -= 1

    list(ordered_map(work, range(12), n_threads))
    assert most[0] <= n_threads


@pytest.mark.parametrize("n_threads", [1, 3])
def test_no_more_results_wait_than_promised(n_threads):
    started = []
    results = ordered_map(lambda i: started.append(i) or i, range(100), n_threads)
    for taken in range(10):
        assert next(results) == taken
        assert len(started) <= taken + 1 + n_threads
    results.close()
    assert len(started) <= 10 + n_threads


def test_one_thread_is_the_caller():
    here = threading.get_ident()
    assert set(ordered_map(lambda _: threading.get_ident(), range(3), 1)) == {here}
    assert here not in set(ordered_map(lambda _: threading.get_ident(), range(3), 2))


@pytest.mark.parametrize("n_threads", [1, 2, 4])
def test_exception_of_a_call_comes_in_its_place_and_ends_the_rest(n_threads, two_blas_threads):
    started, taken = [], []

    def fail_at_5(i):
        started.append(i)
        if i == 5:
            raise KeyError(i)
        return i

    with pytest.raises(KeyError, match="5"):
        for result in ordered_map(fail_at_5, range(1000), n_threads):
            taken.append(result)
    assert taken == [0, 1, 2, 3, 4]
    assert len(started) <= 6 + 2 * n_threads
    assert blas_threads() == {2}


@pytest.mark.parametrize("n_threads", [1, 2])
def test_exception_of_the_items_is_passed_on(n_threads, two_blas_threads):
    def items():
        yield 1
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        list(ordered_map(lambda i: i, items(), n_threads))
    assert blas_threads() == {2}


@pytest.mark.parametrize("n_threads", [1, 2])
def test_calls_find_one_blas_thread_and_the_caller_his_own_again(n_threads, two_blas_threads):
    assert list(ordered_map(lambda _: blas_threads(), range(4), n_threads)) == [{1}] * 4
    assert blas_threads() == {2}


@pytest.mark.parametrize("n_threads", [1, 2])
def test_calls_find_one_blas_thread_whoever_asks(n_threads, two_blas_threads):
    # threadpoolctl lets the thread that set OpenBLAS's limit first have it, and ignores all others
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(lambda: list(ordered_map(lambda _: blas_threads(), range(4), n_threads))).result()
    assert found == [{1}] * 4
    assert blas_threads() == {2}


@pytest.mark.parametrize("n_threads", [1, 2])
def test_results_left_untaken_hold_no_limit(n_threads, two_blas_threads):
    results = ordered_map(lambda i: i, range(10), n_threads)
    assert next(results) == 0
    assert blas_threads() == {1}
    results.close()
    assert blas_threads() == {2}


def test_nested_limits_lift_with_the_last(two_blas_threads):
    with serial_blas():
        with serial_blas():
            assert list(ordered_map(lambda _: blas_threads(), range(2), 2)) == [{1}] * 2
            assert blas_threads() == {1}
        assert blas_threads() == {1}
    assert blas_threads() == {2}


def test_limit_lifts_after_an_exception(two_blas_threads):
    with pytest.raises(ZeroDivisionError), serial_blas():
        1 / 0  # noqa: B018
    assert blas_threads() == {2}


def test_concurrent_limits_lift_with_the_last(two_blas_threads):
    inside, leave = threading.Barrier(3), threading.Event()

    def hold(stays):
        with serial_blas():
            inside.wait(10)
            if stays:
                leave.wait(10)
            return blas_threads()

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.submit(hold, False), pool.submit(hold, True)
        inside.wait(10)
        found = [first.result(10), blas_threads()]  # the second is still inside
        leave.set()
        assert [*found, second.result(10)] == [{1}] * 3
    assert blas_threads() == {2}


def test_limit_set_by_a_thread_that_leaves_first_is_lifted_by_the_other():
    before = blas_threads()
    inside, left = threading.Event(), threading.Event()

    def enter_first():
        with serial_blas():
            inside.set()
            left.wait(10)
        release.wait(10)  # alive all the while

    release = threading.Event()
    first = threading.Thread(target=enter_first)
    first.start()
    inside.wait(10)
    with serial_blas():
        left.set()
        time.sleep(0.05)
    after = blas_threads()
    release.set()
    first.join(10)
    assert after == before


def test_many_threads_entering_and_leaving_end_where_they_began(two_blas_threads):
    def enter_and_leave(_):
        for _ in range(20):
            with serial_blas():
                assert blas_threads() == {1}

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(enter_and_leave, range(4)))
    assert blas_threads() == {2}


def test_default_is_every_core_the_process_may_use():
    assert resolve_threads(None) == available_threads() >= 1
    assert resolve_threads(3) == 3
    for wrong in (0, -1, 2.0, "2"):
        with pytest.raises(InvalidInputError, match="n_threads must be an integer of at least 1"):
            resolve_threads(wrong)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
def test_cores_that_the_process_may_not_use_do_not_count():
    code = """
        import os
        from sisopt.threads import available_threads
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        print(available_threads())
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "1"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_child_forked_within_the_limit_works_and_ends_its_own():
    code = """
        import os, warnings
        from sisopt.threads import ordered_map, serial_blas
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking at all
        with serial_blas():
            child = os.fork()
            if child == 0:
                os._exit(0 if list(ordered_map(abs, [-1, -2, -3], 2)) == [1, 2, 3] else 1)
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout.strip() == "0"
