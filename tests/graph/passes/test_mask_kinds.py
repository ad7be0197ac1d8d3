"""Masks as users write them: causal ones, with or without padding, become the op's mode; all others stay."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

import pom_export
from pom_export import contract
from pom_export.graph.dynamic_shapes import Shapes
from pom_export.graph.own_program import module_program
from pom_export.graph.passes import NameByModulePass, NameDimensionsPass, RecogniseCausalPass
from pom_export.graph.tracing import trace
from pom_export.mixer import PolynomialMixer, ProductMixer
from pom_export.mixer.aggregation import Polynomial, aggregate

Mask = Callable[[Tensor, Tensor], Tensor]
NEGATIVE = float("-inf")
TABLE = torch.tril(torch.ones(1, 1, 64, 64))
WINDOW = torch.tril(torch.ones(600, 600)) * torch.triu(torch.ones(600, 600), diagonal=-511)


def places(x: Tensor) -> Tensor:
    return torch.arange(x.shape[1])


def ones(x: Tensor) -> Tensor:
    return torch.ones(x.shape[1], x.shape[1])


def square(x: Tensor) -> Tensor:
    return nn.Transformer.generate_square_subsequent_mask(x.shape[1])


def distance(x: Tensor) -> Tensor:
    return places(x)[:, None] - places(x)


def causal(x: Tensor) -> Tensor:
    return places(x)[:, None] >= places(x)


CAUSAL: dict[str, Mask] = {
    "places compared": lambda x, _: causal(x)[None],
    "the other way round": lambda x, _: (places(x)[None] <= places(x)[:, None]).unsqueeze(0).expand(x.shape[0], -1, -1),
    "distances": lambda x, _: (distance(x) >= 0).int()[None],
    "floating places": lambda x, _: (torch.arange(x.shape[1], dtype=x.dtype)[:, None] >= places(x))[None].float(),
    "triu == 0": lambda x, _: (torch.triu(ones(x), diagonal=1) == 0)[None],
    "1 - triu": lambda x, _: (1 - torch.triu(ones(x), diagonal=1))[None],
    "torch's own": lambda x, _: (square(x) == 0)[None],
    "torch's own, exp": lambda x, _: square(x).exp()[None],
    "torch's own, finite": lambda x, _: torch.isfinite(square(x))[None],
    "filled": lambda x, _: (torch.zeros_like(ones(x)).masked_fill(~causal(x), NEGATIVE) > -1)[None],
    "-10000": lambda x, _: (torch.triu(ones(x), diagonal=1) * -10000.0 > -1)[None],
    "where": lambda x, _: torch.where(causal(x), 1.0, 0.0)[None],
    "a table": lambda x, _: TABLE[:, 0, : x.shape[1], : x.shape[1]] == 1,
    "bfloat16": lambda x, _: torch.tril(ones(x)).bfloat16()[None],
}
CAUSAL_WITH_KEYS: dict[str, Mask] = {
    "and": lambda x, keep: torch.tril(ones(x)).bool() & keep.bool()[:, None, :],
    "and, of four axes": lambda x, keep: (keep.bool()[:, None, None, :] & causal(x)[None, None])[:, 0],
    "and, of the last head": lambda x, keep: (keep.bool()[:, None, None, :].expand(-1, 3, 1, -1) & causal(x))[:, -1],
    "and, squeezed": lambda x, keep: (keep.bool()[:, None, None, :] & causal(x)[None, None]).squeeze(1),
    "product": lambda x, keep: torch.tril(ones(x)) * keep[:, None, :],
    "sum of infinities": lambda x, keep: (
        square(x)[None] + torch.zeros_like(keep).masked_fill(keep == 0, NEGATIVE)[:, None, :] == 0
    ),
    "filled": lambda x, keep: torch.tril(ones(x)).expand(x.shape[0], -1, -1).masked_fill(keep[:, None, :] == 0, 0),
    "not or": lambda x, keep: ~(~causal(x) | (keep == 0)[:, None, :]),
    "where": lambda x, keep: torch.where(keep.bool()[:, None, :], torch.tril(ones(x)), torch.zeros(())),
    "triangle of the keys": lambda x, keep: torch.tril(keep[:, None, :].repeat(1, x.shape[1], 1)),
    "lengths": lambda x, keep: causal(x) & (places(x)[None, None, :] < keep.sum(1).long()[:, None, None]),
}
SAME_ROWS: dict[str, Mask] = {
    "expanded": lambda x, keep: keep[:, None, :].expand(-1, x.shape[1], -1),
    "repeated": lambda x, keep: keep.bool()[:, None, :].repeat(1, x.shape[1], 1),
    "times ones": lambda x, keep: keep[:, None, :] * torch.ones(x.shape[1], 1),
    "for all queries at once": lambda _, keep: keep[:, None, :],
    "a later head": lambda x, keep: keep[:, None, None, :].repeat(1, 4, x.shape[1], 1)[:, 2],
}
OTHER: dict[str, tuple[Mask, str]] = {
    "a window": (lambda x, _: (causal(x) & (distance(x) < 3))[None], "not a lower triangle of ones at 4 tokens"),
    "a long window": (lambda x, _: (causal(x) & (distance(x) < 512))[None], "at 513 tokens"),
    "a window by division": (lambda x, _: (causal(x) & (distance(x) / 700 < 1))[None], "at 701 tokens"),
    "a longer window": (
        lambda x, _: (causal(x) & (distance(x) < 4096))[None],
        "the number 4096, which is too many tokens",
    ),
    "a window in a table": (lambda x, _: WINDOW[None, : x.shape[1], : x.shape[1]], "at 600 tokens"),
    "a window by the size": (lambda x, _: (causal(x) & (distance(x) <= x.shape[1] // 2))[None], "not a lower triangle"),
    "a window of blocks": (lambda x, _: (causal(x) & (places(x)[:, None] // 64 - places(x) // 64 < 9))[None], "of pos"),
    "a window by a root": (lambda x, _: (causal(x) & (distance(x).abs().sqrt() < 64))[None], "Sqrt of positions"),
    "a window by a logarithm": (lambda x, _: (causal(x) & ((distance(x).abs() + 1).log2() < 9))[None], "Log of pos"),
    "a window by decay": (lambda x, _: (causal(x) & (0.99 ** distance(x).abs() > 0.01))[None], "Pow of positions"),
    "a window by scale": (lambda x, _: (causal(x) & (distance(x) * 0.01 < 5))[None], "Mul of positions"),
    "a window by shifts": (lambda x, _: (causal(x) & (distance(x).abs() >> 9 == 0))[None], "of positions"),
    "a window by subtraction": (lambda x, _: (causal(x) & ((distance(x) - 3000.0).relu() == 0))[None], "larger than"),
    "a window by a limit": (
        lambda x, _: (causal(x) & (distance(x).clamp(max=3e3) == distance(x)))[None],
        "larger than",
    ),
    "a window in a matrix": (lambda x, _: (causal(x) & (distance(x) < 3e3 * ones(x)))[None], "larger than"),
    "keys of the past and of the future": (
        lambda x, keep: torch.where(causal(x), keep[:, None, :], keep.flip(1)[:, None, :]),
        "not a lower triangle, nor the same for all queries",
    ),
    "places in half": (lambda x, _: (places(x).half()[:, None] >= places(x).half())[None], "Cast of positions"),
    "blocks": (lambda x, _: (places(x)[:, None] // 512 >= places(x) // 512)[None], "not a lower triangle"),
    "a prefix": (lambda x, _: (causal(x) | (places(x) < 3))[None], "not a lower triangle"),
    "a prefix of each row": (
        lambda x, keep: causal(x) | (places(x)[None, None, :] < keep.sum(1).long()[:, None, None]),
        "not a lower triangle, nor the same for all queries",
    ),
    "without the diagonal": (lambda x, _: (places(x)[:, None] > places(x))[None], "not a lower triangle"),
    "a weight beyond": (lambda x, keep: torch.tril(ones(x)) * keep[:, None, :] + 0.5 * (~causal(x)), "nor the same"),
    "decay": (lambda x, _: (torch.tril(ones(x)) * 0.9 ** distance(x))[None], "not a lower triangle"),
    "documents": (lambda x, keep: causal(x) & (keep[:, :, None] == keep[:, None, :]), "depends on keep for each pair"),
    "queries left out": (lambda x, keep: causal(x) & keep.bool()[:, :, None], "depends on keep for each pair"),
    "the tokens": (lambda x, _: causal(x) & (x @ x.mT > 0), "depends on x for each pair"),
}


class Masked(nn.Module):
    def __init__(self, mixer: nn.Module, mask: Mask) -> None:
        super().__init__()
        self.mixer, self.mask = mixer, mask

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        return self.mixer(x, None, self.mask(x, keep))


X = torch.randn(2, 7, 4, generator=torch.Generator().manual_seed(0))
KEEP = torch.tensor([[1.0, 1, 1, 1, 0, 0, 0], [1, 0, 1, 1, 1, 1, 0]])


class Aggregate(nn.Module):
    """What a mixer does with its mask, without projections and gate."""

    def __init__(self) -> None:
        super().__init__()
        self.coefficients = nn.Parameter(torch.randn(4, 2))  # those of no two are one for torch's optimizer

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return aggregate(x, Polynomial(self.coefficients), mask, causal=False)[0]


def kinds(masks: dict[str, Mask], dynamic_shapes: Shapes | None = None) -> dict[str, tuple[str, str]]:
    """Return the mode and the mask type that each mask becomes, or "features" and the reason; traced once."""

    class All(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mixers = nn.ModuleDict({str(i): Aggregate() for i in range(len(masks))})

        def forward(self, x: Tensor, keep: Tensor) -> tuple[Tensor, ...]:
            return tuple(self.mixers[str(i)](x, mask(x, keep)) for i, mask in enumerate(masks.values()))

    program = module_program(All().eval(), {"x": X, "keep": KEEP}, dynamic_shapes)
    model = trace(program, 20).graph
    for step in (NameByModulePass(program.prefix), NameDimensionsPass(), RecogniseCausalPass()):
        model = step(model).model
    names = {f"mixers.{i}": name for i, name in enumerate(masks)}
    found = {names[module]: ("features", reason) for module, reason in model.meta["pom_export.quadratic"].items()}
    for node in model.graph:
        mode = node.attributes["mode"].as_string() if node.domain == contract.DOMAIN else "features"
        if mode != "features":
            mask = node.inputs[2] if len(node.inputs) > 2 else None
            found[names[(node.name or "").partition("/")[0]]] = (
                mode,
                "" if mask is None else f"{mask.dtype}{mask.shape}",
            )
    return found


FEW = {
    *("places compared", "1 - triu", "torch's own, exp", "-10000", "a table"),
    *("and", "product", "sum of infinities", "lengths", "expanded", "a later head"),
    *("a window by the size", "a long window", "a window by a root", "a window by subtraction", "documents"),
    *("keys of the past and of the future", "a prefix of each row", "a weight beyond"),
}
few_or_all = pytest.mark.parametrize("names", [FEW, pytest.param(None, marks=pytest.mark.slow)], ids=["few", "all"])


def chosen(masks: Mapping[str, Any], names: set[str] | None) -> dict[str, Any]:
    """Return the masks of these names, all of them for None: what takes long is to trace them."""
    return {name: mask for name, mask in masks.items() if names is None or name in names}


@few_or_all
def test_every_spelling_of_a_causal_mask_is_causal(names: set[str] | None) -> None:
    masks = chosen(CAUSAL, names)
    assert kinds(masks) == dict.fromkeys(masks, ("causal", ""))


@few_or_all
def test_padding_under_a_causal_mask_becomes_the_ops_mask(names: set[str] | None) -> None:
    found = kinds(chosen(CAUSAL_WITH_KEYS, names))
    assert {mode for mode, _ in found.values()} == {"causal"}, found
    assert {kind.partition("[")[2] for _, kind in found.values()} == {"batch,tokens]"}
    assert found["and"][1].startswith("BOOL")
    assert found["product"][1].startswith("FLOAT")


@few_or_all
def test_a_mask_that_is_the_same_for_every_query_is_a_padding_mask(names: set[str] | None) -> None:
    assert {mode for mode, _ in kinds(chosen(SAME_ROWS, names)).values()} == {"mean"}


@few_or_all
def test_whatever_is_not_causal_stays_and_says_why(names: set[str] | None) -> None:
    masks = chosen(OTHER, names)
    tokens_alone = {name: {1: torch.export.Dim.AUTO} for name in ("x", "keep")}  # which is faster to trace
    found = kinds({name: mask for name, (mask, _) in masks.items()}, tokens_alone)
    wrong = {name: found[name] for name, (_, reason) in masks.items() if reason not in found[name][1]}
    assert not wrong


@pytest.mark.parametrize(
    ("mixers", "dtype"),
    [
        (
            [
                (ProductMixer(4, 2, 2, n_head=2), CAUSAL_WITH_KEYS["product"]),
                (PolynomialMixer(4, 2, 2, n_sel_heads=2), SAME_ROWS["repeated"]),
            ],
            "float32",
        ),
        pytest.param(
            [
                (PolynomialMixer(4, 2, 2, n_sel_heads=2), CAUSAL_WITH_KEYS["sum of infinities"]),
                (ProductMixer(4, 2, 2, n_head=2), CAUSAL_WITH_KEYS["product"]),
                (PolynomialMixer(4, 2, 2), SAME_ROWS["expanded"]),
                (PolynomialMixer(4, 2, 2, n_sel_heads=2), SAME_ROWS["repeated"]),
                (PolynomialMixer(4, 2, 2, n_sel_heads=2), SAME_ROWS["for all queries at once"]),
                (PolynomialMixer(4, 2, 2), SAME_ROWS["a later head"]),
                (PolynomialMixer(4, 2, 2), CAUSAL_WITH_KEYS["and, of the last head"]),
            ],
            "float32",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            [
                (PolynomialMixer(4, 2, 2), CAUSAL_WITH_KEYS["filled"]),
                (ProductMixer(4, 2, 2), SAME_ROWS["times ones"]),
            ],
            "float16",
            marks=pytest.mark.slow,
        ),
        pytest.param([(PolynomialMixer(4, 2, 2), CAUSAL_WITH_KEYS["and"])], "bfloat16", marks=pytest.mark.slow),
    ],
    ids=["few", "float32", "float16", "bfloat16"],
)
def test_the_outputs_are_those_of_the_model(mixers: list[tuple[nn.Module, Mask]], dtype: str, tmp_path: Path) -> None:
    class All(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.masked = nn.ModuleList(Masked(mixer, mask) for mixer, mask in mixers)

        def forward(self, x: Tensor, keep: Tensor) -> tuple[Tensor, ...]:
            return tuple(each(x, keep) for each in self.masked)

    result = pom_export.export(All().eval(), tmp_path / "m.onnx", example_inputs=(X, KEEP), dtype=dtype)
    assert [note for note in result.notes if "at 0 PyTorch fails" not in note] == []
    assert (result.aggregations, len(result.outputs)) == (len(mixers), len(mixers))
    operators = {node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node}
    assert not operators & {"Trilu", "ReduceSum", "Range"}
    assert result.checked


def test_what_stays_quadratic_is_counted_and_named(tmp_path: Path) -> None:
    class Three(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.three = (PolynomialMixer(4, 2, 1) for _ in range(3))

        def forward(self, x: Tensor, pairs: Tensor) -> Tensor:
            x = self.one(x, None, causal(x)[None])
            return self.three(self.two(x, None, pairs))

    result = pom_export.export(Three().eval(), tmp_path / "m.onnx", example_inputs=(X, torch.ones(2, 7, 7)))
    assert result.notes == [
        "1 of 3 aggregations takes a (B, T, N) mask: quadratic in tokens (two: the mask is an input)"
    ]


def test_a_full_mask_that_was_asked_for_is_said_too(tmp_path: Path) -> None:
    result = pom_export.export(PolynomialMixer(4, 2, 1), tmp_path / "m.onnx", mask="full")
    assert any(line.startswith("1 of 1 aggregation takes a (B, T, N) mask") for line in result.notes)
