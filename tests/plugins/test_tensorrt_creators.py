"""Plugins created from fields, in the real TensorRT for RTX, and in others: see test_tensorrt_runtimes.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pom_export import contract


def create(trt: Any, op_name: str = contract.OP_NAME, **values: Any) -> Any:
    """Ask an op's creator for a plugin with these fields."""
    kinds = {np.int8: "CHAR", np.int32: "INT32", np.float32: "FLOAT32"}
    fields = []
    for name, value in values.items():
        data = np.frombuffer(value, dtype=np.int8) if isinstance(value, bytes) else np.array([value])
        fields.append(trt.PluginField(name, data, getattr(trt.PluginFieldType, kinds[data.dtype.type])))
    creator = trt.get_plugin_registry().get_creator(op_name, contract.PLUGIN_VERSION, contract.PLUGIN_NAMESPACE)
    return creator.create_plugin("p", trt.PluginFieldCollection(fields), trt.TensorRTPhase.RUNTIME)


@pytest.mark.parametrize(
    "fields",
    [
        {"mode": b"mean"},
        {"mode": b"causal\0"},  # its length includes the NUL
        {"form": b"power", "mode": b"features", "rotary_blocks": np.int32(1), "epsilon": np.float32(0)},
        {"mode": b"mean", "epsilon": np.float32(1e-6), "plugin_version": b"1", "plugin_namespace": b"\0"},
        {"form": b"product", "degree": np.int32(16), "mode": b"mean"},
        {"form": b"power", "degree": np.int32(0), "mode": b"mean", "rotary_blocks": np.int32(2)},
        {"mode": b"causal", "stateful": np.int32(1)},
    ],
)
def test_the_creator_makes_a_plugin(trt: Any, fields: dict[str, Any]) -> None:
    assert create(trt, **fields) is not None


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"form": b"power"}, "mode is missing"),
        ({"mode": b"meaner"}, 'got "meaner"'),
        ({"mode": np.int32(0)}, "mode must be text"),
        ({"mode": b"mean", "form": b"sum"}, 'form must be "power" or "product", got "sum"'),
        ({"mode": b"mean", "form": b"product"}, 'form "product" needs a degree of 1 to 16, got 0'),
        ({"mode": b"mean", "form": b"product", "degree": np.int32(17)}, "needs a degree of 1 to 16, got 17"),
        ({"mode": b"mean", "degree": np.int32(2)}, 'must be 0 in form "power", got 2'),
        ({"mode": b"mean", "degree": b"2"}, "degree must be one int32"),
        ({"mode": b"mean", "rotary_blocks": np.int32(3)}, "rotary_blocks must be 1 or 2, got 3"),
        ({"mode": b"mean", "rotary_blocks": np.float32(1)}, "rotary_blocks must be one int32"),
        ({"mode": b"mean", "epsilon": np.float32(-1)}, "epsilon must be finite and not negative, got -1"),
        ({"mode": b"mean", "epsilon": np.float32("nan")}, "epsilon must be finite and not negative, got nan"),
        ({"mode": b"mean", "stateful": np.int32(2)}, "stateful must be 0 or 1, got 2"),
        ({"mode": b"mean", "stateful": b"1"}, "stateful must be one int32"),
        ({"mode": b"features", "stateful": np.int32(1)}, 'mode "features" sums nothing and has no state'),
        ({"mode": b"mean", "power": np.int32(2)}, 'unknown attribute "power"'),
    ],
)
def test_the_creator_refuses_bad_fields_and_says_why(
    trt: Any, capfd: pytest.CaptureFixture[str], fields: dict[str, Any], reason: str
) -> None:
    assert create(trt, **fields) is None
    assert reason in capfd.readouterr().err


def test_the_gated_creator_makes_a_plugin(trt: Any) -> None:
    for activation in contract.GATE_ACTIVATIONS:
        fields = {"mode": b"causal", "gate_activation": activation.encode(), "stateful": np.int32(1)}
        assert create(trt, contract.GATED_OP_NAME, **fields) is not None


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"mode": b"mean"}, "gate_activation is missing"),
        ({"gate_activation": b"sigmoid"}, "mode is missing"),
        (
            {"mode": b"mean", "gate_activation": b"tanh"},
            'gate_activation must be "identity", "sigmoid" or "hardsigmoid", got "tanh"',
        ),
        ({"mode": b"mean", "gate_activation": np.int32(1)}, "gate_activation must be text"),
        ({"mode": b"features", "gate_activation": b"sigmoid"}, 'mode "features" takes no gate'),
    ],
)
def test_the_gated_creator_refuses_bad_fields(
    trt: Any, capfd: pytest.CaptureFixture[str], fields: dict[str, Any], reason: str
) -> None:
    assert create(trt, contract.GATED_OP_NAME, **fields) is None
    logged = capfd.readouterr().err
    assert reason in logged
    assert f"{contract.GATED_OP_NAME}: " in logged


def test_the_plain_op_has_no_gate(trt: Any, capfd: pytest.CaptureFixture[str]) -> None:
    assert create(trt, mode=b"mean", gate_activation=b"sigmoid") is None
    assert 'unknown attribute "gate_activation"' in capfd.readouterr().err


@pytest.mark.parametrize(
    ("op_name", "attributes"),
    [(contract.OP_NAME, contract.ATTRIBUTES), (contract.GATED_OP_NAME, contract.GATED_ATTRIBUTES)],
)
def test_a_creator_names_every_attribute(trt: Any, op_name: str, attributes: tuple[str, ...]) -> None:
    creator = trt.get_plugin_registry().get_creator(op_name, "1", "")

    assert tuple(field.name for field in creator.field_names) == attributes


@pytest.mark.parametrize("names", [contract.OP_NAMES, contract.GATED_OP_NAMES])
def test_each_name_of_an_op_has_a_creator(trt: Any, capfd: pytest.CaptureFixture[str], names: tuple[str, ...]) -> None:
    gate = {"gate_activation": b"sigmoid"} if contract.GATED_OP_NAME in names else {}
    for name in names:
        assert trt.get_plugin_registry().get_creator(name, "1", "").name == name
        assert create(trt, name, mode=b"mean", **gate) is not None
        assert create(trt, name, mode=b"meaner", **gate) is None
        assert capfd.readouterr().err.startswith(f"{name}: ")
