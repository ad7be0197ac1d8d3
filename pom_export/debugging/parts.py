"""Cut parts out of a file, to run them alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import onnx
from onnx import helper

from pom_export.errors import SEE_CAUSE, InputError, reason_of
from pom_export.files import scratch_folder
from pom_export.graph.saving import EXTERNAL_DATA_BYTES
from pom_export.parity.case import Array, Arrays
from pom_export.runtime.session import inference_session

_GIVEN = "_given"


class FileParts:
    """A file whose parts are run alone. It is loaded once; a part has only the nodes and weights that it needs.

    Args:
        path: the file.
        kernels: whether parts run with our kernels or with the op's function.
    """

    def __init__(self, path: Path, *, kernels: bool) -> None:
        self._path, self._kernels = path, kernels
        self._whole = onnx.load(path, format="protobuf")
        graph = self._whole.graph
        self._makers = {name: place for place, node in enumerate(graph.node) for name in node.output if name}
        self._types = {info.name: info for info in (*graph.value_info, *graph.output)}

    def run(self, names: Sequence[str], given: Mapping[str, Array], feed: Arrays) -> dict[str, Array]:
        """Return values of the graph for other values before them.

        Args:
            names: the values to return.
            given: values of the graph, or inputs of the model, by name; what the graph computes for them is ignored.
            feed: the other inputs of the model.

        Raises:
            InputError: ONNX Runtime can't run the part.
        """
        inner = {name: array for name, array in given.items() if name in self._makers}
        inputs = dict(feed)
        inputs |= {name: array.astype(inputs[name].dtype) for name, array in given.items() if name not in inner}
        part = self._part(names, inner)
        for info in part.graph.input[len(self._whole.graph.input) :]:
            kind = helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
            inputs[info.name] = inner[info.name.removesuffix(_GIVEN)].astype(kind)
        with scratch_folder() as folder:
            large = sum(len(tensor.raw_data) for tensor in part.graph.initializer) > EXTERNAL_DATA_BYTES
            onnx.save(part, folder / "part.onnx", format="protobuf", save_as_external_data=large)
            session = inference_session(folder / "part.onnx", kernels=self._kernels)
            try:
                outputs = session.run(list(names), inputs)
            except Exception as error:
                raise InputError(f"a part of {self._path} fails: {reason_of(error)}", SEE_CAUSE) from error
        return dict(zip(names, outputs, strict=True))

    def _part(self, names: Sequence[str], given: Mapping[str, Array]) -> onnx.ModelProto:
        """Return the part that makes values from others, which are further inputs of it."""
        whole = self._whole
        part = onnx.ModelProto(
            ir_version=whole.ir_version,
            opset_import=whole.opset_import,
            functions=whole.functions,
            metadata_props=whole.metadata_props,
        )
        part.graph.name = whole.graph.name
        part.graph.input.extend(whole.graph.input)
        nodes = [whole.graph.node[place] for place in sorted(self._needed(names, given))]
        used = {name for node in nodes for name in _used(node)} | {each.name for each in whole.graph.input}
        part.graph.initializer.extend(each for each in whole.graph.initializer if each.name in used)
        part.graph.sparse_initializer.extend(whole.graph.sparse_initializer)
        renamed = {name: f"{name}{_GIVEN}" for name in given}
        for node in nodes:
            part.graph.node.append(node)
            _rename(part.graph.node[-1], renamed)
            part.graph.value_info.extend(self._types[name] for name in node.output if name in self._types)
        for name, array in given.items():
            known = self._types[name].type.tensor_type.elem_type if name in self._types else 0
            kind = known or helper.np_dtype_to_tensor_dtype(array.dtype)
            part.graph.input.append(helper.make_tensor_value_info(f"{name}{_GIVEN}", kind, array.shape))
        part.graph.output.extend(self._types.get(name, onnx.ValueInfoProto(name=name)) for name in dict.fromkeys(names))
        return part

    def _needed(self, names: Iterable[str], given: Mapping[str, Array]) -> set[int]:
        """Return the places of the nodes that values are made by, from given ones on."""
        found: set[int] = set()
        wanted = list(names)
        while wanted:
            place = self._makers.get(wanted.pop())
            if place is not None and place not in found:
                found.add(place)
                wanted += (name for name in _used(self._whole.graph.node[place]) if name not in given)
        return found


def _inner(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        yield from ([attribute.g] if attribute.HasField("g") else attribute.graphs)


def _used(node: onnx.NodeProto) -> Iterator[str]:
    """Yield the names that a node and its branches read, some of them the branches' own."""
    yield from filter(None, node.input)
    for graph in _inner(node):
        for inner in graph.node:
            yield from _used(inner)
        yield from (value.name for value in graph.output)


def _rename(node: onnx.NodeProto, names: Mapping[str, str]) -> None:
    """Let a node and its branches read values by other names."""
    node.input[:] = [names.get(name, name) for name in node.input]
    for graph in _inner(node):
        for inner in graph.node:
            _rename(inner, names)
        for value in graph.output:
            value.name = names.get(value.name, value.name)
