"""Rows of float32, one for each recorded step, kept in memory or appended to a folder, whatever their number."""

from __future__ import annotations

import json
import os
import shutil
import zlib
from contextlib import ExitStack
from itertools import zip_longest
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from descent.models.flat_weights import Layout, unflatten
from descent.repro.files import atomic_path, exclusive_folder, write_json

Rows = NDArray[np.float32]
_ROWS, _STEPS, _SUMS, _LAYOUT = "rows.f32", "steps.i64", "sums.u32", "layout.json"
_RING_BYTES = 16 * 2**20  # of rows that are not on the disk yet: what a kill can lose
_BLOCK_ROWS = 16  # at most, so that a kill loses few rows of a small network
_MEMORY_BYTES = 16 * 2**20  # of a block of rows in memory
_BLOCKS = 4  # the ring's parts: one is filled while another is written


class MemoryRows:
    """Rows in blocks; the same methods as `StoredRows`.

    The first use of a page of memory costs more than copying a row into it, so that memory is taken in blocks, by
    numpy, which asks for large pages.
    """

    def __init__(self, layout: Layout) -> None:
        self._width = layout.size
        self._count = max(1, _MEMORY_BYTES // (4 * max(1, layout.size)))  # rows in a block
        self._blocks: list[Tensor] = []
        self._steps: list[int] = []

    def truncate(self, count: int, layout: Layout) -> None:
        """Keep the first `count` rows only."""
        del self._blocks[-(-count // self._count) :], self._steps[count:]

    def append(self, step: int, parts: list[Tensor]) -> None:
        """Keep a copy of one row, which comes in parts, and its step; of two rows of one step in turn, the second."""
        if self._steps[-1:] == [step]:
            self._steps.pop()
        block, place = divmod(len(self._steps), self._count)
        if block == len(self._blocks):
            self._blocks.append(torch.from_numpy(np.empty((self._count, self._width), np.float32)))
        flat = [part.detach().reshape(-1).to("cpu", torch.float32) for part in parts]
        torch.cat(flat, out=self._blocks[block][place])
        self._steps.append(step)

    def read(self, layout: Layout) -> tuple[Rows, NDArray[np.int64]]:
        """The rows so far, `(n, P)`, and their steps, `(n,)` int64."""
        rows = np.empty((len(self._steps), self._width), np.float32)
        for number, block in enumerate(self._blocks):
            part = rows[number * self._count : (number + 1) * self._count]
            part[:] = block.numpy()[: len(part)]
        return rows, np.array(self._steps, np.int64)

    def last_sum(self) -> int:
        """The checksum of the newest row; 0 where there is none."""
        if not self._steps:
            return 0
        block, place = divmod(len(self._steps) - 1, self._count)
        return int(row_sums(self._blocks[block][place : place + 1].numpy(), np.array(self._steps[-1:]))[0])

    def flush(self) -> None:
        """Do nothing: rows in memory have nowhere to be written."""

    close = flush


class StoredRows:
    """Rows appended to one file, their steps and checksums to two others; the shortest says how many rows are whole.

    Writing a row takes about half as long as a training step of a small network. A thread therefore writes, block by
    block, from a ring of blocks that `append` fills; waking the thread for each row would cost more than the copy. If
    the whole ring is full, `append` waits. The files are unbuffered: what is written is in the operating system's
    cache, which survives the process.

    Raises:
        InUseError: another recorder writes to the folder.
        ValueError: the folder holds rows of another layout, or weights where gradients are to be recorded.
    """

    def __init__(self, folder: Path, layout: Layout, what: str) -> None:
        self._folder, self._lock = folder, ExitStack()
        self._lock.enter_context(exclusive_folder(folder))
        try:
            for unfinished in folder.glob(".*.tmp*"):  # left half written by a kill
                unfinished.unlink()
            if not (folder / _LAYOUT).exists():
                write_json(folder / _LAYOUT, {"names": layout.names, "shapes": layout.shapes, "what": what})
            _check_stored(folder, layout, what)
        except BaseException:
            self._lock.close()
            raise
        rows = min(_BLOCK_ROWS, max(1, _RING_BYTES // (_BLOCKS * 4 * layout.size)))
        self._blocks = torch.empty(_BLOCKS, rows, layout.size, dtype=torch.float32)
        self._views = [[list(unflatten(row, layout).values()) for row in block] for block in self._blocks]
        self._steps = np.empty((_BLOCKS, rows), np.int64)
        self._block, self._filled = 0, 0
        self._free: SimpleQueue[int] = SimpleQueue()
        self._full: SimpleQueue[tuple[int, int] | Event | None] = SimpleQueue()
        self._error: Exception | None = None
        for block in range(1, _BLOCKS):
            self._free.put(block)
        self._files = [open(folder / name, "ab", buffering=0) for name in (_ROWS, _STEPS, _SUMS)]  # noqa: SIM115
        self._writer = Thread(target=self._write, daemon=True)
        self._writer.start()

    def truncate(self, count: int, layout: Layout) -> None:
        """Keep the first `count` rows only, and nothing of a row that a kill has torn.

        A file that loses whole rows is replaced by a new one: memory maps of the old one stay as they are.
        """
        for number, width in enumerate((4 * layout.size, 8, 4)):
            path = Path(self._files[number].name)
            if path.stat().st_size >= (count + 1) * width:
                with atomic_path(path) as shorter:
                    shutil.copyfile(path, shorter)
                    os.truncate(shorter, count * width)
                self._files[number].close()
                self._files[number] = open(path, "ab", buffering=0)  # noqa: SIM115
            self._files[number].truncate(count * width)

    def append(self, step: int, parts: list[Tensor]) -> None:
        """Keep a copy of one row, which comes in parts, and its step; of two rows of one step in turn, the second."""
        if self._filled and self._steps[self._block, self._filled - 1] == step:
            self._filled -= 1
        elif self._filled == self._blocks.shape[1]:
            self._hand_over()
        torch._foreach_copy_(self._views[self._block][self._filled], parts)  # from any type and device, in one call
        self._steps[self._block, self._filled] = step
        self._filled += 1

    def _hand_over(self) -> None:
        """Give the current block to the writer, and go on with a free one."""
        if self._filled:
            self._full.put((self._block, self._filled))
            self._block, self._filled = self._free.get(), 0
        self._raise()

    def _write(self) -> None:
        while (item := self._full.get()) is not None:
            if isinstance(item, Event):
                item.set()
                continue
            block, filled = item
            try:
                if self._error is None:
                    rows, steps, sums = self._files
                    part = self._blocks[block, :filled].numpy()
                    _write_all(rows, part.data)
                    _write_all(steps, self._steps[block, :filled].data)
                    _write_all(sums, row_sums(part, self._steps[block, :filled]).data)
            except Exception as error:  # such as a full disk: the next call from the training loop raises it
                self._error = error
            self._free.put(block)

    def _raise(self) -> None:
        if self._error is not None:
            raise OSError(f"{self._folder}: recording stopped: {self._error}") from self._error

    def flush(self) -> None:
        """Wait until every row has been handed to the operating system."""
        if self._writer.is_alive():
            self._hand_over()
            done = Event()
            self._full.put(done)
            done.wait()
        self._raise()

    def read(self, layout: Layout) -> tuple[Rows, NDArray[np.int64]]:
        """The rows so far, `(n, P)`, memory-mapped read-only, and their steps, `(n,)` int64."""
        self.flush()
        return read_rows(self._folder, layout)

    def last_sum(self) -> int:
        """The checksum of the newest row; 0 where there is none."""
        self.flush()
        return int.from_bytes((self._folder / _SUMS).read_bytes()[-4:], "little")

    def close(self) -> None:
        """Write the rows that are left, stop the thread and release the folder."""
        if self._writer.is_alive():
            if self._filled:
                self._full.put((self._block, self._filled))
            self._full.put(None)
            self._writer.join()
            for file in self._files:
                file.close()
            self._lock.close()
        self._raise()


def _write_all(file: Any, data: Any) -> None:
    written = file.write(data)
    if written != memoryview(data).nbytes:
        raise OSError(f"{file.name}: wrote {written} of {memoryview(data).nbytes} bytes; is the disk full?")


def _check_stored(folder: Path, layout: Layout, what: str) -> None:
    """Refuse a store that was made for other rows."""
    stored = read_layout(folder)
    pairs = zip_longest(zip(stored.names, stored.shapes, strict=True), zip(layout.names, layout.shapes, strict=True))
    if unlike := [pair for pair in pairs if pair[0] != pair[1]]:
        raise ValueError(
            f"{folder} holds rows of another layout, with {unlike[0][0]} for {unlike[0][1]}; choose another folder"
        )
    if (kept := json.loads((folder / _LAYOUT).read_text(encoding="utf-8")).get("what", what)) != what:
        raise ValueError(f"{folder} holds rows of kind {kept!r}, expected {what!r}; choose another folder")


def read_layout(folder: Path) -> Layout:
    """The layout of the rows of a store; raises FileNotFoundError where there is none, and ValueError if damaged."""
    try:
        stored = json.loads((folder / _LAYOUT).read_text(encoding="utf-8"))
        return Layout(tuple(stored["names"]), tuple(tuple(shape) for shape in stored["shapes"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / _LAYOUT} is damaged ({error}); record anew: rm -r '{folder}'") from error


def read_rows(folder: Path, layout: Layout) -> tuple[Rows, NDArray[np.int64]]:
    """The rows of a store, memory-mapped read-only, and their steps; a row that a kill has torn is left out."""
    width = 4 * layout.size
    sizes = [(folder / name).stat().st_size if (folder / name).exists() else 0 for name in (_ROWS, _STEPS, _SUMS)]
    count = min(sizes[0] // width, sizes[1] // 8, sizes[2] // 4)
    if count == 0:
        return np.zeros((0, layout.size), np.float32), np.zeros(0, np.int64)
    steps = np.fromfile(folder / _STEPS, np.int64, count)
    rows = np.memmap(folder / _ROWS, np.float32, "r", shape=(count, layout.size))
    wrong = np.flatnonzero(row_sums(rows, steps) != np.fromfile(folder / _SUMS, np.uint32, count))
    if wrong.size:
        raise ValueError(f"{folder} is damaged: row {wrong[0]} is not what was written; record anew: rm -r '{folder}'")
    return rows, steps


def row_sums(rows: Rows, steps: NDArray[np.int64]) -> NDArray[np.uint32]:
    """The CRC-32 of each row and its step."""
    pairs = zip(rows, steps, strict=True)
    return np.array([zlib.crc32(step.tobytes(), zlib.crc32(row.data)) for row, step in pairs], np.uint32)
