"""Small trees that keep every rule, for tests that plant one breach at a time."""

from pathlib import Path

from tools.common import Breach

CRATE = """[package]
name = "{name}"
version = "0.1.0"

[lints]
workspace = true

[dependencies]
{dependencies}
"""

LAYERS = """[crates]
order = [["low"], ["left", "right"], ["high"]]
standalone = ["alone"]
test_only = ["sim"]

[crates.banned]
low = ["tokio"]

[crates.owners]
rusqlite = ["left"]

[python]
order = ["errors", "tool", "cli"]
"""

TIDY = """[limits]
file_lines_max = 30
function_lines_max = 5
readme_lines_max = 20
architecture_lines_max = 40
example_lines_max = 3

[files]
skip = []
readme_required = ["crates/*"]
"""

LOCK = """[[package]]
name = "wrapper"
version = "1.0.0"
dependencies = ["inner 2.0.0"]

[[package]]
name = "inner"
version = "2.0.0"
dependencies = ["tokio"]

[[package]]
name = "tokio"
version = "1.0.0"
"""

CRATES = {"low": "", "left": "low", "right": "low", "high": "left right", "alone": "", "sim": "low"}


def crate(name: str, *dependencies: str) -> str:
    """Write a Cargo.toml."""
    lines = "\n".join(f'{one} = "1"' for one in dependencies)
    return CRATE.format(name=name, dependencies=lines)


def plant(root: Path) -> Path:
    """Write a clean tree under `root`."""
    files = {
        "layers.toml": LAYERS,
        "tidy.toml": TIDY,
        "clippy.toml": "too-many-lines-threshold = 60\n",
        "Cargo.toml": '[workspace]\n[workspace.lints.rust]\nmissing_docs = "deny"\n',
        "Cargo.lock": LOCK,
        "python/mainspring/__init__.py": '"""Package."""\n\n__all__: list[str] = []\n',
        "python/mainspring/errors.py": '"""Errors."""\n\n__all__ = ["Error"]\n',
        "python/mainspring/tool.py": (
            '"""Tools."""\n\nfrom mainspring.errors import Error\n\n__all__ = ["Tool"]\n'
        ),
        "python/mainspring/cli/__init__.py": (
            '"""Commands."""\n\nfrom mainspring.cli._show import show\n\n__all__ = ["show"]\n'
        ),
        "python/mainspring/cli/_show.py": '"""Shows."""\n\nfrom mainspring.tool import Tool\n',
        "tests/test_it.py": '"""Tests."""\n\nimport asyncio\n',
    }
    for name, dependencies in CRATES.items():
        files[f"crates/{name}/Cargo.toml"] = crate(name, *dependencies.split())
        files[f"crates/{name}/src/lib.rs"] = "//! A crate.\n"
        files[f"crates/{name}/README.md"] = "# A crate\n"
    for name, text in files.items():
        put(root, name, text)
    return root


def put(root: Path, name: str, text: str) -> None:
    """Write one file of a tree."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def texts(breaches: list[Breach]) -> list[str]:
    """Give breaches as a list to compare as a whole."""
    return [str(breach) for breach in breaches]
