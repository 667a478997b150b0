"""Holds crates and Python modules to the order in layers.toml.

Invariant: every crate and every module of the package has its place in that order, and nothing
is used upward, sideways between adapters, or through a third crate where layers.toml bans it.
Reading starts at `check`.
"""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tools.common import ROOT, Breach, report, source_files

Table = dict[str, Any]

PACKAGE = "mainspring"
SOURCE = "python/mainspring/"
DEPENDENCY_TABLES = ("dependencies", "build-dependencies", "dev-dependencies")


def check(root: Path = ROOT) -> list[Breach]:
    """Check the tree under `root` against its layers.toml and give every breach, sorted."""
    layers = tomllib.loads((root / "layers.toml").read_text())
    crates = _crates(root)
    return sorted(
        [
            *_check_crate_order(crates, layers["crates"]),
            *_check_banned(root, crates, layers["crates"]),
            *_check_owners(crates, layers["crates"].get("owners", {})),
            *_check_lints(root, crates),
            *_check_clippy_files(root, crates),
            *_check_python(root, layers["python"]),
        ]
    )


def _crates(root: Path) -> dict[str, tuple[str, Table]]:
    """Read every Cargo.toml below the root's: crate name -> (path of the file, its content)."""
    found = {}
    for name in source_files(root):
        if name.endswith("/Cargo.toml"):
            content = tomllib.loads((root / name).read_text())
            found[content["package"]["name"]] = (name, content)
    return found


def _dependencies(content: Table, *, tables: tuple[str, ...]) -> set[str]:
    """Name the crates that a Cargo.toml uses, by package name also where it renames them."""
    sections = [content, *content.get("target", {}).values()]
    return {
        spec.get("package", name) if isinstance(spec, dict) else name
        for section in sections
        for table in tables
        for name, spec in section.get(table, {}).items()
    }


def _check_crate_order(crates: dict[str, tuple[str, Table]], rules: Table) -> Iterator[Breach]:
    level = {name: idx for idx, line in enumerate(rules["order"]) for name in line}
    standalone = set(rules.get("standalone", []))
    test_only = set(rules.get("test_only", []))
    for name in sorted((set(level) | standalone | test_only) - set(crates)):
        yield Breach("layers.toml", 1, f'lists the crate "{name}", which is not in the tree')
    for name, (path, content) in crates.items():
        if name not in level and name not in standalone and name not in test_only:
            yield Breach(path, 1, f'the crate "{name}" has no place in layers.toml')
            continue
        for used in sorted(_dependencies(content, tables=DEPENDENCY_TABLES[:2]) & set(crates)):
            if used in test_only:
                yield Breach(path, 1, f"{name} uses {used}, which only dev-dependencies may name")
            elif name in standalone or used in standalone:
                yield Breach(path, 1, f"{name} uses {used}: a standalone crate stands alone")
            elif name in level and level[used] == level[name]:
                yield Breach(path, 1, f"{name} uses {used}, which is on the same layer")
            elif name in level and level[used] > level[name]:
                yield Breach(path, 1, f"{name} uses {used}, which is on a higher layer")


def _check_banned(
    root: Path, crates: dict[str, tuple[str, Table]], rules: Table
) -> Iterator[Breach]:
    lock = (
        tomllib.loads((root / "Cargo.lock").read_text()) if (root / "Cargo.lock").exists() else {}
    )
    graph: dict[str, set[str]] = {}
    for package in lock.get("package", []):
        # A dependency is "name", or "name version" where the lock holds several.
        names = {text.split(" ")[0] for text in package.get("dependencies", [])}
        graph.setdefault(package["name"], set()).update(names)
    for name, banned in rules.get("banned", {}).items():
        if name not in crates:
            yield Breach("layers.toml", 1, f'bans crates for "{name}", which is not in the tree')
            continue
        path, _ = crates[name]
        # The lock mixes the dev-dependencies of our own crates in, so theirs are read from
        # their Cargo.toml.
        for crate, (_, own) in crates.items():
            graph[crate] = _dependencies(own, tables=DEPENDENCY_TABLES[:2])
        for first in sorted(graph[name]):
            for bad in sorted(_reachable(graph, first) & set(banned)):
                way = "directly" if bad == first else f"through {first}"
                yield Breach(path, 1, f"{name} uses {bad} {way}, which layers.toml bans")


def _reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    seen = {start}
    todo = [start]
    while todo:
        for name in graph.get(todo.pop(), set()) - seen:
            seen.add(name)
            todo.append(name)
    return seen


def _check_owners(
    crates: dict[str, tuple[str, Table]], owners: dict[str, list[str]]
) -> Iterator[Breach]:
    for name, (path, content) in crates.items():
        for used in sorted(_dependencies(content, tables=DEPENDENCY_TABLES[:2]) & set(owners)):
            if name not in owners[used]:
                allowed = ", ".join(owners[used])
                yield Breach(path, 1, f"{name} names {used}, which only {allowed} may")


def _check_lints(root: Path, crates: dict[str, tuple[str, Table]]) -> Iterator[Breach]:
    shared = tomllib.loads((root / "Cargo.toml").read_text())["workspace"].get("lints", {})
    for name, (path, content) in crates.items():
        lints = content.get("lints", {})
        if lints.get("workspace") is True:
            continue
        # A crate that must relax one lint repeats the others.
        for tool, rules in shared.items():
            for rule in sorted(set(rules) - set(lints.get(tool, {})) - {"unsafe_code"}):
                yield Breach(path, 1, f"{name} leaves out the workspace lint {tool}::{rule}")
        if name != "mainspring-python":
            yield Breach(path, 1, f'{name} lacks "[lints] workspace = true"')


def _check_clippy_files(root: Path, crates: dict[str, tuple[str, Table]]) -> Iterator[Breach]:
    shared = tomllib.loads((root / "clippy.toml").read_text())
    for path, _ in crates.values():
        own = Path(path).parent / "clippy.toml"
        if not (root / own).exists():
            continue
        content = tomllib.loads((root / own).read_text())
        for key, value in shared.items():
            if content.get(key) != value:
                yield Breach(
                    str(own), 1, f"does not repeat {key} = {value} of the root clippy.toml"
                )


def _check_python(root: Path, rules: Table) -> Iterator[Breach]:
    level = {name: idx for idx, name in enumerate(rules["order"])}
    files = [n for n in source_files(root) if n.startswith(SOURCE) and n.endswith((".py", ".pyi"))]
    units = {_unit(name) for name in files} - {"__init__", "__main__"}
    for unit in sorted(set(level) - units):
        yield Breach("layers.toml", 1, f'lists the module "{unit}", which is not in the tree')
    for unit in sorted(units - set(level)):
        yield Breach("layers.toml", 1, f'"{PACKAGE}.{unit}" has no line in python.order')
    late = _Exceptions(rules.get("late", []), kind="late")
    upward = _Exceptions(rules.get("upward", []), kind="upward")
    graph: dict[str, set[str]] = {}
    for name in files:
        if name.endswith(".pyi"):
            continue
        module = _module(name)
        tree = ast.parse((root / name).read_text(), name)
        for line, target, at_top in _imports(tree):
            if target.startswith("."):
                yield Breach(name, line, f"relative import {target}: write it in full")
                continue
            if not at_top and not late.allows(module, target):
                yield Breach(name, line, f"imports {target} inside a function: move it to the top")
            if wrong := _wrong_import(name, target, level, upward):
                yield Breach(name, line, wrong)
            if at_top and target.split(".")[0] == PACKAGE and not upward.allows(module, target):
                graph.setdefault(module, set()).add(target)
    yield from late.unused()
    yield from upward.unused()
    yield from _check_cycles(graph, {_module(name) for name in files})


def _wrong_import(
    name: str, target: str, level: dict[str, int], upward: "_Exceptions"
) -> str | None:
    """Say what is wrong with the file `name` importing `target`, if anything."""
    parts = target.split(".")
    own = _unit(name)
    if parts[0] != PACKAGE or own in ("__init__", "__main__"):
        return None
    unit = parts[1] if len(parts) > 1 else "__init__"
    if unit not in level:
        return f"imports {target} from the package: import the module it lives in"
    higher = own in level and level[unit] > level[own]
    if higher and not upward.allows(_module(name), target):
        return f"{_module(name)} imports {target}, which is on a higher layer"
    return None


def _unit(name: str) -> str:
    """Give the part of a file's path that layers.toml orders: a module or a package's name."""
    return re.sub(r"\.pyi?$", "", name.removeprefix(SOURCE).split("/")[0])


def _module(name: str) -> str:
    dotted = re.sub(r"\.pyi?$", "", name.removeprefix("python/")).replace("/", ".")
    return dotted.removesuffix(".__init__")


def _imports(tree: ast.Module) -> Iterator[tuple[int, str, bool]]:
    """Give every import as (line, module in full, whether it stands at the top level).

    `from module import name` gives `module.name` inside the package, where `name` may be a module.
    """
    inside: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            inside.update(child for child in ast.walk(node) if child is not node)
    for node in ast.walk(tree):
        at_top = node not in inside
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, at_top
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            if base.split(".")[0] == PACKAGE or node.level:
                for alias in node.names:
                    joint = "" if base.endswith(".") else "."
                    yield node.lineno, f"{base}{joint}{alias.name}", at_top
            else:
                yield node.lineno, base, at_top


def _check_cycles(graph: dict[str, set[str]], modules: set[str]) -> Iterator[Breach]:
    """Find cycles between single modules, also inside one package."""
    known = {
        module: {target if target in modules else target.rpartition(".")[0] for target in targets}
        & modules
        for module, targets in graph.items()
    }
    for module in sorted(known):
        seen: set[str] = set()
        todo = [target for target in known[module] if target != module]
        while todo:
            here = todo.pop()
            if here == module:
                path = f"python/{module.replace('.', '/')}"
                yield Breach(path, 1, f"{module} imports itself in a circle")
                break
            if here not in seen:
                seen.add(here)
                todo.extend(known.get(here, set()))


class _Exceptions:
    """Listed exceptions to one import rule; each must carry a reason and be in use."""

    def __init__(self, entries: list[Table], *, kind: str) -> None:
        self._entries = entries
        self._kind = kind
        self._used: set[tuple[str, str]] = set()

    def allows(self, module: str, target: str) -> bool:
        """Tell whether an entry covers this import."""
        for entry in self._entries:
            for name in entry["imports"]:
                if entry["module"] == module and (target == name or target.startswith(f"{name}.")):
                    self._used.add((module, name))
                    return True
        return False

    def unused(self) -> Iterator[Breach]:
        """Give a breach for every entry without a reason or without use."""
        for entry in self._entries:
            if not entry.get("reason"):
                yield Breach(
                    "layers.toml", 1, f"python.{self._kind}: {entry['module']} has no reason"
                )
            for name in entry["imports"]:
                if (entry["module"], name) not in self._used:
                    text = f"python.{self._kind}: {entry['module']} no longer needs {name}"
                    yield Breach("layers.toml", 1, text)


def main() -> int:
    """Print every breach; the status is 1 if there is one."""
    return report(check(), rule="layers")


if __name__ == "__main__":
    sys.exit(main())
