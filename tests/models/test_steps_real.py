"""The step-level benchmark on the real models, made short; `make test-models` runs this.

Invariant: what comes out is judged by its form and its arithmetic, never by how clever a model is.
"""

import json
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).resolve().parents[2] / "bench" / "steps.py"
CLASSES = ("tool_args", "extract", "judge", "answer", "lookup")


def test_small_large_and_cascade_take_the_same_steps_and_stand_in_one_table(tmp_path: Path) -> None:
    out = tmp_path / "outcomes.jsonl"
    command = [sys.executable, str(BENCH), "--count", "2", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

    rows = [json.loads(line) for line in out.read_text().splitlines()]
    ways = {
        way: [row for row in rows if row["route"] == way] for way in ("small", "large", "cascade")
    }
    assert [row["kind"] for row in ways["small"]] == [each for each in CLASSES for _ in range(2)]
    assert len({tuple(row["id"] for row in found) for found in ways.values()}) == 1
    assert all(len(set(row["models"])) == 1 for row in (*ways["small"], *ways["large"]))
    assert all(row["cost_usd"] > 0 and row["seconds"] > 0 for row in rows)
    print(done.stdout)
    lines = [line for line in done.stdout.splitlines() if "| all |" in line]
    assert [line.split("|")[1].strip() for line in lines] == ["small", "large", "cascade"]
