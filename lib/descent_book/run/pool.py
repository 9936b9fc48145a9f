"""Several chapters at once, each in a process of its own, under one progress bar."""

from __future__ import annotations

import multiprocessing
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, cast

from tqdm import tqdm

from descent_book.run.worker import Job, Outcome, Started, code_cells, work_on_job


def run_jobs(jobs: Sequence[Job], limit: int) -> list[Outcome]:
    """Run jobs in processes of their own, at most `limit` at once, under one progress bar.

    Every chapter runs to its end, whatever happens to the others. An interrupt ends all of them.
    """
    waiting = list(jobs)
    running: dict[Connection, BaseProcess] = {}
    outcomes = []
    context = multiprocessing.get_context("spawn")
    done: dict[str, int] = {}
    sizes = {job.chapter: code_cells(job.notebook) for job in jobs}
    with _progress(sum(sizes.values())) as bar, _ended_together(running):
        while waiting or running:
            while waiting and len(running) < limit:
                receiver, process = _start(context, waiting.pop(0))
                running[receiver] = process
            for ready in wait(list(running), timeout=1):
                receiver = cast(Connection, ready)
                event = _receive(receiver, running[receiver])
                done[event.chapter] = event.number - 1 if isinstance(event, Started) else sizes[event.chapter]
                bar.n = sum(done.values())
                if isinstance(event, Started):
                    bar.set_description(
                        f"{event.chapter}: {event.heading or 'start'} (cell {event.number})", refresh=False
                    )
                else:
                    outcomes.append(event)
                    running.pop(receiver).join()
                bar.refresh()
            if sys.stderr.isatty():
                bar.refresh()  # the clock goes on during a long cell
    return outcomes


def _start(context: Any, job: Job) -> tuple[Connection, BaseProcess]:
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=work_on_job, args=(job, sender), name=job.chapter)
    process.start()
    sender.close()  # so that the worker's death is seen as the end of the pipe
    return receiver, process


def _receive(receiver: Connection, process: BaseProcess) -> Started | Outcome:
    try:
        event: Started | Outcome = receiver.recv()
    except EOFError:
        process.join()
        return Outcome(process.name, 0.0, f"its process ended with status {process.exitcode}, without a word")
    return event


def _progress(total: int) -> Any:
    form = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} cells, {elapsed}"
    return tqdm(total=total, bar_format=form, dynamic_ncols=True, file=sys.stderr)


@contextmanager
def _ended_together(running: Mapping[Connection, BaseProcess]) -> Iterator[None]:
    """No worker outlives the block; a plain `kill` counts as an interrupt."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.join(10)
            process.kill()
