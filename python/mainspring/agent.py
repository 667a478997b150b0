"""Agents: instructions, models, tools and limits under one name.

Invariant: an `Agent` never changes once made, everything wrong with it is found while it is made,
and its spec is the same bytes each time. Reading starts at `Agent`.
"""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Generic, TypeVar, overload

from mainspring._deferred import Arranged, arrange
from mainspring._route_policy import StepClass, check_step_class
from mainspring.adapter import ModelAdapter
from mainspring.compaction import Compaction
from mainspring.errors import AgentError
from mainspring.mcp import Mcp, McpTool
from mainspring.models import Model, Route
from mainspring.tool import Tool, as_tool

__all__ = ["Agent", "Limits"]

T_co = TypeVar("T_co", covariant=True)

ToolChoice = str | Tool[..., Any] | Callable[..., Any]
"""What `Agent(tool_choice=...)` takes: `auto`, `none`, `required`, or a tool or its name."""

_CHOICES = ("auto", "none", "required")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one turn of a session may use; a turn lasts from an input to its final answer.

    Args:
        steps_max: Model steps; a repair or an escalation counts as one.
        tokens_max: Tokens read and written by all model calls.
        tool_calls_per_step_max: Tool calls that one answer may ask for; the ones past it fail with
            a message to the model.
        model_attempts_max: Attempts at one model call before its error stands.
        repairs_max: Times a rejected answer is sent back to the last model to be mended.
        turn_s_max: Seconds of wall time; time while no process runs the turn does not count.
        tool_result_bytes_max: Bytes of one tool result that the model gets to read; the rest is
            cut out of the middle and named.
        input_bytes_max: Bytes of one input.

    Raises:
        AgentError: `agent_invalid`, when a limit is out of range.
    """

    steps_max: int = 50
    tokens_max: int = 2_000_000
    tool_calls_per_step_max: int = 64
    model_attempts_max: int = 5
    repairs_max: int = 2
    turn_s_max: float = 3600.0
    tool_result_bytes_max: int = 100_000
    input_bytes_max: int = 1_000_000

    def __post_init__(self) -> None:
        """Checks every limit."""
        for each in fields(self):
            value, low = getattr(self, each.name), 0 if each.name == "repairs_max" else 1
            if each.name == "turn_s_max":
                _check_turn(value)
            elif isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"Limits.{each.name} is an int, not {type(value).__name__}")
            elif not low <= value <= _INT_MAX:
                raise AgentError(
                    "agent_invalid",
                    f"Limits.{each.name} is {value}, must be {low} to {_INT_MAX}",
                )

    def spec(self) -> dict[str, int]:
        """The limits as the engine takes them: plain data."""
        spec = asdict(self)
        spec["turn_ms_max"] = max(1, round(spec.pop("turn_s_max") * 1000))
        return spec


# What an unsigned number of 32 bits holds: the engine counts steps, calls and attempts in one.
_INT_MAX = 2**32 - 1
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True, init=False)
class Agent(Generic[T_co]):
    """What answers: instructions, a model or a route of models, and tools.

    Args:
        name: 1 to 64 of `A-Z a-z 0-9 _ . -`.
        instructions: The system prompt.
        model: A name, a `Model`, an object with an async method `complete`, or a `Route`; kept as
            `route`.
        tools: In the order the model sees them: tools, plain functions (which get the default
            options of `tool`), and MCP servers.
        output: Type of the final answer: `str` for text, or a pydantic model, dataclass,
            TypedDict, msgspec.Struct or a type made of builtins.
        limits: What a turn may use; None: the defaults.
        tool_choice: `auto`: the models call tools as they see fit; `none`: they must not;
            `required`: they must call one before the first answer of each turn; a tool, or its
            name: they must call this one before the first answer of each turn.
        parallel_tool_calls: Whether one answer may call several tools; None: as the model's server
            has it.
        compaction: What happens when the conversation outgrows a model; None: the defaults.
        step_class: What its steps are for, by which the route chooses; None: told by a fixed rule.

    Raises:
        AgentError: `agent_invalid`, when something cannot be used as given.
        ToolError: `tool_schema_invalid`, when a tool's parameter cannot be described.

    Example:
        >>> from mainspring import Agent
        >>> agent = Agent("greeter", instructions="Greet.", model="openai:gpt-5.4-mini")
        >>> agent.route.models[0].name
        'openai:gpt-5.4-mini'
    """

    name: str
    instructions: str
    route: Route
    tools: tuple[Tool[..., Any] | Mcp, ...]
    output: type[T_co]
    limits: Limits
    tool_choice: str
    parallel_tool_calls: bool | None
    compaction: Compaction
    step_class: StepClass | None

    @overload
    def __init__(
        self: "Agent[str]",
        name: str,
        *,
        instructions: str = "",
        model: str | Model | ModelAdapter | Route,
        tools: Sequence[Tool[..., Any] | Callable[..., Any] | Mcp] = (),
        limits: Limits | None = None,
        tool_choice: ToolChoice = "auto",
        parallel_tool_calls: bool | None = None,
        compaction: Compaction | None = None,
        step_class: StepClass | None = None,
    ) -> None: ...

    @overload
    def __init__(
        self,
        name: str,
        *,
        instructions: str = "",
        model: str | Model | ModelAdapter | Route,
        tools: Sequence[Tool[..., Any] | Callable[..., Any] | Mcp] = (),
        output: type[T_co],
        limits: Limits | None = None,
        tool_choice: ToolChoice = "auto",
        parallel_tool_calls: bool | None = None,
        compaction: Compaction | None = None,
        step_class: StepClass | None = None,
    ) -> None: ...

    # Unions and other forms that are no classes: their type cannot be told to a checker.
    @overload
    def __init__(
        self: "Agent[Any]",
        name: str,
        *,
        instructions: str = "",
        model: str | Model | ModelAdapter | Route,
        tools: Sequence[Tool[..., Any] | Callable[..., Any] | Mcp] = (),
        output: object,
        limits: Limits | None = None,
        tool_choice: ToolChoice = "auto",
        parallel_tool_calls: bool | None = None,
        compaction: Compaction | None = None,
        step_class: StepClass | None = None,
    ) -> None: ...

    def __init__(
        self,
        name: str,
        *,
        instructions: str = "",
        model: str | Model | ModelAdapter | Route,
        tools: Sequence[Tool[..., Any] | Callable[..., Any] | Mcp] = (),
        output: Any = str,
        limits: Limits | None = None,
        tool_choice: ToolChoice = "auto",
        parallel_tool_calls: bool | None = None,
        compaction: Compaction | None = None,
        step_class: StepClass | None = None,
    ) -> None:
        """Checks every argument, and makes the tools' schemas."""
        _check_texts(name, instructions)
        if isinstance(tools, (str, Mapping)) or not isinstance(tools, Sequence):
            raise TypeError(f'tools of agent "{name}" is a list, not {type(tools).__name__}')
        if limits is not None and not isinstance(limits, Limits):
            raise TypeError(f'limits of agent "{name}" is Limits, not {type(limits).__name__}')
        if compaction is not None and not isinstance(compaction, Compaction):
            raise TypeError(
                f'compaction of agent "{name}" is Compaction, not {type(compaction).__name__}'
            )
        if step_class is not None:
            check_step_class(step_class, f'agent "{name}"')
        made = {
            "name": name,
            "instructions": instructions,
            "route": model if isinstance(model, Route) else Route(model),
            "tools": tuple(each if isinstance(each, Mcp) else as_tool(each) for each in tools),
            "output": output,
            "limits": Limits() if limits is None else limits,
            "compaction": Compaction() if compaction is None else compaction,
            "step_class": step_class,
        }
        made["tool_choice"] = _tool_choice(name, tool_choice)
        made["parallel_tool_calls"] = parallel_tool_calls
        for attribute, value in made.items():
            object.__setattr__(self, attribute, value)
        own = [each for each in self.tools if isinstance(each, Tool)]
        _check_unique(name, [each.name for each in own])
        _check_choice(self)
        for each in own:
            each.signature  # noqa: B018  (made now, so that a fault shows where the agent is made)
        self.output_schema()

    def output_schema(self) -> dict[str, Any] | None:
        """JSON Schema of the final answer; None: text."""
        if self.output is str:
            return None
        # Late, because msgspec alone takes a third of the time that `import mainspring` may take.
        from mainspring._schema import output_schema

        return output_schema(self.output)

    def spec(self, extra_tools: Mapping[Mcp, Sequence[McpTool]] | None = None) -> bytes:
        """The agent as the engine takes it: JSON, without keys and without functions.

        Args:
            extra_tools: What `Mcp.select` gave for each MCP server of the agent; the tools take
                the place of their server. Deferred tools come after all others.

        Raises:
            AgentError: `agent_invalid`, when two tools have one name, or a server is missing.
        """
        for each in self.tools:
            if isinstance(each, Mcp) and (extra_tools is None or each not in extra_tools):
                raise AgentError(
                    "agent_invalid",
                    f'agent "{self.name}" uses mcp server "{each.name}", whose tools are not known',
                    "an engine lists them when it starts the agent",
                )
        arranged, deferred = arrange(self.name, self.tools, extra_tools or {})
        tools = [_tool_spec(each) for each in arranged]
        _check_unique(self.name, [tool["name"] for tool in tools])
        spec: dict[str, Any] = {
            "name": self.name,
            "instructions": self.instructions,
            "tools": tools,
            "models": [model.spec() for model in self.route.models],
            "verify": self.route.verify is not None,
        }
        schema = self.output_schema()
        if schema is not None:
            spec["output_schema"] = schema
        if self.tool_choice in _CHOICES[1:]:
            spec["tool_choice"] = self.tool_choice
        elif self.tool_choice != "auto":
            spec["tool_choice"] = {"tool": self.tool_choice}
        if self.parallel_tool_calls is not None:
            spec["parallel_tool_calls"] = self.parallel_tool_calls
        spec["limits"] = self.limits.spec()
        if deferred:
            spec["deferred"] = deferred
        if self.compaction != Compaction():
            spec["compaction"] = self.compaction.spec()
        route = self.route.spec()
        if route is not None:
            spec["route"] = route
        if self.step_class is not None:
            spec["step_class"] = self.step_class
        return json.dumps(spec, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()

    def replace(self, **changes: Any) -> "Agent[Any]":
        """The same agent with some of its arguments changed.

        Args:
            changes: Arguments of `Agent`, such as `model="..."` and `tools=[...]`.
        """
        unchanged: dict[str, Any] = {
            "name": self.name,
            "instructions": self.instructions,
            "model": self.route,
            "tools": self.tools,
            "output": self.output,
            "limits": self.limits,
            "tool_choice": self.tool_choice,
            "parallel_tool_calls": self.parallel_tool_calls,
            "compaction": self.compaction,
            "step_class": self.step_class,
        }
        unknown = sorted(set(changes) - set(unchanged))
        if unknown:
            raise TypeError(f"an agent has no {', '.join(unknown)}, it has {', '.join(unchanged)}")
        return Agent(**(unchanged | changes))

    def run_sync(self, input: str, *, store: str = "memory:") -> T_co:  # noqa: A002  (API word)
        """Runs one turn in a new session and waits for its answer.

        Args:
            input: What the user says.
            store: Address of the journal, such as `sqlite:///mainspring.db`; `memory:` forgets.

        Returns:
            The final answer, of the agent's output type.

        Raises:
            MainspringError: When the turn fails.
        """
        # Late, because the engine is a layer above and loads the native module.
        from mainspring.engine import run_sync

        return run_sync(self, input, store=store)

    async def run(self, input: str, *, store: str = "memory:") -> T_co:  # noqa: A002  (API word)
        """Runs one turn in a new session; `run_sync` for programs with an event loop."""
        # Late, because the engine is a layer above and loads the native module.
        from mainspring.engine import run

        return await run(self, input, store=store)


def _tool_choice(agent: str, choice: object) -> str:
    if isinstance(choice, str):
        return choice
    if callable(choice):
        return as_tool(choice).name
    raise TypeError(
        f'tool_choice of agent "{agent}" is text or a tool, not {type(choice).__name__}'
    )


def _check_choice(agent: "Agent[Any]") -> None:
    parallel: object = agent.parallel_tool_calls
    if parallel is not None and not isinstance(parallel, bool):
        kind = type(parallel).__name__
        raise TypeError(f'parallel_tool_calls of agent "{agent.name}" is a bool, not {kind}')
    # The tools of a server are known only once it runs.
    if agent.tool_choice in ("auto", "none") or any(isinstance(t, Mcp) for t in agent.tools):
        return
    names = [each.name for each in agent.tools if isinstance(each, Tool)]
    if agent.tool_choice == "required" and names:
        return
    if agent.tool_choice not in names:
        raise AgentError(
            "agent_invalid",
            f'agent "{agent.name}" has tool_choice "{agent.tool_choice}", allowed are '
            f"{', '.join((*_CHOICES, *names))}" + ("" if names else "; it has no tools"),
        )


def _check_turn(value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"Limits.turn_s_max is a number, not {type(value).__name__}")
    if not (math.isfinite(value) and 0 < value <= _INT_MAX):
        raise AgentError(
            "agent_invalid", f"Limits.turn_s_max is {value}, must be above 0, at most {_INT_MAX}"
        )


def _check_texts(name: object, instructions: object) -> None:
    if not isinstance(name, str):
        raise TypeError(f"an agent's name is text, not {type(name).__name__}")
    if not _NAME.fullmatch(name):
        raise AgentError(
            "agent_invalid",
            f'an agent has the name "{name}", allowed are 1 to 64 of A-Z a-z 0-9 _ . -',
        )
    if not isinstance(instructions, str):
        raise TypeError(
            f'instructions of agent "{name}" is text, not {type(instructions).__name__}'
        )


def _check_unique(agent: str, names: Sequence[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise AgentError(
                "agent_invalid",
                f'agent "{agent}" has two tools of the name "{name}", each needs its own',
                "name one with @tool(name=...), or set a prefix with Mcp(prefix=...)",
            )
        seen.add(name)


def _tool_spec(arranged: Arranged) -> dict[str, Any]:
    owner, tool = arranged
    if isinstance(owner, Tool):
        return owner.spec()
    if tool is None:
        raise TypeError("a server's tool is none of its own")
    return _mcp_tool_spec(owner, tool)


def _mcp_tool_spec(server: Mcp, tool: McpTool) -> dict[str, Any]:
    return {
        "name": tool["name"],
        "description": tool["description"],
        "parameters": tool["parameters"],
        "effect": tool["effect"],
        "timeout_ms": max(1, round(server.timeout_s * 1000)),
        "attempts_max": 1,
    }
