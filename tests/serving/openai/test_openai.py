"""OpenAI's protocol, asked by its own package and by curl."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from pom_export import StreamingSession
from pom_export.text import Generation, Sampling, Settings, choose_tokenizer
from tests.serving.openai.conversation import write_model, write_tokenizer
from tests.serving.running import Running, running, wait_until
from tests.streaming_graphs import running_sum_model

PROMPT = "Once upon a time"
# So warm that any token occurs.
WARM: dict[str, Any] = {"temperature": 60.0, "seed": 5}
ASKED = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
RENDERED = "<s><|system|>Be brief.</s><|user|>Hello</s><|assistant|>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    write_tokenizer(folder)
    write_model(folder)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Running]:
    with running(folder / "small.onnx", tokenizer=str(folder / "tokenizer.json"), streams=4, most_answer=500) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[openai.OpenAI]:
    base = str(server.client.base_url).rstrip("/")
    direct = openai.DefaultHttpxClient(trust_env=False)
    with openai.OpenAI(base_url=f"{base}/v1", api_key="any", max_retries=0, http_client=direct) as client:
        yield client


@pytest.fixture
def completions(client: openai.OpenAI) -> Any:
    return client.completions


@pytest.fixture
def chat(client: openai.OpenAI) -> Any:
    return client.chat.completions


def generated(folder: Path, prompt: str, most: int, *stops: str, **sampling: Any) -> str:
    """Return what `generate` makes of a prompt; an end token ends it as a stop does."""
    tokenizer = choose_tokenizer(str(folder / "tokenizer.json"), 264)
    settings = Settings(Sampling(**sampling), tokenizer.name, ("</s>", *stops))
    generation = Generation(StreamingSession(folder / "small.onnx"), tokenizer, settings)
    generation.prompt(prompt)
    while generation.advance(most):
        pass
    generation.finish()
    return generation.take()


def test_a_completion_is_what_generate_gives(completions: Any, folder: Path) -> None:
    expected = generated(folder, PROMPT, 60, **WARM)
    whole = completions.create(model="small", prompt=PROMPT, max_tokens=60, **WARM)
    assert whole.choices[0].text == expected
    assert (whole.object, whole.model, whole.seed) == ("text_completion", "small", 5)
    assert whole.choices[0].finish_reason in ("length", "stop")
    assert (whole.usage.prompt_tokens, whole.usage.total_tokens) == (17, 17 + whole.usage.completion_tokens)
    events = list(
        completions.create(
            model="small", prompt=PROMPT, max_tokens=60, stream=True, stream_options={"include_usage": True}, **WARM
        )
    )
    assert "".join(event.choices[0].text for event in events[:-1]) == expected
    reasons = [event.choices[0].finish_reason for event in events[:-1]]
    assert reasons == [None] * (len(reasons) - 1) + [whole.choices[0].finish_reason]
    assert (events[-1].choices, events[-1].usage.completion_tokens) == ([], whole.usage.completion_tokens)
    assert events[-1].usage.prompt_tokens_details.cached_tokens == 17  # it was read before


def test_sampling_and_stops(completions: Any, folder: Path) -> None:
    fields: dict[str, Any] = {"temperature": 3.0, "top_p": 0.9, "seed": 7}
    free = generated(folder, PROMPT, 40, top_k=50, **fields)
    stop = free[10:12]
    found = completions.create(
        model="small", prompt=PROMPT, max_tokens=40, stop=["never", stop], extra_body={"top_k": 50}, **fields
    )
    assert (found.choices[0].text, found.choices[0].finish_reason) == (free[: free.index(stop)], "stop")
    random = [completions.create(model="small", prompt=PROMPT, temperature=60.0) for _ in range(2)]
    assert random[0].seed != random[1].seed
    assert random[0].usage.completion_tokens <= 16
    again = completions.create(model="small", prompt=PROMPT, temperature=60.0, seed=random[0].seed)
    assert again.choices[0].text == random[0].choices[0].text


def test_several_answers_to_several_prompts(completions: Any, folder: Path) -> None:
    prompts = [PROMPT, "tree"]
    found = completions.create(model="small", prompt=prompts, n=2, max_tokens=9, echo=True, stop="zz", **WARM)
    expected = [
        prompt + generated(folder, prompt, 9, "zz", temperature=60.0, seed=seed)
        for prompt in prompts
        for seed in (5, 6)
    ]
    assert [choice.text for choice in found.choices] == expected
    assert [choice.index for choice in found.choices] == [0, 1, 2, 3]
    assert found.usage.prompt_tokens == 17 + 5
    ids = choose_tokenizer(str(folder / "tokenizer.json"), 264).encode("tree")
    streamed = [""] * 2
    for event in completions.create(
        model="small", prompt=ids, n=2, max_tokens=9, echo=True, stop="zz", stream=True, **WARM
    ):
        streamed[event.choices[0].index] += event.choices[0].text
    assert streamed == [f"<s>{text}" for text in expected[2:]]


def test_logprobs(completions: Any, chat: Any) -> None:
    found = completions.create(model="small", prompt="ab", max_tokens=3, temperature=0, echo=True, logprobs=2)
    told = found.choices[0].logprobs
    assert told.tokens[:3] == ["<s>", "a", "b"]
    assert told.text_offset[:4] == [0, 0, 1, 2]
    assert told.token_logprobs[0] is None
    assert all(logprob <= 0 for logprob in told.token_logprobs[1:])
    for name, logprob, likeliest in zip(told.tokens[3:], told.token_logprobs[3:], told.top_logprobs[3:], strict=True):
        assert (name, logprob) == next(iter(likeliest.items()))
        assert len(likeliest) == 2
    silent = completions.create(model="small", prompt="ab", max_tokens=3, temperature=0)
    assert silent.choices[0].logprobs is None
    answer = chat.create(model="small", messages=ASKED, max_tokens=4, logprobs=True, top_logprobs=3, **WARM).choices[0]
    assert len(answer.logprobs.content) == 4
    for token in answer.logprobs.content:
        assert len(token.top_logprobs) == 3
        assert token.bytes is None or bytes(token.bytes).decode() == token.token


def test_an_answer_in_a_chat_is_the_completion_of_the_rendered_messages(
    chat: Any, folder: Path, completions: Any
) -> None:
    tokenizer = choose_tokenizer(str(folder / "tokenizer.json"), 264)
    ids = tokenizer.encode(RENDERED, begins=False)
    expected = completions.create(model="small", prompt=ids, max_tokens=300, **WARM)
    whole = chat.create(model="small", messages=ASKED, max_completion_tokens=300, **WARM)
    assert (whole.choices[0].message.role, whole.choices[0].message.content) == ("assistant", expected.choices[0].text)
    assert whole.choices[0].finish_reason == expected.choices[0].finish_reason
    assert whole.usage.prompt_tokens == len(ids)
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    events = list(
        chat.create(
            model="small",
            messages=[{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}],
            max_tokens=300,
            stream=True,
            **WARM,
        )
    )
    assert events[0].choices[0].delta.role == "assistant"
    assert "".join(event.choices[0].delta.content or "" for event in events) == whole.choices[0].message.content


def test_an_end_token_ends_the_text(completions: Any, folder: Path) -> None:
    # With this seed, it comes soon.
    for seed in range(40):
        found = completions.create(model="small", prompt=PROMPT, max_tokens=40, temperature=60.0, seed=seed)
        if found.choices[0].finish_reason == "stop":
            break
    assert found.usage.completion_tokens < 40
    assert "</s>" not in found.choices[0].text
    assert found.choices[0].text == generated(folder, PROMPT, 40, temperature=60.0, seed=seed)


def test_a_session_reads_only_what_is_new(completions: Any) -> None:
    first = completions.create(model="small", prompt=PROMPT, max_tokens=20, extra_body={"session": "s"}, **WARM)
    second = completions.create(
        model="small", prompt=" and then", max_tokens=20, extra_headers={"x-session-id": "s"}, stop="q", **WARM
    )
    assert second.session == "s"
    # 17 and 19 tokens have been read; the last one chosen, and 9 more, had not been.
    usage = second.usage
    assert (usage.prompt_tokens, usage.prompt_tokens_details.cached_tokens) == (17 + 20 + 9, 17 + 19)
    whole = PROMPT + first.choices[0].text + " and then"
    if "\ufffd" not in whole:
        expected = completions.create(model="small", prompt=whole, max_tokens=20, stop="q", **WARM)
        assert second.choices[0].text == expected.choices[0].text


COOL: dict[str, Any] = {"temperature": 4.0, "seed": 3, "top_p": 0.5, "max_tokens": 12}


@pytest.mark.parametrize("everything", [False, True])
def test_a_chat_in_a_session_is_the_chat_without_one(everything: bool, server: Running, chat: Any) -> None:
    session = {"session": f"chat-{everything}"}
    said = list(ASKED)
    first = chat.create(model="small", messages=said, extra_body=session, **COOL)
    said.append({"role": "assistant", "content": first.choices[0].message.content})
    new = [{"role": "user", "content": "Go on"}]
    said += new
    expected = chat.create(model="small", messages=said, **COOL)
    before = server.service.model.pool.metrics().tokens  # type: ignore[attr-defined]
    second = chat.create(model="small", messages=said if everything else new, extra_body=session, **COOL)
    read = server.service.model.pool.metrics().tokens - before  # type: ignore[attr-defined]
    assert second.choices[0].message.content == expected.choices[0].message.content
    assert second.usage.prompt_tokens == expected.usage.prompt_tokens
    unread = second.usage.prompt_tokens - second.usage.prompt_tokens_details.cached_tokens
    assert read == unread + second.usage.completion_tokens - 1
    assert "\ufffd" in first.choices[0].message.content or unread < 20
    third = chat.create(
        model="small", messages=[{"role": "user", "content": "!"}], extra_body=session, stream=True, **COOL
    )
    assert list(third)[-1].choices[0].finish_reason in ("stop", "length")
    with pytest.raises(openai.ConflictError, match="the messages have answers that are not the session's"):
        chat.create(model="small", messages=said, extra_body=session, **COOL)


def test_a_session_of_another_kind_is_refused(server: Running, completions: Any, chat: Any) -> None:
    server.steps([1, 2], session="numbers")
    with pytest.raises(openai.ConflictError, match="session numbers goes on with numbers"):
        completions.create(model="small", prompt=PROMPT, extra_body={"session": "numbers"})
    completions.create(model="small", prompt=PROMPT, extra_body={"session": "text"})
    with pytest.raises(openai.ConflictError, match="session text is no chat"):
        chat.create(model="small", messages=ASKED, extra_body={"session": "text"})
    assert server.steps([1], session="text").status_code == 200


BAD: list[tuple[str, dict[str, Any], int, str]] = [
    ("completions", {}, 400, "prompt: Field required"),
    ("completions", {"prompt": 3}, 400, "prompt: Input should be a text, token ids, or a list of either"),
    ("completions", {"prompt": ["a", [1]], "n": 200}, 400, "n: Input should be less than or equal to 128"),
    ("completions", {"prompt": [[300]]}, 400, "300 is not one of the model's 261 tokens"),
    ("completions", {"prompt": [-1]}, 400, "-1 is not one of"),
    ("completions", {"prompt": []}, 400, "the prompt is empty"),
    ("completions", {"prompt": "\ud800"}, 400, "half of a character"),
    ("completions", {"prompt": "a", "tools": [{}]}, 400, "the field tools is not supported"),
    ("completions", {"prompt": "a", "best_of": 3}, 400, "the field best_of is not supported"),
    ("completions", {"prompt": "a", "logit_bias": {"1": 2}}, 400, "the field logit_bias is not supported"),
    ("completions", {"prompt": "a", "suffix": "b"}, 400, "the field suffix is not supported"),
    ("completions", {"prompt": "a", "nonsense": 1}, 400, "the field nonsense is not supported"),
    ("completions", {"prompt": "a", "temperature": "1"}, 400, "temperature: Input should be a valid number"),
    ("completions", {"prompt": "a", "temperature": -1}, 400, "`temperature` must be 0 or more, got -1.0"),
    ("completions", {"prompt": "a", "seed": 2**64}, 400, "seed: Input should be less than"),
    ("completions", {"prompt": "a", "max_tokens": True}, 400, "max_tokens: Input should be a valid integer"),
    ("completions", {"prompt": "a", "max_tokens": 501}, 400, "max_tokens is 501, more than the server's 500"),
    ("completions", {"prompt": "a", "n": 5}, 400, "5 streams are more than the server's 4"),
    ("completions", {"prompt": "a", "stop": [""]}, 400, "a stop text is empty"),
    ("completions", {"prompt": "a", "stop": 5}, 400, "stop: Input should be a valid list"),
    ("completions", {"prompt": "a", "logprobs": 21}, 400, "logprobs: Input should be less than or equal to 20"),
    ("completions", {"prompt": "a", "model": "gpt"}, 404, "there is no model 'gpt'. This server has 'small'"),
    ("completions", {"prompt": "a", "stream_options": {}}, 400, "stream_options are for answers that stream"),
    ("completions", {"prompt": "a", "session": "?"}, 400, "session is '?'"),
    ("completions", {"prompt": "a", "session": "s", "n": 2}, 400, "n is 2, but a session has one answer"),
    ("completions", {"prompt": ["a", "b"], "session": "s"}, 400, "a session goes on with one prompt"),
    ("completions", {"prompt": "a" * 200_000}, 413, "200001 tokens are more than the 131072 of a request"),
    ("chat/completions", {}, 400, "messages: Field required"),
    ("chat/completions", {"messages": []}, 400, "messages: List should have at least 1 item"),
    ("chat/completions", {"messages": [{"role": "user"}]}, 400, "messages.0.content: Field required"),
    ("chat/completions", {"messages": [{"role": "tool", "content": "a"}]}, 400, "messages.0.role: "),
    (
        "chat/completions",
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        400,
        "messages.0.content.0.type: ",
    ),
    ("chat/completions", {"messages": [{"role": "user", "content": "a bomb"}]}, 400, "refuses the messages: no bombs"),
    ("chat/completions", {"messages": ASKED, "top_logprobs": 2}, 400, "top_logprobs are told with logprobs"),
    ("chat/completions", {"messages": ASKED, "max_tokens": 1, "max_completion_tokens": 1}, 400, "are both given"),
    (
        "chat/completions",
        {"messages": ASKED, "response_format": {"type": "json_object"}},
        400,
        "response_format is not",
    ),
]


def test_what_is_asked_wrongly_is_refused_in_one_line(server: Running) -> None:
    for path, fields, status, message in BAD:
        response = server.client.post(
            f"/v1/{path}", content=json.dumps(fields), headers={"content-type": "application/json"}
        )
        error = response.json()["error"]
        assert (response.status_code, message in error["message"]) == (status, True), (fields, response.text)
        assert "\n" not in error["message"]
    assert server.service.model.pool.metrics().streams == 0  # type: ignore[attr-defined]


def test_fields_that_ask_for_nothing_are_accepted(server: Running) -> None:
    neutral = {"best_of": 1, "frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "suffix": None}
    ignored = {"user": "me", "stop": None, "logprobs": None, "session": None}
    response = server.client.post("/v1/completions", json={"prompt": "a", **neutral, **ignored})
    assert response.status_code == 200, response.text
    said = [{**ASKED[1], "name": "Ann"}, {"role": "assistant", "content": "", "refusal": None, "tool_calls": []}]
    fields = {"tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "max_tokens": 2, "n": 2}
    response = server.client.post("/v1/chat/completions", json={"messages": [*said, ASKED[1]], **fields})
    assert response.status_code == 200, response.text
    assert len(response.json()["choices"]) == 2


def test_a_client_that_leaves_frees_its_streams(server: Running, completions: Any) -> None:
    pool = server.service.model.pool  # type: ignore[attr-defined]
    # No token ends it, and it would go on for long.
    events = completions.create(model="small", prompt=PROMPT, n=3, max_tokens=500, temperature=0, stream=True)
    next(events)
    events.close()
    wait_until(lambda: pool.metrics().streams == 0)
    tokens = pool.metrics().tokens
    assert tokens == pool.metrics().tokens
    assert completions.create(model="small", prompt=["a"] * 4, max_tokens=1).usage.completion_tokens == 4


def test_a_model_that_fails_is_no_client_s_mistake(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    # It claims more tokens than it has, so that the one before each text is beyond its table.
    model = running_sum_model(tmp_path / "short.onnx", claimed=264)
    with running(model, tokenizer=str(tmp_path / "tokenizer.json")) as server:
        response = server.client.post("/v1/completions", json={"prompt": "a", "n": 2})
        assert (response.status_code, response.json()["error"]["code"]) == (500, "call_failed")
        streamed = server.client.post("/v1/completions", json={"prompt": "a", "n": 2, "stream": True})
        event, rest = streamed.text.split("\n\n")
        assert json.loads(event.removeprefix("data: "))["error"]["code"] == "call_failed"
        assert rest == ""
        assert server.client.post("/v1/completions", json={"prompt": [1], "max_tokens": 3}).status_code == 200
        assert server.service.model.pool.metrics().streams == 0  # type: ignore[attr-defined]


@pytest.mark.machine
def test_curl(server: Running) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("no curl was found on the PATH")
    host, port = server.address
    body = json.dumps({"prompt": PROMPT, "max_tokens": 3, "stream": True, **WARM})
    options = ["--silent", "--noproxy", "*", "--header", "content-type: application/json", "--data", body]
    done = subprocess.run(
        [curl, *options, f"http://{host}:{port}/v1/completions"], capture_output=True, check=True, text=True
    )
    events = done.stdout.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(event.startswith("data: {") for event in events[:-2])
    assert json.loads(events[-3].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"


def test_models_without_text_or_template_say_what_to_do(tmp_path: Path) -> None:
    with running(running_sum_model(tmp_path / "x.onnx", ids=False)) as numbers:
        response = numbers.client.post("/v1/completions", json={"prompt": "a"})
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith("x has no tokenizer. Send numbers to /v1/steps")
    with running(running_sum_model(tmp_path / "bytes.onnx")) as plain:
        response = plain.client.post("/v1/chat/completions", json={"messages": ASKED})
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith("bytes has no chat template. Start the server with one")
    (tmp_path / "chat.jinja").write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:")
    with running(tmp_path / "bytes.onnx", chat_template=str(tmp_path / "chat.jinja")) as given:
        response = given.client.post("/v1/chat/completions", json={"messages": ASKED, "max_tokens": 2})
    assert response.json()["usage"]["prompt_tokens"] == len("system: Be brief.\nuser: Hello\nassistant:")
