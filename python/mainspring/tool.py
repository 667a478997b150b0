"""Tools: functions that a model may call.

Invariant: a `Tool` never changes once made, and calls its function exactly as the function itself
would be called. Reading starts at `tool`.
"""

import functools
import inspect
import math
import re
from collections.abc import Awaitable, Callable
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Generic,
    Literal,
    ParamSpec,
    Self,
    TypeVar,
    overload,
)

from mainspring._docstring import docstring_of, parse
from mainspring.context import Context
from mainspring.errors import AgentError
from mainspring.outcome import Outcome

if TYPE_CHECKING:
    from mainspring._schema import Signature

__all__ = ["Approve", "Effect", "RETRIES_MAX", "Reconcile", "Tool", "as_tool", "tool"]

Effect = Literal["read", "idempotent", "keyed", "unsafe"]
"""What doing a tool call twice would do; decides what happens to it after a crash.

`read` changes nothing and `idempotent` leaves the same state: both run again. `keyed` runs again
with the same `Context.effect_id`, which the other side recognises. `unsafe` never runs again by
itself: its `reconcile` function is asked what became of it, or else a person.
"""

Approve = bool | Callable[[dict[str, Any]], bool | Awaitable[bool]]
"""Whether a person must approve a call: always, never, or what a function of its arguments says."""

Reconcile = Callable[[dict[str, Any], Context], Outcome | Awaitable[Outcome]]
"""Finds out what became of a call whose process ended, from its arguments and context."""

RETRIES_MAX = 20
"""Most extra attempts that `retry` may ask for."""

_EFFECTS = ("read", "idempotent", "keyed", "unsafe")
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")

P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)
_Q = ParamSpec("_Q")
_S = TypeVar("_S")


class Tool(Generic[P, R_co]):
    """A function that a model may call; call it yourself like the function.

    Made by `tool`. As an attribute of a class it binds like a method.

    Attributes:
        fn: The function.
        name: What the model calls it by.
        description: What the model reads about it; may be empty.
        effect: What a repetition would do.
        timeout_s: Seconds that one attempt may take.
        retry: Extra attempts after a failed one.
        approve: Whether a person must approve a call.
        reconcile: Finds out what became of a call whose process ended; None: a person does.
        deferred: Whether a model has to search for it; None: where an agent has many tools.
        is_async: Whether calling `fn` gives something to await.
    """

    def __init__(
        self,
        fn: Callable[P, R_co],
        *,
        name: str | None = None,
        description: str | None = None,
        effect: Effect = "unsafe",
        timeout_s: float = 60.0,
        retry: int = 0,
        approve: Approve = False,
        reconcile: Reconcile | None = None,
        deferred: bool | None = None,
    ) -> None:
        """Checks every argument; `tool` documents them."""
        _check_function(fn)
        functools.update_wrapper(self, fn)
        self.fn = fn
        self.name = _checked_name(fn, name)
        if description is None:
            description = parse(docstring_of(fn))[0]
        self.description = description
        self.effect: Effect = effect
        self.timeout_s = timeout_s
        self.retry = retry
        self.approve = approve
        self.reconcile = reconcile
        self.deferred = deferred
        self.is_async = _is_async(fn)
        _check_options(self)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Calls the function."""
        return self.fn(*args, **kwargs)

    @overload
    def __get__(self, instance: None, owner: type, /) -> Self: ...

    @overload
    def __get__(
        self: "Tool[Concatenate[_S, _Q], R_co]", instance: _S, owner: type, /
    ) -> "Tool[_Q, R_co]": ...

    def __get__(self, instance: object, owner: type, /) -> Any:
        """Binds the tool to an instance, as functions do."""
        if instance is None:
            return self
        return Tool(
            self.fn.__get__(instance, owner),
            name=self.name,
            description=self.description,
            effect=self.effect,
            timeout_s=self.timeout_s,
            retry=self.retry,
            approve=self.approve,
            reconcile=self.reconcile,
            deferred=self.deferred,
        )

    def __repr__(self) -> str:
        """Shows the name and the effect."""
        return f"Tool({self.name!r}, effect={self.effect!r})"

    @functools.cached_property
    def signature(self) -> "Signature":
        """Schema, decoder and context parameters; made on first use.

        Raises:
            ToolError: `tool_schema_invalid`, when a parameter cannot be described.
        """
        # Late, because msgspec alone takes a third of the time that `import mainspring` may take.
        from mainspring._schema import read_signature

        return read_signature(self.fn, name=self.name)

    @property
    def parameters(self) -> dict[str, Any]:
        """JSON Schema of the arguments, an object schema."""
        return self.signature.parameters

    def spec(self) -> dict[str, Any]:
        """The tool as the engine takes it: plain data."""
        spec: dict[str, Any] = {
            "name": self.name,
            "description": self.description,
            "parameters": self.parameters,
            "effect": self.effect,
            "timeout_ms": max(1, round(self.timeout_s * 1000)),
            "attempts_max": self.retry + 1,
        }
        if self.approve is not False:
            spec["approve"] = "always" if self.approve is True else "policy"
        if self.reconcile is not None:
            spec["reconcile"] = True
        return spec


@overload
def tool(fn: Callable[P, R_co], /) -> Tool[P, R_co]: ...


@overload
def tool(
    *,
    name: str | None = None,
    description: str | None = None,
    effect: Effect = "unsafe",
    timeout_s: float = 60.0,
    retry: int = 0,
    approve: Approve = False,
    reconcile: Reconcile | None = None,
    deferred: bool | None = None,
) -> Callable[[Callable[P, R_co]], Tool[P, R_co]]: ...


def tool(
    fn: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    description: str | None = None,
    effect: Effect = "unsafe",
    timeout_s: float = 60.0,
    retry: int = 0,
    approve: Approve = False,
    reconcile: Reconcile | None = None,
    deferred: bool | None = None,
) -> Any:
    """Makes a function a tool; use it as `@tool` or `@tool(...)`.

    The model sees the function's name, the first part of its docstring, and a JSON Schema made
    from its annotations, its defaults and the docstring's words on each parameter.

    Args:
        fn: The function, sync or async.
        name: What the model calls it by, 1 to 64 of `A-Z a-z 0-9 _ -`; the function's name if
            None.
        description: What the model reads about it; from the docstring if None.
        effect: What a repetition would do: `read`, `idempotent`, `keyed` or `unsafe`.
        timeout_s: Seconds that one attempt may take.
        retry: Extra attempts after a failed one, at most 20; 0 where `effect` is `unsafe`.
        approve: True: a person must approve every call (`Run.approve`) before it runs. A function,
            sync or async, is given the arguments and says whether a person must; one that raises
            means yes. An approval counts once.
        reconcile: Given arguments and `Context` of an `unsafe` call whose process ended, it gives
            an `Outcome`; without it, or where it raises, the call waits for `Run.resolve`.
        deferred: True: models are not shown the tool, they find it with `tool_search`; None: so it
            is where the agent has more than 64 tools.

    Raises:
        AgentError: `agent_invalid`, when an option is outside of what is allowed.
        TypeError: When `fn` is no function.

    Example:
        >>> from mainspring import tool
        >>> @tool(effect="read")
        ... def add(a: int, b: int = 1) -> int:
        ...     "Add two numbers."
        ...     return a + b
        >>> add.parameters["required"], add(1, 2)
        (['a'], 3)
    """

    def make(function: Callable[..., Any]) -> Tool[..., Any]:
        return Tool(
            function,
            name=name,
            description=description,
            effect=effect,
            timeout_s=timeout_s,
            retry=retry,
            approve=approve,
            reconcile=reconcile,
            deferred=deferred,
        )

    return make if fn is None else make(fn)


def as_tool(value: object) -> Tool[..., Any]:
    """The tool itself, or a tool with the default options made of a function.

    Raises:
        TypeError: When it is neither.
    """
    return value if isinstance(value, Tool) else Tool(value)  # type: ignore[arg-type]


def _check_function(fn: object) -> None:
    if isinstance(fn, (staticmethod, classmethod)):
        kind = type(fn).__name__
        raise TypeError(
            f"a tool is made of a function, not of a {kind}\nhint: write @{kind} above @tool"
        )
    if isinstance(fn, Tool):
        raise TypeError(f'a tool is made of a function, "{fn.name}" is a tool already')
    if not callable(fn) or isinstance(fn, type):
        raise TypeError(
            f"a tool is made of a function, not of {fn!r}\n"
            'hint: options go by keyword, such as @tool(name="search")'
        )
    if inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
        name = getattr(fn, "__name__", type(fn).__name__)
        raise TypeError(f'a tool returns one result, "{name}" is a generator\nhint: return a list')


def _checked_name(fn: Callable[..., Any], name: str | None) -> str:
    found = getattr(fn, "__name__", "") if name is None else name
    if not isinstance(found, str):
        raise TypeError(f"a tool's name is text, not {type(found).__name__}")
    if not _NAME.fullmatch(found):
        raise AgentError(
            "agent_invalid",
            f'a tool has the name "{found}", allowed are 1 to 64 of A-Z a-z 0-9 _ -',
            'give one with @tool(name="...")',
        )
    return found


def _is_async(fn: Callable[..., Any]) -> bool:
    while isinstance(fn, functools.partial):
        fn = fn.func
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(type(fn).__call__)


def _check_options(made: Tool[..., Any]) -> None:
    name = made.name
    if made.effect not in _EFFECTS:
        raise AgentError(
            "agent_invalid",
            f'tool "{name}" has effect {made.effect!r}, allowed are {", ".join(_EFFECTS)}',
        )
    timeout_s, retry = made.timeout_s, made.retry
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, (int, float)):
        raise TypeError(f'timeout_s of tool "{name}" is a number, not {type(timeout_s).__name__}')
    if not (math.isfinite(timeout_s) and timeout_s > 0):
        raise AgentError(
            "agent_invalid",
            f'timeout_s of tool "{name}" is {timeout_s}, must be above 0 and finite',
        )
    if isinstance(retry, bool) or not isinstance(retry, int):
        raise TypeError(f'retry of tool "{name}" is an int, not {type(retry).__name__}')
    if not 0 <= retry <= RETRIES_MAX:
        raise AgentError(
            "agent_invalid", f'retry of tool "{name}" is {retry}, must be 0 to {RETRIES_MAX}'
        )
    _check_functions(made)
    deferred: object = made.deferred
    if not (deferred is None or isinstance(deferred, bool)):
        raise TypeError(f'deferred of tool "{name}" is a bool, not {type(deferred).__name__}')
    if retry and made.effect == "unsafe":
        raise AgentError(
            "agent_invalid",
            f'retry of tool "{name}" is {retry}, must be 0 where effect is "unsafe"',
            'say what a repetition does, such as effect="idempotent", or leave retry out',
        )


def _check_functions(made: Tool[..., Any]) -> None:
    name = made.name
    approve: object = made.approve
    if not (isinstance(approve, bool) or callable(approve)):
        kind = type(approve).__name__
        raise TypeError(f'approve of tool "{name}" is a bool or a function, not {kind}')
    reconcile: object = made.reconcile
    if not (reconcile is None or callable(reconcile)):
        kind = type(reconcile).__name__
        raise TypeError(f'reconcile of tool "{name}" is a function, not {kind}')
    if reconcile is not None and made.effect != "unsafe":
        raise AgentError(
            "agent_invalid",
            f'tool "{name}" has a reconcile function and effect {made.effect!r}',
            "only a tool of effect unsafe needs one: the others are run again",
        )
