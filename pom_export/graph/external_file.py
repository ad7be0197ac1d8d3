"""Check which files of external weights a model may name."""

from __future__ import annotations

from pathlib import Path

from pom_export.errors import InputError
from pom_export.graph.declared_tensor import External

_HINT = "Copy the file of weights that was written with the model beside it"


def check_external(model: Path, external: External) -> None:
    """Check that external data is completely contained in a file in the model's own folder.

    Only a plain name is accepted, since these names determine which files are replaced or deleted with the model.

    Raises:
        InputError: the name leads elsewhere, or the file is missing, not a regular file, or too short.
    """
    name = external.location
    if name in ("", ".", "..") or any(sign in name for sign in "/\\\0"):
        raise InputError(f"model {model} names weights {name!r}, which is not a file in its own folder", _HINT)
    file = model.parent / name
    try:
        place = file.resolve(strict=True)
        size = place.stat().st_size
    except FileNotFoundError as error:
        raise InputError(f"weights {file} of model {model.name} are missing", _HINT) from error
    except OSError as error:
        raise InputError(f"weights {file} cannot be read: {error.strerror}", _HINT) from error
    # The weights of a model that is a link, as in the Hugging Face Hub's cache, are beside the link's target.
    if place.parent not in (model.parent.resolve(), model.resolve().parent):
        raise InputError(f"weights {file} are a link to a place outside the model's folder", _HINT)
    if not place.is_file():
        raise InputError(f"weights {file} are not a regular file", _HINT)
    if external.offset + external.length > size:
        raise InputError(
            f"weights {file} have {size} bytes, but the model needs {external.offset + external.length}", _HINT
        )
