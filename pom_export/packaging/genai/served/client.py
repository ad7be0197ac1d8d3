"""Continue texts with this package's model: pip install 'onnxruntime-genai>=0.18'.

python client.py 'The with statement'              # the best token each time
python client.py 'The with statement' --temperature 0.7 --top-p 0.9 --seed 1
python client.py 'one prompt' 'another'            # together
python client.py 12 7 250                          # ids, of a package without a tokenizer
"""

from __future__ import annotations

import argparse

import numpy as np
import onnxruntime_genai as og
from package_files import HERE, read_manifest


def arguments():
    """Return the command's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompts", nargs="+", help="texts; or the ids of one prompt, without a tokenizer")
    parser.add_argument("--tokens", type=int, default=120, help="the most tokens of an answer; default: %(default)s")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 (default): the best token each time")
    parser.add_argument("--top-p", type=float, default=1.0, help="share of the probability to sample from")
    parser.add_argument("--seed", type=int, default=-1, help="of the random numbers")
    return parser.parse_args()


def padded(prompts, serving):
    """Return ids (prompts, tokens) with padding at the end."""
    lengths = {len(prompt) for prompt in prompts}
    if 0 in lengths:
        raise SystemExit("a prompt is empty")
    if len(lengths) > 1 and not serving["masked"]:
        raise SystemExit("this model reads only prompts of one length together: send them one by one, see README.md")
    padding = [serving["vocabulary"]] * max(lengths)
    return np.array([(prompt + padding)[: max(lengths)] for prompt in prompts], np.int32)


def answers(model, ids, options, positions):
    """Yield the next token of each prompt, until all have ended."""
    params = og.GeneratorParams(model)
    sampling = {"do_sample": options.temperature > 0, "top_p": options.top_p, "random_seed": options.seed}
    if options.temperature > 0:
        sampling["temperature"] = options.temperature
    if ids.shape[1] >= positions:
        raise SystemExit(f"the prompt has {ids.shape[1]} tokens, but the model has {positions} positions")
    most = min(ids.shape[1] + options.tokens, positions)
    params.set_search_options(batch_size=len(ids), max_length=most, **sampling)
    generator = og.Generator(model, params)
    generator.append_tokens(ids)
    while not generator.is_done() and generator.token_count() < most:
        generator.generate_next_token()
        yield [int(token) for token in generator.get_next_tokens()]


def main():
    """Print the answers: of one prompt as it is written, of several at the end."""
    options = arguments()
    serving = read_manifest()["serving"]
    model = og.Model(str(HERE))
    if serving["tokenizer"]:
        tokenizer = og.Tokenizer(model)
        ids = padded([[int(token) for token in tokenizer.encode(prompt)] for prompt in options.prompts], serving)
        streams = [tokenizer.create_stream() for _ in options.prompts]
    else:
        ids, streams = np.array([[int(token) for token in options.prompts]], np.int32), []
    texts = [""] * len(ids)
    for tokens in answers(model, ids, options, serving["positions"]):
        for row, token in enumerate(tokens):
            if token < serving["vocabulary"]:  # what is beyond it stands after the end of an answer
                piece = streams[row].decode(token) if streams else f"{token} "
                texts[row] += piece
                print(piece if len(ids) == 1 else "", end="", flush=True)
    print()
    if len(ids) > 1:
        for prompt, text in zip(options.prompts, texts, strict=True):
            print(f"{prompt}|{text}\n")


if __name__ == "__main__":
    main()
