"""The report as a page and as a picture: whole, harmless whatever layers are called, the same every time."""

from __future__ import annotations

import base64
import hashlib
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

pytest.importorskip("jinja2")
matplotlib = pytest.importorskip("matplotlib")

from sisopt.network import report_plot  # noqa: E402  after the skips
from sisopt.network.report import LayerReport, NetworkReport  # noqa: E402
from sisopt.network.thumbnails import thumbnail  # noqa: E402

WEIGHT = np.triu(np.ones((60, 100)), 40)
FIRST = LayerReport(
    "first", "Linear", (60, 100), "relu", 6000, int(WEIGHT.sum()), 6000, 0.1, 0.12, 0.2, 2e-5, "optimal", 1.5,
    curve=((0.5, 0.02), (0.9, 0.3)), density=thumbnail([WEIGHT]),
)  # fmt: skip
LAST = LayerReport("last", "Linear", (10, 60), "identity", 600, 150, 600, 0.2, None, 0.3, None, "done", 0.5)
HEAD = LayerReport("head", "Linear", (9, 9), "", 81, 81, 0, 0.0, None, None, None, "kept dense", 0.0, included=False)
REPORT = NetworkReport((FIRST, LAST, HEAD), {"sparsity": 0.8, "tol": 1e-3, "goals": {"la*": {"sparsity": 0.75}}})
HOSTILE = [
    "<script>alert(1)</script>", "</script><img src=x onerror=alert(1)>", '" onmouseover="alert(1)', "' & ]]> -->",
    "{{ 7 * 7 }}{% raw %}", "$x_{$", "_hidden", "a\x00\x08b", "\u202eltr", "層", "", "n" * 3000,
]  # fmt: skip
VOID = {"meta", "img", "br", "path", "rect", "use"}


class Reader(HTMLParser):
    """What a browser makes of a page: elements with their attributes, and text, with the elements that it is in."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.texts, self.open = [], [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert tag in VOID or self.open.pop() == tag, tag

    def handle_data(self, data):
        self.texts.append((data, tuple(self.open)))

    def cells(self):
        """Return what the table of layers says, row by row."""
        rows, inside = [], False
        for data, where in self.texts:
            if "tbody" in where and where[-1] in ("td", "th"):
                rows.append(data.strip())
            inside = inside or "tbody" in where
        assert inside
        return rows


@pytest.fixture(scope="module")
def page():
    return REPORT.to_html()


def test_the_page_says_what_the_report_does(page):
    reader = Reader(page)
    assert not reader.open
    text = " ".join(data for data, where in reader.texts if "style" not in where and "script" not in where)
    for wanted in (
        f"{REPORT.sparsity:.2%} zeros in 2 layers", f"{REPORT.n_kept:,} of 6,600", "2 of 3", "0.2000 in last",
        "2.0e-05 in first", "1 layer with a certified gap, 2.0e-05 at most; 0.001 was asked for", "kept dense",
        '{"la*": {"sparsity": 0.75}}',
    ):  # fmt: skip
        assert wanted in text, wanted
    cells = reader.cells()
    for wanted in ("first", "last", "head", "60x100", "75.00%", "0.1000", "0.1200", "2.0e-05", "1.50"):
        assert wanted in cells
    assert [tag for tag, _ in reader.elements].count("svg") == 2
    assert [tag for tag, _ in reader.elements].count("img") == 1  # a map of the one layer that has it


@pytest.mark.parametrize("report", [REPORT, NetworkReport(()), NetworkReport((HEAD,))])
def test_the_page_needs_nothing_from_elsewhere(report):
    page = report.to_html()
    reader = Reader(page)
    assert not reader.open
    for tag, attributes in reader.elements:
        assert tag not in ("link", "iframe", "object", "base", "form")
        for name in ("src", "href", "xlink:href", "srcset", "action"):
            assert attributes.get(name, "#").startswith(("#", "data:image/png;base64,")), (tag, attributes)
    assert not re.findall(r"url\((?!#)", page)
    assert "@import" not in page
    policy = next(a["content"] for _, a in reader.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy


def test_the_only_script_that_may_run_is_ours(page):
    (script,) = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (allowed,) = re.findall(r"script-src ([^;\"]*)", page)
    assert allowed == f"'sha256-{digest}'"


def test_names_do_no_harm():
    layers = tuple(replace(FIRST, name=name, kind=name, activation=name, status=name, note=name) for name in HOSTILE)
    reader = Reader(NetworkReport(layers, {"goals": dict.fromkeys(HOSTILE, 0.5), "allocation": HOSTILE[1]}).to_html())
    plain = Reader(NetworkReport((FIRST, LAST)).to_html())
    assert not reader.open
    assert {tag for tag, _ in reader.elements} <= {tag for tag, _ in plain.elements} | {"dl", "dt", "dd"}
    assert [tag for tag, _ in reader.elements].count("script") == 1
    known = {key for _, attributes in plain.elements for key in attributes}
    assert {key for _, attributes in reader.elements for key in attributes} <= known
    cells = reader.cells()
    assert all(cells.count(name) == 5 for name in HOSTILE if name and name.isprintable())


def test_rows_carry_what_they_are_sorted_by(page):
    body = page[page.index("<tbody>") : page.index("</tbody>")]
    values = [re.findall(r'data-value="([^"]*)"', row) for row in body.split("</tr>")[:-1]]
    titles = re.findall(r'data-type="(\w+)".*?<button type="button">([^<]*)<', page)
    assert {len(row) for row in values} == {len(titles)}
    assert ("number", "gap") in titles
    assert ("text", "layer") in titles
    gaps = [row[[title for _, title in titles].index("gap")] for row in values]
    assert gaps == ["2e-05", "", ""]
    assert [row[0] for row in values] == ["1", "2", "3"]


def test_the_page_is_the_same_every_time_and_in_any_style(page, tmp_path):
    assert REPORT.to_html(tmp_path / "page.html") == page
    assert (tmp_path / "page.html").read_bytes() == page.encode()
    with matplotlib.rc_context({"figure.facecolor": "red", "font.size": 30, "svg.fonttype": "path"}):
        assert REPORT.to_html() == page
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_what_is_not_known_is_said():
    page = NetworkReport((LAST,)).to_html()
    assert "No layer has a certified gap" in page
    assert "allocation=&#34;error&#34;" in page
    assert "Where the weights are" not in page


@pytest.mark.parametrize(
    "report", [REPORT, NetworkReport(()), NetworkReport((HEAD,)), NetworkReport((FIRST, LAST) * 4, {"tol": 1e-3})]
)
def test_the_picture_can_be_drawn(report, tmp_path, monkeypatch):
    from matplotlib import _pylab_helpers
    from matplotlib.figure import Figure

    monkeypatch.setattr(report_plot, "NAMED", 3)  # as where layers are many
    monkeypatch.setattr(report_plot, "MANY", 2)
    figure = report.plot()
    assert isinstance(figure, Figure)
    assert not _pylab_helpers.Gcf.get_all_fig_managers()
    figure.savefig(tmp_path / "report.png", dpi=30)
    assert (tmp_path / "report.png").stat().st_size > 500


def test_the_picture_shows_the_figures():
    zeros, errors, gaps, curves = REPORT.plot().axes
    assert [bar.get_width() for bar in zeros.patches[3:]] == [100 * layer.sparsity for layer in REPORT.layers]
    assert [list(line.get_xdata()) for line in errors.lines] == [[0.1, 0.2], [0.12]]
    assert list(gaps.lines[0].get_xdata()) == [2e-5]
    drawn = [(list(line.get_xdata()), list(line.get_ydata())) for line in curves.lines]
    assert ([50.0, 90.0], [0.02, 0.3]) in drawn
    assert ([100 * LAST.sparsity], [0.2]) in drawn


@pytest.mark.parametrize(("package", "extra"), [("jinja2", "report"), ("matplotlib", "plot")])
def test_a_missing_extra_is_named(package, extra, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModuleNotFoundError, match=rf'pip install "sisopt\[{extra}\]"'):
        REPORT.to_html()


@pytest.mark.parametrize(("allocation", "why"), [
    ("error", "several layers without goals of their own"), ("uniform", "allocation=&#34;error&#34;"),
])  # fmt: skip
def test_the_page_says_why_there_are_no_curves(allocation, why):
    page = NetworkReport((LAST,), {"sparsity": 0.8, "allocation": allocation}).to_html()
    assert why in page
    assert ("allocation=&#34;error&#34;" in page) == (allocation == "uniform")
