"""Packages for onnxruntime-genai: a folder that its `Model` loads."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any, Final

import numpy as np

from pom_export.graph.exported_model import ExportedModel
from pom_export.graph.loading import load_graph
from pom_export.graph.saving import save_model
from pom_export.packaging.folder import PackageFolder
from pom_export.packaging.genai.checking import check
from pom_export.packaging.genai.layout import KEY, PAST, PRESENT, VALUE, Layout, layout_of
from pom_export.packaging.genai.rewriting import LOGITS, POSITIONS, SKIPPED, UNKNOWN, rewrite
from pom_export.packaging.genai.tokenizer import Words, choose, write_tokenizer
from pom_export.packaging.readme import readme
from pom_export.packaging.targets import Contents, PackageOptions, Progress, Target
from pom_export.parity.tolerances import MODELS
from pom_export.runtime.library import custom_ops_library
from pom_export.runtime.streaming.session import StreamingSession

_SERVED: Final = Path(__file__).parent / "served"
_MODEL: Final = "model.onnx"
# onnxruntime-genai reserves memory for so many ids unless its user says otherwise.
_LONGEST: Final = 4096
# Tokens of the prompt that preflight.py has continued, and the most of its answer.
_PROMPT, _ANSWER = 24, 48
# Another processor may choose otherwise between two logits that are closer than this many tolerances.
_CLEAR: Final = 4
_RUN: Final = """
    Install [onnxruntime-genai](https://github.com/microsoft/onnxruntime-genai) 0.18 or newer, and try the package:

        pip install 'onnxruntime-genai>=0.18'
        python preflight.py
        {command}

    In a program:

        import onnxruntime_genai as og

        model = og.Model("the path of this folder")
    """
_KNOW: Final = Path(__file__).with_name("know.md")
_MASKED: Final = (
    "Prompts of different lengths may be read together: pad them at the end with the id {padding}, as encode_batch "
    "does. Tokens can be appended to one sequence only."
)
_UNMASKED: Final = (
    "Prompts that are read together must have the same length, and none may end before the others; otherwise the call "
    "fails, with {unknown}. A model exported with a padding mask takes prompts of different lengths."
)
_NO_BEAMS: Final = "Beam search is refused, since onnxruntime-genai does not move such a state with the beams."
_WRONG_BEAMS: Final = (
    "beam search (num_beams) gives wrong results without an error: onnxruntime-genai moves the caches with the beams, "
    "but not the rest of the state"
)
_CUT: Final = "A text ends at a NUL character: pass such a prompt as ids."


def _write(folder: PackageFolder, model: ExportedModel, options: PackageOptions, progress: Progress) -> Contents:
    layout = layout_of(model)
    tokenizer = choose(options.tokenizer, layout)
    libraries = [custom_ops_library()] if model.aggregations else []
    progress("rewriting the model's inputs and outputs")
    graph = load_graph(model.path)
    rewrite(graph, layout)
    rewritten = folder.place(_MODEL)
    save_model(graph, rewritten)
    del graph  # may hold large weights
    progress(f"comparing with {model.path.name}")
    checked = check(rewritten, layout)
    words = write_tokenizer(folder, tokenizer)
    for library in libraries:
        folder.copy(library, library.name)
    config = _config(layout, words, [library.name for library in libraries])
    folder.write("genai_config.json", json.dumps(config, indent=1) + "\n")
    folder.copy_programs(_SERVED, "client.py", "preflight.py")
    folder.write("README.md", _readme(layout, words, has_library=bool(libraries)))
    prompt = np.random.default_rng(0).integers(0, layout.vocabulary, min(_PROMPT, layout.positions // 2 or 1)).tolist()
    serving = {
        "vocabulary": layout.vocabulary,
        "positions": layout.positions,
        "masked": layout.model.mask is not None,
        "tokenizer": words.files,
        "texts": [list(sample) for sample in words.samples],
        "prompt": prompt,
        "answer": _answer(layout, prompt),
    }
    return Contents(
        _command(words), checked, serving, [*filter(None, [words.note]), *([_WRONG_BEAMS] if layout.caches else [])]
    )


def _config(layout: Layout, words: Words, libraries: list[str]) -> dict[str, Any]:
    """Return genai_config.json."""
    heads, width = next(((part.spec.axes[1], part.spec.axes[3]) for part in layout.caches), (1, 1))
    assert isinstance(heads, int)
    assert isinstance(width, int)
    inputs = {
        "input_ids": layout.model.tokens.name,
        "position_ids": POSITIONS,
        "past_key_names": PAST + KEY,
        "past_value_names": PAST + VALUE,
    }
    outputs = {"logits": LOGITS, "present_key_names": PRESENT + KEY, "present_value_names": PRESENT + VALUE}
    options = {"log_id": "onnxruntime-genai", "provider_options": []}
    decoder = {
        "filename": _MODEL,
        "session_options": options | ({"custom_ops_library": libraries[0]} if libraries else {}),
        "head_size": width,
        "num_key_value_heads": heads,
        "num_attention_heads": heads,
        "hidden_size": heads * width,
        # Layers without a cache are found by their names.
        "num_hidden_layers": max(1, len(layout.caches) // 2),
        "inputs": inputs,
        "outputs": outputs,
    }
    ends = [token for token in words.ends if token < layout.vocabulary]
    return {
        "model": {
            "type": "decoder",
            "bos_token_id": layout.padding if words.begin is None else words.begin,
            "eos_token_id": ends or [layout.padding],
            "pad_token_id": layout.padding,
            "vocab_size": layout.vocabulary + 1,
            "context_length": layout.positions,
            "decoder": decoder,
        },
        "search": {
            "max_length": min(layout.positions, _LONGEST),
            "do_sample": False,
            "past_present_share_buffer": False,
        },
    }


def _answer(layout: Layout, prompt: list[int]) -> list[int]:
    """Return the best tokens after a prompt, up to the first that is hardly better than another."""
    session = StreamingSession(layout.model.file.path, batch=1)
    margin = _CLEAR * MODELS[layout.model.file.precision].relative
    logits = session.prefill_last(np.array([prompt]))[0].astype(np.float64)
    answer: list[int] = []
    for _ in range(min(_ANSWER, layout.positions - len(prompt))):
        second, first = np.sort(logits)[-2:] if layout.vocabulary > 1 else (-np.inf, logits[0])
        if first - second <= margin * np.abs(logits).max():
            break
        answer.append(int(logits.argmax()))
        logits = session.step(np.array(answer[-1:]))[0].astype(np.float64)
    return answer


def _command(words: Words) -> str:
    prompt = "'The with statement'" if words.files else "1 2 3"
    return f"python client.py {prompt}"


def _readme(layout: Layout, words: Words, *, has_library: bool) -> str:
    together = (_UNMASKED if layout.model.mask is None else _MASKED).format(padding=layout.padding, unknown=UNKNOWN)
    row = sum(int(np.prod(slot.shape)) * slot.dtype.itemsize for slot in layout.slots)
    state = f"The state of a sequence takes {row:,} bytes, however long it is."
    if layout.caches:
        state = f"The state of a sequence takes {row:,} bytes, and the caches of attention layers grow with it."
    library = f"The op library is for {platform.system()} on {platform.machine()}."
    know = _KNOW.read_text(encoding="utf-8").format(
        state=state,
        padding=layout.padding,
        skipped=SKIPPED,
        together=together,
        beams=f"{_WRONG_BEAMS[0].upper()}{_WRONG_BEAMS[1:]}." if layout.caches else _NO_BEAMS,
        positions=layout.positions,
        more="".join([f"\n- {_CUT}"] * words.files + [f"\n- {library}"] * has_library),
    )
    return readme(
        f"{layout.model.file.path.stem} for onnxruntime-genai",
        layout.model.file,
        {"Run it": _RUN.format(command=_command(words)), "What to know": know},
    )


TARGET: Final = Target(takes=frozenset({"tokenizer"}), write=_write)
