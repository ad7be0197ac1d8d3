"""Inputs for files of any maker: ids within tables, masks that keep something, dimensions that belong together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest

from pom_export.errors import InputError
from pom_export.graph.interface import TensorSpec
from pom_export.parity.plain_cases import PlainInputs, plain_inputs

_FLOAT, _INT = np.dtype(np.float32), np.dtype(np.int64)


def test_ids_stay_within_the_smallest_table() -> None:
    graph = onnx.parser.parse_graph(
        """g (int64[b, n] ids) => (float[b, n, 2] y) <float[5, 2] small, float[9, 2] large>
        { a = Cast<to = 7>(ids) s = Gather(small, a) l = Gather(large, ids) y = Add(s, l) }"""
    )
    for weight, rows in (("small", 5), ("large", 9)):
        graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((rows, 2), np.float32), weight))
    seen: list[Mapping[str, Any]] = []

    inputs, sizes = plain_inputs([TensorSpec("ids", _INT, ("b", "n"))], graph, seen.append)

    assert (inputs.rows, sizes) == ({"ids": 5}, [(2, 5), (3, 7)])
    assert all(each["ids"].max() < 5 for each in seen)


def test_dimensions_without_names_get_one_size_where_they_must() -> None:
    specs = [
        TensorSpec("x", _FLOAT, ("x_0", "x_1", 4)),
        TensorSpec("mask", _FLOAT, ("mask_0", "mask_1")),
        TensorSpec("other", _FLOAT, ("other_0", "other_1")),
    ]

    def run(feed: Mapping[str, Any]) -> None:
        if feed["x"].shape[1] != feed["mask"].shape[1]:
            raise ValueError("they differ")

    inputs, _ = plain_inputs(specs, onnx.GraphProto(), run)

    assert inputs.same == {"mask_0": "x_0", "other_0": "x_0", "mask_1": "x_1"}
    sizes = inputs.sizes(2, 5)
    assert sizes["x_1"] == sizes["mask_1"] != sizes["other_1"]


def test_no_size_at_all() -> None:
    def run(_: Mapping[str, Any]) -> None:
        raise ValueError("never")

    with pytest.raises(InputError, match="takes none of the inputs that were tried"):
        plain_inputs([TensorSpec("x", _FLOAT, ("b", "n"))], onnx.GraphProto(), run)


def test_masks() -> None:
    specs = [TensorSpec("x", _FLOAT, ("b", "n", 4)), TensorSpec("m", _FLOAT, ("b", "n"))]
    cases = {case.name: case for case in PlainInputs(specs, {}, {"m"}).cases()}

    assert cases["nothing masked"].feed["m"].all()
    assert not cases["a fully masked row"].feed["m"][0].any()
    assert cases["a fully masked row"].feed["m"][1:, 0].all()
    assert set(np.unique(cases["fractional weights"].feed["m"])) <= {0, 0.25, 0.5, 1.5}
    assert set(np.unique(cases["typical"].feed["m"])) == {0, 1}
    assert all(case.partial for case in cases.values())
    assert np.abs(cases["beyond both clamps"].feed["x"]).max() > 40
