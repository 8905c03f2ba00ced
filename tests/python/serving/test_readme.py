"""README's quickstart does what it says, block by block, as it stands there."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[3] / "README.md"


def test_the_quickstart_runs_as_it_stands(tmp_path: Path) -> None:
    section = README.read_text(encoding="utf-8").partition("## Quickstart\n")[2].partition("\n## ")[0]
    make, ask = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    curl = re.search(r"```\n(curl .*?)```", section, re.DOTALL)
    assert curl is not None
    assert "`headrace serve models/`" in section

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "probabilities" in run(sys.executable, "-c", make)
    server = subprocess.Popen(
        [sys.executable, "-c", "from headrace.cli.main import main; main()", "serve", "models/", "--port", "0"],
        cwd=tmp_path, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert server.stdout is not None
        ready = next(line for line in server.stdout if line.startswith("ready: "))
        address = ready.removeprefix("ready: http://").strip()
        request = [part.replace("127.0.0.1:8000", address) for part in shlex.split(curl[1])]
        assert '"model_name":"wine"' in run(*request).replace(" ", "")
        assert re.search(r"\[\d \d\]", run(sys.executable, "-c", ask.replace("127.0.0.1:8000", address)))
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0
