"""A stream at work, on models small enough for a test; nothing here asks how long it took."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pom_export.bench.options import BenchOptions
from pom_export.bench.stream.contestants import (
    FILES,
    drawn_tokens,
    open_stream,
    past_bytes,
    state_file,
    step_inputs,
    step_of,
)
from pom_export.bench.stream.group_query import write_group_query
from pom_export.bench.stream.models import make_model
from pom_export.bench.stream.preparing import StreamPrepared, prepare_stream
from pom_export.bench.stream.work import MEMORY, PREFILL, STEPS, measure_memory, measure_steps, prefill
from pom_export.bench.targets import StreamShape
from pom_export.bench.timing import Effort
from pom_export.bench.worker import Job
from pom_export.errors import InputError, ParityError
from pom_export.runtime import State, StreamingSession

SHAPE = StreamShape(dim=16, degree=2, expand=1, heads=2, layers=2)
ALL = ["function", "kernel", "attention", "attention-shared"]
CONTEXTS = [1, 5, 12]
SEED = 3


def silent(_: str) -> None:
    pass


def job_of(prepared: StreamPrepared, task: str, contexts: dict[str, list[int]]) -> Job:
    effort = asdict(Effort(warmup=0, repeats=2))
    return Job(task, str(prepared.folder), "", list(contexts), 1, 1, 1, SEED, effort, contexts)


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> StreamPrepared:
    """All files, and the states after all contexts."""
    options = BenchOptions(tokens=CONTEXTS[::-1], seed=SEED)
    prepared = prepare_stream(SHAPE, options, tmp_path_factory.mktemp("stream"), silent)
    found = prefill(job_of(prepared, PREFILL, {"kernel": prepared.contexts["kernel"]}))
    assert [stop["tokens"] for stop in found["stops"]] == CONTEXTS
    assert all(stop["resident_bytes"] > 0 for stop in found["stops"])
    return prepared


def copied(prepared: StreamPrepared, folder: Path) -> StreamPrepared:
    for file in prepared.folder.iterdir():
        os.link(file, folder / file.name)
    return replace(prepared, folder=folder)


def test_all_backends_run_from_all_contexts_and_agree(stream: StreamPrepared) -> None:
    assert stream.contexts == dict.fromkeys(ALL, CONTEXTS)
    assert stream.not_run == stream.skipped == {}
    found = measure_steps(job_of(stream, STEPS, stream.contexts))
    assert found["failed"] == {}
    assert [(one["backend"], one["tokens"]) for one in found["results"]] == [(n, c) for n in ALL for c in CONTEXTS]
    assert {len(one["seconds"]) for one in found["results"]} == {2}
    compared = {(one["backend"], one["tokens"]) for one in found["differences"]}
    assert compared == {(name, context) for name in ("kernel", "attention-shared") for context in CONTEXTS}
    assert max(one["difference"] for one in found["differences"]) < 1e-5
    held = {(one["backend"], one["tokens"]): one["state_bytes"] for one in found["results"]}
    assert held["kernel", 1] == held["kernel", 12] == held["function", 12]
    cache = 2 * SHAPE.layers * SHAPE.dim * 4  # and 8 bytes of the length
    assert held["attention", 12] == held["attention-shared", 12] == 12 * cache + 8


def test_states_are_those_of_so_many_real_tokens(stream: StreamPrepared) -> None:
    text = drawn_tokens(SEED, 13).astype(np.int64)
    assert list(text[:5]) == list(drawn_tokens(SEED, 5))
    session = StreamingSession(stream.folder / FILES["kernel"])
    for context in CONTEXTS:
        session.reset()
        session.prefill(text[:context])
        saved = State.load(state_file(stream.folder, context))
        assert saved.lengths.tolist() == [context]
        for name, array in session.snapshot().arrays.items():
            np.testing.assert_allclose(saved.arrays[name], array, rtol=1e-5, atol=1e-6)


def test_a_step_is_the_model_on_the_next_token(stream: StreamPrepared) -> None:
    text = torch.from_numpy(drawn_tokens(SEED, 13).astype(np.int64))[None]
    with torch.inference_mode():
        expected = make_model(SHAPE, SEED)(text)[:, -1]
    session = open_stream("kernel", stream.folder, 1)
    step = step_of("kernel", session)
    step.bind(step_inputs("kernel", session, stream.folder, 12, SEED))
    np.testing.assert_allclose(step.first()[0][:, 0], expected.numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["attention", "attention-shared"])
def test_attention_is_that_of_the_model(name: str, stream: StreamPrepared) -> None:
    """From no context on, token by token: each step's cache goes into the next one."""
    text = drawn_tokens(SEED, 6).astype(np.int64)
    with torch.inference_mode():
        expected = make_model(SHAPE, SEED, attention=True)(torch.from_numpy(text)[None]).numpy()
    session = open_stream(name, stream.folder, 1)
    names = [value.name for value in session.get_outputs()]
    feed = step_inputs(name, session, stream.folder, 0, SEED)
    if name == "attention-shared":
        feed = {key: np.zeros((1, 1, 6, 16), np.float32) if "key_values" in key else a for key, a in feed.items()}
    for place in range(6):
        feed |= {"input_ids": text[None, place : place + 1], "past_length": np.array([place])}
        step = step_of(name, session)
        step.bind(feed)
        outputs = dict(zip(names, step.first(), strict=True))
        np.testing.assert_allclose(outputs["logits"][:, 0], expected[:, place], rtol=1e-4, atol=1e-4)
        presents = {key.replace("present", "past_key_values"): array for key, array in outputs.items()}
        feed |= {key: array.copy() for key, array in presents.items() if key in feed}


def test_only_the_cache_in_place_is_written_to(stream: StreamPrepared) -> None:
    caches = {}
    for name in ("attention", "attention-shared"):
        session = open_stream(name, stream.folder, 1)
        feed = step_inputs(name, session, stream.folder, 5, SEED)
        before = feed["past_key_values.1.value"].copy()
        step = step_of(name, session)
        step.bind(feed)
        outputs = dict(zip([value.name for value in session.get_outputs()], step.first(), strict=True))
        after, caches[name] = feed["past_key_values.1.value"], outputs["present.1.value"]
        np.testing.assert_array_equal(after[:, :, :5], before[:, :, :5])
        assert np.shares_memory(after, caches[name]) is (name == "attention-shared")
        assert past_bytes(feed, 5) == 5 * 2 * SHAPE.layers * SHAPE.dim * 4 + 8
    np.testing.assert_allclose(*caches.values(), rtol=1e-5, atol=1e-6)


def test_backends_that_differ_end_the_benchmark(stream: StreamPrepared, tmp_path: Path) -> None:
    other = copied(stream, tmp_path)
    (tmp_path / FILES["attention-shared"]).unlink()
    write_group_query(make_model(SHAPE, SEED + 1, attention=True), 13, tmp_path / FILES["attention-shared"])
    with pytest.raises(ParityError, match="after 1 tokens attention-shared and attention differ by"):
        measure_steps(job_of(other, STEPS, stream.contexts))


def test_a_backend_that_fails_stops_no_other(stream: StreamPrepared, tmp_path: Path) -> None:
    other = copied(stream, tmp_path)
    (tmp_path / FILES["attention"]).unlink()
    (tmp_path / FILES["attention"]).write_text("no model")
    found = measure_steps(job_of(other, STEPS, {"kernel": [1], "attention": [1], "attention-shared": [1]}))
    assert [one["backend"] for one in found["results"]] == ["kernel", "attention-shared"]
    assert found["failed"].keys() == {"attention"}
    assert "it failed" in found["failed"]["attention"]


@pytest.mark.parametrize("name", ALL)
def test_memory_is_that_of_the_process(name: str, stream: StreamPrepared) -> None:
    found = measure_memory(job_of(stream, MEMORY, {name: [12]}))
    assert found["resident_bytes"] > found["growth_bytes"] >= 0


def test_attention_is_not_run_where_it_would_take_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pom_export.bench.stream.preparing.available_bytes", lambda: 2 << 20)
    backends = ["function", "attention-shared", "torch"]
    options = BenchOptions(backends=backends, tokens=(1, 16384, 40000))
    prepared = prepare_stream(SHAPE, options, tmp_path, silent)
    assert prepared.contexts == {"function": [1, 16384, 40000], "attention-shared": [1]}
    assert "no state" in prepared.not_run["torch"]
    assert "GiB of memory" in prepared.skipped[16384]["attention-shared"]
    assert "timed up to 32768" in prepared.skipped[40000]["attention-shared"]


def test_what_no_stream_can_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="batch 1"):
        prepare_stream(SHAPE, BenchOptions(batch=(2,)), tmp_path, silent)
    with pytest.raises(InputError, match="no mixer can run"):
        prepare_stream(SHAPE, BenchOptions(backends=["attention-shared"], tokens=(1,)), tmp_path, silent)
