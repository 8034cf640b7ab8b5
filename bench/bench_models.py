"""Real models of four domains, pruned whole by every method through the same adapter, without retraining.

Results are kept in out/models.json: what the same code has measured is not measured again. The tables close a run, on
the terminal and as Markdown in out/models.md.
"""

from __future__ import annotations

import pytest

from bench.models import Unavailable, subjects
from bench.models.measure import Store, measure_model
from bench.models.tables import tables
from bench.publish import marked
from bench.tables import OUT

pytestmark = pytest.mark.filterwarnings("ignore::sisopt.GeneralizationWarning")


@pytest.fixture(scope="module")
def store():
    found = Store(OUT / "models.json")
    yield found
    made = tables(found.results.values())
    for table in made:
        print("\n".join(table.text()))
    (OUT / "models.md").write_text(
        marked({"models": [x for table in made for x in table.markdown()]}), encoding="utf-8"
    )


@pytest.mark.parametrize("name", subjects())
def bench_model(store, name):
    try:
        subject = subjects()[name]()
    except Unavailable as reason:
        pytest.skip(str(reason))
    measure_model(subject, store)
