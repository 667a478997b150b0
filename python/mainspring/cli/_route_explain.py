"""`mainspring route explain`: why a step went to its model and what came of it.

Invariant: it only reads; everything comes from the session's events. Start reading at `Stories`.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec
import typer

from mainspring.cli._exit import EXIT_CODES
from mainspring.cli._store import JsonOption, StoreOption, find_session, reading, records
from mainspring.cli._text import Line, clean, columns, count, duration, line, one_line
from mainspring.cli._trail import ACTIONS, check_text, tokens
from mainspring.cli._view import console_of
from mainspring.errors import AgentError
from mainspring.events import (
    AnswerRejected,
    AnswerVerified,
    CheckFinished,
    Event,
    ModelCallFailed,
    ModelCallFinished,
    ModelCallStarted,
    RouteDecided,
    RouteDecision,
    decode_event,
)

TEXT_CHARS_MAX = 160
"""Characters of a reason that are shown."""


@dataclass(slots=True)
class Story:
    """What happened in one step.

    Attributes:
        step: Its position in the session.
        model: The model that was asked.
        since: The step at which that model was chosen.
        route: The choice, if one was made for this step.
        step_class: What the step is for; None: not recorded, as of agents with one model.
        failures: The attempts that failed.
        answer: The answer, once there is one.
        checks: What the checks by models found.
        verdict: What came of the answer; None: it was accepted, or there is none.
        verified: Whether the user's function accepted it.
    """

    step: int
    model: str
    since: int
    route: RouteDecided | None = None
    step_class: str | None = None
    failures: list[ModelCallFailed] = field(default_factory=list)
    answer: ModelCallFinished | None = None
    checks: list[CheckFinished] = field(default_factory=list)
    verdict: AnswerRejected | None = None
    verified: bool = False


def stories(events: list[Event]) -> list[Story]:
    """The steps of a session, oldest first."""
    told: dict[int, Story] = {}
    chosen: RouteDecided | None = None
    for event in events:
        if isinstance(event, RouteDecided):
            chosen = event
        elif isinstance(event, ModelCallStarted):
            model, since = (chosen.model, chosen.step) if chosen else ("?", event.step)
            if event.attempt == 1 or event.step not in told:
                told[event.step] = Story(event.step, model, since)
            story = told[event.step]
            story.route = chosen if chosen and chosen.step == event.step else None
            story.step_class = event.step_class
        elif isinstance(event, _OF_STEP) and event.step in told:
            _take(told[event.step], event)
    return [told[step] for step in sorted(told)]


_OF_STEP = (ModelCallFailed, ModelCallFinished, CheckFinished, AnswerRejected, AnswerVerified)


def _take(story: Story, event: Event) -> None:
    if isinstance(event, ModelCallFailed):
        story.failures.append(event)
    elif isinstance(event, ModelCallFinished):
        story.answer = event
    elif isinstance(event, CheckFinished):
        story.checks.append(event)
    elif isinstance(event, AnswerRejected):
        story.verdict = event
    elif isinstance(event, AnswerVerified):
        story.verified = True


def explain(
    session: Annotated[
        str, typer.Argument(metavar="ID", help="The session, the beginning of its id, or last.")
    ],
    step: Annotated[
        int | None,
        typer.Argument(metavar="STEP", min=0, help="Only this step, counted from 0."),
    ] = None,
    as_json: JsonOption = False,
    store: StoreOption = None,
) -> None:
    """Explain which model each step of a session went to, and why.

    For each step: what it is for, what was known of each model, what a switch would have lost and
    gained, what the checks of the answer found and cost, and what came of it.
    """
    with reading(store) as reader:
        info = find_session(reader, session)
        stored = records(reader, info.session)
    events = [decode_event(seq, at_us, text) for seq, at_us, _, text in stored]
    told = stories(events)
    chosen = [each for each in told if step is None or each.step == step]
    if step is not None and not chosen:
        last = f"its last one is {told[-1].step}" if told else "it has none"
        raise AgentError("agent_invalid", f'session "{info.session}" has no step {step}, {last}')
    if as_json:
        print(json.dumps([_as_dict(each) for each in chosen], indent=2))
        return
    console = console_of(sys.stdout)
    print(f"session  {info.session}\nagent    {info.agent}")
    for each in chosen:
        print()
        for shown in _lines(each):
            console.print(shown.styled, soft_wrap=True)


EPILOG = (
    "\b\nExamples:\n"
    "  mainspring route explain last\n"
    "  mainspring route explain last 3\n"
    "  mainspring route explain last --json | jq '.[].route.decision'\n\n" + EXIT_CODES
)
"""What the command's help says last."""


def _lines(story: Story) -> Iterator[Line]:
    purpose = f"  {story.step_class}" if story.step_class else ""
    yield line((f"step {story.step}", "bold"), "  ", (clean(story.model), "cyan"), purpose)
    yield from _route_lines(story)
    for failed in story.failures:
        again = "" if failed.retry_at_us is None else ", tried again"
        yield _part(
            "call", f"attempt {failed.attempt} failed: {_short(failed.error.message)}{again}"
        )
    if story.answer is not None:
        yield from _answer_lines(story, story.answer)
    for check in story.checks:
        yield line("  check    ", *check_text(check, TEXT_CHARS_MAX))
    yield _part("outcome", _outcome(story))


def _route_lines(story: Story) -> Iterator[Line]:
    route = story.route
    if route is None:
        yield _part("route", f"stays with the model that was chosen at step {story.since}")
        return
    yield _part("route", _short(route.reason))
    made = route.decision
    if made is None:
        return
    yield _part("", _circumstances(made))
    for row in columns([_candidate(made, idx) for idx in range(len(made.candidates))]):
        yield _part("", row)
    if made.gate is not None:
        gate = made.gate
        kept = "held" if gate.held else "open"
        yield _part(
            "gate", f"{kept}: a switch gains {_usd(gate.gain_usd)}, loses {_usd(gate.regret_usd)}"
        )


def _circumstances(made: RouteDecision) -> str:
    facts = [f"about {count(made.input_tokens, 'token')} to read"]
    if made.boundary:
        facts.append("no cached prefix to lose")
    if made.budget_usd is not None:
        facts.append(f"{_usd(made.budget_usd)} left")
    facts.append(f"weights {made.weights[:12]}" if made.weights else "nothing learnt")
    facts.append(f"taken with probability {made.propensity:.3f}")
    if made.explored:
        facts.append("to learn about it")
    return ", ".join(facts)


def _candidate(made: RouteDecision, idx: int) -> tuple[str, ...]:
    model = made.candidates[idx]
    right = "right ?" if model.p_ok is None else f"right {model.p_ok:.2f}"
    cost = "price ?" if model.cost_usd is None else _usd(model.cost_usd)
    state = "chosen" if idx == made.tier else ""
    return clean(model.name), right, cost, state if model.excluded is None else model.excluded


def _answer_lines(story: Story, answer: ModelCallFinished) -> Iterator[Line]:
    facts = [
        duration(answer.timing.total_us),
        tokens(answer.usage),
        f"ended {answer.finish_reason}",
    ]
    if answer.cost_usd is not None:
        facts.append(_usd(answer.cost_usd))
    if answer.attempt > 1:
        facts.append(f"attempt {answer.attempt}")
    yield _part("call", ", ".join(facts))
    for problem in answer.problems:
        yield _part("check", f"{clean(problem.check)} refused: {_short(problem.message)}")
    if not answer.problems:
        yield _part("check", "form, tool arguments and schema: nothing found")
    if answer.score is not None:
        yield _part("score", f"right with {answer.score.p_ok:.2f}: {_signals(answer)}")
    if story.verified:
        yield _part("check", "verify passed")


def _signals(answer: ModelCallFinished) -> str:
    """What the answer's text shows, without what is not there."""
    score = answer.score
    signals: dict[str, Any] = score.signals if score else {}
    found = {name: value for name, value in signals.items() if value not in (0, False, None)}
    return ", ".join(
        f"{name} {value:.2f}"
        if isinstance(value, float)
        else f"{name} {value}".removesuffix(" True")
        for name, value in found.items()
    )


def _outcome(story: Story) -> str:
    if story.verdict is not None:
        why = "; ".join(clean(problem.check) for problem in story.verdict.problems)
        action = ACTIONS.get(story.verdict.action, story.verdict.action)
        return f"rejected ({why}), {action}"
    if story.answer is None:
        return "no answer"
    calls = len(story.answer.answer.tool_calls)
    return f"accepted, {count(calls, 'tool call')}" if calls else "accepted, the answer"


def _part(name: str, text: str) -> Line:
    return line(f"  {name.ljust(9)}", text)


def _short(text: str) -> str:
    return one_line(text, TEXT_CHARS_MAX)


def _usd(amount: float) -> str:
    return f"${amount:.6f}"


def _as_dict(story: Story) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        return msgspec.to_builtins(value)

    return {
        "step": story.step,
        "model": story.model,
        "chosen_at": story.since,
        "class": story.step_class,
        "route": plain(story.route),
        "failures": plain(story.failures),
        "answer": plain(story.answer),
        "checks": plain(story.checks),
        "verified": story.verified,
        "rejected": plain(story.verdict),
        "outcome": _outcome(story),
    }
