"""Stamps the repository's address and the edition's tag, which `_config.yml` alone states, into all that name them.

Run as `python -m descent_book.run.address [URL] [--tag TAG]`: what is given is written to `_config.yml` first.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import click
import yaml

from descent.checkout import project_root
from descent.repro.files import write_atomic
from descent_book.run.chapter import Chapter
from descent_book.run.notebook import tags
from descent_book.run.project import HELP, refusing

PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff", "pyproject.toml")
TEMPLATE = Path("lib", "descent_book", "run", "new_chapter.ipynb")
_GITHUB = "https://github.com/"
_ADDRESS = re.compile(r"https://github\.com/(?P<slug>[A-Za-z0-9-]+/[A-Za-z0-9._-]+?)(?:\.git)?/?")
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_COLAB_LINK = re.compile(r"\[Run this chapter in Colab\]\([^)]*\)")
_COLAB = "https://colab.research.google.com/"
_SETUP = """\
import os
from importlib.util import find_spec

library = "git+{address}"
missing = f"Install the book's library: `make book` in a clone and its kernel .venv, or %pip install {{library}}"
hosted = {{"COLAB_RELEASE_TAG", "KAGGLE_KERNEL_RUN_TYPE"}} & os.environ.keys()
if hosted and not find_spec("descent"):  # it alone, and what they may lack; on Kaggle, switch the internet on first
    %pip install -q --no-deps {{library}}
    %pip install -q "filelock>=4.0" "lazy-loader>=0.4" "pooch>=1.8" "pyevtk>=1.6" "safetensors>=0.4.3"
assert find_spec("descent"), missing
if hosted:
    from descent.repro import colab_report

    print(colab_report())"""


@dataclass(frozen=True)
class Repository:
    """Where readers find the book."""

    url: str  # https://github.com/OWNER/REPO
    # the edition that links and set-up cells name, so that a reader's copy goes on working when the library changes
    tag: str

    @classmethod
    def checked(cls, url: str, tag: str) -> Repository:
        """The two in their plain form.

        Raises:
            ValueError: not an address on github.com, the one host from which Colab opens notebooks, or not the name of
                a tag without a slash.
        """
        if not (match := _ADDRESS.fullmatch(url)):
            raise ValueError(f"url={url!r}: expected https://github.com/OWNER/REPO")
        if not _TAG.fullmatch(tag):
            raise ValueError(f"tag={tag!r}: expected a tag such as v0.2.0")
        return cls(f"{_GITHUB}{match['slug']}", tag)

    @property
    def slug(self) -> str:
        """`OWNER/REPO`."""
        return self.url.removeprefix(_GITHUB)

    def colab_address(self, chapter: str) -> str:
        """Where Colab opens a chapter's source."""
        return f"{_COLAB}github/{self.slug}/blob/{self.tag}/notebooks/{chapter}.ipynb"

    def colab_link(self, chapter: str) -> str:
        """The Markdown line below a chapter's title. Text, no badge: a badge would be loaded from another host."""
        return f"[Run this chapter in Colab]({self.colab_address(chapter)})"

    def setup_source(self) -> str:
        """The text of every chapter's `setup` cell.

        Where the library is missing, it is installed in Colab and on Kaggle; elsewhere the cell says what to do.
        """
        return _SETUP.format(address=f"{self.url}@{self.tag}")


def configured_repository(root: Path) -> Repository:
    """What `root/_config.yml` states.

    Raises:
        ValueError: the file does not state both, or not such as they must be.
    """
    try:
        stated = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))["repository"]
        url, tag = stated["url"], stated["branch"]
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise ValueError("_config.yml: expected `repository` with a `url` and a `branch`, the edition's tag") from error
    return Repository.checked(url, str(tag))


def _stamped_config(text: str, new: Repository) -> str:
    for name, value in (("url", new.url), ("branch", new.tag)):
        line = re.compile(rf"(?m)^(repository:\n(?:[ #].*\n)*?  {name}: *)\S+")
        text = line.sub(lambda match, value=value: match[1] + value, text)  # type: ignore[misc]
    return text


def _stamped_page(text: str, old: Repository, new: Repository) -> str:
    """A text file with its links to the old address, those of Colab and Binder too, turned to the new and its tag."""
    slug = re.escape(old.slug)
    hosts = r"(?:github\.com/|colab\.research\.google\.com/github/|mybinder\.org/v2/gh/)"
    text = re.sub(rf"({hosts}){slug}(?![\w-]|\.(?!git\b)\w)", lambda match: match[1] + new.slug, text)
    before = rf"google\.com/github/{{0}}/blob/|mybinder\.org/v2/gh/{{0}}/|git\+{_GITHUB}{{0}}@".format(
        re.escape(new.slug)
    )
    return re.sub(rf"({before}){re.escape(old.tag)}(?![\w.-])", lambda match: match[1] + new.tag, text)


def _stamped_notebook(chapter: Chapter, repository: Repository) -> str:
    """A chapter's notebook with the canonical setup cell, and with the link to Colab under its title."""
    setup = [number for number, cell in enumerate(chapter.cells) if "setup" in tags(cell)]
    if len(setup) != 1:
        raise ValueError(f"{chapter.name}: {len(setup)} cells are tagged `setup`; expected one")
    title, link = chapter.cells[0]["source"], repository.colab_link(chapter.name)
    prose, count = _COLAB_LINK.subn(link, title)
    heading, _, rest = title.partition("\n")
    wanted = {setup[0]: repository.setup_source(), 0: prose if count else f"{heading}\n\n{link}\n{rest}".rstrip()}
    stamped = [dict(cell) for cell in chapter.notebook["cells"]]
    for number, source in wanted.items():
        if chapter.cells[number]["source"] != source:
            stamped[number]["source"] = source.splitlines(keepends=True)
    return json.dumps({**chapter.notebook, "cells": stamped}, indent=1, ensure_ascii=False) + "\n"


def stamp(root: Path, url: str | None = None, tag: str | None = None) -> list[Path]:
    """Make every place under `root` agree with the address and the tag, `_config.yml`'s own where none is given.

    Returns:
        The files that changed, relative to `root`.

    Raises:
        ValueError: a bad address or tag, or a notebook without exactly one `setup` cell, before any file changes.
    """
    old = configured_repository(root)
    new = Repository.checked(url or old.url, tag or old.tag)
    notebooks = [*sorted((root / "notebooks").glob("*.ipynb")), root / TEMPLATE]
    # The statement itself comes last: a run that fails before leaves the old address, so it can be repeated.
    places = [*(root / page for page in PAGES), *notebooks, root / "_config.yml"]
    texts = {path: path.read_text(encoding="utf-8") for path in places if path.is_file()}
    due = []
    for path, text in texts.items():
        if path.suffix == ".ipynb":
            stamped = _stamped_notebook(Chapter(root, path.stem, json.loads(text)), new)
        else:
            stamped = _stamped_config(text, new) if path.name == "_config.yml" else _stamped_page(text, old, new)
        if stamped != text:
            due.append((path, stamped))
    for path, stamped in due:
        write_atomic(path, stamped)
    return [path.relative_to(root) for path, _ in due]


@click.command(context_settings=HELP)
@click.argument("url", required=False)
@click.option("--tag", help="The edition, such as v0.2.0, that links and set-up cells name.")
@refusing(ValueError)
def main(url: str | None, tag: str | None) -> None:
    """Stamp the address URL, https://github.com/OWNER/REPO, and the tag into every place that names them."""
    changed = stamp(project_root(Path.cwd()), url, tag)
    click.echo("\n".join(f"stamped {path}" for path in changed) or "every place agrees with _config.yml")


if __name__ == "__main__":
    main()
