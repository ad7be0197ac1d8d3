"""Run a package in onnxruntime-genai, for test_genai_runtime.py: `genai_answers.py FOLDER FILE`, where FILE is JSON.

It has a list of conversations, each a list of steps: prompts to append (a list of lists of ids), a number of tokens to
generate, "logits" to call get_logits(), or a text to be encoded and decoded. The output is a JSON list with, for each
conversation, the tokens generated for each prompt, or the message of the first error; for a text, its ids and the text
that they are decoded to.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai as og


def text(model: Any, step: str) -> list[Any]:
    tokenizer = og.Tokenizer(model)
    ids = [int(token) for token in tokenizer.encode(step)]
    return [ids, tokenizer.decode(ids)]


def answers(model: Any, steps: list[Any], options: dict[str, Any]) -> Any:
    if isinstance(steps[0], str):
        return text(model, steps[0])
    params = og.GeneratorParams(model)
    params.set_search_options(batch_size=len(steps[0]), max_length=1000, **options)
    found: list[list[int]] = [[] for _ in steps[0]]
    try:
        generator = og.Generator(model, params)
        for step in steps:
            if step == "logits":
                generator.get_logits()
            elif isinstance(step, int):
                for _ in range(step):
                    generator.generate_next_token()
                    for row, token in enumerate(generator.get_next_tokens()):
                        found[row].append(int(token))
            else:
                generator.append_tokens(np.array(step, np.int32))
    except Exception as error:  # noqa: BLE001 (it has no class of its own)
        return str(error)
    return found


def main() -> None:
    folder, file = sys.argv[1:]
    asked = json.loads(Path(file).read_text())
    model = og.Model(folder)
    print(json.dumps([answers(model, steps, asked.get("options", {})) for steps in asked["conversations"]]))


if __name__ == "__main__":
    main()
