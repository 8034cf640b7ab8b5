"""Calibration data that need not fit in memory: mini-batches read again at every pass, and checked at every pass."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from . import products
from .errors import InvalidInputError
from .validation import as_float_array, check_shape, check_size, dense_layer, positive_integer

Block = tuple[slice, npt.NDArray[Any], npt.NDArray[Any]]

_REPEAT = (
    "every pass must give the same batches in the same order: switch off shuffling and random augmentation, and pass a "
    "list, an array, or an object whose __iter__ starts afresh"
)


@dataclass(frozen=True)
class _Fingerprint:
    """What is remembered of a batch."""

    n_samples: int
    content: tuple[object, ...]  # dtypes and checksums


@dataclass(frozen=True, eq=False)
class _Cuts:
    """Arrays cut into consecutive mini-batches; the last one may be shorter. Only slices of them are read."""

    inputs: Any
    preactivations: Any
    batch_size: int

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        for start in range(0, self.inputs.shape[0], self.batch_size):
            rows = slice(start, start + self.batch_size)
            yield self.inputs[rows], None if self.preactivations is None else self.preactivations[rows]


class BatchStream:
    """Mini-batches of calibration data, validated and compared with the first pass whenever they are read.

    Iterating gives ``(samples, inputs, preactivations)`` per batch: the slice of all samples that it holds, its inputs
    (T, n_in) in float32 or float64 as given, and the dense layer's pre-activations (T, n_out). One batch is held at a
    time. Construction reads all of them once.

    Parameters
    ----------
    batches : iterable
        Of ``inputs``, ``(inputs,)`` or ``(inputs, preactivations)``, arrays of shapes (T, n_in) and (T, n_out);
        pre-activations that are missing or None are computed, ``inputs @ weight.T + bias``. It is read many times: a
        list, a data loader, any object whose ``__iter__`` starts afresh; not a generator. See also `from_arrays`.
    weight : array_like, shape (n_out, n_in)
        The dense layer's W.
    bias : array_like, shape (n_out,), optional
        The dense layer's b.

    Attributes
    ----------
    n_samples : int
        Samples of all batches together.
    sizes : tuple of int
        Samples of every batch.
    n_in : int
        Number of inputs of the layer.

    Raises
    ------
    InvalidInputError
        If a batch is not finite, real and of the right shape (``batches[2]`` in a message is the third), if there are
        none, and, in any later pass, if sizes, values or number of the batches are no longer those of the first.

    Examples
    --------
    >>> import numpy as np, sisopt
    >>> inputs, weight = np.ones((250, 8)), np.ones((3, 8))  # or files, as np.load(..., mmap_mode="r") opens them
    >>> stream = sisopt.BatchStream.from_arrays(inputs, weight=weight, batch_size=100)
    >>> stream.sizes
    (100, 100, 50)
    >>> sisopt.LayerProblem.from_batches(stream, weight, activation="relu").n_samples
    250
    """

    def __init__(self, batches: Iterable[Any], weight: npt.ArrayLike, bias: npt.ArrayLike | None = None) -> None:
        if isinstance(batches, np.ndarray):
            msg = f"batches must be an iterable of batches, got one array of shape {batches.shape}: see from_arrays"
            raise InvalidInputError(msg)
        if not hasattr(batches, "__iter__") and not hasattr(batches, "__getitem__"):
            msg = f"batches must be an iterable of inputs or of pairs (inputs, preactivations), got {batches!r}"
            raise InvalidInputError(msg)
        if hasattr(batches, "__next__"):
            msg = f"batches are read many times, and a {type(batches).__name__} only once: {_REPEAT}"
            raise InvalidInputError(msg)
        W = as_float_array("weight", weight, 2)
        self._weight, self._bias = dense_layer(weight, bias, W.shape[1], "")
        self._batches = batches
        self._seen = tuple(fingerprint for fingerprint, *_ in self._read())
        if not self._seen:
            msg = "batches must hold at least one batch, got none"
            raise InvalidInputError(msg)

    @classmethod
    def from_arrays(
        cls,
        inputs: npt.ArrayLike,
        preactivations: npt.ArrayLike | None = None,
        *,
        weight: npt.ArrayLike,
        bias: npt.ArrayLike | None = None,
        batch_size: int,
    ) -> BatchStream:
        """Cut arrays (n_samples, n_in) and (n_samples, n_out) into mini-batches, the last one possibly shorter.

        Anything that has a ``shape`` and takes slices will do, such as a `numpy.memmap`: it is never read whole.
        """
        size = positive_integer("batch_size", batch_size)
        X = _sliceable("inputs", inputs)
        Z = None if preactivations is None else _sliceable("preactivations", preactivations)
        if Z is not None and Z.shape[0] != X.shape[0]:
            msg = f"preactivations must have {X.shape[0]} rows to match inputs of shape {X.shape}, got shape {Z.shape}"
            raise InvalidInputError(msg)
        return cls(_Cuts(X, Z, size), weight, bias)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Samples of every batch."""
        return tuple(seen.n_samples for seen in self._seen)

    @property
    def n_samples(self) -> int:
        """Samples of all batches together."""
        return sum(self.sizes)

    @property
    def n_in(self) -> int:
        """Number of inputs of the layer."""
        return int(self._weight.shape[1])

    @property
    def slices(self) -> tuple[slice, ...]:
        """The samples that every batch holds, counted through all of them."""
        ends = np.cumsum(self.sizes).tolist()
        return tuple(slice(end - size, end) for end, size in zip(ends, self.sizes, strict=True))

    def __len__(self) -> int:
        return len(self._seen)

    def __repr__(self) -> str:
        return f"BatchStream({len(self)} batches, {self.n_samples} samples, {self.n_in} inputs)"

    def __iter__(self) -> Iterator[Block]:
        number = start = 0
        for fingerprint, X, Z in self._read():
            if number < len(self._seen):
                self._compare(number, fingerprint)
                yield slice(start, start + X.shape[0]), X, Z
            number, start = number + 1, start + X.shape[0]
            del X, Z  # or two batches would be held while the next one is read
        if number != len(self._seen):
            msg = f"batches changed between passes: {len(self)} batches on the first pass, {number} now; {_REPEAT}"
            raise InvalidInputError(msg)

    def _compare(self, number: int, now: _Fingerprint) -> None:
        first = self._seen[number]
        if now == first:
            return
        what = "other values than on the first pass"
        if now.n_samples != first.n_samples:
            what = f"{first.n_samples} samples on the first pass, {now.n_samples} now"
        msg = f"batches changed between passes: batches[{number}] holds {what}; {_REPEAT}"
        raise InvalidInputError(msg)

    def _read(self) -> Iterator[tuple[_Fingerprint, npt.NDArray[Any], npt.NDArray[Any]]]:
        """Yield the batches of one pass, validated, with their fingerprints."""
        for number, batch in enumerate(self._batches):
            X, Z = self._validated(f"batches[{number}]", batch)
            del batch
            fingerprint = _Fingerprint(X.shape[0], (_checksum(X), None if Z is None else _checksum(Z)))
            if Z is None:
                Z = products.dense_preactivations(X, self._weight, self._bias, None)
            yield fingerprint, X, Z
            del X, Z

    def _validated(self, place: str, batch: Any) -> tuple[npt.NDArray[Any], npt.NDArray[Any] | None]:
        given = tuple(batch) if isinstance(batch, tuple | list) else (batch,)
        if not 1 <= len(given) <= 2:
            msg = f"{place} must be inputs or a pair (inputs, preactivations), got {len(given)} items"
            raise InvalidInputError(msg)
        name = f"inputs of {place}"
        X = as_float_array(name, given[0], 2)
        if X.shape[0] == 0:
            msg = f"{place} must hold at least one sample, got inputs of shape {X.shape}: leave empty batches out"
            raise InvalidInputError(msg)
        check_shape(name, X, (X.shape[0], self.n_in), f"to match weight of shape {self._weight.shape}")
        check_size(name, X)
        if len(given) == 1 or given[1] is None:
            return X, None
        name = f"preactivations of {place}"
        Z = as_float_array(name, given[1], 2)
        check_shape(name, Z, (X.shape[0], self._weight.shape[0]), "(samples of the batch, n_out)")
        check_size(name, Z)
        return X, Z


def _checksum(array: npt.NDArray[Any]) -> tuple[str, int]:
    return array.dtype.str, zlib.crc32(np.ascontiguousarray(array).data)


def _sliceable(name: str, value: Any) -> Any:
    """Return ``value``, or an array made of it where it has no shape, after a look at its number of dimensions."""
    array = value if hasattr(value, "shape") and hasattr(value, "__getitem__") else np.asarray(value)
    if len(array.shape) != 2:
        msg = f"{name} must have 2 dimensions, got shape {tuple(array.shape)}"
        raise InvalidInputError(msg)
    return array
