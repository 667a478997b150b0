"""The tree is tidy, and the check finds each kind of breach."""

from pathlib import Path

import pytest

from tests.repo.planted import plant, put, texts
from tools import check_tidy

OPEN = "TO" + "DO"
BODY = "".join(f"    a{idx} = {idx}\n" for idx in range(6))

# File -> what is put there, and the breach that follows.
BREACHES = {
    "long file": (
        "tests/a.py",
        '"""Doc."""\n' + "a = 1\n" * 30,
        "1: lines in the file: 31, allowed 30",
    ),
    "long function": (
        "tests/a.py",
        f'"""Doc."""\n\n\ndef f() -> None:\n    """Not counted."""\n    # Nor this.\n\n{BODY}',
        "4: lines of code in f: 6, allowed 5",
    ),
    "no docstring": ("tests/a.py", "a = 1\n", "1: no module docstring: say what the file owns"),
    "no module doc": (
        "crates/low/src/a.rs",
        "use std::fmt;\n",
        "1: no module doc: open with //! and say what the file owns",
    ),
    "ignored test": ("crates/low/src/a.rs", "//! Doc.\n#[ignore]\n", "2: an ignored test"),
    "dead code": ("crates/low/src/a.rs", "//! Doc.\n// let a = f(1);\n", "2: commented-out code"),
    "rust sleep": (
        "crates/low/tests/it/a.rs",
        "//! Doc.\nthread::sleep(wait);\n",
        "2: sleeps in tests: 1, allowed 0; wait for an event instead",
    ),
    "second test binary": (
        "crates/low/tests/b.rs",
        "//! Doc.\n",
        "1: one integration binary per crate: move it under tests/it/",
    ),
    "skipped test": (
        "tests/a.py",
        '"""Doc."""\n\n\n@pytest.mark.skip\ndef test_a() -> None: ...\n',
        "4: a skipped test: skip",
    ),
    "sleep": (
        "tests/a.py",
        '"""Doc."""\n\nimport time\n\ntime.sleep(1)\n',
        "5: sleeps in tests: 1, allowed 0; wait for an event instead",
    ),
    "imported sleep": (
        "tests/a.py",
        '"""Doc."""\n\nfrom asyncio import sleep\n\nawait_me = sleep(0.1)\n',
        "5: sleeps in tests: 1, allowed 0; wait for an event instead",
    ),
    "unsorted": (
        "python/mainspring/errors.py",
        '"""Doc."""\n\n__all__ = ["b", "a"]\n',
        "3: __all__ is not sorted",
    ),
    "no __all__": (
        "python/mainspring/errors.py",
        '"""Doc."""\n',
        "1: a public module without __all__",
    ),
    "open point": ("a.md", f"{OPEN}: later\n", f"1: {OPEN} without an issue number, as in (#7)"),
    "one machine": ("a.md", "see /ho" + "me/me/x\n", "1: a path of one machine: /ho" + "me/m"),
    "authorship": (
        "a.md",
        "Generated" + " with Codex\n",
        "1: words about authorship: Generated" + " with Codex",
    ),
    "long README": (
        "crates/low/README.md",
        "line\n" * 21,
        "1: lines in a folder's README: 21, allowed 20",
    ),
    "long ARCHITECTURE": ("ARCHITECTURE.md", "line\n" * 41, "1: lines in the file: 41, allowed 40"),
}


def test_the_tree_is_tidy() -> None:
    assert texts(check_tidy.check()) == []


def test_a_clean_tree_has_no_breach(tmp_path: Path) -> None:
    assert texts(check_tidy.check(plant(tmp_path))) == []


@pytest.mark.parametrize("case", BREACHES)
def test_an_untidy_file_is_found(tmp_path: Path, case: str) -> None:
    name, text, wanted = BREACHES[case]
    root = plant(tmp_path)
    put(root, name, text)
    assert texts(check_tidy.check(root)) == [f"{name}:{wanted}"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.md", f"{OPEN}(#12): later; POST to /v1/work/x; a shared/ folder\n"),
        ("crates/low/src/a.rs", "//! Doc.\n// The caller returns; we do not.\n"),
        ("tests/a.py", '"""Doc."""\n\nimport asyncio\n\nyields = asyncio.sleep(0)\n'),
    ],
)
def test_what_only_looks_untidy_is_allowed(tmp_path: Path, name: str, text: str) -> None:
    root = plant(tmp_path)
    put(root, name, text)
    assert texts(check_tidy.check(root)) == []


def test_a_missing_readme_is_found(tmp_path: Path) -> None:
    root = plant(tmp_path)
    (root / "crates/low/README.md").unlink()
    text = "missing: what the folder owns, must never do, how to test it"
    assert texts(check_tidy.check(root)) == [f"crates/low/README.md:1: {text}"]


@pytest.mark.parametrize(
    ("allowed", "wanted"),
    [
        (31, []),
        (30, ["tests/a.py:1: lines in the file: 31, allowed by exception 30"]),
        (40, ["tests/a.py:1: lines in the file: 31, lower the exception in tidy.toml from 40"]),
    ],
)
def test_an_exception_only_shrinks(tmp_path: Path, allowed: int, wanted: list[str]) -> None:
    root = plant(tmp_path)
    put(root, "tests/a.py", '"""Doc."""\n' + "a = 1\n" * 30)
    entry = f'[[exception]]\nrule = "file_lines"\npath = "tests/a.py"\nvalue = {allowed}\n'
    entry += 'reason = "x"\n'
    put(root, "tidy.toml", (root / "tidy.toml").read_text() + entry)
    assert texts(check_tidy.check(root)) == wanted


def test_an_exception_that_is_not_needed_is_found(tmp_path: Path) -> None:
    root = plant(tmp_path)
    entry = '\n[[exception]]\nrule = "sleep"\npath = "tests/a.py"\nvalue = 1\n'
    put(root, "tidy.toml", (root / "tidy.toml").read_text() + entry)
    assert texts(check_tidy.check(root)) == [
        "tidy.toml:1: exception sleep for tests/a.py has no reason",
        "tidy.toml:1: exception sleep for tests/a.py is no longer needed",
    ]
