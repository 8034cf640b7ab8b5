"""Streams of mini-batches: what they yield, what they refuse, and that they notice data that change between passes."""

from __future__ import annotations

import pickle
import re

import numpy as np
import pytest

from sisopt import InvalidInputError
from sisopt.batches import BatchStream

N, N_IN, N_OUT = 25, 4, 3


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    return rng.standard_normal((N, N_IN)), rng.standard_normal((N_OUT, N_IN)), rng.standard_normal(N_OUT)


def cut(X, size=10):
    return [X[i : i + size] for i in range(0, X.shape[0], size)]


def rows(stream):
    """Return what a pass yields, stacked."""
    blocks = [(samples, X.copy(), Z.copy()) for samples, X, Z in stream]
    return [samples for samples, *_ in blocks], np.vstack([X for _, X, _ in blocks]), np.vstack([Z for *_, Z in blocks])


class Changing:
    """Gives another list of batches at every pass, the last one for ever."""

    def __init__(self, *passes):
        self.passes = list(passes)

    def __iter__(self):
        return iter(self.passes.pop(0) if len(self.passes) > 1 else self.passes[0])


def test_a_pass_yields_slices_inputs_and_the_dense_layers_preactivations(data):
    X, W, b = data
    stream = BatchStream(cut(X), W, b)
    for _ in range(2):
        samples, inputs, Z = rows(stream)
        assert samples == [slice(0, 10), slice(10, 20), slice(20, 25)] == list(stream.slices)
        np.testing.assert_array_equal(inputs, X)
        np.testing.assert_allclose(Z, X @ W.T + b, rtol=1e-13)
    assert (stream.n_samples, stream.sizes, stream.n_in, len(stream)) == (N, (10, 10, 5), N_IN, 3)
    assert repr(stream) == "BatchStream(3 batches, 25 samples, 4 inputs)"


def test_preactivations_that_are_given_come_back_and_missing_ones_are_computed_without_a_bias(data):
    X, W, _ = data
    given = np.random.default_rng(1).standard_normal((10, N_OUT))
    batches = [(X[:10], given), (X[10:20], None), [X[20:]]]
    _, _, Z = rows(BatchStream(batches, W))
    np.testing.assert_array_equal(Z[:10], given)
    np.testing.assert_allclose(Z[10:], X[10:] @ W.T, rtol=1e-13)


def test_lists_arrays_and_memory_maps_give_the_same_bits(data, tmp_path):
    X, W, b = data
    X = X.astype(np.float32)
    path = tmp_path / "inputs"
    stored = np.memmap(path, dtype=np.float32, mode="w+", shape=X.shape)
    stored[:] = X
    stored.flush()
    streams = [
        BatchStream(cut(X), W, b),
        BatchStream.from_arrays(X, weight=W, bias=b, batch_size=10),
        BatchStream.from_arrays(np.memmap(path, np.float32, "r", shape=X.shape), weight=W, bias=b, batch_size=10),
        BatchStream.from_arrays(np.asfortranarray(X), weight=W, bias=b, batch_size=10),
        BatchStream(tuple((batch, None) for batch in cut(X)), W, b),
    ]
    first, *others = map(rows, streams)
    assert first[1].dtype == np.float32
    for other in others:
        assert first[0] == other[0]
        np.testing.assert_array_equal(first[1], other[1])
        np.testing.assert_array_equal(first[2], other[2])


def test_a_pickled_stream_is_the_same_and_remembers_the_first_pass(data):
    X, W, b = data
    batches = cut(X.copy())
    again = pickle.loads(pickle.dumps(BatchStream(batches, W, b)))
    np.testing.assert_array_equal(rows(again)[1], X)
    again._batches[1][0, 0] += 1.0
    with pytest.raises(InvalidInputError, match=r"batches\[1\] holds other values"):
        rows(again)


def test_the_callers_arrays_cannot_be_written_to_through_a_stream(data):
    X, W, b = data
    for _, inputs, Z in BatchStream([(X, X @ W.T)], W, b):
        assert not inputs.flags.writeable
        assert not Z.flags.writeable


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (lambda b: [b[0], b[1] + 1e-9, b[2]], r"batches\[1\] holds other values than on the first pass"),
        (lambda b: [b[1], b[0], b[2]], r"batches\[0\] holds other values"),
        (lambda b: [b[0], b[1], b[2].astype(np.float32)], r"batches\[2\] holds other values"),
        (lambda b: [b[0], b[1][:8], b[2]], r"batches\[1\] holds 10 samples on the first pass, 8 now"),
        (lambda b: b[:2], "3 batches on the first pass, 2 now"),
        (lambda b: [*b, b[0]], "3 batches on the first pass, 4 now"),
        (lambda b: [], "3 batches on the first pass, 0 now"),
    ],
)
def test_batches_that_change_between_passes_are_noticed(data, second, message):
    X, W, b = data
    stream = BatchStream(Changing(cut(X), second(cut(X))), W, b)
    with pytest.raises(InvalidInputError, match=f"changed between passes.*{message}.*every pass must give the same"):
        rows(stream)


def test_preactivations_that_change_between_passes_are_noticed(data):
    X, W, b = data
    Z = X @ W.T
    stream = BatchStream(Changing([(X, Z)], [(X, Z + 1.0)]), W, b)
    with pytest.raises(InvalidInputError, match=r"batches\[0\] holds other values"):
        rows(stream)


@pytest.mark.parametrize(
    "once", [lambda b: (x for x in b), iter, lambda b: zip(b, b, strict=True), lambda b: map(abs, b)]
)
def test_what_can_be_read_only_once_is_refused(data, once):
    X, W, b = data
    with pytest.raises(InvalidInputError, match="only once.*pass a list, an array"):
        BatchStream(once(cut(X)), W, b)


def test_an_exhausted_iterator_behind_an_iterable_is_noticed(data):
    X, W, b = data

    class Once:
        def __init__(self):
            self.iterator = iter(cut(X))

        def __iter__(self):
            return self.iterator

    with pytest.raises(InvalidInputError, match="3 batches on the first pass, 0 now"):
        rows(BatchStream(Once(), W, b))


def test_a_nan_is_named_by_batch_and_index(data):
    X, W, b = data
    batches = [batch.copy() for batch in cut(X)]
    batches[2][1, 3] = np.nan
    with pytest.raises(InvalidInputError, match=re.escape("inputs of batches[2] must be finite, got nan at [1, 3]")):
        BatchStream(batches, W, b)
    Z = np.zeros((N, N_OUT))
    Z[7, 1] = np.inf
    pairs = list(zip(cut(X), cut(Z), strict=True))
    with pytest.raises(
        InvalidInputError, match=re.escape("preactivations of batches[0] must be finite, got inf at [7, 1]")
    ):
        BatchStream(pairs, W, b)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: [b[0], b[1][:0]], r"batches\[1\] must hold at least one sample.*leave empty batches out"),
        (lambda b: [b[0], b[1][:, :3]], r"inputs of batches\[1\] must have shape \(10, 4\).*got \(10, 3\)"),
        (lambda b: [b[0], b[1][0]], r"inputs of batches\[1\] must have 2 dimensions"),
        (lambda b: [(b[0], b[0])], r"preactivations of batches\[0\] must have shape \(10, 3\)"),
        (lambda b: [(b[0], None, None)], r"batches\[0\] must be inputs or a pair.*got 3 items"),
        (lambda b: [b[0] + 1j], r"inputs of batches\[0\] must hold real numbers"),
        (lambda b: [1e80 * b[0]], r"inputs of batches\[0\] must be at most 1e\+70"),
        (lambda b: [], "at least one batch, got none"),
        (lambda b: b[0], r"one array of shape \(10, 4\): see from_arrays"),
        (lambda b: 3, "got 3"),
    ],
)
def test_batches_that_cannot_be_used_are_refused_by_name(data, change, message):
    X, W, b = data
    with pytest.raises(InvalidInputError, match=message):
        BatchStream(change(cut(X)), W, b)


def test_arrays_that_cannot_be_cut_are_refused_by_name(data):
    X, W, b = data
    with pytest.raises(InvalidInputError, match="batch_size must be an integer of at least 1, got 0"):
        BatchStream.from_arrays(X, weight=W, bias=b, batch_size=0)
    with pytest.raises(InvalidInputError, match="inputs must have 2 dimensions"):
        BatchStream.from_arrays(X[0], weight=W, bias=b, batch_size=5)
    with pytest.raises(InvalidInputError, match="preactivations must have 25 rows"):
        BatchStream.from_arrays(X, X[:3], weight=W, bias=b, batch_size=5)
    with pytest.raises(InvalidInputError, match=r"bias must have shape \(3,\)"):
        BatchStream.from_arrays(X, weight=W, bias=b[:2], batch_size=5)
