"""Models that no state makes right are refused, with the name of the part that is to blame."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pom_export import PolynomialMixer
from pom_export.errors import InputError
from tests.graph.stateful.streaming import difference, one_pass, program_of, streamed
from tests.official_style import PoM
from tests.slow_cases import slow_cases

WIDTH, TABLE = 8, 32
Part = Callable[[nn.Module, Tensor], Tensor]


class Model(nn.Module):
    """A causal mixer after a part that a test chooses."""

    def __init__(self, part: Part, layer: nn.Module | None) -> None:
        super().__init__()
        self.tokens, self.part, self.layer = nn.Embedding(11, WIDTH), part, layer
        self.mixer = PolynomialMixer(WIDTH, 2, 2)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.mixer(self.part(self, self.tokens(input_ids)), mask="causal")


def _attend(mask: Tensor | None) -> Part:
    def part(_: nn.Module, x: Tensor) -> Tensor:
        count = x.shape[1]
        own = None if mask is None else mask[:count, :count]
        return functional.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None], attn_mask=own)[:, 0]

    return part


def _channels(model: nn.Module, x: Tensor) -> Tensor:
    return model.layer(x.transpose(1, 2)).transpose(1, 2)


def _distances(count: int) -> Tensor:
    steps = torch.arange(count)
    away = steps[:, None] - steps
    return torch.where(away < 0, 1 << 40, away)


def _windowed(_: nn.Module, x: Tensor) -> Tensor:
    mask = _distances(x.shape[1]) < 5
    return functional.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None], attn_mask=mask)[:, 0]


_LOWER = torch.ones(TABLE, TABLE, dtype=torch.bool).tril()
_DISTANCE = torch.where(_LOWER, torch.arange(TABLE) - torch.arange(TABLE)[:, None], -torch.inf).float()

REFUSED: dict[str, tuple[Part, Callable[[], nn.Module | None], str]] = {
    "a mixer of all tokens": (lambda m, x: m.layer(x), lambda: PoM(WIDTH, 2, 2, 1, 1), "in layer"),
    "pooling": (lambda _, x: x + x.mean(1, keepdim=True), lambda: None, "aten.mean.dim"),
    "batch statistics": (_channels, lambda: nn.BatchNorm1d(WIDTH, track_running_stats=False), "in layer (BatchNorm1d)"),
    "a flip": (lambda _, x: x.flip(1), lambda: None, "aten.flip"),
    "a convolution that looks ahead": (_channels, lambda: nn.Conv1d(WIDTH, WIDTH, 3, padding=1), "in layer (Conv1d)"),
    "a convolution that reflects": (
        lambda m, x: m.layer(functional.pad(x.transpose(1, 2), (2, 0), "reflect")).transpose(1, 2),
        lambda: nn.Conv1d(WIDTH, WIDTH, 3),
        "aten.pad",
    ),
    "relative positions": (
        lambda _, x: x + (torch.arange(x.shape[1]) / x.shape[1])[:, None],
        lambda: None,
        "positions",
    ),
    "a size as a number": (lambda _, x: x / x.shape[1], lambda: None, "aten.div.Tensor"),
    "attention to all": (_attend(None), lambda: None, "not causal"),
    "attention to one token ahead": (_attend(_LOWER.roll(-1, 0)), lambda: None, "not causal"),
    "a root of a size": (lambda _, x: x / x.shape[1] ** 0.5, lambda: None, "aten.div.Tensor"),
    "angles that depend on the number": (
        lambda _, x: x * torch.arange(x.shape[1])[:, None] * torch.maximum(torch.ones(1), torch.tensor(x.shape[1] / 4)),
        lambda: None,
        "how many tokens there are",
    ),
    "scores divided by their number": (
        lambda _, x: (x @ x.mT).tril() / x.shape[1] @ x,
        lambda: None,
        "aten.div.Tensor",
    ),
    "a bias that depends on the number": (
        lambda _, x: (x @ x.mT * (torch.arange(x.shape[1]) / x.shape[1])).tril() @ x,
        lambda: None,
        "how many tokens follow",
    ),
    "a number as a tensor": (
        lambda _, x: x * torch.maximum(torch.tensor(1.0), torch.tensor(x.shape[1] / 4)),
        lambda: None,
        "how many tokens there are",
    ),
    "queries in another order": (lambda _, x: (x @ x.mT).flip(1).tril() @ x, lambda: None, "aten.flip"),
    "a sum over tokens": (lambda _, x: x.cumsum(1), lambda: None, "aten.cumsum"),
    # What these do shows only on values or sizes that a short random example does not have.
    "a value that some token has": (lambda _, x: x + (x > 50).any(1, keepdim=True), lambda: None, "aten.any"),
    "all after a value": (lambda _, x: x * ((x > 50).cumsum(1) == 0), lambda: None, "aten.cumsum"),
    "a mixer's long window": (
        lambda m, x: m.layer(x, mask=((_distances(x.shape[1]) >= 0) & (_distances(x.shape[1]) < 6000))[None]),
        lambda: PoM(WIDTH, 2, 2, 1, 1),
        "leaves some out",
    ),
    "a mixer's mask of values": (
        lambda m, x: m.layer(x, mask=_LOWER[: x.shape[1], : x.shape[1]] & (x[..., 0] < 50)[:, None]),
        lambda: PoM(WIDTH, 2, 2, 1, 1),
        "may",
    ),
    "positions rescaled by their number": (
        lambda _, x: x + (torch.arange(x.shape[1]) * (1000 / torch.arange(x.shape[1]).max()).clamp(max=1.0))[:, None],
        lambda: None,
        "positions",
    ),
}
QUICK = (
    "a value that some token has",
    "a mixer's long window",
    "a mixer of all tokens",
    "a convolution that looks ahead",
    "attention to one token ahead",
    "a size as a number",
)


def _examples() -> dict[str, Tensor]:
    return {"input_ids": torch.randint(0, 11, (2, 9), generator=torch.Generator().manual_seed(0))}


@pytest.mark.parametrize("name", slow_cases(list(REFUSED), lambda name: name not in QUICK, str))
def test_refused_with_the_name_of_the_part(name: str) -> None:
    part, layer, blamed = REFUSED[name]
    with pytest.raises(InputError, match="with `stateful`") as error:
        program_of(Model(part, layer()), _examples())
    assert blamed in str(error.value)


def test_a_pooled_output_is_refused() -> None:
    class Classifier(Model):
        def forward(self, input_ids: Tensor) -> Tensor:
            return super().forward(input_ids).mean(1)

    with pytest.raises(InputError, match="or be that of the last token"):
        program_of(Classifier(lambda _, x: x, None), _examples())


def _table(count: int) -> nn.Module:
    holder = nn.Embedding(TABLE, WIDTH)
    holder.register_buffer("ids", torch.arange(count)[None])
    return holder


TAKEN: dict[str, tuple[Part, Callable[[], nn.Module | None], int | None]] = {
    "kept statistics": (_channels, lambda: nn.BatchNorm1d(WIDTH), None),
    "positions from 2": (lambda m, x: x + m.layer(torch.arange(x.shape[1]) + 2), lambda: _table(3), TABLE - 2),
    "positions of a buffer": (lambda m, x: x + m.layer(m.layer.ids[:, : x.shape[1]]), lambda: _table(17), 17),
    "positions beside tokens": (
        lambda m, x: x * torch.cat([x, m.layer.weight[: x.shape[1]].expand(x.shape[0], -1, -1)], -1).mean(-1, True),
        lambda: _table(3),
        TABLE,
    ),
    "positions that end": (lambda _, x: x + torch.arange(x.shape[1]).clamp(max=5)[:, None], lambda: None, None),
    "positions that end in a table": (
        lambda m, x: x + m.layer(torch.arange(x.shape[1]).clamp(max=TABLE - 1)),
        lambda: _table(3),
        None,
    ),
    "positions that repeat": (lambda m, x: x + m.layer(torch.arange(x.shape[1]) % 4), lambda: _table(3), None),
    "a bias by distance": (_attend(_DISTANCE), lambda: None, TABLE),
    "a window of a table": (_attend(_LOWER & ~_LOWER.roll(3, 0)), lambda: None, TABLE),
    "a window": (_windowed, lambda: None, None),
    "segments": (lambda m, x: x + m.layer(torch.arange(x.shape[1]) // 1000), lambda: _table(3), 1000 * TABLE),
    "the last tokens alone": (lambda _, x: x[:, -20:], lambda: None, 20),
    "a shift by padding": (lambda _, x: x + nn.ZeroPad2d((0, 0, 1, -1))(x), lambda: None, None),
    "rows merged with tokens": (
        lambda m, x: m.layer(x.reshape(-1, WIDTH)).view(x.shape),
        lambda: nn.Linear(WIDTH, WIDTH),
        None,
    ),
}


@pytest.mark.parametrize("name", slow_cases(list(TAKEN), lambda name: name != "positions of a buffer", str))
def test_taken(name: str) -> None:
    torch.manual_seed(0)
    part, layer, most = TAKEN[name]
    model, feed = Model(part, layer()).eval(), _examples()
    program = program_of(model, feed)
    assert program.limits.tokens == most
    assert difference(streamed(program, feed, (1, 5)), one_pass(model, feed)) < 2e-6
    # Past the end of a table that the positions stay in.
    long = {"input_ids": torch.arange(TABLE + 20 if most is None else most)[None, : 2 * TABLE] % 11}
    assert difference(streamed(program, long, (TABLE // 2,)), one_pass(model, long)) < 2e-6
