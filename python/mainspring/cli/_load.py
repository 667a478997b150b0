"""From `MODULE:AGENT` to an agent, with the models that the command line asks for.

Invariant: an origin holds everything to load the same agent again, and no secret; what is wrong in
a user's module is told with its place and without a traceback. Start reading at `Choice.load`.
"""

import os
import shlex
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from mainspring.agent import Agent
from mainspring.errors import AgentError, MainspringError, ModelError
from mainspring.models import Model, Route, default_route

ASSISTANT = "builtin:assistant"
"""The reference of the agent that is there without a module."""

_INSTRUCTIONS = "You are a helpful assistant. Answer briefly and say so when you do not know."


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """An agent, and the models to use instead of its own.

    Args:
        reference: `MODULE:AGENT`, or `ASSISTANT`.
        models: Names of models, smallest first; empty: the agent's own.
        base_url: Where an OpenAI-compatible server has these models.
        api_key_env: Environment variable with that server's key.
    """

    reference: str = ASSISTANT
    models: tuple[str, ...] = ()
    base_url: str | None = None
    api_key_env: str | None = None

    def load(self, stack: ExitStack | None, *, stream: bool) -> tuple[Agent[Any], str]:
        """Loads the agent.

        Args:
            stack: Holds what a factory opened for its agent; None: factories are not called.
            stream: Whether its models are asked for streams.

        Returns:
            The agent, and the origin to record.

        Raises:
            AgentError: `agent_invalid`: the module, the agent or a model cannot be used.
            ModelError: `model_auth`: nothing says which model the assistant uses.
        """
        route = self._route()
        if self.reference == ASSISTANT:
            agent, place = _assistant(route), ASSISTANT
        else:
            agent, place = load_agent(self.reference, stack)
        chosen = route or agent.route
        models = [replace(model, stream=stream) for model in chosen.models]
        return _with_route(agent, agent.route.with_models(*models)), self._origin(place)

    def _route(self) -> Route | None:
        if not self.models:
            return None
        return Route(
            *(
                Model(name, base_url=self.base_url, api_key_env=self.api_key_env)
                for name in self.models
            )
        )

    def _origin(self, place: str) -> str:
        words = [place]
        for name in self.models:
            words += ["--model", name]
        if self.base_url:
            words += ["--base-url", self.base_url]
        if self.api_key_env:
            words += ["--api-key-env", self.api_key_env]
        return shlex.join(words)


def choice_of(origin: str) -> Choice:
    """Reads an origin that `Choice.load` gave."""
    words = shlex.split(origin)
    given: dict[str, list[str]] = {}
    for option, value in zip(words[1::2], words[2::2], strict=False):
        given.setdefault(option, []).append(value)
    return Choice(
        reference=words[0],
        models=tuple(given.get("--model", ())),
        base_url=next(iter(given.get("--base-url", ())), None),
        api_key_env=next(iter(given.get("--api-key-env", ())), None),
    )


def load_agent(reference: str, stack: ExitStack | None) -> tuple[Agent[Any], str]:
    """Imports a module and takes the agent out of it.

    Args:
        reference: `MODULE:AGENT`; the module by its import name or as the path of a .py file. In
            the place of the agent there may be a factory: a function without required arguments
            that returns an agent, or a context manager of one.
        stack: Where the context manager of a factory is entered; None: factories are not called.

    Returns:
        The agent, and the reference with a path made absolute.
    """
    found, module, place = load_object(reference)
    module_name = reference.rpartition(":")[0]
    if isinstance(found, FunctionType) and stack is not None:
        found = _made(found, stack, module_name)
    if not isinstance(found, Agent):
        raise AgentError(
            "agent_invalid",
            f'"{reference}" is {_kind(found)}, must be an Agent',
            _offer(module, module_name),
        )
    return found, place


def load_object(reference: str) -> tuple[Any, ModuleType, str]:
    """Imports a module and takes something out of it.

    Args:
        reference: `MODULE:NAME`; the module by its import name or as the path of a .py file.

    Returns:
        What was found, the module, and the reference with a path made absolute.
    """
    module_name, colon, attribute = reference.rpartition(":")
    if not colon or module_name.endswith(("/", "\\")):
        module_name, attribute = reference, ""
    module = _import(module_name)
    place = module_name
    if _is_path(module_name):
        place = str(Path(module_name).expanduser().resolve())
    if not attribute:
        raise AgentError(
            "agent_invalid",
            f'"{reference}" names a module, MODULE:AGENT is needed',
            _offer(module, module_name),
        )
    found: Any = module
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise AgentError(
                "agent_invalid",
                f'module "{module_name}" has no attribute "{attribute}"',
                _offer(module, module_name),
            ) from None
    return found, module, f"{place}:{attribute}"


def _made(factory: FunctionType, stack: ExitStack, module_name: str) -> Any:
    with _faults_told(module_name):
        made = factory()
        if not hasattr(made, "__enter__"):
            return made
        agent = made.__enter__()

    def leave(*error: Any) -> bool:
        # At its end, too, what the module prints must not follow the answer.
        with redirect_stdout(sys.stderr):
            return bool(made.__exit__(*error))

    stack.push(leave)
    return agent


def _assistant(route: Route | None) -> Agent[str]:
    found = route or default_route()
    if found is None:
        raise ModelError(
            "model_auth",
            "no model is chosen, OPENAI_API_KEY, ANTHROPIC_API_KEY and MAINSPRING_MODEL are unset",
            "set one, or name a server with --base-url URL --model NAME, or run models here: "
            "mainspring demo, mainspring models list",
        )
    return Agent("assistant", instructions=_INSTRUCTIONS, model=found)


def _with_route(agent: Agent[Any], route: Route) -> Agent[Any]:
    return Agent(
        agent.name,
        instructions=agent.instructions,
        model=route,
        tools=agent.tools,
        output=agent.output,
        limits=agent.limits,
    )


def _is_path(name: str) -> bool:
    return name.endswith(".py") or os.sep in name


def _import(name: str) -> ModuleType:
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    with _faults_told(name):
        return _import_file(Path(name).expanduser()) if _is_path(name) else _import_name(name)


@contextmanager
def _faults_told(name: str) -> Iterator[None]:
    """Tells what goes wrong in a user's module with its place.

    What the module prints goes to standard error: standard output is for the answer alone.
    """
    try:
        with redirect_stdout(sys.stderr):
            yield
    except MainspringError as error:
        if error.details.get("reference"):
            raise
        place = _place(error)
        if place:
            error.message = f'module "{name}" cannot be used: {error.message}{place}'
        raise
    except (Exception, SystemExit) as error:
        told = error.msg if isinstance(error, SyntaxError) else str(error)
        text = f"{type(error).__name__}: {told}" if told else type(error).__name__
        raise AgentError(
            "agent_invalid",
            f'module "{name}" cannot be used: {text}{_place(error)}',
            "set MAINSPRING_DEBUG=1 to see the traceback",
        ) from error


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise _not_found(f'file "{path}" does not exist', "give the path of a .py file")
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    spec = spec_from_file_location(path.stem, path.resolve())
    if spec is None or spec.loader is None:
        raise _not_found(f'file "{path}" is no Python module', "its name must end in .py")
    module = module_from_spec(spec)
    # As an import would: dataclasses and pickles look their module up here.
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def _import_name(name: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise _not_found(
            f'"{name}" is no module name', 'write it like "package.module:agent" or "file.py:agent"'
        )
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if name != missing and not name.startswith(f"{missing}."):
            raise
        raise _not_found(
            f'module "{name}" is neither in "{Path.cwd()}" nor installed',
            "go to its folder, or give the path of the file: path/to/module.py:agent",
        ) from None


def _not_found(message: str, hint: str) -> AgentError:
    return AgentError("agent_invalid", message, hint, details={"reference": True})


def _place(error: BaseException) -> str:
    """Where in the user's code an error came from."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" ({error.filename}:{error.lineno})"
    own = str(Path(__file__).resolve().parent.parent)
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((own, "<frozen"))
        and f"{os.sep}importlib{os.sep}" not in frame.filename
    ]
    return f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""


def _offer(module: ModuleType, name: str) -> str:
    found = agents_in(module)
    if not found:
        return "it holds no Agent; make one: agent = Agent(...)"
    return f"its agents: {', '.join(f'{name}:{each}' for each in found)}"


def agents_in(module: ModuleType) -> Sequence[str]:
    """The names of a module's agents, in the module's order."""
    return [name for name, value in vars(module).items() if isinstance(value, Agent)]


def _kind(value: object) -> str:
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"
