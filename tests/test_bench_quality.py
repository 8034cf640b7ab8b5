"""The bench of quality: what it measures, what it keeps, its verdicts and its tables. Nothing is fetched."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from bench import publish, quality, quality_curves, quality_networks
from bench.datasets import Dataset, Images
from bench.layers import LAYERS, BenchLayer
from bench.networks import Layer, Network, inputs_of
from bench.quality_floors import (
    geometric_mean,
    layer_verdicts,
    network_verdicts,
    ratios,
    spread,
    time_ratios,
)
from bench.quality_results import LayerResult, NetworkResult, Results, digest
from bench.quality_tables import blocks

BASE = LayerResult("trained ReLU", "A", "relu", 5000, 512, 256, "90 %", "ALPS", 0.1, 1.0, "s")
NET = NetworkResult("mlp", 0, "90 %", "ALPS", 0.8, "s")


def result(**changes):
    return replace(BASE, **changes)


def verdict(results, floor):
    (found,) = [v for v in layer_verdicts(results) if v.floor.startswith(floor)]
    return found


def tiny_layer(n_in=12, activation="relu", n_samples=60):
    rng = np.random.default_rng(0)
    arrays = (rng.standard_normal(shape).astype(np.float32) for shape in ((5, n_in), 5))
    inputs = (rng.standard_normal((n, n_in)).astype(np.float32) for n in (n_samples, 40))
    return BenchLayer("trained ReLU", "tiny", *arrays, activation, *inputs)


# Ratios and verdicts


def test_the_geometric_mean_of_2_and_8_is_4():
    assert geometric_mean([2.0, 8.0]) == pytest.approx(4.0)


def test_the_spread_is_the_standard_deviation_of_a_sample():
    assert spread([1.0, 2.0, 3.0]) == pytest.approx(1.0)
    assert spread([1.0]) == 0.0


def test_ratios_are_to_the_best_of_the_others_where_there_are_both():
    results = [
        result(error=0.4),
        result(method="OBC", error=0.2),
        result(method="sisopt", error=0.1),
        result(level="50 %", method="sisopt"),  # nothing to compare with
        result(level="70 %"),
    ]
    everywhere = lambda result: True  # noqa: E731
    assert ratios(results, "sisopt", ["ALPS", "OBC"], everywhere) == {("A", "90 %"): pytest.approx(0.5)}
    assert ratios(results, "sisopt", ["ALPS"], everywhere) == {("A", "90 %"): pytest.approx(0.25)}
    assert ratios(results, "sisopt", ["ALPS"], lambda result: result.level == "50 %") == {}


@pytest.mark.parametrize(("error", "text"), [(0.085, "met"), (0.0851, "MISSED")])
def test_a_mean_is_held_against_its_floor(error, text):
    found = verdict([result(), result(method="sisopt", error=error)], "trained ReLU, over ALPS")
    assert found.figure == pytest.approx(error / 0.1)
    assert (found.text, found.cases) == (text, 1)


def test_below_every_rival_means_below_and_on_every_layer_and_level():
    results = [result(), result(method="sisopt", error=0.09), result(level="50 %")]
    tied = [*results, result(level="50 %", method="sisopt", error=0.1)]
    ahead = [*results, result(level="50 %", method="sisopt", error=0.0999)]
    floor = "trained ReLU, over the best rival"
    assert verdict(tied, floor).text == "MISSED"
    assert "A, 50 %: 1.000; 1 of 2 miss it" in verdict(tied, floor).worst
    assert verdict(ahead, floor).text == "met"


def test_each_floor_looks_at_its_own_group_and_level():
    trained = [result(method=method, error=error) for method, error in (("ALPS", 0.1), ("sisopt", 0.05))]
    assert [v.floor for v in layer_verdicts(trained) if v.figure is not None] == [
        "trained ReLU, over ALPS",
        "trained ReLU, over the best rival, each",
        "sisopt: CPU time over ALPS's, each layer of 256 x 256 and more",
    ]
    assert verdict(trained, "GELU").text == "not measured"
    pattern = [replace(x, level="2:4") for x in trained]
    assert verdict(pattern, "trained ReLU, over ALPS").text == "not measured"
    assert verdict(pattern, "2:4, trained ReLU").figure == pytest.approx(0.5)
    few = [replace(x, group="random", n_samples=128) for x in trained]
    assert verdict(few, "fewer samples").figure == pytest.approx(0.5)
    assert verdict([replace(x, group="random") for x in trained], "fewer samples").text == "not measured"


def test_times_are_those_of_all_levels_together_on_large_layers():
    results = [
        result(cpu_seconds=1.0),
        result(method="sisopt", cpu_seconds=5.0),
        result(level="50 %", cpu_seconds=3.0),
        result(level="50 %", method="sisopt", cpu_seconds=3.0),
        result(level="70 %", method="sisopt", cpu_seconds=50.0),  # without the reference
    ]
    small = [replace(x, layer="B", n_in=255, n_out=256) for x in results]
    assert time_ratios([*results, *small], "sisopt") == {"A": pytest.approx(2.0)}


def network_results(ours, theirs):
    of = {"sisopt": ours, "ALPS": theirs, "Wanda": [0.1, 0.1, 0.1]}
    return [replace(NET, method=m, seed=i, accuracy=x) for m, found in of.items() for i, x in enumerate(found)]


def test_a_network_must_be_ahead_of_the_best_rival_by_more_than_the_spread():
    ahead = network_results([0.87, 0.88, 0.89], [0.84, 0.85, 0.86])
    close = network_results([0.87, 0.88, 0.89], [0.865, 0.875, 0.885])
    assert [(v.text, v.worst) for v in network_verdicts(ahead)] == [
        ("met", "ALPS is next"),
        ("not measured", ""),
    ]
    assert network_verdicts(close)[0].text == "MISSED"
    assert network_verdicts(close)[0].figure == pytest.approx(0.5)


# Results


def test_results_survive_in_their_file(tmp_path):
    results = Results(tmp_path / "out" / "quality.json")
    results.add(BASE)
    results.add(NET)
    again = Results(tmp_path / "out" / "quality.json")
    assert again.layers == again.networks == []  # not asked for yet
    assert again.has(BASE.key, "s") and again.has(NET.key, "s")
    assert (again.layers, again.networks) == ([BASE], [NET])


def test_what_other_code_measured_is_measured_again_and_replaced(tmp_path):
    path = tmp_path / "quality.json"
    Results(path).add(BASE)
    results = Results(path)
    assert not results.has(BASE.key, "t")
    assert results.layers == []
    results.add(result(stamp="t", error=0.2))
    assert [x["error"] for x in json.loads(path.read_text())["layers"]] == [0.2]


def test_the_digest_changes_with_every_file_and_array(tmp_path):
    (tmp_path / "a").write_text("1")
    one = digest([tmp_path / "a"], [np.zeros(2)])
    assert one == digest([tmp_path / "a"], [np.zeros(2)])
    assert one != digest([tmp_path / "a"], [np.ones(2)])
    (tmp_path / "a").write_text("2")
    assert one != digest([tmp_path / "a"], [np.zeros(2)])


# Measuring


@pytest.mark.filterwarnings("ignore::sisopt.GeneralizationWarning")
@pytest.mark.parametrize("method", ["magnitude", "OBC", "sisopt"])
def test_a_layer_is_measured_once(tmp_path, monkeypatch, method):
    layer, calls = tiny_layer(), []
    counted = quality.prune
    monkeypatch.setattr(quality, "prune", lambda *args: calls.append(args) or counted(*args))
    monkeypatch.setattr(quality, "ROUNDS", 1)
    for n_calls in (len(quality.LEVELS), len(quality.LEVELS)):
        results = Results(tmp_path / "quality.json")
        quality.measure_layer(layer, results, [method])
        assert len(calls) == n_calls
        assert [x.level for x in results.layers] == list(quality.LEVELS)
    assert (results.layers[0].n_samples, results.layers[0].n_in, results.layers[0].n_out) == (60, 12, 5)
    assert results.layers[0].error < results.layers[4].error


def test_an_interrupted_layer_goes_on_where_it_stopped(tmp_path, monkeypatch):
    layer, levels = tiny_layer(), []

    def broken(method, inputs, weight, bias, activation, level):
        levels.append(level)
        if len(levels) == 3:
            raise KeyboardInterrupt
        return weight * 0, bias

    monkeypatch.setattr(quality, "prune", broken)
    monkeypatch.setattr(quality, "ROUNDS", 1)
    with pytest.raises(KeyboardInterrupt):
        quality.measure_layer(layer, Results(tmp_path / "quality.json"), ["magnitude"])
    quality.measure_layer(layer, Results(tmp_path / "quality.json"), ["magnitude"])
    assert levels == ["50 %", "70 %", "80 %", "80 %", "90 %", "95 %", "2:4"]


def test_the_error_is_that_of_the_outputs_on_the_test_inputs(tmp_path):
    layer = tiny_layer()
    results = Results(tmp_path / "quality.json")
    quality.measure_layer(layer, results, ["magnitude"])
    weight, _ = quality.prune("magnitude", layer.inputs, layer.weight, layer.bias, "relu", "2:4")
    dense, pruned = (np.maximum(layer.test_inputs @ W.T + layer.bias, 0) for W in (layer.weight, weight))
    (found,) = [x.error for x in results.layers if x.level == "2:4"]
    assert found == pytest.approx(np.linalg.norm(pruned - dense) / np.linalg.norm(dense))


def test_costly_rivals_run_where_they_are_said_to():
    small, large = tiny_layer(n_in=12), tiny_layer(n_in=784)
    assert all(quality.runs("ALPS", large, level) for level in quality.LEVELS)
    assert [level for level in quality.LEVELS if quality.runs("OBC", large, level)] == ["50 %", "90 %", "2:4"]
    assert not any(quality.runs("lasso", large, level) for level in quality.LEVELS)
    assert [level for level in quality.LEVELS if quality.runs("Net-Trim", small, level)] == ["50 %", "90 %"]
    assert not any(quality.runs("Net-Trim", tiny_layer(activation="tanh"), level) for level in quality.LEVELS)
    assert not any(quality.runs("Net-Trim", large, level) for level in quality.LEVELS)
    assert all(name in quality.RIVALS for name in (*quality.LIMITS, *quality.ALL_LEVELS, *quality_networks.LEFT_OUT))


def test_every_method_has_a_style_of_its_own():
    assert list(quality_curves.STYLES) == list(quality.METHODS)
    assert len({style[:2] for style in quality_curves.STYLES.values()}) == len(quality.METHODS)


# Networks


@pytest.fixture
def network():
    rng = np.random.default_rng(0)

    def layer(name, n_out, n_in, activation, **rest):
        weight = rng.standard_normal((n_out, n_in)).astype(np.float32)
        return Layer(name, weight, rng.standard_normal(n_out).astype(np.float32), activation, **rest)

    layers = (layer("conv", 4, 9, "relu", kernel=3, padding=1, pooling=2), layer("head", 3, 16, "identity"))
    return Network("tiny", (1, 4, 4), layers)


@pytest.fixture
def images():
    rng = np.random.default_rng(1)
    parts = (Images(rng.random((30, 16)).astype(np.float32), rng.integers(0, 3, 30)) for _ in range(3))
    return Dataset("tiny", (1, 4, 4), *parts)


def test_steps_know_what_the_dense_network_computes(network, images):
    pixels = images.calibration.pixels
    for index, step in enumerate(quality_networks.dense_steps(network, pixels)):
        layer, inputs = network.layers[index], inputs_of(network, index, pixels)
        np.testing.assert_array_equal(step.preactivations, inputs @ layer.weight.T + layer.bias)


def test_layers_are_pruned_on_inputs_from_pruned_ones_to_preactivations_of_dense_ones(network, images, monkeypatch):
    steps, seen = quality_networks.dense_steps(network, images.calibration.pixels), []

    def halve(method, inputs, weight, bias, activation, level, preactivations):
        seen.append((inputs, preactivations))
        return weight / 2, bias + 1

    monkeypatch.setattr(quality_networks, "prune", halve)
    pruned = quality_networks.pruned_network(network, steps, "ALPS", "90 %", images)
    np.testing.assert_array_equal(pruned.layers[1].weight, network.layers[1].weight / 2)
    for index, (inputs, preactivations) in enumerate(seen):
        np.testing.assert_array_equal(inputs, inputs_of(pruned, index, images.calibration.pixels))
        np.testing.assert_array_equal(preactivations, steps[index].preactivations)
    assert np.abs(seen[1][0] - inputs_of(network, 1, images.calibration.pixels)).max() > 0.1


def test_a_network_is_measured_once(tmp_path, network, images, monkeypatch):
    for n_expected in (7, 0):
        results, added = Results(tmp_path / "quality.json"), []
        monkeypatch.setattr(
            results, "add", lambda x, results=results, added=added: (added.append(x), Results.add(results, x))
        )
        quality_networks.measure_network("tiny", 0, network, images, results, ["magnitude", "ALPS"])
        assert len(added) == n_expected
        assert len(results.networks) == 7


# Tables


def everything():
    layers = [
        replace(BASE, group=group, layer=f"{group} {size}", activation="relu", n_samples=n, level=level, method=method)
        for group, size, n in (
            ("trained ReLU", 1, 5000),
            ("trained ReLU", 2, 5000),
            ("random", 1, 2048),
            ("random", 2, 128),
        )
        for level in ("50 %", "90 %", "2:4")
        for method in ("ALPS", "OBC", "sisopt")
        if (size, method) != (2, "OBC")
    ]
    return layers, [NET, replace(NET, level="dense", method="dense", accuracy=0.9)]


def test_tables_have_a_row_for_every_method_and_say_which_did_not_run_everywhere():
    tables = blocks(*everything())
    assert set(tables) == {"layer_floors", "groups", "layers", "times", "network_floors", "networks"}
    trained, random, few = tables["groups"]
    assert trained.title.startswith("trained ReLU (2 layers)")
    assert [row[0] for row in trained.rows] == ["ALPS", "OBC", "sisopt"]
    assert trained.rows[1][1:] == ("1.000*", "", "", "1.000*", "", "1.000*")
    assert "fewer samples" in few.title and [row[0] for row in few.rows] == ["ALPS", "sisopt"]
    assert [len(table.rows) for table in tables["layers"]] == [12, 6, 6]
    assert tables["networks"][0].rows == [("ALPS", "80.00 ± 0.00")]
    assert "dense 90.00 ± 0.00" in tables["networks"][0].title
    for table in (table for kind in tables.values() for table in kind):
        assert table.text() and table.markdown()


def test_a_run_of_a_part_has_no_tables_of_the_rest():
    layers, networks = everything()
    assert "networks" not in blocks(layers, []) and "groups" not in blocks([], networks)


def test_the_curves_have_points_where_a_method_ran_on_all_layers(tmp_path):
    pytest.importorskip("matplotlib")
    layers = everything()[0]
    trained = [x for x in layers if x.group == "trained ReLU"]
    near, none = pytest.approx(0.1), pytest.approx(float("nan"), nan_ok=True)
    ours = quality_curves.curve(trained, "sisopt")  # a gap where nothing was measured
    assert ours == [(i, near if i in (0, 3) else none) for i in range(len(ours))]
    assert all(error == none for _, error in quality_curves.curve(trained, "OBC"))
    quality_curves.draw(layers, tmp_path / "curves.svg")
    assert "trained ReLU" in (tmp_path / "curves.svg").read_text(encoding="utf-8")


# The page


def test_blocks_of_a_run_replace_those_of_the_page_and_no_others(tmp_path, monkeypatch):
    for name in ("DOCS", "OUT"):
        monkeypatch.setattr(publish, name, tmp_path / name)
        (tmp_path / name).mkdir()
    page = publish.marked({"groups": ["old"], "networks": ["kept"]})
    new = "new \\1"
    (tmp_path / "DOCS" / "quality.md").write_text(f"# Quality\n\n{page}")
    (tmp_path / "OUT" / "quality.md").write_text(publish.marked({"groups": [new]}))
    publish.publish("quality.md")
    expected = "# Quality\n\n" + page.replace("old", new)
    assert (tmp_path / "DOCS" / "quality.md").read_text() == expected


def test_the_page_has_a_place_for_every_block():
    page = publish.DOCS / "quality.md"
    if not page.exists():
        pytest.skip("not in this distribution")
    for name in blocks(*everything()):
        assert f"<!-- {name}:start -->" in page.read_text(encoding="utf-8")


def test_the_groups_of_the_floors_are_those_of_the_layers():
    groups = {group for group, _ in LAYERS}
    assert groups == {"trained ReLU", "trained linear", "GELU", "tanh", "random"}
