"""The demonstration's check of a model's answers: cheap, and by facts alone.

Invariant: an answer is refused only for what can be shown to be wrong with it: a call that cannot
work, a part of the question left out, a count or a quotation that the repository contradicts. It
keeps no state, so it judges after a crash too; only the question is then not known to it.
"""

import asyncio
import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from mainspring.demo._tools import files_named, is_file, line_count, read
from mainspring.errors import ToolError
from mainspring.models import Answer, ToolCall

COMMITS_READ_MAX = 50
"""Newest commits in which a quotation may occur."""

QUOTED_CHARS_MIN = 12
"""Shorter quotations are words, which prove nothing."""

SENTENCE_WORDS_MIN = 4
"""Shorter answers are no sentence, which the instructions ask for."""

_FILE_HAS_LINES = re.compile(r"(?P<path>[\w./-]+)\W{1,3}(?:has|contains) (?P<count>\d[\d,]*) lines")
_LINES_IN_FILE = re.compile(r"(?P<count>\d[\d,]*) lines in (?:the )?\W?(?P<path>[\w./-]+)")
_QUOTED = re.compile(r"""(?<!\w)(?P<mark>['"`])(?P<text>[^\n]+?)(?P=mark)(?!\w)""")


@dataclass(frozen=True)
class Check:
    """Checks one step of the agent; `Route.verify` of the demonstration.

    Args:
        root: The repository.
        question: What was asked; empty: not known.
    """

    root: Path
    question: str = ""

    async def __call__(self, answer: Answer) -> str | None:
        """Says what is wrong with an answer; None: nothing that can be shown."""
        return await asyncio.to_thread(self.problem, answer)

    def problem(self, answer: Answer) -> str | None:
        """The same, blocking: it reads files and asks git."""
        if answer.tool_calls:
            return self._calls_problem(answer.tool_calls)
        if not answer.text.strip():
            return "the answer is empty"
        if answer.step == 0:
            return "it answered before it used any tool"
        if len(answer.text.split()) < SENTENCE_WORDS_MIN:
            return f'it says only "{answer.text.strip()}", a sentence was asked for'
        return (
            self._left_out(answer.text)
            or self._miscounted(answer.text)
            or self._misquoted(answer.text)
        )

    def _calls_problem(self, calls: tuple[ToolCall, ...]) -> str | None:
        seen: set[str] = set()
        for call in calls:
            key = json.dumps([call.name, call.arguments], sort_keys=True)
            if key in seen:
                return f"it called {call.name} twice with the same arguments"
            seen.add(key)
            path = call.arguments.get("path")
            if isinstance(path, str) and not is_file(self.root, path):
                return f'it asked for "{path}", which is no file of the repository'
        return None

    def _left_out(self, text: str) -> str | None:
        for name in files_named(self.question, self.root):
            if name not in text:
                return f"the question asks about {name}, the answer does not name it"
        return None

    def _miscounted(self, text: str) -> str | None:
        for pattern in (_FILE_HAS_LINES, _LINES_IN_FILE):
            for claim in pattern.finditer(text):
                path = claim["path"].strip(".")
                try:
                    actual = line_count(self.root, path)
                except ToolError:
                    continue
                if int(claim["count"].replace(",", "")) != actual:
                    return f"it says that {path} has {claim['count']} lines, it has {actual}"
        return None

    def _misquoted(self, text: str) -> str | None:
        quoted = [found["text"] for found in _QUOTED.finditer(text)]
        quoted = [each for each in quoted if len(each) >= QUOTED_CHARS_MIN]
        if not quoted:
            return None
        sources = [self._commits()]
        for name in files_named(f"{self.question} {text}", self.root):
            try:
                sources.append(_plain(read(self.root, name)))
            except ToolError:
                continue
        for each in quoted:
            wanted = _plain(each).rstrip(".,")
            if not any(wanted in source for source in sources):
                return f'it quotes "{each}", which neither a named file nor a late commit says'
        return None

    def _commits(self) -> str:
        # %an: a quotation may be an author's name too.
        log = ["git", "log", f"-{COMMITS_READ_MAX}", "--format=%H %an %B"]
        done = subprocess.run(log, cwd=self.root, capture_output=True, text=True, check=False)
        return _plain(done.stdout)


def _plain(text: str) -> str:
    """Text without what quoting changes: case, line breaks, runs of blanks, quotation marks."""
    return " ".join(re.sub(r"[\"'`]", "", text).lower().split())
