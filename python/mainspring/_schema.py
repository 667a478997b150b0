"""JSON Schemas and decoders made from Python types, and results written as JSON.

Invariant: a schema and its decoder come from the same annotation, so arguments that fit the schema
decode, or fail with a `ToolError` that says where. `import mainspring` must not load this module:
msgspec is slow to import. Reading starts at `read_signature` (tools) and `output_schema` (typed
results).
"""

import datetime
import functools
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, NotRequired, Required, TypedDict, Union, cast

import msgspec

from mainspring._docstring import docstring_of, parse
from mainspring._inline import inline
from mainspring._pydantic import adapter, first_problems, holds_pydantic
from mainspring.context import Context
from mainspring.errors import AgentError, MainspringError, ToolError, from_failure

_TYPES_HINT = (
    "use builtins, Literal, Enum, dataclass, TypedDict, msgspec.Struct or pydantic models, "
    "and lists, dicts and unions of them"
)


@dataclass(frozen=True, slots=True)
class Signature:
    """What the engine needs to know of a tool's function.

    Args:
        parameters: JSON Schema of the arguments, an object schema.
        description: The docstring without its sections; may be empty.
        context_names: Parameters that take the `Context`.
        decode: Turns a JSON object into keyword arguments of the annotated types.
    """

    parameters: dict[str, Any]
    description: str
    context_names: tuple[str, ...]
    decode: Callable[[bytes], dict[str, Any]]


def read_signature(fn: Callable[..., Any], *, name: str) -> Signature:
    """Reads a tool's schema, description and decoder from its signature and docstring.

    Args:
        fn: The function, bound method, partial or callable object. Arguments that a partial binds
            are hidden from the model.
        name: The tool's name, for errors.

    Raises:
        ToolError: `tool_schema_invalid`, when a parameter cannot be described.
    """
    where = f'tool "{name}" ({_location(fn)})'
    description, texts = parse(docstring_of(fn))
    context_names: list[str] = []
    parameters: list[_Parameter] = []
    for parameter, hint in _annotated_parameters(fn, where=where):
        if _is_context(hint):
            context_names.append(parameter.name)
            continue
        text = _own_description(hint) or texts.get(parameter.name, "")
        parameters.append(_read_parameter(parameter, hint, text, where=where))
    return Signature(
        parameters=_object_schema(parameters),
        description=description,
        context_names=tuple(context_names),
        decode=_decoder(parameters, name),
    )


def arguments_decoder(fn: Callable[..., Any]) -> Callable[[bytes], dict[str, Any]]:
    """The function that turns a call's JSON arguments into keyword arguments.

    It raises `ToolError` (`tool_arguments_invalid`) where they do not fit. Parameters that are
    absent are left out, so that the function's own defaults apply.
    """
    return read_signature(fn, name=getattr(fn, "__name__", "tool")).decode


@dataclass(frozen=True, slots=True)
class _Parameter:
    name: str
    hint: Any
    schema: dict[str, Any]
    definitions: dict[str, Any]
    required: bool
    pydantic: bool


def _function_of(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The plain function behind partials, methods, wrappers and callable objects."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    function: Any = fn
    if not inspect.isroutine(fn):
        function = getattr(fn, "__wrapped__", None) or type(fn).__call__
    unwrapped: Callable[..., Any] = inspect.unwrap(getattr(function, "__func__", function))
    return unwrapped


def _location(fn: Callable[..., Any]) -> str:
    code = getattr(_function_of(fn), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else "built in"


def _annotated_parameters(
    fn: Callable[..., Any], *, where: str
) -> list[tuple[inspect.Parameter, Any]]:
    """Every parameter that a call may fill, with its resolved annotation."""
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError) as error:
        raise _refused(f"{where} has no signature: {error}", "wrap it in a function") from error
    bound: Mapping[str, Any] = fn.keywords if isinstance(fn, functools.partial) else {}
    found = []
    for idx, parameter in enumerate(signature.parameters.values()):
        if parameter.name in bound:
            continue
        _check_kind(parameter, where=where)
        if parameter.annotation is parameter.empty:
            raise _no_type(parameter.name, where=where, method=idx == 0)
        found.append((parameter, _resolve(fn, parameter, where=where)))
    return found


def _check_kind(parameter: inspect.Parameter, *, where: str) -> None:
    name = parameter.name
    if parameter.kind is parameter.VAR_POSITIONAL:
        raise _refused(
            f'{where}: parameter "*{name}" takes any number of arguments, a model gives named ones',
            f"take a list, such as {name}: list[str]",
        )
    if parameter.kind is parameter.VAR_KEYWORD:
        raise _refused(
            f'{where}: parameter "**{name}" takes any names, a model gives known ones',
            f"take a dict, such as {name}: dict[str, str]",
        )
    if parameter.kind is parameter.POSITIONAL_ONLY:
        raise _refused(
            f'{where}: parameter "{name}" is positional-only, a model gives arguments by name',
            'remove the "/" from the signature',
        )


def _no_type(name: str, *, where: str, method: bool) -> ToolError:
    if method and name in ("self", "cls"):
        hint = "it looks like a method: pass it bound, such as tools=[obj.method]"
    else:
        hint = f"annotate it, such as {name}: str"
    return _refused(
        f'{where}: parameter "{name}" has no type, every parameter of a tool needs one', hint
    )


def _resolve(fn: Callable[..., Any], parameter: inspect.Parameter, *, where: str) -> Any:
    function = _function_of(fn)
    code, cells = getattr(function, "__code__", None), getattr(function, "__closure__", None)
    local = {}
    for variable, cell in zip(code.co_freevars if code else (), cells or (), strict=False):
        try:
            local[variable] = cell.cell_contents
        except ValueError:  # Not assigned yet: the name is no help.
            continue
    holder = types.SimpleNamespace(__annotations__={parameter.name: parameter.annotation})
    try:
        hints = typing.get_type_hints(
            holder, getattr(function, "__globals__", {}), local, include_extras=True
        )
    except (NameError, SyntaxError, TypeError, AttributeError) as error:
        raise _refused(
            f'{where}: parameter "{parameter.name}" has type {parameter.annotation!r}, '
            f"which cannot be resolved: {error}",
            "define or import the type at the top of the module, outside of TYPE_CHECKING",
        ) from error
    return hints[parameter.name]


def _is_context(hint: Any) -> bool:
    if hint is Context:
        return True
    if typing.get_origin(hint) in (Annotated, Union, types.UnionType):
        return any(_is_context(arg) for arg in typing.get_args(hint))
    return False


def _own_description(hint: Any) -> str:
    """What an `Annotated` says of itself: plain text, `msgspec.Meta`, `Doc` or pydantic's Field."""
    for item in getattr(hint, "__metadata__", ()):
        texts = [item, getattr(item, "description", None), getattr(item, "documentation", None)]
        if found := [text for text in texts if isinstance(text, str)]:
            return found[0]
    return ""


def _read_parameter(
    parameter: inspect.Parameter, hint: Any, text: str, *, where: str
) -> _Parameter:
    try:
        schema, definitions = _type_schema(hint, prefix=f"{parameter.name}.")
    except _NoSchemaError as error:
        raise _refused(
            f'{where}: parameter "{parameter.name}" has type {type_name(hint)}, '
            f"which has no JSON schema: {error}",
            _TYPES_HINT,
        ) from error
    if text:
        schema["description"] = text
    required = parameter.default is parameter.empty
    if not required:
        _set_default(schema, parameter.default)
    return _Parameter(
        name=parameter.name,
        hint=hint,
        schema=schema,
        definitions=definitions,
        required=required,
        pydantic=holds_pydantic(hint),
    )


def _set_default(schema: dict[str, Any], default: object) -> None:
    """Shows a default to the model; one that JSON cannot hold stays unseen, and still applies."""
    try:
        schema["default"] = msgspec.json.decode(_encoder()(default))
    except (TypeError, ValueError, NotImplementedError):
        return


def _object_schema(parameters: list[_Parameter]) -> dict[str, Any]:
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {parameter.name: parameter.schema for parameter in parameters},
        "required": [parameter.name for parameter in parameters if parameter.required],
        "additionalProperties": False,
    }
    definitions = {k: v for parameter in parameters for k, v in parameter.definitions.items()}
    if definitions:
        schema["$defs"] = definitions
    return schema


def _decoder(parameters: list[_Parameter], name: str) -> Callable[[bytes], dict[str, Any]]:
    fields: dict[str, Any] = {}
    for parameter in parameters:
        if parameter.pydantic:
            # Never `Required`: msgspec 0.22 refuses every value of a required `Raw` key.
            fields[parameter.name] = NotRequired[msgspec.Raw]
        elif parameter.required:
            fields[parameter.name] = Required[parameter.hint]
        else:
            fields[parameter.name] = NotRequired[parameter.hint]
    # A TypedDict made at run time, which type checkers cannot follow: msgspec decodes it into a
    # dict, the form in which a call takes keyword arguments, and leaves absent keys out.
    decode = msgspec.json.Decoder(cast(Any, TypedDict)("Arguments", fields)).decode
    validators = [
        (parameter.name, parameter.required, adapter(parameter.hint).validate_json)
        for parameter in parameters
        if parameter.pydantic
    ]

    def decode_arguments(raw: bytes) -> dict[str, Any]:
        place = "$"
        try:
            arguments: dict[str, Any] = decode(raw)
            for key, required, validate in validators:
                if key in arguments:
                    place = f"$.{key}"
                    arguments[key] = validate(bytes(arguments[key]))
                elif required:
                    raise msgspec.ValidationError(f"Object missing required field `{key}`")
        except (msgspec.MsgspecError, ValueError) as error:
            raise ToolError(
                "tool_arguments_invalid",
                f'arguments of tool "{name}" do not fit: {first_problems(error, place=place)}',
                details={"tool": name},
            ) from error
        return arguments

    return decode_arguments


class _NoSchemaError(Exception):
    """No JSON Schema can be made from a type; the text says why."""


def _type_schema(hint: Any, *, prefix: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Schema of one type without `$ref`, save to the recursive definitions beside it."""
    try:
        if holds_pydantic(hint):
            schema = adapter(hint).json_schema()
        else:
            schema = _in_written_order(msgspec.json.schema(_with_formats(hint)), hint)
            # Unions that cannot be told apart when decoding show only here.
            msgspec.json.Decoder(hint)
    except Exception as error:  # Both libraries raise many kinds for a type they cannot read.
        raise _NoSchemaError(_reason(error)) from error
    return inline(schema, prefix=prefix)


def _in_written_order(schema: dict[str, Any], hint: Any) -> dict[str, Any]:
    """Puts the fields of TypedDicts into the order of their class: msgspec sorts them by name.

    A model fills fields in the order of the schema, so that reasoning must come before its result.
    """
    orders = [list(fields) for fields in _typed_dicts(hint)]
    for definition in schema.get("$defs", {}).values():
        for key in ("properties", "required"):
            listed = definition.get(key, ())
            for order in orders:
                if set(definition.get("properties", ())) == set(order):
                    names = [name for name in order if name in listed]
                    as_map = isinstance(listed, dict)
                    definition[key] = {name: listed[name] for name in names} if as_map else names
                    break
    return schema


def _typed_dicts(hint: Any) -> list[dict[str, Any]]:
    """The fields of every TypedDict that a type reaches, each in its written order."""
    found: list[dict[str, Any]] = []
    seen: list[Any] = []
    waiting = [hint]
    while waiting:
        each = waiting.pop()
        if each in seen:
            continue
        seen.append(each)
        waiting.extend(typing.get_args(each))
        if isinstance(each, type) and hasattr(each, "__annotations__"):
            fields = typing.get_type_hints(each, include_extras=True)
            waiting.extend(fields.values())
            if typing.is_typeddict(each):
                found.append(fields)
    return found


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines and lines[0].startswith("Generating JSON schema for custom types"):
        return lines[-1]  # The lines before speak of hooks that a tool cannot set.
    return lines[0] if lines else type(error).__name__


def _with_formats(hint: Any) -> Any:
    """Names the format of dates with a time: msgspec does so only where a time zone is required."""
    origin: Any = typing.get_origin(hint)
    args = typing.get_args(hint)
    if hint is datetime.datetime:
        return Annotated[hint, msgspec.Meta(extra_json_schema={"format": "date-time"})]
    if origin in (Union, types.UnionType):
        return Union[tuple(_with_formats(arg) for arg in args)]  # noqa: UP007  (made at run time)
    if origin in (list, set, frozenset, tuple, dict):
        return types.GenericAlias(origin, tuple(_with_formats(arg) for arg in args))
    return hint


def type_name(hint: Any) -> str:
    """A type as a reader wrote it: `int`, `list[str]`."""
    if isinstance(hint, type) and not typing.get_args(hint):
        return hint.__qualname__.rpartition("<locals>.")[2]
    return str(hint).replace("typing.", "")


def _refused(message: str, hint: str) -> ToolError:
    return ToolError("tool_schema_invalid", message, hint)


def encode_result(value: object, *, tool: str | None = None) -> str:
    """Writes what a tool returned as the text a model reads.

    Args:
        value: Text stays as it is; anything else becomes compact JSON, None becomes `null`. Bytes
            inside a value become base64.
        tool: The tool's name, for errors.

    Raises:
        ToolError: `tool_result_invalid`, for bytes and for what JSON cannot hold.
    """
    if type(value) is str and value.isascii():
        return value
    if isinstance(value, (bytes, bytearray, memoryview)):
        raise _bad_result(value, tool, "bytes are not text")
    try:
        if type(value) is str:
            value.encode()
            return value
        text = _encoder()(value)
        if isinstance(value, str):
            return msgspec.json.decode(text, type=str)
        return text.decode()
    except (TypeError, ValueError, NotImplementedError, RecursionError) as error:
        raise _bad_result(value, tool, _reason(error)) from error


def _bad_result(value: object, tool: str | None, reason: str) -> ToolError:
    name = f'tool "{tool}"' if tool else "a tool"
    return ToolError(
        "tool_result_invalid",
        f"{name} returned {type(value).__name__}, which cannot be written as JSON: {reason}",
        "return text, or builtins, dataclasses, TypedDicts, msgspec.Structs or pydantic models",
        details={"tool": tool} if tool else None,
    )


@functools.cache
def _encoder() -> Callable[[Any], bytes]:
    def encode_other(value: Any) -> Any:
        if hasattr(type(value), "model_dump_json"):
            return msgspec.Raw(value.model_dump_json().encode())
        raise TypeError(f"type {type_name(type(value))} is not supported")

    return msgspec.json.Encoder(enc_hook=encode_other).encode


def output_schema(hint: Any) -> dict[str, Any] | None:
    """JSON Schema that holds a model's final answer to a type.

    Args:
        hint: A pydantic model, dataclass, TypedDict, msgspec.Struct, or any type made of builtins.

    Returns:
        An object schema, or None for `str`: plain text. A type that is no object is wrapped as
        `{"value": ...}`, because providers accept nothing else at the top; `decode_output` unwraps.

    Raises:
        AgentError: `agent_invalid`, when the type has no JSON schema.
    """
    return None if hint is str else _output(hint).schema


def decode_output(hint: Any, text: str) -> Any:
    """Turns a final answer into the type that was asked for.

    Args:
        hint: The type given to `output_schema`.
        text: The answer; JSON unless `hint` is `str`.

    Raises:
        SessionFailed: `output_invalid`, when the answer does not fit.
        AgentError: `agent_invalid`, when the type has no JSON schema.
    """
    if hint is str:
        return text
    try:
        return _output(hint).decode(text)
    except (msgspec.MsgspecError, ValueError) as error:
        if isinstance(error, MainspringError):
            raise
        raise from_failure(
            "output_invalid",
            f"the answer does not fit type {type_name(hint)}: {first_problems(error)}",
            hint=None,
            retryable=False,
        ) from error


@dataclass(frozen=True, slots=True)
class _Output:
    schema: dict[str, Any]
    decode: Callable[[str], Any]


def _output(hint: Any) -> _Output:
    try:
        return _cached_output(hint)
    except TypeError:  # Types whose metadata cannot be hashed are made anew each time.
        return _make_output(hint)


def _make_output(hint: Any) -> _Output:
    try:
        schema, definitions = _type_schema(hint, prefix="")
    except _NoSchemaError as error:
        raise AgentError(
            "agent_invalid",
            f"output type {type_name(hint)} has no JSON schema: {error}",
            _TYPES_HINT,
        ) from error
    wrapped = schema.get("type") != "object"
    if wrapped:
        schema = {
            "type": "object",
            "properties": {"value": schema},
            "required": ["value"],
            "additionalProperties": False,
        }
    if definitions:
        schema["$defs"] = definitions
    if not holds_pydantic(hint):
        fields = cast(Any, TypedDict)("Output", {"value": hint})
        decode = msgspec.json.Decoder(fields if wrapped else hint).decode
        return _Output(schema, (lambda text: decode(text)["value"]) if wrapped else decode)
    validate = adapter(hint).validate_json
    if not wrapped:
        return _Output(schema, validate)
    envelope = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode

    def decode_wrapped(text: str) -> Any:
        found = envelope(text)
        if "value" not in found:
            raise msgspec.ValidationError("Object missing required field `value`")
        return validate(bytes(found["value"]))

    return _Output(schema, decode_wrapped)


_cached_output = functools.lru_cache(maxsize=256)(_make_output)
