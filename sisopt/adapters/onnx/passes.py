"""Forward passes over all batches that stop at a node: held there, or run again from the start for every layer.

A pass that is *held* costs one forward for all layers, and keeps alive whatever the nodes behind still need. A pass
that is *replayed* keeps nothing, and costs a forward for every layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx

from ...errors import InvalidInputError
from ...threads import ordered_map
from .graph import Array, Changes, Graph
from .sessions import Stretch

Values = dict[str, Array]


class Passes:
    """The passes of a graph over all batches, and where they stand.

    Parameters
    ----------
    graph : Graph
    changes : Changes
        What became of the graph's constants; it may grow while the passes stand.
    feeds : sequence of mapping of str to ndarray
        The inputs of every batch.
    targets : sequence of (str, int)
        All values that will be asked for, each with the node before which: nothing else is computed.
    most : int
        Bytes that may be held.
    n_threads : int
        Batches that run at a time.
    """

    def __init__(
        self,
        graph: Graph,
        changes: Changes,
        feeds: Sequence[Mapping[str, Array]],
        targets: Sequence[tuple[str, int]],
        most: int,
        n_threads: int,
    ) -> None:
        self._graph, self._changes, self._feeds = graph, changes, feeds
        self._most, self._n_threads = most, n_threads
        self._nodes = graph.needed(name for name, _ in targets)
        self._last = {name: number for number in self._nodes for name in graph.needs[number]}
        for name, until in targets:
            self._last[name] = max(until, self._last.get(name, until))
        self._at = 0
        self._held: list[Values] | None = [{} for _ in feeds]

    def reach(self, names: Sequence[str], until: int, *, hold: bool = True) -> Iterator[Values]:
        """Yield values for every batch, from a pass through the nodes before ``until``.

        With ``hold`` the passes stand there afterwards, as long as what they hold is not too much.
        """
        held = self._held
        start, states = (0, [{} for _ in self._feeds]) if held is None else (self._at, held)
        first = {**self._feeds[0], **states[0]}
        numbers = [number for number in self._nodes if start <= number < until]
        hold = hold and held is not None
        if not hold:  # then nothing is computed but what is asked for
            wanted = set(self._graph.needed(names))
            numbers = [number for number in numbers if number in wanted]
        made = [name for number in numbers for name in self._graph.nodes[number].output if name]
        alive = {name for name in (*made, *states[0]) if hold and self._last.get(name, -1) >= until}
        outputs = [name for name in made if name in alive or name in names]
        stretch = None
        if outputs:
            stretch = Stretch(self._graph, self._changed(numbers), first, outputs, self._changes.values)

        def run(batch: int) -> Values:
            known = {**self._feeds[batch], **states[batch]}
            if stretch is not None:
                try:
                    known.update(stretch.run(known))
                except Exception as error:  # its exceptions have no class in common
                    msg = f"the model does not run on batch {batch}: {error}"
                    raise InvalidInputError(msg) from error
            return known

        for batch, known in enumerate(ordered_map(run, range(len(self._feeds)), self._n_threads)):
            if hold:
                states[batch] = {name: known[name] for name in alive}
            yield {name: known[name] for name in names}
        if hold:
            self._at = until
            if not all(isinstance(value, np.ndarray) for value in states[0].values()) or _bytes(states) > self._most:
                self._held = None

    def _changed(self, numbers: Sequence[int]) -> list[onnx.NodeProto]:
        """Return nodes with the inputs that they have by now."""
        own: dict[int, dict[int, str]] = {}
        for use, name in self._changes.inputs.items():
            own.setdefault(use.node, {})[use.input] = name
        return [_changed_node(self._graph.nodes[number], own.get(number, {})) for number in numbers]


def _changed_node(node: onnx.NodeProto, inputs: Mapping[int, str]) -> onnx.NodeProto:
    """Return a node with other inputs in some places."""
    if not inputs:
        return node
    found = onnx.NodeProto()
    found.CopyFrom(node)
    for index, name in inputs.items():
        found.input[index] = name
    return found


def _bytes(states: Sequence[Values]) -> int:
    return sum(value.nbytes for state in states for value in state.values())
