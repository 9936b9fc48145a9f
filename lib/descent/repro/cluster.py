"""A connection to a Dask cluster, or one sentence that says why there is none."""

from __future__ import annotations

import logging
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distributed import Client


PATIENCE = 4.0  # seconds to wait for each answer, of which there are at most two before an error
_ADDRESS = re.compile(r"tcp://(?P<host>\[[\da-fA-F:.]+\]|[\w.-]+):(?P<port>\d{1,5})")


def host_and_port(scheduler: str) -> tuple[str, int]:
    """The host and the port in "tcp://host:port", where an IPv6 host stands in brackets.

    Raises:
        ValueError: `scheduler` has another form.
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
        ConnectionError: nothing answers there, or what answers is no Dask scheduler, or it has no worker.
        ValueError: a worker has several threads; computations with reproducible bits use only one of them.
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
    with _silent("distributed.client"), client:  # who waits for a result learns of a lost scheduler
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
    """Wait for the first bytes that a Dask scheduler sends to a new connection: the length of its greeting.

    The client of Dask instead retries with log messages, and waits for ever on a port that accepts and says nothing.
    """
    with socket.create_connection((host, port), PATIENCE) as probe:
        probe.settimeout(PATIENCE)
        if not 0 < int.from_bytes(probe.recv(8), "little") < 2**20:
            raise OSError("what answers there does not speak as one")
