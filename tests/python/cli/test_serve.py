"""``headrace serve`` as users run it: a real process, a real model, the real scheduler."""

from __future__ import annotations

import inspect
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from oip_client import binary_request, read_answer
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

SERVE = [sys.executable, "-c", "from headrace.cli.main import main; main()", "serve"]


def save_model(path: Path, scale: float = 1.0) -> onnx.ModelProto:
    """sigmoid(x W + b) with 30 inputs and 4 outputs, as a credit model may be."""
    rng = np.random.default_rng(7)
    weight = numpy_helper.from_array((scale * rng.standard_normal((30, 4))).astype(np.float32), "w")
    bias = numpy_helper.from_array(rng.standard_normal(4).astype(np.float32), "b")
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"]),
            helper.make_node("Add", ["h", "b"], ["z"]),
            helper.make_node("Sigmoid", ["z"], ["p"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 30])],
        [helper.make_tensor_value_info("p", TensorProto.FLOAT, ["n", 4])],
        [weight, bias],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path.parent.mkdir(parents=True)
    onnx.save(model, path)
    return model


def save_words_model(path: Path) -> None:
    """No -> nein, Yes -> ja, all else -> "?": strings in and strings out."""
    words = {"keys_strings": ["No", "Yes"], "values_strings": ["nein", "ja"], "default_string": "?"}
    graph = helper.make_graph(
        [helper.make_node("LabelEncoder", ["word"], ["translated"], domain="ai.onnx.ml", **words)],
        "g",
        [helper.make_tensor_value_info("word", TensorProto.STRING, ["n", 1])],
        [helper.make_tensor_value_info("translated", TensorProto.STRING, ["n", 1])],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("ai.onnx.ml", 4)]
    path.parent.mkdir(parents=True)
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)


def save_slow_model(path: Path, layers: int = 24, width: int = 1024) -> None:
    """One column in, one out, and 50 GFLOP per 1000 rows: a fifth of a second on the fastest core, so queues form."""
    arrays = {"first": (1, width), "inner": (width, width), "last": (width, 1)}
    weights = [numpy_helper.from_array(np.full(shape, 1e-3, np.float32), name) for name, shape in arrays.items()]
    names = ["x", *(f"h{i}" for i in range(layers + 1)), "y"]
    kinds = ["first", *["inner"] * layers, "last"]
    nodes = [helper.make_node("MatMul", [names[i], kind], [names[i + 1]]) for i, kind in enumerate(kinds)]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1])],
        weights,
    )
    path.parent.mkdir(parents=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)


def start(repository: Path, *options: str) -> subprocess.Popen[str]:
    command = [*SERVE, str(repository), "--port", "0", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def stop(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def post(url: str, x: np.ndarray) -> tuple[int, dict[str, Any]]:
    tensor = {"name": "x", "shape": list(x.shape), "datatype": "FP32", "data": x.ravel().tolist()}
    request = urllib.request.Request(url, json.dumps({"inputs": [tensor]}).encode())
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as answer:
        text: str = answer.read().decode()
        return text


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, dict[str, ReferenceEvaluator]]]:
    """The URL and the gRPC address of a server with two versions of one model, and what each should answer."""
    root = tmp_path_factory.mktemp("repository")
    models = {"1": save_model(root / "credit/1/model.onnx"), "2": save_model(root / "credit/2/model.onnx", 2.0)}
    save_words_model(root / "words/1/model.onnx")
    (root / "credit/headrace.toml").write_text('versions = "all"\nthreads = 1\n')
    process = start(root)
    try:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(5)]
        assert lines[:3] == [f"loading: {it}\n" for it in ("credit version 1", "credit version 2", "words version 1")]
        assert lines[3].startswith("grpc: 127.0.0.1:"), lines
        assert lines[4].startswith("ready: http://127.0.0.1:"), lines
        yield (
            lines[4].removeprefix("ready: ").strip(),
            lines[3].removeprefix("grpc: ").strip(),
            {version: ReferenceEvaluator(model) for version, model in models.items()},
        )
    finally:
        stop(process)


@pytest.fixture(scope="module")
def served(server: tuple[str, str, dict[str, ReferenceEvaluator]]) -> tuple[str, dict[str, ReferenceEvaluator]]:
    """The URL of its model of two versions, and what each should answer."""
    return server[0] + "/v2/models/credit", server[2]


def test_answers_are_those_of_the_reference_evaluator(served: tuple[str, dict[str, ReferenceEvaluator]]) -> None:
    url, references = served
    x = np.random.default_rng(0).standard_normal((5, 30)).astype(np.float32)
    for path, version in (("/infer", "2"), ("/versions/1/infer", "1"), ("/versions/2/infer", "2")):
        status, answer = post(url + path, x)
        assert (status, answer["model_version"]) == (200, version)
        (output,) = answer["outputs"]
        assert (output["name"], output["datatype"], output["shape"]) == ("p", "FP32", [5, 4])
        want = references[version].run(None, {"x": x})[0]
        np.testing.assert_allclose(np.reshape(output["data"], (5, 4)), want, atol=1e-6)


def test_strings_go_in_and_out_in_both_forms(served: tuple[str, dict[str, ReferenceEvaluator]]) -> None:
    url = served[0].replace("credit", "words/infer")
    tensor = {"name": "word", "shape": [3, 1], "datatype": "BYTES", "data": ["Yes", "No", "vielleicht"]}
    body, headers = binary_request({"word": ("BYTES", np.array([["Yes"], ["No"], ["vielleicht"]], object))})
    for request in (
        urllib.request.Request(url, json.dumps({"inputs": [tensor]}).encode()),
        urllib.request.Request(url, body, headers),
    ):
        with urllib.request.urlopen(request, timeout=30) as answer:
            got = read_answer(answer.read(), {name.lower(): value for name, value in answer.getheaders()})
        assert got["translated"].tolist() == [["ja"], ["nein"], ["?"]]


async def _ask_stock_client(client: Any, module: Any, x: np.ndarray, version: str) -> np.ndarray:
    """Health, metadata and one inference; a sync client's answers need no awaiting."""

    async def get(answer: Any) -> Any:
        return await answer if inspect.isawaitable(answer) else answer

    for ready in (client.is_server_live, client.is_server_ready):
        assert await get(ready())
    assert await get(client.is_model_ready("credit", version))
    metadata = await get(client.get_model_metadata("credit", version))
    names = metadata["inputs"] if isinstance(metadata, dict) else [{"name": one.name} for one in metadata.inputs]
    assert [one["name"] for one in names] == ["x"]
    given = module.InferInput("x", list(x.shape), "FP32")
    given.set_data_from_numpy(x)
    wanted = module.InferRequestedOutput("p")
    answer = await get(client.infer("credit", [given], version, outputs=[wanted], request_id="7", timeout=9_000_000))
    with pytest.raises(module.InferenceServerException, match=r"model: got 'nobody', expected one of credit, words"):
        await get(client.infer("nobody", [given]))
    array: np.ndarray = answer.as_numpy("p")
    return array


async def test_every_stock_client_gets_the_same_bits(server: tuple[str, str, dict[str, ReferenceEvaluator]]) -> None:
    url, address, references = server
    host = url.removeprefix("http://")
    x = np.random.default_rng(3).standard_normal((4, 30)).astype(np.float32)
    for version in ("1", "2"):
        async with tritonclient.http.aio.InferenceServerClient(host) as client:
            answers = [await _ask_stock_client(client, tritonclient.http.aio, x, version)]
        async with tritonclient.grpc.aio.InferenceServerClient(address) as client:
            answers.append(await _ask_stock_client(client, tritonclient.grpc.aio, x, version))
        for module, where in ((tritonclient.http, host), (tritonclient.grpc, address)):
            with module.InferenceServerClient(where) as client:
                answers.append(await _ask_stock_client(client, module, x, version))
        want = references[version].run(None, {"x": x})[0]
        np.testing.assert_allclose(answers[0], want, atol=1e-6)
        assert len({answer.tobytes() for answer in answers}) == 1


def test_a_stock_client_sends_and_reads_text(server: tuple[str, str, dict[str, ReferenceEvaluator]]) -> None:
    words = np.array([["Yes"], ["No"], ["grün"]], dtype=object)
    for module, where in ((tritonclient.http, server[0].removeprefix("http://")), (tritonclient.grpc, server[1])):
        given = module.InferInput("word", [3, 1], "BYTES")
        given.set_data_from_numpy(words)
        with module.InferenceServerClient(where) as client:
            answer = client.infer("words", [given])
        assert answer.as_numpy("translated").ravel().tolist() == [b"ja", b"nein", b"?"]


def test_metadata_names_a_real_backend_and_isa(served: tuple[str, dict[str, ReferenceEvaluator]]) -> None:
    parameters = json.loads(get(served[0]))["parameters"]
    assert parameters["backend"] == "native"
    assert parameters["threads"] == 1
    assert parameters["device"]
    assert parameters["isa"]


def test_answers_among_many_clients_are_those_alone_to_the_bit(
    served: tuple[str, dict[str, ReferenceEvaluator]],
) -> None:
    url = served[0] + "/infer"
    rng = np.random.default_rng(1)
    requests = [rng.standard_normal((n, 30)).astype(np.float32) for n in (1, 2, 3, 7, 33) * 8]
    wrong = [np.zeros((1, 29), np.float32)] * 20
    alone = [post(url, x)[1]["outputs"] for x in requests]
    with ThreadPoolExecutor(24) as pool:
        bad = [pool.submit(post, url, x) for x in wrong]
        together = list(pool.map(lambda x: post(url, x), requests))
    assert [answer["outputs"] for _, answer in together] == alone
    assert {future.result()[0] for future in bad} == {400}


def test_the_ledger_balances(served: tuple[str, dict[str, ReferenceEvaluator]]) -> None:
    def ledger() -> dict[str, float]:
        text = get(served[0].removesuffix("/v2/models/credit") + "/metrics")
        rows = [line for line in text.splitlines() if 'version="2"' in line]
        found = {row.split('outcome="')[1].split('"')[0]: float(row.split()[-1]) for row in rows if "outcome" in row}
        found["accepted"] = next(float(row.split()[-1]) for row in rows if "requests_accepted_total" in row)
        return found

    before = ledger()
    statuses = [post(served[0] + "/infer", np.zeros((1, columns), np.float32))[0] for columns in (30, 31, 30, 30)]
    assert statuses == [200, 400, 200, 200]
    after = ledger()
    assert after["ok"] - before["ok"] == 3
    assert after["rejected"] - before["rejected"] == 1
    assert after["accepted"] == sum(after[word] for word in ("ok", "failed", "expired", "cancelled"))


def test_an_answer_with_an_impossible_deadline_is_refused(served: tuple[str, dict[str, ReferenceEvaluator]]) -> None:
    body = {
        "inputs": [{"name": "x", "shape": [60_000, 30], "datatype": "FP32", "data": [0.5] * 1_800_000}],
        "parameters": {"timeout": 1},
    }
    request = urllib.request.Request(served[0] + "/infer", json.dumps(body).encode())
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=60)
    assert caught.value.code in (429, 504)
    assert json.load(caught.value)["error"]


def test_a_client_that_leaves_is_never_computed_and_sigterm_answers_the_rest(tmp_path: Path) -> None:
    save_slow_model(tmp_path / "slow/1/model.onnx")
    (tmp_path / "slow/headrace.toml").write_text("threads = 1")
    process = start(tmp_path, "--json")
    try:
        assert process.stdout is not None
        process.stdout.readline()
        grpc_address = json.loads(process.stdout.readline())["value"]
        url = urllib.parse.urlparse(json.loads(process.stdout.readline())["value"])
        assert url.hostname
        assert url.port

        def count(name: str) -> float:
            rows = [line for line in get(url.geturl() + "/metrics").splitlines() if line.startswith(name)]
            return float(rows[0].split()[-1])

        def wait_until(name: str, value: float) -> None:
            end = time.monotonic() + 20
            while count(name) != value:
                assert time.monotonic() < end, f"{name} never became {value}"
                time.sleep(0.005)

        x = np.ones((800, 1), np.float32)
        with ThreadPoolExecutor(3) as pool, tritonclient.grpc.InferenceServerClient(grpc_address) as client:
            first = pool.submit(post, url.geturl() + "/v2/models/slow/infer", x)
            wait_until("headrace_queue_requests{", 1)
            tensor = {"name": "x", "shape": [800, 1], "datatype": "FP32", "data": [1.0] * 800}
            body = json.dumps({"inputs": [tensor]}).encode()
            head = f"POST /v2/models/slow/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
            with socket.create_connection((url.hostname, url.port)) as leaver:
                leaver.sendall(head.encode() + body)
                wait_until("headrace_requests_accepted_total{", 2)
            wait_until('headrace_requests_total{model="slow",outcome="cancelled"', 1)
            assert not first.done(), "the model was too fast for a queue to form"
            last = pool.submit(post, url.geturl() + "/v2/models/slow/infer", x)
            wait_until("headrace_requests_accepted_total{", 3)
            given = tritonclient.grpc.InferInput("x", [800, 1], "FP32")
            given.set_data_from_numpy(x)
            over_grpc = pool.submit(client.infer, "slow", [given])
            wait_until("headrace_requests_accepted_total{", 4)
            process.send_signal(signal.SIGTERM)
            assert first.result(120)[0] == last.result(120)[0] == 200
            got = over_grpc.result(120).as_numpy("y")
            assert got.ravel().tolist() == last.result()[1]["outputs"][0]["data"]
        assert process.wait(60) == 0
    finally:
        stop(process)


def test_sigterm_is_a_clean_exit_and_json_lines_are_json(tmp_path: Path) -> None:
    save_model(tmp_path / "m/1/model.onnx")
    process = start(tmp_path, "--json")
    try:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline()) == {"event": "loading", "value": "m version 1"}
        assert json.loads(process.stdout.readline())["event"] == "grpc"
        ready = json.loads(process.stdout.readline())
        assert ready["event"] == "ready"
        assert json.loads(get(ready["value"] + "/v2/health/ready")) == {"ready": True}
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30)
        assert (process.returncode, out, err) == (0, "", "")
    finally:
        stop(process)


def test_a_new_version_is_loaded_into_a_running_server_by_who_has_the_token(tmp_path: Path) -> None:
    repository, token = tmp_path / "models", "0123456789abcdef"
    save_model(repository / "m/1/model.onnx")
    (tmp_path / "token").write_text(token)
    process = start(repository, "--no-grpc", "--admin-token-file", str(tmp_path / "token"))
    try:
        assert process.stdout is not None
        process.stdout.readline()
        host = process.stdout.readline().removeprefix("ready: http://").strip()
        with tritonclient.http.InferenceServerClient(host) as client:
            reference = ReferenceEvaluator(save_model(repository / "m/2/model.onnx", 2.0))
            with pytest.raises(tritonclient.http.InferenceServerException, match="got no valid token"):
                client.load_model("m")
            headers = {"authorization": f"Bearer {token}"}
            client.load_model("m", headers=headers)
            index = client.get_model_repository_index(headers=headers)
            assert index == [{"name": "m", "version": "2", "state": "READY", "reason": ""}]
            x = np.ones((1, 30), np.float32)
            given = tritonclient.http.InferInput("x", [1, 30], "FP32")
            given.set_data_from_numpy(x)
            got = client.infer("m", [given]).as_numpy("p")
            np.testing.assert_allclose(got, reference.run(None, {"x": x})[0], atol=1e-6)
            (stats,) = client.get_inference_statistics("m")["model_stats"]
            assert stats["inference_stats"]["success"]["count"] == 1
            metadata = client.get_model_metadata("m")
            assert metadata["parameters"]["parity"].endswith("0.001 allowed")
            client.unload_model("m", headers=headers)
            assert not client.is_model_ready("m")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        stop(process)


def test_a_model_that_cannot_be_loaded_ends_the_start_with_one_message(tmp_path: Path) -> None:
    (tmp_path / "m/1").mkdir(parents=True)
    (tmp_path / "m/1/model.onnx").write_bytes(b"this is no model")
    process = start(tmp_path)
    try:
        out, err = process.communicate(timeout=60)
    finally:
        stop(process)
    assert process.returncode == 1
    assert "ready" not in out
    assert err.startswith("headrace: InvalidModel: ")
    assert "Traceback" not in err
