"""Shape profiles from trtexec-style options."""

from __future__ import annotations

import numpy as np
import pytest

from pom_export.engine.profiles import ShapeProfile, make_profiles, parse_shapes, refused_shapes
from pom_export.errors import InputError
from pom_export.graph.exported_model import InputLimits, TensorSpec

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
        ({"maks": (1, 2)}, "'maks'; the model's inputs are x, mask. Did you mean 'mask'"),
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
    assert make_profiles([X], {}, {}, {}, InputLimits(tokens=64))["x"] == ShapeProfile(
        (1, 1, 16), (1, 64, 16), (8, 64, 16)
    )
    with pytest.raises(InputError, match="`max_shapes`: tokens of x is 65, but the model takes at most 64"):
        make_profiles([X], {}, {}, {"x": (1, 65, 16)}, InputLimits(tokens=64))


def test_the_past_may_be_empty_and_ends_where_the_positions_do() -> None:
    keys = TensorSpec("keys", np.dtype("float32"), ("batch", 2, "past_tokens", 4))
    assert make_profiles([keys], {}, {}, {})["keys"] == ShapeProfile((1, 2, 0, 4), (1, 2, 256, 4), (8, 2, 4096, 4))
    given = make_profiles([keys], {"keys": (1, 2, 0, 4)}, {}, {"keys": (1, 2, 100, 4)}, InputLimits(tokens=128))["keys"]
    assert given == ShapeProfile((1, 2, 0, 4), (1, 2, 100, 4), (1, 2, 100, 4))
    assert make_profiles([keys], {}, {}, {}, InputLimits(tokens=128))["keys"].maximum == (8, 2, 128, 4)
    with pytest.raises(InputError, match="keys has a size of -3"):
        make_profiles([keys], {"keys": (1, 2, -3, 4)}, {}, {})


def test_a_context_is_empty_in_all_calls_but_the_first() -> None:
    source = TensorSpec("src", np.dtype("int64"), ("batch", "src_tokens"))
    kept = TensorSpec("past_context.0", np.dtype("float32"), ("batch", "past_context_0_tokens", 4))
    tokens = TensorSpec("tgt", np.dtype("int64"), ("batch", "tokens"))
    profiles = make_profiles([tokens, source, kept], {}, {}, {"src": (2, 9000)})
    assert profiles["src"] == ShapeProfile((1, 0), (1, 256), (2, 9000))
    assert profiles["past_context.0"].minimum == (1, 0, 4)
    assert profiles["tgt"].minimum == (1, 1)
    # If nothing is kept of it, every call gets it.
    assert make_profiles([tokens, source], {}, {}, {})["src"].minimum == (1, 1)


def test_sizes_stay_within_the_models_limits() -> None:
    limits = InputLimits(sizes={"batch": (0, 3), "tokens": (5, 100)})
    assert make_profiles([X], {}, {}, {}, limits)["x"] == ShapeProfile((1, 5, 16), (1, 100, 16), (3, 100, 16))
    with pytest.raises(InputError, match="`min_shapes`: tokens of x is 4, but the model takes at least 5"):
        make_profiles([X], {"x": (1, 4, 16)}, {}, {}, limits)
    with pytest.raises(InputError, match="`opt_shapes`: batch of x is 4, but the model takes at most 3"):
        make_profiles([X], {}, {"x": (4, 9, 16)}, {}, limits)


def test_a_dimension_that_is_computed_of_another_follows_it() -> None:
    longer = TensorSpec("mask", np.dtype("bool"), ("batch", "tokens + 1"))
    profile = make_profiles([X, longer], {}, {}, {"x": (2, 40, 16)})["mask"]
    assert profile == ShapeProfile((1, 2), (1, 41), (2, 41))
    assert make_profiles([X, longer], {}, {}, {"mask": (2, 41)})["x"].maximum == (2, 40, 16)
    with pytest.raises(InputError, match="`max_shapes`: mask has 40 where 41 is expected"):
        make_profiles([X, longer], {}, {}, {"x": (2, 40, 16), "mask": (2, 40)})


@pytest.mark.parametrize(
    ("reason", "options"),
    [
        ("kOPT values for profile 0 violate shape constraints", ["`opt_shapes={'x': (1, 256, 16), 'mask': (1, 256)}`"]),
        ("IShuffleLayer: reshape changes volume", ["`min_shapes={'x': (1, 1, 16)", "`max_shapes={'x': (8, 4096, 16)"]),
        ("no kernel image", []),
    ],
)
def test_shapes_that_tensorrt_refuses_are_named_by_parameter(reason: str, options: list[str]) -> None:
    fixed = TensorSpec("scale", np.dtype("float32"), (1, 16))
    specs = [X, MASK, fixed]
    hint = refused_shapes(reason, specs, make_profiles(specs, {}, {}, {}))
    assert bool(hint) == bool(options)
    assert all(option in hint for option in options)
    assert "scale" not in hint
