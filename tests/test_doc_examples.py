"""Every public name shows in its documentation how it is used, and what is shown there is true."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import re
import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest

import sisopt
from sisopt.activations import registry

MODULES = ["sisopt", "sisopt.network", "sisopt.reference"] + ["sisopt.adapters.torch"] * bool(find_spec("torch"))
API = Path(__file__).parent.parent / "docs" / "api.rst"


def public():
    """Return (module, name) of what is public and, beyond it, of what the API page documents."""
    found = [(module, name) for module in MODULES for name in importlib.import_module(module).__all__]
    module = ""
    for line in API.read_text(encoding="utf-8").splitlines() if API.exists() else ():
        if current := re.fullmatch(r"\.\. currentmodule:: (\S+)", line):
            module = current[1]
        if entry := re.fullmatch(r"\.\. auto\w+:: (\S+)", line):
            full = entry[1] if entry[1].startswith("sisopt.") else f"{module}.{entry[1]}"
            found.append(tuple(full.rsplit(".", 1)))
    return list(dict.fromkeys(found))


NAMES = public()


@pytest.fixture(autouse=True)
def own_activations(monkeypatch):
    monkeypatch.setattr(registry, "_ACTIVATIONS", dict(registry._ACTIVATIONS))


def constant_documentation(module, name):
    """Return the text below an assignment at the top of one of a package's files."""
    for path in sorted(Path(module.__file__).parent.glob("*.py")):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        for assignment, below in zip(body, body[1:], strict=False):
            targets = getattr(assignment, "targets", [getattr(assignment, "target", None)])
            if any(isinstance(target, ast.Name) and target.id == name for target in targets):
                return inspect.cleandoc(ast.literal_eval(below.value)) if is_text(below) else ""
    return ""


def is_text(node):
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def documentation(module, name):
    found = getattr(module, name)
    if inspect.isclass(found) or inspect.isfunction(found) or inspect.ismodule(found):
        return inspect.cleandoc(vars(found).get("__doc__", found.__doc__) or "")
    return constant_documentation(module, name)


def examples(text, name):
    """Return the examples of a documentation."""
    _, _, section = text.partition("Examples\n--------\n")
    return doctest.DocTestParser().get_doctest(section, {}, name, None, 0)


@pytest.mark.parametrize(("module", "name"), NAMES, ids=[f"{module}.{name}" for module, name in NAMES])
def test_a_public_name_has_an_example_that_runs(module, name):
    try:
        text = documentation(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("sisopt"):
            raise
        pytest.skip(str(error))
    test = examples(text, name)
    assert test.examples, f"{module}.{name} has no section 'Examples' with lines '>>>'"
    if "torch" in text:
        pytest.importorskip("torch")
    if "sisopt.reference." in text:
        pytest.importorskip("cvxpy")
    told = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a reader would see them
        result = doctest.DocTestRunner(verbose=False).run(test, out=told.append)
    assert result.failed == 0, "".join(told)


def test_an_example_that_is_missing_or_wrong_is_found():
    assert not examples("Do it.\n\nParameters\n----------\nx : int\n", "f").examples
    wrong = examples("Examples\n--------\n>>> 1 + 1\n3\n", "f")
    assert doctest.DocTestRunner(verbose=False).run(wrong, out=lambda text: None).failed == 1
    assert documentation(sisopt, "NM") != documentation(sisopt, "PerRow")
    assert constant_documentation(sisopt, "PER") == ""  # of goals.py, with nothing below
    assert constant_documentation(sisopt.reference, "STATUS").startswith("The statuses")
