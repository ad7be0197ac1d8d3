"""Names in the file are those of the state dict, and nothing in it is about the machine that traced it."""

from __future__ import annotations

import os
from pathlib import Path

import onnx
import pytest
import torch

from pom_export.graph.exported_model import METADATA_PREFIX
from pom_export.graph.options import GraphOptions
from pom_export.graph.programs import program_of
from pom_export.graph.saving import save_model
from pom_export.graph.tracing import export_graph
from pom_export.mixer import MixerConfig, PolynomialMixer
from pom_export.version import __version__

PLAIN = MixerConfig(8, 3, 2)
GROUPS = MixerConfig(8, 3, 2, n_groups=2, n_sel_heads=4, bias=True)


@pytest.mark.parametrize(("config", "cross"), [(PLAIN, False), (PLAIN, True), (GROUPS, False)])
def test_weights_keep_their_names_and_values(config: MixerConfig, cross: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    mixer = PolynomialMixer(config.dim, config.degree, config.expand, config.n_groups, config.n_sel_heads, config.bias)
    weights = mixer.state_dict()
    for name, weight in weights.items():
        weight.copy_(torch.randn(weight.shape))
        assert weight.numel() > 1, name

    save_model(export_graph(program_of(mixer, GraphOptions(cross=cross)), 20, {}), tmp_path / "m.onnx")
    model = onnx.load(tmp_path / "m.onnx")
    exported = {
        tensor.name: torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy()) for tensor in model.graph.initializer
    }

    assert {"po_coeff", "se_proj.bias" if config.n_groups > 1 else "se_bias"} <= exported.keys()
    for name, tensor in exported.items():
        if name in weights:
            assert torch.equal(tensor, weights[name]), name
        elif "_transposed" in name:
            # The fused projection is split: ".0" is the context's part, ".1" the gate's.
            whole, _, part = name.partition("_transposed")
            sizes = [config.channels, config.gate_width]
            pieces = weights[whole].split(sizes) if part else [weights[whole]]
            # The output projection of heads is split along its rows.
            assert torch.equal(tensor.flatten(0, -2).mT, pieces[int(part[1:] or 0)]), name
        elif tensor.dim() > 1:
            pytest.fail(f"{name} is a weight of no name in the state dict")


def test_nodes_are_named_once_and_the_file_tells_nothing_of_the_machine(tmp_path: Path) -> None:
    program = program_of(PolynomialMixer(8, 3, 2, n_sel_heads=4), GraphOptions("full"))
    save_model(export_graph(program, 20, {"dtype": "float32"}), tmp_path / "m.onnx")
    content = (tmp_path / "m.onnx").read_bytes()
    model = onnx.load_from_string(content)

    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    assert "ag_proj/MatMul" in names
    for leak in (b".py", b"pkg.", b"torch", b"nn_module", os.fsencode(Path.cwd())):
        assert leak not in content
    properties = {entry.key: entry.value for entry in model.metadata_props}
    assert properties == {f"{METADATA_PREFIX}mask": "full", f"{METADATA_PREFIX}dtype": "float32"}
    assert (model.producer_name, model.producer_version) == ("pom-export", __version__)
