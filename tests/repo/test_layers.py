"""The tree keeps its layers, and the check finds each kind of breach."""

from pathlib import Path

import pytest

from tests.repo.planted import crate, plant, put, texts
from tools import check_layers

PY = "python/mainspring"


def test_the_tree_keeps_its_layers() -> None:
    assert texts(check_layers.check()) == []


def test_a_clean_tree_has_no_breach(tmp_path: Path) -> None:
    assert texts(check_layers.check(plant(tmp_path))) == []


CRATE_BREACHES = {
    "upward": ("low", ["high"], "low uses high, which is on a higher layer"),
    "sideways": ("left", ["right"], "left uses right, which is on the same layer"),
    "standalone": ("alone", ["low"], "alone uses low: a standalone crate stands alone"),
    "test only": ("high", ["sim"], "high uses sim, which only dev-dependencies may name"),
    "banned": ("low", ["tokio"], "low uses tokio directly, which layers.toml bans"),
    "banned below": ("low", ["wrapper"], "low uses tokio through wrapper, which layers.toml bans"),
    "owned": ("high", ["rusqlite"], "high names rusqlite, which only left may"),
    "unlisted": ("new", [], 'the crate "new" has no place in layers.toml'),
}


@pytest.mark.parametrize("case", CRATE_BREACHES)
def test_a_crate_out_of_order_is_found(tmp_path: Path, case: str) -> None:
    name, dependencies, text = CRATE_BREACHES[case]
    root = plant(tmp_path)
    put(root, f"crates/{name}/Cargo.toml", crate(name, *dependencies))
    assert texts(check_layers.check(root)) == [f"crates/{name}/Cargo.toml:1: {text}"]


def test_a_renamed_dependency_is_still_found(tmp_path: Path) -> None:
    root = plant(tmp_path)
    text = crate("low") + 'quiet = { package = "tokio", version = "1" }\n'
    put(root, "crates/low/Cargo.toml", text)
    found = texts(check_layers.check(root))
    assert found == ["crates/low/Cargo.toml:1: low uses tokio directly, which layers.toml bans"]


def test_a_crate_without_the_shared_lints_is_found(tmp_path: Path) -> None:
    root = plant(tmp_path)
    put(root, "crates/low/Cargo.toml", '[package]\nname = "low"\nversion = "0.1.0"\n')
    assert texts(check_layers.check(root)) == [
        'crates/low/Cargo.toml:1: low lacks "[lints] workspace = true"',
        "crates/low/Cargo.toml:1: low leaves out the workspace lint rust::missing_docs",
    ]


def test_a_clippy_file_that_drops_a_shared_line_is_found(tmp_path: Path) -> None:
    root = plant(tmp_path)
    put(root, "crates/low/clippy.toml", "allow-unwrap-in-tests = true\n")
    text = "does not repeat too-many-lines-threshold = 60 of the root clippy.toml"
    assert texts(check_layers.check(root)) == [f"crates/low/clippy.toml:1: {text}"]


def test_a_line_for_a_crate_that_is_gone_is_found(tmp_path: Path) -> None:
    root = plant(tmp_path)
    (root / "crates/right/Cargo.toml").unlink()
    put(root, "crates/high/Cargo.toml", crate("high", "left"))
    text = 'lists the crate "right", which is not in the tree'
    assert texts(check_layers.check(root)) == [f"layers.toml:1: {text}"]


PYTHON_BREACHES = {
    "upward": (
        "errors",
        "from mainspring.cli import show",
        ["mainspring.errors imports mainspring.cli.show, which is on a higher layer"],
    ),
    "from the package": (
        "tool",
        "from mainspring import Agent",
        ["imports mainspring.Agent from the package: import the module it lives in"],
    ),
    "relative": ("tool", "from . import errors", ["relative import .errors: write it in full"]),
    "late": (
        "tool",
        "def f() -> None:\n    import json",
        ["imports json inside a function: move it to the top"],
    ),
}


@pytest.mark.parametrize("case", PYTHON_BREACHES)
def test_a_python_import_out_of_order_is_found(tmp_path: Path, case: str) -> None:
    module, code, wanted = PYTHON_BREACHES[case]
    root = plant(tmp_path)
    put(root, f"{PY}/{module}.py", f'"""Doc."""\n\n{code}\n')
    found = [breach.text for breach in check_layers.check(root)]
    assert [text for text in found if "circle" not in text] == wanted


def test_a_circle_inside_a_package_is_found(tmp_path: Path) -> None:
    root = plant(tmp_path)
    put(root, f"{PY}/cli/_a.py", '"""A."""\n\nfrom mainspring.cli._b import b\n')
    put(root, f"{PY}/cli/_b.py", '"""B."""\n\nfrom mainspring.cli import _a\n')
    assert [breach.text for breach in check_layers.check(root)] == [
        "mainspring.cli._a imports itself in a circle",
        "mainspring.cli._b imports itself in a circle",
    ]


def test_a_module_without_a_line_is_found(tmp_path: Path) -> None:
    root = plant(tmp_path)
    put(root, f"{PY}/memory.py", '"""Memory."""\n')
    found = texts(check_layers.check(root))
    assert found == ['layers.toml:1: "mainspring.memory" has no line in python.order']


def test_a_listed_late_import_is_allowed_and_a_stale_one_is_found(tmp_path: Path) -> None:
    root = plant(tmp_path)
    put(root, f"{PY}/tool.py", '"""Tools."""\n\n\ndef f() -> None:\n    import json\n')
    entry = '[[python.late]]\nmodule = "mainspring.tool"\nimports = ["json"{}]\nreason = "slow"\n'
    layers = (root / "layers.toml").read_text()
    put(root, "layers.toml", layers + entry.format(""))
    assert texts(check_layers.check(root)) == []
    put(root, "layers.toml", layers + entry.format(', "csv"'))
    text = "python.late: mainspring.tool no longer needs csv"
    assert texts(check_layers.check(root)) == [f"layers.toml:1: {text}"]
