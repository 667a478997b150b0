"""Makes JSON Schemas self-contained: references are replaced by what they name.

Invariant: the result accepts the same values; a reference remains only to a definition that
contains itself. Not every provider and grammar follows `$ref`, and a tool's schema is put inside
larger ones, where `#` would name another root.
"""

from typing import Any

_ONE = frozenset(["items", "additionalProperties", "not", "contains", "propertyNames"])
_LISTS = frozenset(["anyOf", "oneOf", "allOf", "prefixItems"])
_MAPS = frozenset(["properties", "patternProperties"])
# Titles repeat the names of fields and classes; a discriminator's mapping names definitions that
# are gone. Both are annotations: they accept or refuse nothing.
_DROPPED = frozenset(["title", "discriminator", "$defs"])
_REFERENCE = "#/$defs/"


def inline(schema: dict[str, Any], *, prefix: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Replaces references, and drops titles.

    Args:
        schema: A schema as msgspec or pydantic make it, with its definitions under `$defs`.
        prefix: Put before the names of the definitions that remain.

    Returns:
        The schema, and the definitions that contain themselves, by the name it uses for them.
    """
    definitions: dict[str, Any] = schema.get("$defs", {})
    recursive = {name for name in definitions if name in _reached(name, definitions)}
    wanted: list[str] = []

    def walk(node: Any) -> Any:
        if not isinstance(node, dict):
            return node
        out: dict[str, Any] = {}
        reference = node.get("$ref")
        if isinstance(reference, str) and reference.startswith(_REFERENCE):
            name = reference.removeprefix(_REFERENCE)
            if name in recursive:
                wanted.append(name)
                out["$ref"] = f"{_REFERENCE}{prefix}{name}"
            else:
                out.update(walk(definitions[name]))
        for key, value in node.items():
            if key in _MAPS:
                out[key] = {name: walk(inner) for name, inner in value.items()}
            elif key in _LISTS:
                out[key] = [walk(inner) for inner in value]
            elif key in _ONE:
                out[key] = walk(value)
            elif key not in _DROPPED and key != "$ref":
                out[key] = value
        return out

    top = walk(schema)
    kept: dict[str, Any] = {}
    while wanted:
        name = wanted.pop()
        if prefix + name not in kept:
            kept[prefix + name] = {}  # Taken, so that the walk below ends.
            kept[prefix + name] = walk(definitions[name])
    return top, kept


def _reached(start: str, definitions: dict[str, Any]) -> set[str]:
    """Names of the definitions that the one named `start` refers to, at any distance."""
    found: set[str] = set()
    nodes: list[Any] = [definitions[start]]
    while nodes:
        node = nodes.pop()
        if isinstance(node, list):
            nodes.extend(node)
        elif isinstance(node, dict):
            nodes.extend(node.values())
            reference = node.get("$ref")
            if isinstance(reference, str) and reference.startswith(_REFERENCE):
                name = reference.removeprefix(_REFERENCE)
                if name not in found:
                    found.add(name)
                    nodes.append(definitions[name])
    return found
