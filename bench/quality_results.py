"""What the bench of quality has measured: kept in a file as it comes, so that a run that breaks off goes on later."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from sisopt.network.atomic_files import replace_files

Array = np.ndarray


@dataclass(frozen=True)
class LayerResult:
    """One method on one layer at one level; ``stamp`` tells the code and the arrays that it was measured with."""

    group: str
    layer: str
    activation: str
    n_samples: int
    n_in: int
    n_out: int
    level: str
    method: str
    error: float  # of the outputs on the test inputs, relative
    cpu_seconds: float
    stamp: str

    @property
    def key(self) -> tuple[str, ...]:
        """Return what tells it from the others."""
        return self.group, self.layer, self.level, self.method


@dataclass(frozen=True)
class NetworkResult:
    """A network with all of its layers pruned by one method to one level; ``stamp`` as in `LayerResult`."""

    network: str
    seed: int
    level: str
    method: str
    accuracy: float  # on the test images
    stamp: str

    @property
    def key(self) -> tuple[str, ...]:
        """Return what tells it from the others."""
        return self.network, str(self.seed), self.level, self.method


class Results:
    """The results in a file; every one that is added is written at once.

    A run has those that it added or asked for: what nobody asks for any more stays in the file, and in no table.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        saved = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"layers": [], "networks": []}
        known = [*(LayerResult(**x) for x in saved["layers"]), *(NetworkResult(**x) for x in saved["networks"])]
        self._all: dict[tuple[str, ...], LayerResult | NetworkResult] = {result.key: result for result in known}
        self._of_this_run: dict[tuple[str, ...], LayerResult | NetworkResult] = {}

    def has(self, key: tuple[str, ...], stamp: str) -> bool:
        """Return whether this was measured, by the code and with the arrays of the stamp."""
        found = self._all.get(key)
        if found is None or found.stamp != stamp:
            return False
        self._of_this_run[key] = found
        return True

    def add(self, result: LayerResult | NetworkResult) -> None:
        """Keep a result in the place of an older one; the file is whole at any time."""
        self._all[result.key] = self._of_this_run[result.key] = result
        content: dict[str, list[dict]] = {"layers": [], "networks": []}
        for entry in self._all.values():
            content["layers" if isinstance(entry, LayerResult) else "networks"].append(asdict(entry))
        self._path.parent.mkdir(exist_ok=True)
        replace_files(self._path.parent, {self._path.name: json.dumps(content, indent=0).encode()})

    @property
    def layers(self) -> list[LayerResult]:
        """Return the results of single layers that this run has."""
        return [result for result in self._of_this_run.values() if isinstance(result, LayerResult)]

    @property
    def networks(self) -> list[NetworkResult]:
        """Return the results of whole networks that this run has."""
        return [result for result in self._of_this_run.values() if isinstance(result, NetworkResult)]


def digest(paths: Iterable[Path], arrays: Iterable[Array] = ()) -> str:
    """Return a digest of the contents of files and of arrays."""
    found = hashlib.sha256()
    for path in sorted(paths):
        found.update(hashlib.sha256(path.read_bytes()).digest())
    for array in arrays:
        found.update(hashlib.sha256(np.ascontiguousarray(array)).digest())
    return found.hexdigest()[:16]
