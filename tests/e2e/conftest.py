"""What the end-to-end tests of several processes share: one PostgreSQL server."""

from collections.abc import Iterator

import pytest

from tests.e2e.postgres import Postgres


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A server that is there until the last test that needs it."""
    with Postgres() as server:
        yield server
