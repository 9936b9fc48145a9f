"""Bind the book: lay out its pages and executed chapters in one folder, and have Jupyter Book make the HTML."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from descent_book.run.project import INTRODUCTION, pages

PDF = "anatomy_of_descent.pdf"
KEY = "edition.key"  # beside the pages, and under the name of the printed book beside that file


class BuildError(Exception):
    """The book could not be bound; the HTML of before is as it was."""


def assemble(root: Path, executed: Path, chapters: Sequence[str], data: Mapping[str, Any]) -> Path:
    """Lay out `_build/source`: settings, prose, references, promises, cards, images, the executed chapters, and `data`.

    Each entry of `data`, `scorecard`, `parameters` and `standing`, becomes a JSON file from which the pages take what
    they say of runs. The printed book is added where it was made from the same pages.

    Raises:
        BuildError: a chapter has no executed notebook in `executed`.
    """
    source = root / "_build" / "source"
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir(parents=True)
    missing = [name for name in chapters if not (executed / f"{name}.ipynb").is_file()]
    if missing:
        command = f"make edition CHAPTER={missing[0]}" if executed == root / "book" else "make book"
        raise BuildError(f"{executed.relative_to(root)}/{missing[0]}.ipynb is missing; make it with: {command}")
    prose = [*root.glob("book/*.md"), *root.glob("book/*.bib"), *root.glob("book/promises.*")]
    prose += [*root.glob("book/cards.yml"), *root.glob("CITATION.cff")]
    for file in (root / "_config.yml", root / "_toc.yml", *prose, *(executed / f"{name}.ipynb" for name in chapters)):
        shutil.copyfile(file, source / file.name)
    if (images := root / "book" / "images").is_dir():
        shutil.copytree(images, source / "images")
    if INTRODUCTION[0] in chapters:
        (source / "images").mkdir(exist_ok=True)
        (source / "images" / "intro.png").write_bytes(intro_picture(executed))
    for name, content in data.items():
        (source / f"{name}.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    add_printed(root / "_build", source)
    return source


def source_key(source: Path) -> str:
    """SHA-256 over the names and contents of the files that pages are made from, the printed book and the key apart."""
    digest = hashlib.sha256()
    for path in sorted(path for path in source.rglob("*") if path.is_file() and path.name not in (PDF, KEY)):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{path.relative_to(source).as_posix()}\0{content}\n".encode())
    return digest.hexdigest()


def key_beside(folder: Path) -> Path:
    """The file that holds the key of the pages from which the printed book in a folder was made."""
    return (folder / PDF).with_suffix(".key")


def add_printed(folder: Path, source: Path) -> None:
    """Note the key of the pages in `source`, and add the printed book in `folder` where it was made from just these."""
    key, known = source_key(source), key_beside(folder)
    (source / KEY).write_text(key, encoding="utf-8")
    if (folder / PDF).is_file() and known.is_file() and known.read_text(encoding="utf-8") == key:
        shutil.copyfile(folder / PDF, source / PDF)


def intro_picture(executed: Path) -> bytes:
    """The introduction's picture, as PNG: the output of the figure cell that `INTRODUCTION` names.

    Raises:
        BuildError: the chapter has no such figure.
    """
    chapter, name = INTRODUCTION
    for cell in json.loads((executed / f"{chapter}.ipynb").read_text(encoding="utf-8"))["cells"]:
        if cell["metadata"].get("mystnb", {}).get("figure", {}).get("name") == name:
            return base64.b64decode("".join(cell["outputs"][0]["data"]["image/png"]))
    raise BuildError(f"{chapter}.ipynb has no figure {name!r} for the introduction")


def build(root: Path, executed: Path, chapters: Sequence[str], data: Mapping[str, Any]) -> Path:
    """Make `_build/html`, with every warning an error, and say which page to open; only a whole one replaces the old.

    Raises:
        BuildError: a chapter is missing, Jupyter Book has failed or warned, or a page of `_toc.yml` has no HTML.
    """
    source, site = assemble(root, executed, chapters, data), root / "_build" / "site"
    shutil.rmtree(site, ignore_errors=True)
    options = ["--path-output", str(site), "-W", "-n", "--keep-going", "-q"]
    program = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build"]
    # The settings name the extension `descent_book.pages`: it must be this one, however this process found it.
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]))
    environment = {**os.environ, "PYTHONPATH": path}
    ended = subprocess.run([*program, str(source), *options], env=environment, capture_output=True, text=True)
    html = site / "_build" / "html"
    if ended.returncode:
        message = f"jupyter-book ended with status {ended.returncode}; its messages are above"
        raise BuildError(f"{ended.stdout}{ended.stderr}\n{message}")
    absent = [page for page in pages(root) if not (html / f"{page}.html").is_file()]
    if absent:
        raise BuildError(f"{len(absent)} of {len(pages(root))} pages have no HTML: {', '.join(absent)}")
    return _replace_html(html, root / "_build" / "html") / f"{pages(root)[0]}.html"


def _replace_html(new: Path, old: Path) -> Path:
    aside = old.with_name("html.old")
    shutil.rmtree(aside, ignore_errors=True)
    if old.exists():
        old.rename(aside)
    new.rename(old)
    shutil.rmtree(aside, ignore_errors=True)
    return old
