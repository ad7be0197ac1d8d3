"""Programs of torch.export (.pt2): an archive of JSON that names operators, and of raw weights."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from random import Random
from typing import Any

from tests.fuzzing.cases import CALL, CANARY, HOSTILE_MODULES, Case, Changes, Place
from tests.fuzzing.mutations import jsons, pickles, raw, values, zips
from tests.fuzzing.seeds import Seeds

_Json = dict[str, Any]
# Texts in the place of a size, which torch evaluates.
_EXPRESSIONS = (
    "9**9**9**9",
    "Mod(9**9**9, 7)",
    "Pow(9, Pow(9, Pow(9, 9)))",
    "Max(" + "Integer(1), " * 50_000 + "1)",
    "(" * 5000 + "1" + ")" * 5000,
    "1" + "+1" * 20_000,
    "-" * 20_000 + "1",
    "1 if 1 else 0",
    "[x for x in (1,)][0]",
    "lambda: 1",
    CALL,
    f"Symbol({CALL})",
    f"Symbol('{CANARY}').__class__.__mro__",
    "Symbol('s5', positive=True, integer=True).func.__init__.__globals__",
    "Symbol('x' * 10**9)",
    "Integer('9' * 10**9)",
    "factorial(10**9)",
    "Add(1, evaluate=Symbol)",
    "1e999",
    "0x7fffffffffffffff * 4",
    "9" * 5000,
    "s5 // 0",
    "Mod(Symbol('s5', positive=True, integer=True), 0)",
    "FloorDiv(Symbol('s5', positive=True, integer=True), 0)",
    "Symbol('s5', positive=True, integer=True)**Symbol('s5', positive=True, integer=True)",
    "int_oo",
    "oo - oo",
    "true",
    "print(1)",
    "import os",
    "s5\ns6",
    "",
    "Symbol('s5\\nresult  passed')",
    "Rational(1, 0)",
)
# Operators that have side effects or sizes of their own, and names that are not operators.
_TARGETS = (
    *("aten.from_file.default", "aten.set_.source_Tensor", "aten.resize_.default", "aten.fill_.Scalar"),
    *("aten.set_.source_Storage_storage_offset", "aten.as_strided.default", "aten.empty_strided.default"),
    *("aten.save.default", "aten.load.default", "prims.device_put.default", "prim.Print.default", "aten.warn.default"),
    *(
        "inductor.resize_storage_bytes_.default",
        "fsdp.all_gather_copy_in.default",
        "_c10d_functional.all_reduce.default",
    ),
    *(
        "profiler._record_function_enter_new.default",
        "higher_order.while_loop",
        "higher_order.wrap",
        "higher_order.cond",
    ),
    *("aten._print.default", "aten._assert_scalar.default", "rngprims.philox_rand.default", "quantized.linear.default"),
    *("aten.repeat_interleave.self_int", "aten.bernoulli.default", "aten.normal.Tensor_Tensor", "higher_order.wrap"),
    *("aten.rand.default", "aten._unsafe_index_put.default", "aten.sparse_resize_.default", "aten.__dict__.default"),
    "pom.none.default",
)
_NAMES = (
    *(f"torch.ops.{target}" for target in _TARGETS),
    *("torch._sym_sqrt", "_operator.attrgetter", "_operator.methodcaller", "_operator.pow", "math.factorial"),
    *(
        "torch.load",
        "torch.hub.load",
        "torch.sym_ite",
        "os.system",
        "builtins.eval",
        f"{CANARY}.f",
        "torch._C._jit_init",
    ),
    *("torch.ops.aten.linear", "torch.ops..", "torch.ops.aten.linear.default.x", "_operator.__builtins__"),
    "math.pow",
)
_SIZED = ("full", "zeros", "ones", "empty.memory_format", "arange", "eye", "randn")


def make(random: Random, seeds: Seeds, place: Place) -> Case:
    """Return `export` of a spoilt program, or `inspect`, which refuses every program."""
    changes = Changes()
    file = place.inputs / "program.pt2"
    file.write_bytes(_content(random, seeds, place, changes))
    if random.random() < 0.05:
        return Case(("inspect", str(file)), str(changes), refuse=True)
    return Case(("export", str(file), "-o", str(place.outputs / "model.onnx")), str(changes), changes.refuse)


def _content(random: Random, seeds: Seeds, place: Place, changes: Changes) -> bytes:
    seed = seeds[random.choice(("fixed.pt2", "dynamic.pt2"))]
    action = random.randrange(12)
    if action == 0:
        content, what = raw.spoil(random, seed.read_bytes())
        changes.note(what)
        return content
    members = zips.members_of(seed)
    if action < 3:
        return zips.spoil(random, members, changes)
    if action == 3:
        return _other_member(random, members, place, changes)
    if action == 4:
        return _added_member(random, members, place, changes)
    at = next(i for i, (name, _) in enumerate(members) if name.endswith("models/model.json"))
    program = json.loads(members[at][1])
    for _ in range(random.choice((1, 1, 2))):
        random.choice(_WAYS)(random, program, place, changes)
    text = jsons.written(program)
    if action == 5:
        spoilt, what = jsons.spoil(random, program)
        changes.note(what)
        members[at] = (members[at][0], spoilt)
    else:
        members[at] = (members[at][0], text.encode("utf-8", "surrogatepass"))
    return zips.honest(members)


def _other_member(random: Random, members: list[tuple[str, bytes]], place: Place, changes: Changes) -> bytes:
    """Spoil one of the members other than the program."""
    at = random.choice([i for i, (name, _) in enumerate(members) if not name.endswith("models/model.json")])
    name, data = members[at]
    if name.endswith(".json"):
        data, what = jsons.spoil(random, json.loads(data))
    elif name.endswith(".pt"):
        inner = pickles.START + pickles.hostile(random, place)[0] + pickles.END
        data, what = zips.honest([("archive/data.pkl", inner), ("archive/version", b"3\n")]), "a hostile pickle"
    else:
        data, what = raw.spoil(random, data)
    changes.note(f"{name}: {what}")
    members[at] = (name, data)
    return zips.honest(members)


class _Runs:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return __import__, (CANARY,)


def _added_member(random: Random, members: list[tuple[str, bytes]], place: Place, changes: Changes) -> bytes:
    """Add a member that torch.export.load would unpickle, compile, or load as a library."""
    root = members[0][0].split("/")[0]
    name = random.choice(
        (
            "data/constants/opaque_obj_0",
            "data/constants/custom_obj_0",
            "data/constants/tensor_0",
            "data/weights/weight_99",
            "data/aotinductor/model/model.so",
            "data/aotinductor/model/model.cpp",
            "data/sample_inputs/other.pt",
            "models/other.json",
            "extra/x",
            "executorch/model.pte",
        )
    )
    content = random.choice((pickle.dumps(_Runs(), 2), b"\x7fELF", b"{}", zips.honest([("archive/data.pkl", b"N.")])))
    members.append((f"{root}/{name}", content))
    changes.note(f"a member {name}")
    entry: _Json = {"path_name": name.split("/")[-1], "is_param": False, "use_pickle": random.random() < 0.5}
    entry["tensor_meta"] = None
    if random.random() < 0.2:
        entry["path_name"] = values.path(random, place)
    config = random.choice(("model_constants_config.json", "model_weights_config.json"))
    for i, (other, data) in enumerate(members):
        if other.endswith(config):
            changes.note(f"{config} names {str(entry['path_name'])[:40]!r}, pickled: {entry['use_pickle']}")
            told_of = json.loads(data)
            told_of["config"]["c"] = entry
            members[i] = (other, json.dumps(told_of).encode())
    return zips.honest(members)


def _nodes(program: _Json) -> list[_Json]:
    nodes: list[_Json] = program["graph_module"]["graph"]["nodes"]
    return nodes


def _expression(random: Random, program: _Json, _: Place, changes: Changes) -> None:
    """Put text in the place of a size."""
    text = random.choice(_EXPRESSIONS)
    sized = [value for value in program["graph_module"]["graph"]["tensor_values"].values() if value["sizes"]]
    value = random.choice(sized)
    at = random.randrange(len(value["sizes"]))
    value["sizes"][at] = {"as_expr": {"expr_str": text, "hint": {"as_int": 2}}}
    changes.note(f"a size is {text[:50]!r}")


def _target(random: Random, program: _Json, _: Place, changes: Changes) -> None:
    node = random.choice(_nodes(program))
    target = random.choice((*_NAMES, f"torch.ops.aten.{values.name(random)[:2000]}"))
    node["target"] = target
    changes.note(f"operator {target[:60]!r}")


def _argument(name: str, value: _Json, kind: int = 1) -> _Json:
    return {"name": name, "arg": value, "kind": kind}


def _added(program: _Json, at: int, target: str, inputs: list[_Json], size: int = 4) -> _Json:
    """Insert a node somewhere, and return its output."""
    output = f"new_{at}"
    node = {"target": target, "inputs": inputs, "outputs": [{"as_tensor": {"name": output}}], "metadata": {}}
    _nodes(program).insert(at, {**node, "is_hop_single_tensor_return": None, "name": output})
    described = {"dtype": 7, "sizes": [{"as_int": size}], "requires_grad": False, "strides": [{"as_int": 1}]}
    described |= {"device": {"type": "cpu", "index": None}, "storage_offset": {"as_int": 0}, "layout": 7}
    program["graph_module"]["graph"]["tensor_values"][output] = described
    return {"as_tensor": {"name": output}}


def _from_file(random: Random, program: _Json, place: Place, changes: Changes) -> None:
    """Map one of the user's files into memory, and write to it."""
    name = random.choice(("file", "new"))
    inputs = [
        _argument("filename", {"as_string": str(place.precious / name)}),
        _argument("shared", {"as_bool": True}),
        _argument("size", {"as_int": 4}),
        _argument("dtype", {"as_scalar_type": 7}, 2),
    ]
    mapped = _added(program, 0, "torch.ops.aten.from_file.default", inputs)
    filled = [_argument("self", mapped), _argument("value", {"as_float": 1.0})]
    _added(program, 1, "torch.ops.aten.fill_.Scalar", filled)
    changes.note(f"maps {name}", refuse=True)


def _giant(random: Random, program: _Json, _: Place, changes: Changes) -> None:
    """Create a tensor of any size, which nothing uses."""
    size = random.choice((10**9, 10**10, 10**12, 2**40, 2**62))
    kind = random.choice(_SIZED)
    if kind in {"arange", "eye"}:
        inputs = [_argument("end" if kind == "arange" else "n", {"as_int": size})]
    else:
        inputs = [_argument("size", {"as_ints": [size]})]
        inputs += [_argument("fill_value", {"as_float": 1.0})] if kind == "full" else []
    overload = "memory_format" if "." in kind else "default"
    _added(program, 0, f"torch.ops.aten.{kind.split('.')[0]}.{overload}", inputs, size)
    changes.note(f"{kind} of {size}")


def _grown(random: Random, program: _Json, _: Place, changes: Changes) -> None:
    """Double a tensor's size again and again."""
    last = {"as_tensor": {"name": "query"}}
    for i in range(random.choice((20, 40, 64))):
        twice = _argument("tensors", {"as_tensors": [last["as_tensor"]] * 2})
        last = _added(program, i, "torch.ops.aten.cat.default", [twice])
    changes.note("a tensor doubled many times")


def _module(random: Random, program: _Json, _: Place, changes: Changes) -> None:
    """Name a module where a type is expected."""
    module = random.choice(HOSTILE_MODULES)
    call = program["graph_module"]["module_call_graph"][0]["signature"]
    where = random.choice(("in_spec", "out_spec", "fields", "metadata", "enum", "verifiers", "guards"))
    spec = [1, {"type": f"{module}.f", "context": random.choice(("null", "[]", f'"{module}.f"')), "children_spec": []}]
    if where in call:
        call[where] = json.dumps(spec)
    elif where == "fields":
        program["graph_module"]["treespec_namedtuple_fields"] = {f"{module}.f": {"field_names": ["a"]}}
        call["in_spec"] = json.dumps(spec)
    elif where == "metadata":
        key = random.choice(("nn_module_stack", "source_fn_stack", "torch_fn", "stack_trace", "from_node", "custom"))
        _nodes(program)[0]["metadata"][key] = random.choice((f"x,y,{module}.f", f"{module}.f;{module}.f", CALL))
    elif where == "enum":
        value = {"as_string": json.dumps({"__enum__": True, "fqn": f"{module}.f", "name": "f"})}
        _nodes(program)[0]["inputs"].append(_argument("x", random.choice((value, {"as_custom_obj": {"name": module}}))))
    elif where == "verifiers":
        program["verifiers"] = [random.choice((module, f"{module}.f"))]
    else:
        program["guards_code"] = [random.choice((CALL, f"L['x'].size()[0] == {CALL}"))]
    changes.note(f"{where} names {module}")


def _anything(random: Random, program: _Json, _: Place, changes: Changes) -> None:
    spoilt, what = jsons.spoil_value(random, program)
    program.clear()
    program |= spoilt if isinstance(spoilt, dict) else {"all": spoilt}
    changes.note(what)


def _renamed(random: Random, program: _Json, _: Place, changes: Changes) -> None:
    """Rename a tensor wherever it is named: torch generates Python code from the name."""
    old = random.choice(list(program["graph_module"]["graph"]["tensor_values"]))
    new = random.choice((values.name(random)[:3000], "import os", "self", "lambda", f"x=({CALL})", "é", "getitem"))
    text = json.dumps(program).replace(json.dumps(old), json.dumps(new))
    program.clear()
    program |= json.loads(text)
    changes.note(f"{old} is named {new[:40]!r}")


def _range(random: Random, program: _Json, _: Place, changes: Changes) -> None:
    bounds = {"min_val": random.choice((None, 0, -1, 2, 10**30, 1.5, "x")), "max_val": random.choice((None, 0, 3, -5))}
    program["range_constraints"][random.choice((*program["range_constraints"], "s5", "x"))] = bounds
    changes.note(f"range {bounds}")


_WAYS: tuple[Callable[[Random, _Json, Place, Changes], None], ...] = (
    *(_expression, _expression, _target, _target, _from_file, _giant, _grown, _module, _module),
    *(_anything, _anything, _anything, _renamed, _range),
)
