"""What holds for every Python test: loopback only, and no key of the person who runs them.

Invariant: a test that reaches for another machine fails, in this process at the socket and in
child processes because their proxy is a closed port.
"""

import ipaddress
import sys

import pytest

KEYS = ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "OPENAI_BASE_URL", "ANTHROPIC_BASE_URL")
# Port 9 is "discard"; nothing listens there.
CLOSED_PROXY = "http://127.0.0.1:9"


def pytest_configure() -> None:
    """Refuse connections that leave the machine, unless the real models are to be pulled."""
    if not any("tests/models" in argument for argument in sys.argv):
        sys.addaudithook(_loopback_only)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Hide keys, and send what child processes ask of the network to a closed port."""
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)
    if "tests/models" not in request.node.path.as_posix():
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, CLOSED_PROXY)
            monkeypatch.delenv(name.lower(), raising=False)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost,::1")


def _loopback_only(event: str, arguments: tuple[object, ...]) -> None:
    if event not in ("socket.connect", "socket.sendto"):
        return
    address = arguments[1]
    if not isinstance(address, tuple) or not address:
        return  # A Unix socket.
    host = str(address[0])
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    if not local:
        raise PermissionError(f'a test connected to "{host}", allowed: loopback')
