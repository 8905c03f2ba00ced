"""The command group: fast to ask, and errors without tracebacks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from headrace.cli.main import COMMANDS, cli, main


def test_every_command_in_the_table_that_is_there_loads_and_has_help() -> None:
    runner = CliRunner()
    listing = runner.invoke(cli, ["--help"]).output
    for name in ("serve", "inspect", "doctor"):
        assert name in listing
    for name in cli.list_commands(None):  # type: ignore[arg-type]
        assert name in COMMANDS
        result = runner.invoke(cli, [name, "--help"])
        assert result.exit_code == 0, result.output
        assert "--json" in result.output, f"{name} has no --json"


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from headrace.cli.main import cli\n"
        "cli.main(['--help'], standalone_mode=False)\n"
        "heavy = {'onnx', 'onnx_ir', 'rich', 'uvicorn', 'ray', 'torch', 'msgspec'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, stdout=subprocess.DEVNULL)


def test_our_errors_end_with_one_line_and_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["serve", str(tmp_path / "nowhere")])
    assert caught.value.code == 1
    out, err = capsys.readouterr()
    assert err.startswith("headrace: ConfigError: ")
    assert "expected a model repository" in err
    assert "Traceback" not in out + err


@pytest.mark.parametrize(
    ("absent", "what", "extra"),
    [
        ("httptools", "main(['serve', 'models'])", "serve"),
        ("uvicorn", "main(['serve', 'models'])", "serve"),
        ("yaml", "main(['deploy', 'app.yaml'])", "ray"),
        ("skl2onnx", "hr.load(make_pipeline(StandardScaler()).fit([[1.0], [2.0]]))", "sklearn"),
    ],
)
def test_a_package_that_is_not_installed_is_told_with_the_extra_that_has_it(
    absent: str, what: str, extra: str, tmp_path: Path
) -> None:
    (tmp_path / "app.yaml").write_text("models: []")
    code = f"import sys\nsys.modules[{absent!r}] = None\nfrom headrace.cli.main import main\nimport headrace as hr\n"
    if extra == "sklearn":
        code += "from sklearn.pipeline import make_pipeline\nfrom sklearn.preprocessing import StandardScaler\n"
    done = subprocess.run([sys.executable, "-c", code + what], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "BackendUnavailable: " in last
    assert f"pip install 'headrace[{extra}]' (in a checkout: pip install '.[{extra}]')" in last
    assert ("Traceback" in done.stderr) == (extra == "sklearn")


def test_an_unknown_command_is_a_usage_error() -> None:
    result = CliRunner().invoke(cli, ["frobnicate"])
    assert result.exit_code == 2
    assert "No such command 'frobnicate'" in result.output
