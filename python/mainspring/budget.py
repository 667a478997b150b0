"""What a session or a tenant may spend.

Invariant: a `Budget` never changes once made, and everything wrong with it is found while it is
made. The engine keeps the accounts; this is only what is asked of it and what it tells.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mainspring.errors import AgentError

__all__ = ["Budget", "BudgetReport", "Spent", "usd"]

Period = Literal["ever", "day", "month"]
"""After which time a tenant's budget is there again in full: never, with every day or every month,
in UTC."""

_NANOS = 1_000_000_000
_COUNT_MAX = 2**53
_USD_MAX = 1e9
_SECONDS_MAX = 1e9


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What may be spent; what is None is not bounded.

    Every attempt at a model call reserves what it may use before it is made, and settles what it
    did use after it. A call that does not fit is not made: it waits while the calls that are under
    way could still leave enough, and then fails with `budget_exhausted`. So a budget is exceeded by
    no more than what one call writes beyond what was expected of it, however many sessions share
    it; by nothing where every model's answers have a bound (`max_tokens` in its `params`).

    Args:
        usd: US dollars; 0: only models that cost nothing. Every model must have a price.
        tokens: Tokens read and written.
        calls: Model calls; every attempt is one.
        seconds: Wall time of the session's turns, while a process runs them and waits for no
            person. Not for tenants.
        soft: Share of the budget, above 0, at most 1, from which on only the cheapest model of a
            route is asked; None: no such limit.
        per: When a tenant's budget is there again in full: `ever` (never), `day` or `month`, UTC.

    Raises:
        AgentError: `budget_invalid`, when a bound is out of range or there is none.

    Example:
        >>> from mainspring import Budget
        >>> Budget(usd=0.20, calls=50).calls
        50
    """

    usd: float | None = None
    tokens: int | None = None
    calls: int | None = None
    seconds: float | None = None
    soft: float | None = None
    per: Period = "ever"

    def __post_init__(self) -> None:
        """Checks every bound."""
        _check_number("usd", self.usd, zero=True, high=_USD_MAX)
        _check_count("tokens", self.tokens)
        _check_count("calls", self.calls)
        _check_number("seconds", self.seconds, zero=False, high=_SECONDS_MAX)
        _check_number("soft", self.soft, zero=False, high=1.0)
        if self.per not in ("ever", "day", "month"):
            raise AgentError(
                "budget_invalid", f'Budget.per is "{self.per}", allowed are ever, day and month'
            )
        if all(each is None for each in (self.usd, self.tokens, self.calls, self.seconds)):
            raise AgentError(
                "budget_invalid", "a Budget bounds nothing, give usd, tokens, calls or seconds"
            )

    def spec(self) -> dict[str, Any]:
        """The budget as the engine takes it: plain data, money in billionths of a dollar."""
        bounds: dict[str, Any] = {
            "usd_nanos": None if self.usd is None else round(self.usd * _NANOS),
            "tokens": self.tokens,
            "calls": self.calls,
            "ms": None if self.seconds is None else max(1, round(self.seconds * 1000)),
            "soft": self.soft,
            "per": None if self.per == "ever" else self.per,
        }
        return {name: value for name, value in bounds.items() if value is not None}


def usd(amount: float) -> Budget:
    """A budget of so many US dollars: `usd(0.20)` is `Budget(usd=0.20)`.

    Args:
        amount: US dollars, 0 to 1,000,000,000.

    Raises:
        AgentError: `budget_invalid`, when the amount is out of range.
    """
    return Budget(usd=amount)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """Something that was spent, or is reserved.

    Args:
        usd: US dollars.
        tokens: Tokens read and written.
        calls: Model calls.
    """

    usd: float = 0.0
    tokens: int = 0
    calls: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetReport:
    """How the budget of a tenant stands.

    Args:
        tenant: The tenant.
        limit: What may be spent in this period.
        spent: What is spent in this period, by all processes of the store.
        reserved: What the calls under way in this process are expected to use.
        calls_under_way: How many those are.
        calls_waiting: Calls that wait for others to settle.
        low: Whether the soft limit is passed.
    """

    tenant: str
    limit: Budget
    spent: Spent
    reserved: Spent
    calls_under_way: int
    calls_waiting: int
    low: bool


def read_budget(told: Mapping[str, Any]) -> Budget:
    """Makes a budget of the engine's plain data."""
    nanos, ms = told.get("usd_nanos"), told.get("ms")
    return Budget(
        usd=None if nanos is None else nanos / _NANOS,
        tokens=told.get("tokens"),
        calls=told.get("calls"),
        seconds=None if ms is None else ms / 1000,
        soft=told.get("soft"),
        per=told.get("per", "ever"),
    )


def read_spent(told: Mapping[str, Any]) -> Spent:
    """Makes an amount of the engine's plain data."""
    return Spent(
        usd=told.get("usd_nanos", 0) / _NANOS,
        tokens=told.get("tokens", 0),
        calls=told.get("calls", 0),
    )


def read_budget_report(tenant: str, told: str) -> BudgetReport | None:
    """Makes a report of the engine's text; None if the tenant has no budget."""
    report = json.loads(told)
    if report is None:
        return None
    return BudgetReport(
        tenant=tenant,
        limit=read_budget(report["budget"]),
        spent=read_spent(report["spent"]),
        reserved=read_spent(report["reserved"]),
        calls_under_way=report["calls_under_way"],
        calls_waiting=report["calls_waiting"],
        low=report["low"],
    )


def payment(tenant: str | None, budget: Budget | None) -> bytes | None:
    """What is to change about who pays for a session, as the engine takes it; None: nothing."""
    if tenant is not None and not isinstance(tenant, str):
        raise TypeError(f"tenant is text, not {type(tenant).__name__}")
    if budget is not None and not isinstance(budget, Budget):
        raise TypeError(f"budget is a Budget, not {type(budget).__name__}")
    if tenant is None and budget is None:
        return None
    if budget is not None and budget.per != "ever":
        raise AgentError(
            "budget_invalid",
            f'the budget of a session has per="{budget.per}", only that of a tenant may',
        )
    told: dict[str, Any] = {}
    if tenant is not None:
        told["tenant"] = tenant
    if budget is not None:
        told["budget"] = budget.spec()
    return json.dumps(told, ensure_ascii=False).encode()


def tenant_budgets(budgets: Mapping[str, Budget] | None) -> bytes | None:
    """What tenants may spend, as the engine takes it; None: nothing is bounded."""
    if not budgets:
        return None
    given: dict[Any, Any] = dict(budgets)
    for tenant, budget in given.items():
        if not isinstance(tenant, str) or not isinstance(budget, Budget):
            raise TypeError("budgets maps names of tenants to Budgets")
        if budget.seconds is not None:
            raise AgentError(
                "budget_invalid",
                f'the budget of tenant "{tenant}" has seconds, only that of a session may',
            )
    specs = {tenant: budget.spec() for tenant, budget in budgets.items()}
    return json.dumps(specs, ensure_ascii=False).encode()


def _check_number(name: str, value: object, *, zero: bool, high: float) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"Budget.{name} is a number, not {type(value).__name__}")
    enough = value >= 0 if zero else value > 0
    if not (math.isfinite(value) and enough and value <= high):
        allowed = "0 or more" if zero else "above 0"
        raise AgentError(
            "budget_invalid", f"Budget.{name} is {value}, must be {allowed}, at most {high:,.0f}"
        )


def _check_count(name: str, value: object) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"Budget.{name} is an int, not {type(value).__name__}")
    if not 1 <= value <= _COUNT_MAX:
        raise AgentError("budget_invalid", f"Budget.{name} is {value}, must be 1 to {_COUNT_MAX}")
