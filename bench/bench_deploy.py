"""What becomes smaller and what becomes faster when a model is sparse: files, layouts, structured zeros taken out.

The tables close a run, on the terminal and as Markdown in out/deploy.md; the figures are in out/deploy.json.
"""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

pytest.importorskip("torch")

import torch
from torch import nn

from bench.deploy import (
    BLOCK,
    BSR,
    CSR,
    DENSE,
    SMALLER,
    TUTORIAL,
    WIDTHS,
    FileResult,
    TimeResult,
    file_table,
    files_of,
    forms_of,
    time_table,
    times_of,
    wide,
)
from bench.models import Unavailable, subjects
from bench.publish import marked
from bench.tables import OUT
from bench.training import one_thread
from sisopt import Groups
from sisopt.adapters.torch import sparsify_model
from sisopt.network.atomic_files import replace_files

pytestmark = pytest.mark.filterwarnings("ignore::sisopt.GeneralizationWarning")

WIDE = "-".join(map(str, WIDTHS))
MASKED = "MLP, 90 % zeros, half of them negative"
WIDE_CASES = {  # name: pattern, sparsity, forms
    f"MLP {WIDE}": ("unstructured", 0.0, (DENSE,)),
    "MLP, 80 % zeros": ("unstructured", 0.8, (DENSE, TUTORIAL, CSR)),
    "MLP, 90 % zeros": ("unstructured", 0.9, (DENSE, TUTORIAL, CSR)),
    MASKED: ("unstructured", 0.9, (DENSE,)),
    "MLP, 95 % zeros": ("unstructured", 0.95, (DENSE, TUTORIAL, CSR)),
    "MLP, 98 % zeros": ("unstructured", 0.98, (DENSE, TUTORIAL, CSR)),
    f"MLP, 90 % of {BLOCK}x{BLOCK} blocks": (f"{BLOCK}x{BLOCK} blocks", 0.9, (DENSE, CSR, BSR)),
    "MLP, 2:4": ("2:4", None, (DENSE,)),
    "MLP, 75 % of columns": ("columns", 0.75, (DENSE, SMALLER)),
}
CHANNELS = Groups("channels", kernel_size=(3, 3))  # those behind the flattening too: its 3 x 3 places
KEPT_CHANNELS = {"pattern": CHANNELS, "sparsity": 0.5}
DIGITS_CASES = {  # name: goal, forms
    "digits CNN": (None, (DENSE,)),
    "digits CNN, 90 % zeros": ({"sparsity": 0.9}, (DENSE, CSR)),
    "digits CNN, half of the channels": (
        {"goals": {"conv_layers.0": None, "fc_layers.2": {"pattern": "columns", "sparsity": 0.5}, "*": KEPT_CHANNELS}},
        (DENSE, SMALLER),
    ),
}


@pytest.fixture(scope="module")
def digits():
    try:
        return subjects()["digits"]()
    except Unavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="module")
def results():
    found: dict[str, list[FileResult | TimeResult]] = {"files": [], "times": []}
    with one_thread():
        yield found
    tables = {"deploy_files": file_table(found["files"]), "deploy_times": time_table(found["times"])}
    OUT.mkdir(exist_ok=True)
    for table in tables.values():
        print("\n".join(table.text()))
    replace_files(
        OUT,
        {
            "deploy.md": marked({name: table.markdown() for name, table in tables.items()}).encode(),
            "deploy.json": json.dumps({k: [asdict(each) for each in v] for k, v in found.items()}, indent=0).encode(),
        },
    )


def measure(results, name: str, model: nn.Module, forms: tuple[str, ...], like: torch.Tensor, note: str = "") -> None:
    results["files"].append(files_of(name, model, note))
    if len(forms) > 1:
        made = forms_of(model, like[:2], forms)
        results["times"] += times_of(name, made, lambda size: like[:1].repeat(size, *[1] * (like.dim() - 1)))


@pytest.mark.parametrize("name", DIGITS_CASES)
def bench_digits(results, digits, name):
    goal, forms = DIGITS_CASES[name]
    model = digits.model
    if goal is not None:
        report = sparsify_model(model, digits.batches, effort="fast", progress=False, inplace=False, **goal)
        model = report.model
    accuracy = digits.metrics(model)["accuracy"]
    measure(results, name, model, forms, torch.as_tensor(digits.batches[0]), f"accuracy {accuracy:.2f} %")


@pytest.mark.parametrize("name", WIDE_CASES)
def bench_wide(results, name):
    pattern, sparsity, forms = WIDE_CASES[name]
    torch.manual_seed(1)
    measure(results, name, wide(pattern, sparsity, masked=name == MASKED), forms, torch.randn(2, WIDTHS[0]))
