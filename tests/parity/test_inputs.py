"""A user's own inputs: whatever is wrong with the file is reported in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pom_export.errors import InputError
from pom_export.graph.exported_model import InputLimits, TensorSpec
from pom_export.parity.inputs import case_of, make_cases

SPECS = [TensorSpec("x", np.dtype("float32"), ("batch", 4))]


def test_a_whole_archive_is_one_case(tmp_path: Path) -> None:
    np.savez(tmp_path / "i.npz", x=np.ones((2, 4), np.float32), more=np.ones(1))
    case = case_of(tmp_path / "i.npz", SPECS, InputLimits())
    assert list(case.feed) == ["x"]


def test_damaged_and_other_files_are_refused(tmp_path: Path) -> None:
    whole, bad = tmp_path / "i.npz", tmp_path / "bad"
    np.savez(whole, x=np.ones((2, 400), np.float32))
    content = whole.read_bytes()
    corrupted = content[:300] + b"corrupted" + content[309:]
    for data in (b"", b"text", content[: len(content) // 2], content[:-40], corrupted):
        bad.write_bytes(data)
        with pytest.raises(InputError, match=r"are not an .npz archive|is empty"):
            case_of(bad, SPECS, InputLimits())
    np.save(tmp_path / "single.npy", np.ones(3))
    with pytest.raises(InputError, match=r"are not an .npz archive"):
        case_of(tmp_path / "single.npy", SPECS, InputLimits())
    with pytest.raises(InputError, match=r"file of inputs .*missing.npz does not exist"):
        case_of(tmp_path / "missing.npz", SPECS, InputLimits())


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones((2, 4)), "float64"),
        (np.ones((2, 5), np.float32), r"\[2, 5\]"),
        (np.ones(4, np.float32), r"\[4\]"),
        (np.ones((0, 4), np.float32), "empty"),
        (np.full((2, 4), np.nan, np.float32), "NaN"),
    ],
)
def test_arrays_that_do_not_fit_are_named(array: np.ndarray, message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "i.npz", x=array)
    with pytest.raises(InputError, match=message):
        case_of(tmp_path / "i.npz", SPECS, InputLimits())


IMAGES = [
    TensorSpec("x", np.dtype("float32"), ("batch", 3, 4, 4)),
    TensorSpec("t", np.dtype("float32"), ("batch",)),
    TensorSpec("y", np.dtype("int64"), ("batch",)),
]
OF_IMAGES = InputLimits({"y": [4]}, ranges={"t": [0.0, 0.5]})


def test_values_of_a_range_reach_its_ends_and_no_further() -> None:
    cases = list(make_cases(IMAGES, OF_IMAGES, 0))
    assert {case.feed["x"].shape[0] for case in cases} == {1, 2, 3}
    assert not [case.name for case in cases if "token" in case.name or "long" in case.name]
    t = np.concatenate([case.feed["t"] for case in cases])
    assert (t.min(), t.max()) == (0, 0.5)
    assert ((t > 0) & (t < 0.5)).any()
    assert {case.feed["t"].dtype.name for case in cases} == {"float32"}
    assert {case.feed["y"][-1] for case in cases if len(case.feed["y"]) > 1} == {3}


@pytest.mark.parametrize("t", [-0.5, 0.75])
def test_values_outside_a_range_are_refused(t: float, tmp_path: Path) -> None:
    x, y = np.zeros((1, 3, 4, 4), np.float32), np.array([3])
    np.savez(tmp_path / "i.npz", x=x, y=y, t=np.array([t], np.float32))
    with pytest.raises(InputError, match=f"t holds {t}, but the model takes 0 to 0.5"):
        case_of(tmp_path / "i.npz", IMAGES, OF_IMAGES)


@pytest.mark.parametrize("value", [-1, 97])
def test_token_ids_outside_the_vocabulary_are_refused(value: int, tmp_path: Path) -> None:
    np.savez(tmp_path / "i.npz", input_ids=np.array([[0, value]]))
    specs = [TensorSpec("input_ids", np.dtype("int64"), ("batch", "tokens"))]
    with pytest.raises(InputError, match="the model has 0 to 96"):
        case_of(tmp_path / "i.npz", specs, InputLimits({"input_ids": [97]}))


def test_cases_keep_to_the_limits() -> None:
    specs = [
        TensorSpec("x", np.dtype("float32"), ("batch", "tokens", 4)),
        TensorSpec("positions", np.dtype("int64"), ("tokens", 2)),
    ]
    seen = [case.feed for case in make_cases(specs, InputLimits({"positions": [8, 3]}, tokens=40), seed=0)]
    assert max(feed["x"].shape[1] for feed in seen) == 40
    columns = np.concatenate([feed["positions"] for feed in seen])
    assert columns.min(0).tolist() == [0, 0]
    assert columns.max(0).tolist() == [7, 2]


@pytest.mark.parametrize(
    ("x", "mask", "message"),
    [
        ((2, 3), (1, 3), "batch is 2 in x, but 1 in mask"),
        ((2, 9), (2, 9), "x has 9 tokens, but the model has positions for 8"),
    ],
)
def test_sizes_that_do_not_go_together_are_named(
    x: tuple[int, ...], mask: tuple[int, ...], message: str, tmp_path: Path
) -> None:
    np.savez(tmp_path / "i.npz", x=np.ones(x, np.float32), mask=np.ones(mask, np.bool_))
    specs = [TensorSpec(name, np.dtype(t), ("batch", "tokens")) for name, t in (("x", "float32"), ("mask", "bool"))]
    with pytest.raises(InputError, match=message):
        case_of(tmp_path / "i.npz", specs, InputLimits(tokens=8))
