"""Two read-only tools, confined to one folder.

Invariant: no path leads out of the folder, and no result is longer than its limit.
"""

import asyncio
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mainspring.errors import ToolError
from mainspring.tool import Tool, tool


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadLimits:
    """Bounds of what the tools read and show.

    Args:
        file_bytes_max: Size of a file.
        found_lines_max: Lines that `find_text` shows.
        line_chars_max: Characters of each.
    """

    file_bytes_max: int = 2_000_000
    found_lines_max: int = 6
    line_chars_max: int = 160


LIMITS = ReadLimits()

_PATH = re.compile(r"[\w./-]+")


def tools_of(root: Path) -> list[Tool[..., Any]]:
    """Makes the tools for a folder."""

    @tool(effect="read", timeout_s=10)
    def count_lines(path: str) -> str:
        """Counts the lines of a file."""
        return f"{path} has {line_count(root, path)} lines"

    @tool(effect="read", timeout_s=10)
    async def find_text(path: str, text: str) -> str:
        """Shows the lines of a file that contain a text."""
        lines = (await asyncio.to_thread(read, root, path)).splitlines()
        numbered = [(number, line.strip()) for number, line in enumerate(lines, 1)]
        found = [each for each in numbered if text.lower() in each[1].lower()]
        if not found:
            return f'no line of {path} contains "{text}"'
        shown = [
            f"line {number}: {line[: LIMITS.line_chars_max]}"
            for number, line in found[: LIMITS.found_lines_max]
        ]
        more = len(found) - len(shown)
        return "\n".join([f"{path}:", *shown, *([f"and {more} more"] if more else [])])

    return [count_lines, find_text]


def read(root: Path, path: str) -> str:
    """Reads a text file of a folder.

    Raises:
        ToolError: `tool_failed`: the path is not one of a readable text file in the folder.
    """
    found = (root / path).resolve()
    if not found.is_relative_to(root):
        raise ToolError("tool_failed", f'"{path}" is outside of the repository')
    if not found.is_file():
        raise ToolError("tool_failed", f'the repository has no file "{path}"')
    size_bytes = found.stat().st_size
    if size_bytes > LIMITS.file_bytes_max:
        raise ToolError(
            "tool_failed",
            f'file "{path}" has {size_bytes} bytes, limit {LIMITS.file_bytes_max}',
        )
    try:
        return found.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ToolError("tool_failed", f'file "{path}" cannot be read as text') from error


def line_count(root: Path, path: str) -> int:
    """Counts the lines of a text file of a folder; raises as `read` does."""
    return len(read(root, path).splitlines())


def is_file(root: Path, path: str) -> bool:
    """Tells whether a path names a file of the folder."""
    found = (root / path).resolve()
    return found.is_relative_to(root) and found.is_file()


def files_named(text: str, root: Path) -> list[str]:
    """The files of a folder that a text names, in its order, each once."""
    words = (word.rstrip(".") for word in _PATH.findall(text))
    return list(dict.fromkeys(word for word in words if word and is_file(root, word)))
