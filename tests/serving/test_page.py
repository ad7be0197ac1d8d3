"""The page to try a model by hand, in a headless Chromium."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from pom_export import StreamingSession
from tests.serving.browser import page
from tests.serving.openai.conversation import write_model, write_tokenizer
from tests.serving.running import Running, running, wait_until
from tests.streaming_graphs import running_sum_model

PAGE = Path(__file__).parents[2] / "pom_export" / "serving" / "page.html"


def test_the_page_uses_nothing_from_elsewhere(tmp_path: Path) -> None:
    assert not re.search(r"(src|href)=(?!\"data:)|https?:|@import|url\(", PAGE.read_text())
    with running(running_sum_model(tmp_path / "m.onnx"), api_key="k") as server:
        del server.client.headers["authorization"]
        response = server.client.get("/")
    assert response.text == PAGE.read_text()
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert "connect-src 'self'" in response.headers["content-security-policy"]


def streams(server: Running) -> int:
    return server.service.model.pool.metrics().streams  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.machine
def test_texts_and_chats_in_a_browser(tmp_path: Path) -> None:
    tokenizer = write_tokenizer(tmp_path)
    with (
        running(write_model(tmp_path), tokenizer=str(tokenizer), api_key="secret") as server,
        page(str(server.client.base_url)) as opened,
    ):
        opened.wait("!document.getElementById('locked').hidden")
        opened.fill(key="secret")
        opened.value("document.getElementById('locked').requestSubmit()")
        opened.wait("!document.getElementById('tabs').hidden")
        assert opened.text("model") == "small"

        opened.fill(prompt="Once upon", temperature="60", seed="5", max_tokens="30")
        opened.click("continue")
        opened.wait("/^ended/.test(document.getElementById('text-status').textContent)")
        fields = {"prompt": "Once upon", "temperature": 60, "seed": 5, "max_tokens": 30}
        expected = server.client.post("/v1/completions", json=fields).json()
        assert opened.text("continued") == "Once upon" + expected["choices"][0]["text"]
        assert f"{expected['usage']['completion_tokens']} tokens" in opened.text("text-status")
        assert "10 read, 0 known; seed 5" in opened.text("text-status")

        opened.fill(temperature="0", max_tokens="16000")
        opened.click("continue")
        opened.wait("document.getElementById('continued').textContent.length > 20")
        assert opened.text("text-status") == "writing ..."
        opened.click("stop-text")
        opened.wait("document.getElementById('text-status').textContent === 'stopped'")
        wait_until(lambda: streams(server) == 0)

        opened.fill(temperature="-1")
        opened.click("continue")
        opened.wait("document.getElementById('text-status').className === 'error'")
        assert "must be 0 or more" in opened.text("text-status")

        opened.choose("chat")
        opened.fill(temperature="4", top_p="0.5", max_tokens="9", session="talk")
        for message in ("Hello", "Go on"):
            opened.fill(message=message)
            opened.click("send")
            opened.wait("/^ended/.test(document.getElementById('chat-status').textContent)")
            opened.wait("!document.getElementById('send').disabled")
        said = opened.value("[...document.querySelectorAll('.said span')].map((each) => each.textContent)")
        assert [said[0], said[2]] == ["Hello", "Go on"]
        messages = [
            {"role": role, "content": text} for role, text in zip(("user", "assistant", "user"), said[:3], strict=True)
        ]
        fields = {"messages": messages, "temperature": 4, "top_p": 0.5, "seed": 5, "max_tokens": 9}
        alone = server.client.post("/v1/chat/completions", json=fields).json()
        assert said[3] == alone["choices"][0]["message"]["content"]
        # What it was refused for is the only thing that the browser has to say.
        assert all("400" in problem or "401" in problem for problem in opened.problems), opened.problems


@pytest.mark.slow
@pytest.mark.machine
def test_numbers_in_a_browser(tmp_path: Path) -> None:
    model = running_sum_model(tmp_path / "x.onnx", ids=False)
    with running(model) as server, page(str(server.client.base_url)) as opened:
        opened.wait("!document.getElementById('tabs').hidden")
        opened.fill(**{"steps-session": "s"})
        given = np.arange(16, dtype=np.float32).reshape(2, 8)
        expected = StreamingSession(model).prefill(np.stack([given]))[0]
        for row in range(2):
            opened.fill(inputs=json.dumps(given[row : row + 1].tolist()))
            opened.click("run")
            opened.wait(f"document.getElementById('steps-status').textContent === '{row + 1} tokens seen'")
            np.testing.assert_array_equal(json.loads(opened.text("outputs")), expected[row])
        opened.fill(inputs="[1")
        opened.click("run")
        opened.wait("document.getElementById('steps-status').className === 'error'")
        assert opened.problems == []
