"""``sisopt bench``: what it measures, and what it refuses before it does."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("click")
pytest.importorskip("rich")

import sisopt
from sisopt import cli
from tests.test_cli_files import LAYER


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_effort_is_measured_on_samples_held_out(folder, capsys):
    np.savez("own.npz", **LAYER, preactivations=np.zeros((90, 6)))
    assert cli.main(["bench", "own.npz", "--sparsity", "0.5", "--json", "--threads", "1"]) == 0
    told = capsys.readouterr()
    assert "preactivations are left aside" in told.err
    tree = json.loads(told.out)
    assert [row["method"] for row in tree["rows"]] == ["magnitude", "fast", "default", "full"]
    assert {row["sparsity"] for row in tree["rows"]} == {0.5}
    X, W, b = LAYER["inputs"][4::5], LAYER["weight"], LAYER["bias"]
    kept = np.where(np.abs(W) >= np.sort(np.abs(W), axis=None)[30], W, 0)
    dense, pruned = (np.maximum(X @ M.T + b, 0) for M in (W, kept))
    assert tree["rows"][0]["held_out_error"] == pytest.approx(
        np.linalg.norm(pruned - dense) / np.linalg.norm(dense), rel=1e-4
    )
    assert tree["rows"][3]["gap"] < 1e-2
    assert "1 threads" in tree["machine"]


@pytest.mark.parametrize(
    ("change", "more", "message"),
    [
        ({"weight": np.ones(10)}, [], "weight must"),
        ({"inputs": np.float32(1)}, [], "inputs must"),
        ({"inputs": LAYER["inputs"][:4]}, [], "it holds 4 samples, and one in 5 is held out"),
        ({}, ["--activation", "rellu"], "did you mean 'relu'"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is_compiled(
    change, more, message, folder, monkeypatch, capsys
):
    monkeypatch.setattr(sisopt, "warmup", lambda: pytest.fail("it compiled first"))
    np.savez("own.npz", **LAYER | change)
    assert cli.main(["bench", "own.npz", *more]) == 2
    assert message in capsys.readouterr().err


def test_it_cannot_be_told_to_say_nothing(folder, capsys):
    assert cli.main(["bench", "-q"]) == 2
    assert "No such option" in capsys.readouterr().err
