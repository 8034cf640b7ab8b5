"""The command answers at once where it can, and with one line where it cannot."""

import subprocess
import sys

import pytest

pytest.importorskip("click")

import sisopt
from sisopt import cli


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"sisopt {sisopt.__version__}\n"


def test_help_and_version_need_no_extra_but_click():
    code = (
        "import sys; from sisopt.cli import main\n"
        "for command in ([], ['demo'], ['layer'], ['onnx'], ['show'], ['bench']): assert main([*command, '-h']) == 0\n"
        "assert main(['--help']) == main(['--version']) == 0\n"
        "heavy = {'sklearn', 'matplotlib', 'rich', 'cvxpy', 'torch', 'jinja2', 'onnx'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for wanted in (
        "demo",
        "sisopt layer data.npz",
        "sisopt onnx model.onnx",
        "sisopt show report.json",
        "sisopt bench",
    ):
        assert wanted in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "nonsense"),
        (["demo", "--nonsense"], "--nonsense"),
        (["demo", "--seed", "many"], "many"),
        (["demo", "--seed", "-1"], "-1"),
    ],
)
def test_a_wrong_argument_is_named(arguments, message, capsys):
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_a_folder_that_cannot_be_made_is_refused_before_the_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sisopt.demo.run", lambda *arguments: pytest.fail("it worked first"))
    (tmp_path / "file").touch()
    assert cli.main(["demo", "--out", str(tmp_path / "file" / "below")]) == 2
    assert "--out" in capsys.readouterr().err


def test_an_error_of_ours_is_one_line(tmp_path, monkeypatch, capsys):
    pytest.importorskip("sklearn")

    def fail(*arguments):
        raise sisopt.InvalidInputError("weight must be finite")

    monkeypatch.setattr("sisopt.demo.run", fail)
    assert cli.main(["demo", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.strip() == "sisopt: weight must be finite"


def test_an_interrupt_gives_what_a_shell_expects(tmp_path, monkeypatch, capsys):
    pytest.importorskip("sklearn")

    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("sisopt.demo.run", interrupt)
    assert cli.main(["demo", "--out", str(tmp_path)]) == 130
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("package", "extra"),
    [("click", "cli"), ("rich", "cli"), ("jinja2", "demo"), ("matplotlib", "demo"), ("sklearn", "demo")],
)
def test_a_missing_package_names_its_extra(package, extra, tmp_path, monkeypatch, capsys):
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    assert cli.main(["demo", "--quick", "--out", str(tmp_path)]) == 2
    assert f'pip install "sisopt[{extra}]"' in capsys.readouterr().err


def test_the_demo_prints_its_tables_and_where_picture_and_report_are(tmp_path, capsys):
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    folder = tmp_path / "new" / "folder"
    assert cli.main(["demo", "--quick", "--seed", "2", "--out", str(folder)]) == 0
    out = capsys.readouterr().out
    for name in ("sisopt-demo.png", "sisopt-demo.json", "sisopt-demo.html"):
        assert (folder / name).stat().st_size > 5_000
        assert str(folder / name) in out
    assert out.rstrip().endswith("sisopt-demo.html")
    for word in ("held-out", "certified", "magnitude pruning", "dense"):
        assert word in out


@pytest.mark.parametrize(("error", "status"), [
    (sisopt.UnsupportedError("no"), 2), (sisopt.SisoptError("a check failed"), 1), (OSError(28, "No room", "f"), 1),
])  # fmt: skip
def test_what_the_call_cannot_mend_is_a_failure(error, status, tmp_path, monkeypatch, capsys):
    pytest.importorskip("sklearn")

    def fail(*arguments):
        raise error

    monkeypatch.setattr("sisopt.demo.run", fail)
    assert cli.main(["demo", "--out", str(tmp_path)]) == status
    told = "f: No room" if isinstance(error, OSError) else str(error)
    assert capsys.readouterr().err.strip() == f"sisopt: {told}"


def test_a_picture_that_cannot_be_written_is_refused_before_the_work(tmp_path, monkeypatch, capsys):
    pytest.importorskip("sklearn")
    monkeypatch.setattr("sisopt.demo.run", lambda *arguments: pytest.fail("it worked first"))
    (tmp_path / "sisopt-demo.png").mkdir()
    assert cli.main(["demo", "--out", str(tmp_path)]) == 2
    assert "sisopt-demo.png is a folder" in capsys.readouterr().err
