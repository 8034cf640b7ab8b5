"""What somebody who is new reads first is true: how to contribute, how to cite, which version it is."""

from __future__ import annotations

import itertools
import math
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from test_imports import FILES, imports

import sisopt
from sisopt.activations.increasing import Elementary

ROOT = Path(__file__).parent.parent
DECORATOR = '@njit(cache=True, nogil=True, error_model="numpy", fastmath=FAST)\n'
PLACES = {  # names of tables to which a recipe sends its reader, and where they are
    "_BUILT_IN": "sisopt/activations/registry.py",
    "_ALIASES": "sisopt/activations/registry.py",
    "FORMULAS": "tests/test_activations.py",
    "STRICT": "tests/test_activations.py",
    "VARIANTS": "tests/test_activations.py",
    "NAMES": "sisopt/penalties/partition.py",
    "ways": "tests/test_penalties.py",
    "CELLS": "tests/test_against_reference.py",
    "PENALTIES": "tests/test_kkt.py",
    "PRUNERS": "bench/rivals/pruning.py",
    "RELU_PRUNERS": "bench/rivals/pruning.py",
    "MOST_INPUTS": "bench/rivals/pruning.py",
    "_KINDS": "sisopt/adapters/torch/kinds/__init__.py",
    "EXTRAS": "tests/test_imports.py",
    "OWN_EXTRAS": "tests/test_imports.py",
    "NEEDS": "tests/test_toolkits_page.py",
}


def text_of(name):
    path = ROOT / name
    if not path.exists():
        pytest.skip("not in this distribution")
    return path.read_text(encoding="utf-8")


def code_of(section):
    """Return the Python in a section of CONTRIBUTING.md, without what its lists indent it by."""
    text = text_of("CONTRIBUTING.md").split(f"\n## {section}\n")[1].split("\n## ")[0]
    found = re.findall(r"^( *)```python\n(.*?)^ *```", text, flags=re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", code, flags=re.MULTILINE) for indent, code in found]


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "RELEASING.md"])
def test_files_that_a_page_names_exist(page):
    text = text_of(page)
    named = set(re.findall(r"`((?:sisopt|tests|bench|docs)/[\w./]*\w/?)`", text))
    named |= set(re.findall(r"\]\(([\w./-]+)\)", text))
    assert len(named) > 3
    assert not {name for name in named if not (ROOT / name).exists()}


def test_no_floor_of_the_house_imports_from_one_above():
    _, rest = text_of("CONTRIBUTING.md").split("| floor | what is there |\n|---|---|\n")
    floors = [re.findall(r"`([\w./*]+)`", line.split("|")[1]) for line in rest.split("\n\n")[0].splitlines()]
    level = {}  # of every file or folder that the table lists
    for number, names in enumerate(floors):
        for name in names:
            found = list((ROOT / "sisopt").glob(name.removeprefix("sisopt/")))
            assert found, name
            level |= {path.stem: number for path in found}
    for file in FILES:
        own = level.get(file.parts[0].removesuffix(".py"))
        rooms = {name.split(".")[1] for name in imports(file, everywhere=False) if name.startswith("sisopt.")}
        assert own is None or all(level.get(room, 0) <= own for room in rooms), (file, rooms)


def test_tests_to_copy_exist():
    named = set(re.findall(r"`(test_\w+)`", text_of("CONTRIBUTING.md")))
    written = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py"))
    assert len(named) > 6
    assert not {name for name in named if f"def {name}(" not in written}


@pytest.mark.parametrize("name", PLACES)
def test_tables_that_a_recipe_names_are_where_it_says(name):
    text = text_of("CONTRIBUTING.md")
    assert f"`{name}`" in text
    assert re.search(rf"^{name}\b[^\n]*=", text_of(PLACES[name]), flags=re.MULTILINE)


def test_the_activation_of_the_recipe_is_one():
    (code,) = code_of("An activation")
    names = {"np": np, "math": math, "Array": np.ndarray, "Elementary": Elementary}
    exec(code, names)
    (bent,) = names["ELEMENTARY"]
    z = np.array([-3e7, -2.0, 0.0, 0.75, 40.0])
    np.testing.assert_allclose(bent.forward(z), (np.sqrt(z**2 + 1) - 1) / 2 + z, rtol=1e-12)
    target = bent.preimage(z, 0.25)
    np.testing.assert_allclose(bent.forward(target.lo), bent.forward(z) - 0.25, rtol=1e-12)
    np.testing.assert_allclose(bent.forward(target.hi), bent.forward(z) + 0.25, rtol=1e-12)


def test_the_groups_of_the_recipe_are_halves_of_rows():
    (code,) = code_of("A penalty")
    names = {"rows": np.arange(2)[:, None], "columns": np.arange(5)[None], "n_in": 5, "n_out": 2}
    exec(code, names)
    np.testing.assert_array_equal(names["labels"], [[0, 0, 0, 1, 1], [2, 2, 2, 3, 3]])
    assert names["count"] == 4


def test_the_rival_of_the_recipe_prunes():
    (code,) = code_of("A rival")
    names = {}
    exec(code, names)
    W = np.array([[1.0, 2.0, 0.0, 3.0], [8.0, 1.0, 0.0, 1.0]])
    X = np.diag([1.0, 16.0, 1.0, 1.0])
    # shares 1/6 + 1/9, 1/3 + 2/3, 1/2 + 3/4; 8/10 + 8/9, 1/10 + 1/3, 1/10 + 1/4, those of input 1 four times
    np.testing.assert_array_equal(names["ria"](W, X, sparsity=0.5), [[0, 2, 0, 3], [8, 1, 0, 0]])


def test_kernels_are_decorated_as_the_page_says():
    assert DECORATOR in text_of("CONTRIBUTING.md")
    kernels = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "sisopt" / "kernels").glob("*.py"))
    assert kernels.count(DECORATOR) == kernels.count("@") > 20


def test_the_kernel_of_the_page_measures_distances():
    (code,) = code_of("Kernels")
    names = {"njit": lambda **options: lambda function: function}
    exec(code, names)
    z, lo, hi = np.array([[3.0, -1.0, 0.5], [9.0, 9.0, 9.0]]), np.zeros((2, 3)), np.array([[1.0, np.inf, 1.0]] * 2)
    out = np.full(2, np.nan)
    names["squared_distances"]([0], z, lo, hi, out)
    np.testing.assert_array_equal(out, [5.0, np.nan])


def test_the_paper_is_cited_with_its_authors():
    yaml = pytest.importorskip("yaml")
    entry = yaml.safe_load(text_of("CITATION.cff"))
    assert (entry["cff-version"], entry["type"], entry["license"]) == ("1.2.0", "software", "BSD-3-Clause")
    assert {"message", "title", "authors"} <= set(entry)
    paper = entry["preferred-citation"]
    assert paper["title"] == "Sparsifying Networks via Subdifferential Inclusion"
    assert [author["family-names"] for author in paper["authors"]] == ["Verma", "Pesquet"]
    assert (paper["year"], paper["volume"], paper["publisher"]["name"]) == (2021, 139, "PMLR")


@pytest.mark.parametrize("name", ["bug", "request"])
def test_forms_of_issues_ask_under_labels_and_names_of_their_own(name):
    yaml = pytest.importorskip("yaml")
    form = yaml.safe_load(text_of(f".github/ISSUE_TEMPLATE/{name}.yml"))
    assert {"name", "description", "body"} <= set(form)
    for a, b in itertools.combinations(form["body"], 2):
        assert a["id"] != b["id"]
        assert a["attributes"]["label"] != b["attributes"]["label"]


def test_the_version_is_that_of_the_installed_package_and_one_that_pip_can_order():
    version = pytest.importorskip("packaging.version").Version
    assert str(version(sisopt.__version__)) == sisopt.__version__
    try:
        assert sisopt.__version__ == metadata.version("sisopt")
    except metadata.PackageNotFoundError:
        assert sisopt.__version__ == "0+unknown"


def test_a_tree_that_is_not_installed_says_so():
    code = """
from importlib import metadata
def absent(name):
    raise metadata.PackageNotFoundError(name)
metadata.version = absent
import sisopt
print(sisopt.__version__)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "0+unknown\n"
