"""The step-level benchmark's tasks: agent steps whose answers a function can check.

Owns the set: five classes of steps, made from templates and a seed, each with its one right answer.
Invariant: the same seed gives the same steps, and no step needs knowledge that its prompt lacks.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from mainspring import Agent, Limits, Model, Route, tool

SEED = 20261125
STEPS_PER_CLASS = 48

Kind = Literal["tool_args", "extract", "judge", "answer", "lookup"]


@dataclass(frozen=True, slots=True)
class Step:
    """One step: what the user says, and what is right.

    Args:
        id: Class and position.
        kind: The step's class.
        prompt: What the user says.
        expected: A tool's name with its arguments, or the fields of the answer.
    """

    id: str
    kind: Kind
    prompt: str
    expected: dict[str, Any]


class Invoice(TypedDict):
    """What is read from an invoice."""

    vendor: str
    number: str
    date: str
    total: float
    currency: str


class Label(TypedDict):
    """The class of a ticket."""

    label: Literal["billing", "bug", "feature", "account", "shipping", "other"]


class Number(TypedDict):
    """A number with how it was come by."""

    working: str
    answer: int


class Fact(TypedDict):
    """One value out of a text."""

    answer: str


@tool(effect="read")
def get_weather(city: str, unit: Literal["celsius", "fahrenheit"]) -> str:
    """The weather in a city now."""
    return f"{city}: 20 {unit}"


@tool(effect="keyed")
def create_event(title: str, date: str, start: str, minutes: int) -> str:
    """Puts an event into the calendar. date is YYYY-MM-DD, start is HH:MM in 24 hours."""
    return f"{title} {date} {start} {minutes}"


@tool(effect="keyed")
def send_message(to: str, text: str) -> str:
    """Sends a text to a person by first name."""
    return f"{to}: {text}"


@tool(effect="read")
def search_orders(customer: str, status: Literal["open", "shipped", "returned"], limit: int) -> str:
    """Lists a customer's orders of a status, at most `limit`."""
    return f"{customer} {status} {limit}"


TOOLS = (get_weather, create_event, send_message, search_orders)

_INSTRUCTIONS: dict[Kind, str] = {
    "tool_args": "You do what the user asks by calling exactly one tool.",
    "extract": "You read invoices. date is YYYY-MM-DD, currency is its three-letter code.",
    "judge": "You sort support tickets: billing (money, invoices, refunds), bug (something is "
    "broken), feature (a wish), account (log-in, password, profile), shipping (delivery), other.",
    "answer": "You solve word problems. First write the working, then the number.",
    "lookup": "You answer questions about a text with one word or one number.",
}
_OUTPUT: dict[Kind, Any] = {
    "tool_args": str,
    "extract": Invoice,
    "judge": Label,
    "answer": Number,
    "lookup": Fact,
}


def agent_of(kind: Kind, route: Model | Route) -> Agent[Any]:
    """The agent that takes the steps of a class: one question, one answer."""
    return Agent(
        f"steps-{kind}",
        instructions=_INSTRUCTIONS[kind],
        model=route,
        tools=TOOLS if kind == "tool_args" else (),
        output=_OUTPUT[kind],
        tool_choice="required" if kind == "tool_args" else "auto",
        limits=Limits(steps_max=4),
    )


def steps(*, count: int = STEPS_PER_CLASS, seed: int = SEED) -> list[Step]:
    """The set.

    Args:
        count: Steps of each class.
        seed: What the templates are filled from.
    """
    made: list[Step] = []
    for kind, make in _MAKERS.items():
        rng = random.Random(f"{seed} {kind}")
        for idx in range(count):
            prompt, expected = make(rng, idx)
            made.append(Step(f"{kind}-{idx:03}", kind, prompt, expected))
    return made


def is_right(step: Step, answer: str, calls: list[tuple[str, dict[str, Any]]]) -> bool:
    """Whether a model's answer to a step is the right one.

    Args:
        step: The step.
        answer: The text, JSON for all classes but `tool_args`.
        calls: The tools it called, with their arguments.
    """
    if step.kind == "tool_args":
        if len(calls) != 1:
            return False
        name, arguments = calls[0]
        return name == step.expected["tool"] and _same(arguments, step.expected["arguments"])
    try:
        value = json.loads(answer)
    except ValueError:
        return False
    if not isinstance(value, dict):
        return False
    return all(_same(value.get(key), right) for key, right in step.expected.items())


def _same(seen: Any, right: Any) -> bool:
    if isinstance(right, dict):
        return (
            isinstance(seen, dict)
            and seen.keys() == right.keys()
            and all(_same(seen[key], right[key]) for key in right)
        )
    if isinstance(right, str):
        return isinstance(seen, str) and _plain(seen) == _plain(right)
    if isinstance(right, (int, float)) and isinstance(seen, (int, float)):
        return abs(float(seen) - float(right)) < 0.005
    return bool(seen == right)


def _plain(text: str) -> str:
    return " ".join(text.lower().strip(" .!\"'").split())


_PEOPLE = ("Ada", "Boris", "Chen", "Dana", "Emeka", "Fatima", "Goran", "Hana", "Ivo", "Jun")
_CITIES = ("Oslo", "Lima", "Nairobi", "Kyoto", "Porto", "Quito", "Riga", "Tunis", "Perth", "Cork")
_MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September")
_FIRMS = ("Nordwind Paper", "Blue Harbor Ltd", "Acme Tools", "Solis Energy", "Kestrel Print")
_THINGS = ("pens", "chairs", "books", "lamps", "tickets", "apples", "boxes", "cables")

_Made = tuple[str, dict[str, Any]]


def _call(tool_name: str, **arguments: Any) -> dict[str, Any]:
    return {"tool": tool_name, "arguments": arguments}


def _tool_args(rng: random.Random, idx: int) -> _Made:
    who, city = rng.choice(_PEOPLE), rng.choice(_CITIES)
    if idx % 4 == 0:
        unit = rng.choice(("celsius", "fahrenheit"))
        asks = (
            f"How warm is it in {city} right now, in {unit}?",
            f"I fly to {city} today. Give me the weather there in degrees {unit}.",
            f"Weather for {city}, {unit} please.",
        )
        return rng.choice(asks), _call("get_weather", city=city, unit=unit)
    if idx % 4 == 1:
        day, month = rng.randrange(1, 29), rng.randrange(1, 10)
        hour, minutes = rng.randrange(8, 18), rng.choice((15, 30, 45, 60, 90))
        title = rng.choice(("Budget review", "Dentist", "Planning call", "Site visit"))
        date = f"2027-{month:02}-{day:02}"
        shown = f"{day} {_MONTHS[month - 1]} 2027" if rng.random() < 0.6 else date
        clock = f"{hour % 12 or 12} {'pm' if hour >= 12 else 'am'}"
        length = "an hour and a half" if minutes == 90 else f"{minutes} minutes"
        ask = f'Put "{title}" into my calendar on {shown} at {clock}, for {length}.'
        event = _call(
            "create_event", title=title, date=date, start=f"{hour:02}:00", minutes=minutes
        )
        return ask, event
    if idx % 4 == 2:
        text = rng.choice(
            (
                "I am ten minutes late",
                "The keys are with the porter",
                "Lunch is at noon",
                "Please bring the red folder",
            )
        )
        ask = rng.choice((f'Tell {who}: "{text}"', f'Send {who} this message: "{text}"'))
        return ask, _call("send_message", to=who, text=text)
    status, limit = rng.choice(("open", "shipped", "returned")), rng.randrange(2, 12)
    asks = (
        f"Show me up to {limit} {status} orders of {who}.",
        f"Which orders of {who} are {status}? {limit} at most.",
    )
    return rng.choice(asks), _call("search_orders", customer=who, status=status, limit=limit)


def _extract(rng: random.Random, idx: int) -> _Made:
    vendor, number = rng.choice(_FIRMS), f"{rng.choice('ABCD')}-{rng.randrange(1000, 9999)}"
    day, month = rng.randrange(1, 29), rng.randrange(1, 10)
    net, currency = rng.randrange(4000, 90000) / 100, rng.choice(("EUR", "USD", "GBP"))
    shipping = rng.randrange(300, 2500) / 100
    total = round(net + shipping, 2)
    sign = {"EUR": "\u20ac", "USD": "$", "GBP": "\u00a3"}[currency]
    date = f"2026-{month:02}-{day:02}"
    forms = (
        f"INVOICE {number}\nFrom: {vendor}\nDated {day} {_MONTHS[month - 1]} 2026\n"
        f"Goods {net:.2f}\nShipping {shipping:.2f}\nTotal due {total:.2f} {currency}",
        f"{vendor} thanks you for your order. Invoice no. {number} of {date}: goods "
        f"{sign}{net:.2f}, delivery {sign}{shipping:.2f}, to pay {sign}{total:.2f}.",
        f"Reminder: invoice {number} ({_MONTHS[month - 1]} {day}, 2026) by {vendor} over"
        f" {currency} {total:.2f} is still open. Of it {currency} {shipping:.2f} is for shipping.",
    )
    expected = {
        "vendor": vendor,
        "number": number,
        "date": date,
        "total": total,
        "currency": currency,
    }
    return forms[idx % len(forms)], expected


_TICKETS: tuple[tuple[str, str], ...] = (
    ("I was charged twice for {thing} this month.", "billing"),
    ("My invoice shows the wrong tax number for {firm}.", "billing"),
    ("When do I get my money back for the {thing} I returned?", "billing"),
    ("The export button does nothing when I click it in {month}'s report.", "bug"),
    ("The app crashes each time I open the page of {firm}.", "bug"),
    ("Since the update the chart of {thing} is empty and the console shows error 500.", "bug"),
    ("It would be great if I could sort {thing} by colour.", "feature"),
    ("Please add a dark mode to the page of {firm}.", "feature"),
    ("Could you offer a monthly summary of {thing} by mail?", "feature"),
    ("I forgot my password and the reset mail to {who} does not arrive.", "account"),
    ("Please change the e-mail address of my profile to {who}@example.org.", "account"),
    ("{who} left the team, how do I remove this user?", "account"),
    ("My parcel with the {thing} was due on Monday and is not here.", "shipping"),
    ("The courier left the {thing} at the wrong house in {city}.", "shipping"),
    ("Can you deliver the {thing} to {city} instead?", "shipping"),
    ("Who is the head of your office in {city}?", "other"),
)


def _judge(rng: random.Random, idx: int) -> _Made:
    template, label = _TICKETS[idx % len(_TICKETS)]
    text = template.format(
        thing=rng.choice(_THINGS),
        firm=rng.choice(_FIRMS),
        who=rng.choice(_PEOPLE),
        month=rng.choice(_MONTHS),
        city=rng.choice(_CITIES),
    )
    greeting = rng.choice(("", "Hello, ", "Hi team. ", "Good morning. "))
    return f"Ticket: {greeting}{text}", {"label": label}


def _answer(rng: random.Random, idx: int) -> _Made:
    who, thing = rng.choice(_PEOPLE), rng.choice(_THINGS)
    a, b, c = rng.randrange(3, 20), rng.randrange(2, 13), rng.randrange(2, 9)
    if idx % 4 == 0:
        ask = (
            f"{who} buys {a} {thing} for ${b} each and pays with "
            f"${a * b + c}. How many dollars come back?"
        )
        return ask, {"answer": c}
    if idx % 4 == 1:
        ask = (
            f"{who} has {a * 3} {thing}, gives away a third of them and "
            f"then buys {b}. How many are there now?"
        )
        return ask, {"answer": a * 2 + b}
    if idx % 4 == 2:
        ask = (
            f"A shelf holds {a} {thing}. {who} fills {b} shelves and keeps {c} "
            f"{thing} in hand. How many {thing} are there?"
        )
        return ask, {"answer": a * b + c}
    ask = (
        f"{who} packs {thing} for {b} days, {a} on each day, but {c} of all these "
        f"are broken. How many are whole?"
    )
    return ask, {"answer": a * b - c}


def _lookup(rng: random.Random, idx: int) -> _Made:
    people, cities = rng.sample(_PEOPLE, 4), rng.sample(_CITIES, 4)
    counts = rng.sample(range(11, 99), 4)
    lines = " ".join(
        f"{who} of the office in {city} sold {count} "
        f"{rng.choice(_THINGS)} in {rng.choice(_MONTHS)}."
        for who, city, count in zip(people, cities, counts, strict=True)
    )
    pick = rng.randrange(4)
    if idx % 3 == 0:
        return f"{lines}\nWhich city does {people[pick]} work in?", {"answer": cities[pick]}
    if idx % 3 == 1:
        return f"{lines}\nHow many did the office in {cities[pick]} sell?", {
            "answer": str(counts[pick])
        }
    best = max(range(4), key=lambda at: counts[at])
    return f"{lines}\nWho sold the most?", {"answer": people[best]}


_MAKERS: dict[Kind, Callable[[random.Random, int], _Made]] = {
    "tool_args": _tool_args,
    "extract": _extract,
    "judge": _judge,
    "answer": _answer,
    "lookup": _lookup,
}


def kinds() -> Iterator[Kind]:
    """The classes, in the order of the set."""
    yield from _MAKERS
