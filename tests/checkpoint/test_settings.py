"""Which of a trainer's settings belong to the model, and which to something else."""

from __future__ import annotations

from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from pom_export.checkpoint import LoadedModel, load_model
from pom_export.checkpoint.hints import Hints
from pom_export.checkpoint.pickles import read_archive
from pom_export.checkpoint.settings import settings_in
from pom_export.errors import CheckpointError
from pom_export.mixer import PolynomialMixer, ProductMixer
from pom_export.models import GPT, GPTConfig


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ({"degree": 3}, "degree"),
        ({"hyper_parameters": {"order": 3}}, "hyper_parameters.order"),
        ({"hyper_parameters": {"model": {"degree": 3, "order": 9}}}, "hyper_parameters.model.degree"),
        ({"hparams": {"model_args": {"mixer": {"degree": 3}}}}, "hparams.model_args.mixer.degree"),
        ({"args": Namespace(degree=3)}, "args.degree"),
        ({"config": {"model": {"_target_": "project.MyGPT", "degree": 3}}}, "config.model.degree"),
        ({"cfg": {"net": {"class_path": "p.JiT", "init_args": {"degree": 3}}}}, "cfg.net.init_args.degree"),
        ({"config": {"model.mixer.degree": 3, "data.order": 4}}, "config.model.mixer.degree"),
        ({"config": {"net": {"layers": [{"degree": 3}]}, "optimizer": {"order": 4}}}, "config.net.layers.degree"),
        (
            {"cfg": {"degree": 5, "student": {"_target_": "pom.PoM", "degree": 3}}},
            "cfg.student.degree",
        ),
    ],
)
def test_the_models_own_settings_are_read(content: Any, place: str, tmp_path: Path) -> None:
    torch.save({"state_dict": {}, **content}, tmp_path / "m.pt")
    hints = settings_in(read_archive(tmp_path / "m.pt"))
    assert hints == Hints(degree=3)
    assert hints.origins == {"degree": f"the file's {place}"}


@pytest.mark.parametrize(
    "content",
    [
        {"hyper_parameters": {"augment": {"resample": {"order": 3}}}},
        {"hyper_parameters": {"model": {"scheduler": {"order": 3}, "spline": {"degree": 3}}}},
        {"optimizer": {"order": 3, "degree": 3}},
        {"callbacks": {"Curve": {"degree": 3}}},
        {"config": {"data": {"_target_": "scipy.Spline", "degree": 3}}},
        {"config": {"model": {"layers": {"_target_": "kan.BSpline", "order": 3}}}},
        {"config": {"model": {"block": {"class_path": "kan.SplineActivation", "init_args": {"degree": 3}}}}},
        {"config": {"model": {"attention": {"_target_": "project.TaylorAttention", "order": 3}}}},
        {"config": {"training.order": 3, "sampler.degree": 3}},
        {"config": {"degree": "3", "order": True}},
    ],
)
def test_settings_of_something_else_say_nothing(content: Any) -> None:
    assert settings_in(content) == Hints()
    assert settings_in(content).origins == {}


class Spline:
    """A class of the user's."""

    def __init__(self, degree: int) -> None:
        self.degree = degree


class SomeConfig(Spline):
    """A configuration, as its name says."""


@pytest.mark.parametrize(
    ("settings", "degree"), [(partial(Spline, degree=3), None), (Spline(3), None), (SomeConfig(3), 3)]
)
def test_an_objects_settings_are_those_of_its_class(settings: Any, degree: int | None, tmp_path: Path) -> None:
    torch.save({"config": {"model": {"layers": settings}}}, tmp_path / "m.pt")
    assert settings_in(read_archive(tmp_path / "m.pt")).degree == degree


def test_attention_in_local_windows_is_recognised_by_its_class() -> None:
    for target, local in (("models.CausalLocalSelfAttention", True), ("my.local.models.Attention", False)):
        assert settings_in({"config": {"model": {"mixing_layer": {"_target_": target}}}}).local is local
    assert not settings_in({"config": {"data": {"_target_": "project.LocalAttentionDataset"}}}).local


def load(weights: Any, settings: Any, folder: Path) -> LoadedModel:
    torch.save({"state_dict": weights, **settings}, folder / "m.ckpt")
    return load_model(folder / "m.ckpt")


def test_a_setting_that_is_used_is_reported(tmp_path: Path) -> None:
    loaded = load(ProductMixer(8, 2, 3).state_dict(), {"hyper_parameters": {"order": 2}}, tmp_path)
    assert loaded.spec.degree == 2
    assert loaded.notes == ["degree 2 is read from the file's hyper_parameters.order"]
    with pytest.raises(CheckpointError, match=r"degree 4, read from the file's hyper_parameters\.order, does not fit"):
        load(ProductMixer(8, 2, 3).state_dict(), {"hyper_parameters": {"order": 4}}, tmp_path)


def test_a_setting_that_the_shapes_contradict_is_reported_and_not_used(tmp_path: Path) -> None:
    mixer = PolynomialMixer(16, 3, 2).state_dict()
    loaded = load(mixer, {"hyper_parameters": {"order": 1}}, tmp_path)
    assert loaded.spec.degree == 3
    assert loaded.notes == ["the file's hyper_parameters.order is 1; the shapes say degree 3"]
    assert load(mixer, {"hyper_parameters": {"order": 3}}, tmp_path).notes == []
    assert load(mixer, {"hyper_parameters": {"augment": {"order": 1}}}, tmp_path).notes == []


def test_what_is_given_takes_precedence_over_a_setting_and_that_is_reported(tmp_path: Path) -> None:
    torch.save({"state_dict": ProductMixer(8, 2, 3).state_dict(), "degree": 3}, tmp_path / "m.pt")
    loaded = load_model(tmp_path / "m.pt", degree=2)
    assert loaded.spec.degree == 2
    assert loaded.notes == ["the file's degree is 3; degree 2 was given, or read beside it"]
    assert load_model(tmp_path / "m.pt", degree=3).notes == []


def test_settings_that_contradict_each_other_are_not_used(tmp_path: Path) -> None:
    settings = {"hyper_parameters": {"degree": 2, "model": {"degree": 3}}}
    with pytest.raises(CheckpointError, match=r"`degree` .*hyper_parameters\.degree is 2, hyper_parameters\.model"):
        load(ProductMixer(8, 2, 3).state_dict(), settings, tmp_path)
    assert "contradict" in load(PolynomialMixer(16, 3, 2).state_dict(), settings, tmp_path).notes[0]


def test_a_configuration_beside_the_file_is_read_alike(tmp_path: Path) -> None:
    torch.save(ProductMixer(8, 2, 3).state_dict(), tmp_path / "m.pt")
    for config in ('{"model": {"degree": 2}, "data": {"degree": 3}}', '{"order": 2, "sampler": {"order": 1}}'):
        (tmp_path / "config.json").write_text(config)
        loaded = load_model(tmp_path / "m.pt")
        assert loaded.spec.degree == 2
        assert "config.json" in loaded.notes[0]
    torch.save(PolynomialMixer(8, 3, 2).state_dict(), tmp_path / "m.pt")
    assert "config.json: order is 2; the shapes say degree 3" in load_model(tmp_path / "m.pt").notes[0]


def test_the_name_of_a_data_set_is_no_attention(tmp_path: Path) -> None:
    config = GPTConfig(20, 1, 2, 16, 2, 2, degree=2, expand=1, mlp_width=64)
    settings = {"args": {"degree": 2, "data": {"_target_": "project.data.LocalAttentionFolder"}}}
    assert load(GPT(config).state_dict(), settings, tmp_path).spec.config == config


@pytest.mark.parametrize(
    ("target", "degree"),
    [
        ("pom.PoM", 2),
        ("mixers.CausalPoMRoPE", 2),
        ("net.RotaryPolynomialMixer", 2),
        ("net.make_pom_layer", 2),
        ("data.PolynomialMixerDataset", None),
        ("data.PompeiiFolder", None),
        ("schedules.PoMLR", None),
    ],
)
def test_a_class_of_mixers_is_recognised_by_its_whole_name(target: str, degree: int | None) -> None:
    assert settings_in({"cfg": {"part": {"_target_": target, "degree": 2}}}).degree == degree


@pytest.mark.parametrize(("levels", "degree"), [(50, 3), (1000, None)])
def test_settings_are_not_looked_for_deeper_than_people_nest_them(levels: int, degree: int | None) -> None:
    content: Any = {"degree": 3}
    for _ in range(levels):
        content = {"model": content}
    assert settings_in(content).degree == degree
