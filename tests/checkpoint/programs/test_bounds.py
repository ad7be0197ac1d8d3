"""Programs that claim more than they hold are refused: sizes, work, weights and example inputs."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pom_export.checkpoint.exported_program import read_exported_program
from pom_export.errors import CheckpointError
from tests import pt2_files
from tests.pt2_files import argument, edited, own_input, tensor, with_node

HUGE: dict[str, list[dict[str, Any]]] = {
    "full.default": [argument("size", as_ints=[10**12]), argument("fill_value", as_float=1.0)],
    "arange.default": [argument("end", as_float=1e15)],
    "repeat.default": [argument("repeats", as_ints=[10**10])],
    "constant_pad_nd.default": [argument("pad", as_ints=[10**12, 0])],
    "expand.default": [argument("size", as_ints=[10**11, 16])],
    "as_strided.default": [argument("size", as_ints=[10**9]), argument("stride", as_ints=[0])],
    "chunk.default": [argument("chunks", as_int=10**9)],
}


@pytest.mark.parametrize("name", HUGE)
def test_values_far_larger_than_the_file_are_refused(
    program: tuple[nn.Module, Path], name: str, tmp_path: Path
) -> None:
    def edit(description: dict[str, Any]) -> None:
        made = name in {"full.default", "arange.default"}
        own = [] if made else [argument("self", as_tensor=tensor(own_input(description)))]
        with_node(f"torch.ops.aten.{name}", *own, *HUGE[name])(description)

    edited(program[1], tmp_path / "m.pt2", edit)
    with pytest.raises(CheckpointError, match="needs too much memory or computation"):
        read_exported_program(tmp_path / "m.pt2")


def test_products_without_end_are_refused(program: tuple[nn.Module, Path], tmp_path: Path) -> None:
    def edit(description: dict[str, Any]) -> None:
        square = argument("self", as_tensor=tensor("square")), argument("other", as_tensor=tensor("square"))
        with_node("torch.ops.aten.matmul.default", *square, name="product")(description)
        sizes = argument("size", as_ints=[8000, 8000]), argument("fill_value", as_float=1.0)
        with_node("torch.ops.aten.full.default", *sizes, name="square")(description)

    edited(program[1], tmp_path / "m.pt2", edit)
    with pytest.raises(CheckpointError, match="products"):
        read_exported_program(tmp_path / "m.pt2")


def test_sizes_beyond_64_bits_are_refused(program: tuple[nn.Module, Path], tmp_path: Path) -> None:
    def edit(description: dict[str, Any]) -> None:
        graph = description["graph_module"]["graph"]
        call = [argument("a", as_int=9), argument("b", as_int=10**9)]
        output = {"as_sym_int": {"as_name": "power"}}
        graph["nodes"].insert(0, {"target": "_operator.pow", "inputs": call, "outputs": [output], "metadata": {}})
        graph["sym_int_values"]["power"] = {"as_int": 1}

    edited(program[1], tmp_path / "m.pt2", edit)
    with pytest.raises(CheckpointError, match="needs too much"):
        read_exported_program(tmp_path / "m.pt2")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sizes": [{"as_int": 10**9}], "strides": [{"as_int": 0}]}, "claims more values"),
        ({"sizes": [{"as_int": 10**12}, {"as_int": 0}], "strides": [{"as_int": 0}] * 2}, "claims more values"),
        ({"sizes": [{"as_int": 2**62}] * 4, "strides": [{"as_int": 2**62}] * 4}, "claims more values"),
        ({"storage_offset": {"as_int": 1}}, "reaches value"),
        ({"storage_offset": {"as_int": -1}}, "a number is -1"),
        ({"strides": [{"as_int": -1}]}, "a number is -1"),
        ({"strides": []}, "strides"),
        ({"dtype": 8}, "but the file has"),
        ({"dtype": 99}, "a type is 99"),
        ({"layout": 1}, "a layout is 1"),
        ({"device": {"type": "meta", "index": None}}, "a device is 'meta'"),
        ({"sizes": [{"as_expr": {"expr_str": "Integer(4)"}}]}, "would have to be executed"),
    ],
)
def test_weights_stay_within_their_bytes(
    program: tuple[nn.Module, Path], change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    def edit(config: dict[str, Any]) -> None:
        config["config"]["0.se_bias"]["tensor_meta"].update(change)

    edited(program[1], tmp_path / "m.pt2", edit, pt2_files.WEIGHTS)
    with pytest.raises(CheckpointError, match=message):
        read_exported_program(tmp_path / "m.pt2")


def test_a_missing_weight_is_named(program: tuple[nn.Module, Path], tmp_path: Path) -> None:
    edited(program[1], tmp_path / "m.pt2", lambda config: config["config"].pop("0.se_bias"), pt2_files.WEIGHTS)
    with pytest.raises(CheckpointError, match=r"lacks the tensor 0\.se_bias"):
        read_exported_program(tmp_path / "m.pt2")


EXAMPLES = {"huge": torch.ones(1).expand(10**9), "a class": object, "a table": {"x": 1}, "a set": {1}}


@pytest.mark.parametrize("kind", EXAMPLES)
def test_examples_are_checked_as_weights_are(program: tuple[nn.Module, Path], kind: str, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(((EXAMPLES[kind],), {}), buffer)
    examples = {"data/sample_inputs/model.pt": buffer.getvalue()}
    pt2_files.write(tmp_path / "m.pt2", {**pt2_files.members(program[1]), **examples})
    with pytest.raises(CheckpointError, match=r"m\.pt2") as error:
        read_exported_program(tmp_path / "m.pt2")
    assert ".pt " not in error.value.what.replace(str(tmp_path), "")
