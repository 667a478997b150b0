"""Learned routing on public outcomes: `python bench/routing.py FOLDER`.

FOLDER holds `mmlu_outcomes.jsonl.gz` and `routerarena_sub10_outcomes.jsonl.gz` (fields: prompt,
split, and what a weak and a strong model scored). Everything is learnt from rows of the training
splits and reported on `test`; every probability comes from the native code. Prints a table on
stderr and JSON on stdout. Reading starts at `main`.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from mainspring.routing import (
    Curve,
    Outcome,
    Weights,
    apgr,
    decide,
    prices_of,
    probabilities,
    train,
    verdicts,
)

CREATED = "2026-11-25"
WEAK, STRONG = "weak", "strong"
MODELS = (WEAK, STRONG)
ONLINE_OUTCOMES = 300
REFIT_EVERY = 25
"""Outcomes after which the online run learns anew."""

PUBLISHED = {
    "MMLU, random (published)": (0.500, 50.07, 79.93),
    "MMLU, RouteLLM matrix factorisation, Arena only (published)": (0.524, 45.00, 76.86),
    "MMLU, RouteLLM causal LLM 8B + 1,500 labels (published)": (0.600, 35.49, 70.31),
    "MMLU, RouteLLM SW ranking + 1,500 labels (published, best)": (0.603, 35.40, 71.55),
}
"""APGR, CPT50, CPT80: RouteLLM, arXiv 2406.18665v4, table 2, all 14,037 questions."""

TARGETS = {
    "MMLU, 1,531 labels": 0.64,
    "MMLU, 4,031 labels": 0.67,
    "MMLU 4,031 used on RouterArena": 0.49,
    "MMLU 4,031 used on RouterArena, without names of tasks": 0.49,
    "RouterArena used on MMLU": 0.49,
    "RouterArena used on MMLU, without names of tasks": 0.49,
}

Row = dict[str, Any]


def main() -> int:
    """Runs all comparisons."""
    parser = argparse.ArgumentParser(description="Learned routing on public outcomes.")
    parser.add_argument("folder", type=Path, help="where the two files are")
    parser.add_argument("--resamples", type=int, default=1000)
    options = parser.parse_args()
    mmlu = mmlu_outcomes(load(options.folder / "mmlu_outcomes.jsonl.gz"))
    arena = arena_outcomes(load(options.folder / "routerarena_sub10_outcomes.jsonl.gz"))
    rows: list[Row] = [
        {"name": name, "apgr": value, "cpt50": half, "cpt80": most}
        for name, (value, half, most) in PUBLISHED.items()
    ]
    rows += on_mmlu(mmlu, options.resamples)
    rows += on_arena(arena, options.resamples)
    rows += elsewhere(mmlu, arena, options.resamples)
    online = on_line(arena)
    for row in rows:
        row["target"] = TARGETS.get(row["name"])
    show(rows, online)
    print(json.dumps({"routers": rows, "online": online}, indent=1))
    return 0


def load(path: Path) -> list[Row]:
    """The rows of a compressed file of JSON lines."""
    with gzip.open(path, "rt", encoding="utf-8") as text:
        return [json.loads(line) for line in text]


def mmlu_outcomes(rows: Sequence[Row]) -> list[Outcome]:
    """MMLU: the subject is the task's name."""
    return [
        Outcome(
            prompt=row["prompt"],
            scores={WEAK: float(row["weak_correct"]), STRONG: float(row["strong_correct"])},
            label=row["subject"],
            split=row["split"],
        )
        for row in rows
    ]


def arena_outcomes(rows: Sequence[Row]) -> list[Outcome]:
    """RouterArena: the data set is the task's name; a is called weak, b strong."""
    pair = ((WEAK, "a"), (STRONG, "b"))
    return [
        Outcome(
            prompt=row["prompt"],
            scores={name: float(row[key]["score"]) for name, key in pair},
            label=row["source"],
            split=row["split"],
            costs_usd={name: float(row[key]["cost_usd"]) for name, key in pair},
            input_tokens={name: int(row[key]["input_tokens"]) for name, key in pair},
            output_tokens={name: int(row[key]["output_tokens"]) for name, key in pair},
            answers={name: row[key]["response"] for name, key in pair},
        )
        for row in rows
    ]


def of_split(outcomes: Sequence[Outcome], *splits: str) -> list[Outcome]:
    """The rows of some splits."""
    return [each for each in outcomes if each.split in splits]


def nameless(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The rows without the names of their tasks: only the texts are left to tell."""
    return [replace(each, label="") for each in outcomes]


def weights_of(outcomes: Sequence[Outcome]) -> Weights:
    """What is learnt from the rows."""
    return Weights(train(outcomes, created=CREATED, models=MODELS).file)


def need_of(outcomes: Sequence[Outcome], weights: Weights) -> np.ndarray[Any, Any]:
    """How much more often the strong model is expected to be right."""
    expected = probabilities(outcomes, MODELS, weights)
    return expected[:, 1] - expected[:, 0]


def scored(name: str, outcomes: Sequence[Outcome], need: Any, resamples: int) -> Row:
    """A row of the table."""
    weak = np.array([each.scores[WEAK] for each in outcomes])
    strong = np.array([each.scores[STRONG] for each in outcomes])
    curve = Curve.of(np.asarray(need, dtype=np.float64), weak, strong)
    value = apgr(np.asarray(need, dtype=np.float64), weak, strong, resamples=resamples)
    return {
        "name": name,
        "apgr": value.value,
        "low": value.low,
        "high": value.high,
        "cpt50": curve.cpt(0.5),
        "cpt80": curve.cpt(0.8),
    }


def on_mmlu(mmlu: Sequence[Outcome], resamples: int) -> list[Row]:
    """In domain: trained and tested on MMLU."""
    test = of_split(mmlu, "test")
    lengths = [float(len(each.prompt)) for each in test]
    rows = [scored("MMLU, prompt length, untrained", test, lengths, resamples)]
    small, large = of_split(mmlu, "train"), of_split(mmlu, "train", "train_extra")
    for name, seen in (("1,531", small), ("4,031", large)):
        weights = weights_of(seen)
        named = need_of(test, weights)
        bare = need_of([replace(each, prompt="") for each in test], weights)
        rows.append(scored(f"MMLU, subject alone, {name}", test, bare, resamples))
        unnamed = weights_of(nameless(seen))
        texts = need_of(nameless(test), unnamed)
        rows.append(scored(f"MMLU, texts alone, {name}", test, texts, resamples))
        rows.append(scored(f"MMLU, {name} labels", test, named, resamples))
    return rows


def on_arena(arena: Sequence[Outcome], resamples: int) -> list[Row]:
    """In domain: before the answer, and after the weak model's."""
    seen, test = of_split(arena, "train"), of_split(arena, "test")
    weights = weights_of(seen)
    expected = probabilities(test, MODELS, weights)
    need = expected[:, 1] - expected[:, 0]
    rows = [scored("RouterArena, before the answer, 299", test, need, resamples)]
    after = answer_scores(test, weights)
    rows.append(scored("RouterArena, weak answer alone, 299", test, -after, resamples))
    together = expected[:, 1] - (expected[:, 0] + after) / 2.0
    rows.append(scored("RouterArena, router and weak answer, 299", test, together, resamples))
    untrained = answer_scores(test, None)
    rows.append(scored("RouterArena, weak answer alone, untrained", test, -untrained, resamples))
    return rows


def answer_scores(outcomes: Sequence[Outcome], weights: Weights | None) -> np.ndarray[Any, Any]:
    """Probability that each weak answer is right, from what its checks find."""
    evidence = [
        {"class": each.step_class, "question": each.prompt, "answer": each.answers[WEAK]}
        for each in outcomes
    ]
    return np.array([each["p_ok"] for each in verdicts(evidence, weights=weights)])


def elsewhere(mmlu: Sequence[Outcome], arena: Sequence[Outcome], resamples: int) -> list[Row]:
    """Weights of one set used on the other, where they must fall back."""
    pairs = (
        ("MMLU 4,031 used on RouterArena", of_split(mmlu, "train", "train_extra"), arena),
        ("RouterArena used on MMLU", of_split(arena, "train"), mmlu),
    )
    rows = []
    for name, seen, other in pairs:
        test = of_split(other, "test")
        rows.append(scored(name, test, need_of(test, weights_of(seen)), resamples))
        unnamed = need_of(nameless(test), weights_of(nameless(seen)))
        rows.append(scored(f"{name}, without names of tasks", test, unnamed, resamples))
    return rows


def on_line(arena: Sequence[Outcome]) -> Row:
    """A run that learns as it goes: it only ever sees the outcomes of the models it asked.

    a, the worse and dearer model, comes first in the route. The default policy explores with
    3 %, and learns anew every `REFIT_EVERY` outcomes.
    """
    order = [*of_split(arena, "train"), *of_split(arena, "test")]
    prices = prices_of(order, MODELS)
    seen: list[Outcome] = []
    asked: list[str] = []
    weights: Weights | None = None
    for idx, each in enumerate(order):
        if idx % REFIT_EVERY == 0 and len({row.chosen for row in seen}) == len(MODELS):
            weights = weights_of(seen)
        decision = decide([each], MODELS, weights=weights, prices=prices, seed=idx)[0]
        name = MODELS[decision["tier"]]
        asked.append(name)
        seen.append(
            replace(
                each,
                scores={name: each.scores[name]},
                chosen=name,
                propensity=decision["propensity"],
            )
        )
    later = asked[ONLINE_OUTCOMES:]
    return {
        "prices_usd_per_million": {name: asdict(price) for name, price in prices.items()},
        "calls_to_a_in_first_300": asked[:ONLINE_OUTCOMES].count(WEAK) / ONLINE_OUTCOMES,
        "calls_to_a_after_300": later.count(WEAK) / len(later),
        "calls_after_300": len(later),
        "target": 0.05,
    }


def show(rows: Sequence[Row], online: Row) -> None:
    """Prints the table for people."""
    say = lambda line: print(line, file=sys.stderr)  # noqa: E731
    say(f"{'router':62}{'APGR [95 %]':>24}{'CPT50':>8}{'CPT80':>8}  target")
    for row in rows:
        interval = f" [{row['low']:.3f}, {row['high']:.3f}]" if "low" in row else ""
        verdict = ""
        if row["target"] is not None:
            verdict = (
                f"  {row['target']:.2f} {'met' if row['apgr'] >= row['target'] else 'NOT MET'}"
            )
        say(
            f"{row['name']:62}{row['apgr']:.3f}{interval:>19}"
            f"{row['cpt50']:>8.1f}{row['cpt80']:>8.1f}{verdict}"
        )
    met = "met" if online["calls_to_a_after_300"] < online["target"] else "NOT MET"
    say(
        f"RouterArena online: calls to the dominated model: first 300 outcomes "
        f"{online['calls_to_a_in_first_300']:.1%}, after {online['calls_to_a_after_300']:.1%} "
        f"of {online['calls_after_300']}; target below 5 %: {met}"
    )


if __name__ == "__main__":
    sys.exit(main())
