"""Shape profiles from trtexec-style options."""

from __future__ import annotations

import numpy as np
import pytest

from pom_export.engine.profiles import ShapeProfile, make_profiles, parse_shapes
from pom_export.errors import InputError
from pom_export.graph.exported import TensorSpec

X = TensorSpec("x", np.dtype("float32"), ("batch", "tokens", 16))
MASK = TensorSpec("mask", np.dtype("bool"), ("batch", "tokens"))


def test_parse_shapes_reads_trtexec_form() -> None:
    assert parse_shapes("x:1x16x64,mask:1x16", "--minShapes") == {"x": (1, 16, 64), "mask": (1, 16)}
    assert parse_shapes(None, "--minShapes") == {}


@pytest.mark.parametrize("text", ["x", "x:", "x:1x", "x:-1x4", "x:1x16:2", ":1x2"])
def test_parse_shapes_names_what_it_cannot_read(text: str) -> None:
    with pytest.raises(InputError, match="--optShapes"):
        parse_shapes(text, "--optShapes")


def test_a_shared_dimension_is_given_once() -> None:
    profiles = make_profiles([X, MASK], {"x": (2, 8, 16)}, {"x": (2, 64, 16)}, {"mask": (4, 512)})
    assert profiles["x"] == ShapeProfile((2, 8, 16), (2, 64, 16), (4, 512, 16))
    assert profiles["mask"] == ShapeProfile((2, 8), (2, 64), (4, 512))


def test_defaults_widen_to_hold_what_is_given() -> None:
    profile = make_profiles([X], {}, {"x": (16, 9000, 16)}, {})["x"]
    assert profile == ShapeProfile((1, 1, 16), (16, 9000, 16), (16, 9000, 16))


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"y": (1, 2, 16)}, "'y'"),
        ({"x": (1, 0, 16)}, "x has a size of 0"),
        ({"x": (1, 2)}, "3 dimensions, got 2"),
        ({"x": (1, 2, 17)}, "17 where 16"),
        ({"x": (1, 2, 16), "mask": (1, 3)}, "3 where 2"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(shapes: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_profiles([X, MASK], {}, shapes, {})


def test_order_is_checked() -> None:
    with pytest.raises(InputError, match="min 8, opt 4"):
        make_profiles([X], {"x": (1, 8, 16)}, {"x": (1, 4, 16)}, {})


def test_tokens_end_where_the_positions_do() -> None:
    assert make_profiles([X], {}, {}, {}, most_tokens=64)["x"] == ShapeProfile((1, 1, 16), (1, 64, 16), (8, 64, 16))
    with pytest.raises(InputError, match="tokens is 65, but the model has positions for 64 tokens"):
        make_profiles([X], {}, {}, {"x": (1, 65, 16)}, most_tokens=64)


def test_the_past_may_be_empty_and_ends_where_the_positions_do() -> None:
    keys = TensorSpec("keys", np.dtype("float32"), ("batch", 2, "past_tokens", 4))
    assert make_profiles([keys], {}, {}, {})["keys"] == ShapeProfile((1, 2, 0, 4), (1, 2, 256, 4), (8, 2, 4096, 4))
    given = make_profiles([keys], {"keys": (1, 2, 0, 4)}, {}, {"keys": (1, 2, 100, 4)}, most_tokens=128)["keys"]
    assert given == ShapeProfile((1, 2, 0, 4), (1, 2, 100, 4), (1, 2, 100, 4))
    assert make_profiles([keys], {}, {}, {}, most_tokens=128)["keys"].maximum == (8, 2, 128, 4)
    with pytest.raises(InputError, match="keys has a size of -3"):
        make_profiles([keys], {"keys": (1, 2, -3, 4)}, {}, {})
