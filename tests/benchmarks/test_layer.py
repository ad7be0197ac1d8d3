"""The layer benchmark on every backend, small enough for a test; no test depends on how long anything takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.layer.target import Target, find_target
from benchmarks.layer.workload import MODULE_FILE, LayerWorkload
from pom_export.bench.measuring import measure_time
from pom_export.bench.options import BenchOptions, Size
from pom_export.bench.results import Point
from pom_export.bench.runners import Bound, Runner
from pom_export.bench.running import bench
from pom_export.errors import InputError, ParityError

pytestmark = pytest.mark.slow

ON_CPU = ["torch", "torch-compile", "plain", "function", "kernel", "attention", "matmul"]
BYTE_LM = Path(__file__).parents[2] / "samples" / "checkpoints" / "byte_lm.safetensors"
SIZE = Size(2, 9)
ONCE = BenchOptions(threads=1, warmup=0, repeats=1)


def silent(_: str) -> None:
    pass


def prepared(target: Target, folder: Path, **options: object) -> LayerWorkload:
    workload = LayerWorkload(target, measures_roofline=False)
    workload.prepare(BenchOptions(**options), folder, silent)
    return workload


@pytest.fixture(scope="module", params=[("none", 1), ("causal", 1), ("none", 4)], ids=["mean", "causal", "heads"])
def layer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LayerWorkload:
    mask, heads = request.param
    return prepared(find_target("layer", mask=mask, dim=16, degree=2, heads=heads), tmp_path_factory.mktemp("layer"))


def test_all_backends_run_and_agree(layer: LayerWorkload, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    # The compiler takes longer than all other tests in this folder together.
    monkeypatch.setattr(torch, "compile", lambda module, dynamic: compiled.append(dynamic) or module)
    assert layer.backends == ON_CPU
    assert set(layer.not_run) == {"tensorrt"}
    (found,) = measure_time(layer, ON_CPU, [Point(*SIZE)], ONCE)
    assert found.skipped == {}
    assert {name: timed.runs for name, timed in found.timings.items()} == dict.fromkeys(ON_CPU, 1)
    assert found.differences.keys() == {"torch-compile", "plain", "function", "kernel"}
    assert max(found.differences.values()) < 1e-5
    assert compiled == [False]


def test_products_are_those_of_the_layer_before_any_rewriting(layer: LayerWorkload) -> None:
    first, second = layer.work.products
    assert (first.inner, second.inner, second.columns) == (16, 32, 16)
    assert first.columns in {64, 36}
    assert (first.from_input, first.to_output, second.from_input, second.to_output) == (True, False, False, True)


def test_backends_that_differ_end_the_benchmark(layer: LayerWorkload) -> None:
    file = layer.folder / MODULE_FILE
    saved = file.read_bytes()
    module = torch.load(file, weights_only=False)
    with torch.no_grad():
        module.model.mixer.ag_proj.weight.mul_(1.01)
    try:
        torch.save(module, file)
        with pytest.raises(ParityError, match="kernel and torch differ by"):
            measure_time(layer, ["torch", "kernel", "matmul"], [Point(*SIZE)], ONCE)
    finally:
        file.write_bytes(saved)


def test_what_is_compiled_for_a_size_warms_up_at_that_size(layer: LayerWorkload) -> None:
    class Recorder(Runner):
        def bind(self, feed: Mapping[str, np.ndarray]) -> Bound:
            shapes.append(feed["x"].shape)
            return Bound([], lambda: None, feed)

    shapes: list[tuple[int, ...]] = []
    for name in ("torch", "torch-compile"):
        layer.warm_up(Recorder(), name, Size(1, 64), 0)
    assert shapes == [(1, 8, 16), (1, 64, 16)]


def test_a_worker_times_what_this_process_prepared() -> None:
    target = find_target("layer", dim=16, degree=2)
    options = replace(ONCE, backends=("plain", "kernel", "matmul"), tokens=(8,))
    result = bench(LayerWorkload(target, measures_roofline=False), options)
    (point,) = result.points
    assert point.timings.keys() == point.memory.keys() == {"plain", "kernel", "matmul"}
    assert point.facts["to_matmul"].keys() == {"plain", "kernel"}
    assert point.facts["memory_roofline_ms"] is None
    assert result.to_dict()["roofline"] is None


def test_a_language_model_runs_on_what_applies(tmp_path: Path) -> None:
    workload = prepared(
        find_target(str(BYTE_LM)), tmp_path, backends=["torch", "plain", "kernel", "attention", "matmul"]
    )
    assert workload.backends == ["torch", "plain", "kernel", "matmul"]
    assert "single layer" in workload.not_run["attention"]
    # Two products of each of four mixers and four MLPs, and the one that gives the logits.
    assert len(workload.work.products) == 17
    assert workload.work.mixers == [(256, 3)] * 4
    (found,) = measure_time(workload, workload.backends, [Point(*SIZE)], ONCE)
    assert max(found.differences.values()) < 1e-4


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("layer", {"family": "pom-v1"}, "--family does not go with a named layer"),
        ("none.pt", {}, "Give a checkpoint, or one of layer, layer-8-heads"),
        (str(BYTE_LM), {"dim": 8}, "--dim does not go with a file"),
    ],
)
def test_options_that_do_not_go_with_a_target(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as caught:
        find_target(name, **options)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("shape", "message"), [({"heads": 5}, "n_sel_heads must divide"), ({"degree": 99}, "degree must be 1 to 16")]
)
def test_layers_that_cannot_be(shape: dict[str, int], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        prepared(find_target("layer", dim=16, **shape), tmp_path)
