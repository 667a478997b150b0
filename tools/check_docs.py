"""Runs the code in README.md, docs/ and the package's docstrings.

The convention, by the words after the fence:

- ```` ```python ```` is a script of its own, run in a folder that belongs to the page;
- ```` ```python continue ```` goes on where the block before it stopped, in the same script;
- ```` ```python file=app.py ```` is also saved under that name, for the blocks after it;
- ```` ```python no-run ```` is only parsed;
- ```` ```text output ```` is what the script above it prints;
- ```` ```console run ```` holds `$ command` lines and what each prints; other `console` blocks
  are left alone.

In a docstring, the indented text of an `Example:` section is a script, or a doctest if it starts
with `>>>`. Invariant: scripts see no key, no network and no files but those of their page.
"""

import ast
import re
import subprocess
import sys
import tempfile
import textwrap
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tools.check_examples import EXAMPLE_S_MAX, compare, offline_environment, run_script
from tools.check_tidy import Rules
from tools.common import ROOT, VENV_PYTHON, Breach, report, source_files
from tools.filters import hide

FENCE = re.compile(r"^```(\w+)([^\n`]*)\n(.*?)^```\s*$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, the words after it, its text, the line it starts on."""

    language: str
    words: tuple[str, ...]
    text: str
    line: int


def pages(root: Path = ROOT) -> list[str]:
    """List the documents with code to run: README.md and what lies under docs/."""
    return [n for n in source_files(root) if n == "README.md" or re.match(r"docs/.*\.md$", n)]


def modules(root: Path = ROOT) -> list[str]:
    """List the package's files that hold docstring examples."""
    found = [n for n in source_files(root) if re.match(r"python/.*\.py$", n)]
    return [n for n in found if list(_docstring_examples((root / n).read_text()))]


def blocks(text: str) -> list[Block]:
    """Read the fenced blocks of a page."""
    return [
        Block(m[1], tuple(m[2].split()), m[3], text.count("\n", 0, m.start()) + 2)
        for m in FENCE.finditer(text)
    ]


def check_page(name: str, root: Path = ROOT, *, python: Path = VENV_PYTHON) -> list[Breach]:
    """Run one page's blocks in order and give every breach."""
    found: list[Breach] = []
    script = printed = ""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for block in blocks((root / name).read_text()):
            if block.language == "python":
                if error := _syntax_error(block.text):
                    found.append(Breach(name, block.line, error))
                    continue
                if "no-run" in block.words:
                    continue
                before = printed if "continue" in block.words else ""
                script = script + block.text if "continue" in block.words else block.text
                file = next((w[5:] for w in block.words if w.startswith("file=")), "block.py")
                (folder / file).write_text(script)
                status, output, errors = run_script(folder / file, folder=folder, python=python)
                printed = output
                if status != 0:
                    text = f"ended with status {status}: {errors.strip()[-2000:]}"
                    found.append(Breach(name, block.line, text))
                elif not printed.startswith(before):
                    found.append(Breach(name, block.line, "prints something else when continued"))
            elif block.language == "text" and "output" in block.words:
                for breach in compare(name, hide(block.text), printed):
                    found.append(Breach(name, block.line + breach.line - 1, breach.text))
            elif block.language == "console" and "run" in block.words:
                found.extend(_check_console(name, block, folder))
    return found


def check_lengths(root: Path = ROOT) -> list[Breach]:
    """Hold the Python blocks of every page and docstring to tidy.toml's length."""
    rules = Rules(tomllib.loads((root / "tidy.toml").read_text()))
    limit = rules.limits["example_lines_max"]
    found = []
    for name in pages(root):
        for block in blocks((root / name).read_text()):
            count = sum(1 for line in block.text.splitlines() if line.strip())
            if block.language != "python":
                continue
            if wrong := rules.over("example_lines", name, count, limit=limit):
                found.append(Breach(name, block.line, f"lines in a Python block: {wrong}"))
    for name in modules(root):
        for line, code in _docstring_examples((root / name).read_text()):
            count = sum(1 for row in code.splitlines() if row.strip())
            if wrong := rules.over("example_lines", name, count, limit=limit):
                found.append(Breach(name, line, f"lines in a docstring's example: {wrong}"))
    return found


def check_module(name: str, root: Path = ROOT, *, python: Path = VENV_PYTHON) -> list[Breach]:
    """Run the examples in one module's docstrings."""
    found = []
    for line, code in _docstring_examples((root / name).read_text()):
        script = code
        if code.startswith(">>>"):
            # In a child too, so that it sees what a user's program sees.
            script = (
                f"import doctest\ntext = {code!r}\n"
                "test = doctest.DocTestParser().get_doctest(text, {}, 'example', None, 0)\n"
                "raise SystemExit(doctest.DocTestRunner().run(test).failed)\n"
            )
        with tempfile.TemporaryDirectory() as temporary:
            file = Path(temporary) / "example.py"
            file.write_text(script)
            status, output, errors = run_script(file, folder=Path(temporary), python=python)
        if status != 0:
            text = f"example ended with status {status}: {(errors or output).strip()[-2000:]}"
            found.append(Breach(name, line, text))
    return found


def _docstring_examples(source: str) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        text = ast.get_docstring(node) or ""
        for match in re.finditer(r"^Examples?:\n((?:[ \t]+\S.*\n?|\s*\n)+)", text, re.MULTILINE):
            yield node.body[0].lineno, textwrap.dedent(match[1]).strip() + "\n"


def _check_console(name: str, block: Block, folder: Path) -> list[Breach]:
    found: list[Breach] = []
    parts = re.split(r"^\$ (.*)\n", block.text, flags=re.MULTILINE)
    line = block.line
    for command, wanted in zip(parts[1::2], parts[2::2], strict=True):
        done = subprocess.run(
            ["/bin/sh", "-c", command],
            cwd=folder,
            env=offline_environment(folder),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=EXAMPLE_S_MAX,
            check=False,
        )
        printed = hide(done.stdout, folders=(folder,))
        for breach in compare(name, hide(wanted), printed):
            found.append(Breach(name, line + breach.line, breach.text))
        line += 1 + wanted.count("\n")
    return found


def _syntax_error(text: str) -> str | None:
    try:
        # Blocks may use `await` at the top level only where they are not run.
        compile(text, "block", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    except SyntaxError as error:
        return f"does not parse: {error.msg}"
    return None


def main() -> int:
    """Print every breach; the status is 1 if there is one."""
    breaches = check_lengths()
    for name in pages():
        breaches.extend(check_page(name))
    for name in modules():
        breaches.extend(check_module(name))
    return report(breaches, rule="docs")


if __name__ == "__main__":
    sys.exit(main())
