"""The command line's entry point: commands are imported on use, and errors become one line and an exit code."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import signal
import sys
import traceback
from typing import NoReturn

import click

from pom_export import interrupts
from pom_export.cli.flags import in_flags
from pom_export.cli.logs import logs_on_stderr
from pom_export.cli.native import mute_libraries, occupy_closed_streams
from pom_export.cli.output import say, say_on_stderr, settle_stdout
from pom_export.errors import PomExportError, explained, printable
from pom_export.suggestions import did_you_mean
from pom_export.version import __version__

# Each command's name and its line in `pom-export --help`. The rest of a command is in the module of its name.
_COMMANDS = {
    "export": "Export a checkpoint or a module to ONNX with the custom op.",
    "fuse": "Put the custom op into a plain ONNX export.",
    "inline": "Rewrite a model in standard operators, for runtimes without functions.",
    "quantize": "Make a model's weights smaller, and measure what that costs.",
    "inspect": "Describe a checkpoint, a model or an engine.",
    "verify": "Compare an exported model with PyTorch.",
    "debug": "Find the module of an exported model that differs, and why.",
    "build": "Build a TensorRT engine with the plugin inside.",
    "run": "Run many sequences through a file, in batches.",
    "generate": "Continue a text with an exported language model.",
    "serve": "Answer requests over HTTP with an exported model.",
    "package": "Put a model into a folder that a server loads.",
    "bench": "Time an exported file on every backend.",
    "doctor": "Find out what is installed and what works here.",
    "scan": "List a model's attention, and what replacing it with PoM would save.",
}
_EPILOG = """Exit codes: 0 done; 1 a check failed; 2 bad input or usage; 130 interrupted, 143 terminated.

\b
Completion of commands, options and values, in a shell's start-up file:
  bash (.bashrc)      eval "$(_POM_EXPORT_COMPLETE=bash_source pom-export)"
  zsh (.zshrc)        eval "$(_POM_EXPORT_COMPLETE=zsh_source pom-export)"
  fish (config.fish)  _POM_EXPORT_COMPLETE=fish_source pom-export | source
"""
# A command that was ended by a signal exits with this plus the signal's number, as in shells.
_SIGNALLED = 128


class _LazyGroup(click.Group):
    """A group that only imports a command's module to run it or to show that command's help."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 (click's signature)
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"pom_export.cli.{cmd_name}").command
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            named = next((each for each in given if each in _COMMANDS), None)
            option = error.option_name
            if not any(option in self._options_of(ctx, name) for name in ([named] if named else _COMMANDS)):
                raise
            place = f"It goes after the command: {ctx.info_name} {named or 'COMMAND'} {option}"
            raise click.NoSuchOption(option, f"{error.message.rstrip('.')}. {place}", ctx=ctx) from error

    def _options_of(self, ctx: click.Context, command: str) -> set[str]:
        found = self.get_command(ctx, command)
        return {option for each in found.params for option in (*each.opts, *each.secondary_opts)} if found else set()

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in _COMMANDS and not name.startswith("-") and not ctx.resilient_parsing:
            ctx.fail(f"No such command {name!r}. {did_you_mean(name, _COMMANDS)}".rstrip())
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.command(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=_EPILOG,
)
@click.version_option(__version__, prog_name="pom-export")
def cli() -> None:
    """Take a trained Polynomial Mixer (PoM) model from PyTorch to ONNX Runtime and TensorRT."""


def main() -> NoReturn:
    """Run the command line and exit."""
    occupy_closed_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A file's name may contain characters that the terminal's encoding lacks.
        sys.stdout.reconfigure(errors="backslashreplace")
    if "--debug" not in sys.argv:
        mute_libraries()
    interrupts.listen()
    code = run(sys.argv[1:])
    interrupts.ignore()
    settle_stdout()
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code."""
    try:
        with logs_on_stderr(debug="--debug" in arguments):
            result = cli.main(arguments, prog_name="pom-export", standalone_mode=False)
        interrupts.settle()
        interrupts.check()
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as error:
        return error.exit_code
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 (the last resort: no traceback unless asked for)
        interrupts.settle()
        return _report_failure(error, arguments)


def _report_failure(error: BaseException, arguments: list[str]) -> int:
    """Print one line that says why the command ended, and JSON if requested; return the exit code."""
    number = interrupts.received()
    if number is not None or isinstance(error, (click.Abort, KeyboardInterrupt)):
        number = signal.SIGINT if number is None else number
        what, hint, code = "interrupted" if number == signal.SIGINT else "terminated", "", _SIGNALLED + number
        say_on_stderr(f"pom-export: {what}")
    elif isinstance(error, click.ClickException):
        what, hint, code = error.format_message(), "", error.exit_code
        usage = io.StringIO()
        error.show(usage)
        for line in usage.getvalue().splitlines():
            say_on_stderr(printable(line))
    else:
        known = explained(error)
        what, hint, code = in_flags(known.what), in_flags(known.hint), known.exit_code
        if "--debug" in arguments:
            say_on_stderr("".join(traceback.format_exception(error)))
        say_on_stderr(f"pom-export: error: {in_flags(str(known))}")
    if "--json" in arguments:
        # stdout gets one JSON object whatever happens, unless stdout itself is what failed.
        with contextlib.suppress(PomExportError):
            say(json.dumps({"error": what, "hint": hint}))
    return code


if __name__ == "__main__":
    main()
