"""Agent steps with checkable answers, on the two local models: what small first is worth.

Owns the runs and the table. Invariant: a step counts as right only by `_steps.is_right`, and every
call that was made is in its cost and time, rejected ones too. Reading starts at `main`.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from _offline import cascades
from _steps import Step, agent_of, is_right, kinds, steps

from mainspring import Engine, Model, Route
from mainspring.events import ModelCallFinished, RouteDecided, ToolCallStarted
from mainspring.local import LocalServer, pull

SMALL, LARGE = "qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b"
OUTCOMES = Path(__file__).resolve().parent / "data" / "steps_outcomes.jsonl.gz"

PRICES = {SMALL: (0.10, 0.40), LARGE: (1.00, 4.00)}
"""US dollars per million tokens read and written. Local models have no price: these stand for two
neighbouring tiers of one provider, which lie a factor of 3 to 12 apart in their price lists."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a step went on a route.

    Args:
        id: The step.
        kind: Its class.
        prompt: What was asked.
        models: The models that were asked, in order.
        right: Whether the last answer is right.
        answer: The last answer: text, or the tool calls as JSON.
        logprob: Mean log-probability of the last answer's tokens, where the server told.
        cost_usd: All calls together, at `PRICES`.
        seconds: Time in model calls.
        tokens: Read and written, all calls together.
    """

    id: str
    kind: str
    prompt: str
    models: list[str]
    right: bool
    answer: str
    logprob: float | None
    cost_usd: float
    seconds: float
    tokens: int


async def run_step(engine: Engine, step: Step, route: Model | Route) -> Outcome:
    """Takes one step, and ends its session once the answer stands."""
    run = await engine.start(agent_of(step.kind, route), step.prompt)
    calls: list[ModelCallFinished] = []
    models: list[str] = []
    async for event in run.events():
        if isinstance(event, RouteDecided):
            models.append(event.model)
        elif isinstance(event, ModelCallFinished):
            calls.append(event)
        elif isinstance(event, ToolCallStarted):
            await run.cancel("the step is over")
            break
    last = calls[-1].answer if calls else None
    tools = [(each.name, _arguments(each.arguments)) for each in (last.tool_calls if last else ())]
    text = last.text if last else ""
    return Outcome(
        id=step.id,
        kind=step.kind,
        prompt=step.prompt,
        models=models,
        right=is_right(step, text, tools),
        answer=json.dumps(tools) if tools else text,
        logprob=getattr(getattr(calls[-1], "notes", None), "logprob_mean", None) if calls else None,
        cost_usd=sum(each.cost_usd or 0.0 for each in calls),
        seconds=sum(each.timing.total_us for each in calls) / 1e6,
        tokens=sum(each.usage.input_tokens + each.usage.output_tokens for each in calls),
    )


def _arguments(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


async def run_all(todo: Sequence[Step], route: Model | Route, *, name: str) -> list[Outcome]:
    """Takes every step, one after the other, since a local model computes on one core."""
    done: list[Outcome] = []
    start = time.monotonic()
    async with Engine("memory:") as engine:
        for step in todo:
            done.append(await run_step(engine, step, route))
            if len(done) % 20 == 0:
                right = sum(each.right for each in done)
                took = time.monotonic() - start
                print(f"{name}: {len(done)} steps, {right} right, {took:.0f} s", file=sys.stderr)
    return done


def local_model(server: LocalServer, name: str) -> Model:
    """A served model as the benchmark drives it: constrained answers, nothing left to chance."""
    return Model(
        name,
        base_url=server.base_url,
        tool_mode="json_schema",
        temperature=0.0,
        max_tokens=200,
        first_token_s=600.0,
        total_s=600.0,
        price=PRICES[name],
    )


def main() -> int:
    """Runs the routes that are asked for and prints one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=48, help="steps of each class")
    parser.add_argument("--route", action="append", choices=("small", "large", "cascade"))
    parser.add_argument("--kind", action="append", choices=tuple(kinds()), help="default: all")
    parser.add_argument("--out", type=Path, help="where the outcomes go, one JSON object a line")
    parser.add_argument(
        "--recorded", action="store_true", help="no model is asked: what was recorded, and learnt"
    )
    options = parser.parse_args()
    if options.recorded:
        print(recorded())
        return 0
    wanted = options.kind or list(kinds())
    todo = [each for each in steps(count=options.count) if each.kind in wanted]
    routes = options.route or ["small", "large", "cascade"]
    results: dict[str, list[Outcome]] = {}
    with ExitStack() as servers:
        made = {}
        for name in (SMALL, LARGE):
            pull(name)
            made[name] = local_model(servers.enter_context(LocalServer(name)), name)
        known = {
            "small": made[SMALL],
            "large": made[LARGE],
            "cascade": Route(made[SMALL], made[LARGE]),
        }
        for name in routes:
            results[name] = asyncio.run(run_all(todo, known[name], name=name))
            if options.out:
                write(options.out, results)
    print(table(results))
    return 0


def recorded() -> str:
    """The ways to take the recorded steps, each with its quality and cost."""
    text = gzip.decompress(OUTCOMES.read_bytes()).decode()
    rows = [json.loads(line) for line in text.splitlines()]
    lines = ["| way | right | cost per 1,000 steps | calls on large |", "|---|---|---|---|"]
    for name, (right, cost, large) in cascades(rows, (SMALL, LARGE), PRICES).items():
        lines.append(f"| {name} | {right} | {cost} | {large} |")
    return "\n".join(lines)


def write(path: Path, results: dict[str, list[Outcome]]) -> None:
    """Writes outcomes, gzipped where the name says so."""
    lines = "".join(
        json.dumps({"route": route} | asdict(each), ensure_ascii=False) + "\n"
        for route, outcomes in results.items()
        for each in outcomes
    )
    data = lines.encode()
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)


def table(results: dict[str, list[Outcome]]) -> str:
    """Quality, cost and time of each route, by class and together."""
    lines = [
        "| route | class | right | cost per 1,000 steps | calls on large | seconds a step |",
        "|---|---|---|---|---|---|",
    ]
    for route, outcomes in results.items():
        for kind in (*dict.fromkeys(each.kind for each in outcomes), "all"):
            group = [each for each in outcomes if kind in (each.kind, "all")]
            right = sum(each.right for each in group)
            large = sum(LARGE in each.models for each in group)
            cost = sum(each.cost_usd for each in group) / len(group) * 1000
            seconds = sum(each.seconds for each in group) / len(group)
            lines.append(
                f"| {route} | {kind} | {right} of {len(group)} ({right / len(group):.0%}) "
                f"| ${cost:.3f} | {large / len(group):.0%} | {seconds:.1f} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
