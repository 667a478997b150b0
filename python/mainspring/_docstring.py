"""Reads a docstring: the part for the model, and what it says of each parameter.

Invariant: any text is accepted; what has no known form is kept as description and never lost.
Forms: Google sections (`Args:`), Sphinx fields (`:param x:`), numpy sections (underlined).
"""

import functools
import inspect
import re
from collections.abc import Callable
from typing import Any

_SECTIONS = (
    "args|arguments|parameters|params|keyword args|keyword arguments|other parameters|attributes|"
    "returns?|yields?|raises|warns|warnings?|examples?|notes?|see also|references|source|todo"
)
_GOOGLE = re.compile(rf"^({_SECTIONS}):[ \t]*$", re.IGNORECASE)
_NUMPY = re.compile(rf"^({_SECTIONS})[ \t]*$", re.IGNORECASE)
_SPHINX = re.compile(
    r"^:(param|parameter|arg|argument|key|keyword)\s+(?:[^:]*\s)?\*{0,2}(\w+):(.*)$"
)
_SPHINX_ANY = re.compile(
    r"^:(param|parameter|arg|argument|key|keyword|type|returns?|rtype|raises?|yields?)\b[^:]*:"
)
_ITEM = re.compile(r"^\*{0,2}(\w+)\s*(?:\(.*?\))?\s*:(.*)$")
_NUMPY_ITEM = re.compile(r"^\*{0,2}(\w+)\s*(?::.*)?$")
_PARAMETER_SECTIONS = frozenset(
    ["args", "arguments", "parameters", "params", "keyword args", "keyword arguments",
     "other parameters"]
)  # fmt: skip


def parse(text: str | None) -> tuple[str, dict[str, str]]:
    """Splits a docstring.

    Args:
        text: The docstring, indentation already removed (`inspect.cleandoc`), or None.

    Returns:
        The description before the first section, and the description of each parameter by name,
        on one line each.
    """
    lines = (text or "").splitlines()
    description: list[str] = []
    parameters: dict[str, str] = {}
    idx = 0
    in_description = True
    while idx < len(lines):
        line = lines[idx]
        underlined = idx + 1 < len(lines) and bool(re.match(r"^-{3,}\s*$", lines[idx + 1]))
        google, numpy = _GOOGLE.match(line), _NUMPY.match(line) if underlined else None
        if google or numpy:
            in_description = False
            start = idx + (1 if google else 2)
            idx = _section_end(lines, start, indented=bool(google))
            name = (google or numpy)[1].lower()  # type: ignore[index]
            if name in _PARAMETER_SECTIONS:
                body = lines[start:idx]
                parameters.update(_items(body, _ITEM if google else _NUMPY_ITEM))
        elif _SPHINX_ANY.match(line):
            in_description = False
            start, idx = idx, _section_end(lines, idx + 1, indented=True)
            if found := _SPHINX.match(line):
                parameters[found[2]] = _join([found[3], *lines[start + 1 : idx]])
        else:
            if in_description:
                description.append(line.rstrip())
            idx += 1
    return "\n".join(description).strip(), {k: v for k, v in parameters.items() if v}


def docstring_of(fn: Callable[..., Any]) -> str | None:
    """The docstring of a function, partial or callable object, indentation removed."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    if inspect.isroutine(fn):
        return inspect.getdoc(fn)
    # The words on the call come before those on the class.
    return inspect.getdoc(type(fn).__call__) or inspect.getdoc(fn)


def _section_end(lines: list[str], start: int, *, indented: bool) -> int:
    """First line after the section: not indented, or (numpy) the next underlined heading."""
    for idx in range(start, len(lines)):
        line = lines[idx]
        if indented and line.strip() and not line[0].isspace():
            return idx
        if not indented and idx + 1 < len(lines) and re.match(r"^-{3,}\s*$", lines[idx + 1]):
            return idx
    return len(lines)


def _items(body: list[str], item: re.Pattern[str]) -> dict[str, str]:
    """Items of a section; a line indented deeper than the first one continues its item."""
    filled = [line for line in body if line.strip()]
    if not filled:
        return {}
    margin = len(filled[0]) - len(filled[0].lstrip())
    found: dict[str, list[str]] = {}
    current: list[str] = []
    for line in filled:
        depth = len(line) - len(line.lstrip())
        match = item.match(line.strip()) if depth <= margin else None
        if match:
            first = match[2] if item is _ITEM else ""
            current = found.setdefault(match[1], [first])
        else:
            current.append(line)
    return {name: _join(lines) for name, lines in found.items()}


def _join(lines: list[str]) -> str:
    return " ".join(" ".join(lines).split())
