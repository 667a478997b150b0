"""What the scripted models do in the demonstration: the same steps as real ones, by rule.

Invariant: answers are made from the question and the tools' real results in the request.
"""

import re
from collections.abc import Callable
from pathlib import Path

from mainspring.demo._tools import files_named
from mainspring.testing import Call, Request, Step, call, calls, delay, say

PAUSE_S = 0.4
"""What a scripted model waits, so that a person can follow."""

FILES_MAX = 4
"""Files of the question that are looked at."""

_SAYS_ABOUT = re.compile(r"([\w./-]+) says? about ([\w-]+)")
_COUNTED = re.compile(r"(?<=has )(\d+)(?= lines)")


def answer_rightly(root: Path) -> Callable[[Request], Step]:
    """A script that calls the tools, then tells their results."""

    def step(request: Request) -> Step:
        results = _results(request)
        answer = say(_told(results)) if results else calls(*_lookups(request, root))
        return delay(PAUSE_S, then=answer)

    return step


def answer_wrongly(root: Path) -> Callable[[Request], Step]:
    """Like `answer_rightly`, but every count it tells is one too high, for a check to find."""

    def step(request: Request) -> Step:
        results = _results(request)
        if not results:
            return delay(PAUSE_S, then=calls(*_lookups(request, root)))
        wrong = _COUNTED.sub(lambda found: str(int(found[0]) + 1), _told(results))
        return delay(PAUSE_S, then=say(wrong))

    return step


def _results(request: Request) -> list[str]:
    return [str(each.get("content")) for each in request.messages if each.get("role") == "tool"]


def _lookups(request: Request, root: Path) -> list[Call]:
    question = " ".join(
        str(each.get("content")) for each in request.messages if each.get("role") == "user"
    )
    about = dict(_SAYS_ABOUT.findall(question))
    wanted: list[Call] = []
    for path in files_named(question, root)[:FILES_MAX]:
        if path in about:
            wanted.append(call("find_text", path=path, text=about[path]))
        else:
            wanted.append(call("count_lines", path=path))
    return [*wanted, call("git_log", repo_path=".", max_count=1)]


def _told(results: list[str]) -> str:
    """One line for each result: what it says, without a commit's header."""
    lines = []
    for result in results:
        _, is_log, message = result.partition("Message: ")
        subject = message.strip().partition("\n")[0]
        text = f"the last commit says: {subject}" if is_log else result
        lines.append(f"- {' | '.join(text.strip().splitlines())}")
    return "\n".join(["From a script, not from a model:", *lines])
