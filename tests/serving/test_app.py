"""What every request meets: the key, limits, metrics, clients that leave, and failing calls."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from pom_export.errors import InputError
from pom_export.serving.service import Service
from pom_export.serving.settings import ServeSettings
from tests.serving.running import Running, running, wait_until
from tests.streaming_graphs import CHANNELS, VOCABULARY, running_sum_model

KEY = "a key"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return running_sum_model(tmp_path_factory.mktemp("serve") / "m.onnx", claimed=VOCABULARY + 1)


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[Running]:
    with running(model, api_key=KEY, streams=2, queue=1) as running_server:
        yield running_server


def error_of(response: httpx.Response, status: int) -> Any:
    assert response.status_code == status, response.text
    return response.json()["error"]


def test_a_key_opens_all_but_the_state_of_the_server(server: Running) -> None:
    with httpx.Client(base_url=server.client.base_url, trust_env=False) as stranger:
        assert stranger.get("/health").status_code == stranger.get("/ready").status_code == 200
        for path in ("/v1/models", "/metrics", "/v1/steps", "/nothing"):
            for value in (None, "", "Bearer", f"Bearer {KEY}x", f"Basic {KEY}", "Bearer \xff"):
                headers = {} if value is None else {"authorization": value.encode("latin-1")}
                assert "key" in error_of(stranger.get(path, headers=headers), 401)["message"]
        assert stranger.get("/v1/models", headers={"authorization": f"bearer {KEY}"}).status_code == 200


def test_only_requests_that_call_the_server_by_its_name_are_answered(model: Path) -> None:
    with running(model, hosts=("127.0.0.1", "::1", "models.example")) as server:
        port = server.client.base_url.port
        for name in (f"127.0.0.1:{port}", "127.0.0.1", "[::1]:80", "[::1]", "Models.Example", "models.example:443"):
            assert server.client.get("/v1/models", headers={"host": name}).status_code == 200, name
        for name in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "", "[", "127.0.0.1:x"):
            for path in ("/", "/health", "/v1/models"):
                message = error_of(server.client.get(path, headers={"host": name}), 421)["message"]
                assert message.startswith(f"this server is not '{name.removesuffix(f':{port}')}'".replace("[", ""))


def test_the_model_is_described(server: Running) -> None:
    (described,) = server.client.get("/v1/models").json()["data"]
    assert described == server.client.get("/v1/models/m").json()
    assert (described["id"], described["object"]) == ("m", "model")
    assert described["state_bytes"] == server.service.model.pool.metrics().state_bytes
    assert error_of(server.client.get("/v1/models/other"), 404)["message"] == (
        "there is no model 'other'. This server has 'm'"
    )


def test_unknown_paths_and_methods_get_the_same_shape(server: Running) -> None:
    assert error_of(server.client.get("/v2"), 404)["type"] == "invalid_request_error"
    response = server.client.get("/v1/steps")
    error_of(response, 405)
    assert response.headers["allow"] == "POST"


def samples(text: str) -> dict[str, float]:
    """Return a page's samples, having checked every line of it as Prometheus' text format wants it."""
    found: dict[str, float] = {}
    kinds: dict[str, str] = {}
    for line in text.removesuffix("\n").split("\n"):
        head = re.fullmatch(r"# (HELP|TYPE) ([a-z_]+) (.+)", line)
        if head is not None:
            assert head[1] == "HELP" or head[3] in ("gauge", "counter", "histogram")
            kinds[head[2]] = head[3]
            continue
        sample = re.fullmatch(r'([a-z_]+)(\{(?:[a-z]+="(?:[^"\\\n]|\\.)*",?)+\})? ([-+.e0-9]+)', line)
        assert sample is not None, line
        family = re.sub(r"_(bucket|sum|count)$", "", sample[1])
        assert sample[1] in kinds or kinds[family] == "histogram"
        assert sample[1] + (sample[2] or "") not in found
        found[sample[1] + (sample[2] or "")] = float(sample[3])
    assert all(name.endswith("_total") == (kind == "counter") for name, kind in kinds.items())
    return found


def test_metrics_count_what_happened(model: Path) -> None:
    with running(model) as fresh:
        for _ in range(3):
            fresh.steps([1, 2, 3, 4], session="s")
        fresh.client.post("/v1/steps", content=b"x")
        fresh.client.get("/nowhere")
        found = samples(fresh.client.get("/metrics").text)
    assert found["pom_tokens_total"] == 12
    assert found['pom_requests_total{path="/v1/steps",status="200"}'] == 3
    assert found['pom_requests_total{path="/v1/steps",status="415"}'] == 1
    assert found['pom_requests_total{path="other",status="404"}'] == 1
    assert found["pom_batch_rows_count"] == found['pom_batch_rows_bucket{le="1"}'] == 3
    assert found["pom_first_token_seconds_count"] == found['pom_first_token_seconds_bucket{le="+Inf"}'] == 3
    assert found["pom_next_token_seconds_count"] == 0
    assert found["pom_sessions"] == 1
    assert found["pom_session_bytes"] > CHANNELS * 2 * 4
    assert (found["pom_streams"], found["pom_streams_limit"]) == (0, 64)


def test_a_failing_call_fails_its_own_request(server: Running) -> None:
    error = error_of(server.steps([1, VOCABULARY], session="s"), 500)
    assert error["code"] == "call_failed"
    assert error["type"] == "server_error"
    assert server.steps([1], session="s").json()["length"] == 1


class Held:
    """Keeps the worker's thread busy, so that requests wait."""

    def __init__(self, server: Running) -> None:
        self._free, self._begun = threading.Event(), threading.Event()
        self._worker = server.service.model.worker

    def __enter__(self) -> None:
        self._worker.run(self._wait)
        assert self._begun.wait(30)

    def _wait(self) -> None:
        self._begun.set()
        assert self._free.wait(30)

    def __exit__(self, *_: object) -> None:
        self._free.set()


def raw_request(server: Running, body: bytes) -> socket.socket:
    """Return a connection over which a request for steps was sent."""
    connection = socket.create_connection(server.address)
    head = f"POST /v1/steps HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {KEY}\r\n"
    head += "content-type: application/json\r\n"
    connection.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
    return connection


def test_a_full_server_says_so_and_frees_what_clients_leave(server: Running) -> None:
    streams = lambda: server.service.model.pool.metrics().streams  # noqa: E731
    with Held(server):
        running_ones = [raw_request(server, b'{"inputs": [1, 2, 3], "session": "gone"}')]
        wait_until(lambda: streams() == 1)
        busy = error_of(server.steps([1], session="gone"), 409)
        assert busy["code"] == "session_busy"
        running_ones += [raw_request(server, b'{"inputs": [1, 2, 3]}')]
        wait_until(lambda: streams() == 2)
        waiting = raw_request(server, b'{"inputs": [1]}')
        wait_until(lambda: server.service.model.places.waiting == 1)
        response = server.steps([1])
        assert error_of(response, 429)["code"] == "full"
        assert int(response.headers["retry-after"]) > 0
        waiting.close()
        wait_until(lambda: server.service.model.places.waiting == 0)
        for connection in running_ones:
            connection.close()
        wait_until(lambda: streams() == 0)
    assert server.steps([1], session="gone", after=0).status_code == 200
    wait_until(lambda: server.service.requests == 0)
    assert server.service.metrics.requests["/v1/steps", 499] == 3


def test_a_draining_server_takes_nothing_new_and_finishes_the_rest(model: Path) -> None:
    with running(model) as server:
        answers: list[httpx.Response] = []
        with Held(server):
            asking = threading.Thread(target=lambda: answers.append(server.steps([1])))
            asking.start()
            wait_until(lambda: server.service.model.pool.metrics().streams == 1)
            server.service.draining = True
            response = server.steps([1])
            assert "ending" in error_of(response, 503)["message"]
            assert int(response.headers["retry-after"]) > 0
            assert server.client.get("/ready").status_code == 503
            assert server.client.get("/health").status_code == server.client.get("/metrics").status_code == 200
        asking.join()
        assert answers[0].status_code == 200


def test_a_server_that_stops_fails_what_waits(model: Path) -> None:
    with running(model) as server:
        answers: list[httpx.Response] = []
        with Held(server):
            asking = threading.Thread(target=lambda: answers.append(server.steps(np.ones(4000, int))))
            asking.start()
            wait_until(lambda: server.service.model.pool.metrics().streams == 1)
            stopping = threading.Thread(target=server.service.model.stop)
            stopping.start()
            wait_until(lambda: not server.service.model.worker.alive)
        stopping.join()
        asking.join()
        assert error_of(answers[0], 503)["code"] == "ending"
        assert server.client.get("/health").status_code == 503


@pytest.mark.parametrize(
    ("graph", "settings", "message"),
    [
        ({"kind": None}, {}, "m.onnx keeps no state"),
        ({"attention": True}, {}, "m.onnx keeps past_key_values.0.key, which grows"),
        ({"positions": True}, {}, "m.onnx takes positions besides tokens"),
        ({"vocabulary": 100}, {"tokenizer": "bytes"}, "the tokenizer bytes has 256 tokens, but m.onnx has 100"),
        ({"ids": False}, {"tokenizer": "bytes"}, "m.onnx takes no ids"),
        ({}, {"streams": 0}, "streams is 0, not a whole number of at least 1"),
        ({}, {"session_seconds": float("nan")}, "session_seconds is nan"),
        ({}, {"api_key": ""}, "the key is empty"),
    ],
)  # fmt: skip
def test_what_cannot_be_served_is_refused_at_the_start(graph: Any, settings: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        Service(running_sum_model(tmp_path / "m.onnx", **graph), ServeSettings(**settings))


def test_a_vocabulary_without_a_known_tokenizer_is_served_as_ids(tmp_path: Path) -> None:
    service = Service(running_sum_model(tmp_path / "m.onnx", vocabulary=100), ServeSettings())
    assert (service.tokenizer, service.vocabulary) == (None, 100)
