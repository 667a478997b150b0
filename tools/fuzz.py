"""`make fuzz SECONDS=n`: let libFuzzer look for bytes that break a decoder.

The compiler is the stable one: what libFuzzer needs are LLVM's coverage counters, which it can
put in. Its crate is made in `target/fuzz`, outside of the workspace, because nothing else is to be
built with counters or to know libFuzzer. The recorded answers of `tests/fixtures/wire` are the
seeds; what is found on the way stays in `target/fuzz/corpus`, and the next run goes on from there.
"""

import shutil
import subprocess
import sys

from tools.common import ROOT, ToolError, environment, run_shown
from tools.setup import setup

TARGET = ROOT / "target" / "fuzz"
CRATE = TARGET / "crate"
SEEDS = TARGET / "seeds"
CORPUS = TARGET / "corpus"
MANIFEST = f"""
[package]
name = "fuzz"
version = "0.0.0"
edition = "2024"

[workspace]

[dependencies]
libfuzzer-sys = "=0.4.13"
mainspring-session = {{ path = "{ROOT}/crates/mainspring-session" }}
mainspring-wire = {{ path = "{ROOT}/crates/mainspring-wire" }}
serde_json = "1"

[[bin]]
name = "wire"
path = "{ROOT}/crates/mainspring-wire/fuzz/wire.rs"

[profile.release]
debug-assertions = true
overflow-checks = true
"""
COUNTERS = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
]
# By folder of recordings, the positions of its codecs in `laws.rs`.
CODECS = {"chat": (0, 1), "responses": (2,), "messages": (3,)}


def main() -> int:
    """Build with counters, write the seeds, and fuzz for the seconds given."""
    seconds = sys.argv[1] if len(sys.argv) > 1 else "60"
    try:
        setup(native=False)
    except ToolError as error:
        print(error, file=sys.stderr)
        return 1
    write_crate()
    write_seeds()
    host = host_target()
    # With a target named, build scripts are built without counters.
    build = ["cargo", "build", "--release", "--target", host, "--target-dir", str(TARGET)]
    build += ["--manifest-path", str(CRATE / "Cargo.toml")]
    if status := run_shown(build, env=environment() | {"RUSTFLAGS": " ".join(COUNTERS)}):
        return status
    limits = [f"-max_total_time={seconds}", "-max_len=6000", "-timeout=10", "-rss_limit_mb=2048"]
    program = str(TARGET / host / "release" / "wire")
    return run_shown([program, str(CORPUS), str(SEEDS), f"-artifact_prefix={TARGET}/", *limits])


def host_target() -> str:
    """The compiler's own target."""
    told = subprocess.run(
        ["rustc", "-vV"], env=environment(), capture_output=True, text=True, check=True
    )
    return next(
        line.removeprefix("host: ") for line in told.stdout.splitlines() if "host: " in line
    )


def write_crate() -> None:
    """The crate, with the versions that the workspace has locked."""
    CRATE.mkdir(parents=True, exist_ok=True)
    (CRATE / "Cargo.toml").write_text(MANIFEST)
    shutil.copy(ROOT / "Cargo.lock", CRATE / "Cargo.lock")


def write_seeds() -> None:
    """Each recorded answer, once for each codec that may get it."""
    for folder in (SEEDS, CORPUS):
        folder.mkdir(parents=True, exist_ok=True)
    for path in sorted((ROOT / "tests" / "fixtures" / "wire").glob("*/*")):
        for codec in CODECS[path.parent.name]:
            seed = SEEDS / f"{path.parent.name}-{codec}-{path.name}"
            seed.write_bytes(bytes([codec, 0]) + path.read_bytes())


if __name__ == "__main__":
    sys.exit(main())
