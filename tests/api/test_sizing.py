"""A user's own model is compared at other sizes, one dimension at a time; sizes that it refuses become limits."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional

import pom_export
from pom_export.errors import InputError, ParityError
from pom_export.graph.exported_model import read_model
from tests.slow_cases import slow_cases

WIDTH = 8


class Model(nn.Module):
    """A mixer, and whatever a test does around it."""

    def __init__(self, around: Callable[[Model, Tensor], Tensor], rows: int = 8) -> None:
        super().__init__()
        self.around = around
        self.mixer = pom_export.PolynomialMixer(WIDTH, 2, 2)
        self.table = nn.Parameter(torch.randn(1, rows, WIDTH))
        self.positions = nn.Embedding(rows, WIDTH)
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.around(self, x)


class Conditioned(nn.Module):
    """Tokens scaled by a (batch, width) condition."""

    def __init__(self) -> None:
        super().__init__()
        self.mixer = pom_export.PolynomialMixer(WIDTH, 2, 2)
        self.scale = nn.Linear(12, WIDTH)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.mixer(x * self.scale(c)[:, None])


class OfLengths(nn.Module):
    """Rows of several lengths, and the last token of each row."""

    def __init__(self) -> None:
        super().__init__()
        self.mixer = pom_export.PolynomialMixer(WIDTH, 2, 2)

    def forward(self, x: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        mask = torch.arange(x.shape[1]) < lengths[:, None]
        y = self.mixer(x, mask=mask)
        return {"y": y, "last": y[torch.arange(x.shape[0]), lengths - 1]}


class Masked(nn.Module):
    """A mixer with a mask as input."""

    def __init__(self) -> None:
        super().__init__()
        self.mixer = pom_export.PolynomialMixer(WIDTH, 2, 2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.mixer(x, mask=mask)


def padded_to_four(model: Model, x: Tensor) -> Tensor:
    n = x.shape[1]
    if n % 4:
        x = functional.pad(x, (0, 0, 0, -n % 4))
    return model.mixer(x)[:, :n]


def export(model: nn.Module, folder: Path, *inputs: Tensor, **options: object) -> pom_export.api.exporting.ExportResult:
    torch.manual_seed(0)
    return pom_export.export(model.eval(), folder / "m.onnx", example_inputs=inputs, **options)  # type: ignore[arg-type]


def tokens(count: int) -> Tensor:
    return torch.randn(2, count, WIDTH)


def test_a_width_that_the_model_fixes_is_fixed_and_the_tokens_are_compared(tmp_path: Path) -> None:
    result = export(Conditioned(), tmp_path, tokens(6), torch.randn(2, 12))
    assert result.inputs == [f"x float32[batch, tokens, {WIDTH}]", "c float32[batch, 12]"]
    assert "dimension 1 of c at 12" in result.notes[0]


@pytest.mark.slow
def test_as_many_tokens_as_channels_leaves_the_width_fixed(tmp_path: Path) -> None:
    result = export(Model(lambda model, x: model.mixer(x)), tmp_path, tokens(WIDTH))
    assert result.inputs == [f"x float32[batch, tokens, {WIDTH}]"]


def test_a_graph_of_the_examples_sizes_alone_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ParityError, match="on tokens"):
        export(Model(padded_to_four), tmp_path, tokens(8))
    assert not list(tmp_path.iterdir())


def of_embedding(positions: Callable[[Tensor], Tensor]) -> Callable[[Model, Tensor], Tensor]:
    return lambda model, x: model.mixer(x + model.positions(positions(x)))


ENDS: dict[str, tuple[Callable[[Model, Tensor], Tensor], int, tuple[int, int | None]]] = {
    "a table": (lambda model, x: model.mixer(x + model.table[:, : x.shape[1]]), 5, (0, 8)),
    "a table's end": (lambda model, x: model.mixer(x + model.table[:, -x.shape[1] :]), 3, (1, 8)),
    "an embedding": (of_embedding(lambda x: torch.arange(x.shape[1])), 3, (0, 8)),
    "an embedding from 2 on": (of_embedding(lambda x: (torch.arange(x.shape[1]) + 2)[None]), 3, (0, 6)),
    "looked up by value": (of_embedding(lambda x: torch.ones_like(x[..., 0]).cumsum(1).long()), 5, (0, 7)),
    "a branch above": (
        lambda model, x: model.linear(model.mixer(x)) if x.shape[1] > 16 else model.mixer(x), 9, (0, 16),
    ),
    "a branch below": (
        lambda model, x: model.linear(model.mixer(x)) if x.shape[1] < 5 else model.mixer(x), 9, (5, None),
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    "end", slow_cases(ENDS, lambda name: name not in {"an embedding from 2 on", "looked up by value", "a branch above"})
)
def test_where_the_graph_ends_is_a_limit_of_the_file(end: str, tmp_path: Path) -> None:
    around, count, bounds = ENDS[end]
    result = export(Model(around), tmp_path, tokens(count))
    assert result.inputs == [f"x float32[batch, tokens, {WIDTH}]"]
    assert dict(read_model(tmp_path / "m.onnx").limits.sizes) == {"tokens": bounds}
    assert any(note.startswith("tokens must be at ") for note in result.notes)


def test_a_table_of_the_examples_length_fixes_the_tokens(tmp_path: Path) -> None:
    result = export(Model(lambda model, x: model.mixer(x + model.table)), tmp_path, tokens(8))
    assert result.inputs == [f"x float32[batch, 8, {WIDTH}]"]
    assert "dimension 1 of x at 8" in result.notes[0]


def test_sizes_that_the_model_itself_refuses_are_named(tmp_path: Path) -> None:
    def around(model: Model, x: Tensor) -> Tensor:
        return model.mixer(x.reshape(2 * x.shape[0], -1, WIDTH)).reshape(x.shape)

    result = export(Model(around), tmp_path, tokens(6))
    assert result.inputs == [f"x float32[batch, tokens, {WIDTH}]"]
    assert any("the model refuses 1, 7" in note for note in result.notes)


def test_lengths_follow_the_tokens_that_there_are(tmp_path: Path) -> None:
    result = export(OfLengths(), tmp_path, tokens(6), torch.tensor([6, 4]))
    assert result.inputs == [f"x float32[batch, tokens, {WIDTH}]", "lengths int64[batch]"]
    (note,) = result.notes
    assert note.startswith("tokens must be at least 1: at 0 PyTorch fails or gives no numbers (index is out of bounds")


def test_sizes_that_the_model_wants_equal_are_changed_together(tmp_path: Path) -> None:
    class Picked(Masked):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.mixer(x).gather(1, mask[..., None].expand(-1, -1, WIDTH))

    picked = torch.tensor([[1, 0, 3], [0, 2, 4]])
    result = export(Picked(), tmp_path, tokens(5), picked)
    assert all("at 0 PyTorch fails" in note for note in result.notes)


@pytest.mark.parametrize("rows", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_axes_of_a_mask_are_those_of_the_tokens(rows: int, tmp_path: Path) -> None:
    mask = torch.tensor([[True, True, False, True, True]])
    result = export(Masked(), tmp_path, tokens(5), mask.repeat(rows, 1))
    assert result.inputs[1] == f"mask bool[{'batch' if rows == 2 else 1}, tokens]"


def test_sizes_that_go_with_others_are_changed_with_them(tmp_path: Path) -> None:
    class Shifted(Masked):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.mixer(x) + mask[:, 1:, None]

    result = export(Shifted(), tmp_path, tokens(5), torch.randn(2, 6))
    assert result.inputs[1] == "mask float32[batch, tokens + 1]"
    assert result.notes == []


def test_sizes_at_which_the_model_itself_gives_no_numbers_are_named(tmp_path: Path) -> None:
    result = export(Model(lambda model, x: model.mixer(x) / x.std(1, keepdim=True)), tmp_path, tokens(5))
    assert result.notes == ["tokens 1 was not compared: an output is empty there, or not finite"]


@pytest.mark.parametrize("asked", slow_cases([Dim("width"), "width", Dim.DYNAMIC], lambda name: name != "width"))
def test_a_dimension_that_was_asked_for_and_is_fixed_is_named(asked: object, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"dimension 2 of x was asked .* fixes it to 8"):
        export(
            Model(lambda model, x: model.mixer(x)),
            tmp_path,
            tokens(5),
            dynamic_shapes={"x": {0: Dim("rows"), 2: asked}},
        )
    assert not list(tmp_path.iterdir())


def test_bounds_that_the_user_gave_are_limits(tmp_path: Path) -> None:
    shapes = {"x": {0: Dim("rows", max=3), 1: Dim("n", min=2, max=40)}}
    result = export(Model(lambda model, x: model.mixer(x)), tmp_path, tokens(5), dynamic_shapes=shapes)
    assert result.inputs == [f"x float32[rows, n, {WIDTH}]"]
    assert dict(read_model(tmp_path / "m.onnx").limits.sizes) == {"rows": (0, 3), "n": (2, 40)}


def test_the_user_says_for_which_sizes_a_branch_is_not_taken(tmp_path: Path) -> None:
    def around(model: Model, x: Tensor) -> Tensor:
        return model.linear(model.mixer(x)) if x.shape[1] == 1 else model.mixer(x)

    with pytest.raises(ParityError, match=r"on tokens 1, .*At the example's own sizes they agree"):
        export(Model(around), tmp_path, tokens(5))
    result = export(Model(around), tmp_path, tokens(5), dynamic_shapes={"x": {0: Dim("rows"), 1: Dim("n", min=2)}})
    assert any(note.startswith("n must be at least 2") for note in result.notes)


class Image(nn.Module):
    """A mixer of patches, and a convolution over the image that they are assembled into."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 2, 2)
        self.mixer = pom_export.PolynomialMixer(WIDTH, 2, 2)
        self.smooth = nn.Conv2d(WIDTH, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        image = self.patches(x)
        return self.smooth(self.mixer(image.flatten(2).mT).mT.reshape(image.shape))


@pytest.mark.slow
def test_one_image_is_no_fewer_than_the_model_takes(tmp_path: Path) -> None:
    # torch holds two for the least, for one image may lie in memory in either order.
    result = export(Image(), tmp_path, torch.randn(2, 3, 4, 6))
    assert result.inputs == ["x float32[batch, 3, 4, 6]"]
    assert not any("at least 2" in note for note in result.notes)
    assert not read_model(tmp_path / "m.onnx").limits.sizes


def test_one_is_too_few_where_the_model_then_takes_another_branch(tmp_path: Path) -> None:
    def around(model: Model, x: Tensor) -> Tensor:
        return model.mixer(x) if x.shape[1] > 1 else model.linear(model.mixer(x))

    result = export(Model(around), tmp_path, tokens(5))
    assert dict(read_model(tmp_path / "m.onnx").limits.sizes) == {"tokens": (2, None)}
    assert any(note.startswith("tokens must be at least 2") for note in result.notes)


@pytest.mark.slow
def test_half_precision_is_compared_at_the_same_sizes(tmp_path: Path) -> None:
    result = export(Conditioned(), tmp_path, tokens(6), torch.randn(2, 12), dtype="float16")
    assert result.inputs == [f"x float16[batch, tokens, {WIDTH}]", "c float16[batch, 12]"]


@pytest.mark.parametrize("special", [pytest.param((64,), marks=pytest.mark.slow), (11, 17)])
def test_a_branch_for_one_size_far_from_the_examples_is_compared(special: tuple[int, ...], tmp_path: Path) -> None:
    model = Model(lambda m, x: m.mixer(x) * (2 if x.shape[1] in special else 1))
    with pytest.raises(ParityError, match=rf"on tokens {special[-1]},"):
        export(model, tmp_path, tokens(6))


@pytest.mark.slow
def test_a_branch_for_a_size_that_changes_nothing_is_exported(tmp_path: Path) -> None:
    model = Model(lambda m, x: m.mixer(x) if x.shape[1] == 64 else m.mixer(x * 1))
    assert export(model, tmp_path, tokens(6)).inputs == [f"x float32[batch, tokens, {WIDTH}]"]


@pytest.mark.slow
def test_a_branch_for_a_size_too_large_to_compare_is_named(tmp_path: Path) -> None:
    model = Model(lambda m, x: m.mixer(x) * (2 if x.shape[1] == 100_000 else 1))
    assert any("tokens 100000: not compared" in note for note in export(model, tmp_path, tokens(6)).notes)


SIZED = {
    "rounded": lambda m, x: m.mixer(x)[:, : int(x.shape[1] * 0.75)],
    "an exponential": lambda m, x: m.mixer(x) * math.exp(-x.shape[1] / 10),
}


@pytest.mark.parametrize("how", slow_cases(SIZED, lambda name: name != "rounded"))
def test_a_number_made_of_a_size_fixes_it_and_is_named(how: str, tmp_path: Path) -> None:
    result = export(Model(SIZED[how]), tmp_path, tokens(9))
    assert result.inputs == [f"x float32[batch, 9, {WIDTH}]"]
    assert any(
        "turns dimension 1 of x into a Python number" in note and "test_sizing.py line" in note and "(//, %)" in note
        for note in result.notes
    )


@pytest.mark.slow
def test_a_number_that_many_sizes_make_is_a_limit(tmp_path: Path) -> None:
    result = export(Model(lambda m, x: m.mixer(x) * (1 + int(x.shape[1] / 100))), tmp_path, tokens(9))
    assert dict(read_model(tmp_path / "m.onnx").limits.sizes) == {"tokens": (0, 99)}
    assert any("test_sizing.py line" in note for note in result.notes)


def test_no_tokens_are_compared_or_beyond_the_limits(tmp_path: Path) -> None:
    """The mean of no tokens is NaN in PyTorch, and 0 in ONNX Runtime."""
    result = export(Model(lambda model, x: model.mixer(x).mean(1)), tmp_path, tokens(5))
    assert "tokens must be at least 1: at 0 PyTorch fails or gives no numbers (an output is not finite)" in result.notes
    assert dict(read_model(tmp_path / "m.onnx").limits.sizes) == {"tokens": (1, None)}
    with pytest.raises(ParityError, match="on tokens 0,"):
        export(Model(lambda model, x: model.mixer(x).sum(1) + (0 if x.shape[1] else 1)), tmp_path, tokens(5))


class OfFirstRow(Masked):
    """Forgets a mask if it is traced with one that masks nothing, and all rows but the first."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        if torch.compiler.is_exporting():
            return self.mixer(x[:1].expand_as(x))
        return self.mixer(x, mask=mask)


@pytest.mark.slow
def test_what_depends_on_a_size_is_not_said_to_depend_on_values(tmp_path: Path) -> None:
    """The case of other values has another size, and may be the one that differs most."""

    def around(model: Model, x: Tensor) -> Tensor:
        return model.linear(model.mixer(x)) if x.shape[0] % 2 else model.mixer(x)

    model = Model(around)
    with pytest.raises(ParityError, match=r"they agree, not at batch \d+, .* Look for what depends on a size"):
        export(model, tmp_path, 3 * tokens(5))


def test_examples_that_are_alike_are_compared_on_other_values_too(tmp_path: Path) -> None:
    model, alike = OfFirstRow(), torch.zeros(2, 5, WIDTH)
    model.mixer.se_bias.data.fill_(0.5)
    with pytest.raises(ParityError, match="on other values"):
        export(model, tmp_path, alike, torch.ones(2, 5, dtype=torch.bool))
