"""The measuring side: starts the load server and one fresh process per measurement.

Owns the load server's life, the order of runs, and the summary. Invariant: every measurement has
a server and a client process of its own, on cores of their own where there are two.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _works import WORKS, Work, work_named

BENCH = Path(__file__).resolve().parent
RESULTS = BENCH / "results"
SERVER_PROGRAM = BENCH.parent / "target" / "release" / "load-server"
CHILD_S_MAX = 300.0
RUNS = 5

# A number's name ends in its unit; longer endings come first.
UNITS = {"_per_s": "1/s", "_bytes": "byte", "_us": "us", "_ms": "ms", "_s": "s"}

Numbers = dict[str, float]


class BenchError(Exception):
    """A measurement that did not take place or did not do its work."""


@dataclass(frozen=True, slots=True)
class Variant:
    """A client and, for an engine, where its journal is: `memory:` or `sqlite`."""

    client: str
    script: str
    journal: str = ""


@dataclass(frozen=True, slots=True)
class LoadServer:
    """A running load server."""

    pid: int
    url: str

    def cpu_us(self) -> float:
        """CPU time of its serving thread.

        Source:
            Linux, Documentation/scheduler/sched-stats.rst, `/proc/<pid>/schedstat`.
        """
        return int(Path(f"/proc/{self.pid}/schedstat").read_text("ascii").split()[0]) / 1e3


MAINSPRING = (
    Variant("mainspring", "client_mainspring.py", "memory:"),
    Variant("mainspring", "client_mainspring.py", "sqlite"),
)
ASYNCIO = (Variant("asyncio", "client_asyncio.py"),)
VARIANTS = (*MAINSPRING, *ASYNCIO)


@contextmanager
def load_server(work: Work, more: dict[str, int] | None = None) -> Iterator[LoadServer]:
    """A load server that behaves as `work` says; it ends with the block, or with this process.

    Args:
        work: What it answers.
        more: Further options of the program.

    Raises:
        BenchError: it is not built, or did not start.
    """
    if not SERVER_PROGRAM.exists():
        raise BenchError("the load server is not built\nhint: cargo build --release -p load-server")
    options = {
        "--delay-ms": work.delay_ms,
        "--tool-turns": work.tool_turns,
        "--tools-per-turn": work.tools_per_turn,
        "--tool-name": work.tool_name,
        "--answer-chars": work.answer_chars,
        "--answer-tokens": work.answer_tokens,
        "--token-gap-ms": work.token_gap_ms,
        **(more or {}),
    }
    with subprocess.Popen(
        [str(SERVER_PROGRAM), *(str(word) for pair in options.items() for word in pair)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        preexec_fn=on_core(0),
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        with process.stdin:
            line = process.stdout.readline().decode()
            if not line.startswith("listening "):
                raise BenchError(f"the load server did not start, it said {line!r}")
            yield LoadServer(process.pid, f"http://{line.split()[1]}/v1")


def server_stats(server: LoadServer) -> dict[str, int]:
    """What a server has counted since it began."""
    with urllib.request.urlopen(server.url.removesuffix("/v1") + "/stats") as answer:
        stats: dict[str, int] = json.load(answer)
    return stats


def on_core(idx: int) -> Callable[[], None]:
    """For a new process: raises its limit of open files, and keeps it on one core.

    The server gets the first core and the client the last; with a single core they share it.
    """
    core = sorted(os.sched_getaffinity(0))[idx]

    def set_up() -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        os.sched_setaffinity(0, {core})

    return set_up


def run_child(script: str, setup: dict[str, Any]) -> Numbers:
    """Runs one measurement in a process of its own.

    Raises:
        BenchError: it failed; the message holds the end of what it wrote.
    """
    command = [sys.executable, str(BENCH / script), "--child", json.dumps(setup)]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=CHILD_S_MAX,
            preexec_fn=on_core(-1),
        )
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"{script} ran over {CHILD_S_MAX} s") from error
    lines = done.stdout.splitlines()
    if done.returncode != 0 or len(lines) != 1:
        wrote = (done.stderr or done.stdout).strip()[-2000:]
        raise BenchError(f"{script} ended with status {done.returncode}:\n{wrote}")
    numbers: Numbers = json.loads(lines[0])
    return numbers


def measure_once(variant: Variant, work: Work) -> Numbers:
    """One run of one work by one client, with a fresh server and a fresh journal."""
    with ExitStack() as stack:
        server = stack.enter_context(load_server(work))
        warm = server
        if work.kind == "parked":
            fast = Work("warm", "", "cpu", 0, 0, 0, answer_chars=work.answer_chars)
            warm = stack.enter_context(load_server(fast))
        journal = variant.journal
        if journal == "sqlite":
            journal = f"sqlite:///{stack.enter_context(journal_folder())}/bench.db"
        setup = {"work": work.to_json(), "url": server.url, "warm_url": warm.url}
        start_us = server.cpu_us()
        numbers = run_child(variant.script, {**setup, "journal": journal})
        requests = work.sessions * work.turns
        if warm is server:
            requests += work.warm_sessions * work.turns
        numbers["server_request_cpu_us"] = (server.cpu_us() - start_us) / requests
    return numbers


@contextmanager
def journal_folder() -> Iterator[str]:
    """An empty folder on the disk of this checkout, since the system's own may be in memory."""
    RESULTS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=RESULTS, prefix="journal-") as folder:
        yield folder


def folder_bytes(folder: str) -> int:
    """Sizes of all files in a journal's folder, the write-ahead log among them."""
    return sum(path.stat().st_size for path in Path(folder).iterdir())


def measure_all(
    variants: Sequence[Variant], works: Sequence[Work], *, runs: int
) -> list[dict[str, Any]]:
    """Measures each work with each client `runs` times, client after client within a run."""
    results: dict[tuple[str, Variant], list[Numbers]] = {}
    for run_idx in range(runs):
        for work in works:
            for variant in variants:
                say(f"run {run_idx + 1} of {runs}: {work.name}, {label(variant)}")
                numbers = measure_once(variant, work)
                results.setdefault((work.name, variant), []).append(numbers)
    return [
        {
            "row": "W4" if (name, variant.journal) == ("turns", "sqlite") else rows(works)[name],
            "work": name,
            "client": variant.client,
            "journal": variant.journal or None,
            "numbers": summary(numbers),
        }
        for (name, variant), numbers in results.items()
    ]


def rows(works: Sequence[Work]) -> dict[str, str]:
    """The row of the target table that each work belongs to."""
    return {work.name: work.row for work in works}


def label(variant: Variant) -> str:
    """A variant's name for people."""
    return f"{variant.client} {variant.journal}".rstrip()


def summary(runs: Sequence[Numbers]) -> dict[str, dict[str, Any]]:
    """Each number's unit, median, least, greatest and every run."""
    return {
        name: {
            "unit": unit_of(name),
            "median": round(statistics.median(values), 3),
            "min": round(min(values), 3),
            "max": round(max(values), 3),
            "runs": [round(value, 3) for value in values],
        }
        for name in runs[0]
        for values in [[numbers[name] for numbers in runs]]
    }


def unit_of(name: str) -> str:
    """The unit that ends a number's name.

    Raises:
        BenchError: it ends in none.
    """
    for ending, unit in UNITS.items():
        if name.endswith(ending):
            return unit
    raise BenchError(f'number "{name}" ends in no unit, allowed are {", ".join(UNITS)}')


def machine() -> dict[str, Any]:
    """What the numbers depend on besides the code."""
    with Path("/proc/cpuinfo").open(encoding="utf-8") as lines:
        models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    cores = sorted(os.sched_getaffinity(0))
    return {
        "cores": len(cores),
        "client_core": cores[-1],
        "server_core": cores[0],
        "cpu_model": models[0] if models else platform.machine(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "native_profile": native_profile(),
    }


def native_profile() -> str | None:
    """How Mainspring's native module was built; None where it is not installed."""
    code = "import mainspring._native as n; print(getattr(n, 'PROFILE', 'unknown'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def client_main(script: str, args: Sequence[str]) -> int:
    """What a client's script does when a person starts it: measures that client alone.

    Returns:
        The process's exit status.
    """
    parser = argparse.ArgumentParser(prog=Path(script).name, description="Measures one client.")
    add_options(parser)
    options = parser.parse_args(args)
    variants = [variant for variant in VARIANTS if variant.script == Path(script).name]
    try:
        results = measure_all(variants, chosen_works(options), runs=options.runs)
    except BenchError as error:
        say(str(error))
        return 1
    print(json.dumps({"machine": machine(), "runs": options.runs, "results": results}, indent=1))
    return 0


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that every script has."""
    names = [work.name for work in WORKS]
    parser.add_argument("--runs", type=int, default=RUNS, help=f"default {RUNS}")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, one run: a smoke run")
    parser.add_argument("--work", action="append", choices=names, help="default: all of them")


def chosen_works(options: argparse.Namespace) -> list[Work]:
    """The works that the options name; `--quick` also sets one run."""
    works = [work_named(name) for name in options.work] if options.work else list(WORKS)
    if options.quick:
        options.runs = 1
        works = [work.quick() for work in works]
    return works


def say(text: str) -> None:
    """Tells the person at the terminal; stdout is for JSON."""
    print(text, file=sys.stderr, flush=True)
