"""Model names as URLs spell them, over real sockets: the server itself, and the front of a deployment."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
from ingress_fakes import Replica, deployed
from serving_fakes import Served, acall, make_served, rows

from headrace.config import load_repository
from headrace.serving.listener import http_server, listen

TOKEN = "a-token-for-tests-only"
# Names of which none may reach a model named "doubler".
STRANGERS = {
    "an umlaut": "%C3%A4",
    "a letter that looks like one of ours": "d%D0%BEubler",
    "a wide letter, which normalises to ours": "%EF%BD%84oubler",
    "a space of no width": "doubler%E2%80%8B",
    "an emoji": "%F0%9F%92%A9",
    "half of a letter": "doubler%C3",
    "a surrogate": "%ED%A0%80",
    "an escaped slash": "doubler%2Fversions%2F1",
    "another one": "doubler%2fversions%2f1",
    "a slash that was escaped twice": "doubler%252Fversions%252F1",
}


async def ask(app: Any, *targets: str) -> list[tuple[int, bytes]]:
    """The status and body that inference at each target is answered with."""
    listener = listen("127.0.0.1", 0)
    server = http_server(app)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:
        await asyncio.sleep(0.005)
    body, answers = rows(1, 2, 3), []
    for target in targets:
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        head = f"POST {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        answered, _, content = (await reader.read()).partition(b"\r\n\r\n")
        answers.append((int(answered.split()[1]), content))
        writer.close()
    server.should_exit = True
    await serving
    listener.close()
    return answers


@pytest.mark.parametrize("where", ["server", "front"])
async def test_names_that_are_spelled_otherwise_are_other_names(where: str) -> None:
    replica = Replica()
    computed = replica.computed
    async with deployed(replica) as deployment:
        app = replica.served.app if where == "server" else deployment.front
        strangers = [f"/v2/models/{name}/infer" for name in STRANGERS.values()]
        # Whoever guards a path in front of the server must not be walked around.
        strangers += ["/v2%2Fmodels/doubler/infer", "/v2/models/doubler%2Finfer"]
        for target, (status, content) in zip(strangers, await ask(app, *strangers), strict=True):
            assert status in (404, 405), (target, content)
            assert b"got" in content
        assert replica.computed == computed
        for status, content in await ask(app, "/v2/models/%64oubler/infer", "/v2/models/doubler/versions/%31/infer"):
            assert status == 200, content


def repository(root: Path, *folders: str) -> Served:
    for folder in ("doubler", *folders):
        (root / folder / "1").mkdir(parents=True)
        (root / folder / "1/model.onnx").write_bytes(b"a model")
        if folder == "doubler":
            models = load_repository(root)
    return make_served(*models, repository=root, admin_token=TOKEN)


@pytest.mark.parametrize("folder", ["\u00e4", os.fsdecode(b"\xff")], ids=["umlaut", "no UTF-8"])
async def test_a_folder_whose_name_no_model_can_have_is_told_and_hides_nothing(tmp_path: Path, folder: str) -> None:
    served = repository(tmp_path, folder)
    bearer = {"authorization": f"Bearer {TOKEN}"}
    index = await acall(served.app, "POST", "/v2/repository/index", b"", bearer)
    assert index.status == 200, index.body
    assert {one["name"]: one["state"] for one in index.json}["doubler"] == "READY"
    assert len(index.json) == 2
    answer = await acall(served.app, "POST", f"/v2/repository/models/{folder}/load", b"", bearer)
    assert answer.status in (400, 404), answer.body
    assert "got" in answer.error
