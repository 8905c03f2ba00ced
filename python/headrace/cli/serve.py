"""``headrace serve``."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path

import click


@click.command("serve")
@click.argument("repository", type=click.Path(path_type=Path))
@click.option("--host", "address", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free port.")
@click.option(
    "--grpc-port",
    type=click.IntRange(0, 65535),
    help="Port of gRPC; 0 takes a free one.  [default: one above --port, or a free one where that is 0]",
)
@click.option("--no-grpc", is_flag=True, help="Serve REST only.")
@click.option(
    "--max-body-mib", default=64, show_default=True, type=click.IntRange(1), help="Longest request body, in MiB."
)
@click.option(
    "--caller-header",
    default="x-headrace-caller",
    show_default=True,
    help="Request header that names the caller; callers who compete share a model fairly.",
)
@click.option(
    "--ledger", type=click.Path(path_type=Path), help="Folder to keep the request ledger in, exact even after kill -9."
)
@click.option(
    "--admin-token-file",
    type=click.Path(path_type=Path),
    help="File with the token that lets its bearer load and unload models.  [default: HEADRACE_ADMIN_TOKEN, or nobody]",
)
@click.option("--json", "as_json", is_flag=True, help="Print each event as one JSON object per line.")
@click.option("--verbose", is_flag=True, help="Log what is loaded and how it is planned.")
def command(
    repository: Path,
    address: str,
    port: int,
    grpc_port: int | None,
    no_grpc: bool,
    max_body_mib: int,
    caller_header: str,
    ledger: Path | None,
    admin_token_file: Path | None,
    as_json: bool,
    verbose: bool,
) -> None:
    """Serve every model in REPOSITORY (NAME/VERSION/model.onnx or plan.headrace) until SIGTERM or Ctrl+C.

    Prints "grpc: HOST:PORT" and "ready: URL" once every model is loaded and warmed. On SIGTERM it answers what it has
    accepted and exits.
    """
    if no_grpc and grpc_port is not None:
        raise click.UsageError(f"got --no-grpc and --grpc-port {grpc_port}, expected one of them")
    if not no_grpc and grpc_port is None:
        grpc_port = port + 1 if port else 0
    from headrace.config import load_repository
    from headrace.errors import ExecutionError
    from headrace.extras import needs

    with needs("serve", "headrace serve"):
        from headrace.serving.aside import given_up
        from headrace.serving.host import ModelHost
        from headrace.serving.repository import read_token
        from headrace.serving.server import run

    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(levelname)s %(name)s: %(message)s"
    )

    def say(event: str, value: str) -> None:
        line = json.dumps({"event": event, "value": value}) if as_json else f"{event}: {value}"
        click.echo(line)  # click flushes, so whoever waits for the line on a pipe gets it at once

    def on_ready(url: str, grpc: str | None) -> None:
        if grpc is not None:
            say("grpc", grpc)
        say("ready", url)

    admin_token = read_token(admin_token_file, os.environ.get("HEADRACE_ADMIN_TOKEN"))
    host = ModelHost(load_repository(repository), ledger=ledger)
    try:
        run(
            host,
            address=address,
            port=port,
            grpc_port=grpc_port,
            body_bytes_max=max_body_mib * 1024 * 1024,
            caller_header=caller_header,
            repository=repository,
            admin_token=admin_token,
            on_ready=on_ready,
            progress=lambda what: say("loading", what),
        )
    except ExecutionError as error:
        # An Engine may be stuck, and the interpreter's own way out would wait for its thread.
        click.echo(f"headrace: {type(error).__name__}: {error}", err=True)
        sys.stdout.flush()
        os._exit(1)
    if given_up():
        # The interpreter's own way out would end under a thread that loads a model, and a crash tell of it.
        sys.stdout.flush()
        os._exit(0)
