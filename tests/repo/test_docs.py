"""Documents and examples run and print what they say; the checks find one that does not."""

import sys
from pathlib import Path

import pytest

from tests.repo.planted import plant, put, texts
from tools import check_docs, check_examples

PYTHON = Path(sys.executable)


@pytest.mark.parametrize("name", check_examples.names())
def test_example(name: str) -> None:
    assert texts(check_examples.check_one(name)) == []


@pytest.mark.parametrize("name", check_docs.pages())
def test_page(name: str) -> None:
    assert texts(check_docs.check_page(name)) == []


@pytest.mark.parametrize("name", check_docs.modules())
def test_docstring_examples(name: str) -> None:
    assert texts(check_docs.check_module(name)) == []


def test_examples_are_short() -> None:
    assert texts(check_docs.check_lengths()) == []


def test_a_wrong_example_is_found(tmp_path: Path) -> None:
    root = plant(tmp_path)
    put(root, "examples/a.py", 'print("one")\nprint("two")\n')
    put(root, "examples/a.out", "one\nthree\n")
    found = check_examples.check_one("a", root, python=PYTHON)
    assert texts(found) == ['examples/a.out:2: printed "two", recorded "three"']
    assert check_examples.check_one("a", root, python=PYTHON, fix=True) == []
    assert (root / "examples/a.out").read_text() == "one\ntwo\n"
    assert check_examples.check_one("a", root, python=PYTHON) == []


PAGE = """# Page

```python file=app.py
value = 6
```

```python continue
print(value * 7)
```

```text output
{answer}
```

```console run
$ echo hello
{greeting}
```

```python no-run
await value
```
"""


def test_a_page_runs_its_blocks_in_order(tmp_path: Path) -> None:
    root = plant(tmp_path)
    put(root, "docs/a.md", PAGE.format(answer="42", greeting="hello"))
    assert check_docs.pages(root)[-1] == "docs/a.md"
    assert texts(check_docs.check_page("docs/a.md", root, python=PYTHON)) == []


def test_a_page_that_lies_is_found(tmp_path: Path) -> None:
    root = plant(tmp_path)
    put(root, "docs/a.md", PAGE.format(answer="41", greeting="bye"))
    assert texts(check_docs.check_page("docs/a.md", root, python=PYTHON)) == [
        'docs/a.md:12: printed "42", recorded "41"',
        'docs/a.md:17: printed "hello", recorded "bye"',
    ]


def test_a_long_block_is_found(tmp_path: Path) -> None:
    root = plant(tmp_path)
    put(root, "docs/a.md", "```python\n" + "a = 1\n" * 4 + "```\n")
    found = texts(check_docs.check_lengths(root))
    assert found == ["docs/a.md:2: lines in a Python block: 4, allowed 3"]


@pytest.mark.parametrize("example", [">>> 1 + 1\n    3", "raise SystemExit(3)"])
def test_a_wrong_docstring_example_is_found(tmp_path: Path, example: str) -> None:
    root = plant(tmp_path)
    name = "python/mainspring/errors.py"
    put(root, name, f'"""Doc.\n\nExample:\n    {example}\n"""\n')
    found = check_docs.check_module(name, root, python=PYTHON)
    assert [breach.path for breach in found] == [name]
    put(root, name, '"""Doc.\n\nExample:\n    >>> 1 + 1\n    2\n"""\n')
    assert check_docs.check_module(name, root, python=PYTHON) == []
