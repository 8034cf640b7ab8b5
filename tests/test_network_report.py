"""Reports of networks: totals, a table that people can read, JSON that comes back as it was."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sisopt.errors import InvalidInputError
from sisopt.network.report import LayerReport, NetworkReport

CONV = LayerReport("conv", "Conv2d", (8, 3, 3, 3), "relu", 216, 54, 216 * 784, 0.1, 0.12, 0.2, 1e-5, "done", 1.5, "n")
HEAD = LayerReport("head", "Linear", (10, 50), "identity", 500, 500, 0, 0.0, None, None, None, "kept dense", 0.0)
REPORT = NetworkReport((CONV, HEAD), {"sparsity": 0.8, "exclude": ["stem*"], "goals": {"head": {"sparsity": None}}})

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
ERROR = st.sampled_from([None, math.nan]) | st.floats(0)


@st.composite
def layers(draw):
    n_weights = draw(st.integers(0, 10**12))
    return LayerReport(
        draw(TEXT), draw(TEXT), tuple(draw(st.lists(st.integers(0, 5000), max_size=5))), draw(TEXT), n_weights,
        draw(st.integers(0, n_weights)), draw(st.integers(0, 10**18)), draw(ERROR), draw(ERROR), draw(ERROR),
        draw(ERROR), draw(TEXT), draw(st.floats(0, 1e9)), draw(TEXT),
    )  # fmt: skip


def names_of(report):
    return [line.split()[0] for line in report.table().splitlines()[2:-1]]


def test_totals_add_up():
    assert (REPORT.n_weights, REPORT.n_kept, REPORT.flops, REPORT.seconds) == (716, 554, 216 * 784, 1.5)
    assert REPORT.sparsity == pytest.approx(162 / 716)
    assert (CONV.sparsity, HEAD.sparsity) == (0.75, 0.0)
    assert CONV.flops_kept == REPORT.flops_kept == 54 * 784


def test_nothing_has_no_zeros():
    empty = NetworkReport(())
    assert (empty.sparsity, empty.flops, empty.seconds) == (0.0, 0, 0)
    assert replace(HEAD, n_weights=0, n_kept=0, flops=7).sparsity == 0.0
    assert replace(HEAD, n_weights=0, n_kept=0, flops=7).flops_kept == 0
    assert NetworkReport.from_json(empty.to_json()) == empty
    assert "0 layers" in empty.table()


def test_the_table_has_a_line_per_layer_and_one_of_totals():
    lines = str(REPORT).splitlines()
    assert lines[0] == "NetworkReport: 2 layers, 554 of 716 weights kept, 22.63% zeros"
    assert " ".join(lines[1].split()) == (
        "layer kind shape activation weights zeros MACs left output err held out rel. err gap seconds status note"
    )
    assert lines[2].split() == (
        "conv Conv2d 8x3x3x3 relu 216 75.00% 169.3k 42.34k 0.1000 0.1200 0.2000 1.0e-05 1.50 done n".split()
    )
    assert lines[3].split() == "head Linear 10x50 identity 500 0.00% - - 0.0000 - - - 0.00 kept dense".split()
    assert lines[4].split() == "total 716 22.63% 169.3k 42.34k 1.50".split()
    assert len(lines) == 5
    assert {line.index("0.00%") + 5 for line in lines[3:4]} == {lines[2].index("75.00%") + 6}  # to the right
    assert all(line == line.rstrip() for line in lines)


def test_columns_that_no_layer_fills_are_left_out():
    heading = NetworkReport((HEAD,)).table().splitlines()[1]
    assert heading.split() == "layer kind shape activation weights zeros output err seconds status".split()


def test_long_names_are_shortened_in_the_middle_and_stay_apart():
    long = [f"model.encoder.layers.{i}.attention.output.projection.{kind}" for i in range(36) for kind in ("a", "b")]
    report = NetworkReport(tuple(replace(CONV, name=name) for name in [*long, "head", "head"]))
    shown = names_of(report)
    assert shown[-2:] == ["head", "head"]
    assert len(set(shown[:-2])) == len(long)
    assert max(map(len, shown)) < max(map(len, long))
    for name, short in zip(long, shown, strict=False):
        head, tail = short.rsplit("...", 1)
        assert name.startswith(head)
        assert name.endswith(tail)
    assert max(len(line) for line in report.table().splitlines()) < 200


@pytest.mark.parametrize(
    ("flops", "text"), [(0, "-"), (999, "999"), (1000, "1k"), (3_141_592, "3.142M"), (5 * 10**9, "5G"), (10**13, "10T")]
)
def test_multiply_adds_are_shown_with_a_unit(flops, text):
    line = NetworkReport((replace(CONV, n_kept=216, flops=flops), CONV)).table().splitlines()[2]
    assert line.split()[6:8] == [text, text]


@given(st.lists(layers(), max_size=4), st.dictionaries(TEXT, st.none() | st.booleans() | st.floats() | TEXT))
def test_json_comes_back_as_it_was(many, options):
    report = NetworkReport(tuple(many), options)
    text = report.to_json()
    assert NetworkReport.from_json(text) == report
    assert NetworkReport.from_json(text).to_json() == text
    json.loads(text, parse_constant=pytest.fail)  # no NaN, no Infinity
    report.table()


def test_json_is_plain_and_says_what_follows():
    tree = json.loads(REPORT.to_json())
    assert (tree["format"], tree["version"]) == ("sisopt network report", 1)
    assert tree["options"] == {"sparsity": 0.8, "exclude": ["stem*"], "goals": {"head": {"sparsity": None}}}
    assert tree["layers"][0]["shape"] == [8, 3, 3, 3]
    assert tree["layers"][0]["sparsity"] == 0.75
    assert tree["layers"][0]["flops_kept"] == 54 * 784
    assert tree["totals"]["n_kept"] == 554


def test_numbers_that_json_has_not_become_none():
    layer = replace(CONV, gap=math.inf, output_error=math.nan, held_out_error=np.float32(0.5), seconds=math.nan)
    assert (layer.gap, layer.output_error, layer.held_out_error, layer.seconds) == (None, None, 0.5, 0.0)
    report = NetworkReport((layer,), {"tol": math.inf, "counts": (np.int64(3), np.bool_(True), np.float32(0.5))})
    assert report.options == {"tol": None, "counts": [3, True, 0.5]}
    assert NetworkReport.from_json(report.to_json()) == report


def test_numpy_values_are_taken():
    layer = replace(CONV, shape=(np.int64(8), 27), n_weights=np.int64(216), n_kept=np.int32(54), flops=np.int64(9))
    assert LayerReport.from_record(json.loads(json.dumps(layer.to_record()))) == layer


@pytest.mark.parametrize("options", [{"model": object()}, {1: "a"}, {"a": {"b": {2}}}, {"a": 1j}])
def test_options_that_json_cannot_hold_are_refused(options):
    with pytest.raises(InvalidInputError, match="options"):
        NetworkReport((), options)


def test_counts_that_cannot_be_are_refused():
    with pytest.raises(InvalidInputError, match="'conv' cannot keep 217 of 216"):
        replace(CONV, n_kept=217)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must be JSON text"),
        ("[" * 100_000, "must be JSON text"),
        (None, "must be JSON text"),
        ("[]", '"format": "sisopt network report", got None'),
        ('{"format": "else"}', "got 'else'"),
    ],
)
def test_text_that_is_no_report_is_refused(text, message):
    with pytest.raises(InvalidInputError, match=message):
        NetworkReport.from_json(text)


def test_half_a_report_is_refused():
    text = REPORT.to_json()
    for end in range(0, len(text) - 2, 37):
        with pytest.raises(InvalidInputError, match="must be JSON text"):
            NetworkReport.from_json(text[:end])


def test_reports_of_unknown_versions_are_refused():
    tree = json.loads(REPORT.to_json()) | {"version": 2}
    with pytest.raises(InvalidInputError, match="of version 1, got 2"):
        NetworkReport.from_json(json.dumps(tree))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("name", 3, "name must be text, got 3"),
        ("shape", [3, -1], "shape must be a list of sizes"),
        ("shape", "3x3", "shape must be a list of sizes"),
        ("n_kept", 1.5, "n_kept must be a count"),
        ("n_kept", True, "n_kept must be a count"),
        ("n_kept", 217, "cannot keep 217 of 216"),
        ("n_weights", 10**400, "n_weights must be a count"),
        ("flops", 10**400, "flops must be a count"),
        ("name", "a\ud800b", "name must be text"),
        ("gap", "small", "gap must be a number"),
        ("gap", -1.0, "gap must be a number of at least 0"),
        ("output_error", -0.1, "output_error must be a number of at least 0"),
        ("seconds", None, "seconds must be a number"),
        ("status", ..., "status is missing"),
    ],
)
def test_damaged_layers_are_named(key, value, message):
    tree = json.loads(REPORT.to_json())
    if value is ...:
        del tree["layers"][0][key]
    else:
        tree["layers"][0][key] = value
    with pytest.raises(InvalidInputError, match=f"layer 0 of the network report is damaged: .*{message}"):
        NetworkReport.from_json(json.dumps(tree))


@pytest.mark.parametrize("change", [{"layers": {}}, {"layers": None}, {"options": []}])
def test_reports_without_layers_or_options_are_damaged(change):
    with pytest.raises(InvalidInputError, match="it is damaged"):
        NetworkReport.from_json(json.dumps(json.loads(REPORT.to_json()) | change))
    with pytest.raises(
        InvalidInputError, match="layer 0 of the network report is damaged: must be an object, got list"
    ):
        NetworkReport.from_json(json.dumps(json.loads(REPORT.to_json()) | {"layers": [[]]}))


def test_repr_is_short():
    assert repr(REPORT) == "<NetworkReport: 2 layers, sparsity 0.2263>"
