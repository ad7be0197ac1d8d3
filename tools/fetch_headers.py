#!/usr/bin/env python3
"""Bring the two sets of C++ headers that the build needs into `.deps/include`.

    python tools/fetch_headers.py                # what is missing
    python tools/fetch_headers.py onnxruntime    # of one set
    python tools/fetch_headers.py --check        # only say what is there

ONNX Runtime's wheels and TensorRT's wheels ship no headers, and headers of third parties are not kept in this
repository. Each set is taken from the first place that has it:

    ONNX Runtime  ONNXRUNTIME_INCLUDE_DIR, the system (Debian's libonnxruntime-dev), else that very package,
                  downloaded with apt-get and unpacked without installing it
    TensorRT      TENSORRT_INCLUDE_DIR, the system (NVIDIA's libnvinfer-headers-dev), else the
                  Apache-licensed copy inside the wheel kernel-lens, downloaded with pip

Needs no root. Exits with code 1, and one line that says what to do, if a set cannot be obtained.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEPS = ROOT / ".deps" / "include"
# Debian 13: the first Debian release with libonnxruntime-dev (1.21, C API version 21).
DEBIAN_SUITE = "trixie"
DEBIAN_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
KERNEL_LENS = "kernel-lens==2.0.1"


class FetchError(Exception):
    """A set of headers could not be obtained; the text says what to do about it."""


@dataclass(frozen=True)
class HeaderSet:
    """One library's headers: where they may already be, and how to get them otherwise.

    Attributes:
        name: the library's name in messages.
        probe: the file that identifies the right folder, relative to it.
        variable: the environment variable that may name the folder.
        system: the folders where a system package puts the headers.
        fetch: downloads the headers into a folder.
    """

    name: str
    probe: str
    variable: str
    system: tuple[str, ...]
    fetch: Callable[[Path], None]

    def locate(self) -> Path | None:
        """Return the folder that holds `probe`, or None."""
        named = os.environ.get(self.variable)
        if named:
            if not (Path(named) / self.probe).is_file():
                raise FetchError(
                    f"{self.variable}={named} holds no {self.probe}; point it at {self.name}'s include folder"
                )
            return Path(named)
        folders = [DEPS / self.name, *map(Path, self.system)]
        return next((folder for folder in folders if (folder / self.probe).is_file()), None)


def run(command: list[str], cwd: Path) -> None:
    """Run a command quietly; on failure raise FetchError with the last lines that it printed."""
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise FetchError(f"{command[0]} is not installed") from error
    if done.returncode:
        tail = " / ".join((done.stderr or done.stdout).strip().splitlines()[-3:])
        raise FetchError(f"`{' '.join(command[:4])} ...` failed: {tail}")


def apt_mirrors() -> Iterator[str]:
    """Yield the Debian mirrors that this machine's apt uses."""
    for file in [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]:
        if not file.is_file() or file.suffix not in {".list", ".sources"}:
            continue
        for line in file.read_text().splitlines():
            match = re.match(r"\s*(?:URIs:|deb(?:\s+\[[^\]]*\])?)\s+(\S+)", line)
            if match and "security" not in match[1] and "debian" in match[1]:
                yield match[1]


def apt_download(package: str, work: Path) -> Path:
    """Download a .deb from the suites that apt knows, else from Debian 13 on the same mirrors."""
    try:
        run(["apt-get", "download", package], work)
    except FetchError:
        mirror = next(apt_mirrors(), None)
        if mirror is None:
            raise FetchError("apt has no Debian mirror configured") from None
        lists = work / "lists"
        (lists / "partial").mkdir(parents=True)
        sources = work / "sources.list"
        sources.write_text(f"deb [signed-by={DEBIAN_KEYRING}] {mirror} {DEBIAN_SUITE} main\n")
        settings = {
            "Dir::Etc::SourceList": sources,
            "Dir::Etc::SourceParts": "-",
            "Dir::State::Lists": lists,
            "Dir::Cache": work,
        }
        options = [item for name, value in settings.items() for item in ("-o", f"{name}={value}")]
        run(["apt-get", *options, "update"], work)
        run(["apt-get", *options, "download", package], work)
    return next(work.glob(f"{package}_*.deb"))


def copy_headers(files: Iterable[Path], target: Path) -> None:
    """Copy headers into `target`, which appears only once it is complete."""
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(dir=target.parent))
    for file in files:
        shutil.copy(file, staging / file.name)
    shutil.rmtree(target, ignore_errors=True)
    staging.chmod(0o755)
    staging.rename(target)


def fetch_onnxruntime(target: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        work.chmod(0o755)
        package = apt_download("libonnxruntime-dev", work)
        run(["dpkg", "-x", package.name, "unpacked"], work)
        copy_headers(work.glob("unpacked/usr/include/onnxruntime/**/*.h"), target)


def fetch_tensorrt(target: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", KERNEL_LENS], work)
        with zipfile.ZipFile(next(work.glob("kernel_lens-*.whl"))) as wheel:
            wheel.extractall(work)
        copy_headers((work / "kernel_lens" / "include" / "tensorrt").glob("*.h"), target)


HEADER_SETS = (
    HeaderSet(
        name="onnxruntime",
        probe="onnxruntime_cxx_api.h",
        variable="ONNXRUNTIME_INCLUDE_DIR",
        system=("/usr/include/onnxruntime", "/usr/local/include/onnxruntime"),
        fetch=fetch_onnxruntime,
    ),
    HeaderSet(
        name="tensorrt",
        probe="NvInferRuntime.h",
        variable="TENSORRT_INCLUDE_DIR",
        system=("/usr/include/x86_64-linux-gnu", "/usr/include/aarch64-linux-gnu", "/usr/local/tensorrt/include"),
        fetch=fetch_tensorrt,
    ),
)


def provide(names: Sequence[str] = (), only_check: bool = False) -> bool:
    """Find or fetch sets of headers, and print where each is or how to get it.

    Args:
        names: the sets' names; empty for all.
        only_check: fetch nothing.

    Returns:
        Whether all are available.
    """

    def find(headers: HeaderSet) -> Path | str:
        try:
            folder = headers.locate()
            if folder is None and not only_check:
                headers.fetch(DEPS / headers.name)
                folder = headers.locate()
        except FetchError as error:
            return f"{error}; or set {headers.variable} to {headers.name}'s include folder"
        return folder or f"not found; set {headers.variable}"

    chosen = [headers for headers in HEADER_SETS if not names or headers.name in names]
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(find, chosen))
    for headers, folder in zip(chosen, found, strict=True):
        print(f"headers of {headers.name}: {folder}", flush=True)
    return all(isinstance(folder, Path) for folder in found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "names", nargs="*", choices=[[], *(headers.name for headers in HEADER_SETS)], help="default: both"
    )
    parser.add_argument("--check", action="store_true", help="fetch nothing; exit 1 when a set is missing")
    arguments = parser.parse_args()
    return int(not provide(arguments.names, arguments.check))


if __name__ == "__main__":
    sys.exit(main())
