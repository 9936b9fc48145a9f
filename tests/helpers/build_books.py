"""Builds several books at the cost of one set of imports: each runs the book's command in a fork of this process.

Run by book_samples.py in a process of its own: `python build_books.py SOURCE ...`; prints {source: exit status} as JSON
and leaves each book's log beside its source.
"""

import json
import multiprocessing
import os
import sys
from pathlib import Path

import myst_nb  # noqa: F401  imported here so that no fork has to
import sphinx_book_theme  # noqa: F401
from jupyter_book.cli.main import main

OPTIONS = ("-W", "-n", "--keep-going")


def build(source: str) -> int:
    """The exit status of `jupyter-book build SOURCE` with warnings as errors."""
    folder = Path(source).parent
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        main(["build", source, "--path-output", str(folder), *OPTIONS])
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


if __name__ == "__main__":
    with multiprocessing.get_context("fork").Pool(2, maxtasksperchild=1) as pool:
        codes = pool.map(build, sys.argv[1:], chunksize=1)
    print(json.dumps(dict(zip(sys.argv[1:], codes, strict=True))))
