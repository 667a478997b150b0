"""The command line: `mainspring`.

Invariant: standard output carries results alone, everything else goes to standard error; a command
is loaded only when it is chosen, so that help is quick. Reading starts at `main`.
"""

import sys
from collections.abc import Mapping
from importlib import import_module
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperGroup

from mainspring.cli._exit import EXIT_CODES, ExitCode, explain
from mainspring.errors import MainspringError

__all__ = ["main"]


class _Place(NamedTuple):
    """Where a command lives, and its line in the list of commands."""

    module: str
    attribute: str
    help: str


COMMANDS: Mapping[str, _Place] = {
    "run": _Place("_run", "app", "Run an agent on an input, and keep its session."),
    "resume": _Place("_resume", "app", "Go on with a session whose process is gone."),
    "effects": _Place(
        "_effects", "app", "List the tool calls that wait for a decision, and decide."
    ),
    "fork": _Place("_fork", "app", "Run a new session from any point of another one."),
    "sessions": _Place("_sessions", "app", "List the sessions of a store, the newest first."),
    "show": _Place("_show", "app", "Show what happened in a session, step by step."),
    "replay": _Place("_replay", "app", "Run a session again against its recorded results."),
    "prune": _Place("_prune", "app", "Remove ended sessions from a store for good."),
    "worker": _Place("_worker", "app", "Run the sessions that a store holds for some agents."),
    "gateway": _Place(
        "_gateway", "app", "Serve models and routes as an OpenAI-compatible HTTP API."
    ),
    "route": _Place(
        "_route", "app", "Explain where steps went and why; learn from outcomes where they begin."
    ),
    "models": _Place("_models", "app", "Local open-weight models: pull, list, serve."),
    "demo": _Place("_demo", "demo", "Run the main job on local models, without any key."),
    "doctor": _Place("_doctor", "app", "Find out what this machine can run, and why not."),
}


class _LateGroup(TyperGroup):
    """Loads a command's module when the command is chosen, not to list it."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        place = COMMANDS.get(cmd_name)
        if place is None:
            return None
        command = load_command(place)
        command.name = cmd_name
        return command

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, place.help) for name, place in COMMANDS.items()])


def load_command(place: _Place) -> Any:
    """Imports a command: a module's typer app, or a function that is one command."""
    found = getattr(import_module(f"mainspring.cli.{place.module}"), place.attribute)
    if not isinstance(found, typer.Typer):
        alone = typer.Typer(add_completion=False, rich_markup_mode=None)
        alone.command()(found)
        found = alone
    return typer.main.get_command(found)


_app = typer.Typer(
    cls=_LateGroup,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="\b\nExamples:\n"
    '  mainspring run agent.py:agent "which files changed today?"\n'
    "  mainspring show last\n"
    "  mainspring COMMAND --help\n\n" + EXIT_CODES,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        native = import_module("mainspring._native")
        print(f"mainspring {native.__version__}")
        raise typer.Exit(ExitCode.DONE)


@_app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Durable, parallel, routed AI agents."""


def main() -> None:
    """Runs the command line, and ends the process with one of `ExitCode`."""
    code: int = ExitCode.DONE
    try:
        _app(prog_name="mainspring")
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else ExitCode.FAILED
    except MainspringError as error:
        code = explain(error)
    except KeyboardInterrupt:
        code = ExitCode.INTERRUPTED
    except BrokenPipeError:
        code = ExitCode.FAILED
    except Exception as error:
        code = explain(error)
    # What waits in the buffers is written here, where a reader that is gone can be ignored.
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            _drop(stream)
    sys.exit(code)


def _drop(stream: Any) -> None:
    """Keeps the interpreter from flushing a broken pipe once more at its end."""
    with open("/dev/null", "w", encoding="utf-8") as nowhere:  # noqa: PTH123  (a device)
        import_module("os").dup2(nowhere.fileno(), stream.fileno())
