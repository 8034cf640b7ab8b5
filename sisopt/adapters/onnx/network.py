"""An ONNX graph as `sisopt.network` sees networks: layers in order, data on demand, matrices put back."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import InvalidInputError, UnsupportedError
from ...network.digest import digest
from ...network.layers import LayerInfo, Program
from ...network.samples import Draws, Rows, Sampling, spilled
from ...threads import resolve_threads
from .digest import digest_of_graph
from .graph import Array, Changes, Graph
from .passes import Passes, Values
from .planning import Layer, data_of

Visits = Generator[tuple[int, list[Program]], None, None]
Part = tuple[npt.NDArray[Any], npt.NDArray[Any] | None]


class OnnxNetwork:
    """Layers of a graph; what is put is kept in ``changes``, what was promised for each layer in ``promised``."""

    def __init__(
        self,
        graph: Graph,
        feeds: Sequence[Mapping[str, Array]],
        layers: Sequence[Layer],
        sampling: Sampling,
        n_threads: int | None,
    ) -> None:
        self._graph, self._feeds, self._layers, self._sampling = graph, feeds, list(layers), sampling
        self._n_threads = resolve_threads(n_threads)
        self.changes = Changes()
        self.promised: dict[int, Sequence[Part]] = {}

    @property
    def layers(self) -> Sequence[LayerInfo]:
        """See `Network`."""
        return [layer.info for layer in self._layers]

    def fingerprint(self) -> dict[str, str]:
        """See `Network`."""
        plan = []
        for layer in self._layers:
            known = layer.followed
            affine = None if known is None else (known.affine.scale, known.affine.offset, known.affine.slot)
            plan.append((layer.info.name, layer.info.excluded, repr(known and known.activation), affine))
        return {
            "model": digest_of_graph(self._graph),
            "batches": digest(self._feeds),
            "layers": digest(plan),
            "max_samples": str(self._sampling.max_samples),
        }

    def visit(self, numbers: Sequence[int], *, dense: bool = False) -> Visits:
        """See `Network`."""
        passes = [self._passes(Changes(), numbers)]
        if not dense:
            passes.append(self._passes(self.changes, numbers))
        for number in numbers:
            matrices, bias = self._dense(number)
            widest = max(matrix.shape[1] for matrix in matrices)
            most = self._sampling.samples(len(matrices), widest)
            needs = sum(4 * most * sum(matrix.shape) for matrix in matrices)
            with spilled(needs, self._sampling.max_memory // 2) as folder:
                rows = [Rows(most, matrix.shape[1], folder) for matrix in matrices]
                goals = [] if dense else [Rows(most, len(matrix), folder) for matrix in matrices]
                for at, calls in self._drawn(number, passes, most):
                    for p, (matrix, own) in enumerate(zip(matrices, bias, strict=True)):
                        X = calls[-1].inputs(p, at)
                        self._check_width(number, X, matrix)
                        rows[p].append(X)
                        if goals:
                            Z = calls[0].inputs(p, at) @ matrix.T
                            goals[p].append(Z if own is None else Z + own)
                yield number, self._programs(number, matrices, bias, rows, goals)

    def put(self, number: int, parts: Sequence[Part]) -> None:
        """See `Network`."""
        layer = self._layers[number]
        site, followed = layer.site, layer.followed
        assert site.kind is not None and followed is not None
        affine = followed.affine
        found = [matrix for matrix, _ in parts]
        matrices = [affine.unfolded(matrix, rows) for matrix, rows in zip(found, _rows(found), strict=True)]
        dense = self._graph.constant(self._graph.nodes[site.calls[0]].input[site.weight])
        assert dense is not None
        weight = _in_dtype(layer.info.name, site.kind.weight(matrices), dense.dtype)
        self._graph.replace(self.changes, site.places, weight)
        if affine.slot is not None:
            bias = np.concatenate([each for _, each in parts if each is not None])
            value = affine.slot_value(self._graph, bias)
            self._graph.replace(self.changes, affine.slot.places, _in_dtype(layer.info.name, value, value.dtype))
        self.promised[number] = parts

    def _check_width(self, number: int, inputs: Array, matrix: Array) -> None:
        """Refuse batches of another width than the layer's: where the model leaves sizes open, nobody did before."""
        if inputs.shape[1] != matrix.shape[1]:
            name = self._layers[number].info.name
            msg = (
                f"layer {name!r} takes {matrix.shape[1]} inputs, a batch gives it {inputs.shape[1]}: look at its shape"
            )
            raise InvalidInputError(msg)

    def _passes(self, changes: Changes, numbers: Sequence[int]) -> Passes:
        sites = [self._layers[number].site for number in numbers]
        targets = [(data_of(self._graph, site, c), call) for site in sites for c, call in enumerate(site.calls)]
        return Passes(self._graph, changes, self._feeds, targets, self._sampling.max_memory // 4, self._n_threads)

    def _dense(self, number: int) -> tuple[list[npt.NDArray[np.float32]], list[npt.NDArray[np.float32] | None]]:
        """Return a layer's dense matrices and their biases, what follows it folded in."""
        site, followed = self._layers[number].site, self._layers[number].followed
        assert site.kind is not None and followed is not None
        weight = self._graph.constant(self._graph.nodes[site.calls[0]].input[site.weight])
        assert weight is not None
        matrices, bias = site.kind.matrices(weight), followed.affine.bias
        each = _rows(matrices)
        folded = [followed.affine.folded(matrix, rows) for matrix, rows in zip(matrices, each, strict=True)]
        return folded, [None if bias is None else bias[rows] for rows in each]

    def _programs(
        self,
        number: int,
        matrices: Sequence[npt.NDArray[np.float32]],
        bias: Sequence[npt.NDArray[np.float32] | None],
        rows: Sequence[Rows],
        goals: Sequence[Rows],
    ) -> list[Program]:
        followed = self._layers[number].followed
        assert followed is not None
        return [
            Program(X.array, matrices[i], bias[i], followed.activation, goals[i].array if goals else None)
            for i, X in enumerate(rows)
        ]

    def _drawn(self, number: int, passes: Sequence[Passes], most: int) -> Iterator[tuple[Any, list[Any]]]:
        """Yield positions of the layer's calls, and each of these in all passes."""
        site = self._layers[number].site
        assert site.kind is not None
        names = [data_of(self._graph, site, c) for c in range(len(site.calls))]
        draws = Draws(most, [_size(feed) for feed in self._feeds], self._sampling.seed, number)
        until = site.calls[-1]
        streams: list[Iterator[Values]] = [each.reach(names, until, hold=len(names) == 1) for each in passes]
        for i, together in enumerate(zip(*streams, strict=True)):
            padding = padding_of(self._feeds[i])
            for name, draw in zip(names, draws.of_batch(i, len(names)), strict=True):
                calls = [site.kind.call(values[name]) for values in together]
                if calls[0].n_positions != calls[-1].n_positions:
                    continue  # other values come this way than in the dense network
                at = draw(calls[-1].n_positions, calls[-1].real(padding))
                if len(at):
                    yield at, calls


def padding_of(feed: Mapping[str, Array]) -> npt.NDArray[np.bool_] | None:
    """Return where tokens of a batch are real, bool (n_batch, length), if it tells."""
    mask = feed.get("attention_mask")
    return mask != 0 if mask is not None and mask.ndim == 2 else None


def _size(feed: Mapping[str, Array]) -> int:
    """Return how many samples a batch holds: the first dimension of its first array."""
    return next((len(array) for array in feed.values() if array.ndim), 1)


def _in_dtype(name: str, values: Array, dtype: np.dtype[Any]) -> Array:
    """Return what a layer's constant becomes, in its dtype; float16 ends early."""
    with np.errstate(over="ignore"):  # refused below
        found: Array = values.astype(dtype)
    if not np.isfinite(found).all():
        msg = (
            f"layer {name!r}: its new weights or biases do not fit into {dtype}: leave it out with exclude=, or "
            "convert the model to float32 first"
        )
        raise UnsupportedError(msg)
    return found


def _rows(matrices: Sequence[npt.NDArray[Any]]) -> list[slice]:
    """Return which channels the matrices of a layer give."""
    edges = np.cumsum([0, *(len(matrix) for matrix in matrices)])
    return [slice(int(low), int(high)) for low, high in zip(edges[:-1], edges[1:], strict=True)]
