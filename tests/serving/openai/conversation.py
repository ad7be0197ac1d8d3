"""A model of whole numbers with a tokenizer, a chat template and an end token, for tests of the protocol."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.streaming_graphs import running_sum_model

SPECIAL = ("<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>")
TEMPLATE = """{{ bos_token }}{% for message in messages -%}
{%- if message.role == 'user' and 'bomb' in message.content %}{{ raise_exception('no bombs') }}{% endif -%}
<|{{ message.role }}|>{{ message.content }}{{ eos_token }}
{%- endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"""


def write_tokenizer(folder: Path, template: Any = TEMPLATE) -> Path:
    """Write a tokenizer of bytes and some special tokens, with what lies beside it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer: Any = Tokenizer(models.BPE({letter: place for place, letter in enumerate(alphabet)}, []))
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder / "tokenizer.json"


def write_model(folder: Path) -> Path:
    """Write a model with as many tokens as the tokenizer, and some more."""
    return running_sum_model(folder / "small.onnx", vocabulary=264)
