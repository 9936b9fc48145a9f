"""Which pages and chapters the book has, where they stand, and what every command says in the same way."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import yaml

from descent.checkout import ProjectError

RUNNER_PARAMETERS = ("results_dir", "figures_dir")  # they say where to write: they are never part of a key
NEUTRAL_PARAMETERS = (*RUNNER_PARAMETERS, "scheduler", "published")  # nor is where to compute, nor where weights of
# others are read; no edition keeps a trace of them
HELP = {"help_option_names": ["-h", "--help"]}
ROOT_OPTION = click.option("--root", help="The project's folder, where it is not this package's checkout.")
INTRODUCTION = ("saddles", "fig-saddles")  # the chapter and the figure that the introduction and the README show


class RefusedError(ValueError):
    """A parameter, preset or chapter that does not exist or may not have this value."""


@contextmanager
def refusing(*errors: type[Exception], said: str = "refused", status: int = 2) -> Iterator[None]:
    """End a command in one sentence with this status, where it raises one of `errors` or there is no checkout."""
    refused: tuple[type[Exception], ...] = (ProjectError, *errors)
    try:
        yield
    except refused as error:
        click.echo(f"{said}: {error}", err=True)
        sys.exit(status)


def pages(root: Path) -> list[str]:
    """The pages of `_toc.yml`, without suffix, in the order of the book.

    Raises:
        ProjectError: `_toc.yml` names no page.
    """
    names = list(_files(yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))))
    if not names:
        raise ProjectError("_toc.yml names no page; expected `root:` and `file:` entries")
    return names


def chapters(root: Path) -> list[str]:
    """The pages of `_toc.yml` that are notebooks in `notebooks/`, in the order of the book.

    Raises:
        ProjectError: a page is neither `notebooks/<page>.ipynb` nor `book/<page>.md`.
    """
    names = []
    for page in pages(root):
        if notebook_path(root, page).is_file():
            names.append(page)
        elif not (root / "book" / f"{page}.md").is_file():
            raise ProjectError(f"_toc.yml names {page!r}: expected notebooks/{page}.ipynb or book/{page}.md")
    return names


def notebook_path(root: Path, chapter: str) -> Path:
    """The source of a chapter."""
    return root / "notebooks" / f"{chapter}.ipynb"


def claims_folder(root: Path) -> Path:
    """The folder in which the claims of each chapter are registered, `<chapter>.yml`."""
    return root / "notebooks" / "claims"


def edition_folder(root: Path, edition: str) -> Path:
    """Where the executed chapters of an edition are: `book/` for `paper` (published), else below `_build/editions`."""
    return root / "book" if edition == "paper" else root / "_build" / "editions" / edition


def _files(node: Any) -> Iterator[str]:
    """Every `root:` and `file:` of a table of contents, in reading order."""
    if isinstance(node, list):
        for item in node:
            yield from _files(item)
    elif isinstance(node, dict):
        for key in ("root", "file"):
            if key in node:
                yield str(node[key]).removesuffix(".md").removesuffix(".ipynb")
        for key, value in node.items():
            if key not in ("root", "file"):
                yield from _files(value)
