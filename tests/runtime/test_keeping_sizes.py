"""Sessions refuse sizes that a file's graph was not made for: ONNX Runtime would silently compute something."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import pom_export
from pom_export.errors import InputError
from pom_export.graph.claims import InputLimits
from pom_export.runtime.keeping_sizes import check_sizes, outside_limits

AXES = {"x": ("batch", "tokens", 8), "mask": ("batch", "tokens"), "next": ("batch", "tokens + 1")}
LIMITS = InputLimits(sizes={"batch": (0, 4), "tokens": (2, 16)})


def feed(x: tuple[int, int], mask: tuple[int, int], later: tuple[int, int]) -> dict[str, object]:
    return {"x": np.zeros((*x, 8)), "mask": np.zeros(mask), "next": np.zeros(later)}


def test_sizes_within_the_limits_that_go_together_are_taken() -> None:
    for given in (
        feed((3, 16), (3, 16), (3, 17)),
        feed((3, 5), (1, 5), (3, 6)),
        {"x": [[0.0] * 8] * 2, "unknown": np.zeros(3)},
    ):
        check_sizes(given, AXES)
        assert outside_limits(given, AXES, LIMITS) == ""


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (feed((3, 17), (3, 17), (3, 18)), "tokens is 17 in x, but the model takes at most 16"),
        (feed((3, 1), (3, 1), (3, 2)), "tokens is 1 in x, but the model takes at least 2"),
        (feed((5, 4), (5, 4), (5, 5)), "batch is 5 in x, but the model takes at most 4"),
    ],
)
def test_sizes_beyond_the_limits_are_named(given: dict[str, object], message: str) -> None:
    assert outside_limits(given, AXES, LIMITS).startswith(message)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (feed((3, 4), (3, 5), (3, 5)), "tokens is 4 in x, but 5 in mask"),
        (feed((3, 4), (2, 4), (3, 5)), "batch is 3 in x, but 2 in mask"),
        (feed((3, 4), (3, 4), (3, 4)), r"tokens \+ 1 is 4 in next, and should be 5"),
    ],
)
def test_sizes_that_do_not_go_together_are_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_sizes(given, AXES)


class Branching(nn.Module):
    """Computes another function for more than eight tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.mixer = pom_export.PolynomialMixer(8, 2, 2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        y = self.mixer(x, mask=mask)
        return y * 2 if x.shape[1] > 8 else y


def test_a_session_of_an_export_keeps_its_sizes(tmp_path: Path) -> None:
    module = Branching().eval()
    path = tmp_path / "m.onnx"
    pom_export.export(module, path, example_inputs=(torch.randn(2, 5, 8), torch.ones(2, 5, dtype=torch.bool)))
    session = pom_export.inference_session(path)
    assert isinstance(session, onnxruntime.InferenceSession)
    x, mask = torch.randn(3, 8, 8), torch.rand(3, 8) < 0.7
    mask[:, 0] = True
    (y,) = session.run(None, {"x": x.numpy(), "mask": mask.numpy()})
    np.testing.assert_allclose(y, module(x, mask).detach().numpy(), rtol=1e-4, atol=1e-5)
    with pytest.warns(UserWarning, match="tokens is 9 in x, but the model takes at most 8"):
        session.run(None, {"x": np.zeros((1, 9, 8), np.float32), "mask": np.ones((1, 9), bool)})
    with pytest.raises(InputError, match="tokens is 8 in x, but 1 in mask"):
        session.run(None, {"x": x.numpy(), "mask": mask.numpy()[:, :1]})
