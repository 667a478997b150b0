"""The one list of filters that hide what differs from run to run: ids, times, paths, ports.

Every comparison with recorded text goes through `hide`, for both sides. Order matters: a filter
sees what the earlier ones left.
"""

import re
from pathlib import Path

FILTERS: tuple[tuple[str, str], ...] = (
    (r"\x1b\[[0-9;?]*[A-Za-z]", ""),
    (r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b", "<id>"),
    (r"\b[0-9a-f]{32}\b", "<key>"),
    (r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|[+-]\d\d:?\d\d)?", "<time>"),
    (r"\b\d\d:\d\d:\d\d(?:\.\d+)?\b", "<time>"),
    (r"\b\d+(?:\.\d+)? ?(?:s|ms|us|µs|ns)\b", "<duration>"),
    (r"\b(127\.0\.0\.1|localhost|\[::1\]):\d+", r"\1:<port>"),
    (r"(?<![\w<])/tmp/[\w./-]+", "<path>"),
    (r"[ \t]+$", ""),
)


def hide(text: str, *, folders: tuple[Path, ...] = ()) -> str:
    """Replace what differs between runs; `folders` are paths to hide wherever they occur."""
    for folder in folders:
        text = text.replace(str(folder), "<path>")
    for pattern, replacement in FILTERS:
        text = re.sub(pattern, replacement, text, flags=re.MULTILINE)
    return text
