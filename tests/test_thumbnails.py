"""Maps of where weights are: bounded, true where they are small, honest about what is empty; they survive JSON."""

import json
from dataclasses import replace

import numpy as np
import pytest

from sisopt.errors import InvalidInputError
from sisopt.network.report import LayerReport, NetworkReport
from sisopt.network.thumbnails import LARGEST, map_of, text_of, thumbnail
from tests.test_network_run import Chain, run

LAYER = LayerReport("fc", "Linear", (2, 2), "relu", 4, 3, 0, 0.1, None, None, None, "done", 0.1)


def random_matrix(shape, kept, seed=0):
    rng = np.random.default_rng(seed)
    return np.where(rng.random(shape) < kept, rng.normal(size=shape), 0.0)


def test_small_matrices_are_shown_entry_by_entry():
    W = random_matrix((7, 5), 0.4)
    np.testing.assert_array_equal(map_of(thumbnail([W])), np.where(W != 0, 255, 0))


@pytest.mark.parametrize("shape", [(1, 1000), (1000, 1), (97, 101), (480, 480), (49, 48)])
def test_large_matrices_are_shown_by_densities(shape):
    W = random_matrix(shape, 0.3)
    found = map_of(thumbnail([W]))
    assert found.shape == tuple(min(size, LARGEST) for size in shape)
    rows, columns = ((np.arange(len_ + 1) * size) // len_ for size, len_ in zip(shape, found.shape, strict=True))
    for i, j in np.random.default_rng(1).integers(0, found.shape, size=(20, 2)):
        place = W[rows[i] : rows[i + 1], columns[j] : columns[j + 1]]
        assert 0 <= found[i, j] - 255 * np.mean(place != 0) < 1 + 1e-9


def test_only_what_is_empty_is_blank():
    W = np.zeros((4800, 480))
    W[17, 33] = 1e-30
    found = map_of(thumbnail([W]))
    assert np.count_nonzero(found) == 1
    assert found[0, 3] == 1


def test_matrices_of_a_layer_stand_one_below_the_other():
    tall, wide = np.ones((2, 3)), np.zeros((1, 6))
    np.testing.assert_array_equal(map_of(thumbnail([tall, wide])), [[255] * 3, [255] * 3, [0] * 3])
    assert map_of(thumbnail([np.ones((1, 9))] * 512)).shape == (48, 9)
    assert thumbnail([np.ones((0, 3))]) == thumbnail([]) == ()


def test_a_map_survives_json():
    layer = replace(LAYER, density=text_of(np.array([[0, 255], [1, 16]], dtype=np.uint8)), curve=[(0.5, 0.1)])
    assert layer.density == ("00ff", "0110")
    report = NetworkReport((layer,))
    assert NetworkReport.from_json(report.to_json()) == report


def test_reports_from_before_there_were_maps_are_read():
    tree = json.loads(NetworkReport((LAYER,)).to_json())
    for name in ("curve", "density"):
        del tree["layers"][0][name]
    assert NetworkReport.from_json(json.dumps(tree)) == NetworkReport((LAYER,))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("density", "00ff"), ("density", ["00", "0000"]), ("density", ["0"]), ("density", ["zz"]), ("density", [""]),
        ("density", ["00"] * (LARGEST + 1)), ("density", [3]), ("density", None),
        ("curve", [[0.5]]), ("curve", [[0.5, None]]), ("curve", [[0.5, True]]), ("curve", 3), ("curve", [[10**400, 1]]),
    ],
)  # fmt: skip
def test_damaged_maps_and_curves_are_refused(name, value):
    tree = json.loads(NetworkReport((LAYER,)).to_json())
    tree["layers"][0][name] = value
    with pytest.raises(InvalidInputError, match=f"layer 0 of the network report is damaged: {name} must be"):
        NetworkReport.from_json(json.dumps(tree))


@pytest.mark.parametrize("n_parts", [1, 3])
def test_the_report_of_a_run_has_maps_of_the_sparse_layers(n_parts):
    chain = Chain(n_parts=n_parts)
    report = run(chain, sparsity=0.7)
    for layer, parts in zip(report.layers, chain.now, strict=True):
        stacked = np.concatenate([weight for weight, _ in parts])
        np.testing.assert_array_equal(map_of(layer.density), np.where(stacked != 0, 255, 0))
