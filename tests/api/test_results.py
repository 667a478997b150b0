"""Typed results: what a final answer becomes, how a wrong one is mended, and what cannot be."""

import asyncio
from dataclasses import dataclass
from typing import Any, TypedDict

import msgspec
import pytest
from pydantic import BaseModel, Field

from mainspring import Agent, Engine, Limits, Route, SessionFailed
from mainspring.testing import ScriptedModel, Step, say, say_json


@dataclass
class Receipt:
    order: int
    lines: list[str]


class Person(BaseModel):
    name: str
    age: int = Field(ge=0)


class Point(TypedDict):
    x: int
    y: int


class Money(msgspec.Struct):
    amount: float
    currency: str = "EUR"


GOOD: list[tuple[Any, object, object]] = [
    (Receipt, {"order": 7, "lines": ["a"]}, Receipt(7, ["a"])),
    (Person, {"name": "Ada", "age": 36}, Person(name="Ada", age=36)),
    (Point, {"x": 1, "y": 2}, {"x": 1, "y": 2}),
    (Money, {"amount": 2.5}, Money(2.5)),
    (int, {"value": 3}, 3),
    (list[str], {"value": ["a", "b"]}, ["a", "b"]),
    (list[Person], {"value": [{"name": "Ada", "age": 1}]}, [Person(name="Ada", age=1)]),
    (int | None, {"value": None}, None),
]


def run(script: list[Step], output: Any, *, limits: Limits | None = None) -> Any:
    with ScriptedModel(script) as model:
        return Agent("a", model=model.model(), output=output, limits=limits).run_sync("go")


@pytest.mark.parametrize(("output", "answer", "expected"), GOOD)
def test_an_answer_has_the_type_that_was_asked_for(
    output: Any, answer: object, expected: object
) -> None:
    result = run([say_json(answer)], output)
    assert result == expected
    assert type(result) is type(expected)


@pytest.mark.parametrize(("output", "answer", "expected"), GOOD)
def test_a_constrained_answer_has_it_too(output: Any, answer: object, expected: object) -> None:
    with ScriptedModel([say_json(answer)]) as model:
        agent = Agent("a", model=model.model(tool_mode="json_schema"), output=output)
        assert agent.run_sync("go") == expected


@pytest.mark.parametrize(("output", "answer", "expected"), GOOD)
def test_a_wrong_first_answer_is_mended(output: Any, answer: object, expected: object) -> None:
    with ScriptedModel([say('{"nothing": true}'), say_json(answer)]) as model:
        assert Agent("a", model=model.model(), output=output).run_sync("go") == expected
        *_, wrong, told = model.requests[-1].messages
    assert wrong == {"role": "assistant", "content": '{"nothing": true}'}
    assert told["role"] == "user"
    assert told["content"].startswith(
        "Your answer was rejected: it does not fit the output schema: "
    )


def test_the_model_reads_what_is_wrong() -> None:
    with ScriptedModel([say("seven"), say_json({"value": 7})]) as model:
        assert Agent("a", model=model.model(), output=int).run_sync("go") == 7
        told = model.requests[-1].messages[-1]["content"]
    assert told == (
        "Your answer was rejected: the answer is not a JSON value: expected value at line 1 "
        "column 1. Answer again."
    )


def test_an_answer_that_is_never_mended_fails_the_turn() -> None:
    with ScriptedModel(lambda _: say_json({"value": "x"})) as model:
        agent = Agent("a", model=model.model(), output=int, limits=Limits(repairs_max=1))
        with pytest.raises(SessionFailed) as caught:
            agent.run_sync("go")
        assert model.request_count == 2
    assert caught.value.code == "answer_rejected"
    assert '"x" is not of type "integer"' in caught.value.message


def test_an_answer_that_no_check_accepts_fails_the_turn() -> None:
    with ScriptedModel(lambda _: say("no")) as model:
        route = Route(model.model(), verify=lambda answer: f"{answer.text} will not do")
        agent = Agent("a", model=route, limits=Limits(repairs_max=1))
        with pytest.raises(SessionFailed) as caught:
            agent.run_sync("go")
        assert model.request_count == 2
    assert caught.value.code == "answer_rejected"
    assert "no will not do" in caught.value.message


def test_a_rule_that_the_schema_cannot_say_is_checked_at_the_end() -> None:
    class Even(BaseModel):
        number: int

        def model_post_init(self, context: object, /) -> None:
            if self.number % 2:
                raise ValueError("odd")

    with pytest.raises(SessionFailed) as caught:
        run([say_json({"number": 3})], Even)
    assert caught.value.code == "output_invalid"
    assert caught.value.message.startswith("the answer does not fit type Even: ")


def test_a_result_can_be_read_as_another_type() -> None:
    async def main() -> None:
        with ScriptedModel([say_json({"name": "Ada", "age": 36})]) as model:
            async with Engine("memory:") as engine:
                started = await engine.start(Agent("a", model=model.model()), "who?")
                assert await started.result() == '{"name": "Ada", "age": 36}'
                assert await started.result(Person) == Person(name="Ada", age=36)
                assert await started.result(dict[str, Any]) == {"name": "Ada", "age": 36}
                with pytest.raises(SessionFailed) as caught:
                    await started.result(Receipt)
                assert caught.value.code == "output_invalid"

    asyncio.run(main())


@pytest.mark.parametrize("text", ["", " \n"])
def test_an_empty_answer_is_asked_for_again(text: str) -> None:
    with ScriptedModel([say(text), say("here")]) as model:
        assert Agent("a", model=model.model()).run_sync("go") == "here"
        told = model.requests[-1].messages[-1]["content"]
    assert told == ("Your answer was rejected: it has neither text nor tool calls. Answer again.")


def test_an_answer_that_was_cut_off_is_asked_for_again() -> None:
    script: list[Step] = [say("half of", finish_reason="length"), say("the whole")]
    assert run(script, str) == "the whole"
