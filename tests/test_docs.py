"""The Python in the README and in the guide runs as written."""

import re
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent


def python_blocks(path):
    return re.findall(r"^```python\n(.*?)^```", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("name", ["README.md", "docs/index.md", "docs/getting-started.md"])
def test_code_blocks_run_in_order(name, capsys):
    path = ROOT / name
    if not path.exists():
        pytest.skip("not in this distribution")
    rng = np.random.default_rng(0)
    # What a reader is said to have: a layer and its calibration inputs.
    namespace = {
        "inputs": rng.standard_normal((300, 20)),
        "weight": rng.standard_normal((10, 20)) / 4,
        "bias": rng.standard_normal(10) / 10,
    }
    blocks = python_blocks(path)
    assert blocks
    for block in blocks:
        exec(compile(block, str(path), "exec"), namespace)
    assert capsys.readouterr().out.strip()
