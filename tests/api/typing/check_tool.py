"""Types that a checker must infer for tools; checked, never run."""

from collections.abc import Coroutine
from typing import Any, assert_type

from mainspring.context import Context
from mainspring.tool import Tool, tool


@tool
def add(a: int, b: int = 1) -> int:
    return a + b


@tool(effect="read", timeout_s=5)
async def fetch(url: str, ctx: Context) -> bytes:
    return url.encode() + ctx.session.encode()


class Shop:
    @tool(effect="keyed", retry=2)
    def refund(self, order: int) -> str:
        return str(order)


def check_function() -> None:
    assert_type(add(1), int)
    assert_type(add(1, b=2), int)
    assert_type(add.parameters, dict[str, Any])
    add("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    add(1, c=2)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


async def check_coroutine(ctx: Context) -> None:
    started: Coroutine[Any, Any, bytes] = fetch("u", ctx)
    assert_type(await started, bytes)
    assert_type(await fetch("u", ctx), bytes)


def check_method(shop: Shop) -> None:
    assert_type(shop.refund(7), str)
    assert_type(Shop.refund(shop, 7), str)
    bound: Tool[[int], str] = shop.refund
    bound(7)
    shop.refund("7")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def check_options() -> None:
    tool(effect="write")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
