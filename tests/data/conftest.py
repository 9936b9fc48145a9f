"""A server of data files for each test that asks for one."""

from collections.abc import Iterator

import pytest
from mirrors import Server, running_server


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with running_server() as server:
        yield server
