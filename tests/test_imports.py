"""Who imports whom: extras stay outside until they are asked for, and nothing in the package imports an adapter."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import sisopt

ROOT = Path(sisopt.__file__).parent
FILES = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py"))
EXTRAS = {
    *("cvxpy", "greenlet", "jinja2", "llmcompressor", "matplotlib", "onnx", "onnxruntime", "safetensors", "sklearn"),
    *("torch", "torch_pruning", "tqdm"),
}
OWN_EXTRAS = {  # imported at the top there
    "adapters/torch/": {"greenlet", "torch"},
    "adapters/onnx/": {"onnx", "onnxruntime"},
    "adapters/toolkits/": {"llmcompressor", "sklearn", "torch", "torch_pruning"},
    "demo_report.py": {"matplotlib"},
    "network/report_plot.py": {"matplotlib"},
}
KERNELS = {"__future__", "math", "numba", "numpy"}


def imports(file, *, everywhere):
    """Return the absolute names of modules that a file imports, inside of functions too or at its top alone."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    inner = {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for n in ast.walk(f)}
    package = ["sisopt", *file.parts[:-1]]
    found = set()
    for node in ast.walk(tree):
        if id(node) in inner and not everywhere:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            base = [*base, *(node.module or "").split(".")] if node.module else base
            found.add(".".join(base))
            found |= {".".join([*base, alias.name]) for alias in node.names}
    return found


@pytest.mark.parametrize("module", ["sisopt", "sisopt.network"])
def test_an_import_loads_no_extra(module):
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert module in done.stdout.split()
    assert not EXTRAS & set(done.stdout.split())


def test_no_file_imports_an_adapter_but_adapters():
    found = {str(f): imports(f, everywhere=True) for f in FILES if f.parts[0] not in ("adapters", "commands")}
    assert len(found) > 50
    assert not {f: names for f, names in found.items() if any(n.startswith("sisopt.adapters") for n in names)}


def test_extras_are_imported_inside_of_functions():
    for file in FILES:
        own = set().union(*(extras for place, extras in OWN_EXTRAS.items() if file.as_posix().startswith(place)))
        assert not (EXTRAS - own) & {name.split(".")[0] for name in imports(file, everywhere=False)}, file


def test_kernels_import_numpy_and_numba_alone():
    for file in FILES:
        if file.parts[0] == "kernels":
            roots = {
                name.split(".")[0] for name in imports(file, everywhere=True) if not name.startswith("sisopt.kernels")
            }
            assert roots <= KERNELS, (file, roots)


def test_the_files_are_read_as_python_reads_them():
    found = imports(Path("adapters/torch/masks.py"), everywhere=False)
    assert {"torch", "torch.nn", "sisopt.network.NetworkReport", "sisopt.adapters.torch.trace.sites_of"} <= found
    assert "safetensors.numpy" in imports(Path("network/checkpoint.py"), everywhere=True)
    assert "safetensors.numpy" not in imports(Path("network/checkpoint.py"), everywhere=False)
