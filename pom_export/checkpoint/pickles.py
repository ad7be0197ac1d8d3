"""Read torch.save's pickles without running anything in them."""

from __future__ import annotations

import contextlib
import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from pom_export.errors import CheckpointError, reason_of

SAFE_FORMAT_HINT = "Save the state dict: torch.save(model.state_dict(), path), or safetensors.torch.save_file"


class Inert:
    """Stands for an object of a class that is not torch's: it keeps what the file says of it, and does nothing.

    Trainers save configurations and paths beside the weights. torch's restricted unpickler calls nothing but what it
    is given, and this is what it is given for every other name in the file.
    """

    contents: tuple[Any, ...] = ()
    state: Any = None

    def __new__(cls, *contents: Any, **_: Any) -> Inert:  # noqa: D102 (what unpickling calls)
        inert = super().__new__(cls)
        inert.contents = contents
        return inert

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state


def read_pickle(file: Path, *, archive: bool) -> Any:
    """Return what torch.save wrote, tensors mapped from the disk where it is an archive.

    Objects of other classes than torch's and Python's plain ones become `Inert`.

    Raises:
        CheckpointError: the file is truncated or damaged, or asks for what even inert objects can't stand for.
    """
    try:
        with warnings.catch_warnings(), _inert_globals(file, archive):
            warnings.simplefilter("ignore")
            # Only from a path can torch map a file, but then it goes by the suffix too.
            if archive and file.suffix != ".safetensors":
                return torch.load(str(file), map_location="cpu", weights_only=True, mmap=True)
            with file.open("rb") as stream:
                return torch.load(stream, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Weights only load failed" in str(error) and archive:
            raise CheckpointError(
                f"{file} holds pickled Python objects besides tensors, which are never run", SAFE_FORMAT_HINT
            ) from error
        raise CheckpointError(
            f"{file} is damaged, or holds pickled Python objects, which are never run", SAFE_FORMAT_HINT
        ) from error
    except Exception as error:  # whatever damaged bytes make of the parser
        raise CheckpointError(f"{file} is truncated or damaged: {_reason(error)}", "Copy or save it again") from error


@contextlib.contextmanager
def _inert_globals(file: Path, archive: bool) -> Iterator[None]:
    """Let the unpickler take an inert class for every name that it would refuse."""
    names = get_unsafe_globals_in_checkpoint(str(file)) if archive else []
    with safe_globals([(_inert_class(name), name) for name in names]):
        yield


def _inert_class(name: str) -> type[Inert]:
    return type(name.rpartition(".")[2], (Inert,), {})


def _reason(error: Exception) -> str:
    """Return the first line of torch's reason, without its advice to load the file unsafely."""
    return "the archive is not torch.save's" if "weights_only" in str(error) else reason_of(error)
