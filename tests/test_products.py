"""Products over blocks of samples: numpy's answers, in float64 whatever the data, the same bits for any threads."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from sisopt import InvalidInputError, products

LEAST = 64  # samples in a block, however many inputs there are
SIZES = [1, LEAST - 1, LEAST, LEAST + 1, 3 * LEAST + 1]
LAYOUTS = ["plain", "fortran", "strided", "read-only"]


@pytest.fixture
def small_blocks(monkeypatch):
    """Make every block as small as they get, so that a few samples fill several."""
    monkeypatch.setattr(products, "BLOCK_BYTES", 1)
    monkeypatch.setattr(products, "MIN_BLOCK", 64)


def data(n=200, n_in=7, dtype=np.float64, layout="plain", seed=0):
    X = np.random.default_rng([seed, n, n_in]).standard_normal((n, n_in)).astype(dtype)
    if layout == "fortran":
        return np.asfortranarray(X)
    if layout == "strided":
        wide = np.full((2 * n, 3 * n_in), np.nan, dtype)
        wide[::2, ::3] = X
        return wide[::2, ::3]
    X.flags.writeable = layout != "read-only"
    return X


@pytest.mark.parametrize("most", [None, 1, 100, 10**9])
@pytest.mark.parametrize("n_in", [1, 3, 8192, 10**6])
@pytest.mark.parametrize("n", SIZES)
def test_blocks_cover_every_sample_once_and_in_order(n, n_in, most):
    blocks = list(products.sample_blocks(n, n_in, most))
    np.testing.assert_array_equal(np.concatenate([np.arange(n)[block] for block in blocks]), np.arange(n))
    assert all(block.stop - block.start <= max(LEAST, most or n) for block in blocks)


def test_block_holds_no_more_than_its_bytes():
    for block in products.sample_blocks(10**6, 1000):
        assert 8 * 1000 * (block.stop - block.start) <= products.BLOCK_BYTES


@pytest.mark.parametrize(("n_rows", "n_samples"), [(1, 1), (8, 10), (9, 10**4), (500, 3), (1000, 10**5), (3, 10**9)])
def test_chunks_cover_every_row_once_and_in_order(n_rows, n_samples):
    chunks = products.row_chunks(n_rows, n_samples, 8)
    np.testing.assert_array_equal(np.concatenate([np.arange(n_rows)[chunk] for chunk in chunks]), np.arange(n_rows))
    for chunk in chunks:
        rows = chunk.stop - chunk.start
        assert rows == 1 or 8 * rows * n_samples <= products.CHUNK_BYTES


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", SIZES)
def test_forward_and_backward_agree_with_numpy(small_blocks, n, dtype, layout):
    X = data(n, dtype=dtype, layout=layout)
    rng = np.random.default_rng(1)
    rows, gradient, center = rng.standard_normal((3, 7)), rng.standard_normal((3, n)), rng.standard_normal(7)
    out = np.full((3, n), np.nan)
    assert products.forward(X, rows, out) is out
    exact = X.astype(np.float64)
    np.testing.assert_allclose(out, rows @ exact.T, rtol=0, atol=1e-13)
    np.testing.assert_allclose(products.backward(gradient, X), gradient @ exact, rtol=0, atol=1e-12)
    np.testing.assert_allclose(products.backward(gradient, X, center), gradient @ (exact - center), rtol=0, atol=1e-12)


def test_backward_keeps_the_digits_that_an_offset_of_the_inputs_would_cost():
    rng = np.random.default_rng(0)
    X, gradient = rng.integers(-8, 9, (200, 7)) / 8.0, rng.standard_normal((3, 200))
    gradient -= gradient.mean(axis=1, keepdims=True)
    left_behind = 1e-7 * rng.standard_normal((3, 1))  # by rounding: the rows no longer add up to zero
    far = X + 2.0**30
    found = products.backward(gradient + left_behind, far, far.mean(axis=0))
    rounding = 200 * np.finfo(float).eps * 2.0**30 * np.abs(gradient).max()
    np.testing.assert_allclose(found, gradient @ X, rtol=0, atol=rounding)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", SIZES)
def test_gram_agrees_with_numpy(small_blocks, n, dtype, centred, weighted, layout):
    X = data(n, dtype=dtype, layout=layout)
    exact = X.astype(np.float64)
    v = np.random.default_rng(1).uniform(0.0, 2.0, n) if weighted else None
    center = exact.mean(axis=0) if centred else None
    expected = np.einsum(
        "k,ki,kj->ij", np.ones(n) if v is None else v, *2 * [exact - (0.0 if center is None else center)]
    )
    gram = products.gram(X, center, v, 1)
    np.testing.assert_allclose(gram, expected, rtol=0, atol=1e-12 * n)
    np.testing.assert_allclose(gram, gram.T, rtol=0, atol=1e-14 * n)


def test_float32_data_are_summed_in_float64():
    n = 20_000
    X = (1000.0 + data(n, 3)).astype(np.float32)
    exact = X.astype(np.float64)
    np.testing.assert_allclose(products.column_means(X, None), exact.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(products.gram(X, None, None, 1), exact.T @ exact, rtol=1e-13)
    ones = np.ones((1, n))
    np.testing.assert_allclose(products.backward(ones, X), exact.sum(axis=0, keepdims=True), rtol=1e-13)
    out = np.full((1, n), np.nan)
    np.testing.assert_array_equal(products.forward(X, np.eye(3)[:1], out)[0], exact[:, 0])


def test_offset_costs_the_centred_gram_no_digits():
    X = data(500, 4)
    center = X.mean(axis=0)
    exact = products.gram(X, center, None, 1)
    far = X + 1e6
    np.testing.assert_allclose(products.gram(far, products.column_means(far, None), None, 1), exact, rtol=1e-8)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", SIZES)
def test_column_means_agree_with_numpy(small_blocks, n, dtype, weighted):
    X = data(n, dtype=dtype)
    v = np.random.default_rng(1).uniform(0.0, 2.0, n) if weighted else None
    expected = np.average(X.astype(np.float64), axis=0, weights=v)
    np.testing.assert_allclose(products.column_means(X, v), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("n_threads", [2, 3])
def test_gram_has_the_same_bits_for_any_number_of_threads(small_blocks, n_threads):
    X = data(1000, 9)
    center = X.mean(axis=0)
    np.testing.assert_array_equal(products.gram(X, center, None, n_threads), products.gram(X, center, None, 1))


@pytest.mark.parametrize("parts", ["", "b", "s", "bs"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dense_preactivations_are_computed_in_float64(small_blocks, dtype, parts):
    rng = np.random.default_rng(2)
    X, W = data(150, 7, dtype), rng.standard_normal((20, 7)).astype(dtype)
    b = rng.standard_normal(20).astype(dtype) if "b" in parts else None
    s = rng.standard_normal((150, 20)).astype(dtype) if "s" in parts else None
    Z = products.dense_preactivations(X, W, b, s)
    exact = [None if array is None else array.astype(np.float64) for array in (X, W, b, s)]
    expected = exact[0] @ exact[1].T + (0.0 if b is None else exact[2]) + (0.0 if s is None else exact[3])
    assert Z.shape == (150, 20)
    assert not Z.flags.writeable
    np.testing.assert_allclose(Z, expected, rtol=0, atol=1e-13)


@pytest.mark.filterwarnings("error")
def test_dense_preactivations_that_overflow_are_refused():
    with pytest.raises(InvalidInputError, match="inputs, .*products with weight.* scale"):
        products.dense_preactivations(np.full((3, 2), 1e200), np.full((1, 2), 1e200), None, None)


@pytest.mark.parametrize("call", ["forward", "backward", "gram", "column_means"])
def test_float32_inputs_are_never_copied_whole(call):
    X = np.ones((200_000, 16), np.float32)  # 12.8 MB, twice that in float64
    rows, gradient, out = np.ones((1, 16)), np.ones((1, X.shape[0])), np.empty((1, X.shape[0]))
    calls = {
        "forward": lambda: products.forward(X, rows, out),
        "backward": lambda: products.backward(gradient, X),
        "gram": lambda: products.gram(X, np.ones(16), None, 1),
        "column_means": lambda: products.column_means(X, None),
    }
    tracemalloc.start()
    calls[call]()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= 3 * products.BLOCK_BYTES
