"""Quantize a small mixer with other libraries, for the tests of reading their checkpoints.

    python tools/quantized_checkpoints.py torchao bitsandbytes compressed-tensors

writes to tests/data/quantized/, for each kind of checkpoint, what a user would save, and NAME.expected.safetensors: the
weights that the library's own functions compute from it, as float32. It needs the named libraries. What is there was
made with torch 2.13 on a CPU, torchao 0.18.0, bitsandbytes 0.50.2 and compressed-tensors 0.20.1 (with transformers);
`torchao-older` with torchao 0.16.0 and 0.13.0;
`compressed-tensors-ordered` with compressed-tensors 0.10.2, since later versions don't write the order of columns. All
were installed beside torch, into a folder of their own: pip install --no-deps --target FOLDER NAME==VERSION.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from pom_export.mixer import PolynomialMixer  # noqa: E402

FOLDER = ROOT / "tests" / "data" / "quantized"
WIDTH = 12  # so that rows of 4 bits end within a word, and a matrix within a block of 64
WEIGHTS = ("qc_proj", "ag_proj")


def mixer(dtype: torch.dtype) -> PolynomialMixer:
    """Return the mixer that all of them quantize: weights of (48, 12) and (12, 24)."""
    torch.manual_seed(0)
    return PolynomialMixer(WIDTH, 2, 2).to(dtype).eval().requires_grad_(requires_grad=False)


def write(name: str, content: Mapping[str, Any], expected: Mapping[str, Tensor], **more: Any) -> None:
    """Write a checkpoint and the weights that it stands for.

    Args:
        name: of the file, with the suffix that says its format, or of a folder.
        content: the state dict.
        expected: the dequantized weights by name.
        more: `metadata` of a safetensors file, or `config` for the config.json in a folder.
    """
    FOLDER.mkdir(parents=True, exist_ok=True)
    file = FOLDER / name
    if "config" in more:
        file.mkdir(exist_ok=True)
        (file / "config.json").write_text(json.dumps(more["config"], indent=1) + "\n")
        file /= "model.safetensors"
    if file.suffix == ".pt":
        torch.save(dict(content), file)
    else:
        save_file({key: value.contiguous() for key, value in content.items()}, file, more.get("metadata"))
    save_file(
        {key: value.float().contiguous() for key, value in expected.items()}, FOLDER / f"{name}.expected.safetensors"
    )
    print(f"{name}: {', '.join(f'{key} {tuple(value.shape)}' for key, value in expected.items())}")


def make_torchao() -> None:
    """Tensors of torchao's classes."""
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
    from torchao.quantization import (
        Float8WeightOnlyConfig,
        Int8DynamicActivationInt8WeightConfig,
        Int8DynamicActivationIntxWeightConfig,
        Int8WeightOnlyConfig,
        IntxWeightOnlyConfig,
        MappingType,
        PerGroup,
        quantize_,
    )

    half, single, group = torch.bfloat16, torch.float32, PerGroup(4)
    asymmetric = {"mapping_type": MappingType.ASYMMETRIC}
    for name, dtype, config in (
        ("torchao-int8.pt", half, Int8WeightOnlyConfig()),
        ("torchao-int8-groups.safetensors", single, Int8WeightOnlyConfig(granularity=group)),
        ("torchao-int8-dynamic.safetensors", half, Int8DynamicActivationInt8WeightConfig()),
        ("torchao-int4.pt", half, IntxWeightOnlyConfig(torch.int4, group, **asymmetric)),
        ("torchao-int4-dynamic.safetensors", single, Int8DynamicActivationIntxWeightConfig(torch.int4, group)),
        ("torchao-float8.pt", half, Float8WeightOnlyConfig()),
        ("torchao-float8.safetensors", single, Float8WeightOnlyConfig()),
    ):
        model = mixer(dtype)
        quantize_(model, config)
        state = model.state_dict()
        # Of these classes, only the one for int4 is always of the type that the weights had.
        expected = {
            f"{each}.weight": state[f"{each}.weight"].dequantize(*([] if "int4" in name else [single]))
            for each in WEIGHTS
        }
        if name.endswith(".pt"):
            write(name, state, expected)
        else:
            plain, metadata = flatten_tensor_state_dict(dict(state))
            write(name, plain, expected, metadata=metadata)


def make_older_torchao() -> None:
    """Tensors of the class that torchao used up to 0.16 by default, and up to 0.13 for all integers."""
    import torchao
    from torchao.quantization import (
        Int8DynamicActivationInt4WeightConfig,
        Int8DynamicActivationInt8WeightConfig,
        Int8WeightOnlyConfig,
        IntxWeightOnlyConfig,
        PerGroup,
        quantize_,
    )

    version, single = torchao.__version__, torch.float32
    for name, dtype, config in (
        (f"torchao-{version}-int8", torch.bfloat16, Int8WeightOnlyConfig()),
        (f"torchao-{version}-int8-groups", single, Int8WeightOnlyConfig(group_size=4)),
        (f"torchao-{version}-int8-dynamic", torch.float16, Int8DynamicActivationInt8WeightConfig()),
        (f"torchao-{version}-dynamic-4-bits", torch.bfloat16, Int8DynamicActivationInt4WeightConfig(group_size=4)),
        (f"torchao-{version}-int4", torch.bfloat16, IntxWeightOnlyConfig(torch.int4, PerGroup(4))),
    ):
        model = mixer(dtype)
        quantize_(model, config)
        state, expected = model.state_dict(), {}
        for each in WEIGHTS:
            weight = state[f"{each}.weight"]
            weight = getattr(weight, "original_weight_tensor", weight)
            if type(weight) is not Tensor:  # rows of 12 are too short to quantize the input
                expected[f"{each}.weight"] = weight.dequantize(*([] if "int4" in name else [single]))
        write(f"{name}.pt", state, expected)


def make_bitsandbytes() -> None:
    """State dicts of bitsandbytes' layers."""
    import bitsandbytes

    layers, functional = bitsandbytes.nn, bitsandbytes.functional

    def int8(layer: nn.Linear) -> nn.Module:
        made = layers.Linear8bitLt(layer.in_features, layer.out_features, bias=False, has_fp16_weights=False)
        made.load_state_dict(layer.state_dict())
        return made.to("cpu")

    def four_bits(kind: str, storage: torch.dtype = torch.uint8, *, nested: bool = False) -> Callable[[nn.Linear], Any]:
        def change(layer: nn.Linear) -> Any:
            made = layers.Linear4bit(layer.in_features, layer.out_features, bias=False)
            given = {"quant_type": kind, "quant_storage": storage, "compress_statistics": nested, "blocksize": 64}
            made.weight = layers.Params4bit(layer.weight.data, requires_grad=False, **given)
            return made.to("cpu")

        return change

    for name, dtype, change in (
        ("bitsandbytes-int8.pt", torch.float32, int8),
        ("bitsandbytes-nf4.pt", torch.bfloat16, four_bits("nf4")),
        ("bitsandbytes-fp4.safetensors", torch.float32, four_bits("fp4")),
        ("bitsandbytes-nf4-nested.safetensors", torch.float16, four_bits("nf4", nested=True)),
        ("bitsandbytes-nf4-bfloat16-storage.pt", torch.float32, four_bits("nf4", torch.bfloat16)),
    ):
        model = mixer(dtype)
        for each in WEIGHTS:
            setattr(model, each, change(getattr(model, each)))
        state, expected = model.state_dict(), {}
        for each in WEIGHTS:
            weight = getattr(model, each).weight
            if change is int8:
                expected[f"{each}.weight"] = functional.int8_vectorwise_dequant(weight.data, state[f"{each}.SCB"])
            else:
                expected[f"{each}.weight"] = functional.dequantize_4bit(weight.data, weight.quant_state)
        write(name, state, expected)


def _grouped(weight: Tensor, arguments: Any, groups: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the least and the largest value of what shares a scale."""
    if arguments.strategy == "tensor":
        return weight.amin().reshape(1), weight.amax().reshape(1)
    if arguments.strategy == "channel":
        return weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
    if arguments.strategy == "block":
        height, width = arguments.block_structure
        blocks = weight.reshape(weight.shape[0] // height, height, weight.shape[1] // width, width)
        return blocks.amin((1, 3)), blocks.amax((1, 3))
    if groups is not None:
        weight = weight[:, torch.argsort(groups, stable=True)]
    parts = weight.unflatten(1, (-1, arguments.group_size))
    return parts.amin(2), parts.amax(2)


def make_compressed_tensors() -> None:
    """Weights compressed by each of the compressors that an integer or float8 scheme can have."""
    from compressed_tensors.compressors import (
        FloatQuantizationCompressor,
        IntQuantizationCompressor,
        PackedQuantizationCompressor,
    )
    from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams

    def scheme(inputs: dict[str, Any] | None = None, **weights: Any) -> Any:
        given = None if inputs is None else QuantizationArgs(**inputs)
        return QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**weights), input_activations=given)

    def config(made: Any, form: str) -> Any:
        return QuantizationConfig(config_groups={"group_0": made}, format=form, quantization_status="compressed")

    four = {"num_bits": 4, "strategy": "group", "group_size": 4}
    token = {"num_bits": 8, "strategy": "token", "dynamic": True}
    float8, eight = {"num_bits": 8, "type": "float"}, {"num_bits": 8, "strategy": "channel"}
    for name, dtype, made, compressor, form in (
        ("compressed-int4", torch.bfloat16, scheme(**four), PackedQuantizationCompressor, "pack-quantized"),
        (
            *("compressed-int4-asymmetric", torch.float16, scheme(**four, symmetric=False)),
            *(PackedQuantizationCompressor, "pack-quantized"),
        ),
        ("compressed-int8-packed.pt", torch.float32, scheme(**eight), PackedQuantizationCompressor, ""),
        ("compressed-int8", torch.bfloat16, scheme(token, **eight), IntQuantizationCompressor, "int-quantized"),
        (
            *("compressed-int8-asymmetric", torch.float32, scheme(token, **eight, symmetric=False)),
            *(IntQuantizationCompressor, "int-quantized"),
        ),
        (
            *("compressed-float8", torch.bfloat16, scheme({**token, "type": "float"}, **float8, strategy="tensor")),
            *(FloatQuantizationCompressor, "float-quantized"),
        ),
        (
            "compressed-float8-blocks",
            torch.bfloat16,
            scheme({**token, "type": "float"}, **float8, strategy="block", block_structure=[4, 6]),
            *(FloatQuantizationCompressor, "float-quantized"),
        ),
    ):
        model = mixer(dtype)
        state, expected = dict(model.state_dict()), {}
        for each in WEIGHTS:
            weight = state.pop(f"{each}.weight")
            scale, zero_point = calculate_qparams(*_grouped(weight, made.weights), made.weights)
            own = {"weight": weight, "weight_scale": scale, "weight_zero_point": zero_point}
            packed = compressor.compress(own, made)
            expected[f"{each}.weight"] = compressor.decompress(packed, made)["weight"]
            state |= {f"{each}.{part}": value for part, value in packed.items()}
        more = {"config": {"quantization_config": config(made, form).to_dict()}} if form else {}
        if form:
            more["config"] = json.loads(json.dumps(more["config"], default=str))
        write(name, state, expected, **more)


def make_ordered() -> None:
    """Columns that are assigned to groups by their importance, as compressed-tensors wrote them until 0.10 or so."""
    from compressed_tensors.compressors import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams

    arguments = QuantizationArgs(num_bits=4, strategy="group", group_size=4, actorder="group")
    model = mixer(torch.bfloat16)
    state, expected = dict(model.state_dict()), {}
    for each in WEIGHTS:
        weight = state.pop(f"{each}.weight")
        groups = (torch.randperm(weight.shape[1]) // arguments.group_size).to(torch.int32)
        scale, zero_point = calculate_qparams(*_grouped(weight, arguments, groups), arguments)
        compressor = PackedQuantizationCompressor()
        packed = compressor.compress_weight(weight, scale, arguments, zero_point, groups)
        packed |= {"weight_scale": scale, "weight_g_idx": groups}
        expected[f"{each}.weight"] = compressor.decompress_weight(packed, arguments)
        state |= {f"{each}.{part}": value for part, value in packed.items()}
    scheme = QuantizationScheme(targets=["Linear"], weights=arguments)
    config = QuantizationConfig(config_groups={"group_0": scheme}, format="pack-quantized")
    described = json.loads(json.dumps(config.to_dict(), default=str))
    write("compressed-int4-ordered", state, expected, config={"quantization_config": described})


MAKE = {
    "torchao": make_torchao,
    "torchao-older": make_older_torchao,
    "bitsandbytes": make_bitsandbytes,
    "compressed-tensors": make_compressed_tensors,
    "compressed-tensors-ordered": make_ordered,
}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("libraries", nargs="+", choices=MAKE)
    for library in parser.parse_args().libraries:
        MAKE[library]()
