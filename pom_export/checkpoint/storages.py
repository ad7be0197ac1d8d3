"""Rebuild tensors saved by `torch.save`, each within the bytes of its storage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from pom_export.checkpoint.unpickling import Calls, Inert, PickleError
from pom_export.errors import with_article

BEFORE_QUANTIZING: Final = "Save the weights in bfloat16 or wider, before they are quantized"
"""What to do about weights in a layout that is not read."""

_MOST_DIMENSIONS: Final = 64
_DTYPES: Final = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
    "UntypedStorage": torch.uint8,
}
# Functions, as named by torch.save, that rebuild tensors without a storage of plain values.
_OWN_CLASS: Final = "of a class of its own"
_DENSE: Final = "Save it dense, with its values"
_OTHER_TENSORS: Final = {
    "torch._utils._rebuild_sparse_tensor": "sparse",
    "torch._utils._rebuild_sparse_csr_tensor": "sparse",
    "torch._utils._rebuild_nested_tensor": "nested",
    "torch._utils._rebuild_qtensor": "quantized",
    "torch._utils._rebuild_meta_tensor_no_storage": "without data",
    "torch._utils._rebuild_device_tensor_from_numpy": "of a device that is not here",
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": "of a device that is not here",
    "torch._utils._rebuild_wrapper_subclass": _OWN_CLASS,
}
# Parts of class names of other tensors, what they indicate, and what to do.
_CLASSES: Final = (
    (
        "torch.distributed",
        "a piece of a distributed tensor",
        "Save the full state dict (get_model_state_dict with full_state_dict=True), or join a distributed checkpoint "
        "with python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER checkpoint.pt",
    ),
    ("torchao", "quantized by torchao", BEFORE_QUANTIZING),
    ("bitsandbytes", "quantized by bitsandbytes", BEFORE_QUANTIZING),
)


@dataclass(frozen=True)
class Storage:
    """A sequence of values in a file.

    Attributes:
        dtype: type of its values.
        numel: number of its values.
        values: returns them, (numel,), mapped from the file if possible.
    """

    dtype: torch.dtype
    numel: int
    values: Callable[[], Tensor]


class OtherTensor(Inert):
    """A tensor that is not stored as a storage's values.

    Attributes:
        kind: how it is stored.
        hint: what to do about it.
    """

    __slots__ = ("hint", "kind")

    def __init__(self, name: str, contents: tuple[Any, ...]) -> None:
        super().__init__(name, contents)
        self.kind, self.hint = _OTHER_TENSORS.get(name, f"rebuilt by {name}"), _DENSE
        classes = [part.name for part in contents if isinstance(part, Inert)]
        for pattern, kind, hint in _CLASSES:
            if any(pattern in one for one in (name, *classes)):
                self.kind, self.hint = f"{kind} ({classes[0].rpartition('.')[2]})" if classes else kind, hint
        if self.kind == _OWN_CLASS and classes:
            self.kind = f"{_OWN_CLASS}, {classes[0]}"


def storage_dtype(kind: Any) -> torch.dtype:
    """Return the type of the values in a class of storages.

    Raises:
        PickleError: it is not a class of storages that can be read.
    """
    name = kind.name.rpartition(".")[2] if isinstance(kind, Inert) else ""
    if name not in _DTYPES:
        raise PickleError(f"it keeps values in {with_article(name or type(kind).__name__)}")
    return _DTYPES[name]


def is_count(*values: Any) -> bool:
    """Return whether values are non-negative integers that fit into 64 bits."""
    return all(type(value) is int and 0 <= value < 2**63 for value in values)


def _strided(storage: Any, offset: Any, size: Any, stride: Any, dtype: torch.dtype | None = None) -> Tensor:
    """Return a view of a storage, after checking that it is within it."""
    if not isinstance(storage, Storage):
        raise PickleError("a tensor in it has no storage")
    if not isinstance(size, tuple) or not isinstance(stride, tuple) or not is_count(offset, *size, *stride):
        raise PickleError("the sizes of a tensor in it are not numbers")
    if len(size) != len(stride) or len(size) > _MOST_DIMENSIONS:
        raise PickleError(f"a tensor in it has {len(size)} sizes and {len(stride)} strides")
    dtype = dtype or storage.dtype
    room = storage.numel * storage.dtype.itemsize // dtype.itemsize
    if 0 in size:
        return torch.empty(size, dtype=dtype)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if last >= room:
        raise PickleError(f"a tensor of shape {size} in it reaches value {last:,} of a storage that has {room:,}")
    values = storage.values()
    return (values if dtype == storage.dtype else values.view(dtype)).as_strided(size, stride, offset)


def _rebuild_v3(storage: Any, offset: Any, size: Any, stride: Any, _: Any, __: Any, dtype: Any, *___: Any) -> Tensor:
    """Rebuild a tensor of a type that has no class of storages."""
    name = dtype.name.removeprefix("torch.") if isinstance(dtype, Inert) else ""
    known = getattr(torch, name, None) if name.isidentifier() else None
    if not isinstance(known, torch.dtype):
        raise PickleError("the type of a tensor in it is not known")
    return _strided(storage, offset, size, stride, known)


def _rebuild_from_type(function: Any, kind: Any, arguments: Any, state: Any = None) -> Any:
    """Rebuild a tensor with attributes of its own, which are dropped; or return a subclass's without rebuilding it."""
    known = CALLS.get(function.name) if isinstance(function, Inert) else None
    if known is None and isinstance(function, Inert):
        return OtherTensor(function.name, (kind,))
    if known is None or known is _rebuild_from_type or not isinstance(arguments, tuple):
        raise PickleError("a tensor in it is rebuilt in a way that torch.save does not know")
    made = known(*arguments)
    if isinstance(made, OtherTensor):
        made.state = state  # the parts of a tensor of a class of its own
    return made


def _other(name: str) -> Callable[..., OtherTensor]:
    return lambda *arguments: OtherTensor(name, arguments)


def _dict(*_: Any) -> dict[Any, Any]:
    """Create a mapping, whose items follow."""
    return {}


def _size(values: Sequence[Any] = ()) -> tuple[Any, ...]:
    return tuple(values) if isinstance(values, (list, tuple)) and len(values) <= _MOST_DIMENSIONS else ()


CALLS: Final[Calls] = {
    "torch._utils._rebuild_tensor": lambda storage, offset, size, stride: _strided(storage, offset, size, stride),
    "torch._utils._rebuild_tensor_v2": lambda storage, offset, size, stride, *_: _strided(
        storage, offset, size, stride
    ),
    "torch._utils._rebuild_tensor_v3": _rebuild_v3,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
    "torch.Size": _size,
    "collections.OrderedDict": _dict,
    "collections.defaultdict": _dict,
    **{name: _other(name) for name in _OTHER_TENSORS},
}
