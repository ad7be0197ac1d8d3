"""What the description of a program may hold, entry by entry: the schema of torch.export, without what it need not."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from pom_export.checkpoint.programs.checks import (
    Check,
    MalformedError,
    Maybe,
    UnsafeError,
    dropped,
    flag,
    integer,
    list_of,
    name,
    nullable,
    number,
    one_of,
    path,
    record,
    shown,
    table_of,
    text,
    union,
)
from pom_export.checkpoint.programs.operators import check_call
from pom_export.checkpoint.programs.sizes import Sizes, symbol_name
from pom_export.checkpoint.programs.structures import parse_structure

# torch._export.serde.schema.ScalarType: bytes and whole numbers, floats, complex ones, bool, bfloat16.
_TYPES: Final = range(1, 14)
_WEIGHT_TYPES: Final = frozenset(_TYPES) - {9}
_STRIDED: Final = 7
_LAYOUT: Final = one_of("a layout", {_STRIDED})
_MEMORY_FORMATS: Final = range(1, 5)
_MOST_DIMENSIONS: Final = 32
_MOST_NODES: Final = 50_000
_MOST_VALUES: Final = 200_000

_CPU: Final = {"type": "cpu", "index": None}
# The verifiers of torch._export.verifier: of what torch.export.export gives, and of its decompositions.
_DIALECTS: Final = frozenset({"TRAINING", "ATEN"})
_MOST_VERSION: Final = 1000
# "key,path,type" of each module around a node, by which nodes are named.
_MODULE: Final = r"[\w.@ <>-]*,[\w.@ -]*,[\w.@ <>-]*"
_MODULES: Final = re.compile(f"{_MODULE}(;{_MODULE})*")
_LONGEST_MODULES: Final = 8192

_NAMED: Final = record("a value", name=name)
_SPEC_OF_TENSOR: Final = {"arg": _NAMED}


def _device(value: Any) -> dict[str, Any]:
    """Return the CPU, where a program is read whatever it was saved on."""
    checked = record("a device", type=one_of("a device", {"cpu", "cuda"}), index=Maybe(nullable(integer(0, 1023))))
    checked(value)
    return dict(_CPU)


def _metadata(value: Any) -> dict[str, str]:
    """Return what names a node; the rest of what a node is annotated with says where it was written."""
    modules = value.get("nn_module_stack") if isinstance(value, dict) else None
    if isinstance(modules, str) and len(modules) <= _LONGEST_MODULES and _MODULES.fullmatch(modules):
        return {"nn_module_stack": modules}
    return {}


def _none(value: Any) -> bool:
    if value is not True:
        raise MalformedError(f"a missing value is {shown(value)}")
    return True


class ProgramSchema:
    """The schema of one program, whose sizes are read once each.

    Args:
        sizes: reads them, and notes their names.
    """

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes
        self._nodes = 0
        hint = Maybe(nullable(union("a size's value", as_int=integer(), as_bool=flag, as_float=number)))
        expression = record("a size", expr_str=sizes.expression, hint=hint)
        self._size = union("a size", as_expr=expression, as_int=integer())
        self._tensor_meta = tensor_meta(self._size)
        size_argument = union("a size", as_name=name, as_int=integer())
        ratio_argument = union("a number", as_name=name, as_float=number)
        flag_argument = union("a flag", as_name=name, as_bool=flag)
        maybe_tensor = union("a value", as_tensor=_NAMED, as_none=_none)
        self._values: dict[str, Check] = {
            "as_none": _none,
            "as_tensor": _NAMED,
            "as_tensors": list_of(_NAMED),
            "as_int": integer(),
            "as_ints": list_of(integer()),
            "as_float": number,
            "as_floats": list_of(number),
            "as_string": text,
            "as_sym_int": size_argument,
            "as_sym_ints": list_of(size_argument),
            "as_scalar_type": one_of("a type", _TYPES),
            "as_memory_format": one_of("a memory format", _MEMORY_FORMATS),
            "as_layout": _LAYOUT,
            "as_device": _device,
            "as_bool": flag,
            "as_bools": list_of(flag),
            "as_sym_bool": flag_argument,
            "as_sym_bools": list_of(flag_argument),
            "as_optional_tensors": list_of(maybe_tensor),
            "as_optional_tensor": maybe_tensor,
            "as_sym_float": ratio_argument,
            "as_sym_floats": list_of(ratio_argument),
            "as_complex": record("a complex number", real=number, imag=number),
        }
        self._value = union("an argument", **self._values)
        block = record("a block", name=name, graph=self._graph)
        self._argument = union("an argument", **self._values, as_graph=block)

    def program(self, value: Any) -> dict[str, Any]:
        """Return a program's description, made anew of what was understood.

        Raises:
            MalformedError: it is not as torch writes it.
            UnsafeError: it holds what would have to be run, or looked up by name.
        """
        major = record("a version", major=integer(0, _MOST_VERSION), minor=integer(0, _MOST_VERSION))
        constraint = record("a range", min_val=nullable(integer()), max_val=nullable(integer()))
        checked: dict[str, Any] = record(
            "the program",
            graph_module=self._graph_module,
            opset_version=table_of(text, integer(0, _MOST_VERSION)),
            range_constraints=table_of(symbol_name, constraint),
            schema_version=major,
            verifiers=Maybe(list_of(one_of("a dialect", _DIALECTS), most=2)),
            torch_version=Maybe(text),
            guards_code=Maybe(dropped([])),  # Python, which checks of other inputs would run
        )(value)
        # torch warns of those that no size is made of.
        checked["range_constraints"] = {
            symbol: limits for symbol, limits in checked["range_constraints"].items() if symbol in self.sizes.symbols
        }
        return checked

    def _graph_module(self, value: Any) -> dict[str, Any]:
        checked: dict[str, Any] = record(
            "the program",
            graph=self._graph,
            signature=self._signature,
            module_call_graph=_call,
            metadata=Maybe(dropped({})),
            treespec_namedtuple_fields=Maybe(dropped({})),
        )(value)
        return checked

    def _graph(self, value: Any) -> dict[str, Any]:
        size, values = self._size, self._value
        ratio = union("a number", as_expr=self._expression("as_float"), as_float=number)
        condition = union("a flag", as_expr=self._expression("as_bool"), as_bool=flag)
        checked: dict[str, Any] = record(
            "a graph",
            inputs=list_of(values),
            outputs=list_of(values),
            nodes=list_of(self._node, most=_MOST_NODES),
            tensor_values=table_of(name, self._tensor_meta),
            sym_int_values=table_of(name, size),
            sym_bool_values=table_of(name, condition),
            sym_float_values=Maybe(table_of(name, ratio)),
            is_single_tensor_return=Maybe(flag),
            custom_obj_values=Maybe(_no_objects),
        )(value)
        return checked

    def _expression(self, kind: str) -> Check:
        hint = union("a size's value", as_int=integer(), as_bool=flag, as_float=number)

        def check_hint(value: Any) -> Any:
            checked = hint(value)
            if kind not in checked:
                raise MalformedError(f"a size's value is {shown(next(iter(checked)))}, not {kind}")
            return checked

        return record("a size", expr_str=self.sizes.expression, hint=Maybe(nullable(check_hint)))

    def _node(self, value: Any) -> dict[str, Any]:
        self._nodes += 1
        if self._nodes > _MOST_NODES:
            raise MalformedError(f"it has more than {_MOST_NODES:,} nodes")
        kind = Maybe(nullable(integer(0, 2)))
        checked: dict[str, Any] = record(
            "a node",
            target=text,
            inputs=list_of(record("an argument", name=text, arg=self._argument, kind=kind)),
            outputs=list_of(self._value),
            metadata=_metadata,
            is_hop_single_tensor_return=Maybe(nullable(flag)),
            name=Maybe(nullable(name)),
        )(value)
        arguments: dict[str, Mapping[str, Any]] = {}
        for index, argument in enumerate(checked["inputs"]):
            if argument["name"] in arguments:
                raise MalformedError(f"{checked['target']} has the argument {shown(argument['name'])} twice")
            arguments[argument["name"] or f"{index}"] = argument["arg"]
        check_call(checked["target"], arguments)
        return checked

    def _signature(self, value: Any) -> dict[str, Any]:
        constant = union("a constant", as_none=_none, as_int=integer(), as_float=number, as_string=text, as_bool=flag)
        inputs = union(
            "an input",
            user_input=record("an input", arg=self._value),
            parameter=record("a parameter", parameter_name=path, **_SPEC_OF_TENSOR),
            buffer=record("a buffer", buffer_name=path, persistent=flag, **_SPEC_OF_TENSOR),
            tensor_constant=record("a constant", tensor_constant_name=path, **_SPEC_OF_TENSOR),
            constant_input=record("a constant input", name=name, value=constant),
        )
        outputs = union(
            "an output",
            user_output=record("an output", arg=self._value),
            buffer_mutation=record("a buffer's change", buffer_name=path, **_SPEC_OF_TENSOR),
            user_input_mutation=record("an input's change", user_input_name=name, **_SPEC_OF_TENSOR),
        )
        checked: dict[str, Any] = record("a signature", input_specs=list_of(inputs), output_specs=list_of(outputs))(
            value
        )
        return checked


def tensor_meta(size: Check) -> Check:
    """Return the check of what is said of a tensor, whose sizes are checked by `size`."""
    sizes = list_of(size, most=_MOST_DIMENSIONS)
    return record(
        "a tensor",
        dtype=one_of("a type", _TYPES),
        sizes=sizes,
        requires_grad=flag,
        device=_device,
        strides=sizes,
        storage_offset=size,
        layout=_LAYOUT,
    )


def _no_objects(value: Any) -> dict[str, Any]:
    if value:
        raise UnsafeError("an object of a class of its own")
    return {}


def _call(value: Any) -> list[dict[str, Any]]:
    """Return how the program is called; how the modules inside were is of no use here."""
    entries = list_of(lambda entry: entry)(value)
    root = next((e for e in entries if isinstance(e, dict) and e.get("fqn") == ""), None)
    signature: dict[str, Any] = record(
        "a call",
        inputs=dropped([]),
        outputs=dropped([]),
        in_spec=parse_structure,
        out_spec=parse_structure,
        forward_arg_names=Maybe(nullable(list_of(name))),
    )((root or {}).get("signature"))
    arguments = signature["in_spec"]
    kinds = [child.kind for child in arguments.children]
    if kinds != ["builtins.tuple", "builtins.dict"]:
        raise MalformedError(f"a program is called with {shown(', '.join(map(str, kinds)))}")
    positional, keywords = arguments.children
    # They become names in generated code.
    called = [*(f"arg_{index}" for index in range(len(positional.children))), *map(name, keywords.keys)]
    names = signature.get("forward_arg_names") or called
    if len(names) != len(called) or len(set(names)) != len(names):
        raise MalformedError(f"{len(called)} arguments have {len(names)} names")
    return [{"fqn": "", "signature": signature}]


def payloads(prefix: str) -> Check:
    """Return the check of what is said of the tensors in a folder.

    Args:
        prefix: how their members are named, before a number.
    """
    member = re.compile(rf"{prefix}\d{{1,9}}")

    def stored(value: Any) -> str:
        if not isinstance(value, str) or not member.fullmatch(value):
            raise UnsafeError(f"a tensor kept as {shown(value)}")
        return value

    def raw(value: Any) -> bool:
        if value is not False:
            raise UnsafeError("a pickled tensor")
        return False

    size = union("a size", as_int=integer(0))
    meta = tensor_meta(size)
    entry = record("a tensor", path_name=stored, is_param=flag, use_pickle=raw, tensor_meta=meta)
    return record("the tensors", config=table_of(path, entry))
