"""The bench of models: what runs where, what is kept, what the tables say."""

import json

import numpy as np
import pytest

from bench.models.measure import DENSE, OURS, ModelResult, Store, code_stamp, measure_model, runs, solver
from bench.models.tables import tables
from sisopt.network import LayerGoal


def result(level, method, value, subject="digits", metric="accuracy", higher=True, seconds=1.0):
    return ModelResult(subject, level, method, {metric: value}, metric, higher, 0.8, seconds, "stamp")


def cells(table):
    return {row[0]: row[1:] for row in table.rows}


def test_tables_tell_metrics_floors_and_times():
    results = [
        result(DENSE, DENSE, 99.0),
        result("80 %", "ALPS", 98.0, seconds=3.0),
        result("80 %", "Wanda", 50.0),
        result("80 %", "sisopt", 98.7, seconds=7.0),
        result("90 %", "ALPS", 98.5, seconds=5.0),
        result("90 %", "sisopt", 98.4),
    ]
    metrics, floors, times = tables(results)
    assert metrics.title == "digits: accuracy; dense 99.00"
    assert cells(metrics) == {"Wanda": ("50.00", ""), "ALPS": ("98.00", "98.50"), "sisopt": ("98.70", "98.40")}
    assert cells(floors) == {
        "digits, 80 %: accuracy": (">= 98.80", "98.70", "MISSED"),
        "digits, 80 %: accuracy, best rival": ("> 98.00 (ALPS)", "98.70", "met"),
        "digits, 90 %: accuracy": (">= 98.30", "98.40", "met"),
        "digits, 90 %: accuracy, best rival": ("> 98.50 (ALPS)", "98.40", "MISSED"),
    }
    assert cells(times)["digits"] == ("3 to 5", "1 to 7", "", "")


def test_less_is_better_where_a_metric_says_so():
    results = [
        result(DENSE, DENSE, 0.9, "forecaster-0", "sMAPE", False),
        result("90 %", "ALPS", 0.96, "forecaster-0", "sMAPE", False),
        result("90 %", "sisopt", 0.94, "forecaster-0", "sMAPE", False),
    ]
    found = cells(tables(results)[1])
    assert found["forecaster-0, 90 %: sMAPE"] == ("<= 0.9450", "0.9400", "met")
    assert found["forecaster-0, 90 %: sMAPE, best rival"] == ("< 0.9600 (ALPS)", "0.9400", "met")


def test_the_store_keeps_what_it_has(tmp_path):
    store = Store(tmp_path / "models.json")
    one = result("80 %", "ALPS", 98.0)
    store.add(one)
    again = Store(tmp_path / "models.json")
    assert again.results == {one.key: one}
    assert again.has(one.key, "stamp") and not again.has(one.key, "other") and not again.has(("x", "y", "z"), "stamp")
    assert len(json.loads((tmp_path / "models.json").read_text())) == 1


def test_stamps_tell_ours_from_the_rivals():
    assert code_stamp("ALPS") == code_stamp("Wanda") != code_stamp("sisopt")
    assert code_stamp(DENSE) not in (code_stamp("ALPS"), code_stamp("sisopt"))


def test_a_rival_takes_goals_of_the_adapter():
    rng = np.random.default_rng(0)
    X, W, b = rng.normal(size=(60, 8)), rng.normal(size=(4, 8)), rng.normal(size=4)
    half, bias = solver("magnitude")(X, W, b, LayerGoal(sparsity=0.5))
    assert np.count_nonzero(half) == 16 and bias is b
    pattern, _ = solver("magnitude")(X, W, b, LayerGoal(pattern="2:4"))
    assert np.all(np.count_nonzero(pattern.reshape(4, 2, 4), axis=2) == 2)


def test_every_method_runs_on_a_small_model(tmp_path):
    torch = pytest.importorskip("torch")
    from bench.models import Subject

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 24), torch.nn.ReLU(), torch.nn.Linear(24, 4)).eval()
    test = torch.randn(50, 16)

    def agreement(outputs, dense):
        return {"agreement": float((outputs.argmax(1) == dense.argmax(1)).double().mean())}

    subject = Subject(
        "toy", model, [torch.randn(200, 16)], lambda m: m(test).detach(), agreement, "agreement", (0.5, "2:4")
    )
    store = Store(tmp_path / "models.json")
    measure_model(subject, store)
    counts = {level: [r.method for r in store.results.values() if r.level == level] for level in ("50 %", "2:4", DENSE)}
    assert counts[DENSE] == [DENSE]
    assert set(counts["50 %"]) - set(counts["2:4"]) == {name for name, how in OURS.items() if "allocation" in how}
    assert all(r.sparsity == 0.5 for r in store.results.values() if r.level != DENSE)
    assert store.results["toy", "50 %", "sisopt"].metrics["agreement"] > 0.5
    before = dict(store.results)
    measure_model(subject, store)
    assert store.results == before


def test_rivals_with_square_matrices_are_left_out_of_wide_layers():
    torch = pytest.importorskip("torch")
    wide = torch.nn.Linear(10_000, 1)
    assert runs("Wanda", wide) and runs("sisopt", wide) and not runs("ALPS", wide)
    wider = torch.nn.Linear(60_000, 100)
    assert runs("sisopt, fast", wider) and not runs("sisopt", wider) and not runs("sisopt, even shares", wider)
