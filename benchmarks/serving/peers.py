"""The servers that Headrace is compared with, each in a process of its own, with a virtual environment of its own.

`install` makes that environment below build/; nothing of it enters the project's own. The model is the same file, and
every peer runs it in ONNX Runtime, behind its own dynamic batching.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness.machine import ROOT
from benchmarks.serving import credit
from benchmarks.serving.load import Post, tree, wait_ready

HERE = Path(__file__).parent
ENVIRONMENT = ROOT / "build" / "peers"
PYTHON = ENVIRONMENT / "bin" / "python"
TRITON = ENVIRONMENT / "triton" / "pytriton" / "tritonserver"
REQUIREMENTS = HERE / "requirements.lock"
# Requests that one batch may have, everywhere.
BATCH_MAX = 64


def install() -> None:
    """Makes the peers' environment, once; some 250 MB."""
    if (ENVIRONMENT / ".ready").exists():
        return
    subprocess.run([sys.executable, "-m", "venv", str(ENVIRONMENT)], check=True)
    subprocess.run([PYTHON, "-m", "pip", "install", "--quiet", "-r", str(REQUIREMENTS)], check=True)
    # Of this package only the server's binary is wanted, not what it depends on.
    subprocess.run(
        [PYTHON, "-m", "pip", "download", "--quiet", "--no-deps", "nvidia-pytriton==0.7.0", "-d", str(ENVIRONMENT)],
        check=True,
    )
    (wheel,) = ENVIRONMENT.glob("nvidia_pytriton*.whl")
    with zipfile.ZipFile(wheel) as archive:
        wanted = ("pytriton/tritonserver/", "nvidia_pytriton.libs/")
        archive.extractall(ENVIRONMENT / "triton", [name for name in archive.namelist() if name.startswith(wanted)])
    wheel.unlink()
    stub = TRITON / "python_backend_stubs" / f"3.{sys.version_info.minor}" / "triton_python_backend_stub"
    shutil.copy(stub, TRITON / "backends" / "python")
    for program in (TRITON / "bin" / "tritonserver", TRITON / "backends" / "python" / stub.name):
        program.chmod(0o755)
    (ENVIRONMENT / ".ready").touch()


def free_port() -> int:
    """A TCP port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Server:
    """A server that answers.

    Attributes:
        post: The request it is measured with.
        process: Its first process; the others are its descendants.
    """

    name: str
    post: Post
    process: subprocess.Popen[Any]

    @property
    def pids(self) -> list[int]:
        """Whose CPU time, and that of their descendants, is the server's."""
        return [self.process.pid]

    def suspend(self) -> None:
        """Takes the CPU from it while others are measured: some servers poll while they wait."""
        for one in tree(self.pids):
            one.suspend()

    def resume(self) -> None:
        """Gives the CPU back."""
        for one in tree(self.pids):
            one.resume()


@contextlib.contextmanager
def running(
    name: str, command: Sequence[str], post: Post, log: Path, environment: dict[str, str] | None = None
) -> Iterator[Server]:
    """Runs a server, and ends every process of it afterwards, each by its own id."""
    with log.open("w") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, cwd=ROOT, env={**os.environ, **(environment or {})}
        )
    try:
        answer = wait_ready(post, process)
        if not credit.is_right(answer, post):
            raise RuntimeError(f"got the wrong answer {answer[:200]!r}, expected the model's")
        yield Server(name, post, process)
    except RuntimeError as error:
        raise RuntimeError(f"{name}: {error}\n{log.read_text()[-2000:]}") from error
    finally:
        processes = tree([process.pid])
        for one in processes:
            with contextlib.suppress(Exception):
                one.resume()
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
        for one in processes:
            with contextlib.suppress(Exception):
                one.kill()
        process.wait()


def headrace(
    folder: Path, form: Callable[[str], Post] = credit.oip_json, name: str = "Headrace", grpc_port: int | None = None
) -> Any:
    """``headrace serve``, with one thread for the model."""
    repository = folder / name.replace(" ", "-").replace(",", "")
    (repository / credit.NAME / "1").mkdir(parents=True)
    shutil.copy(credit.file(), repository / credit.NAME / "1" / "model.onnx")
    (repository / credit.NAME / "headrace.toml").write_text(
        f'backend = "native"\nthreads = 1\nmax_batch = {BATCH_MAX}\n'
    )
    port = free_port()
    command = [sys.executable, "-c", "from headrace.cli.main import main; main()", "serve", str(repository)]
    command += ["--port", str(port), *(["--no-grpc"] if grpc_port is None else ["--grpc-port", str(grpc_port)])]
    return running(name, command, form(f"http://127.0.0.1:{port}"), folder / f"{name}.log")


def triton(folder: Path) -> Any:
    """Triton Inference Server with its Python backend, the only one that its package brings."""
    repository = folder / "triton"
    (repository / credit.NAME / "1").mkdir(parents=True)
    shutil.copy(credit.file(), repository / credit.NAME / "1" / "model.onnx")
    shutil.copy(HERE / "peer_triton.py", repository / credit.NAME / "1" / "model.py")
    (repository / credit.NAME / "config.pbtxt").write_text(
        f"""name: "{credit.NAME}"
backend: "python"
max_batch_size: {BATCH_MAX}
input [{{ name: "x" data_type: TYPE_FP32 dims: [ 3 ] }}]
output [{{ name: "probabilities" data_type: TYPE_FP32 dims: [ 2 ] }}]
instance_group [{{ kind: KIND_CPU count: 1 }}]
dynamic_batching {{ }}
"""
    )
    port = free_port()
    libraries = [ENVIRONMENT / "triton" / "nvidia_pytriton.libs", Path(sys.base_prefix) / "lib"]
    packages = next((ENVIRONMENT / "lib").glob("python3.*/site-packages"))
    environment = {
        "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries)),
        "PYTHONPATH": str(packages),
        # Its Python takes after the first one on the path.
        "PATH": os.pathsep.join([str(ENVIRONMENT / "bin"), os.environ["PATH"]]),
    }
    command = [
        str(TRITON / "bin" / "tritonserver"), "--model-repository", str(repository),
        "--backend-directory", str(TRITON / "backends"), "--http-address", "127.0.0.1", "--http-port", str(port),
        "--allow-grpc", "false", "--allow-metrics", "false",
    ]  # fmt: skip
    return running("Triton", command, credit.oip_json(f"http://127.0.0.1:{port}"), folder / "triton.log", environment)


def python_peer(name: str, path: str) -> Callable[[Path], Any]:
    """A peer whose server is ``peer_NAME.py``."""

    def run(folder: Path) -> Any:
        port = free_port()
        command = [str(PYTHON), str(HERE / f"peer_{name.lower()}.py")]
        environment = {"PORT": str(port), "MODEL": str(credit.file()), "BATCH_MAX": str(BATCH_MAX), "PYTHONPATH": ""}
        return running(
            name, command, credit.plain_json(f"http://127.0.0.1:{port}{path}"), folder / f"{name}.log", environment
        )

    return run


PEERS: dict[str, Callable[[Path], Any]] = {
    "Triton": triton,
    "Mosec": python_peer("Mosec", "/inference"),
    "LitServe": python_peer("LitServe", "/predict"),
}
