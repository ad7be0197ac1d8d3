"""An exported file on every backend; no test depends on how long anything takes."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import pom_export
from pom_export.bench import machine
from pom_export.bench.measuring import measure_time
from pom_export.bench.model_file import FileWorkload
from pom_export.bench.options import BenchOptions, Size
from pom_export.bench.results import Point
from pom_export.bench.running import bench
from pom_export.bench.worker import WorkerError, call_in_worker
from pom_export.errors import InputError, ParityError
from pom_export.runtime.session import inference_session
from tests.causal_models import MODELS, WIDTH
from tests.streaming_graphs import running_sum_model

BOTH = ["function", "kernel"]
ONCE = BenchOptions(threads=1, warmup=0, repeats=1)
BYTE_LM = Path(__file__).parents[2] / "samples" / "checkpoints" / "byte_lm.safetensors"


def silent(_: str) -> None:
    pass


def prepared(model: Path, folder: Path, **options: object) -> FileWorkload:
    workload = FileWorkload(model)
    workload.prepare(BenchOptions(**options), folder, silent)
    return workload


@pytest.mark.slow
def test_all_sizes_run_in_workers_and_agree(model: Path) -> None:
    stages: list[str] = []
    options = replace(ONCE, batch=(2,), tokens=(5, 9))
    workload = FileWorkload(model)
    result = bench(workload, options, progress=stages.append)
    assert result.backends == BOTH
    assert result.not_run.keys() == {"tensorrt"}
    assert [(point.batch, point.tokens) for point in result.points] == [(2, 5), (2, 9)]
    for point in result.points:
        assert point.timings.keys() == point.memory.keys() == set(BOTH)
        assert point.differences["kernel"] < 1e-5
    assert "batch 2, tokens 9: timing function, kernel" in stages


def test_an_inlined_file_is_timed_without_our_kernels(model: Path, tmp_path: Path) -> None:
    pom_export.inline(model, tmp_path / "in.onnx")
    workload = prepared(tmp_path / "in.onnx", tmp_path, tokens=(5,))
    assert workload.backends == ["function"]
    assert workload.not_run["kernel"] == "the file is inlined: it holds no node that our kernels could compute"
    assert "1 inlined aggregation;" in f"{workload.summary};"


def test_backends_that_differ_end_the_benchmark(model: Path, tmp_path: Path) -> None:
    class Wrong(FileWorkload):
        def inputs(self, backend: str, size: Size, seed: int) -> dict[str, np.ndarray]:
            return super().inputs(backend, size, seed + (backend == "kernel"))

    workload = Wrong(model)
    workload.prepare(BenchOptions(), tmp_path, silent)
    with pytest.raises(ParityError, match="at tokens 9: kernel and function differ by"):
        measure_time(workload, BOTH, [Point(1, 9)], ONCE)


def test_a_backend_that_fails_stops_no_other(model: Path, tmp_path: Path) -> None:
    workload = prepared(model, tmp_path)
    (found,) = measure_time(workload, ["tensorrt", "kernel"], [Point(1, 9)], ONCE)
    assert found.timings.keys() == {"kernel"}
    assert "it failed" in found.skipped["tensorrt"]


def test_a_backend_is_timed_only_where_it_is_not_skipped(model: Path, tmp_path: Path) -> None:
    points = [Point(1, 9, skipped={"function": "too large"}), Point(1, 5)]
    first, second = measure_time(prepared(model, tmp_path), BOTH, points, ONCE)
    assert first.timings.keys() == {"kernel"}
    assert first.differences == {}
    assert second.timings.keys() == set(BOTH)
    assert second.differences.keys() == {"kernel"}


@pytest.mark.slow
def test_memory_counts_what_a_run_needs(model: Path, tmp_path: Path) -> None:
    found = prepared(model, tmp_path).measure_memory("kernel", Size(2, 400000), ONCE)
    inputs = 2 * 400000 * 16 * 4  # more than an allocator keeps when it is freed
    assert found.tensor_bytes > 2 * inputs
    if found.growth_bytes is not None:
        assert found.growth_bytes > inputs


def test_memory_is_foreseen(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workload = prepared(model, tmp_path, tokens=(8, 1 << 20))
    # The layer's widest activation has 32 channels.
    assert workload.bytes_needed("kernel", Size(3, 1000)) == 4 * 4 * 3 * 1000 * 32
    monkeypatch.setattr("pom_export.bench.running.available_bytes", lambda: 1 << 28)
    options = replace(ONCE, tokens=(8, 1 << 20), memory=False)
    small, large = bench(FileWorkload(model), options).points
    assert small.skipped == {}
    assert "would need about 0.5 GiB of memory, 0.2 GiB are available" in large.skipped["kernel"]
    with pytest.raises(InputError, match="nothing could be timed: function: would need"):
        bench(FileWorkload(model), BenchOptions(tokens=(1 << 20,), threads=1))


def test_inputs_are_drawn_the_same_for_all(model: Path, tmp_path: Path) -> None:
    workload = prepared(model, tmp_path)
    one, two = (workload.inputs("kernel", Size(2, 3), seed)["x"] for seed in (7, 8))
    np.testing.assert_array_equal(one, workload.inputs("function", Size(2, 3), 7)["x"])
    assert one.shape == (2, 3, 16)
    assert not np.array_equal(one, two)


def test_a_stream_has_no_past(tmp_path: Path) -> None:
    workload = FileWorkload(running_sum_model(tmp_path / "m.onnx", tokens=15))
    workload.take(workload.path, tmp_path)
    feed = workload.inputs("kernel", Size(8, 15), 0)
    assert feed["past_length"].tolist() == [0] * 8
    assert not feed["past_state"].any()
    session = inference_session(workload.path)
    assert session.run(None, feed)[0].shape[:2] == (8, 15)


@pytest.mark.slow
def test_a_context_of_a_users_own_is_as_long_as_the_tokens(tmp_path: Path) -> None:
    make, examples = MODELS["cross attention"]
    pom_export.export(make().eval(), tmp_path / "m.onnx", example_inputs=examples(), stateful=True)
    workload = prepared(tmp_path / "m.onnx", tmp_path, tokens=[6])
    feed = workload.inputs("kernel", Size(2, 6), 0)
    assert (feed["memory"].shape, feed["past_context.0"].shape) == ((2, 6, WIDTH), (2, 2, 0, WIDTH // 2))
    bound = workload.load("kernel", Size(2, 6), threads=1).bind(feed)
    assert bound.outputs[0].shape == (2, 6, WIDTH)


def test_a_loaded_backend_can_take_another_size(model: Path, tmp_path: Path) -> None:
    workload = prepared(model, tmp_path)
    runner = workload.load("kernel", Size(1, 3), threads=1)
    for tokens in (3, 5):
        bound = runner.bind(workload.inputs("kernel", Size(1, tokens), 0))
        first = bound.outputs[0].copy()
        bound.run()
        assert first.shape == (1, tokens, 16)
        np.testing.assert_array_equal(bound.outputs[0], first)


def test_sizes_are_those_that_the_model_is_fixed_to(tmp_path: Path) -> None:
    pom_export.export(BYTE_LM, tmp_path / "m.onnx", static=(2, 12))
    assert prepared(tmp_path / "m.onnx", tmp_path, backends=["kernel"]).sizes == [(2, 12)]
    with pytest.raises(InputError, match="fixed to tokens 12"):
        prepared(tmp_path / "m.onnx", tmp_path, tokens=(13,))


def test_a_worker_says_what_went_wrong(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match=r"FileNotFoundError.*none"):
        call_in_worker(Path.read_text, tmp_path / "none", folder=tmp_path, threads=1)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_worker_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pom_export.bench.worker._command", lambda *_: ["/bin/sh", "-c", "kill -9 $$"])
    with pytest.raises(WorkerError, match="ended by SIGKILL"):
        call_in_worker(len, "abc", folder=tmp_path, threads=1)


def test_a_worker_finds_what_this_process_can_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "only_here.py").write_text("def doubled(x):\n    return 2 * x\n")
    monkeypatch.syspath_prepend(tmp_path)
    import only_here

    assert call_in_worker(only_here.doubled, 21, folder=tmp_path, threads=1) == 42
    assert only_here is sys.modules["only_here"]


def test_a_worker_has_the_processors_that_it_is_given(tmp_path: Path) -> None:
    assert len(call_in_worker(machine.usable_processors, folder=tmp_path, threads=1)) == 1


def test_memory_of_a_process_grows_with_what_it_holds() -> None:
    before = machine.resident_bytes()
    held = torch.ones(1 << 24)
    assert machine.resident_bytes() - before > held.nbytes // 2
    assert machine.peak_bytes() >= machine.resident_bytes() - (1 << 20)
