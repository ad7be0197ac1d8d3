"""Ask a server for a while, well and badly, and see that its memory stays flat and its texts stay the same.

    python -m benchmarks.soak [--minutes 10] [--clients 16] [--model FILE] [--seed N]

`pom-export serve` runs in a process of its own. Clients ask for texts, whole and as events, in sessions and without;
ask for steps; leave in the middle; send what is no request; and ask for more than there is place for. It fails if

- an answer has a status that its request should not get, above all 5xx,
- the text of a request that is repeated differs from the first time,
- the server's resident memory has grown by more than 48 MiB from the end of the first fifth of the time to the largest
  of the last fifth: caches, sessions and allocators are full by then,
- an answer takes longer than two minutes,
- a stream, a request, a token or a place is left at the end, or a session in use, or the server does not end when it is
  told to.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

import pom_export

DEMO: Final = Path(__file__).parents[1] / "samples" / "checkpoints" / "byte_lm.safetensors"
_STREAMS: Final = 6
# Places and caches that so many clients fill soon.
_OPTIONS: Final = (
    "--port", "0", "--json", "--streams", str(_STREAMS), "--queue", "12", "--max-prompt", "20000", "--max-body", "1",
    "--prefix-memory", "4", "--max-sessions", "100", "--session-memory", "4", "--session-seconds", "20",
)  # fmt: skip
_GROWTH_MIB: Final = 48
_MEASUREMENTS: Final = 50
_SESSIONS: Final = 200
# Several times what the longest queue of the longest texts takes.
_ANSWER_SECONDS: Final = 120.0
# Nothing is left so soon after the last client.
_SETTLING_SECONDS: Final = 20.0
_HTTP_ERRORS: Final = 400
# How long a client that was refused a place waits at most.
_PATIENCE_SECONDS: Final = 0.5
_REFUSED: Final = {429, 503}
_SESSION: Final = {409, 410}
_NONSENSE: Final[Sequence[bytes]] = (
    b"", b"{", b"[]", b"null", b'{"prompt": 1}', b'{"prompt": "a", "max_tokens": -1}', b'{"prompt": "a", "tools": [1]}',
    b'{"prompt": "a", "temperature": NaN}', b'{"prompt": "a", "logprobs": 1e9}', b"[" * 10_000, b"\xff\xfe",
    b'{"prompt": [300]}', b'{"prompt": ""}', b'{"prompt": "a", "n": 100000}',
)  # fmt: skip


class SoakError(Exception):
    """The server did something that it must not do."""


@dataclass
class Soak:
    """Clients of a server.

    Attributes:
        port: the server's, on this machine.
        random: what the clients do.
        counts: number of answers, by what was done and the status.
        texts: the text that each repeated request got first.
    """

    port: int
    random: random.Random
    counts: Counter[tuple[str, int]] = field(default_factory=Counter)
    texts: dict[bytes, bytes] = field(default_factory=dict)

    async def client(self, until: float) -> None:
        """Do one thing after the other."""
        acts: Sequence[Callable[[], Coroutine[Any, Any, None]]] = (
            self.whole, self.events, self.session, self.steps, self.leaves, self.nonsense, self.repeated, self.too_much
        )  # fmt: skip
        while time.monotonic() < until:
            await self.random.choice(acts)()

    async def whole(self) -> None:
        """Ask for texts as they come."""
        fields = {"n": self.random.randint(1, 3), "logprobs": self.random.choice([None, 0, 3]), "stop": ["e "]}
        await self._expect("whole", self._text(**fields), {200})

    async def events(self) -> None:
        """Ask for a text as events."""
        await self._expect("events", self._text(stream=True), {200})

    async def session(self) -> None:
        """Continue one of some sessions."""
        await self._expect("session", self._text(session=f"s{self.random.randrange(_SESSIONS)}"), {200, *_SESSION})

    async def steps(self) -> None:
        """Ask for the outputs of some tokens."""
        inputs = [self.random.randrange(256) for _ in range(self.random.randint(1, 200))]
        body = {
            "inputs": inputs,
            "session": f"n{self.random.randrange(_SESSIONS)}",
            "every": self.random.random() < 0.2,
        }
        await self._expect("steps", json.dumps(body).encode(), {200, *_SESSION}, "/v1/steps")

    async def leaves(self) -> None:
        """Ask for a long text, and leave before its end."""
        body = self._text(stream=self.random.random() < 0.5, max_tokens=4000)
        async with _sent(self.port, _post(body, "/v1/completions")) as reader:
            await asyncio.sleep(self.random.random() * 0.2)
            if self.random.random() < 0.5:
                await reader.read(self.random.randint(1, 2000))
        self.counts["leaves", 0] += 1

    async def nonsense(self) -> None:
        """Send what is no request."""
        await self._expect("nonsense", self.random.choice(_NONSENSE), {400, 413, 422})

    async def repeated(self) -> None:
        """Ask for a text that was asked for before."""
        body = json.dumps({"prompt": "The with statement", "max_tokens": 40, "seed": self.random.randrange(5)}).encode()
        answer = await self._expect("repeated", body, {200})
        if answer:
            text = json.loads(answer)["choices"][0]["text"].encode()
            if self.texts.setdefault(body, text) != text:
                raise SoakError(f"a text was {self.texts[body]!r}, and now is {text!r}")

    async def too_much(self) -> None:
        """Ask with a prompt that is too long, or of too many bytes."""
        await self._expect("too much", self._text(prompt="a" * self.random.choice([30_000, 2_000_000])), {400, 413})

    def _text(self, **fields: Any) -> bytes:
        prompt = "".join(self.random.choices("abcdefg the\n", k=self.random.choice([1, 10, 300, 3000])))
        tokens, seed = self.random.randint(1, 100), self.random.randrange(2**32)
        given = {"prompt": prompt, "max_tokens": tokens, "seed": seed} | fields
        return json.dumps({name: value for name, value in given.items() if value is not None}).encode()

    async def _expect(self, what: str, body: bytes, statuses: set[int], path: str = "/v1/completions") -> bytes:
        """Return the answer to a request, if it was answered; raise SoakError for another status."""
        status, content = await _answer(self.port, _post(body, path))
        self.counts[what, status] += 1
        if status not in statuses | _REFUSED:
            raise SoakError(f"{what}: {body[:200]!r} got {status}: {content[:500]!r}")
        if status in _REFUSED:
            await asyncio.sleep(_PATIENCE_SECONDS * self.random.random())
        return content if status < _HTTP_ERRORS else b""


def _bare(method: str, path: str) -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()


def _post(body: bytes, path: str) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


@asynccontextmanager
async def _sent(port: int, request: bytes) -> AsyncIterator[asyncio.StreamReader]:
    """Send a request on a connection of its own; at the end of the block, the client leaves."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        yield reader
    finally:
        writer.transport.abort()
        with suppress(OSError):
            await writer.wait_closed()


async def _answer(port: int, request: bytes) -> tuple[int, bytes]:
    """Return the status and the content of an answer; raise SoakError if it takes too long."""
    async with _sent(port, request) as reader:
        try:
            answer = await asyncio.wait_for(reader.read(), _ANSWER_SECONDS)
        except ConnectionResetError:  # the server has not read all of a body that is too large
            answer = b"HTTP/1.1 413 "
        except asyncio.TimeoutError as error:
            raise SoakError(f"no answer in {_ANSWER_SECONDS:.0f} s to {request[:300]!r}") from error
    head, _, content = answer.partition(b"\r\n\r\n")
    return int(head.split(b" ", 2)[1]) if head else 0, content


async def metrics(port: int) -> dict[str, float]:
    """Return the server's numbers, without those that have labels."""
    _, content = await _answer(port, _bare("GET", "/metrics"))
    lines = [line.split(" ") for line in content.decode().splitlines() if line and line[0] != "#" and "{" not in line]
    return {name: float(value) for name, value in lines}


def resident_mib(process: int) -> float:
    """Return a process's resident memory in MiB."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


def growth(sizes: Sequence[float]) -> float:
    """Return by how much memory has grown from the end of the first fifth to the largest of the last fifth."""
    fifth = max(1, len(sizes) // 5)
    return max(sizes[-fifth:]) - max(sizes[:fifth])


async def asked(process: int, port: int, seconds: float, clients: int, seed: int) -> Soak:
    """Run the clients; return them.

    Raises:
        SoakError: the server did something that it must not do, or has grown.
    """
    soak, until = Soak(port, random.Random(seed)), time.monotonic() + seconds  # noqa: S311 (no secret)
    tasks = [asyncio.create_task(soak.client(until)) for _ in range(clients)]
    sizes: list[float] = []
    while not all(task.done() for task in tasks):
        await asyncio.wait(tasks, timeout=seconds / _MEASUREMENTS, return_when=asyncio.FIRST_EXCEPTION)
        for task in tasks:
            if task.done():
                task.result()
        if time.monotonic() < until:
            sizes.append(resident_mib(process))
            if len(sizes) % 5 == 1:
                print(f"{until - time.monotonic():6.0f} s left  {sum(soak.counts.values()):8} requests  "
                      f"{sizes[-1]:7.1f} MiB", flush=True)  # fmt: skip
    grown = growth(sizes)
    print(f"grown by {grown:.1f} MiB, from {sizes[0]:.1f} to {sizes[-1]:.1f} over all")
    if grown > _GROWTH_MIB:
        raise SoakError(f"the server has grown by {grown:.1f} MiB; at most {_GROWTH_MIB} are allowed")
    await _check_nothing_left(port)
    await check_free(port)
    return soak


async def _check_nothing_left(port: int) -> None:
    end = time.monotonic() + _SETTLING_SECONDS
    names = ("pom_streams", "pom_queue_requests", "pom_waiting_tokens", "pom_running_requests")
    while True:
        now = await metrics(port)
        left = {name: now[name] for name in names if now[name]}
        if not left:
            return
        if time.monotonic() > end:
            raise SoakError(f"left open: {left}")
        await asyncio.sleep(0.1)


async def check_free(port: int) -> None:
    """Raise SoakError unless all places can be taken at once, and no session is in use."""
    body = json.dumps({"prompt": "a", "max_tokens": 1, "n": _STREAMS}).encode()
    status, content = await _answer(port, _post(body, "/v1/completions"))
    if status != HTTPStatus.OK:
        raise SoakError(f"a request for all {_STREAMS} places got {status}: {content[:500]!r}")
    for name in (f"{kind}{number}" for kind in "sn" for number in range(_SESSIONS)):
        status, content = await _answer(port, _bare("DELETE", f"/v1/sessions/{name}"))
        if status != HTTPStatus.OK:
            raise SoakError(f"session {name} is left in use: {status} {content[:500]!r}")


def soaked(model: Path, seconds: float, clients: int, seed: int) -> Soak:
    """Serve a model, ask for so many seconds, and end the server.

    Raises:
        SoakError: see `asked`, or the server has not ended as it should.
    """
    command = [sys.executable, "-m", "pom_export", "serve", str(model), *_OPTIONS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            if not line:
                raise SoakError("the server has not started")
            port = int(json.loads(line)["url"].rpartition(":")[2])
            soak = asyncio.run(asked(server.pid, port, seconds, clients, seed))
            server.terminate()
            if (code := server.wait(60)) not in (-signal.SIGTERM, 128 + signal.SIGTERM):
                raise SoakError(f"the server has ended with exit code {code}")
        finally:
            server.kill()
    return soak


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--model", type=Path, help="a language model of bytes with a state; default: the demo's")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        model = given.model
        if model is None:
            model = Path(folder) / "stream.onnx"
            pom_export.export(DEMO, model, stateful=True)
        try:
            soak = soaked(model, 60 * given.minutes, given.clients, given.seed)
        except SoakError as error:
            print(f"failed: {error}")
            return 1
    for (what, status), count in sorted(soak.counts.items()):
        print(f"{count:8}  {what} {status or ''}")
    print("passed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
