"""ONNX models of PyPI made sparse from file to file: what is left of them, and how large the files are.

Results are kept in out/onnx.json: what the same code has measured is not measured again. The tables close a run, on
the terminal and as Markdown in out/onnx.md.
"""

from __future__ import annotations

from pathlib import Path

import pytest

import sisopt
from bench.models import Unavailable
from bench.models.measure import Store
from bench.onnx_models import LEVELS, METHODS, measure, subjects, tables
from bench.publish import marked
from bench.quality_results import digest
from bench.tables import OUT

pytestmark = pytest.mark.filterwarnings("ignore::sisopt.GeneralizationWarning")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def store():
    found = Store(OUT / "onnx.json")
    yield found
    made = tables(found.results.values())
    for table in made:
        print("\n".join(table.text()))
    (OUT / "onnx.md").write_text(marked({"onnx": [x for table in made for x in table.markdown()]}), encoding="utf-8")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", subjects())
def bench_onnx(store, name, level, method):
    stamp = digest([Path(__file__).with_name("onnx_models.py"), *Path(sisopt.__file__).parent.rglob("*.py")])
    if store.has((name, f"{level:.0%}".replace("%", " %"), method), stamp):
        return
    try:
        subject = subjects()[name]()
    except Unavailable as reason:
        pytest.skip(str(reason))
    store.add(measure(subject, level, method, stamp))
