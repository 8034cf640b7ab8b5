"""The errors that an allocation measures are in the report, also after a run that was resumed."""

import pytest

from sisopt.network import NetworkReport
from sisopt.network.curves import LEVELS
from tests.test_network_run import Chain, run


@pytest.fixture(scope="module")
def report():
    return run(Chain(), sparsity=0.5, allocation="error")


def test_the_report_has_the_curve_of_every_layer_that_shared_the_zeros(report):
    for layer in report.layers:
        assert [sparsity for sparsity, _ in layer.curve] == list(LEVELS)
        errors = [error for _, error in layer.curve]
        assert errors == sorted(errors)
        assert 0.0 <= errors[0] < errors[-1] <= 1.0
    assert NetworkReport.from_json(report.to_json()) == report


def test_layers_with_goals_of_their_own_and_uniform_shares_have_none(report):
    chain = Chain()
    own = run(chain, sparsity=0.5, allocation="error", goals={"fc1": 0.7})
    assert [bool(layer.curve) for layer in own.layers] == [True, False, True]
    assert not any(layer.curve for layer in run(Chain(), sparsity=0.5, allocation="uniform").layers)


def test_a_run_that_was_resumed_has_the_same_curves_and_maps(report, tmp_path):
    pytest.importorskip("safetensors")
    options = {"sparsity": 0.5, "allocation": "error", "checkpoint": tmp_path / "checkpoint"}
    first = run(Chain(), **options)
    again = run(Chain(), **options)
    assert again == first
    assert [layer.curve for layer in first.layers] == [layer.curve for layer in report.layers]
    assert [layer.density for layer in first.layers] == [layer.density for layer in report.layers]
    assert all(layer.density for layer in first.layers)
