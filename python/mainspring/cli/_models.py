"""`mainspring models`: pull, list and serve local models by hand; print the model table.

Invariant: results go to standard output, everything else to standard error; a user's mistake is a
message and exit code 1, never a traceback.
"""

import json
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from mainspring._model_table import table as model_table
from mainspring.errors import AgentError
from mainspring.local import (
    ListedModel,
    LocalModelError,
    LocalServer,
    cache_root,
    listing,
    pull,
)

SERVE_PORT = 11_435
"""Where `models serve` listens unless told otherwise, and where `local:NAME` looks."""

app = typer.Typer(
    name="models",
    help="Local open-weight models: pull, list, serve.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

_PLAIN_LINE_S = 3.0


@app.command(
    "pull",
    epilog="Examples: mainspring models pull qwen2.5-coder-0.5b | "
    "mainspring models pull --json qwen2.5-coder-0.5b qwen2.5-coder-1.5b",
)
def pull_command(
    names: Annotated[
        list[str], typer.Argument(metavar="NAME...", help="Models, as `models list` names them.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Pull models into the cache, checked by SHA-256; a cut pull goes on where it stopped.

    The cache is $MAINSPRING_CACHE, else $XDG_CACHE_HOME/mainspring, else ~/.cache/mainspring.
    Exit codes: 0 done, 1 failed, 2 wrong use.
    """
    pulled: list[dict[str, Any]] = []
    for name in names:
        started_s = time.monotonic()
        try:
            with _shown_progress(name) as show:
                path = pull(name, progress=show.progress, notice=show.notice)
        except LocalModelError as error:
            _fail(error)
        took_s = time.monotonic() - started_s
        size_bytes = path.stat().st_size
        pulled.append(
            {"name": name, "path": str(path), "size_bytes": size_bytes, "took_s": round(took_s, 3)}
        )
        if not as_json:
            print(f"{name}  {size_bytes / 1e6:.0f} MB  {path}", flush=True)
    if as_json:
        print(json.dumps(pulled, indent=2))


@app.command("list", epilog="Examples: mainspring models list | mainspring models list --json")
def list_command(
    as_json: Annotated[bool, typer.Option("--json", help="Print the list as JSON.")] = False,
) -> None:
    """List the models known by name, and which are pulled."""
    models = listing()
    if as_json:
        print(json.dumps([_as_dict(model) for model in models], indent=2))
        return
    table = Table(box=None, pad_edge=False)
    for title in ("NAME", "STATE", "FILE", "MEMORY", "LICENCE"):
        table.add_column(title, no_wrap=True)
    for model in models:
        table.add_row(
            model.name,
            _state(model),
            f"{model.size_bytes / 1e6:.0f} MB",
            f"{model.ram_bytes / 1e9:.1f} GB",
            model.licence,
        )
    Console(highlight=False).print(table)
    print(f"cache: {cache_root() / 'models'}", file=sys.stderr)


@app.command("table", epilog="Examples: mainspring models table | mainspring models table --json")
def table_command(
    as_json: Annotated[bool, typer.Option("--json", help="Print the table as JSON.")] = False,
) -> None:
    """Print what is known of models by name: windows, prices, abilities, and where it is from.

    It is the table of this version with yours over it: $MAINSPRING_MODELS, else
    ~/.config/mainspring/models.toml. Prices are US dollars per million tokens.
    """
    try:
        known = model_table()
    except AgentError as error:
        _fail(error)
    if as_json:
        providers = {name: asdict(each) for name, each in known.providers.items()}
        models = [asdict(each) for each in known.models]
        files = [str(path) for path in known.files]
        print(json.dumps({"files": files, "providers": providers, "models": models}, indent=2))
        return
    shown = Table(box=None, pad_edge=False)
    for title in ("NAME", "PROVIDER", "API", "CONTEXT", "OUTPUT", "IN", "CACHED", "OUT", "DATE"):
        shown.add_column(title, no_wrap=True)
    for entry in known.models:
        provider = known.providers.get(entry.provider or "")
        price = entry.price or {}
        shown.add_row(
            entry.name or f"{entry.prefix}*",
            entry.provider or "-",
            entry.api or (provider.api if provider else "-"),
            _number(entry.context_tokens),
            _number(entry.output_tokens_max),
            *(_number(price.get(key)) for key in ("input_usd", "cached_usd", "output_usd")),
            entry.date or "-",
        )
    # In a pipe nothing is cut off to fit a terminal.
    Console(highlight=False, width=None if sys.stdout.isatty() else 200).print(shown)
    for path in known.files[1:]:
        print(f"with {path}", file=sys.stderr)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.10g}"


@app.command(
    "serve",
    epilog="Examples: mainspring models serve qwen2.5-coder-1.5b --port 8080 | "
    "mainspring models serve ./my-model.gguf --threads 4",
)
def serve_command(
    model: Annotated[
        str, typer.Argument(metavar="NAME|PATH", help="A pulled model, or a GGUF file.")
    ],
    port: Annotated[
        int, typer.Option(min=0, max=65_535, help="Port on 127.0.0.1; 0: a free one.")
    ] = SERVE_PORT,
    context_tokens: Annotated[
        int, typer.Option(min=1, help="Prompt and answer of one request together.")
    ] = 4096,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads that compute. [default: cores - 1]")
    ] = None,
    parallel: Annotated[int, typer.Option(min=1, help="Requests served at a time.")] = 1,
) -> None:
    """Serve a model on 127.0.0.1 as an OpenAI-compatible server, until Ctrl-C.

    Exit codes: 0 stopped by Ctrl-C or SIGTERM, 1 failed, 2 wrong use.
    """
    # `timeout`, `kill` and service managers send SIGTERM: it ends like Ctrl-C.
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        print(f"loading {model} ...", file=sys.stderr, flush=True)
        server = LocalServer(
            model, port=port, threads=threads, context_tokens=context_tokens, parallel=parallel
        )
        with server:
            _print_usage(server)
            code = server.wait()
    except LocalModelError as error:
        _fail(error)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return
    _fail(LocalModelError("local_server_failed", f"the server ended with code {code}"))


def _print_usage(server: LocalServer) -> None:
    print(server.base_url, flush=True)
    body = json.dumps(
        {"model": server.model_name, "messages": [{"role": "user", "content": "Say hello"}]}
    )
    lines = (
        f"model: {server.model_name}",
        f"use:   mainspring run --base-url {server.base_url} --model {server.model_name} "
        'MODULE:AGENT "input"',
        f"or:    curl {server.base_url}/chat/completions "
        f"-H 'Content-Type: application/json' -d '{body}'",
        "Ctrl-C stops it",
    )
    print("\n".join(lines), file=sys.stderr, flush=True)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _fail(error: LocalModelError | AgentError) -> NoReturn:
    print(f"error: {error}", file=sys.stderr)
    raise typer.Exit(1) from error


def _state(model: ListedModel) -> str:
    if model.path is not None:
        return "pulled"
    if model.fetched_bytes:
        return f"{model.fetched_bytes / model.size_bytes:.0%} fetched"
    return "not pulled"


def _as_dict(model: ListedModel) -> dict[str, Any]:
    return {
        "name": model.name,
        "title": model.title,
        "pulled": model.path is not None,
        "path": None if model.path is None else str(model.path),
        "size_bytes": model.size_bytes,
        "fetched_bytes": model.fetched_bytes,
        "ram_bytes": model.ram_bytes,
        "licence": model.licence,
    }


@contextmanager
def _shown_progress(name: str) -> Iterator["_PlainProgress | _BarProgress"]:
    """Shows a bar on a terminal, and a line now and then elsewhere."""
    console = Console(stderr=True, highlight=False)
    label = Path(name).name
    if not console.is_terminal:
        yield _PlainProgress(label)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[source]}"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        yield _BarProgress(label, bar)


class _PlainProgress:
    """Lines for a pipe or a log."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._next_s = 0.0

    def progress(self, done_bytes: int, total_bytes: int, source: str) -> None:
        now_s = time.monotonic()
        if now_s < self._next_s and done_bytes < total_bytes:
            return
        self._next_s = now_s + _PLAIN_LINE_S
        self.notice(f"{done_bytes / 1e6:.0f} of {total_bytes / 1e6:.0f} MB from {source}")

    def notice(self, line: str) -> None:
        print(f"{self._label}: {line}", file=sys.stderr, flush=True)


class _BarProgress:
    """A bar for a terminal."""

    def __init__(self, label: str, bar: Progress) -> None:
        self._bar = bar
        self._label = label
        self._task = bar.add_task(label, total=None, source="")

    def progress(self, done_bytes: int, total_bytes: int, source: str) -> None:
        self._bar.update(self._task, completed=done_bytes, total=total_bytes, source=source)

    def notice(self, line: str) -> None:
        self._bar.console.print(f"{self._label}: {line}", markup=False)
