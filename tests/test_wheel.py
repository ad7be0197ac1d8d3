"""A wheel does the main job where there is no compiler and no source; the source archive is complete."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from pom_export.runtime.library import custom_ops_library

ROOT = Path(__file__).resolve().parents[1]
CHECKPOINT = ROOT / "samples" / "checkpoints" / "byte_lm.safetensors"


def call(command: list[str | Path], **options: object) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module", params=["here", pytest.param("release", marks=pytest.mark.machine)])
def wheel(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of the libraries that are compiled here, and that of a release if one is named."""
    if request.param == "release":
        if "POM_RELEASE_WHEEL" not in os.environ:
            pytest.skip("POM_RELEASE_WHEEL names no wheel")
        return Path(os.environ["POM_RELEASE_WHEEL"]).resolve()
    if not (ROOT / "build" / "cmake" / "CMakeCache.txt").is_file():
        pytest.skip("nothing is compiled in build/cmake: run `make setup`")
    folder = tmp_path_factory.mktemp("wheel")
    plugin = "ON" if has_plugin() else "OFF"
    call([sys.executable, ROOT / "tools" / "build_wheel.py", "--local", "--plugin", plugin, "-o", folder])
    (built,) = folder.iterdir()
    return built


def has_plugin() -> bool:
    return (custom_ops_library().parent / "libpom_tensorrt.so").is_file()


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment variables of a new virtual environment with this one's packages, but without its pom-export."""
    folder = tmp_path_factory.mktemp("elsewhere") / "a folder"
    call([sys.executable, "-m", "venv", "--without-pip", folder])
    python = folder / "bin" / "python"
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    # A folder on the path only: the .pth files in it, such as an editable installation's, are not read.
    (packages / "packages.pth").write_text(sysconfig.get_path("purelib"))
    call([sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel])
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("POM_", "PYTHON"))}
    return kept | {"PATH": str(folder / "bin")}


@pytest.mark.slow
def test_it_runs_where_no_compiler_is(environment: dict[str, str], tmp_path: Path) -> None:
    assert not [name for name in ("c++", "g++", "cc", "nvcc", "cmake") if shutil.which(name, path=environment["PATH"])]

    def run(*arguments: str) -> str:
        program = Path(environment["PATH"], "pom-export")
        return call([program, *arguments], cwd=tmp_path, env=environment)

    python = Path(environment["PATH"], "python")
    where = call([python, "-c", "import pom_export; print(pom_export.__file__)"], cwd=tmp_path, env=environment)
    assert where.startswith(str(python.parents[1]))
    assert "onnxruntime kernel" in run("export", str(CHECKPOINT), "-o", "model.onnx")
    assert "result                  passed" in run("verify", "model.onnx", "--checkpoint", str(CHECKPOINT))
    run("export", str(CHECKPOINT), "-o", "stream.onnx", "--stateful")
    assert len(run("generate", "stream.onnx", "--prompt", "The ", "--max-tokens", "20").encode()) >= 20
    if has_plugin():
        built = run("build", "model.onnx", "-o", "model.engine", "--targets", "sm86")
        assert "plugin layers             4 of 4 aggregations" in built


@pytest.mark.slow
def test_it_suits_every_python_and_old_systems(request: pytest.FixtureRequest, wheel: Path) -> None:
    name, _, python, abi, system = wheel.stem.split("-")
    assert (name, python, abi) == ("pom_export", "py3", "none")
    glibc = re.fullmatch(r"manylinux_2_(\d+)_(\w+)", system.split(".")[0])
    assert glibc, system
    if "release" in request.node.name and glibc[2] == "x86_64":
        # ONNX Runtime's own wheels need 2.28.
        assert int(glibc[1]) <= 28


@pytest.mark.slow
def test_it_holds_our_libraries_alone(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as opened:
        held = [Path(name) for name in opened.namelist() if not name.endswith("/")]
    libraries = {path.name for path in held if ".so" in path.suffixes}
    plugin = {"libpom_tensorrt.so", "libpom_rtx_soname.so"} if has_plugin() else set()
    assert libraries == {"libpom_onnxruntime.so", *plugin}
    assert {path.parent.as_posix() for path in held if path.name in libraries} == {"pom_export/lib"}
    assert Path("pom_export/serving/page.html") in held
    assert Path("pom_export/packaging/triton/served/model.py") in held
    assert {path.suffix for path in held if path.parts[0] == "pom_export"} == {
        *(".py", ".so", ".typed"),
        ".cjs",  # what onnxruntime-web and -node are run with
        ".html",  # the page of `serve`
        ".md",  # the parts of packages' READMEs
    }


@pytest.mark.slow
def test_the_source_archive_is_complete(tmp_path: Path) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("no clone")
    call([sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", tmp_path, ROOT])
    (archive,) = tmp_path.iterdir()
    with tarfile.open(archive) as opened:
        held = {name.split("/", 1)[1] for name in opened.getnames()}
    tracked = set(call(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT).splitlines())
    assert {name for name in tracked - held if not name.startswith((".ci/", ".git"))} == set()
    assert held - tracked == {"PKG-INFO"}
