"""Strip the prefixes that module wrappers add to the names of a state dict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from pom_export.errors import CheckpointError

_Entry = TypeVar("_Entry")

# torch.compile, FullyShardedDataParallel, checkpoint_wrapper and Lightning Fabric add these at any level.
_ANYWHERE = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_forward_module.")
# DataParallel, DistributedDataParallel and AveragedModel add this to the beginning of every name.
_IN_FRONT = "module."
_MOST = 8  # the most prefixes that wrappers add to the beginning of every name


def without_wrappers(file: Path, tensors: Mapping[str, _Entry]) -> dict[str, _Entry]:
    """Return a state dict by the names of the module inside the wrappers.

    Raises:
        CheckpointError: two names become the same, so that one of two weights would be lost.
    """
    plain = {name: _unwrapped(name) for name in tensors}
    for _ in range(_MOST):
        if not all(name.startswith(_IN_FRONT) for name in plain.values()):
            break
        plain = {name: inner.removeprefix(_IN_FRONT) for name, inner in plain.items()}
    # If only some names have the prefix, and the same names exist without it, there are two copies of a model.
    count = Counter(map(_without_front, plain.values()))
    if twice := next((name for name, number in count.items() if number > 1), None):
        raise CheckpointError(
            f"{file} holds {twice} twice, with prefixes and without",
            "Save only one of them, so that it is clear which one to use",
        )
    return {plain[name]: value for name, value in tensors.items()}


def _without_front(name: str) -> str:
    for _ in range(_MOST):
        name = name.removeprefix(_IN_FRONT)
    return name


def _unwrapped(name: str) -> str:
    for wrapper in _ANYWHERE:
        name = name.replace(wrapper, "")
    return name


def common_prefixes(names: Iterable[str]) -> Iterator[str]:
    """Yield "" and the dotted prefixes that all names share, the shortest first."""
    split = [name.split(".", _MOST) for name in names]
    prefix = ""
    yield prefix
    for depth in range(min(map(len, split), default=1) - 1):
        if len({parts[depth] for parts in split}) > 1:
            return
        prefix += split[0][depth] + "."
        yield prefix
