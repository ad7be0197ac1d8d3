"""The modules that must stay in float32 are found by name, in models of six layers with one that needs it."""

from __future__ import annotations

import itertools
import json
import random
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

import pom_export
from pom_export.cli.main import run
from pom_export.debugging.blocks import modules_in, parts_of
from pom_export.debugging.smallest import smallest_set
from pom_export.errors import InputError
from pom_export.graph.module_values import ModuleValues
from pom_export.mixer import MixerConfig
from pom_export.models import LanguageModel, LanguageModelConfig
from tests.debugging.faulty_files import LAYERS, examples_of, model_named

Spoil = Callable[[LanguageModel, int], None]
Search = Callable[..., dict[str, Any]]
NEEDED = [list(each) for count in (1, 2, 3) for each in itertools.combinations("abcdefg", count)]


def test_exactly_what_is_needed_is_found_in_few_trials() -> None:
    for needed in NEEDED:
        tried: list[Sequence[str]] = []

        def suffices(chosen: Sequence[str], needed: list[str] = needed, tried: list[Sequence[str]] = tried) -> bool:
            tried.append(chosen)
            assert list(chosen) == sorted(chosen)
            return set(needed) <= set(chosen)

        assert smallest_set("abcdefg", suffices) == needed
        assert len(tried) <= 2 * len(needed) * (np.log2(7 / len(needed)) + 1) + 1


def test_nothing_in_the_set_can_be_left_out_if_several_would_do() -> None:
    def suffices(chosen: Sequence[str]) -> bool:
        return sum(map(int, chosen)) >= 7

    found = smallest_set("123456", suffices)
    assert suffices(found)
    assert not any(suffices([each for each in found if each != one]) for one in found)


def nodes(*names: str) -> ModuleValues:
    """Return a graph with a chain of nodes; those in modules called mix are mixers."""
    kind = {True: "pom.PolynomialAggregation", False: "Relu"}
    body = "".join(f"v{i + 1} = {kind['mix' in name]} (v{i}) " for i, name in enumerate(names))
    text = f'<ir_version: 9, opset_import: ["": 20, "pom": 1]> g (float[N] v0) => (float[N] v{len(names)}) {{ {body} }}'
    model = onnx.parser.parse_model(text)
    for node, name in zip(model.graph.node, names, strict=True):
        node.name = f"{name}/{node.op_type}"
    return ModuleValues(ir.from_proto(model))


def test_a_part_has_one_mixer_at_most() -> None:
    graph = nodes(
        "net.embedding", "net.h.0.norm", "net.h.0.mix", "net.h.1.mix", "net.h.1.mlp.up", "net.h.1.mlp.down", "net.norm"
    )
    assert parts_of(graph) == ["net.embedding", "net.h.0", "net.h.1", "net.norm"]
    assert modules_in(graph, "net.h.1") == ["net.h.1.mix", "net.h.1.mlp"]
    assert parts_of(nodes("mix.up", "mix.down", "head")) == ["mix.up", "mix.down", "head"]
    assert parts_of(nodes("block.mix", "block.up", "head")) == ["block", "head"]


@torch.no_grad()
def lose_precision(model: LanguageModel, layer: int) -> None:
    """Make a layer compute the small difference of two large numbers."""
    block = model.blocks[layer]
    block.mlp_up.weight[1] = block.mlp_up.weight[0] * 1.01
    block.mlp_down.weight[:, 0] = 60 * torch.randn(len(block.mlp_down.weight))
    block.mlp_down.weight[:, 1] = -block.mlp_down.weight[:, 0]


@torch.no_grad()
def overflow(model: LanguageModel, layer: int) -> None:
    """Give a layer small weights followed by large ones, beyond float16's range."""
    block = model.blocks[layer]
    block.mlp_up.weight[0] *= 2e-6
    block.mlp_down.weight[:, 0] *= 5e5


@pytest.fixture
def search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Search:
    """Spoil a layer chosen at random, find it, and return the result."""
    monkeypatch.chdir(tmp_path)

    def run_search(spoil: Spoil, layers: int = LAYERS) -> dict[str, Any]:
        torch.manual_seed(0)
        model = LanguageModel(LanguageModelConfig(40, layers, 3, 24, MixerConfig(16, 3, 2)))
        layer = random.randrange(layers)
        spoil(model, layer)
        torch.save(model.state_dict(), "c.pt")
        np.savez("in.npz", input_ids=np.arange(36).reshape(2, 18))
        assert run(["debug", "precision", "c.pt", "--inputs", "in.npz", "--json"]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        assert found["keep"] == [f"blocks.{layer}.mlp_up", f"blocks.{layer}.mlp_down"]
        return found

    return run_search


def test_a_layer_is_found_in_few_trials(search: Search) -> None:
    found = search(lose_precision, layers=2)
    assert [trial["passed"] for trial in found["trials"][:2]] == [False, True]
    assert len(found["trials"]) <= 14
    assert found["error"] < found["rtol"] < found["trials"][0]["error"]
    kept = "--keep-float32 {} --keep-float32 {}".format(*found["keep"])
    assert found["command"] == f"pom-export export c.pt -o model.onnx --dtype float16 {kept}"


@pytest.mark.slow
@pytest.mark.parametrize("spoil", [lose_precision, overflow])
def test_the_command_exports_a_file_that_is_right(spoil: Spoil, search: Search) -> None:
    found = search(spoil)
    assert len(found["trials"]) <= 16
    assert run([*shlex.split(found["command"])[1:], "-q"]) == 0
    assert run(["verify", "model.onnx", "--checkpoint", "c.pt", "--backends", "onnxruntime", "-q"]) == 0


def test_nothing_has_to_be_kept_or_all_is_not_enough() -> None:
    model = pom_export.PolynomialMixer(8, 2, 2)
    inputs = {"x": np.random.default_rng(0).standard_normal((2, 5, 8)).astype(np.float16)}
    report = pom_export.debug_precision(model, inputs=inputs)
    assert report
    assert (report.keep, len(report.trials)) == ([], 1)
    report = pom_export.debug_precision(model, inputs=inputs, rtol=1e-9, atol=0, mask="causal")
    assert not report
    assert (report.keep, len(report.trials), list(report.trial.keep)) == (None, 2, ["qc_proj", "ag_proj"])


def test_float32_is_refused() -> None:
    with pytest.raises(InputError, match=r"`dtype='float32'` is no half precision, and nothing has to be kept"):
        pom_export.debug_precision(pom_export.PolynomialMixer(8, 2, 2), dtype="float32")


@pytest.mark.slow
def test_a_model_of_ones_own_in_bfloat16() -> None:
    examples = examples_of("own")
    report = pom_export.debug_precision(
        model_named("own"), example_inputs=examples, dtype="bfloat16", rtol=2.5e-3, atol=0
    )
    assert report
    assert report.keep
    assert report.parts == ["stem", *(f"body.{layer}" for layer in range(LAYERS)), "head"]
    assert report.trial.error is not None
    assert report.trial.error <= 2.5e-3
