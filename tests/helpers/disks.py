"""Small and read-only file systems for tests: mounted by root, else the test is skipped."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def mounted(folder: Path, size: str) -> Iterator[Path]:
    """A file system in memory of so many bytes ("512k") at `folder`, taken away at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    done = mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder)
    if done.returncode:
        pytest.skip(f"a file system of our own cannot be mounted here: {done.stderr.strip() or 'no mount'}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def remount(folder: Path, option: str) -> None:
    """Change it: `size=4m`, `ro`."""
    mount("-o", f"remount,{option}", folder).check_returncode()


def mount(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = ["mount", *map(str, arguments)]
    try:
        return subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError as error:
        return subprocess.CompletedProcess(command, 127, "", str(error))


def filled(folder: Path, left: int) -> Path:
    """A file beside the results that leaves so many bytes of the file system free."""
    path, free = folder / "filler", os.statvfs(folder)
    with open(path, "wb") as file:
        file.write(bytes(max(0, free.f_bavail * free.f_frsize - left)))
    return path
