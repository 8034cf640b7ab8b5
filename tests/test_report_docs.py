"""The pages on reports and on the command line are true: what they say to type works, in order, in an empty folder."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

pytest.importorskip("click")
pytest.importorskip("rich")
pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

from sisopt import cli

ROOT = Path(__file__).parent.parent


def blocks_of(name):
    path = ROOT / name
    if not path.exists():
        pytest.skip("not in this distribution")
    return re.findall(r"^```(bash|python)\n(.*?)^```", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def test_the_page_on_reports_runs(tmp_path, monkeypatch, capsys):
    pytest.importorskip("torch")
    blocks = blocks_of("docs/report.md")
    monkeypatch.chdir(tmp_path)
    namespace = {}
    for _, code in blocks:
        exec(compile(code, "docs/report.md", "exec"), namespace)
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", "report.png"}
    assert "NetworkReport: 3 layers" in capsys.readouterr().out


def test_the_page_on_commands_runs(tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    blocks = blocks_of("docs/command-line.md")
    monkeypatch.chdir(tmp_path)
    ran = set()
    for language, code in blocks:
        if language == "python":
            exec(compile(code, "docs/command-line.md", "exec"), {})
            continue
        for line in code.splitlines():
            words = shlex.split(line.partition(" > ")[0])
            assert words[0] == "sisopt"
            ran.add(words[1])
            if words[1] == "bench":  # takes its time, and is tested on less
                assert cli.main(["bench", "--help"]) == 0
            else:
                assert cli.main(words[1:]) == 0, line
    assert ran == {"layer", "onnx", "show", "bench"}
    assert {"sparse.npz", "sparse.onnx", "report.html", "page.html"} <= {path.name for path in tmp_path.iterdir()}


def test_the_page_names_every_command():
    (table,) = re.findall(r"^\| command \|.*?\n\n", (ROOT / "docs/command-line.md").read_text("utf-8"), re.M | re.S)
    assert set(re.findall(r"^\| `sisopt (\w+)`", table, re.M)) == set(cli._commands().commands)
