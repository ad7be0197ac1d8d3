"""Small valid files of every kind that a command reads, from which the hostile ones are made."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pom_export.engine.manifest import sealed

WIDTH = 8
ENGINE = "mixer.engine"
# The size of the language model's vocabulary: bytes, so that texts need no tokenizer file.
VOCABULARY = 256
# The manifest used if TensorRT is missing, and can therefore neither build nor read an engine.
_MANIFEST = {"engine": ENGINE, "backend": "tensorrt-rtx", "plugin_layers": 1, "model_sha256": "", "sha256": ""}


@dataclass(frozen=True)
class Seeds:
    """A folder of valid files.

    Attributes:
        folder: the folder.
    """

    folder: Path

    def __getitem__(self, name: str) -> Path:
        return self.folder / name

    def copy(self, name: str, folder: Path, new: str | None = None) -> Path:
        """Copy a file into a folder, and return the copy's path."""
        return Path(shutil.copy(self.folder / name, folder / (new or name)))


def make_seeds(folder: Path) -> Seeds:
    """Write all seeds; the functions below say what each name means."""
    import torch

    torch.manual_seed(0)
    _checkpoints(folder)
    _programs(folder)
    _models(folder)
    return Seeds(folder)


def _checkpoints(folder: Path) -> None:
    """Write a mixer's and a language model's state dict, in torch's two formats and in safetensors'."""
    import torch
    from safetensors.torch import save_file

    from pom_export import PolynomialMixer, ProductMixer
    from pom_export.mixer import MixerConfig
    from pom_export.models import LanguageModel, LanguageModelConfig

    mixer = PolynomialMixer(WIDTH, 2, 2, 1, 1).state_dict()
    torch.save(mixer, folder / "mixer.pt")
    torch.save({"model": mixer, "step": 7}, folder / "trainer.pt")
    torch.save(mixer, folder / "legacy.pt", _use_new_zipfile_serialization=False)
    save_file(mixer, folder / "mixer.safetensors")
    save_file(ProductMixer(WIDTH, 2, 2).state_dict(), folder / "product.safetensors")
    config = LanguageModelConfig(VOCABULARY, 1, 2, 2 * WIDTH, MixerConfig(WIDTH, 2, 2))
    save_file(LanguageModel(config).state_dict(), folder / "language.safetensors")


def _programs(folder: Path) -> None:
    """Write programs of torch.export, with fixed and with dynamic sizes."""
    import torch

    from pom_export import PolynomialMixer

    mixer = PolynomialMixer(WIDTH, 2, 2, 1, 1).eval()
    any_size = torch.export.Dim.AUTO
    for name, shapes in (("fixed.pt2", None), ("dynamic.pt2", ({0: any_size, 1: any_size},))):
        program = torch.export.export(mixer, (torch.randn(2, 6, WIDTH),), dynamic_shapes=shapes)
        torch.export.save(program, folder / name)


def _models(folder: Path) -> None:
    """Write exports, parity data, inputs, a state, and an engine with its manifest if TensorRT is installed."""
    from pom_export import build_engine, export
    from pom_export.cli.main import run
    from pom_export.errors import MissingDependencyError

    export(folder / "mixer.pt", folder / "mixer.onnx", mask="padding", samples=2)
    export(folder / "mixer.pt", folder / "state.onnx", stateful=True)
    export(folder / "language.safetensors", folder / "stream.onnx", stateful=True)
    inputs = np.random.default_rng(0).standard_normal((2, 5, WIDTH)).astype(np.float32)
    np.savez(folder / "inputs.npz", x=inputs, mask=np.ones((2, 5), np.bool_))
    state = ("--save-state", str(folder / "saved.npz"), "--max-tokens", "3", "--seed", "1")
    if run(["generate", str(folder / "stream.onnx"), "--prompt", "The ", *state]):
        raise AssertionError("no state was saved")
    try:
        build_engine(folder / "mixer.onnx", folder / ENGINE, targets=["sm86"], embed_plugin=False)
    except MissingDependencyError:
        (folder / ENGINE).write_bytes(b"no engine")
        (folder / f"{ENGINE}.json").write_text(json.dumps(sealed(_MANIFEST)))
