"""Layers and networks pruned by every method: how far their outputs are from the dense ones, and at which cost.

Results are kept in out/quality.json: what the same code has measured on the same arrays is not measured again. The
tables close a run: on the terminal, and as Markdown in out/quality.md; the picture is out/quality-curves.svg.
"""

from __future__ import annotations

import pytest

from bench.datasets import image_dataset
from bench.layers import LAYERS
from bench.publish import marked
from bench.quality import measure_layer, warm_up
from bench.quality_curves import draw
from bench.quality_networks import measure_network
from bench.quality_results import Results
from bench.quality_tables import blocks
from bench.tables import OUT
from bench.training import trained

pytestmark = pytest.mark.filterwarnings("ignore::sisopt.GeneralizationWarning")  # few samples are among the cases


@pytest.fixture(scope="module")
def results():
    found = Results(OUT / "quality.json")
    warm_up()
    yield found
    tables = blocks(found.layers, found.networks)
    for table in (table for kind in tables.values() for table in kind):
        print("\n".join(table.text()))
    lines = {name: [line for table in kind for line in table.markdown()] for name, kind in tables.items()}
    (OUT / "quality.md").write_text(marked(lines), encoding="utf-8")
    if found.layers:
        draw(found.layers, OUT / "quality-curves.svg")


@pytest.mark.parametrize("group, name", LAYERS)
def bench_layer(results, group, name):
    measure_layer(LAYERS[group, name](), results)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ("mlp", "cnn"))
def bench_network(results, kind, seed):
    measure_network(kind, seed, trained(kind, "relu", seed), image_dataset(), results)
