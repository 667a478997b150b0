"""Model servers behind TLS: trusted if the system's store or `SSL_CERT_FILE` says so, else refused.

A scripted model is reached through a server that ends TLS in front of it, on loopback.
"""

import asyncio
import datetime
import ipaddress
import os
import queue
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from mainspring.testing import ScriptedModel, say

PROGRAM = """
import sys
from mainspring import Agent, MainspringError, Model
from mainspring.agent import Limits

model = Model("scripted", base_url=sys.argv[1], api_key="none")
agent = Agent("a", model=model, limits=Limits(model_attempts_max=1))
try:
    print(agent.run_sync("hello"))
except MainspringError as error:
    print(error.code)
"""


def test_a_server_that_the_trust_store_knows_is_called(tmp_path: Path) -> None:
    authority, context = _certificates(tmp_path)
    with ScriptedModel([say("over TLS")]) as model, _ending_tls(model, context) as address:
        assert _ask(address, SSL_CERT_FILE=str(authority)) == "over TLS"
    assert model.request_count == 1


def test_a_server_that_nobody_vouches_for_is_refused(tmp_path: Path) -> None:
    _, context = _certificates(tmp_path)
    with ScriptedModel([say("over TLS")]) as model, _ending_tls(model, context) as address:
        assert _ask(address) == "model_connect"
    assert model.request_count == 0


def _ask(address: str, **environment: str) -> str:
    kept = {name: value for name, value in os.environ.items() if name != "SSL_CERT_FILE"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, address],
        env=kept | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def _certificates(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """An authority's file, and a context for a server on 127.0.0.1 that it vouches for."""
    authority_key = ec.generate_private_key(ec.SECP256R1())
    authority_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Test authority")])
    authority = (
        _builder(authority_name, authority_name, authority_key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    loopback = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    served = (
        _builder(name, authority_name, key)
        .add_extension(x509.SubjectAlternativeName([loopback]), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    authority_file, server_file = folder / "authority.pem", folder / "server.pem"
    authority_file.write_bytes(authority.public_bytes(pem))
    private = key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    server_file.write_bytes(private + served.public_bytes(pem))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server_file)
    return authority_file, context


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
    )


@contextmanager
def _ending_tls(model: ScriptedModel, context: ssl.SSLContext) -> Iterator[str]:
    """A server that takes TLS connections and passes their bytes on to the scripted model."""
    port = int(model.base_url.rsplit(":", 1)[1].split("/")[0])
    ready: queue.Queue[tuple[asyncio.AbstractEventLoop, asyncio.Event, int]] = queue.Queue()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        onward_reader, onward_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(_pass_on(reader, onward_writer), _pass_on(onward_reader, writer))

    async def serve() -> None:
        stop = asyncio.Event()
        server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=context)
        ready.put((asyncio.get_running_loop(), stop, server.sockets[0].getsockname()[1]))
        await stop.wait()
        server.close()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    loop, stop, served_port = ready.get()
    try:
        yield f"https://127.0.0.1:{served_port}/v1"
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while piece := await reader.read(65_536):
            writer.write(piece)
            await writer.drain()
    except (ConnectionError, ssl.SSLError):
        pass
    finally:
        writer.close()
