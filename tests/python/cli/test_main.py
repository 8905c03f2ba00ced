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


def test_an_unknown_command_is_a_usage_error() -> None:
    result = CliRunner().invoke(cli, ["frobnicate"])
    assert result.exit_code == 2
    assert "No such command 'frobnicate'" in result.output
