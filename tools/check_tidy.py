"""Holds sizes, documents and small habits to tidy.toml and to the rules of the house.

Invariant: each rule is one function from a file to breaches, and a file is read once. An
exception in tidy.toml names the value that is there now, so it can only shrink; one that is no
longer needed is itself a breach. Reading starts at `check`.
"""

import ast
import fnmatch
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tools.common import ROOT, Breach, report, source_files

TEXT = (".py", ".pyi", ".rs", ".toml", ".md", ".yml", ".yaml", ".sh", ".txt", ".cfg", ".json")
# The patterns are written so that none matches its own source.
MARKER = re.compile(r"\b(?:TOD[O]|FIXM[E]|XX[X]|HAC[K])\b(?!\(#\d+\))")
PRIVATE_PATH = re.compile(
    r"(?<![\w.])/(?:hom[e]|roo[t]|User[s]|wor[k]|workspac[e])/[\w.]"
    r"|(?<![\w/-])(?:\.\./)?share[d]/(?=[A-Z]|researc[h]|dat[a]\b)"
)
AUTHORSHIP = re.compile(
    r"co-author(?:ed)[- ]by"
    r"|\b(?:written|generated|made|created|authored) (?:by|with|using) (?:an? )?"
    r"(?:ai\b|assistant|language model|llm|claude|chatgpt|copilot|codex|cursor)"
    r"|\bai[- ](?:generated|written)",
    re.IGNORECASE,
)
RUST_CODE = re.compile(
    r"^\s*//(?![/!])\s*(?:(?:let|use|pub|fn|impl|return|match|mod)\b[^.]*[;{]\s*$"
    r"|#\[|\}\s*(?:else\s*\{)?\s*$|[\w.:]+\([^)]*\)[?.\w()]*;\s*$|[\w.]+ [-+]?= [^.]*;\s*$)"
)
RUST_IGNORED = re.compile(r"#\[ignore\b")
RUST_SLEEP = re.compile(r"\b(?:thread|time)::sleep(?:_until)?\(")
SKIP_MARKS = {"skip", "skipif", "xfail", "importorskip"}


class Rules:
    """The limits and exceptions of tidy.toml, with a note of what was used."""

    def __init__(self, content: dict[str, Any]) -> None:
        """Take the content of tidy.toml."""
        self.limits: dict[str, int] = content["limits"]
        self.skip: list[str] = content["files"]["skip"]
        self.readme_required: list[str] = content["files"]["readme_required"]
        self._exceptions: list[dict[str, Any]] = content.get("exception", [])
        self._used: set[int] = set()

    def over(self, rule: str, path: str, value: int, *, limit: int) -> str | None:
        """Say what is wrong with a measured value, or None if it is allowed."""
        for idx, entry in enumerate(self._exceptions):
            if entry["rule"] == rule and entry["path"] == path and value > limit:
                self._used.add(idx)
                allowed = entry["value"]
                if value > allowed:
                    return f"{value}, allowed by exception {allowed}"
                if value < allowed:
                    return f"{value}, lower the exception in tidy.toml from {allowed}"
                return None
        return f"{value}, allowed {limit}" if value > limit else None

    def unused(self) -> Iterator[Breach]:
        """Give a breach for every exception without a reason or without use."""
        for idx, entry in enumerate(self._exceptions):
            where = f"exception {entry['rule']} for {entry['path']}"
            if not entry.get("reason"):
                yield Breach("tidy.toml", 1, f"{where} has no reason")
            if idx not in self._used:
                yield Breach("tidy.toml", 1, f"{where} is no longer needed")


def check(root: Path = ROOT) -> list[Breach]:
    """Check the tree under `root` against its tidy.toml and give every breach, sorted."""
    rules = Rules(tomllib.loads((root / "tidy.toml").read_text()))
    names = source_files(root)
    breaches: list[Breach] = list(_check_folders(names, rules))
    for name in names:
        if any(fnmatch.fnmatch(name, pattern) for pattern in rules.skip):
            continue
        path = root / name
        if path.suffix not in TEXT and path.name not in ("Makefile", "run", "python"):
            continue
        text = path.read_text(errors="replace")
        for rule in _rules_for(name):
            breaches.extend(rule(name, text, rules))
    breaches.extend(rules.unused())
    return sorted(breaches)


Rule = Callable[[str, str, Rules], Iterator[Breach]]


def _rules_for(name: str) -> list[Rule]:
    found: list[Rule] = [_check_words]
    if name.endswith((".rs", ".py", ".pyi")):
        found.append(_check_file_lines)
    if name.endswith(".rs"):
        found.append(_check_rust)
    if name.endswith(".py"):
        found.append(_check_python)
    if name.endswith("README.md") and name != "README.md":
        found.append(_check_readme)
    if name == "ARCHITECTURE.md":
        found.append(_check_architecture)
    return found


def _check_folders(names: list[str], rules: Rules) -> Iterator[Breach]:
    folders = sorted({str(parent) for name in names for parent in Path(name).parents})
    for folder in folders:
        for pattern in rules.readme_required:
            wanted = f"{folder}/README.md"
            deep = folder.count("/") == pattern.count("/")
            if deep and fnmatch.fnmatch(folder, pattern) and wanted not in names:
                yield Breach(
                    wanted, 1, "missing: what the folder owns, must never do, how to test it"
                )
    for name in names:
        if re.fullmatch(r"crates/[^/]+/tests/[^/]+\.rs", name):
            yield Breach(name, 1, "one integration binary per crate: move it under tests/it/")


def _check_words(name: str, text: str, _rules: Rules) -> Iterator[Breach]:
    for idx, line in enumerate(text.splitlines(), 1):
        if found := MARKER.search(line):
            yield Breach(name, idx, f"{found.group()} without an issue number, as in (#7)")
        if found := PRIVATE_PATH.search(line):
            yield Breach(name, idx, f"a path of one machine: {found.group()}")
        if found := AUTHORSHIP.search(line):
            yield Breach(name, idx, f"words about authorship: {found.group()}")


def _check_file_lines(name: str, text: str, rules: Rules) -> Iterator[Breach]:
    limit = rules.limits["file_lines_max"]
    if wrong := rules.over("file_lines", name, len(text.splitlines()), limit=limit):
        yield Breach(name, 1, f"lines in the file: {wrong}")


def _check_readme(name: str, text: str, rules: Rules) -> Iterator[Breach]:
    limit = rules.limits["readme_lines_max"]
    if wrong := rules.over("readme_lines", name, len(text.splitlines()), limit=limit):
        yield Breach(name, 1, f"lines in a folder's README: {wrong}")


def _check_architecture(name: str, text: str, rules: Rules) -> Iterator[Breach]:
    limit = rules.limits["architecture_lines_max"]
    if wrong := rules.over("file_lines", name, len(text.splitlines()), limit=limit):
        yield Breach(name, 1, f"lines in the file: {wrong}")


def _check_rust(name: str, text: str, rules: Rules) -> Iterator[Breach]:
    lines = text.splitlines()
    if not any(line.startswith("//!") for line in lines[:3]):
        yield Breach(name, 1, "no module doc: open with //! and say what the file owns")
    sleeps = []
    for idx, line in enumerate(lines, 1):
        if RUST_IGNORED.search(line):
            yield Breach(name, idx, "an ignored test")
        if RUST_CODE.search(line):
            yield Breach(name, idx, "commented-out code")
        if RUST_SLEEP.search(line) and "/tests/" in name and not line.lstrip().startswith("//"):
            sleeps.append(idx)
    yield from _sleeps(name, sleeps, rules)


def _check_python(name: str, text: str, rules: Rules) -> Iterator[Breach]:
    try:
        tree = ast.parse(text, name)
    except SyntaxError as error:
        yield Breach(name, error.lineno or 1, f"does not parse: {error.msg}")
        return
    if text.strip() and not ast.get_docstring(tree):
        yield Breach(name, 1, "no module docstring: say what the file owns")
    yield from _function_lines(name, tree, text.splitlines(), rules)
    if name.startswith("python/"):
        yield from _sorted_all(name, tree)
    if name.startswith(("tests/", "conftest.py")):
        yield from _skip_marks(name, tree)
        yield from _sleeps(name, sorted(_sleep_lines(tree)), rules)


def _function_lines(
    name: str, tree: ast.Module, lines: list[str], rules: Rules
) -> Iterator[Breach]:
    limit = rules.limits["function_lines_max"]
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        body = node.body[1:] if ast.get_docstring(node) else node.body
        if not body:
            continue
        code = [line.strip() for line in lines[body[0].lineno - 1 : node.end_lineno]]
        count = sum(1 for line in code if line and not line.startswith("#"))
        path = f"{name}::{node.name}"
        if wrong := rules.over("function_lines", path, count, limit=limit):
            yield Breach(name, node.lineno, f"lines of code in {node.name}: {wrong}")


def _sorted_all(name: str, tree: ast.Module) -> Iterator[Breach]:
    file = name.rpartition("/")[2]
    public = file == "__init__.py" or not file.startswith("_")
    hidden = any(part.startswith("_") for part in name.split("/")[:-1])
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if isinstance(node, ast.AnnAssign):
            targets = [node.target]
        if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
            try:
                listed = list(ast.literal_eval(node.value))  # type: ignore[attr-defined]
            except ValueError:
                yield Breach(name, node.lineno, "__all__ is not a plain list")
                return
            if listed != sorted(listed):
                yield Breach(name, node.lineno, "__all__ is not sorted")
            return
    if public and not hidden and tree.body:
        yield Breach(name, 1, "a public module without __all__")


def _skip_marks(name: str, tree: ast.Module) -> Iterator[Breach]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in SKIP_MARKS:
            root: ast.expr = node
            while isinstance(root, ast.Attribute):
                root = root.value
            if isinstance(root, ast.Name) and root.id in ("pytest", "unittest"):
                yield Breach(name, node.lineno, f"a skipped test: {node.attr}")


def _sleep_lines(tree: ast.Module) -> Iterator[int]:
    """Find calls of time.sleep and asyncio.sleep; sleep(0) only yields and does not count."""
    names = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module in ("time", "asyncio", "anyio")
        for alias in node.names
        if alias.name == "sleep"
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        yields = (
            bool(node.args) and isinstance(node.args[0], ast.Constant) and not node.args[0].value
        )
        if (
            called in ("time.sleep", "asyncio.sleep", "anyio.sleep") or called in names
        ) and not yields:
            yield node.lineno


def _sleeps(name: str, lines: list[int], rules: Rules) -> Iterator[Breach]:
    if wrong := rules.over("sleep", name, len(lines), limit=0):
        where = lines[0] if lines else 1
        yield Breach(name, where, f"sleeps in tests: {wrong}; wait for an event instead")


def main() -> int:
    """Print every breach; the status is 1 if there is one."""
    return report(check(), rule="tidy")


if __name__ == "__main__":
    sys.exit(main())
