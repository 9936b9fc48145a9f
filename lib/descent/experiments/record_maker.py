"""Make the records that chapters read: `python -m descent.experiments.record_maker grokking`, or all of them.

A study whose chapters read records says so in one of its modules of this room: there `CHAPTERS` gives, for each of
these chapters, the function that makes those records that are missing or belong to another set-up, and goes on where a
killed run was. Nothing else lists them.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
from collections.abc import Callable
from pathlib import Path

from descent import experiments
from descent.checkout import project_root

RecordMaker = Callable[[Path, str], None]


def record_makers() -> dict[str, RecordMaker]:
    """The maker of each chapter that has records; it takes the project's folder and a scheduler's address, or ""."""
    makers: dict[str, RecordMaker] = {}
    for module in pkgutil.iter_modules(experiments.__path__):
        makers |= getattr(importlib.import_module(f"{experiments.__name__}.{module.name}"), "CHAPTERS", {})
    return makers


def main(arguments: list[str]) -> None:
    """Make the records that are missing, of one chapter or of all; a killed run goes on where it was."""
    parser = argparse.ArgumentParser(prog="python -m descent.experiments.record_maker", description=main.__doc__)
    parser.add_argument("chapter", nargs="?", help="the chapter that reads them; all chapters without it")
    parser.add_argument("--scheduler", default="", help='a Dask cluster\'s "tcp://host:port"')
    given = parser.parse_args(arguments)
    makers = record_makers()
    if given.chapter and given.chapter not in makers:
        *others, last = makers
        parser.error(f"CHAPTER={given.chapter}: expected {', '.join(others)} or {last}, which have records")
    for chapter in [given.chapter] if given.chapter else makers:
        makers[chapter](project_root(), given.scheduler)


if __name__ == "__main__":
    main(sys.argv[1:])
