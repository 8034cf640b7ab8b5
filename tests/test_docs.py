"""The documentation is true: its Python runs, its names exist, its table of methods is the code's."""

from __future__ import annotations

import importlib
import itertools
import re
from pathlib import Path

import numpy as np
import pytest

import sisopt
import sisopt.network
from sisopt import BatchStream, ErrorBudget, GroupL2, LayerProblem, MaxPool, Penalized, Sparsity, UnsupportedError
from sisopt.activations.registry import _BUILT_IN
from sisopt.capabilities import METHODS, check_capability

ROOT = Path(__file__).parent.parent
PAGES = [
    "README.md",
    "docs/index.md",
    "docs/getting-started.md",
    "docs/numpy.md",
    "docs/networks.md",
    "docs/choosing-a-goal.md",
    "docs/resume.md",
    "docs/fine-tune.md",
    "docs/what-it-is-not.md",
    "docs/deploy.md",
    "docs/onnx.md",
    "docs/method.md",
    "docs/which-method.md",
]
UNTRIED = [
    *("docs/embedding.md", "docs/report.md", "docs/command-line.md", "docs/quality.md", "docs/models.md"),
    *("docs/performance.md", "docs/memory.md", "docs/api.rst"),
]


def text_of(name):
    path = ROOT / name
    if not path.exists():
        pytest.skip("not in this distribution")
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", PAGES)
def test_code_blocks_run_in_order(name, capsys):
    blocks = re.findall(r"^```python\n(.*?)^```", text_of(name), flags=re.MULTILINE | re.DOTALL)
    assert blocks
    rng = np.random.default_rng(0)
    # What a reader is said to have: a layer and its calibration inputs.
    namespace = {
        "inputs": rng.standard_normal((300, 20)),
        "weight": rng.standard_normal((10, 20)) / 4,
        "bias": rng.standard_normal(10) / 10,
    }
    for block in blocks:
        if "sisopt.reference" in block:
            pytest.importorskip("cvxpy")
        if "import torch" in block:
            pytest.importorskip("torch")
        exec(compile(block, name, "exec"), namespace)
    assert capsys.readouterr().out.strip()


def test_the_bound_computed_by_hand_is_a_bound_and_nearly_that_of_the_solver(capsys):
    text = text_of("docs/method.md")
    (block,) = re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    rng = np.random.default_rng(1)
    layer = {"inputs": rng.random((200, 12)), "weight": rng.standard_normal((5, 12)), "bias": rng.standard_normal(5)}
    exec(compile(block, "docs/method.md", "exec"), layer)
    solution = layer["solution"]
    assert solution.lower_bound * (1 - 1e-3) <= layer["bound"] <= solution.lower_bound * (1 + 1e-9)
    assert capsys.readouterr().out


def test_the_readme_counts_the_activations():
    assert f"**{len(_BUILT_IN)} activations**" in text_of("README.md")


def test_links_of_the_readme_lead_somewhere():  # those between pages are checked by sphinx
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", text_of("README.md"))
    local = {link for link in links if not re.match(r"https?://", link)}
    assert "docs/getting-started.md" in local
    assert all((ROOT / link).exists() for link in local), local


def test_every_page_is_in_the_index():
    index = text_of("docs/index.md")
    for page in sorted((ROOT / "docs").glob("*.md")):
        if page.stem != "index":
            assert re.search(rf"^(?:.*<)?{page.stem}>?$", index, flags=re.MULTILINE), page.stem


def resolve(name):
    """Return the object of a dotted name, whose leading parts are modules; None where an extra is missing."""
    parts = name.split(".")
    for n in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:n]))
        except ModuleNotFoundError as error:
            if error.name is not None and not error.name.startswith("sisopt"):
                return None  # an extra that is not here
            continue
        for part in parts[n:]:
            found = getattr(found, part)
        return found
    raise AttributeError(name)


@pytest.mark.parametrize("name", [*PAGES, *UNTRIED])
def test_every_quoted_name_exists(name):
    quoted = set(re.findall(r"(?<![\w./])sisopt(?:\.[A-Za-z_]\w*)+", text_of(name))) - {"sisopt.readthedocs"}
    for dotted in sorted(quoted):
        try:
            resolve(dotted)
        except AttributeError:
            pytest.fail(f"{name} quotes {dotted}, which does not exist")


def test_every_program_and_bound_of_the_method_page_names_its_code():
    text = text_of("docs/method.md")
    bounds = ("budget_bound", "batch_bound", "neuron_bound", "penalized_bound")
    solvers = ("DataRows", "RowHessian", "JointRows", "GraphSplitting", "SubdifferentialInclusion")
    searches = ("LogSecant", "BatchSearch", "NeuronSearch")
    stages = ("round_to_pattern", "swap", "damped_refit", "refit", "reweighted", "Pilot")
    for wanted in (*bounds, *solvers, *searches, *stages, "budgets_of", "outer_approximation"):
        assert re.search(rf"`sisopt\.[\w.]*\b{wanted}`", text), wanted


def documented():
    """Return the names that the API page documents, without their modules."""
    kinds = "class|data|exception|function"
    return set(re.findall(rf"auto(?:{kinds}):: (?:sisopt\.)?(\w+)$", text_of("docs/api.rst"), flags=re.MULTILINE))


def test_the_api_page_documents_everything_public():
    assert set(sisopt.__all__) - {"reference"} <= documented()
    assert set(sisopt.network.__all__) <= documented()
    assert {name for name in sisopt.activations.__all__ if name[0].isupper()} <= documented()


def test_the_api_page_documents_the_adapters():
    assert set(pytest.importorskip("sisopt.adapters.torch").__all__) <= documented()


# The table of what each method can do: words of the page and problems that ask for them.

GOALS = {
    frozenset({"`Penalized`"}): Penalized(1.0),
    frozenset({"`Sparsity`"}): Sparsity(0.5),
    frozenset({"`ErrorBudget`"}): ErrorBudget(relative_error=0.5),
    frozenset({"`ErrorBudget`", '`per="batch"`'}): ErrorBudget(relative_error=0.5, per="batch", batch_size=4),
    frozenset({"`ErrorBudget`", '`per="neuron"`'}): ErrorBudget(relative_error=0.5, per="neuron"),
}
PENALTIES = {
    "`L1`": sisopt.L1(),
    "`WeightedL1`": sisopt.WeightedL1(2.0),
    "groups within neurons": GroupL2("rows"),
    "groups across neurons": GroupL2("columns"),
}
ACTIVATIONS = {
    "identity": "identity",
    "other activation entry by entry": "gelu",
    "max-pool": MaxPool([[0, 1], [2, 3]]),
    "softmax": "softmax",
    "log-softmax": "log_softmax",
    "sparsemax": "sparsemax",
}
X, W = np.arange(24.0).reshape(8, 3) % 7.0, np.eye(2, 3)
EXTRAS = {
    None: {},
    "`mask`": {"mask": np.ones((2, 3), bool)},
    "`shift`": {"shift": np.ones((8, 2))},
    "`tolerance`": {"tolerance": 0.1},
    "`preactivations`": {"preactivations": X @ W.T},
    "`sample_weights`": {"sample_weights": np.ones(8)},
    "`entry_weights`": {"entry_weights": np.ones((8, 2))},
    "`fidelity`": {"fidelity": 0.1},
}


def problem_from(source, extra, **options):
    """Return a problem made in one of the three ways; TypeError where a way has no such argument."""
    if source is None:
        return LayerProblem(X, W, **options, **extra)
    if source == "`from_batches`":
        Z = extra.get("preactivations", X @ W.T)
        rest = {name: value for name, value in extra.items() if name != "preactivations"}
        return LayerProblem.from_batches(BatchStream([(X[:5], Z[:5]), (X[5:], Z[5:])], W), W, **options, **rest)
    if "preactivations" in extra:
        extra = {"cross": extra["preactivations"].T @ X, "energy": (extra["preactivations"] ** 2).sum(axis=0)}
    return LayerProblem.from_gram(X.T @ X, weight=W, n_samples=8, **options, **extra)


def rows_of_the_table():
    """Return (things asked for together, answer of every method), alternatives written out."""
    text = text_of("docs/which-method.md")
    _, rest = text.split("<!-- capabilities:start -->")
    head, _, *lines = rest.split("<!-- capabilities:end -->")[0].strip().splitlines()
    assert [cell.strip() for cell in head.strip("|").split("|")] == ["asked for", *METHODS]
    rows = []
    for line in lines:
        asked, *answers = (cell.strip() for cell in line.strip("|").split("|"))
        assert len(answers) == len(METHODS)
        assert set(answers) <= {"yes", "no"}
        for things in itertools.product(*(part.split(" / ") for part in asked.split(" + "))):
            rows.append((frozenset(things), dict(zip(METHODS, answers, strict=True))))
    return rows


@pytest.mark.parametrize("source", [None, "`from_gram`", "`from_batches`"])
def test_the_table_of_methods_says_what_the_methods_can_do(source):
    rows = rows_of_the_table()
    known = set().union(*GOALS, PENALTIES, ACTIVATIONS, EXTRAS, ["`from_gram`", "`from_batches`"]) - {None}
    assert set().union(*(things for things, _ in rows)) == known
    for (g, penalty), (R, activation), (name, extra) in itertools.product(
        PENALTIES.items(), ACTIVATIONS.items(), EXTRAS.items()
    ):
        try:
            problem = problem_from(source, extra, penalty=penalty, activation=activation)
        except (UnsupportedError, TypeError):
            problem = None
        for words, goal in GOALS.items():
            asked = words | ({g, R, name, source} - {None})
            for method in METHODS:
                said = all(answers[method] == "yes" for things, answers in rows if things <= asked)
                assert said == can(problem, goal, method), (method, set(asked))


def can(problem, goal, method):
    if problem is None:
        return False
    try:
        check_capability(problem, goal, method)
    except UnsupportedError:
        return False
    return True
