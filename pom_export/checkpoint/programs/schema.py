"""The allowed entries of a program's description: torch.export's schema, without the parts that are not needed."""

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
from pom_export.checkpoint.programs.sizes import parse_size
from pom_export.checkpoint.programs.structures import parse_structure
from pom_export.checkpoint.programs.symbols import sympy_size

# torch._export.serde.schema.ScalarType: bytes, integers, floats, complex numbers, bool, bfloat16.
_TYPES: Final = range(1, 14)
_WEIGHT_TYPES: Final = frozenset(_TYPES) - {9}
_STRIDED: Final = 7
_LAYOUT: Final = one_of("a layout", {_STRIDED})
_MEMORY_FORMATS: Final = range(1, 5)
_MOST_DIMENSIONS: Final = 32
_MOST_NODES: Final = 20_000
# Nesting such as no_grad in autocast in no_grad.
_MOST_BLOCKS: Final = 4

_CPU: Final = {"type": "cpu", "index": None}
# The verifiers in torch._export.verifier for results of torch.export.export and their decompositions.
_DIALECTS: Final = frozenset({"TRAINING", "ATEN"})
_MOST_VERSION: Final = 1000
# "key,path,type" for each module around a node, which determine the names of nodes.
_MODULE: Final = r"[\w.@ <>-]*,[\w.@ -]*,[\w.@ <>-]*"
_MODULES: Final = re.compile(f"{_MODULE}(;{_MODULE})*")
_LONGEST_MODULES: Final = 8192
_DERIVED: Final = re.compile(r"[s\d+*/() -]{1,256}")

_NAMED: Final = record("a value", name=name)
_SPEC_OF_TENSOR: Final = {"arg": _NAMED}


def _device(value: Any) -> dict[str, Any]:
    """Return the CPU: a program is loaded there, whatever device it was saved from."""
    checked = record("a device", type=one_of("a device", {"cpu", "cuda"}), index=Maybe(nullable(integer(0, 1023))))
    checked(value)
    return dict(_CPU)


def _metadata(value: Any) -> dict[str, str]:
    """Return the annotations that determine a node's name; others say where it was written."""
    modules = value.get("nn_module_stack") if isinstance(value, dict) else None
    if isinstance(modules, str) and len(modules) <= _LONGEST_MODULES and _MODULES.fullmatch(modules):
        return {"nn_module_stack": modules}
    return {}


def _none(value: Any) -> bool:
    if value is not True:
        raise MalformedError(f"a missing value is {shown(value)}")
    return True


def _expression(kind: str) -> Check:
    """Return a check for an expression whose value on the example inputs is of a kind."""
    hint = union("a size's value", as_int=integer(), as_bool=flag, as_float=number)

    def check_hint(value: Any) -> Any:
        checked = hint(value)
        if kind not in checked:
            raise MalformedError(f"a size's value is {shown(next(iter(checked)))}, not {kind}")
        return checked[kind]

    return record("a size", expr_str=parse_size, hint=Maybe(nullable(check_hint)))


def _range_name(value: Any) -> str:
    """Return the size that a range belongs to; the range of a derived size is not needed."""
    if not isinstance(value, str) or not _DERIVED.fullmatch(value):
        raise UnsafeError(f"a size named {shown(value)}")
    return value


def _hint(expression: Mapping[str, Any]) -> Any:
    if (value := expression.get("hint")) is None:
        raise MalformedError("its sizes depend on values, which is not supported")
    return value


def _static(what: str, kind: str, check: Check) -> Check:
    """Return a check for a number, replacing an expression by its value on the example inputs."""
    either = union(what, as_expr=_expression(kind), **{kind: check})

    def value_of(value: Any) -> dict[str, Any]:
        checked = either(value)
        return {kind: _hint(checked["as_expr"]) if "as_expr" in checked else checked[kind]}

    return value_of


def _condition(value: Any) -> dict[str, bool]:
    """Return the value of a comparison of sizes, which the file lacks: it was asserted, so it is true."""
    union("a flag", as_expr=_expression("as_bool"), as_bool=flag)(value)
    return {"as_bool": True}


def tensor_meta(size: Check) -> Check:
    """Return a check for a tensor's metadata, whose sizes are checked by `size`."""
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


_INTEGER: Final = _static("a size", "as_int", integer())
_RATIO: Final = _static("a number", "as_float", number)
_TENSOR: Final = tensor_meta(_INTEGER)


class ProgramSchema:
    """The schema of a program.

    Sizes of the program's inputs keep their expressions. All others are passed to torch as numbers, for the example
    inputs. The program is traced again anyway, and torch's simplification of expressions can take unlimited time.
    """

    def __init__(self) -> None:
        self._nodes = 0
        self._blocks = 0
        self._symbols: set[str] = set()
        self._input_meta = tensor_meta(union("a size", as_expr=self._symbolic, as_int=integer()))
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
        block = record("a block", name=name, graph=self._block)
        self._argument = union("an argument", **self._values, as_graph=block)

    def program(self, value: Any) -> dict[str, Any]:
        """Return a copy of a program's description with only what was understood.

        Raises:
            MalformedError: it is not what torch would write.
            UnsafeError: it contains something that would have to be executed, or looked up by name.
        """
        version = record("a version", major=integer(0, _MOST_VERSION), minor=integer(0, _MOST_VERSION))
        constraint = record("a range", min_val=nullable(integer()), max_val=nullable(integer()))
        checked: dict[str, Any] = record(
            "the program",
            graph_module=self._graph_module,
            opset_version=table_of(text, integer(0, _MOST_VERSION)),
            range_constraints=table_of(_range_name, constraint),
            schema_version=version,
            verifiers=Maybe(list_of(one_of("a dialect", _DIALECTS), most=2)),
            torch_version=Maybe(text),
            guards_code=Maybe(dropped([])),  # Python code, which checks of other inputs would execute
        )(value)
        ranges = checked["range_constraints"]
        if unknown := sorted(self._symbols - ranges.keys()):
            raise MalformedError(f"it lacks the range of {unknown[0]}")
        # torch warns about symbols that no input has.
        checked["range_constraints"] = {symbol: ranges[symbol] for symbol in sorted(self._symbols)}
        return checked

    def _symbolic(self, value: Any) -> dict[str, Any]:
        """Check a size of an input."""
        checked = _expression("as_int")(value)
        self._symbols |= checked["expr_str"].symbols
        return {"expr_str": sympy_size(checked["expr_str"]), "hint": {"as_int": _hint(checked)}}

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
        values = list_of(self._value)
        entries: dict[str, Check | Maybe] = {
            "inputs": values,
            "outputs": values,
            "nodes": list_of(self._node, most=_MOST_NODES),
            "sym_int_values": table_of(name, _INTEGER),
            "sym_bool_values": table_of(name, _condition),
            "sym_float_values": Maybe(table_of(name, _RATIO)),
            "is_single_tensor_return": Maybe(flag),
            "custom_obj_values": Maybe(_no_objects),
        }
        given = value.get("inputs") if isinstance(value, dict) and not self._blocks else None
        inputs = {entry["as_tensor"]["name"] for entry in values(given or []) if "as_tensor" in entry}

        def tensors(value: Any) -> dict[str, Any]:
            table = table_of(name, lambda meta: meta)(value)
            return {key: (self._input_meta if key in inputs else _TENSOR)(meta) for key, meta in table.items()}

        checked: dict[str, Any] = record("a graph", **entries, tensor_values=tensors)(value)
        return checked

    def _block(self, value: Any) -> dict[str, Any]:
        """Check a graph inside another."""
        self._blocks += 1
        if self._blocks > _MOST_BLOCKS:
            raise MalformedError(f"it nests blocks more than {_MOST_BLOCKS} times")
        checked = self._graph(value)
        self._blocks -= 1
        return checked

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


def _no_objects(value: Any) -> dict[str, Any]:
    if value:
        raise UnsafeError("an object of a class of your own")
    return {}


def _call(value: Any) -> list[dict[str, Any]]:
    """Return how the program is called; how the modules inside were called is not needed."""
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
    # These become names in generated code.
    called = [*(f"arg_{index}" for index in range(len(positional.children))), *map(name, keywords.keys)]
    names = signature.get("forward_arg_names") or called
    if len(names) != len(called) or len(set(names)) != len(names):
        raise MalformedError(f"{len(called)} arguments have {len(names)} names")
    return [{"fqn": "", "signature": signature}]


def payloads(prefix: str) -> Check:
    """Return a check for the description of a folder's tensors.

    Args:
        prefix: the beginning of their members' names, before a number.
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
