"""`POST /v1/steps`: numbers, sessions, and what is refused."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pom_export import StreamingSession
from tests.serving.running import Running, running
from tests.streaming_graphs import CHANNELS, VOCABULARY, running_sum_model

RANDOM = np.random.default_rng(3)
IDS = RANDOM.integers(0, VOCABULARY, 40)
VECTORS = RANDOM.integers(-3, 4, (12, CHANNELS)).astype(np.float32)


@pytest.fixture(scope="module")
def ids_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return running_sum_model(tmp_path_factory.mktemp("serve") / "ids.onnx", tokens=1000)


@pytest.fixture(scope="module")
def vectors_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return running_sum_model(tmp_path_factory.mktemp("serve") / "vectors.onnx", ids=False)


@pytest.fixture(scope="module")
def ids(ids_model: Path) -> Iterator[Running]:
    with running(ids_model, most_tokens=500, most_body=50_000, most_output=100_000) as server:
        yield server


@pytest.fixture(scope="module")
def vectors(vectors_model: Path) -> Iterator[Running]:
    with running(vectors_model, threads=1) as server:
        yield server


def outputs(response: httpx.Response) -> Any:
    assert response.status_code == 200, response.text
    return np.array(response.json()["outputs"])


def refused(response: httpx.Response, status: int, says: str) -> None:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert says in error["message"], error
    assert "\n" not in error["message"]


def in_base64(array: Any) -> dict[str, Any]:
    data = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
    return {"dtype": array.dtype.name, "shape": list(array.shape), "data": data}


def test_a_session_continues_where_it_stopped(ids: Running, ids_model: Path) -> None:
    expected = StreamingSession(ids_model).prefill(IDS)[0]
    first = ids.steps(IDS[:15], session="a")
    np.testing.assert_array_equal(outputs(first), expected[14])
    assert first.json() | {"outputs": None} == {"model": "ids", "session": "a", "length": 15, "outputs": None}
    np.testing.assert_array_equal(outputs(ids.steps(IDS[15:], session="a", every=True, after=15)), expected[15:])
    np.testing.assert_array_equal(outputs(ids.steps(IDS[:15])), expected[14])
    assert ids.service.model.pool.metrics().streams == 0


def test_a_header_may_name_the_session(ids: Running, ids_model: Path) -> None:
    for place in range(3):
        response = ids.client.post("/v1/steps", json={"inputs": [int(IDS[place])]}, headers={"x-session-id": "head"})
    np.testing.assert_array_equal(outputs(response), StreamingSession(ids_model).prefill_last(IDS[:3])[0])


def test_vectors_in_lists_and_in_base64(vectors: Running, vectors_model: Path) -> None:
    expected = StreamingSession(vectors_model).prefill(VECTORS)[0]
    np.testing.assert_array_equal(outputs(vectors.steps(VECTORS, every=True)), expected)
    # JavaScript writes whole numbers without a point.
    np.testing.assert_array_equal(outputs(vectors.steps(VECTORS.astype(int), every=True)), expected)
    for array in (VECTORS, VECTORS.astype(np.float16), VECTORS.astype(np.float64)):
        answer = vectors.steps(in_base64(array), every=True).json()["outputs"]
        assert (answer["dtype"], answer["shape"]) == ("float32", list(expected.shape))
        found = np.frombuffer(base64.b64decode(answer["data"]), "<f4").reshape(expected.shape)
        np.testing.assert_array_equal(found, expected)
    assert isinstance(vectors.steps(VECTORS, encoding="base64").json()["outputs"], dict)


def test_many_clients_share_calls(ids: Running, ids_model: Path) -> None:
    expected = StreamingSession(ids_model).prefill(IDS)[0]
    before = ids.service.model.pool.metrics()

    def ask(name: int) -> bool:
        found = [outputs(ids.steps([int(token)], session=f"many{name}")) for token in IDS]
        return bool((np.array(found) == expected).all())

    with ThreadPoolExecutor(8) as clients:
        assert all(clients.map(ask, range(8)))
    after = ids.service.model.pool.metrics()
    assert after.rows - before.rows == 8 * len(IDS) > after.calls - before.calls


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"inputs": [1], "wrong": 1}, 400, "the field 'wrong' is unknown"),
        ({}, 400, "inputs are missing"),
        ({"inputs": []}, 400, "No axis may be empty"),
        ({"inputs": [-1]}, 400, "input_ids holds -1, beyond the model's 256 values"),
        ({"inputs": [VOCABULARY]}, 400, "input_ids holds 256"),
        ({"inputs": [2**63]}, 400, "input_ids holds 9223372036854775808"),
        ({"inputs": [2**70]}, 400, "numbers of more than 64 bits"),
        ({"inputs": [1.5]}, 400, "input_ids is float64, not int64"),
        ({"inputs": [True, 2]}, 400, "something other than numbers"),
        ({"inputs": ["1"]}, 400, "something other than numbers"),
        ({"inputs": [None]}, 400, "something other than numbers"),
        ({"inputs": [[1], [2, 3]]}, 400, "differ in length"),
        ({"inputs": [[1], [2]]}, 400, "input_ids has the shape [2, 1]"),
        ({"inputs": 3}, 400, "inputs is an int"),
        ({"inputs": {"a": 1}}, 400, "inputs has the fields a"),
        ({"inputs": {"dtype": "object", "shape": [1], "data": ""}}, 400, "dtype is 'object'"),
        ({"inputs": {"dtype": "int64", "shape": [2], "data": "AAAAAAAAAAA="}}, 400, "data has 8 bytes"),
        ({"inputs": {"dtype": "int64", "shape": [10**30], "data": "AAAAAAAAAAA="}}, 400, "data has 8 bytes"),
        ({"inputs": {"dtype": "int64", "shape": [-1], "data": ""}}, 400, "shape is [-1]"),
        ({"inputs": {"dtype": "int64", "shape": [2**62, 0], "data": ""}}, 400, "shape is [4611686018427387904, 0]"),
        ({"inputs": {"dtype": "int64", "shape": [1], "data": "#"}}, 400, "not base64"),
        ({"inputs": {"dtype": ["int64"], "shape": [1], "data": ""}}, 400, "dtype is ['int64']"),
        ({"inputs": [1], "session": "a b"}, 400, "session is 'a b'"),
        ({"inputs": [1], "session": 5}, 400, "session is 5"),
        ({"inputs": [1], "every": 1}, 400, "every is 1, not true or false"),
        ({"inputs": [1], "after": -1}, 400, "after is -1"),
        ({"inputs": [1], "after": 1}, 409, "the session has seen 0 tokens, not 1"),
        ({"inputs": [1], "encoding": []}, 400, "encoding is a list"),
        ({"inputs": [1] * 501}, 413, "501 tokens are more than the 500"),
        ({"inputs": [1] * 100, "every": True}, 413, "the outputs of 100 tokens have 102400 bytes"),
        ([1], 400, "the body is a list"),
        ("NaN", 400, "the body is not JSON"),
    ],
)  # fmt: skip
def test_what_is_refused(body: Any, status: int, says: str, ids: Running) -> None:
    text = body if isinstance(body, str) else json.dumps(body)
    response = ids.client.post("/v1/steps", content=text, headers={"content-type": "application/json"})
    refused(response, status, says)
    assert ids.service.model.pool.metrics().streams == 0


@pytest.mark.parametrize(
    "text",
    [
        b"", b"{", b"\xff\xfe", b"[" * 40_000, b'{"inputs":' * 4000, b'{"inputs": [NaN]}', b'{"inputs": [Infinity]}',
        b'{"inputs": [1e999]}', b'{"inputs": [' + b"9" * 5000 + b"]}", b'{"inputs": [1], "inputs": [2]}', b"null",
        b'{"inputs": ' + b"[" * 200 + b"1" + b"]" * 200 + b"}", b'{"inputs": [1], "session": "\\ud800"}',
        b'{"inputs": [1], "\\ud800\\n": "x"}',
    ],
)  # fmt: skip
def test_damaged_bodies_are_the_clients_mistakes(text: bytes, ids: Running) -> None:
    response = ids.client.post("/v1/steps", content=text, headers={"content-type": "application/json"})
    refused(response, 400, "")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5)
    | st.sampled_from(["int64", "float16", "AAAA", "AAAAAAAAAAA=", "lists", "base64"]),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.sampled_from(["dtype", "shape", "data", "x"]), inner, max_size=3),
    max_leaves=12,
)  # fmt: skip
FIELDS = st.sampled_from(["inputs", "session", "after", "every", "encoding", "other"])


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(FIELDS, VALUES) | VALUES)
def test_no_request_is_a_fault_of_the_server(ids: Running, body: Any) -> None:
    text = json.dumps(body).encode()
    response = ids.client.post("/v1/steps", content=text, headers={"content-type": "application/json"})
    assert response.status_code < 500, response.text
    assert response.json().keys() == ({"error"} if response.is_error else {"model", "session", "length", "outputs"})
    assert ids.service.model.pool.metrics().streams == 0


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_is_refused_while_it_is_read(declared: bool, ids: Running) -> None:
    body = b'{"inputs": [' + b"1," * 50_000 + b"1]}"
    content = body if declared else iter([body[start : start + 1000] for start in range(0, len(body), 1000)])
    response = ids.client.post("/v1/steps", content=content, headers={"content-type": "application/json"})
    refused(response, 413, "more than 50000 bytes")


def test_only_json_is_taken(ids: Running) -> None:
    refused(ids.client.post("/v1/steps", content=b'{"inputs": [1]}'), 415, "the content type is ''")


def test_a_session_ends_at_the_models_positions(ids: Running) -> None:
    for _ in range(2):
        assert ids.steps([1] * 500, session="long").status_code == 200
    refused(ids.steps([1], session="long"), 400, "1001 tokens are more than ids.onnx's 1000 positions")
    assert ids.steps([1], session="long", after=999).json()["error"]["code"] == "session_differs"


def test_an_output_that_is_no_number_is_an_error_and_leaves_the_session(vectors: Running) -> None:
    large = np.full((1, CHANNELS), 3e38)
    before = outputs(vectors.steps(VECTORS[:2], session="nan"))
    refused(vectors.steps(np.concatenate([large, large]), session="nan"), 422, "NaN or infinity")
    np.testing.assert_array_equal(outputs(vectors.steps(np.zeros((1, CHANNELS)), session="nan", after=2)), before)


def test_sessions_can_be_ended(ids: Running) -> None:
    outputs(ids.steps([1], session="ended"))
    assert ids.client.delete("/v1/sessions/ended").json() == {"session": "ended", "deleted": True}
    assert ids.client.delete("/v1/sessions/ended").json() == {"session": "ended", "deleted": False}
    assert ids.steps([1], session="ended").json()["length"] == 1
