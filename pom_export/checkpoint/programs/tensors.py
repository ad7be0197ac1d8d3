"""Read weights, constants and example inputs, as tensors within the bytes that the file has for them."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from pom_export.archives import Archive
from pom_export.checkpoint.pickles import read_archive
from pom_export.checkpoint.programs.checks import MalformedError, UnsafeError, shown
from pom_export.checkpoint.programs.structures import Structure
from pom_export.errors import CheckpointError

# The types by their numbers in torch._export.serde.schema.ScalarType.
_DTYPES: Final = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    10: torch.complex64,
    11: torch.complex128,
    12: torch.bool,
    13: torch.bfloat16,
}
_BOOL: Final = 12
# How many more values than in the file all expanded tensors together may have.
_MOST_EXPANDED: Final = 1 << 24


@dataclass
class Payloads:
    """The tensors in an archive's folders.

    Args:
        archive: the file.
        root: the folder in it.
    """

    archive: Archive
    root: str
    _expanded: int = field(default=0, init=False)

    def tensors(self, folder: str, config: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return tensors by name; those of the same member share its memory.

        Args:
            folder: the folder of their members.
            config: the file's checked description of each.

        Raises:
            MalformedError: a tensor exceeds the bytes of its member.
        """
        flat: dict[str, bytearray] = {}
        tensors: dict[str, Tensor] = {}
        for name, entry in config.items():
            member = f"{self.root}/{folder}/{entry['path_name']}"
            if member not in flat:
                size = self.archive.members[member].size if member in self.archive.members else 0
                flat[member] = bytearray(self.archive.read(member, size))
            tensor = self._tensor(name, flat[member], entry["tensor_meta"])
            # nn.Parameter(tensor, True) would fail for integers.
            trained = entry["tensor_meta"]["requires_grad"]
            tensors[name] = nn.Parameter(tensor, requires_grad=trained) if entry["is_param"] else tensor
        return tensors

    def _tensor(self, name: str, content: bytearray, meta: Mapping[str, Any]) -> Tensor:
        if meta["dtype"] not in _DTYPES:
            raise MalformedError(f"{name} is of the type number {meta['dtype']}")
        dtype = _DTYPES[meta["dtype"]]
        size, stride = ([item["as_int"] for item in meta[key]] for key in ("sizes", "strides"))
        offset = meta["storage_offset"]["as_int"]
        room = len(content) // dtype.itemsize
        self._check_size(name, size, room)
        if 0 in size:
            return torch.empty(size, dtype=dtype)
        if len(size) != len(stride):
            raise MalformedError(f"{name} has {len(size)} sizes and {len(stride)} strides")
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if last >= room or len(content) % dtype.itemsize:
            raise MalformedError(f"{name} reaches value {last:,}, but the file has {room:,}")
        if meta["dtype"] == _BOOL and content.translate(None, b"\0\1"):
            raise MalformedError(f"{name} holds truth values that are neither 0 nor 1")
        return torch.frombuffer(content, dtype=dtype).as_strided(size, stride, offset)

    def _check_size(self, name: str, size: list[int], room: int) -> None:
        """Raise MalformedError if there are more values than in the file, or for zeros with a huge shape."""
        self._expanded += max(0, math.prod(max(n, 1) for n in size) - room)
        if self._expanded > _MOST_EXPANDED:
            raise MalformedError(f"{name} of shape {size} claims more values than the file holds")

    def examples(self, member: str, structure: Structure) -> tuple[Any, Any] | None:
        """Return the example inputs, by position and by name; None if there are none.

        Raises:
            MalformedError: they are damaged, or are not what the program takes.
        """
        if member not in self.archive.members or not (size := self.archive.members[member].size):
            return None
        with tempfile.NamedTemporaryFile(prefix="pom-export-", suffix=".pt") as file:
            file.write(self.archive.read(member, size))
            file.flush()
            try:
                content = read_archive(Path(file.name))
            except CheckpointError as error:
                raise MalformedError(error.what.replace(file.name, "its example inputs")) from error
            leaves = [self._example(value) for value in structure.flatten(content)]
        arguments, keywords = structure.build(iter(leaves))
        return arguments, keywords

    def _example(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            room = value.untyped_storage().nbytes() // value.element_size()
            self._check_size("an example input", list(value.shape), room)
            return value.detach().clone()
        if value is None or isinstance(value, (bool, int, float)):
            return value
        if isinstance(value, str):
            return value
        raise UnsafeError(f"an example input that is {shown(value)}")
