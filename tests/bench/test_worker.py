"""Every backend at work, on a layer small enough for a test; nothing here asks how long it took."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pom_export
from pom_export.bench.contestants import draw_inputs, load_contestant
from pom_export.bench.guards import sizes_of
from pom_export.bench.options import BenchOptions
from pom_export.bench.preparing import Prepared, prepare
from pom_export.bench.processes import WorkerError, run_worker
from pom_export.bench.targets import find_target
from pom_export.bench.timing import Effort
from pom_export.bench.worker import Job, measure_memory, measure_time, to_json
from pom_export.errors import InputError, ParityError

ON_CPU = ["torch", "torch-compile", "plain", "function", "kernel", "attention", "matmul"]
BYTE_LM = Path(__file__).parents[2] / "samples" / "checkpoints" / "byte_lm.safetensors"


def silent(_: str) -> None:
    pass


def job_of(prepared: Prepared, backends: list[str], tokens: int = 9, task: str = "time") -> Job:
    effort = asdict(Effort(warmup=0, repeats=1))
    return Job(task, str(prepared.folder), str(prepared.model.path), backends, 2, tokens, 1, 0, effort)


@pytest.fixture(scope="module", params=[("none", 1), ("causal", 1), ("none", 4)], ids=["mean", "causal", "heads"])
def layer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    mask, heads = request.param
    target = find_target("layer", mask=mask, dim=16, degree=2, heads=heads)
    return prepare(target, BenchOptions(), tmp_path_factory.mktemp("layer"), silent)


def test_all_backends_run_and_agree(layer: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    # The compiler takes longer than all tests of this folder together.
    monkeypatch.setattr(torch, "compile", lambda module, dynamic: compiled.append(dynamic) or module)
    assert layer.backends == ON_CPU
    assert set(layer.not_run) == {"tensorrt"}
    found = measure_time(job_of(layer, ON_CPU))
    assert found["failed"] == {}
    assert {name: len(times) for name, times in found["times"].items()} == dict.fromkeys(ON_CPU, 1)
    assert set(found["differences"]) == {"torch-compile", "plain", "function", "kernel"}
    assert max(found["differences"].values()) < 1e-5
    assert compiled == [False]


def test_products_are_those_of_the_layer_before_any_rewriting(layer: Prepared) -> None:
    first, second = layer.work.products
    assert (first.inner, second.inner, second.columns) == (16, 32, 16)
    assert first.columns in {64, 36}
    assert (first.from_input, first.to_output, second.from_input, second.to_output) == (True, False, False, True)


def test_backends_that_differ_end_the_benchmark(layer: Prepared, tmp_path: Path) -> None:
    for file in layer.folder.iterdir():
        os.link(file, tmp_path / file.name)
    module = torch.load(tmp_path / "official.pt", weights_only=False)
    with torch.no_grad():
        module.model.mixer.ag_proj.weight.mul_(1.01)
    (tmp_path / "official.pt").unlink()
    torch.save(module, tmp_path / "official.pt")
    with pytest.raises(ParityError, match="kernel and torch differ by"):
        measure_time(replace(job_of(layer, ["torch", "kernel", "matmul"]), folder=str(tmp_path)))


def test_a_backend_that_fails_stops_no_other(layer: Prepared, tmp_path: Path) -> None:
    (tmp_path / "plain.onnx").write_text("no model")
    found = measure_time(replace(job_of(layer, ["plain", "kernel"]), folder=str(tmp_path)))
    assert list(found["times"]) == ["kernel"]
    assert "it failed" in found["failed"]["plain"]


def test_memory_counts_what_a_run_needs(layer: Prepared) -> None:
    found = measure_memory(job_of(layer, ["kernel"], tokens=400000))
    inputs = 2 * 400000 * 16 * 4  # more than an allocator keeps when it is freed
    assert found["tensor_bytes"] > 2 * inputs
    if found["growth_bytes"] is not None:
        assert found["growth_bytes"] > inputs


def test_inputs_are_drawn_the_same_for_all(layer: Prepared) -> None:
    one, two = (draw_inputs(layer.model, sizes_of(2, 3), seed) for seed in (7, 8))
    np.testing.assert_array_equal(one["x"], draw_inputs(layer.model, sizes_of(2, 3), 7)["x"])
    assert one["x"].shape == (2, 3, 16)
    assert not np.array_equal(one["x"], two["x"])


def test_a_session_can_take_another_size(layer: Prepared) -> None:
    contestant = load_contestant("kernel", layer.folder, layer.model.path, 1)
    for tokens in (3, 5):
        contestant.bind(draw_inputs(layer.model, sizes_of(1, tokens), 0))
        (y,) = contestant.first()
        contestant.run()
        assert y.shape == (1, tokens, 16)


def test_a_language_model_runs_on_what_applies(tmp_path: Path) -> None:
    options = BenchOptions(backends=["torch", "plain", "kernel", "attention", "matmul"])
    prepared = prepare(find_target(BYTE_LM), options, tmp_path, silent)
    assert prepared.backends == ["torch", "plain", "kernel", "matmul"]
    assert "single layer" in prepared.not_run["attention"]
    # Two products of each of four mixers and four MLPs, and the one that gives the logits.
    assert len(prepared.work.products) == 17
    assert prepared.work.mixers == [(256, 3)] * 4
    found = measure_time(job_of(prepared, prepared.backends))
    assert max(found["differences"].values()) < 1e-4


def test_sizes_are_those_that_the_model_is_fixed_to(tmp_path: Path) -> None:
    pom_export.export(BYTE_LM, tmp_path / "m.onnx", static=(2, 12))
    target = find_target(tmp_path / "m.onnx")
    assert prepare(target, BenchOptions(backends=["kernel"]), tmp_path, silent).points == [(2, 12)]
    with pytest.raises(InputError, match="fixed to tokens 12"):
        prepare(target, BenchOptions(tokens=(13,)), tmp_path, silent)


def test_a_worker_says_what_went_wrong(layer: Prepared, tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match=r"plain\.onnx does not exist"):
        run_worker(replace(job_of(layer, ["plain"], task="memory"), folder=str(tmp_path)))


def test_a_killed_worker_is_named(layer: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pom_export.bench.processes._command", lambda *_: ["/bin/sh", "-c", "kill -9 $$"])
    with pytest.raises(WorkerError, match="ended by SIGKILL"):
        run_worker(job_of(layer, ["kernel"]))


def test_a_job_survives_its_file(layer: Prepared) -> None:
    job: Any = json.loads(to_json(job_of(layer, ["kernel"])))
    assert Job(**job) == job_of(layer, ["kernel"])
