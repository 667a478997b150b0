"""Learned routing: tables and logs in, weights and reports out."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from mainspring.errors import RouteError
from mainspring.routing import (
    Curve,
    Outcome,
    TrainingLimits,
    Weights,
    apgr,
    estimate_off_policy,
    outcomes_of_events,
    prices_of,
    probabilities,
    read_outcomes,
    replay,
    report,
    train,
    verdicts,
)
from mainspring.routing._features import (
    answer_signals,
    document_rarity,
    text_features,
    weighted,
)
from mainspring.routing._fit import Line, Logistic, TextFit
from mainspring.routing._train import Table, averages

MODELS = ("small", "large")
DAY = "2026-11-25"


def outcomes(count: int = 400, *, seed: int = 0, label: str = "") -> list[Outcome]:
    """Small can do sums and not proofs; large can do both, and costs twenty times as much."""
    random = np.random.default_rng(seed)
    rows = []
    for idx in range(count):
        hard = bool(random.random() < 0.5)
        words = " ".join(f"w{random.integers(0, 60)}" for _ in range(8))
        prompt = f"{'prove the theorem' if hard else 'add the numbers'} {words} {idx % 7}"
        small = float(random.random() < (0.25 if hard else 0.9))
        large = float(random.random() < 0.9)
        doubt = "Perhaps it is so, I think." if random.random() < 0.7 - 0.6 * small else "It is so."
        rows.append(
            Outcome(
                prompt=prompt,
                scores={"small": small, "large": large},
                label=label,
                split="test" if idx % 4 == 0 else "train",
                costs_usd={"small": 0.0001, "large": 0.002},
                input_tokens={"small": 100, "large": 100},
                output_tokens={"small": 20 + idx % 5, "large": 20 + idx % 3},
                answers={"small": doubt},
            )
        )
    return rows


def table(path: Path, rows: list[Outcome]) -> Path:
    """The rows as a table, CSV or JSON lines by its name."""
    flat = []
    for row in rows:
        fields: dict[str, Any] = {"prompt": row.prompt, "class": row.step_class}
        fields |= {"label": row.label, "split": row.split}
        fields |= {f"score.{model}": score for model, score in row.scores.items()}
        fields |= {f"cost_usd.{model}": cost for model, cost in row.costs_usd.items()}
        fields |= {f"answer.{model}": text for model, text in row.answers.items()}
        if row.chosen is not None:
            fields |= {"chosen": row.chosen, "propensity": row.propensity}
        flat.append(fields)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(fields) + "\n" for fields in flat))
    else:
        names = list(flat[0])
        lines = [",".join(names)]
        lines += [",".join(f'"{fields[name]}"' for name in names) for fields in flat]
        path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def weights() -> Weights:
    return Weights(train(outcomes(), created=DAY, models=MODELS).file)


@pytest.mark.parametrize("name", ["t.jsonl", "t.csv"])
def test_a_table_reads_back_as_it_was_written(tmp_path: Path, name: str) -> None:
    rows = [
        replace(
            row, input_tokens={}, output_tokens={}, label="a, b", chosen="small", propensity=0.5
        )
        for row in outcomes(8)
    ]
    assert read_outcomes(table(tmp_path / name, rows)) == rows
    assert read_outcomes(table(tmp_path / name, rows), split="test") == [rows[0], rows[4]]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            '{"prompt": "p", "scored.a": 1}',
            'line 1 of "t.jsonl" has the column "scored.a", known are',
        ),
        ('{"prompt": "p", "score.a": 1.5}', "score.a is 1.5, allowed are numbers from 0 to 1"),
        ('{"prompt": "p", "score.a": "x"}', "score.a is 'x', allowed are numbers from 0 to 1"),
        ('{"prompt": "p", "score.a": NaN}', "score.a is nan, allowed are numbers from 0 to 1"),
        ('{"prompt": "p", "cost_usd.a": -1}', "cost_usd.a is -1, allowed are numbers from 0 to"),
        ('{"prompt": "p", "class": "poem"}', 'has the class "poem", known are plan, tool_args'),
        ('{"score.a": 1}', 'line 1 of "t.jsonl" has no prompt'),
        ('{"prompt": "p", "score.a": 1, "chosen": "a"}', "has only one of chosen and propensity"),
        ('{"prompt": "p", "score.a": 1, "chosen": "b", "propensity": 1}', '"b" has no score'),
        ('{"prompt": "p", "score.a": 1, "chosen": "a", "propensity": 0}', "propensity is 0"),
        ("[1]", "line 1 is list, needed is an object"),
        ("{", "line 1 is not JSON"),
        ("", 'the table "t.jsonl" has no rows'),
    ],
)
def test_a_bad_table_is_refused_with_its_line(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "t.jsonl"
    file.write_text(line)
    with pytest.raises(RouteError) as caught:
        read_outcomes(file)
    assert caught.value.code == "route_invalid"
    assert message in str(caught.value)


def test_tables_that_are_not_there_or_of_another_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RouteError, match="cannot be read"):
        read_outcomes(tmp_path / "none.csv")
    with pytest.raises(RouteError, match=r'ends in "\.xlsx", allowed are \.csv and \.jsonl'):
        read_outcomes(tmp_path / "t.xlsx")
    file = tmp_path / "t.csv"
    file.write_text("prompt,score.a\np,1,2\n")
    with pytest.raises(RouteError, match="line 2 has more fields than the head line"):
        read_outcomes(file)
    file.write_bytes(b"prompt,score.a\n\xff\xfe,1\n")
    with pytest.raises(RouteError, match="cannot be read"):
        read_outcomes(file)
    with pytest.raises(RouteError, match='no rows of the split "dev"'):
        read_outcomes(table(tmp_path / "t.jsonl", outcomes(4)), split="dev")


def test_serving_computes_what_training_fitted() -> None:
    rows = [replace(row, label=f"l{idx % 3}") for idx, row in enumerate(outcomes())]
    file = json.loads(train(rows, created=DAY, models=MODELS).file)
    served = probabilities(rows, MODELS, Weights(json.dumps(file).encode()))
    known = Table.of(rows, MODELS)
    fit = TextFit.fit(known.grams, known.surface, known.scores, known.counts)
    blended = fit.blended(
        averages(file["priors"], known, file["strength"]), known.grams, known.surface
    )
    wanted = Line(**file["calibration"]["answer"]).apply(blended)
    assert np.abs(served - wanted).max() < 1e-6


def test_serving_computes_what_scikit_learn_predicts() -> None:
    rows = [replace(row, label="sums") for row in outcomes()]
    file = json.loads(train(rows, created=DAY, models=MODELS).file)
    served = probabilities(
        rows, MODELS, Weights(json.dumps(file | {"calibration": {}, "strength": 0.0}).encode())
    )
    grams, surface = text_features([row.prompt for row in rows])
    values = weighted(grams, document_rarity(grams, document_count_min=2))
    standard = (surface - surface.mean(axis=0)) / np.maximum(surface.std(axis=0), 1e-3)
    for column, name in enumerate(MODELS):
        right = np.array([row.scores[name] for row in rows])
        by_grams = LogisticRegression(C=3.0, solver="liblinear", random_state=0, max_iter=1000)
        by_surface = LogisticRegression(C=0.1, max_iter=1000)
        # The rows are repeated in the order in which the training has them: right ones first.
        order = np.concatenate([np.flatnonzero(right == 1.0), np.flatnonzero(right == 0.0)])
        by_grams.fit(values[order], right[order])
        by_surface.fit(standard[order], right[order])
        expected = right.mean() + by_grams.predict_proba(values)[:, 1]
        expected = (expected + 0.5 * by_surface.predict_proba(standard)[:, 1]) / 2.5
        assert np.abs(served[:, column] - expected).max() < 1e-6


def test_the_answer_check_serves_what_was_fitted(weights: Weights) -> None:
    rows = outcomes(100, seed=5)
    evidence = [
        {"class": "answer", "question": row.prompt, "answer": row.answers["small"]} for row in rows
    ]
    file = json.loads(train(outcomes(), created=DAY, models=MODELS).file)["answer"]
    signals = answer_signals(evidence)
    model = Logistic(np.array(file["weights"]), file["intercept"])
    standard = (signals - np.array(file["mean"])) / np.array(file["scale"])
    wanted = Line(**file["classes"]["answer"])
    odds = standard @ model.weights + model.intercept
    expected = 1.0 / (1.0 + np.exp(-(wanted.slope * odds + wanted.intercept)))
    served = [each["p_ok"] for each in verdicts(evidence, weights=weights)]
    assert np.abs(np.array(served) - expected).max() < 1e-9


def test_training_learns_which_steps_need_the_large_model(weights: Weights) -> None:
    fresh = outcomes(seed=1)
    # A right step is worth a cent: 0.19 for the dearer tokens of large.
    policy = {"cost_weight": 100.0}
    found = report(fresh, weights, models=MODELS, policy=policy, resamples=50)
    by_name = {router.name: router.apgr.value for router in found.routers}
    # Sending exactly the hard half would give 0.75.
    assert by_name["learnt"] > 0.65
    assert by_name["router and weak answer"] > by_name["learnt"]
    assert by_name["random"] == pytest.approx(0.5)
    assert found.replayed is not None
    assert 0.3 < found.replayed.shares["large"] < 0.7
    assert found.replayed.quality > found.alone["small"] + 0.15


def test_the_same_outcomes_make_the_same_file() -> None:
    first, again = (train(outcomes(120), created=DAY, models=MODELS) for _ in range(2))
    assert first.file == again.file
    file = json.loads(first.file)
    assert (file["created"], file["models"], file["version"]) == (DAY, list(MODELS), 1)
    other = json.loads(train(outcomes(120, seed=1), created=DAY, models=MODELS).file)
    assert file["data_sha256"] != other["data_sha256"]
    assert set(file["metrics"]) >= {"prompts", "models", "calibration", "apgr", "answers"}


def test_few_outcomes_give_averages_and_no_text() -> None:
    few = train(outcomes(60), created=DAY, models=MODELS)
    assert json.loads(few.file)["text"] is None
    eager = train(outcomes(60), created=DAY, models=MODELS, limits=TrainingLimits(labels_min=50))
    assert json.loads(eager.file)["text"] is not None


def test_a_model_that_is_always_right_can_be_learnt() -> None:
    rows = [replace(row, scores={"small": row.scores["small"], "large": 1.0}) for row in outcomes()]
    served = probabilities(rows, MODELS, Weights(train(rows, created=DAY, models=MODELS).file))
    assert served[:, 1].min() > 0.9


@pytest.mark.parametrize(
    ("rows", "models", "message"),
    [
        (outcomes(19), MODELS, "19 outcomes teach nothing, at least 20 are needed"),
        ([], MODELS, "0 outcomes teach nothing"),
        (outcomes(30), ("small", "huge"), 'the outcomes have no score of the model "huge"'),
        (outcomes(30), ("small", "small"), "are none or not different"),
        (outcomes(30), (), "are none or not different"),
    ],
)
def test_what_cannot_be_learnt_is_refused(
    rows: list[Outcome], models: tuple[str, ...], message: str
) -> None:
    with pytest.raises(RouteError, match=message):
        train(rows, created=DAY, models=models)


def test_weights_used_elsewhere_fall_back_to_the_averages(weights: Weights) -> None:
    other = [replace(row, prompt="def f(x):\n    return x / 2 % 3\n" * 30) for row in outcomes(40)]
    served = probabilities(other, MODELS, weights)
    assert np.ptp(served, axis=0).max() == 0.0
    named = Weights(train(outcomes(label="sums"), created=DAY, models=MODELS).file)
    served = probabilities(outcomes(40, label="poems"), MODELS, named)
    assert np.ptp(served, axis=0).max() == 0.0
    assert np.ptp(probabilities(outcomes(40, label="sums"), MODELS, named), axis=0).max() > 0.3


def test_bad_weights_are_refused(tmp_path: Path, weights: Weights) -> None:
    good = train(outcomes(60), created=DAY, models=MODELS).file
    for cut in (0, 10, len(good) // 2, len(good) - 1):
        with pytest.raises(RouteError) as caught:
            Weights(good[:cut])
        assert caught.value.code == "route_invalid"
    newer = json.loads(good) | {"version": 2}
    with pytest.raises(RouteError) as caught:
        Weights(json.dumps(newer).encode())
    assert caught.value.code == "route_version"
    assert str(caught.value) == (
        "the routing weights have version 2, this version reads 1\n"
        "hint: mainspring route train writes the file anew"
    )
    with pytest.raises(RouteError, match="cannot be read"):
        Weights.load(tmp_path / "none.json")
    (tmp_path / "w.json").write_bytes(good)
    assert Weights.load(tmp_path / "w.json").models == list(MODELS)
    assert len(weights.id) == 64


def test_a_policy_that_cannot_be_is_refused(weights: Weights) -> None:
    for policy, message in [
        ({"explore": 2}, "policy explore is 2, allowed are 0 to 0.5"),
        ({"explorer": 0.1}, "the routing policy cannot be read: unknown field `explorer`"),
    ]:
        with pytest.raises(RouteError, match=message):
            replay(outcomes(2), MODELS, weights=weights, policy=policy)


def test_a_replay_under_another_policy_is_deterministic(weights: Weights) -> None:
    rows = outcomes(200, seed=3)
    usual = replay(rows, MODELS, weights=weights)
    assert usual == replay(rows, MODELS, weights=weights)
    thrifty = replay(rows, MODELS, weights=weights, policy={"cost_weight": 1e6})
    count = lambda found: sum(each["tier"] for each in found)  # noqa: E731
    assert count(usual) > 60
    assert count(thrifty) < 20
    untrained = replay(rows, MODELS, weights=None, policy={"explore": 0.0})
    assert {each["tier"] for each in untrained} == {0}
    assert untrained[0]["reason"] == "small first: its answer is checked"


def test_prices_are_those_that_explain_the_costs() -> None:
    rows = [
        replace(
            row,
            input_tokens={"small": 100 + idx},
            output_tokens={"small": 10 + idx % 7},
            costs_usd={"small": ((100 + idx) * 0.5 + (10 + idx % 7) * 2.0) / 1e6},
        )
        for idx, row in enumerate(outcomes(50))
    ]
    price = prices_of(rows, MODELS)["small"]
    assert (price.input_usd, price.output_usd) == pytest.approx((0.5, 2.0))
    assert "large" not in prices_of(rows, MODELS)


# Off-policy estimates, where the truth is known.


def logged(count: int, seed: int, wanted_large: Callable[[bool], float]) -> dict[str, Any]:
    """A log that explored with 0.2, and a policy whose true worth is known: small is right at easy
    steps with 0.8 and at hard ones with 0.2, large with 0.9 and 0.7."""
    random = np.random.default_rng(seed)
    hard = random.random(count) < 0.4
    large = random.random(count) < 0.2
    right = np.where(large, np.where(hard, 0.7, 0.9), np.where(hard, 0.2, 0.8))
    target = np.array([wanted_large(bool(each)) for each in hard])
    expected = np.column_stack([np.full(count, 0.5), np.full(count, 0.8)])
    return {
        "rewards": (random.random(count) < right).astype(float),
        "logged": np.where(large, 0.2, 0.8),
        "wanted": np.where(large, target, 1.0 - target),
        "model_taken": np.where(large, expected[:, 1], expected[:, 0]),
        "model_wanted": (1.0 - target) * expected[:, 0] + target * expected[:, 1],
    }


@pytest.mark.parametrize(
    ("wanted_large", "truth"),
    [
        (lambda hard: 1.0 if hard else 0.0, 0.6 * 0.8 + 0.4 * 0.7),
        (lambda hard: 0.0, 0.6 * 0.8 + 0.4 * 0.2),
        (lambda hard: 0.2, 0.8 * 0.56 + 0.2 * 0.82),
    ],
    ids=["large for hard steps", "never large", "the logging policy"],
)
def test_off_policy_estimates_find_the_truth(
    wanted_large: Callable[[bool], float], truth: float
) -> None:
    found = estimate_off_policy(**logged(20_000, 1, wanted_large))
    assert [each.method for each in found] == ["ips", "snips", "dr"]
    for each in found:
        assert each.value == pytest.approx(truth, abs=0.03)


def test_off_policy_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    truth = 0.6 * 0.8 + 0.4 * 0.7
    covered = np.zeros(3)
    for seed in range(60):
        found = estimate_off_policy(**logged(400, seed, lambda hard: 1.0 if hard else 0.0))
        covered += [each.low <= truth <= each.high for each in found]
    # 57 of 60 are expected; 50 or fewer come by chance once in a thousand times.
    assert covered.min() > 50


def test_the_effective_sample_shrinks_where_the_policies_differ() -> None:
    same = estimate_off_policy(**logged(1000, 0, lambda hard: 0.2))[0].sample_size
    other = estimate_off_policy(**logged(1000, 0, lambda hard: 1.0))[0].sample_size
    assert same == pytest.approx(1000.0)
    assert 150 < other < 250


def test_off_policy_estimates_refuse_what_is_no_log() -> None:
    nothing = np.array([])
    with pytest.raises(RouteError, match="no logged decisions"):
        estimate_off_policy(
            rewards=nothing,
            logged=nothing,
            wanted=nothing,
            model_taken=nothing,
            model_wanted=nothing,
        )
    one = np.array([1.0])
    with pytest.raises(RouteError, match="propensity is outside"):
        estimate_off_policy(
            rewards=one, logged=0 * one, wanted=one, model_taken=one, model_wanted=one
        )


def test_a_curve_is_the_mean_over_ties_and_apgr_its_area() -> None:
    weak, strong = np.array([0.0, 1.0, 0.0, 1.0]), np.array([1.0, 1.0, 1.0, 1.0])
    best = Curve.of(np.array([1.0, 0.0, 1.0, 0.0]), weak, strong)
    assert best.quality.tolist() == [0.5, 0.75, 1.0, 1.0, 1.0]
    assert best.apgr() == pytest.approx(0.75)
    assert (best.cpt(0.5), best.cpt(1.0)) == (25.0, 50.0)
    assert Curve.of(np.zeros(4), weak, strong).apgr() == pytest.approx(0.5)
    assert np.isnan(Curve.of(np.zeros(2), np.ones(2), np.ones(2)).apgr())
    value = apgr(np.array([1.0, 0.0, 1.0, 0.0] * 25), np.tile(weak, 25), np.tile(strong, 25))
    assert value.low < value.value < value.high


# Logs.


def session(*, explored: bool, rejected: bool) -> list[dict[str, Any]]:
    """What a session with one routed turn leaves in its log."""
    tier = 1 if explored else 0
    decision = {
        "class": "answer",
        "tier": tier,
        "propensity": 0.03 if explored else 0.97,
        "candidates": [{"name": "small"}, {"name": "large"}],
    }
    call = {"kind": "model_call_finished", "usage": {"input_tokens": 9, "output_tokens": 2}}
    events: list[dict[str, Any]] = [
        {"kind": "session_started", "agent": "helper"},
        {"kind": "input_received", "content": [{"type": "text", "text": "add 1 and 2"}]},
        {"kind": "route_decided", "model": MODELS[tier], "decision": decision},
        call | {"answer": {"text": "3"}, "cost_usd": 0.5},
    ]
    if rejected:
        events += [
            {"kind": "answer_rejected", "action": "escalate"},
            {"kind": "route_decided", "model": "large", "tier": 1},
            call | {"answer": {"text": "three"}, "cost_usd": 2.0},
        ]
    return [*events, {"kind": "session_finished", "step": 0}]


def test_a_log_tells_what_became_of_its_decisions() -> None:
    (accepted,) = outcomes_of_events(session(explored=False, rejected=False))
    assert accepted == Outcome(
        prompt="add 1 and 2",
        scores={"small": 1.0},
        label="helper",
        costs_usd={"small": 0.5},
        input_tokens={"small": 9},
        output_tokens={"small": 2},
        answers={"small": "3"},
        chosen="small",
        propensity=0.97,
    )
    (escalated,) = outcomes_of_events(session(explored=False, rejected=True))
    assert escalated.scores == {"small": 0.0, "large": 1.0}
    (explored,) = outcomes_of_events(session(explored=True, rejected=False))
    assert (explored.scores, explored.chosen, explored.propensity) == (
        {"large": 1.0},
        "large",
        0.03,
    )


def test_what_a_log_does_not_tell_makes_no_row() -> None:
    cancelled = [*session(explored=False, rejected=False)[:-1], {"kind": "session_cancelled"}]
    assert outcomes_of_events(cancelled) == []
    unrouted = [each for each in session(explored=False, rejected=False) if "decision" not in each]
    assert outcomes_of_events(unrouted) == []
    assert outcomes_of_events(session(explored=False, rejected=False)[:3]) == []


def test_a_log_is_learnt_from_and_reported_with_its_propensities() -> None:
    rows = [
        row
        for idx in range(300)
        for row in outcomes_of_events(session(explored=idx % 10 == 0, rejected=idx % 3 == 0))
    ]
    weights = Weights(train(rows, created=DAY, models=MODELS).file)
    found = report(rows, weights, models=MODELS)
    assert found.routers == []
    assert list(found.off_policy) == ["right at the first try", "cost of the first try, $"]
    assert [each.method for each in found.off_policy["right at the first try"]] == [
        "ips",
        "snips",
        "dr",
    ]
    assert "off-policy" not in found.text()
    assert "right at the first try" in found.text()


def test_what_the_large_model_did_after_a_failure_does_not_count_against_it() -> None:
    rows = [
        Outcome(prompt=f"p {idx}", scores={"small": 1.0}, chosen="small", propensity=0.9)
        for idx in range(60)
    ]
    rows += [
        Outcome(
            prompt=f"q {idx}", scores={"small": 0.0, "large": 0.0}, chosen="small", propensity=0.9
        )
        for idx in range(40)
    ]
    explored = [
        Outcome(prompt=f"r {idx}", scores={"large": 1.0}, chosen="large", propensity=0.1)
        for idx in range(25)
    ]
    few = json.loads(train(rows + explored[:5], created=DAY, models=MODELS).file)
    assert few["priors"]["classes"]["answer"][1]["mean"] == pytest.approx(5 / 45)
    many = json.loads(train(rows + explored, created=DAY, models=MODELS).file)
    assert many["priors"]["classes"]["answer"][1] == {"mean": 1.0, "count": 25.0}
