"""Time against every size of a layer: a table of slopes closes the run, the picture is out/performance-scaling.svg."""

from __future__ import annotations

import pytest

from bench.scaling import ACTIVATIONS, VARIED, measure_curve


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("varied", VARIED)
def bench_scaling(scaling, varied, activation):
    scaling(measure_curve(activation, varied))
