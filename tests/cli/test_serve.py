"""`pom-export serve`: where it listens, how it ends, and what it refuses."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from pom_export import StreamingSession
from pom_export.cli import serve
from pom_export.cli.main import run
from pom_export.errors import InputError
from pom_export.serving.settings import ServeSettings
from tests.serving.running import wait_until
from tests.streaming_graphs import CHANNELS, running_sum_model

CODE = (
    "import sys; from pom_export.cli.main import main\n"
    "try: main()\n"
    "finally: assert 'torch' not in sys.modules, 'it loads torch'"
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return running_sum_model(tmp_path / "m.onnx")


@contextmanager
def serving(model: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    """Start the command on a free port; yield the process and a client."""
    command = [sys.executable, "-c", CODE, "serve", str(model), "--port", "0", "--json", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.communicate()
        with httpx.Client(base_url=json.loads(line)["url"], timeout=60, trust_env=False) as client:
            yield process, client
    finally:
        process.kill()
        process.communicate()


def step(client: httpx.Client, inputs: list[Any], **fields: Any) -> Any:
    response = client.post("/v1/steps", json={"inputs": inputs, **fields})
    assert response.status_code == 200, response.text
    return response.json()


def test_a_signal_lets_a_request_finish_and_sessions_go_on_at_the_next_start(model: Path, tmp_path: Path) -> None:
    options = ("--sessions", str(tmp_path / "sessions"))
    with serving(model, *options) as (process, client):
        assert client.base_url.host == "127.0.0.1"
        step(client, [1, 2], session="s")
        body = b'{"inputs": [3], "session": "s"}'
        with socket.create_connection((client.base_url.host, client.base_url.port or 0)) as connection:
            connection.sendall(
                b"POST /v1/steps HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n"
                + f"content-length: {len(body)}\r\n\r\n".encode() + body[:9]
            )  # fmt: skip
            wait_until(lambda: "pom_running_requests 1" in client.get("/metrics").text)
            process.send_signal(signal.SIGTERM)
            wait_until(lambda: client.get("/ready").status_code == 503)
            assert client.post("/v1/steps", json={"inputs": [1]}).status_code == 503
            assert client.get("/health").status_code == 200
            connection.sendall(body[9:])
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 200 OK")
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 128 + signal.SIGTERM, errors
        assert errors.splitlines()[-1] == "pom-export: terminated"
        assert f"saved in {options[1]}: 1 session\n" in errors
    with serving(model, *options) as (process, client):
        assert not any((tmp_path / "sessions").glob("*.npz"))
        found = step(client, [4], session="s", after=3)["outputs"]
        np.testing.assert_array_equal(found, StreamingSession(model).prefill_last([1, 2, 3, 4])[0])
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 128 + signal.SIGINT


def test_two_servers_do_not_share_a_folder_of_sessions(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--sessions", str(tmp_path / "sessions"))
    with serving(model, *options):
        assert run(["serve", str(model), "--port", "0", *options]) == 2
        assert "another server keeps its sessions in" in capsys.readouterr().err


def test_a_second_signal_cuts_off_what_runs(model: Path) -> None:
    with (
        serving(model, "--finish-seconds", "600") as (process, client),
        socket.create_connection((client.base_url.host, client.base_url.port or 0)) as connection,
    ):
        connection.sendall(b"POST /v1/steps HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n")
        connection.sendall(b"content-length: 100\r\n\r\n{")
        wait_until(lambda: "pom_running_requests 1" in client.get("/metrics").text)
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: client.get("/ready").status_code == 503)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str], says: str) -> None:
    assert run(["serve", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = [line for line in captured.err.splitlines() if line.startswith("pom-export: error: ")]
    assert len(lines) == 1, captured.err
    assert says in lines[0]


def test_what_cannot_be_served_is_refused(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = running_sum_model(tmp_path / "plain.onnx", kind=None)
    refused([str(plain), "--port", "0"], capsys, "plain.onnx keeps no state. Export it with --stateful")
    refused([str(tmp_path / "none.onnx"), "--port", "0"], capsys, "none.onnx does not exist")
    small = running_sum_model(tmp_path / "small.onnx", vocabulary=100)
    refused([str(small), "--port", "0", "--tokenizer", "bytes"], capsys, "has 256 tokens, but small.onnx has 100")
    refused([str(model), "--port", "0", "--sessions", str(tmp_path / "a" / "b")], capsys, "does not exist")
    refused([str(model), "--port", "0", "--engine", str(tmp_path / "m.engine")], capsys, "m.engine does not exist")
    refused([str(model), "--host", "192.0.2.1"], capsys, "cannot listen on 192.0.2.1 port 8000")
    refused([str(model), "--host", "nowhere.invalid"], capsys, "'nowhere.invalid' is no address")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        refused([str(model), "--port", port], capsys, f"cannot listen on 127.0.0.1 port {port}: Address already in use")


def test_sessions_of_another_model_are_refused(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "sessions"
    folder.mkdir()
    other = StreamingSession(running_sum_model(tmp_path / "other.onnx", seed=1))
    other.snapshot().save(folder / "1.session.npz")
    refused([str(model), "--port", "0", "--sessions", str(folder)], capsys, "is not a saved session: session is None")
    refused([str(model), "--port", "0", "--sessions", str(folder)], capsys, "1.session.npz")
    (folder / "1.session.npz").write_bytes(b"damaged")
    refused([str(model), "--port", "0", "--sessions", str(folder)], capsys, "is not a complete state file")
    assert [file.name for file in folder.iterdir()] == ["1.session.npz"]


def test_missing_packages_are_named(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", None)
    refused([str(model)], capsys, "fastapi is not installed. Install it: pip install 'fastapi>=0.115'")


def test_models_of_numbers_get_an_example_of_numbers(tmp_path: Path) -> None:
    model = running_sum_model(tmp_path / "m.onnx", ids=False)
    command = [sys.executable, "-m", "pom_export", "serve", str(model), "--port", "0", "--host", "0.0.0.0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        lines = dict(process.stdout.readline().rstrip().split(None, 1) for _ in range(3))
        assert json.dumps([[0.0] * CHANNELS]) in lines["try"]
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert f"everyone who reaches {lines['address']} can use it" in errors


def test_names_that_requests_may_use(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    def service(_: str, settings: ServeSettings, *__: Any) -> None:
        given.append(settings.hosts)
        raise InputError("enough", "")

    monkeypatch.setattr(serve, "_service", service)
    own = {"localhost", "127.0.0.1", "::1"}
    for options, expected in (
        ([], own),
        (["--allow-host", "Models.example"], {*own, "models.example"}),
        (["--host", "127.0.0.2"], {*own, "127.0.0.2"}),
        (["--api-key", "k"], None),
        (["--host", "0.0.0.0"], None),
        (["--host", "0.0.0.0", "--allow-host", "a"], {"0.0.0.0", "a"}),
    ):
        assert run(["serve", str(model), "--port", "0", *options]) == 2
        assert (None if given[-1] is None else set(given[-1])) == expected
