"""Data and networks of the benches: what is fetched, what is kept, and what NumPy makes of a trained network."""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import replace

import numpy as np
import pytest
from scipy.signal import correlate

from bench import datasets, layers, networks, training
from bench.cache import cache_dir, store
from bench.networks import Layer, Network, accuracy, inputs_of, replaced, scores

NAMES = ("train-images", "train-labels", "test-images", "test-labels")
N_TRAIN, N_TEST, HEIGHT, WIDTH = 30, 8, 3, 4


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SISOPT_CACHE", str(tmp_path / "cache"))


# Data sets


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return header + array.tobytes()


@pytest.fixture
def source(monkeypatch):
    """Return a source of distinct images, the list of its fetches and what it fetches."""
    monkeypatch.setattr(datasets, "HELD_OUT", 10)
    monkeypatch.setattr(datasets, "CALIBRATION", 6)
    pixels = np.random.default_rng(0).integers(0, 256, (N_TRAIN + N_TEST, HEIGHT, WIDTH), dtype=np.uint8)
    labels = (np.arange(N_TRAIN + N_TEST) % 10).astype(np.uint8)
    contents = {
        "train-images": gzip.compress(idx(pixels[:N_TRAIN]), mtime=0),
        "train-labels": idx(labels[:N_TRAIN]),
        "test-images": idx(pixels[N_TRAIN:]),
        "test-labels": gzip.compress(idx(labels[N_TRAIN:]), mtime=0),
    }
    fetches = []

    def fetch(folder):
        fetches.append(folder)
        for name, content in contents.items():
            (folder / name).write_bytes(content)

    digests = {name: hashlib.sha256(contents[name]).hexdigest() for name in NAMES}
    return datasets.Source("fake", fetch, digests), fetches, contents


def test_splits_are_disjoint_and_keep_pixels_beside_their_labels(source):
    dataset = datasets.read(source[0])
    assert dataset.shape == (1, HEIGHT, WIDTH)
    parts = (dataset.train, dataset.calibration, dataset.test)
    assert [len(part.labels) for part in parts] == [20, 6, N_TEST]
    assert len({row.tobytes() for part in parts for row in part.pixels}) == 20 + 6 + N_TEST
    original = np.random.default_rng(0).integers(0, 256, (N_TRAIN + N_TEST, HEIGHT, WIDTH), dtype=np.uint8)
    for part, first in zip(parts, (0, 20, N_TRAIN), strict=True):
        assert part.pixels.dtype == np.float32
        np.testing.assert_array_equal(
            np.rint(255 * part.pixels), original[first : first + len(part.labels)].reshape(-1, 12)
        )
        np.testing.assert_array_equal(part.labels, np.arange(first, first + len(part.labels)) % 10)
        assert 0 <= part.pixels.min() and part.pixels.max() <= 1


def test_files_are_fetched_once(source):
    datasets.read(source[0])
    datasets.read(source[0])
    assert len(source[1]) == 1


@pytest.mark.parametrize("damage", ["changed", "cut short", "gone"])
def test_damaged_files_are_fetched_again(source, damage):
    datasets.read(source[0])
    file = cache_dir() / "fake" / "train-labels"
    if damage == "gone":
        file.unlink()
    else:
        content = bytearray(file.read_bytes())
        file.write_bytes(content[:-1] if damage == "cut short" else content[:-1] + b"\x77")
    assert datasets.read(source[0]).train.labels[3] == 3
    assert len(source[1]) == 2
    assert file.read_bytes() == source[2]["train-labels"]


def test_installed_files_are_read_where_they_are(source, tmp_path):
    for name, content in source[2].items():
        (tmp_path / name).write_bytes(content)
    datasets.read(replace(source[0], installed=tmp_path))
    assert not source[1]


def test_files_that_are_not_what_they_should_be_are_refused_and_not_kept(source):
    source[2]["test-labels"] += b"\0"
    with pytest.raises(OSError, match="not what it should be"):
        datasets.read(source[0])
    assert not list(cache_dir().rglob("*"))


def test_a_program_that_fails_or_is_missing_is_told(source):
    with pytest.raises(OSError, match="no such package"):
        datasets.read(
            replace(
                source[0],
                fetch=lambda folder: datasets._run("sh", "-c", "echo no such package >&2; exit 3", folder=folder),
            )
        )
    with pytest.raises(OSError, match="no-program"):
        datasets.read(replace(source[0], fetch=lambda folder: datasets._run("no-program-of-this-name", folder=folder)))


def test_the_next_source_is_used_with_a_warning(source, monkeypatch):
    def fail(folder):
        raise OSError("out of reach")

    broken = replace(source[0], name="broken", fetch=fail)
    monkeypatch.setattr(datasets, "SOURCES", (broken, source[0]))
    with pytest.warns(UserWarning, match="use fake instead .*broken: out of reach"):
        assert datasets.image_dataset.__wrapped__().name == "fake"
    monkeypatch.setattr(datasets, "SOURCES", (broken,))

    def missing():
        raise ImportError("no scikit-learn")

    monkeypatch.setattr(datasets, "digits", missing)
    with pytest.raises(RuntimeError, match="no images can be had .*out of reach.*no scikit-learn.*Install"):
        datasets.image_dataset.__wrapped__()


def test_digits_stand_in():
    pytest.importorskip("sklearn")
    dataset = datasets.digits()
    parts = (dataset.train, dataset.calibration, dataset.test)
    assert [part.pixels.shape for part in parts] == [(997, 64), (400, 64), (400, 64)]
    assert len({row.tobytes() for part in parts for row in part.pixels}) == 1797
    assert max(part.pixels.max() for part in parts) == 1


def test_nothing_is_kept_of_what_was_not_finished():
    def write(folder):
        (folder / "one").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store(write, "one", "two")
    assert not list(cache_dir().iterdir())


# Networks


def dense(n_out, n_in, activation="identity", seed=0):
    rng = np.random.default_rng(seed)
    return Layer("dense", rng.standard_normal((n_out, n_in)), rng.standard_normal(n_out), activation)


def convolution(n_out, channels, activation="relu", seed=0, **options):
    layer = dense(n_out, channels * options["kernel"] ** 2, activation, seed)
    return replace(layer, **options)


def convolved(layer, maps):
    """Return the pre-activations (n, n_out, height, width) by scipy."""
    k, p = layer.kernel, layer.padding
    padded = np.pad(maps, ((0, 0), (0, 0), (p, p), (p, p)))
    kernels = layer.weight.reshape(len(layer.weight), -1, k, k)
    Z = [[correlate(image, kernel, "valid")[0] for kernel in kernels] for image in padded]
    return np.array(Z)[:, :, :: layer.stride, :: layer.stride] + layer.bias[:, None, None]


GEOMETRIES = (
    {"kernel": 3, "padding": 1},
    {"kernel": 3, "stride": 2, "padding": 1},
    {"kernel": 2},
    {"kernel": 1, "stride": 3},
    {"kernel": 3, "padding": 1, "pooling": 2},
    {"kernel": 2, "stride": 2, "padding": 1, "pooling": 2},
)


@pytest.mark.parametrize("options", GEOMETRIES, ids=str)
def test_convolutions_are_those_of_scipy(options, monkeypatch):
    layer = convolution(4, 2, **options)
    images = np.random.default_rng(1).standard_normal((5, 2, 7, 6))
    expected = np.maximum(convolved(layer, images), 0)
    if layer.pooling > 1:
        n, c, height, width = (size // p for size, p in zip(expected.shape, (1, 1, 2, 2), strict=True))
        windows = expected[:, :, : 2 * height, : 2 * width]
        expected = np.array(
            [
                windows[:, :, i : i + 2, j : j + 2].max(axis=(2, 3))
                for i in range(0, 2 * height, 2)
                for j in range(0, 2 * width, 2)
            ]
        )
        expected = expected.transpose(1, 2, 0).reshape(n, c, height, width)
    head = dense(3, expected[0].size)
    network = Network("one", (2, 7, 6), (layer, head))
    assert networks.shapes(network) == [(2, 7, 6), expected.shape[1:], (3,)]
    flat = expected.reshape(5, -1)
    for chunk in (networks.CHUNK_BYTES, 1):
        monkeypatch.setattr(networks, "CHUNK_BYTES", chunk)
        np.testing.assert_allclose(inputs_of(network, 1, images.reshape(5, -1)), flat, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(scores(network, images.reshape(5, -1)), flat @ head.weight.T + head.bias, rtol=1e-12)


def test_pooling_takes_the_largest_of_every_window():
    identity = Layer("conv", np.ones((1, 1)), np.zeros(1), "identity", kernel=1, pooling=2)
    network = Network("pool", (1, 3, 5), (identity, Layer("head", np.eye(2), np.zeros(2), "identity")))
    image = np.array([[1, 5, 2, 0, 9], [3, 4, 8, 7, 9], [9, 9, 9, 9, 9]], float)
    np.testing.assert_array_equal(scores(network, image.reshape(1, -1)), [[5, 8]])


@pytest.mark.parametrize("options", GEOMETRIES, ids=str)
def test_unfolded_inputs_are_those_of_a_dense_layer(options, monkeypatch):
    first, layer = convolution(3, 1, "tanh", kernel=2), convolution(4, 3, seed=1, **options)
    network = Network("two", (1, 8, 7), (first, layer))
    images = np.random.default_rng(2).standard_normal((5, 1, 8, 7))
    Z = convolved(layer, np.tanh(convolved(first, images)))
    every = inputs_of(network, 1, images.reshape(5, -1))
    expected = Z.transpose(0, 2, 3, 1).reshape(-1, 4)
    np.testing.assert_allclose(every @ layer.weight.T + layer.bias, expected, rtol=1e-10, atol=1e-10)
    drawn = inputs_of(network, 1, images.reshape(5, -1), 11, seed=3)
    monkeypatch.setattr(networks, "CHUNK_BYTES", 1)
    np.testing.assert_array_equal(inputs_of(network, 1, images.reshape(5, -1), 11, seed=3), drawn)
    rows = [int(np.flatnonzero((every == row).all(axis=1))[0]) for row in drawn]
    assert len(set(rows)) == 11 and rows == sorted(rows)
    assert not np.array_equal(inputs_of(network, 1, images.reshape(5, -1), 11, seed=4), drawn)


def test_pruned_networks_are_sampled_at_the_same_positions():
    first, second = convolution(2, 1, kernel=3), convolution(2, 2, kernel=1)
    network = Network("dense", (1, 6, 6), (first, second))
    other = replaced(network, 0, -first.weight, -first.bias)
    images = np.random.default_rng(2).standard_normal((7, 36))
    # the ReLU of Z and of -Z: where both are from one position, just one of them is positive
    here, there = (inputs_of(net, 1, images, 20) for net in (network, other))
    assert ((here > 0) ^ (there > 0)).all()


def test_replacing_a_layer_leaves_the_network_as_it_was():
    network = Network("two", (1, 2, 2), (dense(3, 4, "relu"), dense(2, 3)))
    weight, bias = np.zeros((3, 4)), np.ones(3)
    other = replaced(network, 0, weight, bias)
    assert other.layers[0].weight is weight and other.layers[0].bias is bias
    assert other.layers[0].activation == "relu" and other.layers[1] is network.layers[1]
    images = np.ones((1, 4))
    np.testing.assert_allclose(scores(other, images)[0], network.layers[1].weight.sum(axis=1) + network.layers[1].bias)
    assert np.count_nonzero(network.layers[0].weight) == 12


def test_accuracy_counts_images_that_get_their_label():
    network = Network("same", (1, 1, 3), (Layer("head", np.eye(3), np.zeros(3), "identity"),))
    images = np.array([[1, 0, 0], [0, 2, 0], [0, 0, 3], [4, 5, 0]])
    assert accuracy(network, images, np.array([0, 1, 1, 1])) == 0.75


@pytest.mark.parametrize("name", ["relu", "gelu", "tanh", "identity"])
def test_activations_keep_the_dtype(name):
    Z = np.linspace(-3, 3, 7, dtype=np.float32)
    outputs = networks.activate(name, Z)
    assert outputs.dtype == np.float32
    expected = {
        "relu": [0, 1],
        "gelu": [-0.15865525, 0.84134475],
        "tanh": [-0.76159416, 0.76159416],
        "identity": [-1, 1],
    }
    np.testing.assert_allclose(outputs[[2, 4]], expected[name], rtol=1e-6)


# Trained networks


RECIPE = training.Recipe("mlp", "relu", 0, steps=3, rate=1e-2, batch=4)


@pytest.fixture
def trainings(monkeypatch):
    """Let training double all parameters; return the list of what was trained."""
    done = []

    def train(network, images, recipe):
        done.append(recipe)
        return training.with_parameters(network, [2 * array for array in training.parameters(network)])

    monkeypatch.setattr(training, "train", train)
    return done


def test_a_network_is_trained_once_and_then_read(source, trainings):
    dataset = datasets.read(source[0])
    first, second = (training.load_or_train(RECIPE, dataset) for _ in range(2))
    assert trainings == [RECIPE]
    for one, two in zip(training.parameters(first), training.parameters(second), strict=True):
        np.testing.assert_array_equal(one, two)
    assert [layer.weight.shape for layer in second.layers] == [(512, 12), (256, 512), (10, 256)]
    assert [layer.activation for layer in second.layers] == ["relu", "relu", "identity"]
    other = training.load_or_train(replace(RECIPE, seed=1), dataset)
    assert len(trainings) == 2
    assert not np.array_equal(other.layers[0].weight, first.layers[0].weight)


@pytest.mark.parametrize("damage", ["cut short", "changed", "empty", "of another network"])
def test_a_damaged_network_is_trained_again(source, trainings, damage):
    dataset = datasets.read(source[0])
    network = training.load_or_train(RECIPE, dataset)
    (file,) = (cache_dir() / "networks").iterdir()
    content = bytearray(file.read_bytes())
    if damage == "changed":
        content[1000] ^= 255
        file.write_bytes(content)
    elif damage == "of another network":
        np.savez(file, **{key: np.ones(3) for key in np.load(file).files})
    else:
        file.write_bytes(content[: len(content) // 2] if damage == "cut short" else b"")
    with pytest.warns(UserWarning, match="trained again"):
        again = training.load_or_train(RECIPE, dataset)
    np.testing.assert_array_equal(again.layers[1].weight, network.layers[1].weight)
    training.load_or_train(RECIPE, dataset)  # now without a warning
    assert len(trainings) == 2


def test_the_convolutional_network_fits_its_images():
    recipe = replace(RECIPE, kind="cnn")
    for shape, widths in (((1, 28, 28), [9, 288, 576, 576, 576, 128]), ((1, 8, 8), [9, 288, 576, 576, 64, 128])):
        network = training.untrained(recipe, shape, 10)
        assert [layer.weight.shape[1] for layer in network.layers] == widths
        assert scores(network, np.zeros((2, shape[1] * shape[2]), np.float32)).shape == (2, 10)


@pytest.mark.parametrize(
    ("kind", "activation"), [("mlp", "gelu"), ("mlp", "tanh"), ("mlp", "identity"), ("cnn", "relu")]
)
def test_numpy_agrees_with_torch(kind, activation):
    torch = pytest.importorskip("torch")
    network = training.untrained(replace(RECIPE, kind=kind, activation=activation), (1, 28, 28), 10)
    images = np.random.default_rng(0).random((3, 784), np.float32)
    tensors = [torch.tensor(array) for array in training.parameters(network)]
    theirs = training.torch_scores(network, tensors, torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(scores(network, images), theirs, rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        module = training.as_module(network)(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(module, theirs, rtol=1e-4, atol=1e-6)


def test_training_learns_and_repeats_itself():
    pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 60)
    images = datasets.Images((np.eye(3)[labels] + 0.1 * rng.random((60, 3))).astype(np.float32), labels)
    recipe = replace(RECIPE, steps=40, batch=16)
    network = training.untrained(recipe, (1, 1, 3), 3)
    first, second = (training.train(network, images, recipe) for _ in range(2))
    assert accuracy(first, images.pixels, labels) > 0.95 > accuracy(network, images.pixels, labels)
    for one, two in zip(training.parameters(first), training.parameters(second), strict=True):
        np.testing.assert_array_equal(one, two)


# Single layers


def test_random_layers_have_the_inputs_of_their_laws():
    found = {layer.name: layer for layer in layers.random_layers()}
    assert len(found) == 6
    for layer in found.values():
        assert layer.weight.shape == (256, 256)
        assert {layer.inputs.dtype, layer.weight.dtype, layer.test_inputs.dtype} == {np.dtype(np.float32)}
        assert layer.test_inputs.shape == (4096, 256)
        assert layer.activation in layer.name
    for name in ("identity", "relu"):
        few = found[f"128 samples, {name}"]
        assert few.inputs.shape == (128, 256)
        dead = np.flatnonzero(~few.inputs.any(axis=0))
        assert dead.size == 5
        np.testing.assert_array_equal(dead, np.flatnonzero(~few.test_inputs.any(axis=0)))
        assert found[f"power law, {name}"].inputs.min() == 0
        # calibration and test inputs: one law, other samples
        plain = found[f"AR(1), {name}"]
        assert not np.array_equal(plain.inputs, plain.test_inputs[:2048])
        for inputs in (plain.inputs, plain.test_inputs):
            assert np.corrcoef(inputs[:, 7], inputs[:, 8])[0, 1] == pytest.approx(0.9, abs=0.02)


def test_layers_of_networks_come_with_their_inputs(source, trainings, monkeypatch):
    dataset = datasets.read(source[0])
    monkeypatch.setattr(layers, "image_dataset", lambda: dataset)
    monkeypatch.setattr(
        layers,
        "trained",
        lambda kind, activation: training.untrained(replace(RECIPE, activation=activation), dataset.shape, 10),
    )
    monkeypatch.setattr(layers, "POSITIONS", 20)
    layer = layers.LAYERS["tanh", "mlp-tanh layer 2"]()
    assert (layer.group, layer.activation, layer.weight.shape) == ("tanh", "tanh", (256, 512))
    assert layer.inputs.shape == (6, 512) and layer.test_inputs.shape == (N_TEST, 512)
    assert np.abs(layer.inputs).max() <= 1
