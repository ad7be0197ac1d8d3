"""Create a session from a rewritten graph, with its weights handed over instead of written anywhere."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final
from weakref import WeakKeyDictionary

import onnx_ir as ir

from pom_export.errors import InputError, reason_of
from pom_export.runtime.fusing.rewriting import Fused, fused

_LOG = logging.getLogger(__name__)
# The folder of external weights, for a graph that is not loaded from a file.
_FOLDER: Final = "session.model_external_initializers_file_folder_path"
_LARGEST_GRAPH: Final = 2**31 - 1
# An empty file of ours that is in every installation.
_EMPTY: Final = "py.typed"
# The values that session options point to, which must live as long as they do. The weights themselves belong to the
# sessions: nothing reads those of a session that is gone.
_REFERRED: Final[WeakKeyDictionary[Any, list[Any]]] = WeakKeyDictionary()


def fused_session(
    file: Path, externals: frozenset[str], options: Any, create: Callable[[bytes], Any], *, callers: bool
) -> Any:
    """Create a session that runs a file's layers in fused nodes.

    Args:
        file: the file.
        externals: the names of its files of external weights.
        options: the onnxruntime.SessionOptions, to which weights and their folder are added.
        create: creates an instance of `session_class()` of a serialized graph.
        callers: whether the options are a caller's, who may use them for other files, of which none may be looked for
            in this one's folder. They stay as they are then, and the graph has its weights in itself.

    Returns:
        The session; None if the file has nothing to fuse, or not with these options, and nothing has changed.
    """
    folder, place = _place_without_weights(file, externals)
    named = _entry(options, _FOLDER)
    if named not in {None, folder}:
        _LOG.info("%s is not fused: its session options name another folder of weights", file)
        return None
    try:
        rewritten = fused(file)
        graph = None
        if rewritten is not None:
            (_take_in if callers else _leave_out)(rewritten, folder, place)
            graph = _serialized(rewritten.model)
    # Loading it as it is says what is wrong with it.
    except (InputError, LookupError, OSError, TypeError, ValueError) as error:
        _LOG.info("%s is not fused: %s", file, reason_of(error))
        return None
    if rewritten is None or graph is None:
        return None
    if named is None and not callers:
        options.add_session_config_entry(_FOLDER, folder)
    weights = [] if callers else _add_weights(rewritten, options)
    try:
        session = create(graph)
    except Exception as error:  # noqa: BLE001  # onnxruntime's exceptions have no common base class
        _LOG.info("%s is not fused, and runs as it is: %s", file, reason_of(error))
        return None
    # Whoever makes ONNX Runtime create it again gets the file itself. Nor is the graph kept twice.
    session._model_path, session._model_bytes = os.fspath(file), None
    session.hold(weights, rewritten.operators)
    _LOG.debug("%d nodes of %s are in fused ones", sum(rewritten.operators.values()), file)
    return session


def _place_without_weights(file: Path, externals: frozenset[str]) -> tuple[str, str]:
    """Return the folder in which ONNX Runtime looks for weights, and a file in it, after whose end there are none.

    The graph says that handed-over weights are there: some versions of ONNX Runtime require that the file exists, and
    if one tried to read it, that would be an error.
    """
    if externals:
        return os.fspath(file.parent.absolute()), min(externals)
    # The package is not imported here, because it imports this module.
    return os.fspath(Path(next(iter(sys.modules[__name__.partition(".")[0]].__path__))).resolve()), _EMPTY


def _entry(options: Any, key: str) -> str | None:
    try:
        return str(options.get_session_config_entry(key))
    except RuntimeError:
        return None


def _leave_out(rewritten: Fused, folder: str, place: str) -> None:
    """Say that the packed weights are in a file."""
    end = Path(folder, place).stat().st_size
    for name, array in rewritten.weights.items():
        value = rewritten.model.graph.initializers[name]
        assert value.dtype is not None
        shape = ir.Shape(array.shape)
        value.const_value = ir.ExternalTensor(place, end, array.nbytes, value.dtype, shape=shape, name=name)


def _take_in(rewritten: Fused, *_: str) -> None:
    """Have no weights in files, those that are not packed included."""
    for value in rewritten.model.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = ir.Tensor(value.const_value.numpy(), value.dtype, name=value.name)


def _serialized(model: ir.Model) -> bytes | None:
    """Return a graph; None if it is too large for one."""
    tensors = (value.const_value for value in model.graph.initializers.values())
    inside = (each.nbytes for each in tensors if each is not None and not isinstance(each, ir.ExternalTensor))
    if sum(inside) > _LARGEST_GRAPH:
        return None
    proto = ir.serde.serialize_model(model)
    return proto.SerializeToString() if proto.ByteSize() <= _LARGEST_GRAPH else None


def _add_weights(rewritten: Fused, options: Any) -> list[Any]:
    import onnxruntime

    weights = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in rewritten.weights.items()}
    _refer(options, weights)
    return list(weights.values())


def _refer(options: Any, weights: Mapping[str, Any]) -> None:
    for name, value in weights.items():
        options.add_initializer(name, value)
    _REFERRED.setdefault(options, []).extend(value._ortvalue for value in weights.values())
