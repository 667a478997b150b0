"""`mainspring route`: training and reports from the command line."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from mainspring.testing import ScriptedModel, say
from tests.api.cli_support import AGENTS, Desk
from tests.api.test_routing import outcomes, table


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """A folder with a table of outcomes."""
    table(tmp_path / "outcomes.csv", outcomes())
    return Desk(tmp_path, "http://127.0.0.1:9/v1")


def learn(desk: Desk, *more: str) -> str:
    words = (
        "outcomes.csv",
        "--models",
        "small,large",
        "--created",
        "2026-11-25",
        "--split",
        "train",
    )
    done = desk.run("route", "train", *words, *more)
    assert done.code == 0, done.err
    return done.out


def test_training_writes_weights_that_a_report_can_be_made_of(desk: Desk) -> None:
    said = learn(desk, "--out", "w.json")
    assert "learnt from 300 prompts" in said
    assert "APGR out of fold 0." in said
    assert "answer check from 300 answers" in said
    assert json.loads((desk.folder / "w.json").read_text())["created"] == "2026-11-25"
    words = ("route", "report", "outcomes.csv", "--split", "test", "--weights", "w.json")
    told = desk.run(*words, "--svg", "curve.svg")
    assert told.code == 0, told.err
    assert "100 outcomes of small (weak) and large (strong)" in told.out
    for name in ("learnt", "weak answer alone", "prompt length", "random"):
        assert name in told.out
    picture = ElementTree.fromstring((desk.folder / "curve.svg").read_text())
    lines = picture.findall("{http://www.w3.org/2000/svg}polyline")
    assert len(lines) == 6
    document = desk.run(*words, "--json", "--policy", '{"cost_weight": 0}').document
    assert document["routers"][3]["name"] == "learnt"
    assert document["replayed"]["shares"]["large"] > 0.3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("train", "none.csv", "--created", "x"), 'the table "none.csv" cannot be read'),
        (("train", "outcomes.csv", "--created", "x", "--split", "dev"), "no rows of the split"),
        (
            ("train", "outcomes.csv", "--created", "x", "--models", "small,huge"),
            'the outcomes have no score of the model "huge"',
        ),
        (("train", "outcomes.csv", "--created", "x", "--out", "no/w.json"), "cannot be written"),
        (("report", "outcomes.csv", "--weights", "none.json"), '"none.json" cannot be read'),
        (("report", "outcomes.csv", "--weights", "outcomes.csv"), "the routing weights cannot be"),
        (("report", "outcomes.csv", "--weights", "w.json", "--policy", "{"), "policy is not JSON"),
        (("report", "outcomes.csv", "--weights", "w.json", "--policy", "1"), "is not an object"),
    ],
)
def test_what_cannot_be_used_is_told_in_a_line(
    desk: Desk, words: tuple[str, ...], message: str
) -> None:
    if "w.json" in words:
        learn(desk, "--out", "w.json")
    done = desk.run("route", *words)
    assert done.code not in (0, 70), done.err
    assert message in done.err
    assert "Traceback" not in done.err


def test_a_store_without_routed_steps_teaches_nothing(tmp_path: Path) -> None:
    (tmp_path / "bots.py").write_text(AGENTS, encoding="utf-8")
    with ScriptedModel(models={"scripted": [say("done")]}) as model:
        desk = Desk(tmp_path, model.base_url)
        assert desk.run("run", "bots:agent", "go").code == 0
        done = desk.run("route", "train", "--created", "2026-11-25")
    assert done.code != 0
    assert "the store holds no step that was routed between models" in done.err
