"""`dynamic_shapes` in every form that torch.export takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import AdditionalInputs, Dim, ShapesCollection

import pom_export
from pom_export.errors import InputError
from pom_export.graph.dynamic_shapes import is_automatic, named_shapes

X, SCALE = torch.randn(2, 5, 8), torch.randn(2, 3)


class Scaled(nn.Module):
    """A mixer whose rows are scaled by one value each."""

    def __init__(self) -> None:
        super().__init__()
        self.mixer = pom_export.PolynomialMixer(8, 2, 2)
        self.linear = nn.Linear(3, 8)

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return self.mixer(x) * self.linear(scale)[:, None]


def collection() -> ShapesCollection:
    shapes = ShapesCollection()
    shapes[X] = {0: Dim("rows"), 1: Dim("n")}
    shapes[SCALE] = (Dim("rows"), None)
    return shapes


ROWS, N = Dim("rows"), Dim("n")
FORMS: dict[str, Callable[[], Any]] = {
    "by name and axis": lambda: {"x": {0: ROWS, 1: N}, "scale": {0: ROWS}},
    "sequences by name": lambda: {"x": (ROWS, N, None), "scale": [ROWS, 3]},
    "by position": lambda: ({0: ROWS, 1: N}, {0: ROWS}),
    "a list of tuples": lambda: [(ROWS, N, Dim.STATIC), (ROWS, Dim.STATIC)],
    "names": lambda: {"x": {0: "rows", 1: "n"}, "scale": {0: "rows"}},
    "from the end": lambda: {"x": {-3: ROWS, -2: N}, "scale": {-2: ROWS}},
    "a collection": collection,
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_says_the_same(form: str) -> None:
    found = named_shapes(Scaled(), (X, SCALE), {"x": X.detach(), "scale": SCALE.detach()}, FORMS[form]())
    names = {name: {axis: size.__name__ for axis, size in axes.items()} for name, axes in found.items()}
    assert names == {"x": {0: "rows", 1: "n"}, "scale": {0: "rows"}}


def test_other_inputs_tell_which_dimensions_change() -> None:
    shapes = AdditionalInputs()
    shapes.add((torch.randn(3, 9, 8), torch.randn(3, 3)))
    found = named_shapes(Scaled(), (X, SCALE), {"x": X, "scale": SCALE}, shapes)
    assert {name: sorted(axes) for name, axes in found.items()} == {"x": [0, 1], "scale": [0]}
    assert not is_automatic(found["x"][0])


def test_what_is_not_named_is_fixed() -> None:
    examples = {"x": X, "scale": SCALE}
    assert named_shapes(Scaled(), examples, examples, {"x": {1: Dim.AUTO}}) == {"x": {1: Dim.AUTO}, "scale": {}}
    assert named_shapes(Scaled(), examples, examples, ({1: Dim.AUTO}, None))["scale"] == {}


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"y": {0: Dim.AUTO}}, "names 'y'; the example inputs are x, scale"),
        (({0: Dim.AUTO},), "1 entries for 2 example inputs"),
        ({"x": {3: Dim.AUTO}}, "the axes .3.; its shape is"),
        ({"x": {True: Dim.AUTO}}, "the axes .True.; its shape is"),
        ({"x": (Dim.AUTO,)}, "1 entries; its shape is"),
        ({"x": Dim.AUTO}, "dynamic_shapes of x is a"),
        ({"x": {0: 3}}, "fixes dimension 0 of x at 3, but the example has 2"),
        ({"x": {0: 1.5}}, "gives a float for dimension 0 of x"),
        ({"x": {0: "a batch"}}, "names dimension 0 of x 'a batch'"),
        (3, "dynamic_shapes is an int"),
        ("x", "dynamic_shapes is a str"),
    ],
)
def test_what_does_not_fit_is_refused(shapes: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        named_shapes(Scaled(), (X, SCALE), {"x": X, "scale": SCALE}, shapes)


def test_a_collection_of_other_tensors_is_refused() -> None:
    shapes = ShapesCollection()
    shapes[torch.randn(1)] = {0: Dim.AUTO}
    with pytest.raises(InputError, match="does not fit the example inputs"):
        named_shapes(Scaled(), (X, SCALE), {"x": X, "scale": SCALE}, shapes)


@pytest.mark.parametrize(
    "shapes",
    [
        pytest.param(FORMS["a list of tuples"](), marks=pytest.mark.slow),
        FORMS["names"](),
        pytest.param(collection(), marks=pytest.mark.slow),
    ],
    ids=["a list of tuples", "names", "a collection"],
)
def test_an_export_takes_them(shapes: Any, tmp_path: Path) -> None:
    result = pom_export.export(Scaled(), tmp_path / "m.onnx", example_inputs=(X, SCALE), dynamic_shapes=shapes)
    assert result.inputs == ["x float32[rows, n, 8]", "scale float32[rows, 3]"]


def test_dimensions_of_one_name_and_two_ranges_are_refused(tmp_path: Path) -> None:
    shapes = {"x": {0: Dim("rows")}, "scale": {0: Dim("rows", max=7)}}
    with pytest.raises(InputError, match="rows"):
        pom_export.export(Scaled(), tmp_path / "m.onnx", example_inputs=(X, SCALE), dynamic_shapes=shapes)


def test_multiples_are_compared_as_such(tmp_path: Path) -> None:
    class Grouped(Scaled):
        def forward(self, x: Tensor, scale: Tensor) -> Tensor:
            return self.mixer(x.unflatten(1, (-1, 4)).mean(2)) * self.linear(scale)[:, None]

    shapes = {"x": {0: ROWS, 1: 4 * Dim("groups")}, "scale": {0: ROWS}}
    inputs = (torch.randn(2, 12, 8), SCALE)
    result = pom_export.export(Grouped(), tmp_path / "m.onnx", example_inputs=inputs, dynamic_shapes=shapes)
    assert result.inputs[0] == "x float32[rows, 4*groups, 8]"
    assert result.notes == []
