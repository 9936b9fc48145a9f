"""A connection to a Dask cluster that works, or one sentence that says why it does not."""

from __future__ import annotations

import logging
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distributed import Client


PATIENCE = 4.0  # seconds for each answer; a scheduler that cannot be reached is known after two of them
_ADDRESS = re.compile(r"tcp://(?P<host>\[[\da-fA-F:.]+\]|[\w.-]+):(?P<port>\d{1,5})")


def host_and_port(scheduler: str) -> tuple[str, int]:
    """The parts of "tcp://host:port"; an IPv6 host stands in brackets.

    Raises:
        ValueError: another form.
    """
    match = _ADDRESS.fullmatch(scheduler)
    if match is None or not 0 < int(match["port"]) < 65536:
        raise ValueError(f"scheduler={scheduler!r}: expected 'tcp://host:port', such as 'tcp://10.0.0.1:8786', or ''")
    return match["host"].strip("[]"), int(match["port"])


@contextmanager
def connected_client(scheduler: str) -> Iterator[Client]:
    """A client of the cluster at "tcp://host:port", closed after the block.

    Raises:
        ImportError: the package `distributed` is not installed.
        ConnectionError: nothing answers there, or no Dask scheduler does, or it has no worker.
        ValueError: a worker has several threads, of which a computation with reproducible bits would use one.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise ImportError(f"scheduler={scheduler!r} needs the package distributed: pip install distributed") from error
    try:
        _greet(*host_and_port(scheduler))
        client = Client(scheduler, timeout=PATIENCE, set_as_default=False)
    except OSError as error:
        raise ConnectionError(
            f"{scheduler}: no Dask scheduler can be reached ({error}); check that `dask scheduler` runs there,"
            " that host and port are right and that no firewall is between"
        ) from error
    with _silent("distributed.client"), client:  # a scheduler lost later is an error of whoever waits for a result
        try:
            client.wait_for_workers(1, timeout=PATIENCE)
        except TimeoutError as error:
            raise ConnectionError(
                f"{scheduler}: the scheduler has no worker; start one: dask worker {scheduler} --nthreads 1"
            ) from error
        if several := [f"{worker} has {count}" for worker, count in client.nthreads().items() if count > 1]:
            raise ValueError(f"{scheduler}: worker {several[0]} threads, expected 1: dask worker ... --nthreads 1")
        yield client


@contextmanager
def _silent(name: str) -> Iterator[None]:
    log = logging.getLogger(name)
    level = log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        log.setLevel(level)


def _greet(host: str, port: int) -> None:
    """Wait for the first bytes that a Dask scheduler sends to whoever connects, the length of its greeting.

    Dask's own client retries with log messages, and waits for ever on a port that takes connections and keeps silent.
    """
    with socket.create_connection((host, port), PATIENCE) as probe:
        probe.settimeout(PATIENCE)
        if not 0 < int.from_bytes(probe.recv(8), "little") < 2**20:
            raise OSError("what answers there does not speak as one")
