"""Turn each of our models into a program."""

from __future__ import annotations

from torch import nn

from pom_export.checkpoint.families import JIT, LANGUAGE_MODEL, MIXER
from pom_export.errors import InputError
from pom_export.graph.options import GraphOptions, check_options
from pom_export.graph.program import Program
from pom_export.graph.programs.images import image_model_program
from pom_export.graph.programs.stateful import stateful_language_model_program, stateful_mixer_program
from pom_export.graph.programs.stateless import language_model_program, mixer_program
from pom_export.mixer import PolynomialMixer, ProductMixer
from pom_export.models import GPT, JiT, LanguageModel

__all__ = ["program_of"]


def program_of(model: nn.Module, options: GraphOptions) -> Program:
    """Return the program of one of our models.

    Raises:
        InputError: an option does not fit the model, or the model's class is unknown.
    """
    if isinstance(model, (PolynomialMixer, ProductMixer)):
        check_options(options, MIXER)
        return (stateful_mixer_program if options.stateful else mixer_program)(model, options)
    if isinstance(model, (LanguageModel, GPT)):
        check_options(options, LANGUAGE_MODEL)
        return (stateful_language_model_program if options.stateful else language_model_program)(model, options)
    if isinstance(model, JiT) and model.is_polynomial:
        check_options(options, JIT)
        return image_model_program(model, options)
    raise InputError(f"{type(model).__name__} is not one of our models", "Give example_inputs to export it")
