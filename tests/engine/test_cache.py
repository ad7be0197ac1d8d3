"""The engine cache: what is taken from it, what is not, and how it survives damage."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

import pom_export
from pom_export.engine import builder
from pom_export.engine.backend import Backend
from pom_export.engine.build_config import BuildConfig, BuiltEngine, sha256_of_weights
from pom_export.engine.build_plan import BuildPlan
from pom_export.engine.cache import EngineCache, open_cache
from pom_export.errors import InputError
from pom_export.files import sha256_of
from pom_export.graph import saving
from pom_export.graph.exported_model import ExportedModel, read_model
from pom_export.graph.weights_file import rename_by_content
from tests.slow_cases import slow_cases

CHECKPOINT = Path(__file__).parents[1] / "data" / "golden" / "v2_base" / "checkpoint.pt"
BUILT = BuiltEngine(b"engine\nof several\nlines", 2, {"float16": 5}, {"int8": 3}, {"int8": 2, "float16": 1}, {"p": "?"})
CONFIG = BuildConfig(
    backend="tensorrt-rtx",
    backend_version="1.7.1.116",
    targets=["sm86"],
    gpu=None,
    path="plugin",
    plugin_embedded=True,
    plugin_sha256="a" * 64,
    profiles={"x": {"min": [1, 1, 32], "opt": [1, 8, 32], "max": [2, 8, 32]}},
    model_sha256="b" * 64,
    weights_sha256={},
    toolkit_version="0.1.0",
    packages={"onnx": "1.23.2"},
)
OTHERS: dict[str, Any] = {
    "backend": "tensorrt",
    "backend_version": "1.7.1.117",
    "targets": ["sm86", "sm89"],
    "gpu": "NVIDIA L4",
    "path": "function",
    "plugin_embedded": False,
    "plugin_sha256": None,
    "profiles": {"x": {"min": [1, 1, 32], "opt": [1, 4, 32], "max": [2, 8, 32]}},
    "model_sha256": "c" * 64,
    "weights_sha256": {"m.onnx.data": "d" * 64},
    "toolkit_version": "0.1.1",
    "packages": {"onnx": "1.23.3"},
}


def silent(_: str) -> None:
    pass


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose weights are in a separate file."""
    model = tmp_path_factory.mktemp("model") / "m.onnx"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(saving, "EXTERNAL_DATA_BYTES", 0)
        pom_export.export(CHECKPOINT, model, mask="causal")
    return model


@pytest.fixture
def model(exported: Path, tmp_path: Path) -> Path:
    for file in exported.parent.iterdir():
        shutil.copy(file, tmp_path)
    return tmp_path / exported.name


def build(model: Path, **options: Any) -> pom_export.EngineInfo:
    options = {"backend": "tensorrt-rtx", "targets": ["sm86"], "cache": model.parent / "cache", **options}
    return pom_export.build_engine(model, model.parent / "e", **options)


def test_every_part_of_the_recipe_changes_the_key() -> None:
    assert OTHERS.keys() == {field.name for field in dataclasses.fields(BuildConfig)}
    keys = {dataclasses.replace(CONFIG, **{name: value}).key() for name, value in OTHERS.items()}
    assert len(keys | {CONFIG.key()}) == len(OTHERS) + 1
    assert dataclasses.replace(CONFIG).key() == CONFIG.key()


def test_weights_of_one_name_are_distinguished(tmp_path: Path) -> None:
    files = [tmp_path / folder / "w.bin" for folder in "ab"]
    for number, file in enumerate(files):
        file.parent.mkdir()
        file.write_bytes(bytes([number]))
    model = ExportedModel(tmp_path / "m.onnx", [], [], {}, 20, [], weights=files)
    assert sha256_of_weights(model) == {"a/w.bin": sha256_of(files[0]), "b/w.bin": sha256_of(files[1])}


@pytest.mark.parametrize("name", ["e", "./../folder/e", "../link/e", "none/../e", "e.json"])
def test_the_cache_is_no_output_however_it_is_spelled(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(folder)
    with pytest.raises(InputError, match="is the output itself"):
        open_cache(name, ["e", "e.json"], silent)


def change_model(model: Path) -> None:
    changed = onnx.load(model, load_external_data=False)
    changed.doc_string = "another"
    onnx.save(changed, model)


def change_weights(model: Path) -> None:
    (weights,) = model.parent.glob("m.onnx.*.data")
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    rename_by_content(model, weights)


def test_weights_that_are_not_those_of_the_graph_are_refused(model: Path) -> None:
    (weights,) = model.parent.glob("m.onnx.*.data")
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    with pytest.raises(InputError, match=r"m.onnx.*data are not the model's: their sha256 begins with"):
        sha256_of_weights(read_model(model))


@pytest.mark.usefixtures("tensorrt_rtx")
def test_an_engine_is_taken_from_the_cache(model: Path) -> None:
    first = build(model)
    content = (model.parent / "e").read_bytes()
    second = build(model, cache=str(model.parent / "cache"))
    assert (first.cached, second.cached) == (False, True)
    assert (model.parent / "e").read_bytes() == content
    differing = {"cached": False, "seconds": 0.0}
    assert dataclasses.replace(first, **differing) == dataclasses.replace(second, **differing)


@pytest.mark.usefixtures("tensorrt_rtx")
@pytest.mark.parametrize("change", [change_model, change_weights])
def test_a_changed_file_is_built(change: Callable[[Path], None], model: Path) -> None:
    build(model)
    change(model)
    assert not build(model).cached
    assert build(model).cached


@pytest.mark.usefixtures("tensorrt_rtx")
def test_another_plugin_library_is_built_with(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(model)
    library = model.with_name("plugin.so")
    library.write_bytes(pom_export.plugin_library().read_bytes() + b"\0")
    monkeypatch.setenv("POM_PLUGIN_LIBRARY", str(library))
    assert not build(model).cached


@pytest.mark.usefixtures("tensorrt_rtx")
@pytest.mark.parametrize(
    "options",
    slow_cases(
        [{"targets": ["sm89"]}, {"opt_shapes": {"x": (1, 8, 32)}}, {"use_plugin": False}, {"embed_plugin": False}],
        lambda name: name not in {"opt_shapes", "use_plugin"},
        name=lambda options: next(iter(options)),
    ),
)
def test_another_option_is_built_with(options: dict[str, Any], model: Path) -> None:
    build(model)
    assert not build(model, **options).cached
    assert build(model, **options).cached
    assert build(model).cached


@pytest.mark.usefixtures("tensorrt_rtx")
def test_a_model_that_is_replaced_while_it_is_built_is_not_kept(model: Path) -> None:
    def replace(stage: str) -> None:
        if stage.startswith("Building"):
            change_model(model)

    build(model, progress=replace)
    assert not (model.parent / "cache").exists()


def damage(entry: Path, how: str) -> None:
    content = entry.read_bytes()
    if how == "a folder":
        entry.unlink()
        entry.mkdir()
        return
    half = len(content) // 2
    changed = {
        "cut short": content[:half],
        "a flipped bit": content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :],
        "empty": b"",
        "another checksum": b"0" * 64 + content[64:],
        "no entry": b"hello",
    }
    entry.write_bytes(changed[how])


@pytest.mark.usefixtures("tensorrt_rtx")
@pytest.mark.parametrize(
    "how",
    slow_cases(
        ["cut short", "a flipped bit", "empty", "another checksum", "no entry", "a folder"],
        lambda how: how not in {"a flipped bit", "a folder"},
    ),
)
def test_a_damaged_entry_is_built_again(how: str, model: Path) -> None:
    first = build(model)
    (entry,) = (model.parent / "cache").iterdir()
    damage(entry, how)
    said: list[str] = []
    second = build(model, progress=said.append)
    assert (second.cached, second.sha256) == (False, first.sha256)
    assert any(f"{entry.name} is damaged" in line for line in said)
    # Only a folder in its place keeps the new engine out, which is reported.
    assert build(model).cached == (how != "a folder")
    assert any("is not kept" in line for line in said) == (how == "a folder")


def test_what_an_interrupted_write_leaves_is_not_read(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path, silent)
    staging = tmp_path / ".pom-export-abc"
    staging.mkdir()
    (staging / f"{CONFIG.key()}.pom-engine").write_bytes(b"half")
    assert cache.get(CONFIG.key()) is None
    cache.put(CONFIG.key(), BUILT)
    assert cache.get(CONFIG.key()) == BUILT


def test_an_engine_that_cannot_be_kept_fails_no_build(tmp_path: Path) -> None:
    said: list[str] = []
    cache = EngineCache(tmp_path / "none" / "cache", said.append)
    cache.put(CONFIG.key(), BUILT)
    assert len(said) == 1
    assert "is not kept" in said[0]


def test_builds_at_the_same_time_see_whole_entries(tmp_path: Path) -> None:
    said: list[str] = []
    cache, engines = EngineCache(tmp_path, said.append), [bytes([i]) * 300_000 for i in range(4)]

    def work(engine: bytes) -> None:
        for _ in range(20):
            cache.put(CONFIG.key(), dataclasses.replace(BUILT, engine=engine))
            found = cache.get(CONFIG.key())
            assert found is not None
            assert found.engine in engines

    threads = [threading.Thread(target=work, args=(engine,)) for engine in engines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said == []
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("tensorrt_rtx")
def test_processes_share_a_cache(model: Path) -> None:
    folder = model.parent
    command = [sys.executable, "-m", "pom_export", "build", str(model), "--cache", str(folder / "cache"), "--json"]
    options = ["--backend", "tensorrt-rtx", "--targets", "sm86"]
    running = [
        subprocess.Popen([*command, "-o", str(folder / name), *options], stdout=subprocess.DEVNULL) for name in "ab"
    ]
    assert [process.wait() for process in running] == [0, 0]
    assert (folder / "a").read_bytes() == (folder / "b").read_bytes()
    assert build(model).cached


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs Linux's /proc, where nobody can make a file")
def test_a_folder_that_takes_no_file_is_no_cache() -> None:
    for folder in ("/proc", "/proc/none"):
        with pytest.raises(InputError, match="cannot write to /proc"):
            open_cache(folder, [], silent)


@pytest.mark.parametrize("before", [b"before", None])
def test_a_timing_cache_is_replaced_whole(
    before: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, seen = tmp_path / "timings", []
    if before is not None:
        place.write_bytes(before)

    class Job:
        """A double that writes as Polygraphy does."""

        def __init__(self, plan: BuildPlan) -> None:
            self.cache = plan.timing_cache

        def run(self) -> BuiltEngine:
            assert isinstance(self.cache, str)
            file = Path(self.cache)
            seen.append(file.read_bytes())
            file.write_bytes(b"after")
            Path(f"{self.cache}.lock").touch()
            assert (place.read_bytes() if place.exists() else None) == before
            return BUILT

    monkeypatch.setattr(builder, "BuildJob", Job)
    model = ExportedModel(tmp_path / "m.onnx", [], [], {}, 20, [])
    plan = BuildPlan(model, Backend("tensorrt", "10", None), ["current"], {}, None, False, place, silent)
    assert builder._build(plan) == BUILT
    assert seen == [before or b""]
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"timings": b"after"}
