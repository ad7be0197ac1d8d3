"""Tell one model's state from another's, by the hash of the model's files."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from pom_export.errors import InputError
from pom_export.files import sha256_of
from pom_export.graph.weights_file import check_weights

# What changes when a file is written to.
_Stamp = tuple[int, int, int]


class ModelFiles:
    """A model's files, or only their hash, which is computed once and when it is asked for.

    Args:
        files: the ONNX file, then those of its external weights.
        sha256: the hash, where it is known.
    """

    def __init__(self, files: Sequence[Path] = (), sha256: str = "") -> None:
        self._files = tuple(files)
        self._stamps = [_stamp(file) for file in files]
        self._sha256 = sha256

    def __reduce__(self) -> tuple[type[ModelFiles], tuple[tuple[()], str]]:
        # Where a pickle goes, the files are others or not there: the hash is what stays true.
        return type(self), ((), self.sha256)

    @property
    def sha256(self) -> str:
        """The hexadecimal SHA-256 of the file; with external weights, of all files' hashes.

        Raises:
            InputError: a file has changed since the model was loaded, or weights are not what their name says.
        """
        if not self._sha256:
            hashes = [sha256_of(file) for file in self._files]
            for file, stamp in zip(self._files, self._stamps, strict=True):
                if _stamp(file) != stamp:
                    raise InputError(f"{file} has changed since it was loaded", "Load it again")
            for file, sha256 in zip(self._files, hashes, strict=True):
                check_weights(file, sha256)
            self._sha256 = hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
        return self._sha256

    def check_same(self, other: ModelFiles) -> None:
        """Raise InputError unless both are the same model."""
        if self is not other and self.sha256 != other.sha256:
            raise InputError(
                f"the state is of another model (sha256 {self.sha256[:12]}), not of this one ({other.sha256[:12]})",
                "A state goes with the file that it was made by",
            )


def _stamp(file: Path) -> _Stamp:
    status = file.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns
