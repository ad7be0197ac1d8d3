"""A file's metadata is read strictly: what an export would not write is refused by one line."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import onnx.parser
import pytest

from pom_export.errors import InputError
from pom_export.graph.claims import ClaimError, Claims, InputLimits, read_claims
from pom_export.graph.exported_model import read_model

SHA256 = "0123456789abcdef" * 4


def claims(**properties: str) -> Claims:
    return read_claims((f"pom_export.{name}", text) for name, text in properties.items())


def test_what_an_export_writes_is_read() -> None:
    limits = InputLimits({"positions": (8, 3)}, 40, 4.0, ranges={"t": (0.0, 1.5)})
    found = claims(
        dtype="float16", mask="full", limits=limits.to_json(), spec='{"config":{"dim":4}}', source_sha256=SHA256
    )
    assert found.limits == InputLimits({"positions": [8, 3]}, 40, 4.0, ranges={"t": [0.0, 1.5]})
    assert "ranges" not in InputLimits(tokens=40).to_json()
    assert found.spec["config"]["dim"] == 4
    assert claims(kept_in_float32='{"a.b":"large"}').kept_in_float32 == {"a.b": "large"}
    assert claims(keep_float32='["a.b","c"]').keep_float32 == ("a.b", "c")
    assert claims() == Claims()


def test_properties_of_others_are_left_out() -> None:
    assert read_claims([("dtype", "int4"), ("limits", "{"), ("dtype", "")]).properties == {}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("dtype", "float8"),
        ("mask", "diagonal"),
        ("stateful", "yes"),
        ("source_sha256", "00\n"),
        ("spec", "[" * 10_000),
        ("spec", '{"a":' * 10_000 + "1" + "}" * 10_000),
        ("spec", "{"),
        ("spec", "[]"),
        ("spec", '{"config":[]}'),
        ("spec", '{"degree":' + "9" * 5000 + "}"),
        ("spec", '{"a":1,"a":2}'),
        ("spec", '{"a":"' + "a" * (1 << 20) + '"}'),
        ("kept_in_float32", '{"a":1}'),
        ("keep_float32", '{"a":"b"}'),
        ("keep_float32", '["a",1]'),
        ("keep_float32", '[""]'),
        ("limits", "null"),
        ("limits", '{"rows":1}'),
        ("limits", '{"values":[]}'),
        ("limits", '{"values":{"x":8}}'),
        ("limits", '{"values":{"x":[]}}'),
        ("limits", '{"values":{"x":[0]}}'),
        ("limits", '{"values":{"x":[true]}}'),
        ("limits", '{"values":{"x":[1.5]}}'),
        ("limits", json.dumps({"values": {"x": [1] * 1_000_000}})),
        ("limits", json.dumps({"values": {str(i): [1] for i in range(2000)}})),
        ("limits", '{"tokens":0}'),
        ("limits", '{"tokens":-1}'),
        ("limits", '{"tokens":9223372036854775808}'),
        ("limits", '{"tokens":"8"}'),
        ("limits", '{"tokens":true}'),
        ("limits", '{"scale":NaN}'),
        ("limits", '{"scale":-Infinity}'),
        ("limits", '{"scale":1e999}'),
        ("limits", '{"scale":0}'),
        ("limits", '{"scale":[]}'),
        ("limits", '{"ranges":[]}'),
        ("limits", '{"ranges":{"t":1}}'),
        ("limits", '{"ranges":{"t":[0]}}'),
        ("limits", '{"ranges":{"t":[1,0]}}'),
        ("limits", '{"ranges":{"t":[0,NaN]}}'),
        ("limits", '{"ranges":{"t":[0,"1"]}}'),
        ("limits", '{"ranges":{"t":[false,true]}}'),
    ],
)
def test_anything_else_is_refused(name: str, text: str) -> None:
    with pytest.raises(ClaimError) as raised:
        claims(**{name: text})
    assert len(str(raised.value)) < 300


def test_a_property_twice_is_refused_whatever_it_says() -> None:
    with pytest.raises(ClaimError, match="'mask' twice"):
        read_claims([("pom_export.mask", "none"), ("pom_export.mask", "none")])


def test_the_readers_refusal_is_one_line(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 20]> g (float[N] x) => (float[N] y) { y = Relu(x) }'
    )
    model.metadata_props.add(key="pom_export.mask", value="\x1b[2Jresult  passed\n")
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(InputError, match="'mask' is ") as raised:
        read_model(tmp_path / "m.onnx")
    assert str(raised.value).isprintable()
