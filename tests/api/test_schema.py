"""Schemas and decoders made from signatures, and results written as JSON."""

import datetime
import decimal
import enum
import functools
import inspect
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal, NotRequired, TypedDict

import msgspec
import pydantic
import pytest

from mainspring._schema import (
    arguments_decoder,
    decode_output,
    encode_result,
    output_schema,
    read_signature,
)
from mainspring.context import Context
from mainspring.errors import AgentError, SessionFailed, ToolError

if TYPE_CHECKING:
    from fractions import Fraction


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class Item:
    """An item of an order."""

    name: str
    count: int = 1


@dataclass
class Node:
    value: int
    children: list["Node"] = field(default_factory=list)


class Address(TypedDict):
    city: str
    zip: NotRequired[str]


class Point(msgspec.Struct):
    x: float
    y: float = 0.0


class Person(pydantic.BaseModel):
    name: str
    age: int = pydantic.Field(ge=0, description="in years")


class Tree(pydantic.BaseModel):
    value: int
    left: "Tree | None" = None


def properties(fn: Callable[..., Any]) -> dict[str, Any]:
    found: dict[str, Any] = read_signature(fn, name="f").parameters["properties"]
    return found


def place(fn: Callable[..., Any]) -> str:
    return f"{__file__}:{fn.__code__.co_firstlineno}"


def refusal(fn: Callable[..., Any]) -> str:
    with pytest.raises(ToolError) as caught:
        read_signature(fn, name="f")
    assert caught.value.code == "tool_schema_invalid"
    return str(caught.value)


def test_a_signature_becomes_an_object_schema_with_the_words_of_its_docstring() -> None:
    def search(
        query: str,
        kind: Literal["web", "news"] = "web",
        limit: int | None = None,
        *,
        tags: list[str] = [],  # noqa: B006  (a default that the schema shows)
    ) -> str:
        """Search the web.

        Newest results come first.

        Args:
            query: What to look for,
                in plain words.
            kind (str, optional): Where: one of two.
            limit: Most results.

        Returns:
            The text.
        """
        return query + kind + str(limit) + str(tags)

    found = read_signature(search, name="search")

    assert found.description == "Search the web.\n\nNewest results come first."
    assert found.parameters == {
        "type": "object",
        "properties": {
            "query": {"type": "string", "description": "What to look for, in plain words."},
            "kind": {
                "enum": ["news", "web"],
                "description": "Where: one of two.",
                "default": "web",
            },
            "limit": {
                "anyOf": [{"type": "integer"}, {"type": "null"}],
                "description": "Most results.",
                "default": None,
            },
            "tags": {"type": "array", "items": {"type": "string"}, "default": []},
        },
        "required": ["query"],
        "additionalProperties": False,
    }


def test_sphinx_and_numpy_docstrings_are_read_too() -> None:
    def sphinx(a: int, b: str) -> None:
        """Do it.

        :param a: The first,
            and best.
        :param str b: The second.
        :returns: Nothing.
        """

    def numpy(a: int, b: str) -> None:
        """Do it.

        Parameters
        ----------
        a : int
            The first,
            and best.
        b
            The second.

        Returns
        -------
        None
            Nothing.
        """

    for fn in (sphinx, numpy):
        assert read_signature(fn, name="f").description == "Do it."
        assert properties(fn) == {
            "a": {"type": "integer", "description": "The first, and best."},
            "b": {"type": "string", "description": "The second."},
        }


def test_annotated_text_and_bounds_reach_the_schema() -> None:
    def fn(
        a: Annotated[int, "how many"],
        b: Annotated[float, msgspec.Meta(ge=0, description="US dollars")],
        c: Annotated[int, pydantic.Field(gt=1, description="above one")],
    ) -> None:
        """Do it.

        Args:
            a: The docstring gives way.
        """

    assert properties(fn) == {
        "a": {"type": "integer", "description": "how many"},
        "b": {"type": "number", "minimum": 0, "description": "US dollars"},
        "c": {"type": "integer", "exclusiveMinimum": 1, "description": "above one"},
    }


def test_standard_types_have_schemas_and_come_back_as_themselves() -> None:
    def fn(
        when: datetime.datetime,
        day: datetime.date,
        key: uuid.UUID,
        price: decimal.Decimal,
        raw: bytes,
        colour: Colour,
        pair: tuple[int, str],
        names: set[str],
        counts: dict[str, int],
        later: datetime.datetime | None = None,
    ) -> None: ...

    assert properties(fn) == {
        "when": {"type": "string", "format": "date-time"},
        "day": {"type": "string", "format": "date"},
        "key": {"type": "string", "format": "uuid"},
        "price": {"type": "string", "format": "decimal"},
        "raw": {"type": "string", "contentEncoding": "base64"},
        "colour": {"enum": ["blue", "red"]},
        "pair": {
            "type": "array",
            "minItems": 2,
            "maxItems": 2,
            "prefixItems": [{"type": "integer"}, {"type": "string"}],
            "items": False,
        },
        "names": {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
        "counts": {"type": "object", "additionalProperties": {"type": "integer"}},
        "later": {
            "anyOf": [{"type": "string", "format": "date-time"}, {"type": "null"}],
            "default": None,
        },
    }
    decoded = arguments_decoder(fn)(
        b'{"when":"2026-01-02T03:04:05Z","day":"2026-01-02","price":"1.10","raw":"eA==",'
        b'"key":"00000000-0000-0000-0000-000000000007","colour":"red","pair":[1,"x"],'
        b'"names":["a"],"counts":{"a":1}}'
    )
    assert decoded == {
        "when": datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC),
        "day": datetime.date(2026, 1, 2),
        "key": uuid.UUID(int=7),
        "price": decimal.Decimal("1.10"),
        "raw": b"x",
        "colour": Colour.RED,
        "pair": (1, "x"),
        "names": {"a"},
        "counts": {"a": 1},
    }


def test_nested_types_are_inlined_and_decoded() -> None:
    def fn(
        item: Item, to: Address, at: list[Point], who: Person, more: list[Person] | None = None
    ) -> None:
        """Send it.

        Args:
            item: What to send.
        """

    item = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "count": {"type": "integer", "default": 1}},
        "required": ["name"],
        "description": "What to send.",
    }
    person = {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "age": {"type": "integer", "minimum": 0, "description": "in years"},
        },
        "required": ["name", "age"],
    }
    assert properties(fn) == {
        "item": item,
        "to": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "zip": {"type": "string"}},
            "required": ["city"],
        },
        "at": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"x": {"type": "number"}, "y": {"type": "number", "default": 0.0}},
                "required": ["x"],
            },
        },
        "who": person,
        "more": {"anyOf": [{"type": "array", "items": person}, {"type": "null"}], "default": None},
    }
    assert arguments_decoder(fn)(
        b'{"item":{"name":"pen"},"to":{"city":"Ulm"},"at":[{"x":1}],"who":{"name":"A","age":3}}'
    ) == {
        "item": Item("pen"),
        "to": {"city": "Ulm"},
        "at": [Point(1.0)],
        "who": Person(name="A", age=3),
    }


def test_types_that_contain_themselves_keep_a_definition() -> None:
    def fn(node: Node, tree: Tree) -> None: ...

    found = read_signature(fn, name="f")

    assert found.parameters["properties"] == {
        "node": {"$ref": "#/$defs/node.Node"},
        "tree": {"$ref": "#/$defs/tree.Tree"},
    }
    assert found.parameters["$defs"]["node.Node"]["properties"]["children"] == {
        "type": "array",
        "items": {"$ref": "#/$defs/node.Node"},
    }
    assert found.decode(
        b'{"node":{"value":1,"children":[{"value":2}]},"tree":{"value":1,"left":{"value":2}}}'
    ) == {"node": Node(1, [Node(2)]), "tree": Tree(value=1, left=Tree(value=2))}


def test_the_context_is_no_argument() -> None:
    def fn(a: int, ctx: Context, other: Context | None = None) -> None: ...

    found = read_signature(fn, name="f")

    assert found.context_names == ("ctx", "other")
    assert list(found.parameters["properties"]) == ["a"]


def test_annotations_written_as_text_are_resolved_even_those_of_a_closure() -> None:
    class Local(TypedDict):
        a: int

    def fn(item: "Item", local: "Local") -> "Missing":  # type: ignore[name-defined]  # noqa: F821
        return Local(a=1) and item

    assert list(properties(fn)) == ["item", "local"]


def test_fields_of_typed_dicts_keep_the_order_in_which_they_are_written() -> None:
    class Inner(TypedDict):
        y: int
        x: int

    class Outer(TypedDict):
        working: str
        answer: NotRequired[int]
        inner: list[Inner]

    def fn(outer: Outer) -> None: ...

    (outer,) = properties(fn).values()
    assert list(outer["properties"]) == ["working", "answer", "inner"]
    assert outer["required"] == ["working", "inner"]
    assert list(outer["properties"]["inner"]["items"]["properties"]) == ["y", "x"]


def test_methods_partials_and_callable_objects_are_read() -> None:
    class Shop:
        def buy(self, order: int) -> None:
            """Buy it."""

        def __call__(self, order: int) -> None:
            """Call it."""

    def fn(key: str, order: int) -> None:
        """Do it."""

    for callable_, text in (
        (Shop().buy, "Buy it."),
        (Shop(), "Call it."),
        (functools.partial(fn, "secret"), "Do it."),
        (functools.partial(fn, key="secret"), "Do it."),
    ):
        assert properties(callable_) == {"order": {"type": "integer"}}
        assert text in inspect.cleandoc(read_signature(callable_, name="f").description)


def test_a_parameter_without_type_is_refused() -> None:
    def fn(a: int, b) -> None: ...  # type: ignore[no-untyped-def]  # noqa: ANN001

    class Shop:
        def buy(self, order: int) -> None: ...

    assert refusal(fn) == (
        f'tool "f" ({place(fn)}): parameter "b" has no type, every parameter of a tool needs one\n'
        "hint: annotate it, such as b: str"
    )
    assert refusal(Shop.buy) == (
        f'tool "f" ({place(Shop.buy)}): parameter "self" has no type, '
        "every parameter of a tool needs one\n"
        "hint: it looks like a method: pass it bound, such as tools=[obj.method]"
    )


def test_parameters_that_a_model_cannot_fill_are_refused() -> None:
    def many(*args: int) -> None: ...

    def named(**kwargs: int) -> None: ...

    def positional(a: int, /) -> None: ...

    assert refusal(many) == (
        f'tool "f" ({place(many)}): parameter "*args" takes any number of arguments, '
        "a model gives named ones\nhint: take a list, such as args: list[str]"
    )
    assert refusal(named) == (
        f'tool "f" ({place(named)}): parameter "**kwargs" takes any names, '
        "a model gives known ones\nhint: take a dict, such as kwargs: dict[str, str]"
    )
    assert refusal(positional) == (
        f'tool "f" ({place(positional)}): parameter "a" is positional-only, '
        'a model gives arguments by name\nhint: remove the "/" from the signature'
    )


TYPES_HINT = (
    "hint: use builtins, Literal, Enum, dataclass, TypedDict, msgspec.Struct or pydantic models, "
    "and lists, dicts and unions of them"
)


def test_types_without_schema_are_refused() -> None:
    def number(z: complex) -> None: ...

    def union(z: Item | Address) -> None: ...

    def unresolved(z: "Fraction") -> None: ...

    assert refusal(number) == (
        f'tool "f" ({place(number)}): parameter "z" has type complex, which has no JSON schema: '
        f"type <class 'complex'> is not supported\n{TYPES_HINT}"
    )
    text = refusal(union)
    assert text.startswith(f'tool "f" ({place(union)}): parameter "z" has type ')
    assert "Type unions may not contain more than one dict-like type" in text
    assert refusal(unresolved) == (
        f'tool "f" ({place(unresolved)}): parameter "z" has type \'Fraction\', '
        "which cannot be resolved: name 'Fraction' is not defined\n"
        "hint: define or import the type at the top of the module, outside of TYPE_CHECKING"
    )


def test_arguments_that_do_not_fit_are_refused() -> None:
    def fn(a: int, who: Person | None = None) -> None: ...

    decode = read_signature(fn, name="f").decode
    texts = []
    for raw in (b'{"a":"1"}', b"{}", b'{"a":', b'{"a":1,"who":{"name":"A","age":-1}}'):
        with pytest.raises(ToolError) as caught:
            decode(raw)
        assert caught.value.code == "tool_arguments_invalid"
        assert caught.value.tool == "f"
        texts.append(str(caught.value))

    assert texts == [
        'arguments of tool "f" do not fit: Expected `int`, got `str` - at `$.a`',
        'arguments of tool "f" do not fit: Object missing required field `a`',
        'arguments of tool "f" do not fit: Input data was truncated',
        'arguments of tool "f" do not fit: '
        "Input should be greater than or equal to 0 - at `$.who.age`",
    ]


def test_absent_arguments_are_left_to_the_function() -> None:
    def fn(a: int = 3, who: Person | None = None) -> None: ...

    assert arguments_decoder(fn)(b"{}") == {}


def test_results_become_text() -> None:
    values: list[tuple[object, str]] = [
        ("plain", "plain"),
        ("grün", "grün"),
        (None, "null"),
        (3, "3"),
        ({"a": [1, 2.5, True]}, '{"a":[1,2.5,true]}'),
        (Item("pen"), '{"name":"pen","count":1}'),
        (Address(city="Ulm"), '{"city":"Ulm"}'),
        (Point(1.0), '{"x":1.0,"y":0.0}'),
        ([Person(name="A", age=3)], '[{"name":"A","age":3}]'),
        (Colour.RED, '"red"'),
        ({1}, "[1]"),
        (datetime.date(2026, 1, 2), '"2026-01-02"'),
    ]
    for value, text in values:
        assert encode_result(value) == text


def test_text_with_an_enum_type_is_its_value() -> None:
    class Mood(enum.StrEnum):
        GOOD = "good"

    class Old(str, enum.Enum):  # noqa: UP042  (the older form of the same)
        BAD = "bad"

    assert [encode_result(value) for value in (Mood.GOOD, Old.BAD)] == ["good", "bad"]


def test_results_that_json_cannot_hold_are_refused() -> None:
    class Thing:
        pass

    end = (
        ", which cannot be written as JSON: {}\n"
        "hint: return text, or builtins, dataclasses, TypedDicts, msgspec.Structs "
        "or pydantic models"
    )
    cases: list[tuple[object, str, str]] = [
        (b"x", "bytes", "bytes are not text"),
        ([Thing()], "list", "type Thing is not supported"),
        (object(), "object", "type object is not supported"),
        (
            "\ud800",
            "str",
            "'utf-8' codec can't encode character '\\ud800' in position 0: surrogates not allowed",
        ),
    ]
    for value, kind, reason in cases:
        with pytest.raises(ToolError) as caught:
            encode_result(value, tool="f")
        assert caught.value.code == "tool_result_invalid"
        assert str(caught.value) == f'tool "f" returned {kind}' + end.format(reason)


@pytest.mark.parametrize(
    ("hint", "text", "value"),
    [
        (Item, '{"name":"pen"}', Item("pen")),
        (Address, '{"city":"Ulm"}', {"city": "Ulm"}),
        (Point, '{"x":1}', Point(1.0)),
        (Person, '{"name":"A","age":3}', Person(name="A", age=3)),
        (dict[str, int], '{"a":1}', {"a": 1}),
        (Any, '{"value":[1]}', [1]),
        (int, '{"value":3}', 3),
        (list[str], '{"value":["a"]}', ["a"]),
        (list[Person], '{"value":[{"name":"A","age":3}]}', [Person(name="A", age=3)]),
        (Item | None, '{"value":null}', None),
        (Node, '{"value":{"value":1,"children":[{"value":2}]}}', Node(1, [Node(2)])),
    ],
)
def test_typed_results_read_back(hint: Any, text: str, value: object) -> None:
    schema = output_schema(hint)

    assert schema is not None
    assert schema["type"] == "object"
    assert decode_output(hint, text) == value


def test_a_result_that_is_no_object_is_wrapped() -> None:
    assert output_schema(str) is None
    assert decode_output(str, "plain") == "plain"
    assert output_schema(list[int]) == {
        "type": "object",
        "properties": {"value": {"type": "array", "items": {"type": "integer"}}},
        "required": ["value"],
        "additionalProperties": False,
    }


def test_an_answer_of_another_type_is_refused() -> None:
    texts = []
    for hint, text in ((Item, '{"name":1}'), (int, '{"value":"x"}'), (list[Person], "{}")):
        with pytest.raises(SessionFailed) as caught:
            decode_output(hint, text)
        assert caught.value.code == "output_invalid"
        texts.append(str(caught.value))

    assert texts[:2] == [
        "the answer does not fit type Item: Expected `str`, got `int` - at `$.name`",
        "the answer does not fit type int: Expected `int`, got `str` - at `$.value`",
    ]
    assert texts[2].endswith("Object missing required field `value`")


def test_an_output_type_without_schema_is_refused() -> None:
    with pytest.raises(AgentError) as caught:
        output_schema(complex)

    assert str(caught.value) == (
        "output type complex has no JSON schema: type <class 'complex'> is not supported\n"
        + TYPES_HINT
    )
