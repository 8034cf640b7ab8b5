"""The examples of the documentation run, and do what their pages say."""

from __future__ import annotations

import re
import runpy
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

FOLDER = Path(__file__).parent.parent / "docs" / "examples"

pytestmark = pytest.mark.usefixtures("seeded_torch")


@cache
def run(name):
    """Return what an example leaves behind, and what it prints."""
    path = FOLDER / f"{name}.py"
    if not path.exists():
        pytest.skip("not in this distribution")
    with redirect_stdout(StringIO()) as out:
        found = runpy.run_path(str(path), run_name="__main__")
    return found, out.getvalue()


def zeros(model):
    return sum(int((p == 0).sum()) for p in model.parameters() if p.dim() > 1)


@pytest.mark.parametrize(
    ("name", "sparsity", "lost"),
    [
        ("mlp_digits", 0.9, 0.03),
        ("cnn_batchnorm", 0.8, 0.05),
        ("transformer_text", 0.65, 0.1),
        ("onnx_model", 0.9, 0.05),
    ],
)
def test_a_classifier_keeps_most_of_its_accuracy(name, sparsity, lost):
    found, out = run(name)
    assert found["report"].sparsity == pytest.approx(sparsity, abs=1e-4)
    assert found["dense"] > 0.85
    assert found["sparse"] > found["dense"] - lost
    assert str(found["report"]) in out


def test_a_pattern_for_some_layers_holds_there_and_the_sparsity_elsewhere():
    found, _ = run("transformer_text")
    for layer in found["model"].encoder.layers:
        assert (layer.linear1.weight.reshape(-1, 4).count_nonzero(dim=1) <= 2).all()
    others = [layer for layer in found["report"].included if "linear1" not in layer.name]
    assert sum(layer.n_kept for layer in others) == round(0.3 * sum(layer.n_weights for layer in others))
    assert found["model"].head.weight.count_nonzero() == found["model"].head.weight.numel()


def test_forecasters_keep_most_of_their_accuracy_and_the_model_stays_dense():
    found, _ = run("time_series")
    for dense, sparse in found["errors"].values():
        assert sparse < 1.4 * dense
    assert zeros(found["model"]) == 0
    assert zeros(found["report"].model) == found["report"].n_weights - found["report"].n_kept


def test_fine_tuning_gains_accuracy_and_keeps_the_zeros():
    found, _ = run("finetune")
    assert found["sparse"] < found["dense"] - 0.02
    assert found["tuned"] > found["sparse"] + 0.01
    assert found["zeros"] == found["report"].n_weights - found["report"].n_kept > 0.97 * found["report"].n_weights


def test_an_interrupted_run_resumes_to_the_same_bits():
    found, out = run("resume")
    assert found["same"]
    assert re.findall(r"^(?:finished (\S+):|interrupted)", out, flags=re.MULTILINE) == ["0", "2", ""]


def test_every_example_is_tested_and_shown():
    if not FOLDER.exists():
        pytest.skip("not in this distribution")
    names = {path.stem for path in FOLDER.glob("*.py")}
    page = "".join(path.read_text(encoding="utf-8") for path in FOLDER.parent.glob("*.md"))
    tests = Path(__file__).read_text(encoding="utf-8")
    assert names
    for name in names:
        assert f"examples/{name}.py" in page
        assert f'"{name}"' in tests


def test_deployed_forms_are_smaller_and_keep_the_accuracy():
    found, _ = run("deploy")
    assert found["before"] > 9 * found["after"]
    assert set(found["conversion"].changed) == {"2", "4"}  # the first layer has too few zeros to gain
    assert len(found["smaller"].changed) == 3
    assert all(share > found["dense"] - 0.05 for _, share in found["forms"].values())


def test_a_network_that_hears_pitch_hears_it_still():
    found, _ = run("audio_pitch")
    assert found["report"].sparsity == pytest.approx(0.8, abs=1e-4)
    assert found["dense"] > 0.9
    assert found["sparse"] > found["dense"] - 0.05
