"""The command line's entry: commands are imported when they run, errors become one line and an exit code."""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from typing import NoReturn

import click

from pom_export.errors import PomExportError
from pom_export.version import __version__

# Name, and the line that `pom-export --help` shows; the rest of a command lives in a module of its name.
_COMMANDS = {
    "export": "Export a checkpoint to ONNX with the custom op.",
    "inspect": "Say what a checkpoint holds.",
    "verify": "Compare an exported model with PyTorch.",
    "build": "Build a TensorRT engine with the plugin inside.",
    "scan": "List a model's attention, and what a swap for PoM would save.",
}
_BAD_INPUT, _INTERRUPTED = 2, 130


class _LazyGroup(click.Group):
    """A group that imports a command's module only to run it or to show its own help."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 (click's signature)
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"pom_export.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.command(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="pom-export")
def cli() -> None:
    r"""Take a trained Polynomial Mixer (PoM) model from PyTorch to ONNX Runtime and TensorRT.

    \b
    Exit codes: 0 done; 1 a check failed; 2 bad input or usage; 130 interrupted.
    """


def main() -> NoReturn:
    """Run the command line and exit."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code."""
    debug = "--debug" in arguments
    try:
        result = cli.main(arguments, prog_name="pom-export", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        error.show()
        _print_json_error(arguments, error.format_message(), "")
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("pom-export: interrupted", err=True)
        _print_json_error(arguments, "interrupted", "")
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader of our output left; nothing more can be said to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except PomExportError as error:
        _show_error(str(error), debug)
        _print_json_error(arguments, error.what, error.hint)
        return error.exit_code
    except Exception as error:  # noqa: BLE001 (the last resort: no traceback unless asked for)
        reason = (str(error).strip() or "no message").splitlines()[0]
        _show_error(f"internal error: {type(error).__name__}: {reason}. Run with --debug and report it", debug)
        _print_json_error(arguments, f"internal error: {type(error).__name__}: {reason}", "Run with --debug")
        return _BAD_INPUT


def _show_error(message: str, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    click.echo(f"pom-export: error: {message}", err=True)


def _print_json_error(arguments: list[str], what: str, hint: str) -> None:
    """With --json stdout holds one object, whatever happens."""
    if "--json" in arguments:
        click.echo(json.dumps({"error": what, "hint": hint}))


if __name__ == "__main__":
    main()
