"""`pom_export.package`: write a folder that a server loads, completely or not at all."""

from __future__ import annotations

import logging
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from pom_export.errors import InputError, only_ours
from pom_export.files import AnyPath, as_path, check_new_folder, staged_folder
from pom_export.graph.exported_model import read_model
from pom_export.graph.quantized.operators import shared_scale_notes
from pom_export.packaging.folder import MANIFEST, PackageFolder, is_package
from pom_export.packaging.targets import PackageOptions, Progress, load_target
from pom_export.stages import logged

_LOG = logging.getLogger(__name__)
_HINT: Final = "Choose another name, or give `force=True` to replace a package"
_NO_PACKAGE: Final = "It is no package, and only packages are replaced: choose another name"


@dataclass(frozen=True)
class PackageResult:
    """The outcome of `package`.

    Attributes:
        folder: path of the package.
        target: what it is for.
        command: the command that serves it, to be run in the folder.
        files: the names of its files.
        bytes: their size together.
        checked: what was run to check it, one line each.
        notes: further remarks, one line each.
    """

    folder: str
    target: str
    command: str
    files: list[str]
    bytes: int
    checked: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON-serialisable values."""
        return asdict(self)


def _silent(_: str) -> None:
    pass


@only_ours
def package(
    model: AnyPath,
    output: AnyPath,
    *,
    target: str,
    name: str | None = None,
    backend: str | None = None,
    bench: AnyPath | None = None,
    engine: AnyPath | None = None,
    tokenizer: str | None = None,
    force: bool = False,
    progress: Progress = _silent,
) -> PackageResult:
    """Write a folder that a server loads: the model, the server's configuration, a client, a check and a manifest.

    The folder appears complete or not at all. Its README.md has the command that serves it; manifest.json has the
    SHA-256 of every file.

    Args:
        model: the ONNX file.
        output: the folder to be written. It may exist if it is empty.
        target: the server or runtime: "triton", "genai" (onnxruntime-genai) or "openvino".
        name: the model's name in the server; default: the file's.
        backend: for Triton, what runs the model: "python" (default), or "onnxruntime", with our op library, where the
            server carries the state; or "tensorrt", an engine.
        bench: for Triton and a file without a state, results.json of `pom-export bench`, from which the sizes of its
            batches are chosen.
        engine: for Triton's tensorrt backend, the engine that was built from the file.
        tokenizer: for genai, "bytes", or the path of a tokenizer.json, with tokenizer_config.json beside it; default:
            bytes for a model of 256 tokens, otherwise none.
        force: replace an existing package; a folder that is no package is refused all the same.
        progress: called with one line per stage; the lines are also logged at level INFO.

    Raises:
        InputError: the file is unusable, the server cannot run it, an option does not apply, or the folder exists.
        MissingDependencyError: something that the package is made with is not installed.
        ParityError: a file that was rewritten for the server gives other numbers.
    """
    options = PackageOptions(name=name, backend=backend, bench=bench, engine=engine, tokenizer=tokenizer)
    chosen = load_target(target, options)
    replaceable, hint = (is_package, _NO_PACKAGE) if force else (_never, _HINT)
    check_new_folder(output, replaceable, hint)
    exported = read_model(model)
    _check_no_source(as_path(output, "output"), [exported.path, *exported.weights])
    with staged_folder(output, replaceable, hint) as staged:
        folder = PackageFolder(staged)
        contents = chosen.write(folder, exported, options, logged(progress, _LOG))
        folder.seal(target, exported, contents.serving)
        files = folder.files()
        size = sum(file.stat().st_size for file in (*files.values(), staged / MANIFEST))
    return PackageResult(
        folder=os.fspath(output),
        target=target,
        command=contents.command,
        files=[*files, MANIFEST],
        bytes=size,
        checked=list(contents.checked),
        notes=[*contents.notes, *shared_scale_notes(exported.path)],
    )


def _never(_: Path) -> bool:
    return False


def _check_no_source(folder: Path, sources: list[Path]) -> None:
    """Raise InputError if a file that the package is made from is in the folder that it would replace."""
    inside = [file for file in sources if folder.resolve() in file.resolve().parents]
    if inside and folder.is_dir():
        raise InputError(f"{inside[0]} is in {folder}, which would be replaced", "Choose another output")
