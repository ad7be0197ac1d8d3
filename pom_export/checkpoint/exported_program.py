"""Read torch.export programs (.pt2) without running their code, in memory bounded by their contents."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from torch.export import ExportedProgram

from pom_export.archives import open_archive
from pom_export.checkpoint.programs.checks import MalformedError, UnsafeError
from pom_export.checkpoint.programs.cost import CostError
from pom_export.checkpoint.programs.reading import read_program
from pom_export.errors import CheckpointError, InputError, reason_of
from pom_export.files import readable_file
from pom_export.quiet import quiet_warnings

_HINT: Final = "Save it with torch.export.save, or export the module itself with pom_export.export"
_MODULE_HINT: Final = "Export the module itself with pom_export.export"
_SMALLER_HINT: Final = "Trace it with smaller example inputs, or export the module itself with pom_export.export"
_FORMAT: Final = "archive_format"
_LOCAL_HEADER: Final = b"PK\x03\x04"
_NEAR_THE_END: Final = 1 << 16


def is_exported_program(path: str | os.PathLike[str]) -> bool:
    """Return whether a file is a torch.export archive, complete or not, judged by its content."""
    file = Path(path)
    try:
        with open_archive(file, "file") as archive:
            return any(name.split("/")[-1] == _FORMAT for name in archive.members)
    except InputError:
        return _was_one(file)


def _was_one(file: Path) -> bool:
    """Return whether an archive that cannot be read has, near its end, the member name that identifies programs."""
    try:
        with file.open("rb") as stream:
            start = stream.read(len(_LOCAL_HEADER))
            stream.seek(-min(_NEAR_THE_END, file.stat().st_size), os.SEEK_END)
            return start == _LOCAL_HEADER and _FORMAT.encode() in stream.read(_NEAR_THE_END)
    except OSError:
        return False  # reading it as something else will report what is wrong


def read_exported_program(path: str | os.PathLike[str]) -> ExportedProgram:
    """Return the program in a .pt2 file, ignoring the user's own files in the archive.

    Raises:
        InputError: the file cannot be read.
        CheckpointError: it is damaged, contains something that would have to be executed to be read, or claims more
            than it has.
    """
    file = readable_file(path, "program")
    try:
        with open_archive(file, "program", stored_by="torch.export.save") as archive, quiet_warnings():
            return read_program(archive)
    except UnsafeError as error:
        raise CheckpointError(
            f"{file} holds {error}, which would have to be executed; the file is only read as data", _MODULE_HINT
        ) from error
    except CostError as error:
        raise CheckpointError(f"{file} needs too much memory or computation: {error}", _SMALLER_HINT) from error
    except CheckpointError:
        raise
    except (MalformedError, InputError) as error:
        what = error.what if isinstance(error, InputError) else error
        raise CheckpointError(f"{file} is not a complete torch.export program: {what}", _HINT) from error
    except Exception as error:  # the parser may raise anything for damaged bytes
        raise CheckpointError(f"{file} is not a complete torch.export program: {reason_of(error)}", _HINT) from error
