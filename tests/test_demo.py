"""The demo does what its tables say: disjoint data, exact counts, certified layers, the same numbers every time."""

import io
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
rich_console = pytest.importorskip("rich.console")

from sisopt import demo, demo_report  # noqa: E402  after the skips
from sisopt.network import NetworkReport  # noqa: E402

SETTINGS = replace(demo.QUICK, seed=1)


@pytest.fixture(scope="module")
def result():
    return demo.run(SETTINGS)


def test_held_out_images_are_the_rest_of_the_digits():
    from sklearn.datasets import load_digits

    data = demo.load_data(seed=0)
    images = np.concatenate([data.images, data.held_out_images])
    whole = load_digits().data / 16.0
    np.testing.assert_array_equal(np.sort(images.view("V512"), axis=0), np.sort(whole.view("V512"), axis=0))
    fractions = np.bincount(data.held_out_labels) / (np.bincount(data.labels) + np.bincount(data.held_out_labels))
    assert np.allclose(fractions, 0.25, atol=0.01)


def test_every_layer_has_exactly_the_weights_asked_for(result):
    assert [row.sparsity for row in result.layers] == [s for s in SETTINGS.sparsities for _ in range(3)]
    for row in result.layers:
        assert row.n_kept == round((1 - row.sparsity) * row.size)


def test_every_layer_is_certified(result):
    assert all(0.0 <= row.gap <= 1e-3 for row in result.layers)


def test_errors_grow_with_sparsity_and_stay_below_magnitude_pruning(result):
    by_layer = {row.layer: [r for r in result.layers if r.layer == row.layer] for row in result.layers}
    for rows in by_layer.values():
        errors = [row.held_out_error for row in rows]
        assert errors == sorted(errors)
        assert all(row.held_out_error < row.magnitude_error for row in rows)


def test_sparse_networks_keep_more_accuracy_than_magnitude_pruning(result):
    assert result.dense_accuracy > 0.9
    for row in result.networks:
        assert row.accuracy > row.magnitude_accuracy
    assert result.networks[0].accuracy > result.dense_accuracy - 0.03


def test_the_same_settings_give_the_same_result(result):
    assert demo.run(SETTINGS) == result


def test_progress_goes_from_nothing_to_everything():
    calls = []
    settings = demo.Settings(hidden=(8,), epochs=2, sparsities=(0.5, 0.9))
    demo.run(settings, lambda done, total, doing: calls.append((done, total)))
    assert [done for done, _ in calls] == [0, 1, 2, 3, 4, 5, 6]
    assert {total for _, total in calls} == {6}


def test_magnitude_pruning_keeps_the_largest_weights_and_copies():
    weight = np.array([[3.0, -1.0], [0.5, -4.0]])
    dense = demo.Network((weight,), (np.zeros(2),))
    pruned = demo.prune_by_magnitude(dense, [2])
    np.testing.assert_array_equal(pruned.weights[0], [[3.0, 0.0], [0.0, -4.0]])
    assert np.count_nonzero(weight) == 4


def test_the_dense_network_has_no_error_against_itself():
    data = demo.load_data(seed=0)
    dense = demo.train(data, demo.Settings(hidden=(8,), epochs=1))
    assert demo.output_errors(dense, dense, data.images) == [0.0, 0.0]


@pytest.mark.parametrize("table", [demo_report.layer_table, demo_report.network_table])
def test_tables_fit_eighty_columns(result, table):
    console = rich_console.Console(file=io.StringIO(), width=80)
    console.print(table(result))
    text = console.file.getvalue()
    assert "…" not in text
    assert "sisopt" in text or "held-out" in text


def test_the_picture_is_a_png_and_the_same_every_time(result, tmp_path):
    first = demo_report.save_picture(result, tmp_path / "first.png").read_bytes()
    second = demo_report.save_picture(result, tmp_path / "second.png").read_bytes()
    assert first.startswith(b"\x89PNG")
    assert first == second


def test_the_report_is_that_of_the_sparsest_network_up_to_nine_tenths(result):
    report = demo_report.network_report(result)
    rows = [row for row in result.layers if row.sparsity == 0.8]
    assert [(layer.name, layer.n_kept, layer.gap) for layer in report.layers] == [
        (row.layer, row.n_kept, row.gap) for row in rows
    ]
    assert [sparsity for sparsity, _ in report.layers[0].curve] == list(SETTINGS.sparsities)
    assert (0.8, rows[0].calibration_error) in report.layers[0].curve
    assert all(len(layer.density) == layer.shape[0] for layer in report.layers)


def test_the_report_is_written_as_a_page_and_as_json(result, tmp_path):
    pytest.importorskip("jinja2")
    page, tree = demo_report.save_report(result, tmp_path)
    report = demo_report.network_report(result)
    assert NetworkReport.from_json(tree.read_text(encoding="utf-8")) == report
    assert f"{report.sparsity:.2%} zeros in 3 layers" in page.read_text(encoding="utf-8")
