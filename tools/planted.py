"""`make sim-planted`: take one guard away at a time and see that the simulation notices.

Each planted fault is an exact replacement in a copy of the crates, which fails loudly when the
source has moved. The copy is built in a target folder of its own, seeded from the tree's. Slow:
each fault is a build and a run, so this is no part of `make test`.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tools.common import ROOT, ToolError, environment, run_quietly
from tools.setup import setup
from tools.sim import BUILD

SEEDS = ("3000", "0")
LIMIT_S = 300


@dataclass(frozen=True)
class Planted:
    """A fault: what it is, and each (file, text, text in its place)."""

    name: str
    edits: tuple[tuple[str, str, str], ...]


SESSION = "crates/mainspring-session/src"
ENGINE = "crates/mainspring-engine/src"

FAULTS = (
    Planted(
        "the core takes a stale approval",
        (
            (
                f"{SESSION}/calls.rs",
                "    if current.status != CallStatus::Awaiting(decided.approval.clone()) {\n",
                "    if !matches!(current.status, CallStatus::Awaiting(_)) {\n",
            ),
            (
                f"{ENGINE}/decisions.rs",
                "given.as_ref().is_none_or(|given| given == open)",
                "given.as_ref().is_none_or(|given| given == open || given != open)",
            ),
        ),
    ),
    Planted(
        "a new owner runs unsafe calls again",
        (
            (
                f"{SESSION}/recover.rs",
                "Some(if effect.repeatable() {",
                "Some(if effect.repeatable() || effect == Effect::Unsafe {",
            ),
        ),
    ),
    Planted(
        "nobody looks at the lease before acting",
        (
            (
                f"{ENGINE}/dispatch.rs",
                "        match self.config.journal.hold(live.tenure) {\n",
                "        match Some(live.tenure).map_or(Hold::Lost, |_| Hold::Held) {\n",
            ),
            (
                f"{ENGINE}/engine.rs",
                "        self.journal.hold(tenure) == Hold::Held\n",
                "        self.journal.hold(tenure) == Hold::Held || tenure > 0\n",
            ),
        ),
    ),
    Planted(
        "commands are carried out before their events are durable",
        (
            (
                f"{ENGINE}/shard.rs",
                "        self.config.journal.append(append);\n",
                "        self.config.journal.append(append);\n"
                "        let live = self.lives.get_mut(&key);\n"
                "        let early = live.and_then(|live| live.pending.as_mut());\n"
                "        let early = early.map(|pending| std::mem::take(&mut pending.commands));\n"
                "        for command in early.unwrap_or_default() {\n"
                "            self.carry_out(key, command);\n"
                "        }\n",
            ),
        ),
    ),
    Planted(
        "the fence takes any epoch",
        (
            (
                "crates/mainspring-journal/src/fence.rs",
                "    if append.epoch != allowed {\n"
                "        return Err(JournalError::wrong_epoch(session, append.epoch, allowed));\n",
                "    if append.epoch > allowed {\n"
                "        return Err(JournalError::wrong_epoch(session, append.epoch, allowed));\n",
            ),
        ),
    ),
    Planted(
        "a held session goes on",
        (
            (
                f"{SESSION}/follow.rs",
                "        _ if state.held => Vec::new(),\n",
                "        _ if state.held && spec.models.is_empty() => Vec::new(),\n",
            ),
        ),
    ),
    Planted(
        "a fork's snapshot leaves its edit out",
        (
            (
                f"{ENGINE}/loader.rs",
                "            self.messages = self.messages.min(*index as usize);\n",
                "            self.messages = self.messages.min(*index as usize + 1_000_000);\n",
            ),
        ),
    ),
    Planted(
        "an acknowledgement heard twice counts for the next append",
        (
            (
                f"{ENGINE}/shard.rs",
                "pending.is_none_or(|pending| pending.token != ack.token)",
                "pending.is_none_or(|pending| key_of(pending.token) != key)",
            ),
        ),
    ),
)


def main() -> int:
    """Plant every fault (or those whose name contains the argument); 1 if one goes unnoticed."""
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    try:
        setup(native=False)
        run_quietly("simulation", BUILD)
        with tempfile.TemporaryDirectory(prefix="mainspring-planted-") as folder:
            tree = _copy(Path(folder))
            missed = [
                fault.name for fault in FAULTS if wanted in fault.name and _missed(tree, fault)
            ]
    except ToolError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{len(missed)} planted faults were not noticed")
    return 1 if missed else 0


def _copy(folder: Path) -> Path:
    tree = folder / "tree"
    tree.mkdir()
    for name in ("Cargo.toml", "Cargo.lock", "clippy.toml"):
        shutil.copy2(ROOT / name, tree / name)
    for name in ("crates", "bench"):
        shutil.copytree(ROOT / name, tree / name)
    target = tree / "target" / "release"
    target.mkdir(parents=True)
    for name in (".fingerprint", "build", "deps", "examples"):
        # Times are kept, so that cargo builds only what a fault changes.
        shutil.copytree(ROOT / "target" / "release" / name, target / name, symlinks=True)
    return tree


def _missed(tree: Path, fault: Planted) -> bool:
    """Plant a fault, run the simulation, say what noticed it, and take the fault out again."""
    before = {path: (tree / path).read_text() for path, _, _ in fault.edits}
    try:
        for path, text, instead in fault.edits:
            source = (tree / path).read_text()
            if source.count(text) != 1:
                raise ToolError(f"planted fault {fault.name!r} no longer fits {path}")
            (tree / path).write_text(source.replace(text, instead))
        env = environment() | {"CARGO_TARGET_DIR": str(tree / "target")}
        run_quietly(fault.name, BUILD, env=env, cwd=tree)
        found = _run(tree)
    finally:
        for path, text in before.items():
            (tree / path).write_text(text)
    print(f"{fault.name}: {found or 'NOT NOTICED'}", flush=True)
    return not found


def _run(tree: Path) -> str:
    """Run the simulation and give the first violation, if there is one."""
    command = [str(tree / "target" / "release" / "examples" / "sim"), *SEEDS]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=LIMIT_S,
            stdin=subprocess.DEVNULL,
            env=dict(os.environ),
        )
    except subprocess.TimeoutExpired:
        return f"a run did not end in {LIMIT_S} s"
    first = [line for line in done.stdout.splitlines() if line.startswith("seed ")]
    if first:
        return first[0][:160]
    return f"it ended with status {done.returncode}" if done.returncode not in (0, 1) else ""


if __name__ == "__main__":
    sys.exit(main())
