"""Sequences from files, outputs into files, in the same form."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pom_export
from pom_export.arrays import read_npz
from pom_export.batches import sinks
from pom_export.batches.budget import Budget
from pom_export.errors import InputError
from pom_export.mixer import MixerConfig
from pom_export.models import LanguageModel, LanguageModelConfig

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
LENGTHS = {"b": 7, "a": 12, "long": 30, "c": 7}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files") / "m.onnx"
    pom_export.export(GOLDEN / "v2_base" / "checkpoint.pt", path, mask="padding")
    return path


@pytest.fixture
def sequences() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {name: random.standard_normal((length, 32)).astype(np.float32) for name, length in LENGTHS.items()}


@pytest.fixture
def expected(model: Path, sequences: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    session = pom_export.inference_session(model)
    return {
        name: session.run(None, {"x": x[np.newaxis], "mask": np.ones((1, len(x)), np.bool_)})[0][0]
        for name, x in sequences.items()
    }


def close(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].shape == array.shape
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-5)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_arrays_of_an_archive_keep_their_names_and_order(
    model: Path, sequences: dict[str, np.ndarray], expected: dict[str, np.ndarray], tmp_path: Path
) -> None:
    np.savez(tmp_path / "in.npz", **{f"x/{name}": x for name, x in sequences.items()})
    result = pom_export.run_files(model, tmp_path / "in.npz", tmp_path / "out.npz")
    close(read_npz(tmp_path / "out.npz", "archive"), {f"y/{name}": y for name, y in expected.items()})
    assert (result.sequences, result.tokens, result.padded) == (4, 56, ["tokens"])
    assert result.to_dict()["sequences_per_second"] == result.sequences / result.seconds
    with zipfile.ZipFile(tmp_path / "out.npz") as archive:
        assert archive.testzip() is None


def test_rows_of_stacked_arrays_are_cut_to_their_lengths_and_stacked_again(
    model: Path, sequences: dict[str, np.ndarray], expected: dict[str, np.ndarray], tmp_path: Path
) -> None:
    lengths = np.array([len(x) for x in sequences.values()])
    stacked = np.full((4, 33, 32), np.nan, np.float32)
    for row, x in zip(stacked, sequences.values(), strict=True):
        row[: len(x)] = x
    np.savez_compressed(tmp_path / "in.npz", x=stacked, lengths=lengths)
    pom_export.run_files(model, tmp_path / "in.npz", tmp_path / "out.npz")
    found = read_npz(tmp_path / "out.npz", "archive")
    assert found["y"].shape == (4, 30, 32)
    assert found["lengths"].tolist() == lengths.tolist()
    close(dict(zip(expected, (y[:n] for y, n in zip(found["y"], lengths, strict=True)), strict=True)), expected)
    assert not any(y[n:].any() for y, n in zip(found["y"], lengths, strict=True))


def test_one_array_of_rows_or_of_one_sequence(
    model: Path, sequences: dict[str, np.ndarray], expected: dict[str, np.ndarray], tmp_path: Path
) -> None:
    np.save(tmp_path / "rows.npy", np.stack([sequences["b"], sequences["c"]]))
    np.save(tmp_path / "one.npy", np.asfortranarray(sequences["b"].astype(np.float64)))
    for name, wanted in (("rows", np.stack([expected["b"], expected["c"]])), ("one", expected["b"])):
        pom_export.run_files(model, tmp_path / f"{name}.npy", tmp_path / "out.npy")
        close({name: np.load(tmp_path / "out.npy")}, {name: wanted})


def test_files_of_a_folder_keep_their_names(
    model: Path, sequences: dict[str, np.ndarray], expected: dict[str, np.ndarray], tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    for name, x in sequences.items():
        np.save(tmp_path / "in" / f"{name}.npy", x)
    mask = np.arange(30) < 7
    np.savez(tmp_path / "in" / "masked.npz", x=sequences["long"], mask=mask)
    (tmp_path / "in" / "notes.txt").write_text("not a sequence")
    pom_export.run_files(model, tmp_path / "in", tmp_path / "out", batch=3)
    assert names_in(tmp_path / "out") == ["a.npy", "b.npy", "c.npy", "long.npy", "masked.npz"]
    close({name: np.load(tmp_path / "out" / f"{name}.npy") for name in expected}, expected)
    session = pom_export.inference_session(model)
    (y,) = session.run(None, {"x": sequences["long"][None], "mask": mask[None]})
    close(read_npz(tmp_path / "out" / "masked.npz", "archive"), {"y": y[0]})
    # Written again, and as an archive.
    pom_export.run_files(model, tmp_path / "in", tmp_path / "out")
    pom_export.run_files(model, tmp_path / "in", tmp_path / "out.npz")
    assert list(read_npz(tmp_path / "out.npz", "archive")) == [f"y/{n}" for n in ("a", "b", "c", "long", "masked")]


def test_long_outputs_in_pieces_lie_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks, "_LARGE", 1000)
    model = tmp_path / "m.onnx"
    pom_export.export(GOLDEN / "v2_base" / "checkpoint.pt", model, mask="causal", stateful=True)
    x = np.random.default_rng(0).standard_normal((3000, 32)).astype(np.float32)
    np.savez(tmp_path / "in.npz", **{"x/0": x, "x/1": x[:2500]})
    pom_export.run_files(model, tmp_path / "in.npz", tmp_path / "out.npz")
    expected = pom_export.StreamingSession(model).prefill(x)[0]
    close(read_npz(tmp_path / "out.npz", "archive"), {"y/0": expected, "y/1": expected[:2500]})
    assert names_in(tmp_path) == ["in.npz", "m.onnx", "out.npz"]


Write = Callable[[Path], dict[str, Any]]
GOOD = np.zeros((3, 32), np.float32)


def archive(**arrays: Any) -> Write:
    def write(folder: Path) -> dict[str, Any]:
        np.savez(folder / "in.npz", **{name.replace("__", "/"): array for name, array in arrays.items()})
        return {"inputs": folder / "in.npz"}

    return write


def folder_of(output: str | None = None, **arrays: Any) -> Write:
    def write(folder: Path) -> dict[str, Any]:
        (folder / "in").mkdir()
        for name, array in arrays.items():
            np.save(folder / "in" / f"{name}.npy", array)
        return {"inputs": folder / "in"} | ({} if output is None else {"output": folder / output})

    return write


def text(content: str, name: str = "in.npz") -> Write:
    def write(folder: Path) -> dict[str, Any]:
        (folder / name).write_text(content)
        return {"inputs": folder / name}

    return write


def pickled(folder: Path) -> dict[str, Any]:
    np.save(folder / "in.npy", np.array([{"a": 1}], dtype=object))
    return {"inputs": folder / "in.npy"}


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (archive(x__a=GOOD, x__b=GOOD[:, :31]), r"sequence b: x has the shape \[3, 31\], not \[tokens, 32\]"),
        (archive(x__a=GOOD, x__b=GOOD[None]), r"sequence b: .*not \[tokens, 32\]. Leave out the batch axis"),
        (archive(x__a=GOOD, y__b=GOOD), "sequence b has 'y', which is no input"),
        (archive(x__a=GOOD, mask__b=np.ones(3, bool)), "sequence b lacks 'x'; it holds mask"),
        (archive(x__a=GOOD, x__b=GOOD[:0]), "sequence b is empty"),
        (archive(x__a=GOOD, x__b=GOOD.astype(np.int64)), "sequence b: x is int64, not float32"),
        (archive(x__a=GOOD, x__b=np.full((3, 32), 1e300)), "sequence b: x holds a number that float32 cannot hold"),
        (archive(x__a=GOOD, x__b=np.where(np.arange(32) == 3, np.nan, GOOD)), "sequence b: x holds NaN"),
        (archive(x__a=GOOD, mask__a=np.ones(4, bool)), "sequence a: tokens is 3 in x, but 4 in mask"),
        (archive(x__a=GOOD, x=GOOD[None]), "both stacked and separate"),
        (archive(x=GOOD[None], mask=np.ones((2, 3), bool)), "different numbers of sequences: 1 in x, 2 in mask"),
        (archive(x=GOOD[None], lengths=np.array([4])), "sequence 0 has the length 4, but x has 3 tokens"),
        (archive(x=GOOD[None], lengths=np.array([0])), "sequence 0 is empty"),
        (archive(x=GOOD[None], lengths=np.array([1.0])), r"lengths is float64\[1\]"),
        (archive(), "holds no arrays"),
        (archive(x=GOOD[None][:0]), r"holds no sequences: x has the shape \[0, 3, 32\]"),
        (archive(x=np.float32(1)), r"holds no sequences: x has the shape \[\]"),
        (folder_of(), "holds no .npy or .npz"),
        (folder_of(a=GOOD, b=GOOD[:, :5]), r"b.npy: x has the shape \[3, 5\]"),
        (folder_of("in", a=GOOD), "is the input folder"),
        (folder_of("out.npy", a=GOOD, b=GOOD), "holds one array, but the sequences are separate"),
        (text("{}"), "is not a complete archive"),
        (text("{}", "in.npy"), "is damaged"),
        (text("{}", "in.json"), "is no .npz or .npy file"),
        (pickled, "its type is object"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named_and_leaves_nothing(write: Write, message: str, model: Path, tmp_path: Path) -> None:
    given = {"output": tmp_path / "out.npz", **write(tmp_path)}
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=message):
        pom_export.run_files(model, **given)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_failure_or_an_interrupt_half_way_leaves_nothing(model: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    np.savez(tmp_path / "in.npz", **{f"x/{i}": random.standard_normal((5, 32)) for i in range(4)})

    def stop(_: str) -> None:
        raise KeyboardInterrupt

    for output in ("out.npz", "out"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pom_export.batches.meter._SECONDS_BETWEEN", 0.0)
            with pytest.raises(KeyboardInterrupt):
                pom_export.run_files(model, tmp_path / "in.npz", tmp_path / output, batch=1, progress=stop)
        assert names_in(tmp_path) == ["in.npz"]


def test_ids_beyond_the_vocabulary_are_named(tmp_path: Path) -> None:
    model = LanguageModel(LanguageModelConfig(256, 1, 2, 16, MixerConfig(8, 2, 2)))
    pom_export.export(model, tmp_path / "m.onnx")
    ids = [np.arange(5), np.arange(4) + 253]
    with pytest.raises(InputError, match=r"sequence 1: input_ids holds 256, but m\.onnx takes 0 to 255"):
        pom_export.run(tmp_path / "m.onnx", ids)


@pytest.mark.parametrize(("given", "message"), [
    ({"sequences": {"x": GOOD}}, "the sequences are a dict"),
    ({"sequences": [[[1.0], [1.0, 2.0]]]}, "sequence 0 is not an array"),
    ({"sequences": [GOOD], "batch": 0}, "`batch` is 0"),
    ({"sequences": [GOOD], "max_tokens": 1.5}, "`max_tokens` is 1.5"),
    ({"sequences": [GOOD], "model": 5}, "the model is an int"),
])  # fmt: skip
def test_arguments_that_do_not_fit(given: dict[str, Any], message: str, model: Path) -> None:
    with pytest.raises(InputError, match=message):
        pom_export.run(**{"model": model, **given})
    assert Budget() == Budget(256, 1024)


def test_an_engine_is_named(tmp_path: Path) -> None:
    for name in ("m.engine", "m.engine.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(InputError, match="is an engine, and only ONNX files are run"):
        pom_export.run(tmp_path / "m.engine", [GOOD])
