"""Arguments of another type than documented are named, and are no internal error; NumPy's numbers are numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pom_export
from pom_export.api.arguments import check_bounds, check_count, file_settings
from pom_export.engine.targets import canonical_targets
from pom_export.errors import InputError
from pom_export.graph.options import GraphOptions, check_options

STATIC = r"^`static` must be two whole numbers, batch and tokens, got "


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"static": "1x16"}, STATIC + "'1x16'"),
        ({"static": (3,)}, STATIC + r"\(3,\)"),
        ({"static": (1, 2.5)}, STATIC + r"\(1, 2.5\)"),
        ({"static": (True, 5)}, STATIC),
        ({"static": 4}, STATIC + "4"),
        ({"static": (2, -1)}, "^the sizes of `static` must be at least 1, got 2x-1"),
        ({"dtype": None}, "^unknown dtype 'None'. Choose one of float32"),
        ({"dtype": torch.int8}, "^unknown dtype 'torch.int8'"),
        ({"opset": "20"}, "^opset '20' is not supported. Choose 18 to 24"),
        ({"samples": "2"}, "^`samples` must be a whole number of at least 0, got '2'"),
        ({"samples": 1.5}, "^`samples` must be a whole number of at least 0, got 1.5"),
    ],
    ids=str,
)
def test_of_an_export(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        pom_export.export(pom_export.PolynomialMixer(8, 2, 2).eval(), tmp_path / "m.onnx", **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rtol": "1e-3"}, "^`rtol` must be finite and not negative, got '1e-3'"),
        ({"atol": float("nan")}, "^`atol` must be finite and not negative, got nan"),
        ({"seed": "a"}, "^`seed` must be a whole number of at least 0, got 'a'"),
        ({"seed": -1}, "^`seed` must be a whole number of at least 0, got -1"),
    ],
    ids=str,
)
def test_of_a_comparison(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        pom_export.verify("no such file", **options)


def test_numbers_of_numpy_and_types_of_torch_are_taken() -> None:
    check_options(GraphOptions(static=(np.int64(1), np.int32(16))))
    check_bounds(np.float32(1e-3), np.int64(0))
    check_count("seed", np.uint32(3), "")
    assert file_settings(torch.bfloat16, None) == ("bfloat16", 22)  # type: ignore[arg-type]
    assert canonical_targets([86, 8.9]) == ("sm86", "sm89")  # type: ignore[list-item]
