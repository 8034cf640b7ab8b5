"""Every method on a real model, through the same adapter: what is left of the model's use, and the time it took."""

from __future__ import annotations

import copy
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import sisopt
from bench.models import Subject
from bench.quality_results import digest
from bench.rivals.pruning import PRUNERS
from sisopt.network.atomic_files import replace_files

Array = np.ndarray

FAST = {"effort": "fast"}
OURS: dict[str, dict[str, Any]] = {
    "sisopt": {},
    "sisopt, even shares": {"allocation": "uniform"},
    "sisopt, fast": FAST,
}
RIVALS = ("magnitude", "magnitude + refit", "Wanda", "SparseGPT", "ALPS")
METHODS = (*RIVALS, *OURS)
MOST_WEIGHTS = 5_000_000  # of a model on which our variants run too
MOST_INPUTS = {
    **dict.fromkeys(("magnitude + refit", "SparseGPT", "ALPS"), 8192),  # matrices of their square are formed
    "sisopt": 1 << 15,  # it takes hours there
}
DENSE = "dense"


@dataclass(frozen=True)
class ModelResult:
    """A model pruned by one method to one level; ``stamp`` is of the code that the result depends on."""

    subject: str
    level: str
    method: str
    metrics: dict[str, float]
    primary: str
    higher_is_better: bool
    sparsity: float
    seconds: float
    stamp: str

    @property
    def key(self) -> tuple[str, str, str]:
        """Return what tells it from the others."""
        return self.subject, self.level, self.method


class Store:
    """The results in a file, written with every one that is added."""

    def __init__(self, path: Path) -> None:
        self._path = path
        saved = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        self.results = {result.key: result for result in (ModelResult(**entry) for entry in saved)}

    def has(self, key: tuple[str, str, str], stamp: str) -> bool:
        """Return whether this was measured by the code of the stamp."""
        return key in self.results and self.results[key].stamp == stamp

    def add(self, result: ModelResult) -> None:
        """Keep a result in the place of an older one; the file is whole at any time."""
        self.results[result.key] = result
        self._path.parent.mkdir(exist_ok=True)
        content = json.dumps([asdict(each) for each in self.results.values()], indent=0)
        replace_files(self._path.parent, {self._path.name: content.encode()})


def measure_model(subject: Subject, store: Store) -> None:
    """Prune the model by every method to every level, unless the store has it; test what comes out."""
    from sisopt.adapters.torch import sparsify_model

    def result(level: str, method: str, metrics: dict[str, float], sparsity: float, seconds: float) -> ModelResult:
        return ModelResult(
            subject.name, level, method, metrics, subject.primary, subject.higher_is_better, sparsity, seconds,
            code_stamp(method),
        )  # fmt: skip

    if not store.has((subject.name, DENSE, DENSE), code_stamp(DENSE)):
        store.add(result(DENSE, DENSE, subject.dense, 0.0, 0.0))
    for level in subject.levels:
        name = level if isinstance(level, str) else f"{level:.0%}".replace("%", " %")
        for method in METHODS:
            goal: dict[str, Any] = {"pattern": level} if isinstance(level, str) else {"sparsity": level}
            if isinstance(level, str) and "allocation" in OURS.get(method, {}):
                continue  # a pattern leaves nothing to distribute
            if store.has((subject.name, name, method), code_stamp(method)) or not runs(method, subject.model):
                continue
            how = OURS[method] if method in OURS else {"layer_solver": solver(method)}
            model = copy.deepcopy(subject.model)
            start = time.perf_counter()
            report = sparsify_model(
                model, subject.batches, include=subject.include, exclude=subject.exclude or None, progress=False,
                **goal, **how,
            )  # fmt: skip
            seconds = time.perf_counter() - start
            store.add(result(name, method, subject.metrics(model), report.sparsity, seconds))


def solver(method: str) -> Any:
    """Return a rival as the adapter takes it: the layer's bias stays as it is."""

    def solve(inputs: Array, weight: Array, bias: Array | None, goal: Any) -> tuple[Array, Array | None]:
        wanted = {} if goal.sparsity is None else {"sparsity": goal.sparsity}
        if goal.pattern is not None:
            kept, of = str(goal.pattern).split(":")
            wanted["pattern"] = (int(kept), int(of))
        return PRUNERS[method](weight, inputs, **wanted), bias

    return solve


def runs(method: str, model: Any) -> bool:
    """Return whether a method runs on a model: in the memory of a common machine, and within the hour."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    widest = max(int(p[0].numel()) for p in matrices)
    if method in OURS and OURS[method]:
        huge = OURS[method] == FAST and widest > MOST_INPUTS["sisopt"]  # in the place of "sisopt"
        return huge or sum(p.numel() for p in matrices) <= MOST_WEIGHTS
    return widest <= MOST_INPUTS.get(method, 1 << 62)


def code_stamp(method: str) -> str:
    """Return a digest of the code that a method's results depend on."""
    here = Path(__file__).parent
    rivals = here.parent.glob("rivals/*.py")
    ours = Path(sisopt.__file__).parent.rglob("*.py") if method in OURS else ()
    return digest([*here.glob("*.py"), *(() if method == DENSE else rivals), *ours])
