"""The little that is known of pydantic, an optional dependency.

Invariant: pydantic is never imported from here: a type can only hold a pydantic model when the
user's program has imported it.
"""

import dataclasses
import sys
import typing
from typing import Any


def holds_pydantic(hint: Any) -> bool:
    """Whether a type is, or contains at any depth, something only pydantic can read."""
    return sys.modules.get("pydantic") is not None and _holds(hint, {})


def adapter(hint: Any) -> Any:
    """The `pydantic.TypeAdapter` of a type; call only where `holds_pydantic` is true."""
    return sys.modules["pydantic"].TypeAdapter(hint)


def first_problems(error: Exception, *, place: str = "$") -> str:
    """What is wrong with a value, on one line: pydantic's first five problems, or the text.

    Args:
        error: What pydantic, msgspec or a validator raised.
        place: Where in the whole document the value is that pydantic was given.
    """
    listed = getattr(error, "errors", None)
    if listed is None:
        return " ".join(str(error).split())
    problems = listed(include_url=False, include_context=False, include_input=False)
    texts = [
        f"{item['msg']} - at `{'.'.join([place, *map(str, item['loc'])])}`" for item in problems[:5]
    ]
    if len(problems) > len(texts):
        texts.append(f"and {len(problems) - len(texts)} more")
    return "; ".join(texts)


def _holds(hint: Any, seen: dict[int, Any]) -> bool:
    if id(hint) in seen:
        return False
    seen[id(hint)] = hint  # Kept alive, so that no other object gets its id.
    if type(hint).__name__ == "TypeAliasType":
        return _holds(hint.__value__, seen)
    metadata = getattr(hint, "__metadata__", ())
    if any(type(item).__module__.startswith(("pydantic", "annotated_types")) for item in metadata):
        return True
    args = () if typing.get_origin(hint) is typing.Literal else typing.get_args(hint)
    if any(_holds(arg, seen) for arg in args):
        return True
    return isinstance(hint, type) and (_is_pydantic(hint) or _fields_hold(hint, seen))


def _is_pydantic(kind: type) -> bool:
    return hasattr(kind, "__get_pydantic_core_schema__") or "__pydantic_core_schema__" in vars(kind)


def _fields_hold(kind: type, seen: dict[int, Any]) -> bool:
    has_fields = (
        dataclasses.is_dataclass(kind)
        or typing.is_typeddict(kind)
        or hasattr(kind, "__struct_fields__")
        or (issubclass(kind, tuple) and hasattr(kind, "_fields"))
    )
    if not has_fields:
        return False
    try:
        hints = typing.get_type_hints(kind, include_extras=True)
    except (NameError, TypeError):  # Making the schema meets the same fault, and names it.
        return False
    return any(_holds(hint, seen) for hint in hints.values())
