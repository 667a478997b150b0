"""The bench of budgets, small: what it says must hold, whatever the machine."""

import json
import subprocess
import sys

from tools.common import ROOT


def test_no_way_to_keep_a_budget_but_a_counter_exceeds_it() -> None:
    command = [sys.executable, "bench/budget.py", "--sessions", "60"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = {row["way"]: row for row in json.loads(done.stdout)["budget"]}
    assert rows["bounded"]["overshoot_usd"] == 0
    assert rows["unbounded"]["overshoot_usd"] <= rows["unbounded"]["excess_max_usd"]
    for way in ("bounded", "unbounded"):
        assert rows[way]["refused_sessions"] > 0
        assert rows[way]["spent_usd"] > 0.8 * rows[way]["limit_usd"]
    # All of them ask before any has told, which is what reserving is for.
    assert rows["checked"]["requests"] == 60
    assert rows["checked"]["overshoot_percent"] > 50
