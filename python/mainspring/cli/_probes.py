"""What `mainspring doctor` tries on this machine, one function for each thing.

Invariant: a probe tries the thing itself, leaves nothing behind, reads the names of keys and never
prints their values, and reaches no other machine. Start reading at `PROBES`.
"""

import asyncio
import http.client
import importlib.util
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Literal

from mainspring._model_table import table
from mainspring.cli._store import reading, store_of
from mainspring.engine import Engine
from mainspring.errors import MainspringError
from mainspring.local import cache_root, listing

State = Literal["ok", "warn", "fail"]

PROGRAM_S_MAX = 30.0
"""Seconds that a program may take to tell its version."""

SERVER_S_MAX = 0.5
"""Seconds that a model server on this machine may take to list its models."""

SERVER_BYTES_MAX = 1 << 20
"""Bytes read of such a list."""

_FSYNC_COUNT = 9
_FSYNC_SLOW_S = 0.02
_OPEN_FILES_LOW = 4096
_DISK_LOW_BYTES = 1 << 30

# Port, and who usually listens there.
_SERVERS = (
    (11434, "Ollama"),
    (11435, "mainspring models serve"),
    (8080, "llama.cpp"),
    (1234, "LM Studio"),
    (8000, "vLLM"),
)


@dataclass(frozen=True, slots=True)
class Finding:
    """What a probe found.

    Args:
        name: What was tried.
        state: `ok`; `warn`: something is not possible; `fail`: basic use is not possible.
        detail: What was found.
        cure: What to do about it.
    """

    name: str
    state: State
    detail: str
    cure: str | None = None


def probe_python(store: str | None) -> Iterator[Finding]:
    """The interpreter and the native module."""
    yield Finding("python", "ok", f"{platform.python_version()}, {platform.platform()}")
    native = import_module("mainspring._native")
    detail = f"mainspring {native.__version__}, {native.PROFILE} build"
    if native.PROFILE == "release":
        yield Finding("engine", "ok", detail)
    else:
        yield Finding("engine", "warn", f"{detail}, slow", "build it with --release")


def probe_store(store: str | None) -> Iterator[Finding]:
    """A store is made, written, synced and dropped where the sessions are to be."""
    address = store_of(store)
    folder = _store_folder(address)
    if folder is None:
        yield Finding("store", "ok", f"{address} is no file")
        return
    try:
        with tempfile.TemporaryDirectory(prefix=".mainspring-doctor-", dir=folder) as made:
            asyncio.run(_open_store(f"sqlite:///{made}/doctor.db"))
            fsync_s = _fsync_s(Path(made) / "fsync")
    except (OSError, MainspringError) as error:
        why = error.message if isinstance(error, MainspringError) else str(error)
        cure = "choose a folder that can be written, with --store or MAINSPRING_STORE"
        yield Finding("store", "fail", f"{folder}: {why}", cure)
        return
    detail = f"{folder} can be written, fsync takes {fsync_s * 1000:.1f} ms"
    slow = "each step waits for the disk; durability normal waits less, or use a faster disk"
    state: State = "warn" if fsync_s > _FSYNC_SLOW_S else "ok"
    yield Finding("store", state, detail, slow if state == "warn" else None)
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < _DISK_LOW_BYTES:
        yield Finding("disk", "warn", f"{_gb(free_bytes)} free in {folder}", "free some space")
    else:
        yield Finding("disk", "ok", f"{_gb(free_bytes)} free in {folder}")


def probe_sessions(store: str | None) -> Iterator[Finding]:
    """The store that is there already, if it is."""
    address = store_of(store)
    path = _store_path(address)
    if path is None or not path.exists():
        return
    try:
        with reading(store) as reader:
            open_count = len(reader.sessions("open", 1000, None))
    except MainspringError as error:
        yield Finding("sessions", "fail", error.message, error.hint)
        return
    detail = f"{path} can be read, {open_count} open sessions"
    cure = "mainspring sessions --status open lists them" if open_count else None
    yield Finding("sessions", "ok", detail, cure)


def probe_machine(store: str | None) -> Iterator[Finding]:
    """Cores, memory and the limit on open files."""
    yield Finding("cores", "ok", f"{len(os.sched_getaffinity(0))} usable")
    free = memory_free_bytes()
    if free is not None:
        yield Finding("memory", "ok", f"{_gb(free)} free")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    detail = f"{soft:,} open files allowed"
    if 0 <= soft < _OPEN_FILES_LOW:
        most = "65536" if hard < 0 else str(min(hard, 65_536))
        cure = f"for thousands of sessions at once: ulimit -n {most}"
        yield Finding("files", "warn", detail, cure)
    else:
        yield Finding("files", "ok", detail)


def probe_local_models(store: str | None) -> Iterator[Finding]:
    """The runtime for local models, the models pulled, and whether memory suffices for them."""
    yield _runtime()
    free = memory_free_bytes()
    for model in listing():
        name = f"model {model.name}"
        needs = f"needs {_gb(model.ram_bytes)} of memory"
        if free is not None and free < model.ram_bytes:
            short = f"{needs}, {_gb(free)} are free"
            yield Finding(name, "warn", short, "end other programs, or take a smaller model")
        elif model.path is None:
            size = f"{model.size_bytes / 1e6:.0f} MB"
            yield Finding(
                name,
                "warn",
                f"not pulled, {needs}",
                f"mainspring models pull {model.name} ({size})",
            )
        else:
            yield Finding(name, "ok", f"pulled, {needs}")
    free_bytes = shutil.disk_usage(_existing(cache_root())).free
    yield Finding("model cache", "ok", f"{cache_root()}, {_gb(free_bytes)} free")


def probe_programs(store: str | None) -> Iterator[Finding]:
    """Programs that MCP servers are often started with."""
    for program in ("git", "node", "npx", "uvx"):
        path = shutil.which(program)
        if path is None:
            yield Finding(
                program,
                "warn",
                "not found",
                f"only MCP servers that are started with {program} need it",
            )
            continue
        code, output = _run([path, "--version"])
        if code == 0:
            yield Finding(program, "ok", output.splitlines()[0] if output else path)
        else:
            yield Finding(program, "warn", f"{path} fails: {output[-200:]}", "install it anew")


def probe_keys(store: str | None) -> Iterator[Finding]:
    """Which providers' keys are set, by name."""
    names = sorted({each.key_env for each in table().providers.values() if each.key_env})
    present = [name for name in names if os.environ.get(name, "").strip()]
    if present:
        yield Finding("keys", "ok", f"{', '.join(present)} set (not tried)")
    else:
        yield Finding(
            "keys", "warn", f"none of {', '.join(names)} is set", "set one, or run a model here"
        )


def probe_servers(store: str | None) -> Iterator[Finding]:
    """Model servers on this machine, at the ports they usually take."""
    found = False
    for port, usual in _SERVERS:
        models = _server_models(port)
        if models is None:
            continue
        found = True
        listed = ", ".join(models[:5]) or "no model"
        use = f"--base-url http://127.0.0.1:{port}/v1 --model {models[0]}" if models else None
        yield Finding(f"server :{port}", "ok", f"{listed} (the usual port of {usual})", use)
    if not found:
        ports = ", ".join(f"{port} {usual}" for port, usual in _SERVERS)
        yield Finding(
            "servers",
            "warn",
            f"no model server answers on this machine ({ports})",
            "mainspring models serve NAME starts one",
        )


PROBES: tuple[Callable[[str | None], Iterator[Finding]], ...] = (
    probe_python,
    probe_store,
    probe_sessions,
    probe_machine,
    probe_keys,
    probe_servers,
    probe_local_models,
    probe_programs,
)
"""All probes in order; each takes the `--store` option."""


async def _open_store(address: str) -> None:
    async with Engine(address) as engine:
        await engine.sessions(limit=1)


def _fsync_s(path: Path) -> float:
    times: list[float] = []
    with path.open("wb") as file:
        for _ in range(_FSYNC_COUNT):
            start_s = time.perf_counter()
            file.write(b"\0" * 4096)
            file.flush()
            os.fsync(file.fileno())
            times.append(time.perf_counter() - start_s)
    return statistics.median(times)


def _store_path(address: str) -> Path | None:
    if address.startswith("sqlite:///"):
        return Path(address.removeprefix("sqlite:///"))
    return None if ":" in address.partition("/")[0] else Path(address)


def _store_folder(address: str) -> Path | None:
    """The folder of the store, or the nearest one above it for the default that is not made yet."""
    path = _store_path(address)
    if path is None:
        return None
    return _existing(path.parent) if address == store_of(None) else path.parent


def _existing(path: Path) -> Path:
    path = path.absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def memory_free_bytes() -> int | None:
    """Memory that programs can still get: of the machine, or what is left of a cgroup's limit."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="utf-8")
    except OSError:
        return None
    rows = dict(row.split(":", 1) for row in text.splitlines() if ":" in row)
    free = int(rows["MemAvailable"].split()[0]) * 1024
    try:
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text(encoding="utf-8"))
        used = int((group / "memory.current").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return free
    return max(0, min(free, limit - used))


def _runtime() -> Finding:
    name = "local runtime"
    if importlib.util.find_spec("xllamacpp") is None:
        cure = "pip install 'mainspring[demo]'"
        return Finding(name, "warn", "xllamacpp (llama.cpp) is not installed", cure)
    # In a process of its own: it is large, and a wrong build may crash.
    code, output = _run([sys.executable, "-c", "import xllamacpp; print(xllamacpp.__version__)"])
    if code == 0:
        return Finding(name, "ok", f"xllamacpp {output}")
    last = output.splitlines()[-1] if output else f"ended with code {code}"
    cure = "pip install --force-reinstall xllamacpp"
    return Finding(name, "warn", f"xllamacpp cannot be loaded: {last}", cure)


def _run(command: list[str]) -> tuple[int, str]:
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PROGRAM_S_MAX,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, str(error)
    return done.returncode, (done.stdout or done.stderr).strip()


def _server_models(port: int) -> list[str] | None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SERVER_S_MAX)
    try:
        connection.request("GET", "/v1/models")
        answer = json.loads(connection.getresponse().read(SERVER_BYTES_MAX))
        return [str(each["id"]) for each in answer["data"]]
    except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def _gb(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.1f} GB"
