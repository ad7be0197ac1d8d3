"""`pom-export serve`."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import fields
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from pom_export import interrupts
from pom_export.cli.options import common_options
from pom_export.cli.output import print_result
from pom_export.cli.parameters import FILE, FOLDER, File, Whole
from pom_export.cli.progress import stages, tell_on_stderr
from pom_export.errors import InputError, printable
from pom_export.files import made_folder
from pom_export.serving.ray.settings import RaySettings, joins_cluster, keep_to_ourselves
from pom_export.serving.settings import MIB, ServeSettings
from pom_export.text.tokenizers import AUTO, NAMES

if TYPE_CHECKING:
    from pom_export.serving.saved_sessions import SessionFolder
    from pom_export.serving.server import Site
    from pom_export.serving.service import Service

_Function = TypeVar("_Function", bound=Callable[..., Any])

_DEFAULTS: Final = ServeSettings()
_MOST_PORT: Final = 65_535
_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")


# Settings that options give in MiB.
_IN_MIB: Final = ("most_body", "most_output", "prefix_bytes", "session_bytes")


def _limit(name: str, field: str, says: str, least: int = 0) -> Callable[[_Function], _Function]:
    """Return an option for a setting, with the library's default."""
    default = getattr(_DEFAULTS, field) // (MIB if field in _IN_MIB else 1)
    return click.option(name, field, type=Whole(least), default=default, show_default=True, help=says)


@click.command("serve")
@click.argument("model", type=FILE)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0: every network.")
@click.option("--port", type=Whole(0, _MOST_PORT), default=8000, show_default=True, help="0 takes a free one.")
@click.option(
    "--api-key",
    envvar="POM_EXPORT_API_KEY",
    show_envvar=True,
    help="Key that requests must carry: Authorization: Bearer KEY. Others on this machine see a command's options.",
)
@click.option(
    "--allow-host",
    "allowed",
    multiple=True,
    metavar="NAME",
    help="Answer requests that call the server so, as a proxy passes them on; may be repeated. Default: any name; on "
    "an address of this machine alone, without a key, only that address and localhost.",
)
@click.option("--tokenizer", type=File(NAMES), help="auto, bytes, gpt2, or a tokenizer.json; default: auto.")
@click.option("--chat-template", type=FILE, help="Jinja template of chats; default: that beside the tokenizer.json.")
@click.option("--engine", type=FILE, help="Run this engine of the model, on a GPU.")
@_limit("--threads", "threads", "Most threads of ONNX Runtime; 0: one for each core.")
@_limit("--streams", "streams", "Most texts or sequences at a time.", 1)
@_limit("--queue", "queue", "Most requests that wait for one of them; more get 429.")
@_limit("--max-prompt", "most_tokens", "Most tokens that a request gives.", 1)
@_limit("--max-answer", "most_answer", "Most tokens of an answer.", 1)
@_limit("--max-body", "most_body", "Most MiB of a request.", 1)
@_limit("--max-output", "most_output", "Most MiB of numbers in an answer.", 1)
@_limit("--prefix-memory", "prefix_bytes", "MiB for beginnings that are read once for all.")
@_limit("--max-sessions", "sessions", "Most sessions that are kept.")
@_limit("--session-memory", "session_bytes", "Most MiB that they take.")
@_limit("--session-seconds", "session_seconds", "How long one is kept after its last request.")
@_limit("--finish-seconds", "finish_seconds", "How long requests may go on after Ctrl-C or SIGTERM.")
@click.option(
    "--sessions", "folder", type=FOLDER, help="Save sessions here at the end; the next start goes on with them."
)
@click.option("--ray", is_flag=True, help="Serve by Ray: on the cluster of RAY_ADDRESS, or this machine's processors.")
@click.option("--replicas", type=Whole(1), help="With --ray: how many replicas of the model; default: 1.")
@click.option("--max-replicas", "most_replicas", type=Whole(1), help="With --ray: start more on demand, up to so many.")
@click.option(
    "--replica-requests", "aimed_requests", type=Whole(1),
    help="With --max-replicas: requests that each should have at a time; default: 32.",
)  # fmt: skip
@click.option(
    "--replica-cpus", type=click.FloatRange(0), help="With --ray: processors reserved for each replica; default: 1."
)
@common_options
def command(
    model: str,
    host: str,
    port: int,
    api_key: str | None,
    allowed: tuple[str, ...],
    tokenizer: str | None,
    chat_template: str | None,
    engine: str | None,
    folder: str | None,
    as_json: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Answer requests over HTTP with MODEL, a file exported with --stateful, until Ctrl-C or SIGTERM.

    Streams share the calls of the model (continuous batching). The first signal refuses new requests and finishes those
    that run; a second one cuts them off.
    """
    replicas = _replicas(options)
    _check_packages(replicas)
    in_units = {field: value * MIB if field in _IN_MIB else value for field, value in options.items()}
    settings = ServeSettings(
        api_key=api_key,
        hosts=_hosts(host, api_key, allowed),
        tokenizer=tokenizer or AUTO,
        chat_template=chat_template,
        engine=engine,
        **in_units,
    )
    with ExitStack() as opened:
        with stages("starting", shown=verbose, moving=not as_json) as progress:
            from pom_export.serving.server import bound_socket

            listening = opened.enter_context(bound_socket(host, port))
            progress(f"loading {model}")
            service = _service(model, settings, replicas)
            kept = None if folder is None else opened.enter_context(_kept(Path(folder), service))
            address = listening.getsockname()
            running = _here(service, listening) if replicas is None else _on_ray(service, listening, replicas)
            site = opened.enter_context(running)
        if kept is not None:
            _load(kept, site, folder)
        number = site.run(lambda: _started(service, address, kept, as_json=as_json))
        if kept is not None:
            sessions = site.sessions()
            kept.save(sessions)
            tell_on_stderr(f"pom-export: saved in {printable(str(folder))}: {_sessions(len(sessions))}")
    interrupts.listen()  # Ray has put a handler of its own in the place of ours
    signal.raise_signal(number)


def _hosts(host: str, key: str | None, allowed: tuple[str, ...]) -> tuple[str, ...] | None:
    """Return the names that requests may call the server by; None: any."""
    own = host.lower() == "localhost" or (_is_address(host) and ip_address(host).is_loopback)
    if key is None and own:
        return tuple({*_LOOPBACK, host.lower(), *(name.lower() for name in allowed)})
    return tuple({host.lower(), *(name.lower() for name in allowed)}) if allowed else None


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _replicas(options: dict[str, Any]) -> RaySettings | None:
    """Take Ray's options out of all; None without --ray."""
    given = {field.name: options.pop(field.name) for field in fields(RaySettings)}
    chosen = {name: value for name, value in given.items() if value is not None}
    if options.pop("ray"):
        return RaySettings(**chosen)
    if chosen:
        raise InputError("options of replicas are given without --ray", "Give it too")
    return None


def _check_packages(replicas: RaySettings | None) -> None:
    from pom_export.serving.packages import check_http, check_ray

    check_http()
    if replicas is not None:
        if not joins_cluster():
            keep_to_ourselves()
        check_ray()


def _service(model: str, settings: ServeSettings, replicas: RaySettings | None) -> Service:
    """Return the service; with Ray, without a model in this process."""
    if replicas is None:
        from pom_export.serving.service import Service

        return Service(model, settings)
    from pom_export.serving.ray.cluster import described

    return described(model, settings)


def _here(service: Service, listening: socket.socket) -> AbstractContextManager[Site]:
    from pom_export.serving.server import Server

    return nullcontext(Server(service, listening))


def _on_ray(service: Service, listening: socket.socket, replicas: RaySettings) -> AbstractContextManager[Site]:
    from pom_export.serving.ray.cluster import deployed

    host, port = listening.getsockname()[:2]
    listening.close()  # it was free, and Ray takes it
    return deployed(service.file.path, service.settings, replicas, host, port)


@contextmanager
def _kept(folder: Path, service: Service) -> Iterator[SessionFolder]:
    """Create a folder of sessions if it is missing, and keep it from other servers."""
    from pom_export.serving.saved_sessions import SessionFolder

    with made_folder(folder):
        kept = SessionFolder(folder, service.interface)
        with kept.held():
            yield kept


def _load(kept: SessionFolder, site: Site, folder: str | None) -> None:
    sessions = kept.load()
    site.add(sessions)
    if sessions:
        tell_on_stderr(f"pom-export: taken from {printable(str(folder))}: {_sessions(len(sessions))}")


def _sessions(count: int) -> str:
    return f"{count} {'session' if count == 1 else 'sessions'}"


def _started(service: Service, address: tuple[Any, ...], kept: SessionFolder | None, *, as_json: bool) -> None:
    """Say where the server is, how to ask it, and what to know about it."""
    from pom_export.graph.quantized.operators import rounded_activation_notes, shared_scale_notes

    if kept is not None:
        kept.take()
    host, port = address[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    key = "" if service.settings.api_key is None else " -H 'Authorization: Bearer KEY'"
    path, example = _example(service)
    lines = [
        ("address", url),
        ("model", f"{service.name}: {service.interface.tokens} to {service.interface.output}"),
        ("try", f"curl --json '{json.dumps(example)}'{key} {url}{path}"),
    ]
    print_result({"url": url, "model": service.name, "tokenizer": _tokenizer(service)}, as_json, lines)
    file = service.file.path
    for note in [*shared_scale_notes(file), *rounded_activation_notes(file)]:
        tell_on_stderr(f"pom-export: {service.name}: {note}")
    if not key and not ip_address(host).is_loopback:
        tell_on_stderr(f"pom-export: everyone who reaches {url} can use it. --api-key asks for a key")


def _example(service: Service) -> tuple[str, dict[str, Any]]:
    """Return a path, and a request that the model can answer there."""
    if service.tokenizer is not None:
        return "/v1/completions", {"prompt": "The", "max_tokens": 50}
    return "/v1/steps", {"inputs": service.example}


def _tokenizer(service: Service) -> str | None:
    return None if service.tokenizer is None else service.tokenizer.name
