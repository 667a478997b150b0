"""What models are sent: the same beginning from call to call, deferred tools, and less of a
conversation that outgrows its model."""

import asyncio
import itertools
import json
from dataclasses import replace
from typing import Any

import pytest

from mainspring import Agent, AgentError, Compaction, Engine, Mcp, Report, Tool, tool
from mainspring.cli._totals import total
from mainspring.cli._trail import Trail
from mainspring.events import (
    CacheBust,
    ContextCompacted,
    Event,
    ModelCallFinished,
    ToolCallFailed,
    ToolCallFinished,
    ToolCallStarted,
)
from mainspring.testing import Answer, Request, ScriptedModel, Step, Usage, call, calls, fail, say

TURNS = 50
SERVICES = [f"service{number}" for number in range(40)]
VERBS = ["create", "delete", "update", "list", "get"]
OBJECTS = ["issue", "file", "message", "payment", "event"]


def named(name: str, text: str, *, deferred: bool | None = None) -> Tool[[str], str]:
    def run(item: str) -> str:
        return f"{name} of {item}"

    return Tool(run, name=name, description=text, effect="read", deferred=deferred)


def catalogue() -> list[Tool[[str], str]]:
    return [
        named(f"{service}_{verb}_{thing}", f"Can {verb} one {thing} of {service}.")
        for service in SERVICES
        for verb in VERBS
        for thing in OBJECTS
    ]


@tool(effect="read", deferred=False)
def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


def sent_beginning(request: Request) -> tuple[bytes, list[str]]:
    """The tools and what else comes beside the messages, and the messages, each as its bytes."""
    messages = [json.dumps(each) for each in request.body["messages"]]
    rest = {key: value for key, value in request.body.items() if key != "messages"}
    return json.dumps(rest).encode(), messages


def test_fifty_turns_begin_with_the_same_bytes_although_tools_are_added_late() -> None:
    async def main() -> list[Request]:
        def script(request: Request) -> Answer:
            asked = json.dumps(request.body["messages"][-1])
            if "turn" in asked and "0" in asked:
                return calls(call("tool_search", query="late create issue"))
            if '\\"tools\\"' in asked:
                found = json.loads(request.body["messages"][-1]["content"])["tools"][0]["name"]
                return calls(call("tool_call", name=found, arguments={"item": "x"}))
            return say("so it is")

        with ScriptedModel(script) as model:
            early = [add, named("early_list_file", "Lists files.", deferred=True)]
            agent = Agent("a", instructions="Be brief.", model=model.model(), tools=early)
            session = None
            async with Engine("memory:") as engine:
                for turn in range(TURNS):
                    if turn == TURNS // 2:
                        late = named("late_create_issue", "Creates an issue.", deferred=True)
                        agent = agent.replace(tools=[*early, late])
                    run = await engine.start(agent, f"turn {turn}", session=session)
                    await run.result()
                    session = run.session
                assert session is not None
                report = await engine.report(session)
            assert report.cache_busts == 0
            return list(model.requests)

    requests = asyncio.run(main())
    names = [each["function"]["name"] for each in requests[0].body["tools"]]
    assert names == ["add", "tool_search", "tool_call"]
    assert len(requests) > TURNS
    late_calls = [each for each in requests if "late_create_issue of x" in json.dumps(each.body)]
    assert late_calls, "the late tool was found and called"
    for before, after in itertools.pairwise(requests):
        (rest, messages), (rest_after, messages_after) = map(sent_beginning, (before, after))
        assert rest == rest_after
        assert messages_after[: len(messages)] == messages


def run_one(script: Any, **options: Any) -> tuple[str, list[Event], list[Request]]:
    async def main() -> tuple[str, list[Event], list[Request]]:
        with ScriptedModel(script) as model:
            agent = Agent("a", model=model.model(), **options)
            async with Engine("memory:") as engine:
                run = await engine.start(agent, "go")
                text = await run.result()
                replay = await engine.replay(run.session)
                assert replay.identical, replay.divergence
                return text, await engine.log(run.session), list(model.requests)

    return asyncio.run(main())


def test_a_thousand_tools_are_found_and_called_and_the_prompt_stays_small() -> None:
    steps = [
        calls(call("tool_search", query="make an issue in service17")),
        calls(call("tool_call", name="service17_create_issue", arguments={"item": "bug"})),
        say("done"),
    ]
    tools = [add, *catalogue()]
    assert len(tools) == 1_001
    text, log, requests = run_one(steps, tools=tools)
    assert text == "done"
    shown = [each["function"]["name"] for each in requests[0].body["tools"]]
    assert shown == ["add", "tool_search", "tool_call"]
    assert len(json.dumps(requests[0].body)) < 2_500
    started = [event.name for event in log if isinstance(event, ToolCallStarted)]
    assert started == ["tool_search", "service17_create_issue"]
    found, made = [event.text for event in log if isinstance(event, ToolCallFinished)]
    assert "service17_create_issue" in [each["name"] for each in json.loads(found)["tools"]]
    assert made == "service17_create_issue of bug"


def test_a_deferred_tool_may_be_called_by_its_own_name_too() -> None:
    tools = [add, named("late", "Comes late.", deferred=True)]
    text, log, _ = run_one([calls(call("late", item="x")), say("done")], tools=tools)
    assert text == "done"
    assert [event.name for event in log if isinstance(event, ToolCallStarted)] == ["late"]


def test_an_unknown_tool_is_answered_with_how_to_find_one() -> None:
    tools = [add, named("late", "Comes late.", deferred=True)]
    steps = [calls(call("tool_call", name="latte", arguments={})), say("done")]
    _, log, _ = run_one(steps, tools=tools)
    (failed,) = [event for event in log if isinstance(event, ToolCallFailed)]
    assert failed.error.code == "tool_unknown"
    assert 'there is no tool "latte"; use tool_search to find one' in failed.error.message


def test_arguments_of_a_deferred_tool_are_held_to_its_schema() -> None:
    tools = [add, named("late", "Comes late.", deferred=True)]
    steps = [calls(call("tool_call", name="late", arguments={"item": 7})), say("done")]
    _, log, _ = run_one(steps, tools=tools)
    (failed,) = [event for event in log if isinstance(event, ToolCallFailed)]
    assert failed.error.code == "tool_arguments_invalid"
    assert 'tool "late"' in failed.error.message


def test_tools_are_deferred_from_the_65th_on_unless_they_say_otherwise() -> None:
    tools = catalogue()
    spec = json.loads(Agent("a", model="openai:m", tools=tools[:64]).spec())
    assert "deferred" not in spec
    spec = json.loads(Agent("a", model="openai:m", tools=[*tools[:64], add]).spec())
    assert (spec["deferred"], spec["tools"][0]["name"]) == (64, "add")


def test_a_tool_that_stands_for_others_cannot_be_the_users_own() -> None:
    tools = [named("tool_search", "Mine."), named("late", "Comes late.", deferred=True)]
    with pytest.raises(AgentError, match='has one named "tool_search"'):
        Agent("a", model="openai:m", tools=tools).spec()
    assert Agent("a", model="openai:m", tools=tools[:1]).spec()


def shown_of(log: list[Event]) -> str:
    trail = Trail(turns=True)
    lines = [each for event in log for each in trail.feed(event)]
    return "\n".join(each.plain for each in lines)


def test_a_call_that_is_too_long_is_made_again_with_less() -> None:
    too_long = fail(400, "maximum context length is 100 tokens", code="context_length_exceeded")
    words = "a long story. " * 2_000

    async def main() -> tuple[list[Event], list[Request]]:
        def script(request: Request) -> Step:
            if len(json.dumps(request.body)) > len(words):
                return too_long
            return say("shorter" if "and now?" in json.dumps(request.body) else words)

        with ScriptedModel(script) as model:
            agent = Agent("a", model=model.model(), compaction=Compaction(summarise=False))
            async with Engine("memory:") as engine:
                run = await engine.start(agent, "tell me a story")
                await run.result()
                again = await engine.start(agent, "and now?", session=run.session)
                assert await again.result() == "shorter"
                report = await engine.report(run.session)
                assert report.compactions == 1
                replay = await engine.replay(run.session)
                assert replay.identical, replay.divergence
                return await engine.log(run.session), list(model.requests)

    log, requests = asyncio.run(main())
    (compacted,) = [event for event in log if isinstance(event, ContextCompacted)]
    assert (compacted.method, compacted.reason) == ("drop", "overflow")
    sizes = [len(json.dumps(each.body)) for each in requests]
    assert sizes[1] > len(words)
    assert sizes[2] < 1_000
    text = json.dumps(requests[2].body["messages"])
    assert "tell me a story" in text
    assert "and now?" in text


def test_the_oldest_messages_are_summarised_before_the_window_is_full() -> None:
    words = "the quick brown fox. " * 60

    def script(request: Request) -> Answer:
        if "You shorten" in json.dumps(request.messages[0]):
            assert not request.tools
            return say("They spoke of foxes.", usage=Usage(input_tokens=700, output_tokens=7))
        return say(words)

    async def main() -> tuple[Report, list[Event], list[Request]]:
        with ScriptedModel(script) as model:
            small = replace(model.model(), context_tokens=2_500)
            agent = Agent("a", model=small, tools=[add])
            session = None
            async with Engine("memory:") as engine:
                for turn in range(12):
                    run = await engine.start(agent, f"turn {turn}", session=session)
                    assert await run.result() == words
                    session = run.session
                assert session is not None
                replayed = await engine.replay(session)
                assert replayed.identical, replayed.divergence
                log = await engine.log(session)
                return await engine.report(session), log, list(model.requests)

    report, log, requests = asyncio.run(main())
    compacted = [event for event in log if isinstance(event, ContextCompacted)]
    assert {event.method for event in compacted} == {"summarise"}
    assert 1 < len(compacted) < 6
    assert report.compactions == len(compacted)
    assert all(len(json.dumps(each.body)) < 10_000 for each in requests)
    first = requests[-1].messages[0]["content"]
    assert first[0]["text"] == "turn 0"
    assert first[1]["text"].endswith("They spoke of foxes.")
    shown = shown_of(log)
    assert "oldest messages summarised: about " in shown
    assert "summary, 700 in, 7 out: They spoke of foxes." in shown
    sums = total(log)
    assert (sums.usage.input_tokens, sums.usage.output_tokens) == (
        report.input_tokens,
        report.output_tokens,
    )


def test_a_provider_that_forgets_its_cache_is_reported() -> None:
    async def main() -> tuple[Report, list[Event]]:
        cached = [0, 9_000, 100]
        usages = [Usage(input_tokens=10_000, output_tokens=1, cached_tokens=n) for n in cached]
        with ScriptedModel([say("so", usage=usage) for usage in usages]) as model:
            agent = Agent("a", model=model.model())
            session = None
            async with Engine("memory:") as engine:
                for turn in range(3):
                    run = await engine.start(agent, f"turn {turn}", session=session)
                    await run.result()
                    session = run.session
                assert session is not None
                return await engine.report(session), await engine.log(session)

    report, log = asyncio.run(main())
    notes = [event.notes for event in log if isinstance(event, ModelCallFinished)]
    assert [each.cache_bust is not None for each in notes] == [False, False, True]
    assert notes[2].cache_bust == CacheBust(reason="not_cached", lost_tokens=9_900)
    assert (report.cache_busts, report.cache_bust_tokens) == (1, 9_900)
    assert "the provider's cache was not used, 9900 tokens read anew" in shown_of(log)


@pytest.mark.parametrize(
    "values", [{"target_percent": 9}, {"target_percent": 91}, {"result_bytes": -1}]
)
def test_a_compaction_out_of_range_is_refused(values: dict[str, int]) -> None:
    with pytest.raises(AgentError, match="must be"):
        Compaction(**values)  # type: ignore[arg-type]


def test_what_is_no_compaction_or_no_choice_is_refused() -> None:
    with pytest.raises(TypeError, match="is Compaction, not dict"):
        Agent("a", model="openai:m", compaction={})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="is a bool, not str"):
        Mcp("uvx x", deferred="yes")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="is a bool, not int"):
        Compaction(summarise=1)  # type: ignore[arg-type]
