"""``headrace ledger``."""

from __future__ import annotations

import json
import sys
from http.client import HTTPException
from typing import TYPE_CHECKING
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import click

if TYPE_CHECKING:
    from headrace.observe.ledger import Books

TIMEOUT_S = 10
# Of what a server says in place of its ledger.
TEXT_MAX = 1000
COLUMNS = ("accepted", "ok", "failed", "expired", "cancelled", "queued", "lost", "refused")


@click.command("ledger")
@click.argument("source")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(source: str, as_json: bool) -> None:
    """Show what became of every request: SOURCE is a server's URL or the folder of its ledger.

    accepted = ok + failed + expired + cancelled + queued + lost; refused requests were never accepted. The folder tells
    also of processes that are gone. Exits with 1 where the books do not balance, and where a file in the folder cannot
    be read, since they may not be whole then.
    """
    unread: list[str] = []
    books = _ask(source) if source.startswith(("http://", "https://")) else _read(source, unread)
    balanced = all(one.balanced for one in books.values())
    if as_json:
        models = {name: {column: getattr(one, column) for column in COLUMNS} for name, one in books.items()}
        click.echo(json.dumps({"models": models, "balanced": balanced, "unread": unread}))
    else:
        width = max((len(name) for name in books), default=0)
        click.echo(" ".join([" " * width, *(f"{column:>10}" for column in COLUMNS)]))
        for name, one in books.items():
            cells = (f"{getattr(one, column):>10}" for column in COLUMNS)
            click.echo(" ".join([f"{name:<{width}}", *cells, "balances" if one.balanced else "DOES NOT BALANCE"]))
        for text in unread:
            click.echo(f"not counted: {text}", err=True)
    sys.exit(0 if balanced and not unread else 1)


def _read(folder: str, unread: list[str]) -> dict[str, Books]:
    from headrace.errors import ConfigError
    from headrace.observe.ledger import read, totals

    strays: list[ConfigError] = []
    books = totals(read(folder, strays))
    unread += map(str, strays)
    return books


def _ask(url: str) -> dict[str, Books]:
    import msgspec

    from headrace.errors import BackendUnavailable
    from headrace.observe.ledger import Books

    try:
        with urlopen(url.rstrip("/") + "/v2/ledger", timeout=TIMEOUT_S) as answer:
            return msgspec.json.decode(answer.read(), type=dict[str, Books])
    except HTTPError as error:
        text = error.read(TEXT_MAX).decode(errors="replace")
        raise BackendUnavailable(f"{url}: got {error}: {text}, expected the ledger of a Headrace server") from error
    except (URLError, OSError, HTTPException, msgspec.DecodeError) as error:
        raise BackendUnavailable(f"{url}: got {error!r}, expected a Headrace server") from error
