"""`mainspring prune`: ended sessions go, what others need stays."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from mainspring.testing import ScriptedModel, fail, say
from tests.api.cli_support import AGENTS, Desk, matches_snapshot


@pytest.fixture
def served() -> Iterator[ScriptedModel]:
    scripts = {
        "scripted": [say("done"), say("again")],
        "broken": [fail(401, "bad key")],
        "small": [say("yes, as you wish")],
    }
    with ScriptedModel(models=scripts) as model:
        yield model


@pytest.fixture
def desk(tmp_path: Path, served: ScriptedModel) -> Desk:
    """Three sessions: finished, of another agent, failed."""
    (tmp_path / "bots.py").write_text(AGENTS, encoding="utf-8")
    desk = Desk(tmp_path, served.base_url)
    broken = ("--base-url", desk.url, "--model", "broken")
    assert desk.run("run", "bots:agent", "go", "--session", "one").code == 0
    assert desk.run("run", "bots:routed", "go", "--session", "two").code == 0
    assert desk.run("run", "bots:agent", "go", "--session", "bad", *broken).code == 1
    return desk


def sessions(desk: Desk) -> list[str]:
    return [each["session"] for each in desk.run("sessions", "--json").document]


def test_what_is_younger_stays(desk: Desk) -> None:
    done = desk.run("prune", "--older-than", "1h")
    assert done.code == 0
    assert done.out == "removed 0 sessions (0 in part, for their forks), 0 events, 0 blobs\n"
    assert sessions(desk) == ["bad", "two", "one"]


def test_a_dry_run_counts_what_the_pruning_removes(desk: Desk) -> None:
    counted = desk.run("prune", "--older-than", "0s", "--dry-run", "--json").document
    assert counted["sessions"] == 3
    assert counted["events"] > 0
    assert sessions(desk) == ["bad", "two", "one"]
    removed = desk.run("prune", "--older-than", "0s", "--json").document
    assert (counted.pop("dry_run"), removed.pop("dry_run")) == (True, False)
    assert removed == counted
    assert sessions(desk) == []


def test_only_those_that_ended_so(desk: Desk) -> None:
    desk.run("prune", "--older-than", "0s", "--status", "failed", "--status", "cancelled")
    assert sessions(desk) == ["two", "one"]


def test_only_those_of_an_agent(desk: Desk) -> None:
    desk.run("prune", "--older-than", "0s", "--agent", "routed")
    assert sessions(desk) == ["bad", "one"]


def test_what_a_fork_shares_stays(desk: Desk) -> None:
    assert desk.run("fork", "one", "--input", "more", "--session", "f1").out == "again\n"
    # Its next turn waits for a worker, so it has not ended and stays.
    assert desk.run("run", "bots:agent", "go", "--session", "f1", "--submit").out == "f1\n"
    removed = desk.run("prune", "--older-than", "0s", "--json").document
    assert (removed["sessions"], removed["kept_for_forks"]) == (3, 1)
    assert sessions(desk) == ["f1"]
    shown = desk.run("show", "f1").out
    assert "forked   from" not in shown, "its parent is gone"
    assert shown.count("turn ") == 3
    assert desk.run("replay", "f1").code == 0


def test_compact_gives_room_back(desk: Desk) -> None:
    done = desk.run("prune", "--older-than", "0s", "--compact", "--json").document
    assert done["sessions"] == 3
    assert 0 < done["bytes_after"] <= done["bytes_before"]
    told = desk.run("prune", "--older-than", "0s", "--compact")
    assert told.out.splitlines()[1].startswith("compacted the store from 0.")


REFUSED = {
    "no_time": ("--older-than", "soon"),
    "no_unit": ("--older-than", "30"),
    "negative": ("--older-than", "-1d"),
    "time_missing": (),
    "open_status": ("--older-than", "1d", "--status", "open"),
    "compact_dry_run": ("--older-than", "1d", "--dry-run", "--compact"),
    "no_store": ("--older-than", "1d", "--store", "sqlite:///none.db"),
    "memory": ("--older-than", "1d", "--store", "memory:"),
}


def test_refused_pruning_snapshot(desk: Desk) -> None:
    shown = [
        f"== {name}: mainspring prune {' '.join(arguments)}\n"
        + desk.shown(desk.run("prune", *arguments))
        for name, arguments in REFUSED.items()
    ]
    matches_snapshot("cli_prune_refused.txt", "\n".join(shown))
    assert sessions(desk) == ["bad", "two", "one"]
    assert not (desk.folder / "none.db").exists()
