"""Starts a PostgreSQL server of its own for tests, and ends it when its standard input closes.

    python3 -m tools.postgres_server

prints the server's address, `postgresql://postgres@127.0.0.1:PORT/postgres`, as one line, then
reads commands, one a line, and answers each with one line: `restart` (all connections cut, no
orderly end), `stop`, `start`, `pid` (of the postmaster), and `pooler`, which starts a PgBouncer in
transaction mode before the server and answers its address without a database. The server listens on
loopback only, trusts everybody there but the user `with_password`, has TLS switched on with a
certificate of its own if `openssl` is there (`ca` answers with its path), and keeps its data in a
temporary folder that goes with it. It takes shortcuts with the disk unless `--durable` is given.

Invariant: whatever ends this process, no server stays behind.
"""

import argparse
import ctypes
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# prctl(2): the signal that a child gets when its parent dies.
_PR_SET_PDEATHSIG = 1
_START_S_MAX = 120


def find_program(name: str) -> Path | None:
    """Find a program of the PostgreSQL server, also where Debian keeps it, the newest first."""
    found = sorted(
        Path("/usr/lib/postgresql").glob(f"*/bin/{name}"),
        key=lambda path: int(path.parts[-3]) if path.parts[-3].isdigit() else 0,
    )
    if found:
        return found[-1]
    on_path = shutil.which(name) or shutil.which(name, path="/usr/sbin")
    return Path(on_path).resolve() if on_path else None


class Server:
    """A server in a temporary folder, on a free port of loopback."""

    def __init__(self, *, durable: bool) -> None:
        programs = {name: find_program(name) for name in ("initdb", "postgres")}
        for name, path in programs.items():
            if path is None:
                raise SystemExit(f"no {name} found: apt-get install postgresql")
        self._postgres = str(programs["postgres"])
        self._folder = Path(tempfile.mkdtemp(prefix="mainspring-postgres-"))
        self._data = self._folder / "data"
        self._process: subprocess.Popen[bytes] | None = None
        self._pooler: subprocess.Popen[bytes] | None = None
        self._user: dict[str, str | int | list[int]] = {}
        if os.geteuid() == 0:
            # PostgreSQL refuses to run as root.
            nobody = pwd.getpwnam("nobody")
            self._user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            os.chown(self._folder, nobody.pw_uid, nobody.pw_gid)
        self._run(
            str(programs["initdb"]), "-D", str(self._data), "-U", "postgres", "-A", "trust",
            "-E", "UTF8", "--locale=C", "--no-sync", "--no-instructions",
        )  # fmt: skip
        self.port = _free_port()
        self.certificate = self._make_certificate()
        self._configure(durable=durable)

    @property
    def url(self) -> str:
        """Give the address of the server's own database."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    @property
    def pid(self) -> int:
        """Give the process id of the postmaster, 0 if it is stopped."""
        return self._process.pid if self._process else 0

    def start(self) -> None:
        """Start the server and wait until it takes connections."""
        self._process = self._spawn(self._postgres, "-D", str(self._data))
        self._wait(self._process, self.port)

    def stop(self) -> None:
        """End the server at once, as a crash would: no checkpoint, every connection cut."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait()
            self._process = None

    def start_pooler(self) -> str:
        """Start a PgBouncer before the server and give its address without a database."""
        program = find_program("pgbouncer")
        if program is None:
            raise SystemExit("no pgbouncer found: apt-get install pgbouncer")
        port = _free_port()
        config = self._folder / "pgbouncer.ini"
        config.write_text(
            "[databases]\n"
            f"* = host=127.0.0.1 port={self.port} user=postgres\n"
            "[pgbouncer]\n"
            f"listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
            "auth_type = any\npool_mode = transaction\ndefault_pool_size = 2\n"
            "max_client_conn = 500\nserver_idle_timeout = 5\n"
            f"logfile = {self._folder / 'pgbouncer.log'}\n"
        )
        config.chmod(0o644)
        self._pooler = self._spawn(str(program), str(config))
        self._wait(self._pooler, port)
        return f"postgresql://postgres@127.0.0.1:{port}"

    def remove(self) -> None:
        """End the server and remove its folder."""
        if self._pooler is not None:
            self._pooler.kill()
            self._pooler.wait()
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _spawn(self, *command: str) -> subprocess.Popen[bytes]:
        with (self._folder / "log").open("ab") as log:
            process: subprocess.Popen[bytes] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                preexec_fn=_die_with_parent,
                **self._user,  # type: ignore[call-overload]
            )
            return process

    def _wait(self, process: subprocess.Popen[bytes], port: int) -> None:
        deadline = time.monotonic() + _START_S_MAX
        while not _is_ready(port):
            if process.poll() is not None or time.monotonic() > deadline:
                sys.stderr.write((self._folder / "log").read_text(errors="replace")[-4000:])
                raise SystemExit("the PostgreSQL server or its pooler did not start")
            time.sleep(0.02)

    def _run(self, *command: str) -> None:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd=self._folder,
            check=False,
            **self._user,  # type: ignore[call-overload]
        )
        if done.returncode != 0:
            raise SystemExit(f"{command[0]} failed: {done.stderr[-2000:]}")

    def _make_certificate(self) -> Path | None:
        """Make a certificate for `localhost` that signs itself, if there is something to do so."""
        openssl = shutil.which("openssl")
        if openssl is None:
            return None
        path = self._data / "server.crt"
        self._run(
            openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
            "-nodes", "-days", "3650", "-subj", "/CN=localhost", "-addext",
            "subjectAltName=DNS:localhost", "-keyout", str(self._data / "server.key"),
            "-out", str(path),
        )  # fmt: skip
        (self._data / "server.key").chmod(0o600)
        public = self._folder / "ca.crt"
        shutil.copyfile(path, public)
        public.chmod(0o644)
        self._folder.chmod(0o755)
        return public

    def _configure(self, *, durable: bool) -> None:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(self._folder),
            "max_connections": "200",
            "shared_buffers": "64MB",
            "fsync": "on" if durable else "off",
            "ssl": "on" if self.certificate else "off",
        }
        rules = self._data / "pg_hba.conf"
        # Who has a password in its name must know it.
        password = 'host all "with_password" 127.0.0.1/32 scram-sha-256\n'
        rules.write_text(password + rules.read_text())
        with (self._data / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in settings.items())


def _is_ready(port: int) -> bool:
    """Ask for a session the way a client does: an error is an answer, too."""
    startup = b"\x00\x03\x00\x00user\x00postgres\x00database\x00postgres\x00\x00"
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall((len(startup) + 4).to_bytes(4, "big") + startup)
            return connection.recv(1) == b"R"
    except OSError:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _die_with_parent() -> None:
    # Ctrl-C in a terminal reaches the whole group; the end of this process is what counts.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGQUIT)


def main() -> int:
    """Run a server until standard input closes."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--durable", action="store_true", help="wait for the disk at every commit")
    # An end like any other, so that the folder goes, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    server = Server(durable=parser.parse_args().durable)
    try:
        server.start()
        print(server.url, flush=True)
        for line in sys.stdin:
            match line.strip():
                case "restart":
                    server.stop()
                    server.start()
                    answer = "ready"
                case "stop":
                    server.stop()
                    answer = "stopped"
                case "start":
                    server.start()
                    answer = "ready"
                case "pid":
                    answer = str(server.pid)
                case "pooler":
                    answer = server.start_pooler()
                case "ca":
                    answer = str(server.certificate or "")
                case other:
                    answer = f"unknown command {other!r}"
            print(answer, flush=True)
    finally:
        server.remove()
    return 0


if __name__ == "__main__":
    sys.exit(main())
