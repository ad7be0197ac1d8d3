"""`pom-export generate`."""

from __future__ import annotations

import contextlib
import json
import select
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from pom_export import interrupts
from pom_export.cli.options import common_options
from pom_export.cli.output import human_bytes, on_terminal, say, settle_stdout, stderr_is_stdout, terminal_text
from pom_export.cli.outputs import writes
from pom_export.cli.parameters import FILE, File
from pom_export.cli.progress import stages, tell_on_stderr
from pom_export.errors import InputError, printable
from pom_export.text.tokenizers import AUTO, NAMES, choose_tokenizer, is_file

if TYPE_CHECKING:
    from pom_export.runtime.streaming.session import StreamingSession
    from pom_export.text.generation import Generation
    from pom_export.text.notes import Settings


@click.command("generate")
@click.argument("model", type=FILE)
@click.option("--prompt", help="Text to continue; - reads it from stdin.")
@click.option("--prompt-file", type=FILE, help="A file with the text to continue.")
@click.option(
    "--max-tokens",
    type=int,
    default=200,
    show_default=True,
    help="Most tokens to generate; 0 only processes the prompt.",
)
@click.option("--temperature", type=float, help="0 picks the likeliest token; default: 1.")
@click.option("--top-k", type=int, help="Choose from the likeliest K tokens; default: all.")
@click.option("--top-p", type=float, help="Choose from the likeliest tokens up to this total probability; default: 1.")
@click.option("--seed", type=int, help="The same seed gives the same text; default: random.")
@click.option("--tokenizer", type=File(NAMES), help="auto, bytes, gpt2, or a tokenizer.json; default: auto.")
@click.option("--stop", multiple=True, help="Stop before this text; can be given several times.")
@click.option("--engine", type=FILE, help="Run this engine of the model, on a GPU.")
@click.option("--inputs", type=FILE, help="A .npz with the model's other inputs, such as a context.")
@click.option(
    "--load-state", type=FILE, help="Continue from a file that --save-state wrote; its settings are the defaults."
)
@click.option("--save-state", type=FILE, help="Write a file to continue from, also after Ctrl-C.")
@common_options
@writes("save_state")
def command(
    model: str,
    prompt: str | None,
    prompt_file: str | None,
    max_tokens: int,
    engine: str | None,
    inputs: str | None,
    load_state: str | None,
    save_state: str | None,
    as_json: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Continue a text with MODEL, a language model exported with --stateful.

    Only the text goes to stdout, as it is generated. A run continued with --load-state gives the same text as a single
    uninterrupted run.
    """
    if max_tokens < 0:
        raise InputError(f"--max-tokens must be at least 0, got {max_tokens}", "0 only processes the prompt")
    text = _prompt(prompt, prompt_file)
    if text is None and load_state is None:
        raise InputError("there is no prompt", "Give --prompt TEXT, --prompt-file FILE or --load-state FILE")
    with stages(f"loading {engine or model}", shown=verbose, moving=not as_json) as progress:
        session, generation = _generation(model, engine, inputs, load_state, **options)
        if save_state is not None:
            _check_place(save_state, session, generation.settings.tokenizer, prompt_file, engine)
        if text is not None:
            generation.prompt(text)
        progress("generating")
    try:
        text = _write(generation, max_tokens, as_json, keep=save_state is not None)
    except KeyboardInterrupt:
        if save_state is not None:
            _save_interrupted(generation, save_state)
        raise
    if save_state is not None:
        generation.state().save(save_state)
    result = _result(generation, text, session.state_bytes)
    if as_json:
        say(json.dumps(result))
    else:
        tell_on_stderr(("\n" if on_terminal() or stderr_is_stdout() else "") + _line(result))


def _generation(
    model: str,
    engine: str | None,
    inputs: str | None,
    load_state: str | None,
    *,
    tokenizer: str | None,
    stop: Sequence[str],
    **sampling: Any,
) -> tuple[StreamingSession, Generation]:
    """Return a session of the model or its engine, and a generation that is new or continues from a saved state."""
    from pom_export.engine.streaming import tensorrt_backend
    from pom_export.parity.inputs import read_arrays
    from pom_export.runtime.streaming.session import StreamingSession
    from pom_export.runtime.streaming.state import State
    from pom_export.text.generation import Generation, vocabulary_of
    from pom_export.text.notes import read_notes

    state = None if load_state is None else State.load(load_state)
    before = None if state is None else read_notes(state).settings
    settings = _settings(before, sampling, tokenizer, stop)
    session = StreamingSession(model, backend=None if engine is None else tensorrt_backend(engine))
    known = choose_tokenizer(settings.tokenizer, vocabulary_of(session))
    if tokenizer is None and before is not None and is_file(before.tokenizer):
        tell_on_stderr(f"pom-export: the state names the tokenizer {printable(before.tokenizer)}")
    others = {} if inputs is None else read_arrays(inputs)[1]
    return session, Generation(session, known, replace(settings, tokenizer=known.name), state, others)


def _prompt(prompt: str | None, file: str | None) -> str | None:
    """Return the prompt, with bytes that are not UTF-8 as surrogates; None if there is none."""
    from pom_export.files import readable_file

    if prompt is not None and file is not None:
        raise InputError("--prompt and --prompt-file are both given", "Give one of them")
    if file is not None:
        return readable_file(file, "prompt").read_bytes().decode("utf-8", "surrogateescape")
    if prompt != "-":
        return prompt
    if sys.stdin is None:
        raise InputError("stdin is closed", "Give the prompt by --prompt TEXT or --prompt-file FILE")
    return sys.stdin.buffer.read().decode("utf-8", "surrogateescape")


def _settings(before: Settings | None, given: dict[str, Any], tokenizer: str | None, stop: Sequence[str]) -> Settings:
    """Return the settings: the given ones, else those of the state, else the defaults."""
    import secrets

    from pom_export.text.notes import Settings
    from pom_export.text.sampling import Sampling

    if "" in stop:
        raise InputError("--stop is empty", "Give at least one character")
    chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if before is None:
        chosen.setdefault("seed", secrets.randbits(32))
        return Settings(Sampling(**chosen), tokenizer or AUTO, tuple(stop))
    sampling = replace(before.sampling, **chosen)
    return Settings(sampling, tokenizer or before.tokenizer, tuple(stop) or before.stop)


def _check_place(
    place: str, session: StreamingSession, tokenizer: str, prompt_file: str | None, engine: str | None
) -> None:
    """Raise InputError, before a long text is written, if the state could not be saved or would overwrite an input."""
    from pom_export.engine.manifest import manifest_path
    from pom_export.files import check_writable

    sources = [session.model.path, *session.model.weights, prompt_file]
    sources += [] if engine is None else [engine, manifest_path(engine)]
    sources += [tokenizer] if is_file(tokenizer) else []
    check_writable(place, sources, "state", session.state_bytes)


def _write(generation: Generation, most: int, as_json: bool, *, keep: bool) -> str:
    """Write the text as it is generated, and return it.

    Args:
        generation: the generation.
        most: number of tokens to generate at most.
        as_json: return the text without writing it.
        keep: leave out the text that is still held back at the end. It is saved, and the run that continues writes it.
    """
    generation.read()
    text = ""
    while generation.advance(most):
        if not as_json:
            piece = _put(generation)
            if piece is None:
                return text
            text += piece
    if not keep:
        generation.finish()
    return text + (generation.take() if as_json else _put(generation) or "")


def _put(generation: Generation) -> str | None:
    """Write the text that is ready; return None if the reader is gone.

    Waiting for a reader can be interrupted, and text that is not yet written is then saved. After that, nothing comes
    between writing the text and recording that it was written.
    """
    _await_reader()
    with interrupts.held():
        piece = generation.take()
        try:
            # Not shortened: a file or pipe gets every character of it.
            click.echo(terminal_text(piece), nl=False, color=True)
        except BrokenPipeError:
            settle_stdout()
            return None
        except OSError as error:
            raise InputError(f"cannot write to stdout: {error.strerror}", "Check what it is redirected to") from error
    return piece


def _await_reader() -> None:
    """Wait until a short piece can be written to stdout at once."""
    # stdout may have been replaced by an object without a descriptor, or be closed.
    with contextlib.suppress(OSError, ValueError, TypeError):
        select.select([], [sys.stdout], [])


def _save_interrupted(generation: Generation, place: str) -> None:
    """Save the state even though the command was interrupted; a second signal interrupts this too."""
    number = interrupts.received()
    if number is not None:
        # No output is put in place after a signal. This output is wanted nevertheless.
        interrupts.listen()
    generation.state().save(place)
    if number is not None:
        signal.raise_signal(number)


def _result(generation: Generation, text: str, state_bytes: int) -> dict[str, Any]:
    from pom_export.bench.machine import peak_bytes, resident_bytes

    return {
        "prompt_tokens": generation.prompt_tokens,
        "generated_tokens": generation.tokens,
        "text": text,
        "ended": generation.ended,
        "tokenizer": generation.settings.tokenizer,
        "seed": generation.settings.sampling.seed,
        "prefill_seconds": generation.prompt_seconds,
        "decode_seconds": generation.seconds,
        "prefill_tokens_per_second": _rate(generation.prompt_tokens, generation.prompt_seconds),
        # The first token is chosen from the prompt's logits.
        "tokens_per_second": _rate(generation.tokens - 1, generation.seconds),
        "state_bytes": state_bytes,
        "rss_bytes": resident_bytes(),
        "peak_rss_bytes": peak_bytes(),
    }


def _line(result: dict[str, Any]) -> str:
    """Return a summary for a person."""
    parts = [f"{result['generated_tokens']} tokens"]
    if result["tokens_per_second"]:
        parts[0] += f", {result['tokens_per_second']:,.0f} a second"
    if result["prefill_tokens_per_second"]:
        parts.append(f"prompt {result['prompt_tokens']}, {result['prefill_tokens_per_second']:,.0f} a second")
    parts.append(f"state {human_bytes(result['state_bytes'])}")
    if result["peak_rss_bytes"]:
        parts.append(f"memory {human_bytes(result['rss_bytes'])}, at most {human_bytes(result['peak_rss_bytes'])}")
    if result["ended"] == "positions":
        parts.append("ended: the model has no more positions")
    return "; ".join(parts)


def _rate(count: int, seconds: float) -> float | None:
    return count / seconds if count > 0 and seconds > 0 else None
