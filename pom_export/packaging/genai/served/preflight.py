"""Check this package where it will be used: its files, its tokenizer, and the model's answer to a prompt.

    python preflight.py

The exit code is 1 if something is wrong.
"""

from __future__ import annotations

import sys

from package_files import HERE, faults_of_files, read_manifest


def faults_of_answer(og, model, serving):
    """Return how the answer differs from what it was when the package was made."""
    import numpy as np

    prompt, expected = serving["prompt"], serving["answer"]
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=len(prompt) + len(expected), do_sample=False)
    generator = og.Generator(model, params)
    generator.append_tokens(np.array([prompt], np.int32))
    found = []
    for _ in expected:
        generator.generate_next_token()
        found.append(int(generator.get_next_tokens()[0]))
    if found == expected:
        return []
    place = next(i for i, pair in enumerate(zip(found, expected, strict=True)) if pair[0] != pair[1])
    return [f"token {place} of the answer is {found[place]}, and was {expected[place]} when the package was made"]


def faults_of_tokenizer(og, model, serving):
    """Return the texts that onnxruntime-genai gives other ids than the tokenizer that was packaged."""
    if not serving["tokenizer"]:
        return []
    tokenizer = og.Tokenizer(model)
    return [
        f"the tokenizer gives other ids here for {text!r}: pass ids instead of texts"
        for text, ids in serving["texts"]
        if [int(each) for each in tokenizer.encode(text)] != ids
    ]


def faults_here(serving):
    """Return what is wrong with the model in this environment's onnxruntime-genai."""
    try:
        import onnxruntime_genai as og
    except ImportError as error:
        return [f"onnxruntime-genai cannot be imported ({error}): pip install 'onnxruntime-genai>=0.18'"]
    try:
        model = og.Model(str(HERE))
        return [*faults_of_answer(og, model, serving), *faults_of_tokenizer(og, model, serving)]
    except Exception as error:  # noqa: BLE001 (the module's errors have no class of their own)
        return [f"onnxruntime-genai {og.__version__} cannot run the model: {error}"]


def main():
    """Print what was found, and return the exit code."""
    manifest = read_manifest()
    serving = manifest["serving"]
    faults = faults_of_files(manifest) or faults_here(serving)
    for fault in faults:
        print(f"preflight: {fault}", file=sys.stderr)
    if not faults:
        same = f"the same {len(serving['answer'])} tokens, and the same ids for {len(serving['texts'])} texts"
        print(f"preflight: {len(manifest['files'])} files as packaged; onnxruntime-genai gives {same}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
