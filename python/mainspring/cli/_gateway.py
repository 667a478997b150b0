"""`mainspring gateway`: models and routes as an OpenAI-compatible server.

Invariant: it is ready when it says so, and from then on SIGTERM and Ctrl-C let the answers under
way be sent before it ends.
"""

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from mainspring.agent import Agent
from mainspring.cli._exit import EXIT_CODES, ExitCode, note
from mainspring.cli._load import load_object
from mainspring.errors import AgentError
from mainspring.gateway import Client, Gateway, GatewayConfig, ServedRoute, read_config
from mainspring.models import Model, Route

app = typer.Typer(add_completion=False, rich_markup_mode=None)

AUTO = "auto"
"""What the route over all models of the command line is called."""


@app.command(
    epilog="\b\nExamples:\n"
    "  mainspring gateway --config gateway.toml\n"
    "  mainspring gateway --model small=openai:gpt-5.4-mini --model large=openai:gpt-5.4\n"
    "  mainspring gateway support.routes:careful --listen 127.0.0.1:9000\n\n" + EXIT_CODES
)
def gateway(
    references: Annotated[
        list[str] | None,
        typer.Argument(metavar="[MODULE:ROUTE]...", help="Routes, models or agents of modules."),
    ] = None,
    *,
    config: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", help="Everything, as TOML.", dir_okay=False),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="NAME=MODEL",
            help='A model and the name clients ask for; several times, smallest first. "auto" is '
            "the route over all of them.",
        ),
    ] = None,
    base_url: Annotated[
        str | None,
        typer.Option("--base-url", metavar="URL", help="Where a server has these models."),
    ] = None,
    api_key_env: Annotated[
        str | None,
        typer.Option("--api-key-env", metavar="NAME", help="Variable with that server's key."),
    ] = None,
    listen: Annotated[
        str | None,
        typer.Option("--listen", metavar="HOST:PORT", help="[default: 127.0.0.1:8080]"),
    ] = None,
    token_env: Annotated[
        list[str] | None,
        typer.Option(
            "--token-env",
            metavar="NAME[=TENANT]",
            help="Variable with a token that lets a client in; several times.",
        ),
    ] = None,
    record: Annotated[
        Path | None,
        typer.Option("--record", metavar="FILE", help="Add a line of JSON for each answer."),
    ] = None,
    drain_s: Annotated[
        float,
        typer.Option(
            "--drain-s", metavar="S", min=0, max=86_400, help="Seconds that the end may take."
        ),
    ] = 30.0,
) -> None:
    """Serve models and routes as an OpenAI-compatible HTTP API.

    Any framework that takes a base_url gains routing, checks, retries and fallback: its model is
    then "auto", or one of the names served. Without tokens only this machine is let in.

    SIGTERM and Ctrl-C end it: nothing new is accepted, and answers under way are sent.
    """
    made = _config(references or [], config, model or [], base_url, api_key_env)
    if listen is not None:
        made = replace(made, listen=listen)
    if record is not None:
        made = replace(made, record=record)
    if token_env:
        clients = [*made.clients, *(_client(each) for each in token_env)]
        made = replace(made, clients=clients)
    if not _serve(made, drain_s):
        raise typer.Exit(ExitCode.FAILED)


def _config(
    references: list[str],
    file: Path | None,
    models: list[str],
    base_url: str | None,
    api_key_env: str | None,
) -> GatewayConfig:
    if file is not None:
        if references or models:
            raise typer.BadParameter("--config stands alone: name routes and models in the file")
        return read_config(file)
    routes: dict[str, ServedRoute] = {}
    named: list[Model] = []
    for each in models:
        name, equals, spec = each.partition("=")
        if not equals or not name or not spec:
            raise typer.BadParameter(f'"{each}" is not NAME=MODEL, such as small=gpt-5.4-mini')
        made = Model(spec, base_url=base_url, api_key_env=api_key_env)
        named.append(made)
        _add(routes, name, Route(made))
    if len(named) > 1:
        _add(routes, AUTO, Route(*named))
    for each in references:
        _add(routes, each.rpartition(":")[2], _loaded(each))
    if not routes:
        raise typer.BadParameter("nothing is served: give --config, --model or MODULE:ROUTE")
    return GatewayConfig(routes=routes)


def _add(routes: dict[str, ServedRoute], name: str, route: Route) -> None:
    if name in routes:
        raise typer.BadParameter(f'the name "{name}" is served twice')
    routes[name] = ServedRoute(route=route)


def _loaded(reference: str) -> Route:
    found: Any = load_object(reference)[0]
    if isinstance(found, Agent):
        return found.route
    if isinstance(found, Model):
        return Route(found)
    if not isinstance(found, Route):
        raise AgentError(
            "agent_invalid",
            f'"{reference}" is {type(found).__name__}, must be a Route, a Model or an Agent',
        )
    return found


def _client(given: str) -> Client:
    variable, _, tenant = given.partition("=")
    token = os.environ.get(variable, "").strip()
    if not token:
        raise typer.BadParameter(f"environment variable {variable} is not set")
    return Client(token=token, tenant=tenant)


def _serve(config: GatewayConfig, drain_s: float) -> bool:
    """Serves until told to end; whether every answer under way was sent."""
    ends = {signal.SIGTERM, signal.SIGINT}
    # Before the gateway has threads, so that none of them is the one that gets the signal.
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    serving = Gateway(config)
    note(f"gateway ready: http://{serving.address}/v1 serves {', '.join(config.routes)}")
    signal.sigwait(ends)
    note(f"told to end; answers under way have {drain_s:g} s")
    # The second one ends it at once.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ends)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    return serving.close(drain_s)
