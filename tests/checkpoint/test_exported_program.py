"""Programs of torch.export: exported as they are, and never run where the file asks for more than a program."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import pom_export
from pom_export.checkpoint.exported_program import is_exported_program, read_exported_program
from pom_export.errors import CheckpointError, InputError
from pom_export.mixer import MixerConfig, PolynomialMixer, ProductMixer
from pom_export.models import LanguageModel, LanguageModelConfig
from tests import pt2_files
from tests.pt2_files import argument, edited, own_input, tensor, with_node


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    """A model of two mixers, and the file of its program."""
    torch.manual_seed(0)
    model = nn.Sequential(PolynomialMixer(8, 2, 2), ProductMixer(8, 3, 1)).eval()
    batch, tokens = torch.export.Dim("batch", min=1), torch.export.Dim("tokens", min=1)
    traced = torch.export.export(model, (torch.randn(2, 5, 8),), dynamic_shapes=({0: batch, 1: tokens},))
    path = tmp_path_factory.mktemp("pt2") / "model.pt2"
    torch.export.save(traced, path)
    return model, path


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_program_is_exported(program: tuple[nn.Module, Path], dtype: str, tmp_path: Path) -> None:
    model, path = program
    result = pom_export.export(path, tmp_path / "m.onnx", dtype=dtype)
    assert result.aggregations == 2
    assert result.inputs == [f"input {dtype}[batch, tokens, 8]"]
    x = np.random.default_rng(0).standard_normal((3, 11, 8)).astype(dtype)
    (y,) = pom_export.inference_session(tmp_path / "m.onnx").run(None, {"input": x})
    expected = model(torch.from_numpy(x).float()).detach().numpy()
    np.testing.assert_allclose(
        y, expected, rtol=1e-4 if dtype == "float32" else 3e-2, atol=1e-4 if dtype == "float32" else 3e-2
    )


def test_a_program_of_plain_operators_is_refused(tmp_path: Path) -> None:
    torch.export.save(torch.export.export(nn.Linear(4, 4), (torch.ones(2, 4),)), tmp_path / "m.pt2")
    with pytest.raises(InputError, match="no pom::polynomial_aggregation"):
        pom_export.export(tmp_path / "m.pt2", tmp_path / "m.onnx")


def rewrite(
    source: Path, target: Path, edit: Callable[[str, bytes], bytes], more: dict[str, bytes] | None = None
) -> None:
    """Copy an archive with its members edited, and more of them."""
    content = {name: edit(name, data) for name, data in pt2_files.members(source).items()}
    pt2_files.write(target, {**content, **(more or {})})


def in_json(member: str, old: str, new: str) -> Callable[[str, bytes], bytes]:
    def edit(name: str, content: bytes) -> bytes:
        changed = content.replace(json.dumps(old)[1:-1].encode(), json.dumps(new)[1:-1].encode())
        return changed if name.endswith(member) else content

    return edit


SIZE = "Symbol('s"
HOSTILE: dict[str, Any] = {
    "a size that is code": in_json("model.json", SIZE, "__import__('os').system('touch RAN') or Symbol('s"),
    "a size that calls a builtin": in_json("model.json", SIZE, "exit(Symbol('s9')) or Symbol('s"),
    "a size with an attribute": in_json("model.json", SIZE, "Symbol.mro() or Symbol('s"),
    "a function outside torch.ops": in_json("model.json", "torch.ops.aten.mul.Tensor", "torch.hub.os.system"),
    "a pickled weight": lambda _, content: content.replace(b'"use_pickle": false', b'"use_pickle": true'),
}


@pytest.mark.parametrize("attack", HOSTILE)
def test_a_program_that_would_have_to_be_run_is_refused(
    program: tuple[nn.Module, Path], attack: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewrite(program[1], tmp_path / "m.pt2", HOSTILE[attack])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="would have to be run"):
        read_exported_program(tmp_path / "m.pt2")
    assert not (tmp_path / "RAN").exists()


def test_custom_objects_are_refused(program: tuple[nn.Module, Path], tmp_path: Path) -> None:
    rewrite(program[1], tmp_path / "m.pt2", lambda _, content: content, {"data/constants/custom_obj_0": b"cos"})
    with pytest.raises(CheckpointError, match="custom_obj_0"):
        read_exported_program(tmp_path / "m.pt2")


def test_a_pickle_among_the_example_inputs_is_not_run(program: tuple[nn.Module, Path], tmp_path: Path) -> None:
    class Touch:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "RAN",))

    torch.save(Touch(), tmp_path / "inputs.pt")
    hostile = (tmp_path / "inputs.pt").read_bytes()
    rewrite(program[1], tmp_path / "m.pt2", lambda name, content: hostile if "sample_inputs" in name else content)
    with pytest.raises(InputError):
        pom_export.export(tmp_path / "m.pt2", tmp_path / "m.onnx")
    assert not (tmp_path / "RAN").exists()


def test_a_damaged_program_is_refused(program: tuple[nn.Module, Path], tmp_path: Path) -> None:
    def break_weights(name: str, content: bytes) -> bytes:
        return content[:-8] if name.endswith("weight_1") else content

    for edit in (
        break_weights,
        in_json("model.json", "polynomial_aggregation.default", "polynomial_subtraction.default"),
    ):
        rewrite(program[1], tmp_path / "m.pt2", edit)
        with pytest.raises(CheckpointError, match=r"m\.pt2 is no whole program"):
            read_exported_program(tmp_path / "m.pt2")


def test_other_files_are_no_programs(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "m.pt")
    (tmp_path / "text").write_text("text")
    for path in (tmp_path / "m.pt", tmp_path / "text", tmp_path, tmp_path / "missing"):
        assert not is_exported_program(path)


def test_a_directory_of_a_sparse_file_is_not_read(tmp_path: Path) -> None:
    size = 3 << 30
    with (tmp_path / "m.pt2").open("wb") as file:
        file.write(b"PK\x03\x04")
        file.seek(size)
        file.write(b"PK\x05\x06" + struct.pack("<4H2IH", 0, 0, 1, 1, size, 0, 0))
    assert not is_exported_program(tmp_path / "m.pt2")
    with pytest.raises(CheckpointError, match="no whole program"):
        read_exported_program(tmp_path / "m.pt2")


def layouts(path: Path) -> dict[str, bytes]:
    """Archives that readers of zip files do not agree about, or that hold more than their size."""
    content = path.read_bytes()
    end = content.rindex(b"PK\x05\x06")
    size, offset = struct.unpack("<II", content[end + 12 : end + 20])
    moved = content[: end + 16] + struct.pack("<I", offset + size) + content[end + 20 :]
    twice, packed = io.BytesIO(), io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(twice, "w") as archive:
        warnings.simplefilter("ignore")
        for name, data in [*pt2_files.members(path).items(), (pt2_files.MODEL, b"{}")]:
            archive.writestr(f"model/{name}", data)
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in pt2_files.members(path).items():
            archive.writestr(f"model/{name}", data)
    return {
        "bytes behind": content + b"more",
        "bytes in front": b"more" + content,
        "two directories": content[: offset + size] + moved[offset:],
        "a member twice": twice.getvalue(),
        "compressed": packed.getvalue(),
        "cut short": content[:-100],
    }


@pytest.mark.parametrize(
    "layout", ["bytes behind", "bytes in front", "two directories", "a member twice", "compressed", "cut short"]
)
def test_archives_that_torch_does_not_write_are_refused(
    program: tuple[nn.Module, Path], layout: str, tmp_path: Path
) -> None:
    (tmp_path / "m.pt2").write_bytes(layouts(program[1])[layout])
    assert is_exported_program(tmp_path / "m.pt2") == (layout != "bytes in front")
    with pytest.raises(CheckpointError, match=r"m\.pt2 is no whole program"):
        read_exported_program(tmp_path / "m.pt2")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"models/other.json": b"{}"}, "other.json beside"),
        ({"archive_version": b"1"}, "archive_version"),
        ({"byteorder": b"big"}, "byteorder"),
        ({"archive_format": b"pt3"}, "archive_format"),
        ({"data/aotinductor/model/x.so": b"ELF"}, "would have to be run"),
        ({"data/constants/opaque_obj_0": b"cos"}, "would have to be run"),
        ({"data/weights/model.pt": b"PK"}, "would have to be run"),
    ],
)
def test_other_contents_are_refused(
    program: tuple[nn.Module, Path], members: dict[str, bytes], message: str, tmp_path: Path
) -> None:
    pt2_files.write(tmp_path / "m.pt2", {**pt2_files.members(program[1]), **members})
    with pytest.raises(CheckpointError, match=message):
        read_exported_program(tmp_path / "m.pt2")


def test_files_of_the_users_are_left_out(program: tuple[nn.Module, Path], tmp_path: Path) -> None:
    pt2_files.write(tmp_path / "m.pt2", {**pt2_files.members(program[1]), "extra/notes.txt": b"\xff"})
    assert read_exported_program(tmp_path / "m.pt2").graph_module.code


def signature_of(description: dict[str, Any]) -> dict[str, Any]:
    signature: dict[str, Any] = description["graph_module"]["module_call_graph"][0]["signature"]
    return signature


def replaced(old: str, new: str) -> pt2_files.Edit:
    """Replace text wherever it is."""

    def edit(description: dict[str, Any]) -> None:
        changed = json.dumps(description).replace(old, new)
        description.clear()
        description.update(json.loads(changed))

    return edit


def hostile_edits() -> dict[str, pt2_files.Edit]:
    """What a description can say that torch would run, look up or write, each with "evil" in it."""
    code = "__import__('evil')"
    leaf = {"type": None, "context": None, "children_spec": []}

    def structure(kind: str, context: Any) -> pt2_files.Edit:
        text = json.dumps([1, {"type": kind, "context": json.dumps(context), "children_spec": [leaf]}])
        return lambda description: signature_of(description).update(out_spec=text)

    def parameter(description: dict[str, Any]) -> None:
        spec = description["graph_module"]["signature"]["input_specs"][0]["parameter"]
        spec["parameter_name"] = f'a"), {code}, getattr(self, "b'

    def constant(description: dict[str, Any]) -> None:
        description["graph_module"]["graph"]["custom_obj_values"] = {"x": {"name": "x", "class_fqn": "evil.Type"}}

    def operator(description: dict[str, Any]) -> None:
        call = description["graph_module"]["graph"]["nodes"][0]["inputs"][0]
        call["arg"] = {"as_operator": "torch.ops.evil.op.default"}

    def block(description: dict[str, Any]) -> None:
        graph = {"inputs": [], "outputs": [], "nodes": [], "tensor_values": {}}
        graph |= {"sym_int_values": {}, "sym_bool_values": {}}
        with_node("torch.hub.evil", argument("", as_string="evil"))({"graph_module": {"graph": graph}})
        inside = argument("", as_bool=False), argument("1", as_graph={"name": "inside", "graph": graph})
        with_node("torch.ops.higher_order.wrap_with_set_grad_enabled", *inside)(description)

    return {
        "a size": replaced("Symbol('s", f"{code} or Symbol('s"),
        "the name of a value": replaced('"linear"', f'"x = {code}; y"'),
        "the name of a parameter": parameter,
        "names of arguments": lambda description: signature_of(description).update(forward_arg_names=[f"x={code}"]),
        "an object": constant,
        "an operator as an argument": operator,
        "a module's function": with_node("torch.hub.evil", argument("", as_string="evil")),
        "a function in a block": block,
        "an extension's operator": with_node("#evil:op"),
        "a file": with_node("torch.ops.aten.from_file.default", argument("filename", as_string="evil.txt")),
        "a default factory": structure(
            "collections.defaultdict", {"default_factory_module": "evil", "default_factory_name": "evil"}
        ),
        "an enumeration": structure("builtins.dict", [{"__enum__": True, "fqn": "evil:Type", "name": "X"}]),
        "a named tuple": structure("collections.namedtuple", "evil.Type"),
        "a dialect": lambda description: description.update(verifiers=["EVIL"]),
        "a range": lambda description: description["range_constraints"].update(
            u99999999999={"min_val": 0, "max_val": None}
        ),
    }


@pytest.mark.parametrize("attack", hostile_edits())
def test_what_would_be_run_is_refused(program: tuple[nn.Module, Path], attack: str, tmp_path: Path) -> None:
    edited(program[1], tmp_path / "m.pt2", hostile_edits()[attack])
    with pytest.raises(CheckpointError):
        read_exported_program(tmp_path / "m.pt2")


def harmless_edits() -> dict[str, pt2_files.Edit]:
    """What torch would run too, and what is left out."""
    metadata = {
        "stack_trace": "'''\nimport evil\n",
        "source_fn_stack": "x,torch.hub.evil",
        "nn_module_stack": "a,b,c\nimport evil",
        "custom": "[evil",
        "from_node": "[evil",
    }

    def annotate(description: dict[str, Any]) -> None:
        for node in description["graph_module"]["graph"]["nodes"]:
            node["metadata"] = metadata
        description["graph_module"]["metadata"] = {"custom": "[evil"}

    return {
        "guards": lambda description: description.update(guards_code=["__import__('evil')"]),
        "metadata": annotate,
        "types by name": lambda description: description["graph_module"].update(
            treespec_namedtuple_fields={"evil.Type": {"field_names": ["import evil"]}}
        ),
        "calls of modules": lambda description: description["graph_module"]["module_call_graph"].append(
            {"fqn": "import evil", "signature": {"in_spec": "evil"}}
        ),
    }


@pytest.mark.parametrize("kind", harmless_edits())
def test_what_is_not_needed_is_left_out(program: tuple[nn.Module, Path], kind: str, tmp_path: Path) -> None:
    edited(program[1], tmp_path / "m.pt2", harmless_edits()[kind])
    read, whole = read_exported_program(tmp_path / "m.pt2"), read_exported_program(program[1])
    assert read.graph_module.code == whole.graph_module.code
    assert read._guards_code == []


AUDITED = """
import sys

from pom_export.checkpoint.exported_program import read_exported_program
from pom_export.errors import CheckpointError
from pom_export.graph.own_program import program_module

program_module(read_exported_program(sys.argv[1]))  # imports what it has to
sys.path.insert(0, "")
seen = []

def audit(event, arguments):
    if event in {"exec", "compile", "import", "os.system", "subprocess.Popen", "open"}:
        code = arguments[0]
        words = (code.co_names, code.co_consts, code.co_varnames) if hasattr(code, "co_names") else arguments
        writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        if "evil" in repr(words).lower() and (event != "open" or writes):
            seen.append((event, repr(words)[:200]))

sys.addaudithook(audit)
for path in sys.argv[2:]:
    try:
        program_module(read_exported_program(path))
    except CheckpointError:
        pass
print(seen)
"""


def test_nothing_of_a_file_is_compiled_imported_or_written(program: tuple[nn.Module, Path], tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('it ran')")
    edits = [*hostile_edits().values(), *harmless_edits().values()]
    files = [edited(program[1], tmp_path / f"{number}.pt2", edit) for number, edit in enumerate(edits)]
    command = [sys.executable, "-W", "ignore", "-c", AUDITED, program[1], *files]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n", done.stdout + done.stderr
    assert not (tmp_path / "evil.txt").exists()


HUGE: dict[str, list[dict[str, Any]]] = {
    "full.default": [argument("size", as_ints=[10**12]), argument("fill_value", as_float=1.0)],
    "arange.default": [argument("end", as_float=1e15)],
    "repeat.default": [argument("repeats", as_ints=[10**10])],
    "constant_pad_nd.default": [argument("pad", as_ints=[10**12, 0])],
    "expand.default": [argument("size", as_ints=[10**11, 16])],
    "as_strided.default": [argument("size", as_ints=[10**9]), argument("stride", as_ints=[0])],
    "chunk.default": [argument("chunks", as_int=10**9)],
}


@pytest.mark.parametrize("name", HUGE)
def test_values_far_larger_than_the_file_are_refused(
    program: tuple[nn.Module, Path], name: str, tmp_path: Path
) -> None:
    def edit(description: dict[str, Any]) -> None:
        made = name in {"full.default", "arange.default"}
        own = [] if made else [argument("self", as_tensor=tensor(own_input(description)))]
        with_node(f"torch.ops.aten.{name}", *own, *HUGE[name])(description)

    edited(program[1], tmp_path / "m.pt2", edit)
    with pytest.raises(CheckpointError, match="takes too much to run"):
        read_exported_program(tmp_path / "m.pt2")


def test_products_without_end_are_refused(program: tuple[nn.Module, Path], tmp_path: Path) -> None:
    def edit(description: dict[str, Any]) -> None:
        square = argument("self", as_tensor=tensor("square")), argument("other", as_tensor=tensor("square"))
        with_node("torch.ops.aten.matmul.default", *square, name="product")(description)
        sizes = argument("size", as_ints=[8000, 8000]), argument("fill_value", as_float=1.0)
        with_node("torch.ops.aten.full.default", *sizes, name="square")(description)

    edited(program[1], tmp_path / "m.pt2", edit)
    with pytest.raises(CheckpointError, match="products"):
        read_exported_program(tmp_path / "m.pt2")


def test_sizes_beyond_64_bits_are_refused(program: tuple[nn.Module, Path], tmp_path: Path) -> None:
    def edit(description: dict[str, Any]) -> None:
        graph = description["graph_module"]["graph"]
        call = [argument("a", as_int=9), argument("b", as_int=10**9)]
        output = {"as_sym_int": {"as_name": "power"}}
        graph["nodes"].insert(0, {"target": "_operator.pow", "inputs": call, "outputs": [output], "metadata": {}})
        graph["sym_int_values"]["power"] = {"as_int": 1}

    edited(program[1], tmp_path / "m.pt2", edit)
    with pytest.raises(CheckpointError, match="takes too much"):
        read_exported_program(tmp_path / "m.pt2")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sizes": [{"as_int": 10**9}], "strides": [{"as_int": 0}]}, "claims more values"),
        ({"sizes": [{"as_int": 10**12}, {"as_int": 0}], "strides": [{"as_int": 0}] * 2}, "claims more values"),
        ({"sizes": [{"as_int": 2**62}] * 4, "strides": [{"as_int": 2**62}] * 4}, "claims more values"),
        ({"storage_offset": {"as_int": 1}}, "reaches value"),
        ({"storage_offset": {"as_int": -1}}, "a number is -1"),
        ({"strides": [{"as_int": -1}]}, "a number is -1"),
        ({"strides": []}, "strides"),
        ({"dtype": 8}, "the file holds"),
        ({"dtype": 99}, "a type is 99"),
        ({"layout": 1}, "a layout is 1"),
        ({"device": {"type": "meta", "index": None}}, "a device is 'meta'"),
        ({"sizes": [{"as_expr": {"expr_str": "Integer(4)"}}]}, "would have to be run"),
    ],
)
def test_weights_stay_within_their_bytes(
    program: tuple[nn.Module, Path], change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    def edit(config: dict[str, Any]) -> None:
        config["config"]["0.se_bias"]["tensor_meta"].update(change)

    edited(program[1], tmp_path / "m.pt2", edit, pt2_files.WEIGHTS)
    with pytest.raises(CheckpointError, match=message):
        read_exported_program(tmp_path / "m.pt2")


def test_a_missing_weight_is_named(program: tuple[nn.Module, Path], tmp_path: Path) -> None:
    edited(program[1], tmp_path / "m.pt2", lambda config: config["config"].pop("0.se_bias"), pt2_files.WEIGHTS)
    with pytest.raises(CheckpointError, match=r"lacks the tensor 0\.se_bias"):
        read_exported_program(tmp_path / "m.pt2")


EXAMPLES = {"huge": torch.ones(1).expand(10**9), "a class": object, "a table": {"x": 1}, "a set": {1}}


@pytest.mark.parametrize("kind", EXAMPLES)
def test_examples_are_checked_as_weights_are(program: tuple[nn.Module, Path], kind: str, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(((EXAMPLES[kind],), {}), buffer)
    examples = {"data/sample_inputs/model.pt": buffer.getvalue()}
    pt2_files.write(tmp_path / "m.pt2", {**pt2_files.members(program[1]), **examples})
    with pytest.raises(CheckpointError, match=r"m\.pt2") as error:
        read_exported_program(tmp_path / "m.pt2")
    assert ".pt " not in error.value.what.replace(str(tmp_path), "")


class Various(nn.Module):
    """A mixer, and much that users' models have around one."""

    def __init__(self) -> None:
        super().__init__()
        self.mixer = PolynomialMixer(8, 2, 2)
        self.head = nn.Linear(8, 8, bias=False)
        self.tied = nn.Linear(8, 8, bias=False)
        self.tied.weight = self.head.weight
        self.relu, self.dropout = nn.ReLU(inplace=True), nn.Dropout(0.1)
        self.register_buffer("table", torch.randn(64, 8))
        self.register_buffer("scale", torch.ones(1), persistent=False)

    @torch.no_grad()
    def angles(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", enabled=False):
            return torch.outer(torch.arange(x.shape[1]).float(), torch.ones(8)).cos()

    def forward(self, inputs: dict[str, torch.Tensor], *, more: list[torch.Tensor]) -> dict[str, Any]:
        x = inputs["x"] + self.angles(inputs["x"]) + self.table[: inputs["x"].shape[1]]
        mixed = self.dropout(self.relu(self.mixer(x, causal=True))) * self.scale + more[0]
        filled = nn.functional.scaled_dot_product_attention(mixed, mixed, mixed, is_causal=True).clone()
        filled[:, 0] = 1
        return {"a": self.tied(self.head(filled)), "b": [mixed / x.shape[1], None, 3]}


AUTO = torch.export.Dim.AUTO


def various() -> tuple[Any, ...]:
    dynamic = {0: AUTO, 1: AUTO}
    examples = ({"x": torch.randn(2, 5, 8)},), {"more": [torch.ones(2, 5, 8)]}
    return Various(), *examples, {"inputs": {"x": dynamic}, "more": [dynamic]}


def language_model(dtype: torch.dtype) -> tuple[Any, ...]:
    model = LanguageModel(LanguageModelConfig(32, 2, 3, 16, MixerConfig(8, 2, 2))).to(dtype)
    return model, (torch.randint(0, 32, (2, 5)),), {}, ({0: AUTO, 1: AUTO},)


GOOD: dict[str, Callable[[], tuple[Any, ...]]] = {
    "various": various,
    "language model": lambda: language_model(torch.float32),
    "bfloat16": lambda: language_model(torch.bfloat16),
    "float16": lambda: (nn.Sequential(PolynomialMixer(8, 2, 2)).half(), (torch.randn(2, 5, 8).half(),), {}, None),
    "attention": lambda: (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (torch.randn(2, 5, 8),), {}, None),
}


@pytest.mark.parametrize("kind", GOOD)
def test_programs_are_read_as_torch_reads_them(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, arguments, keywords, dynamic = GOOD[kind]()
    traced = torch.export.export(model.eval(), arguments, keywords, dynamic_shapes=dynamic)
    torch.export.save(traced, tmp_path / "m.pt2", extra_files={"notes": "of the user"})
    ours, theirs = read_exported_program(tmp_path / "m.pt2"), torch.export.load(tmp_path / "m.pt2")
    for part in ("graph_signature", "call_spec", "range_constraints"):
        assert getattr(ours, part) == getattr(theirs, part)
    assert ours.graph_module.code == theirs.graph_module.code
    for name, value in theirs.state_dict.items():
        mine = ours.state_dict[name]
        assert (type(mine), mine.dtype, mine.stride()) == (type(value), value.dtype, value.stride())
        assert torch.equal(mine, value)
    results = [
        program.module(check_guards=False)(*program.example_inputs[0], **program.example_inputs[1])
        for program in (ours, theirs)
    ]
    torch.testing.assert_close(*results, rtol=0, atol=0)


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    model, arguments, keywords, _ = various()
    torch.export.save(torch.export.export(model.eval(), arguments, keywords), tmp_path / "m.pt2")
    weights = read_exported_program(tmp_path / "m.pt2").state_dict
    assert weights["head.weight"].data_ptr() == weights["tied.weight"].data_ptr()


def test_derived_sizes_are_read(tmp_path: Path) -> None:
    class Halved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mixer = PolynomialMixer(8, 2, 2)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return self.mixer(x)[:, ::2] + y

    half = torch.export.Dim("half", min=1, max=64)
    dynamic = ({1: 2 * half}, {1: half})
    traced = torch.export.export(Halved(), (torch.randn(2, 6, 8), torch.randn(2, 3, 8)), dynamic_shapes=dynamic)
    torch.export.save(traced, tmp_path / "m.pt2")
    program = read_exported_program(tmp_path / "m.pt2")
    shapes = [node.meta["val"].shape for node in program.graph.nodes if node.name in {"x", "y"}]
    assert str(shapes[0][1]) == f"2*{shapes[1][1]}"


def test_a_program_of_another_device_is_read_on_the_cpu(program: tuple[nn.Module, Path], tmp_path: Path) -> None:
    move = replaced('"type": "cpu", "index": null', '"type": "cuda", "index": 3')
    edited(edited(program[1], tmp_path / "half.pt2", move), tmp_path / "m.pt2", move, pt2_files.WEIGHTS)
    moved, here = read_exported_program(tmp_path / "m.pt2"), read_exported_program(program[1])
    assert moved.graph_module.code == here.graph_module.code
    assert {value.device.type for value in moved.state_dict.values()} == {"cpu"}
