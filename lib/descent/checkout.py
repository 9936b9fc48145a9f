"""Where the checkout of the book is on this machine, and where its data are."""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path


class ProjectError(Exception):
    """The folder is not a checkout of the book, or its table of contents names a page that does not exist."""


def project_root(start: str | Path | None = None) -> Path:
    """The folder of the book, which holds `_toc.yml`.

    It is `start` if that is given; else the checkout of this package, the current folder or one above it.

    Raises:
        ProjectError: none of these holds a `_toc.yml`.
    """
    if start is not None:
        candidates = [Path(start).resolve()]
    else:
        here = Path.cwd()
        candidates = [Path(__file__).resolve().parents[2], here, *here.parents]
    for candidate in candidates:
        if (candidate / "_toc.yml").is_file():
            return candidate
    wanted = "the folder given" if start is not None else "the package's checkout, the current folder or one above it"
    raise ProjectError(f"{candidates[0]}: no _toc.yml found; expected it in {wanted}. Run inside a clone of the book.")


def data_folder() -> Path:
    """The folder in which data is looked for and kept.

    It is the folder that `DESCENT_DATA` names; if that is not set, `data/` of the checkout; for an installed package,
    the cache folder of the user.
    """
    if named := os.environ.get("DESCENT_DATA"):
        return Path(named).expanduser().absolute()
    root = Path(__file__).resolve().parents[2]
    if (root / "pyproject.toml").is_file():
        return root / "data"
    from pooch import os_cache  # here, for in a notebook pooch's import warns that its bars lack widgets

    return Path(os_cache("anatomy-of-descent"))


def chapter_file(name: str) -> Path:
    """A file that stands beside the chapters, such as `claims/gradient_svd.yml`.

    It is looked for in the folder that `DESCENT_CHAPTERS` names; if that is not set, in the current folder, in
    `notebooks/` of it and of those above it, and in the checkout of this package. Where none has it, it is the one that
    was installed with the library, whether or not that exists.
    """
    if named := os.environ.get("DESCENT_CHAPTERS"):
        return Path(named) / name
    here, root = Path.cwd(), Path(__file__).resolve().parents[2]
    for folder in (here, *(each / "notebooks" for each in (here, *here.parents, root))):
        if (folder / name).is_file():
            return folder / name
    if (root / "pyproject.toml").is_file():
        return root / "notebooks" / name
    return Path(str(files("descent_chapters"))) / name
