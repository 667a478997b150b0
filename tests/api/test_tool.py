"""Tools: the decorator, its options, and that a tool stays callable."""

import asyncio
import functools
from collections.abc import Callable, Iterator
from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from mainspring.context import Context
from mainspring.errors import AgentError, ToolError
from mainspring.tool import RETRIES_MAX, Tool, as_tool, tool


@tool
def add(a: int, b: int = 1) -> int:
    """Add two numbers.

    Args:
        a: The first.
    """
    return a + b


@tool(name="get", description="Fetch it.", effect="keyed", timeout_s=2.5, retry=3)
async def fetch(url: str, ctx: Context) -> str:
    """Not this text."""
    return f"{url} {ctx.effect_id}"


class Shop:
    def __init__(self, name: str) -> None:
        self.name = name

    @tool(effect="read")
    def stock(self, item: str) -> str:
        """Count the stock."""
        return f"{self.name}: {item}"

    @staticmethod
    @tool
    def opens(day: str) -> str:
        return f"9 on {day}"


def test_a_bare_decorator_takes_all_from_the_function() -> None:
    assert (add.name, add.description) == ("add", "Add two numbers.")
    assert (add.effect, add.timeout_s, add.retry, add.is_async) == ("unsafe", 60.0, 0, False)
    assert add.spec() == {
        "name": "add",
        "description": "Add two numbers.",
        "parameters": {
            "type": "object",
            "properties": {
                "a": {"type": "integer", "description": "The first."},
                "b": {"type": "integer", "default": 1},
            },
            "required": ["a"],
            "additionalProperties": False,
        },
        "effect": "unsafe",
        "timeout_ms": 60_000,
        "attempts_max": 1,
    }


def test_options_reach_the_spec() -> None:
    assert fetch.is_async
    assert fetch.signature.context_names == ("ctx",)
    spec = fetch.spec()
    assert {key: spec[key] for key in spec if key != "parameters"} == {
        "name": "get",
        "description": "Fetch it.",
        "effect": "keyed",
        "timeout_ms": 2_500,
        "attempts_max": 4,
    }


def test_a_tool_is_called_like_its_function() -> None:
    ctx = Context(session="s", tool="get", call_id="c", effect_id="e")

    assert add(2) == 3
    assert add(a=2, b=5) == 7
    assert asyncio.run(fetch("u", ctx)) == "u e"
    assert add.__name__ == "add"
    assert repr(add) == "Tool('add', effect='unsafe')"


def test_decoded_arguments_call_the_function() -> None:
    assert add(**add.signature.decode(b'{"a":2}')) == 3


def test_a_method_binds_to_its_instance() -> None:
    bound = Shop("north").stock

    assert bound("pens") == "north: pens"
    assert Shop.stock(Shop("south"), "pens") == "south: pens"
    assert list(bound.parameters["properties"]) == ["item"]
    assert (bound.name, bound.effect) == ("stock", "read")
    assert Shop("north").opens("monday") == "9 on monday"


def test_a_method_that_is_not_bound_says_so() -> None:
    with pytest.raises(ToolError) as caught:
        _ = Shop.stock.parameters

    assert str(caught.value).endswith(
        'parameter "self" has no type, every parameter of a tool needs one\n'
        "hint: it looks like a method: pass it bound, such as tools=[obj.method]"
    )


def test_plain_functions_become_tools_with_default_options() -> None:
    def search(query: str) -> str:
        """Search."""
        return query

    made = as_tool(search)

    assert isinstance(made, Tool)
    assert (made.name, made.description, made.effect) == ("search", "Search.", "unsafe")
    assert as_tool(made) is made
    assert as_tool(Shop("x").stock).name == "stock"


def test_an_async_callable_object_is_async() -> None:
    class Fetch:
        async def __call__(self, url: str) -> str:
            """Fetch it."""
            return url

    made = tool(name="fetch")(Fetch())

    assert (made.is_async, made.description) == (True, "Fetch it.")
    assert tool(name="f")(functools.partial(Fetch(), url="u")).is_async


def refuse(make: Callable[[], object], kind: type[Exception]) -> str:
    with pytest.raises(kind) as caught:
        make()
    return str(caught.value)


def plain(a: int) -> int:
    return a


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"name": "a b"},
            'a tool has the name "a b", allowed are 1 to 64 of A-Z a-z 0-9 _ -\n'
            'hint: give one with @tool(name="...")',
        ),
        (
            {"name": "x" * 65},
            f'a tool has the name "{"x" * 65}", allowed are 1 to 64 of A-Z a-z 0-9 _ -\n'
            'hint: give one with @tool(name="...")',
        ),
        (
            {"effect": "write"},
            "tool \"plain\" has effect 'write', allowed are read, idempotent, keyed, unsafe",
        ),
        (
            {"timeout_s": 0},
            'timeout_s of tool "plain" is 0, must be above 0 and finite',
        ),
        (
            {"timeout_s": float("inf")},
            'timeout_s of tool "plain" is inf, must be above 0 and finite',
        ),
        (
            {"retry": RETRIES_MAX + 1, "effect": "read"},
            'retry of tool "plain" is 21, must be 0 to 20',
        ),
        (
            {"retry": 1},
            'retry of tool "plain" is 1, must be 0 where effect is "unsafe"\n'
            'hint: say what a repetition does, such as effect="idempotent", or leave retry out',
        ),
    ],
)
def test_options_outside_of_what_is_allowed_are_refused(options: dict[str, Any], text: str) -> None:
    assert refuse(lambda: tool(**options)(plain), AgentError) == text
    assert refuse(lambda: tool(**options)(plain), ValueError) == text


def test_the_most_retries_are_accepted() -> None:
    assert tool(effect="read", retry=RETRIES_MAX)(plain).spec()["attempts_max"] == 21


def test_what_is_no_function_is_refused() -> None:
    def lines(path: str) -> Iterator[str]:
        yield path

    not_a_function: Any = "search"

    assert refuse(lambda: tool(not_a_function), TypeError) == (
        "a tool is made of a function, not of 'search'\n"
        'hint: options go by keyword, such as @tool(name="search")'
    )
    assert refuse(lambda: tool(add), TypeError) == (
        'a tool is made of a function, "add" is a tool already'
    )
    assert refuse(lambda: tool(staticmethod(plain)), TypeError) == (
        "a tool is made of a function, not of a staticmethod\nhint: write @staticmethod above @tool"
    )
    assert refuse(lambda: tool(lines), TypeError) == (
        'a tool returns one result, "lines" is a generator\nhint: return a list'
    )
    assert refuse(lambda: tool(lambda: 1), AgentError) == (
        'a tool has the name "<lambda>", allowed are 1 to 64 of A-Z a-z 0-9 _ -\n'
        'hint: give one with @tool(name="...")'
    )


def test_values_of_another_type_are_refused() -> None:
    wrong: Any = True

    assert refuse(lambda: tool(timeout_s=wrong)(plain), TypeError) == (
        'timeout_s of tool "plain" is a number, not bool'
    )
    assert refuse(lambda: tool(retry=wrong)(plain), TypeError) == (
        'retry of tool "plain" is an int, not bool'
    )


def test_a_context_is_fixed_and_gives_an_idempotency_header() -> None:
    ctx = Context(session="s", tool="t", call_id="c", effect_id="e7", attempt=2, deadline_s=1.5)

    assert ctx.idempotency_headers() == {"Idempotency-Key": "e7"}
    attribute = "attempt"
    with pytest.raises(FrozenInstanceError):
        setattr(ctx, attribute, 3)
