"""A model's tokenizer, and what else its texts are made with."""

from __future__ import annotations

import numpy as np

from pom_export.errors import InputError
from pom_export.runtime.streaming.interface import StatefulModel
from pom_export.text.tokenizers import AUTO, Tokenizer, choose_tokenizer


def vocabulary_of(model: StatefulModel) -> int | None:
    """Return the number of ids that a model takes; None: it takes vectors, or does not say."""
    values = model.limits.values.get(model.tokens.name)
    return None if values is None or not model.takes_ids else int(np.prod(values[:1]))


def tokenizer_of(model: StatefulModel, name: str) -> Tokenizer | None:
    """Return a model's tokenizer; None if none is named, and none is known for it.

    Raises:
        InputError: it has ids that the model lacks, or the model takes no ids.
        MissingDependencyError: its library is not installed.
    """
    vocabulary = vocabulary_of(model)
    if vocabulary is None:
        if name == AUTO:
            return None
        raise InputError(f"{model.name} takes no ids of a vocabulary that it names", "Leave `tokenizer` out")
    try:
        tokenizer = choose_tokenizer(name, vocabulary)
    except InputError:
        if name == AUTO:
            return None
        raise
    if tokenizer.size > vocabulary:
        raise InputError(
            f"the tokenizer {tokenizer.name} has {tokenizer.size} tokens, but {model.name} has {vocabulary}",
            "Name the model's own: `tokenizer=PATH`",
        )
    return tokenizer
