"""`mainspring route`: why a step went to its model; learn routing from outcomes.

Invariant: a weights file is written whole or not at all; reports go to standard output. The package
`mainspring.routing` needs further packages and is loaded by the commands that use it.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mainspring.cli._exit import EXIT_CODES, note
from mainspring.cli._route_explain import EPILOG, explain
from mainspring.cli._store import JsonOption, StoreOption, existing_store
from mainspring.errors import RouteError

if TYPE_CHECKING:
    from mainspring.routing import Outcome

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Explain where steps went and why; learn from outcomes where they begin.",
)
app.command(epilog=EPILOG)(explain)

_TableArgument = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="TABLE",
        help="Tables of outcomes, .csv or .jsonl. Left out: the sessions of --store.",
        show_default=False,
    ),
]
_SplitOption = Annotated[
    str | None, typer.Option("--split", help="Only rows of this split. [default: all]")
]
_ModelsOption = Annotated[
    str | None,
    typer.Option(
        "--models",
        metavar="SMALL,LARGE",
        help="The models, smallest first. [default: as they come]",
    ),
]
_PolicyOption = Annotated[
    str,
    typer.Option("--policy", metavar="JSON", help="Numbers that differ from the default policy."),
]


@app.command(
    epilog="\b\nExamples:\n"
    "  mainspring route train outcomes.jsonl --models small,large --created 2026-11-25\n"
    "  mainspring route train --store sqlite:///agent.db --created 2026-11-25 --out w.json\n\n"
    + EXIT_CODES
)
def train(
    tables: _TableArgument = None,
    *,
    created: Annotated[
        str, typer.Option("--created", metavar="DATE", help="The date to write into the file.")
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="Where to write the weights.")
    ] = Path("weights.json"),
    models: _ModelsOption = None,
    split: _SplitOption = None,
    labels_min: Annotated[
        int,
        typer.Option(
            "--labels-min", min=1, help="Outcomes a class needs before its texts are looked at."
        ),
    ] = 100,
    store: StoreOption = None,
) -> None:
    """Fit priors, router and answer check to outcomes, and write them as a weights file.

    Outcomes come from tables, or from the routed steps in a store's sessions. What is printed was
    measured on rows that the fit had not seen. The same outcomes make the same file.
    """
    from mainspring.routing import TrainingLimits
    from mainspring.routing import train as fit

    outcomes = _outcomes(tables, split, store)
    trained = fit(
        outcomes,
        created=created,
        models=_names(models),
        limits=TrainingLimits(labels_min=labels_min),
    )
    _write(out, trained.file)
    print(_summary(trained.metrics))
    note(f"wrote {out} ({len(trained.file)} bytes); mainspring route report shows what it is worth")


@app.command(
    epilog="\b\nExamples:\n"
    "  mainspring route report outcomes.jsonl --weights w.json --split test --svg curve.svg\n"
    "  mainspring route report --store sqlite:///agent.db --weights w.json --json\n\n" + EXIT_CODES
)
def report(
    tables: _TableArgument = None,
    *,
    weights: Annotated[
        Path, typer.Option("--weights", metavar="FILE", help="The weights to look at.")
    ],
    models: _ModelsOption = None,
    split: _SplitOption = None,
    policy: _PolicyOption = "{}",
    svg: Annotated[
        Path | None, typer.Option("--svg", metavar="FILE", help="Also draw the curves here.")
    ] = None,
    as_json: JsonOption = False,
    store: StoreOption = None,
) -> None:
    """Show what weights are worth on outcomes: cost-quality curves and off-policy estimates.

    A table that knows every model's score gives curves with their intervals, beside routers that
    need no learning. A log gives estimates of what the policy would have been worth, from the
    probabilities with which its choices were made.
    """
    from mainspring.routing import Weights
    from mainspring.routing import report as hold

    found = hold(
        _outcomes(tables, split, store),
        Weights.load(weights),
        models=_names(models),
        policy=_object(policy),
    )
    if svg is not None:
        _write(svg, found.svg().encode())
        note(f"wrote {svg}")
    print(json.dumps(found.as_dict(), indent=2) if as_json else found.text())


def _outcomes(tables: list[Path] | None, split: str | None, store: str | None) -> "list[Outcome]":
    from mainspring.routing import outcomes_of_store, read_outcomes

    if tables:
        return [row for table in tables for row in read_outcomes(table, split=split)]
    found = outcomes_of_store(existing_store(store))
    if not found:
        raise RouteError(
            "route_invalid",
            "the store holds no step that was routed between models",
            "run an agent with two models first, or name a table of outcomes",
        )
    return found


def _names(models: str | None) -> list[str] | None:
    return None if models is None else [name.strip() for name in models.split(",")]


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise RouteError("route_invalid", f"the policy is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise RouteError("route_invalid", "the policy is not an object")
    return found


def _write(path: Path, content: bytes) -> None:
    """Writes beside the file first, so that a cut-off write never takes a good file's place."""
    beside = path.with_name(path.name + ".part")
    try:
        beside.write_bytes(content)
        beside.replace(path)
    except OSError as error:
        text = f'the file "{path}" cannot be written: {error.strerror}'
        raise RouteError("route_invalid", text) from error


def _summary(metrics: dict[str, Any]) -> str:
    lines = [f"learnt from {metrics['prompts']} prompts"]
    lines += [
        f"  {name:32} {each['outcomes']:>7} outcomes, mean score {each['mean_score']:.3f}, "
        f"squared error {each['brier']:.4f}"
        for name, each in metrics["models"].items()
    ]
    if "apgr" in metrics:
        each = metrics["apgr"]
        lines.append(
            f"APGR out of fold {each['value']:.3f} [{each['low']:.3f}, {each['high']:.3f}]"
        )
    if "brier" in metrics["answers"]:
        answers = metrics["answers"]
        lines.append(
            f"answer check from {answers['count']} answers, squared error {answers['brier']:.4f}"
        )
    return "\n".join(lines)
