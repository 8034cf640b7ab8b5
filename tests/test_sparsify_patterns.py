"""sparsify() under patterns: the zeros are where the pattern says, and the rest is fitted again."""

from __future__ import annotations

import functools

import numpy as np
import pytest

import sisopt
from sisopt import NM, Blocks, Groups, InvalidInputError, PerRow, Unstructured, WeightedL1

pytestmark = pytest.mark.filterwarnings("ignore::sisopt.GeneralizationWarning")  # samples are few here

sparsify = functools.partial(sisopt.sparsify, n_threads=1)  # layers are too small for more
N, N_IN, N_OUT = 120, 18, 8
LABELS = np.random.default_rng(9).integers(0, 12, (N_OUT, N_IN))
PATTERNS = {
    "unstructured": (Unstructured(), 0.6),
    "per-row": (PerRow(), 0.6),
    "2:4": (NM(2, 4), None),
    "1:4": (NM(1, 4), None),
    "3:5": (NM(3, 5), None),
    "4x4 blocks": (Blocks((4, 4)), 0.5),
    "columns": (Groups("columns"), 0.5),
    "rows": (Groups("rows"), 0.5),
    "filters": (Groups("filters"), 0.25),
    "kernels": (Groups("kernels", kernel_size=(3, 3)), 0.5),
    "channels": (Groups("channels", kernel_size=(3, 3)), 0.5),
    "labels": (Groups(LABELS), 0.5),
}
NAMED = [name for name in PATTERNS if name not in ("kernels", "channels", "labels")]


def arrays(seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((N, N_IN)) @ (np.eye(N_IN) + 0.3 * rng.standard_normal((N_IN, N_IN)))
    return X, rng.standard_normal((N_OUT, N_IN)), 0.3 * rng.standard_normal(N_OUT)


def forward(activation, z):
    return {"identity": lambda: z, "relu": lambda: np.maximum(z, 0.0), "tanh": lambda: np.tanh(z)}[activation]()


def output_error(weight, bias, X, W, b, activation):
    Y = forward(activation, X @ W.T + b)
    return np.linalg.norm(forward(activation, X @ weight.T + bias) - Y) / np.linalg.norm(Y)


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("activation", ["identity", "relu"])
@pytest.mark.parametrize("effort", ["fast", "default"])
def test_the_pattern_holds_the_count_is_exact_and_errors_are_what_they_say(name, activation, effort):
    X, W, b = arrays()
    pattern, sparsity = PATTERNS[name]
    layer = sparsify(X, W, b, activation=activation, pattern=pattern, sparsity=sparsity, effort=effort)
    assert pattern.holds(layer.weight, sparsity)
    count = np.count_nonzero(layer.weight)
    if name == "labels":  # groups of several sizes
        sizes = np.bincount(LABELS.ravel())
        kept = {g for g in range(12) if layer.weight[LABELS == g].any()}
        assert len(kept) == 6 and count == sum(sizes[g] for g in kept)
    else:
        assert count == pattern.count((N_OUT, N_IN), sparsity)
    assert layer.sparsity == pytest.approx(1 - count / W.size, abs=1e-15)
    assert [stage.sparsity for stage in layer.stages] == [layer.sparsity] * len(layer.stages)
    found = output_error(layer.weight, layer.bias, X, W, b, activation)
    assert layer.output_error == pytest.approx(found, rel=1e-9)


@pytest.mark.parametrize("name", ["per-row", "2:4", "4x4 blocks", "columns"])
def test_the_pattern_holds_after_convex_program_and_reweighting_too(name):
    X, W, b = arrays()
    pattern, sparsity = PATTERNS[name]
    layer = sparsify(X, W, b, activation="relu", pattern=pattern, sparsity=sparsity, effort="full")
    assert pattern.holds(layer.weight, sparsity)
    assert np.count_nonzero(layer.weight) == pattern.count((N_OUT, N_IN), sparsity)
    assert layer.convex.gap <= 1e-3


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_the_layer_is_better_than_that_of_the_largest_weights(name, activation):
    X, W, b = arrays()
    pattern, sparsity = PATTERNS[name]
    layer = sparsify(X, W, b, activation=activation, pattern=pattern, sparsity=sparsity)
    kept = pattern.select(np.abs(W), sparsity)
    Z = X @ W.T + b
    largest = W * kept
    bias = (Z - X @ largest.T).mean(axis=0)
    single = isinstance(pattern, Unstructured | PerRow | NM)  # of whole rows there is nothing to choose or to fit
    assert layer.output_error < (0.85 if single else 1.0) * output_error(largest, bias, X, W, b, activation)
    assert not single or np.any((layer.weight != 0) != kept)


@pytest.mark.parametrize("name", ["per-row", "2:4", "3:5", "columns"])
def test_values_under_a_pattern_are_nearly_least_squares_on_the_support(name):
    X, W, b = arrays()
    pattern, sparsity = PATTERNS[name]
    layer = sparsify(X, W, b, pattern=pattern, sparsity=sparsity, effort="fast")
    Z = X @ W.T + b
    least = 0.0
    for w, z in zip(layer.weight, Z.T, strict=True):
        columns = np.hstack([X[:, w != 0], np.ones((N, 1))])
        least += float(np.sum((z - columns @ np.linalg.lstsq(columns, z)[0]) ** 2))
    found = float(np.sum((X @ layer.weight.T + layer.bias - Z) ** 2))
    assert least <= found <= least * (1 + 1e-3)  # as far as the ridge of a thousandth lets it


@pytest.mark.parametrize("name", PATTERNS)
def test_forbidden_weights_stay_zero_under_a_pattern(name):
    X, W, b = arrays()
    pattern, sparsity = PATTERNS[name]
    mask = np.random.default_rng(1).random(W.shape) < 0.7
    layer = sparsify(X, W, b, activation="relu", pattern=pattern, sparsity=sparsity, mask=mask, effort="fast")
    assert not layer.weight[~mask].any()
    assert pattern.holds(layer.weight, sparsity)
    if name in ("unstructured", "per-row"):
        assert np.count_nonzero(layer.weight) == pattern.count((N_OUT, N_IN), sparsity)
    if name.endswith(":4"):
        whole = (mask[:, :16].reshape(-1, 4).sum(axis=1), (layer.weight[:, :16] != 0).reshape(-1, 4).sum(axis=1))
        np.testing.assert_array_equal(whole[1], np.minimum(whole[0], pattern.kept))


def test_a_mask_freezes_the_zeros_of_a_layer_that_is_sparse_already():
    X, W, b = arrays()
    W[np.random.default_rng(2).random(W.shape) < 0.5] = 0.0
    layer = sparsify(X, W, b, activation="relu", pattern="2:4", mask=W != 0)
    assert not layer.weight[W == 0].any()
    assert NM(2, 4).holds(layer.weight)


def test_a_layer_that_keeps_to_the_pattern_comes_back_as_it_was():
    X, W, b = arrays()
    for name in ("2:4", "4x4 blocks", "columns", "per-row"):
        pattern, sparsity = PATTERNS[name]
        sparse = W * pattern.select(np.abs(W), sparsity)
        layer = sparsify(X, sparse, b, activation="relu", pattern=pattern, sparsity=sparsity)
        np.testing.assert_allclose(layer.weight, sparse, rtol=0, atol=1e-10)
        assert layer.output_error <= 1e-12


@pytest.mark.parametrize("n_in", [16, 17, 18, 19, 21])
def test_a_remainder_keeps_its_share(n_in):
    rng = np.random.default_rng(0)
    X, W = rng.standard_normal((60, n_in)), rng.standard_normal((5, n_in))
    layer = sparsify(X, W, activation="relu", pattern="2:4", effort="fast")
    kept = layer.weight != 0
    assert (kept[:, : n_in - n_in % 4].reshape(-1, 4).sum(axis=1) == 2).all()
    assert (kept[:, n_in - n_in % 4 :].sum(axis=1) == round((n_in % 4) / 2)).all()


def test_groups_of_a_convolution_run_along_its_channels_and_kernel():
    rng = np.random.default_rng(3)
    weight = rng.standard_normal((6, 4, 3, 3))
    patches = np.maximum(rng.standard_normal((200, 4, 3, 3)), 0.0)
    layer = sparsify(patches.reshape(200, -1), weight.reshape(6, -1), activation="relu", pattern="2:4", effort="fast")
    made = layer.weight.reshape(weight.shape)
    for filter_weight in made:
        assert [np.count_nonzero(filter_weight.ravel()[i : i + 4]) for i in range(0, 36, 4)] == [2] * 9
    filters = sparsify(
        patches.reshape(200, -1), weight.reshape(6, -1), activation="relu", pattern="filters", sparsity=0.5
    ).weight.reshape(weight.shape)
    assert sorted(np.count_nonzero(each) for each in filters) == [0, 0, 0, 36, 36, 36]


@pytest.mark.parametrize("name", [name for name in PATTERNS if PATTERNS[name][1] is not None])
@pytest.mark.parametrize("activation", ["identity", "relu", "tanh"])
def test_sparsity_0_is_the_dense_layer_and_1_the_empty_one_under_every_pattern(name, activation):
    X, W, b = arrays()
    pattern, _ = PATTERNS[name]
    dense = sparsify(X, W, b, activation=activation, pattern=pattern, sparsity=0.0, effort="fast")
    np.testing.assert_allclose(dense.weight, W, rtol=0, atol=1e-10)
    empty = sparsify(X, W, b, activation=activation, pattern=pattern, sparsity=1.0, effort="fast")
    assert not empty.weight.any()
    assert empty.relative_error == pytest.approx(1.0, rel=1e-9)


@pytest.mark.parametrize("name", NAMED)
def test_a_name_is_its_object(name):
    X, W, b = arrays()
    pattern, sparsity = PATTERNS[name]
    one, other = (sparsify(X, W, b, pattern=p, sparsity=sparsity, effort="fast") for p in (name, pattern))
    np.testing.assert_array_equal(one.weight, other.weight)


def test_a_sparsity_beside_n_to_m_must_be_the_implied_one():
    X, W, b = arrays()
    implied = sparsify(X, W, b, pattern="2:4", sparsity=0.5, effort="fast")
    np.testing.assert_array_equal(implied.weight, sparsify(X, W, b, pattern="2:4", effort="fast").weight)
    with pytest.raises(InvalidInputError, match="sparsity=0.6 contradicts .*2 KEPT of every 4.* leave one out"):
        sparsify(X, W, b, pattern="2:4", sparsity=0.6)


@pytest.mark.parametrize("name", [name for name in NAMED if PATTERNS[name][1] is not None])
def test_a_pattern_other_than_n_to_m_needs_a_sparsity(name):
    with pytest.raises(InvalidInputError, match="says which weights stay, not how many|exactly one goal .* got none"):
        sparsify(*arrays(), pattern=name)


@pytest.mark.parametrize("goal", [{"relative_error": 0.1}, {"eta": 0.1}], ids=str)
@pytest.mark.parametrize("name", [name for name in NAMED if name != "unstructured"])
def test_a_pattern_does_not_go_with_a_budget(name, goal):
    with pytest.raises(InvalidInputError, match=f"goes with a sparsity, not with {next(iter(goal))}"):
        sparsify(*arrays(), pattern=name, **goal)


def test_a_pattern_does_not_go_with_another_penalty_or_with_another_shape():
    X, W, b = arrays()
    for pattern, sparsity in (("2:4", None), ("columns", 0.5), ("unstructured", 0.5)):
        with pytest.raises(InvalidInputError, match="does not go with a penalty other than 'l1'"):
            sparsify(X, W, b, pattern=pattern, sparsity=sparsity, penalty=WeightedL1(2.0))
    with pytest.raises(InvalidInputError, match="needs at least 32 inputs, weight has 18"):
        sparsify(X, W, b, pattern="16:32")
    with pytest.raises(InvalidInputError, match="kernel_size"):
        sparsify(X, W, b, pattern=Groups("kernels", kernel_size=(5, 5)), sparsity=0.5)


@pytest.mark.parametrize("name", ["2:4", "4x4 blocks", "columns"])
def test_float32_layers_keep_to_the_pattern_and_to_their_dtype(name):
    X, W, b = (array.astype(np.float32) for array in arrays())
    pattern, sparsity = PATTERNS[name]
    layer = sparsify(X, W, b, activation="relu", pattern=pattern, sparsity=sparsity)
    assert layer.weight.dtype == np.float32
    assert pattern.holds(layer.weight, sparsity)
    assert np.count_nonzero(layer.weight) == pattern.count((N_OUT, N_IN), sparsity)
