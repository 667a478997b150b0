"""The whole benchmark in one go: what `make bench` runs.

Owns the comparison: the table, the targets and the results file. Invariant: a missed target is
said and never hidden, and it does not make the run fail; a measurement that did not do its work
does.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from _harness import (
    ASYNCIO,
    MAINSPRING,
    RESULTS,
    BenchError,
    Variant,
    add_options,
    chosen_works,
    label,
    machine,
    measure_all,
    say,
)
from disk import measure_disk
from route import measure_route

Result = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Target:
    """A bound on one number's median; `below` names the client whose own number is the bound."""

    stage: str
    work: str
    journal: str
    number: str
    bound: float = 0.0
    below: str = ""


TARGETS = (
    Target("first", "turns", "sqlite", "turn_cpu_us", 150.0),
    Target("first", "turns", "sqlite", "turn_cpu_us", below="asyncio"),
    Target("first", "latency", "sqlite", "turn_added_p99_ms", 100.0),
    Target("first", "parked", "sqlite", "session_pss_bytes", 25_000.0),
    Target("first", "disk", "sqlite", "closed_bytes", 1_000_000.0),
    Target("first", "disk", "sqlite", "peak_bytes", 1_000_000.0),
    Target("final", "turns", "memory:", "turn_cpu_us", 75.0),
    Target("final", "turns", "sqlite", "turn_cpu_us", 100.0),
    Target("final", "latency", "memory:", "turn_added_p99_ms", 60.0),
    Target("final", "parked", "memory:", "session_pss_bytes", 15_000.0),
    Target("final", "stream", "memory:", "turn_cpu_us", 600.0),
    Target("final", "history", "memory:", "turn_cpu_us", 60.0),
    Target("final", "disk", "sqlite", "closed_bytes", 600_000.0),
    Target("final", "route", "memory:", "decision_p50_us", 10.0),
    Target("final", "route", "memory:", "decision_p99_us", 50.0),
)


def main() -> int:
    """Measures, compares, prints JSON on stdout and tables on stderr.

    Returns:
        The process's exit status: 0 when every measurement took place.
    """
    parser = argparse.ArgumentParser(description="Runs the whole benchmark.")
    add_options(parser)
    parser.add_argument(
        "--client", action="append", choices=("mainspring", "asyncio"), help="default: both"
    )
    options = parser.parse_args()
    clients = options.client or ["mainspring", "asyncio"]
    works = chosen_works(options)
    try:
        need_modules(clients)
        variants = [each for each in (*MAINSPRING, *ASYNCIO) if each.client in clients]
        results = measure_all(variants, works, runs=options.runs)
        if "mainspring" in clients and not options.work:
            results.append(measure_disk(runs=options.runs, quick=options.quick))
            results.append(measure_route(runs=options.runs))
    except BenchError as error:
        say(str(error))
        return 1
    document = {
        "machine": machine(),
        "quick": options.quick,
        "runs": options.runs,
        "results": results,
        "targets": verdicts(results),
    }
    text = json.dumps(document, indent=1)
    RESULTS.mkdir(exist_ok=True)
    # A smoke run's numbers mean nothing and must not replace measured ones.
    name = "quick.json" if options.quick else "latest.json"
    (RESULTS / name).write_text(text + "\n", encoding="utf-8")
    show(document, variants)
    print(text)
    return 0


def need_modules(clients: Sequence[str]) -> None:
    """Checks that what the clients import is there.

    Raises:
        BenchError: a module is not installed.
    """
    modules = {"mainspring": "mainspring", "asyncio": "aiohttp"}
    for client in clients:
        module = modules[client]
        if importlib.util.find_spec(module) is None:
            raise BenchError(
                f'client "{client}" needs the module "{module}", which is not installed\n'
                f"hint: make bench installs it; --client leaves a client out"
            )


def verdicts(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Each target whose work was measured, with the value seen and whether it is met."""
    found = []
    for target in TARGETS:
        value = median(results, target.work, "mainspring", target.journal, target.number)
        bound: float | None = target.bound
        if target.below:
            bound = median(results, target.work, target.below, None, target.number)
        if value is None or bound is None:
            continue
        found.append(
            {
                "stage": target.stage,
                "work": target.work,
                "journal": target.journal,
                "number": target.number,
                "value": value,
                "bound": bound,
                "bound_is": target.below or "fixed",
                # Equal is enough for a fixed bound; a client must be beaten.
                "met": value < bound if target.below else value <= bound,
            }
        )
    return found


def median(
    results: Sequence[Result], work: str, client: str, journal: str | None, number: str
) -> float | None:
    """The median of one number, or None where it was not measured."""
    for result in results:
        if (result["work"], result["client"], result["journal"]) == (work, client, journal):
            value: float = result["numbers"][number]["median"]
            return value
    return None


def show(document: dict[str, Any], variants: Sequence[Variant]) -> None:
    """Prints the tables for people: the medians with their spread, then the targets."""
    results: list[Result] = document["results"]
    facts = document["machine"]
    say(
        f"\n{facts['cpu_model']}, {facts['cores']} cores, Python {facts['python']}, "
        f"native module {facts['native_profile']}; median (least to greatest) of "
        f"{document['runs']} runs"
    )
    head = "".join(f"{label(each):>34}" for each in variants)
    say(f"{'':4} {'work':13}{'number':26}{head}")
    if document["quick"]:
        say("smoke run: the numbers and verdicts below mean nothing")
    seen = list(dict.fromkeys(result["work"] for result in results))
    for work in seen:
        of_work = [result for result in results if result["work"] == work]
        for number in of_work[0]["numbers"]:
            cells = "".join(f"{cell(of_work, each, number):>34}" for each in variants)
            say(f"{of_work[0]['row']:4} {work:13}{number:26}{cells}")
    for verdict in document["targets"]:
        say(
            f"{'met    ' if verdict['met'] else 'not met'}  {verdict['stage']:5} "
            f"{verdict['work']} ({verdict['journal']}) {verdict['number']} "
            f"{figure(verdict['value'])}, bound {figure(verdict['bound'])}"
            + (f" ({verdict['bound_is']})" if verdict["bound_is"] != "fixed" else "")
        )


def cell(of_work: Sequence[Result], variant: Variant, number: str) -> str:
    """One number of one variant."""
    for result in of_work:
        if (result["client"], result["journal"] or "") == (variant.client, variant.journal):
            seen = result["numbers"][number]
            spread = f"{figure(seen['min'])} to {figure(seen['max'])}"
            return f"{figure(seen['median'])} ({spread})"
    return "-"


def figure(value: float) -> str:
    """A number with as many digits as mean something."""
    if abs(value) >= 1e6:
        return f"{value / 1e6:,.4g}M"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    sys.exit(main())
