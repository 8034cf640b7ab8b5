"""Digests: the same in every process for what is the same, others for what is not."""

from __future__ import annotations

import collections
import functools
import operator
import os
import pathlib
import subprocess
import sys
from dataclasses import dataclass, field

import numpy as np
import pytest

from sisopt.network.digest import digest, digest_of_call


@dataclass
class Config:
    scale: float = 1.0
    names: set[str] = field(default_factory=lambda: {"a", "b", "c"})


@dataclass(slots=True)
class Slotted:
    rows: list[int]


class Hidden:
    __slots__ = ("__rows", "unset")

    def __init__(self, rows):
        self.__rows = rows


class Solver:
    def __init__(self, config):
        self.config, self.cache = config, Cache()

    def __call__(self, x):
        return x * self.config.scale

    solve = __call__


class Cache:
    def __init__(self):
        self.calls = 0


class Peer:
    def __init__(self, peers=()):
        self.peers = set(peers)


class Wordless:
    rows = 3

    def __repr__(self):
        raise RuntimeError


def closure(scale):
    def apply(x):
        return inner(x) if x in {"p", "q", "r"} else scale

    def inner(x):
        return apply(x)  # it has caught the other, which has caught it

    return apply


def values():
    """Return values of all kinds, new ones with every call."""
    return [
        None, True, 3, 2.5, 1j, "text", b"bytes", np.float32(2), np.arange(6.0).reshape(2, 3), np.zeros((0, 3)),
        np.array(["a", {"b"}], dtype=object), np.array("2020-01-01", "datetime64[D]"), [1, (2, {"k": [3]})],
        {"b": 1, "a": 2}, {"x", "y", ("z", 1)}, collections.deque([{"a", "b", "c"}, np.arange(2000)]),
        {"k": 1}.values(), range(3), pathlib.Path("a") / "b", Config(), Slotted([1]), Hidden([1]), Wordless(),
        slice(1, 5), int, np.sum, operator.methodcaller("f", {"a", "b", "c"}),
        collections.UserDict(a=1), Exception("e", 1),
    ]  # fmt: skip


def calls():
    return [
        lambda x: x + 1, lambda x: x + 2, closure(1.0), closure(2.0), functools.partial(closure, 1.0),
        functools.partial(closure, scale=1.0), Solver(Config()), Solver(Config(2.0)), Solver(Config()).solve, len,
        Config,
    ]  # fmt: skip


def all_digests():
    return [*map(digest, values()), *map(digest_of_call, calls())]


def test_what_differs_has_another_digest():
    found = all_digests()
    assert len(set(found)) == len(found)
    assert all_digests() == found


@pytest.mark.parametrize("seed", ["1", "2"])
def test_every_process_finds_the_same(seed, request):
    program = "import test_network_digest as t; print(*t.all_digests())"
    environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(request.path.parent)}
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment,
        cwd=request.config.rootpath,
    )  # fmt: skip
    assert found.stdout.split() == all_digests()


def test_paths_do_not_change_by_being_used():
    path = pathlib.Path("a") / "b"
    before = digest([path])
    hash(path), str(path)
    assert digest([path]) == before


def test_caches_within_solvers_do_not_count():
    solver = Solver(Config())
    before = digest_of_call(solver)
    solver.cache.calls += 1
    assert digest_of_call(solver) == before
    solver.config.scale = 3.0
    assert digest_of_call(solver) != before


def test_objects_that_hold_one_another():
    a, b = Peer(), Peer()
    a.peers, b.peers = {b}, {a}
    assert digest(a) != digest(Peer())
    call = digest_of_call(lambda: a)
    a.peers = set()
    assert digest_of_call(lambda: a) != call


def test_objects_that_many_hold_are_gone_into_once():
    top = Peer()
    for _ in range(60):
        below, top = top, Config()
        top.a = top.b = below
    assert digest(top) == digest(top)
