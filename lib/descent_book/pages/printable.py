"""The book as one file, and which pages it belongs to: a digest of all that they are made from."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

PDF = "anatomy_of_descent.pdf"
KEY = "edition.key"  # beside the pages, and under the name of the file beside the file


def source_key(source: Path) -> str:
    """SHA-256 over the names and contents of the files that pages are made from, the printed book and the key apart."""
    digest = hashlib.sha256()
    for path in sorted(path for path in source.rglob("*") if path.is_file() and path.name not in (PDF, KEY)):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{path.relative_to(source).as_posix()}\0{content}\n".encode())
    return digest.hexdigest()


def key_beside(folder: Path) -> Path:
    """The file that holds the key of the printed book in a folder."""
    return (folder / PDF).with_suffix(".key")


def add_printed(folder: Path, source: Path) -> None:
    """Note the key of the pages in `source`, and add the printed book in `folder` where it was made from just these."""
    key, known = source_key(source), key_beside(folder)
    (source / KEY).write_text(key, encoding="utf-8")
    if (folder / PDF).is_file() and known.is_file() and known.read_text(encoding="utf-8") == key:
        shutil.copyfile(folder / PDF, source / PDF)
