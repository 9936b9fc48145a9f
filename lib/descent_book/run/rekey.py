"""Which published chapters are of today's sources; and today's key for those whose sources only look otherwise.

An edition names the commit that it was run at. That commit's own code, in a process of its own, is asked for the key:
where it gives the one that the edition notes, the sources there are those that ran. What they mean is then compared
with what today's mean. Nothing is run, and of an edition only the notes change.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from descent.checkout import project_root
from descent.repro.files import write_atomic
from descent_book.run.edition import LIBRARY, plan
from descent_book.run.keys import Key, counted_sources, differences, in_short, key_of
from descent_book.run.notebook import as_text, read_executed, seal
from descent_book.run.project import (
    HELP,
    NEUTRAL_PARAMETERS,
    ROOT_OPTION,
    chapters,
    edition_folder,
    notebook_path,
    refusing,
)

LATER = 40  # commits after the one named in which changes that were not committed at the time are looked for
# run by the Python of this process in a tree whose modules stand in another place
_ASK = """import sys
from importlib import import_module
from pathlib import Path
root, module, chapter, preset = sys.argv[1:]
edition = import_module(module)
assert Path(edition.__file__).is_relative_to(root), edition.__file__
print(edition.plan(Path(root), [chapter], preset, {}, None)[0].key)"""


class UnprovenError(Exception):
    """It cannot be shown which sources an edition was made from."""


def standing(root: Path) -> dict[str, dict[str, Any]]:
    """Chapter -> `commit` that its published edition was made at, and what `differs` since, in words; [] if current."""
    return {chapter: _standing(root, chapter) for chapter in chapters(root)}


def _standing(root: Path, chapter: str) -> dict[str, Any]:
    path = edition_folder(root, "paper") / f"{chapter}.ipynb"
    if not path.is_file():
        return {"commit": "", "differs": ["there is no published edition"]}
    commit = ""
    try:
        notes = read_executed(path)["metadata"]["descent"]
        commit = str(notes["provenance"].get("commit") or "")
        job = plan(root, [chapter], "paper", {}, None)[0]
    except (ValueError, KeyError) as error:
        return {"commit": commit, "differs": [str(error)]}
    known = notes.get("ran_from", notes.get("depends"))
    if notes["key"] == job.key:
        return {"commit": commit, "differs": []}
    if known is None:
        return {"commit": commit, "differs": ["its key was made otherwise: make rekey"]}
    given = {name: value for name, value in job.parameters.items() if name not in NEUTRAL_PARAMETERS}
    now = {**job.depends, "parameters": given}
    return {"commit": commit, "differs": differences({**known, "parameters": notes["parameters"]}, now)}


def told(found: Mapping[str, Mapping[str, Any]]) -> str:
    """`standing` in a line: `stale published chapters: gradient_svd (atomic_path, deterministic differ)`."""
    stale = [
        f"{chapter} ({'; '.join(in_short(each['differs']))})" for chapter, each in found.items() if each["differs"]
    ]
    return f"stale published chapters: {', '.join(stale) or 'none'}"


def rekey(root: Path, chapter: str) -> str:
    """Bring an edition's key up to date where the sources that it was made from mean what today's do, and say so.

    The new key takes the place of the old one, which is kept as `key_before`. Where the two differ the key stays, and
    the parts of the key of then are noted as `ran_from`, so that what differs can be told without git.

    Raises:
        UnprovenError: no commit gives the edition's key.
        ValueError: the edition is damaged, or today's sources cannot be read.
        OSError: it cannot be written; it is as it was.
    """
    path = edition_folder(root, "paper") / f"{chapter}.ipynb"
    executed = read_executed(path)
    notes: dict[str, Any] = executed["metadata"]["descent"]
    now = _key(root, chapter, notes["parameters"])
    if notes["key"] == now.digest:
        return "current"
    with TemporaryDirectory(prefix="descent-") as folder:
        commit = _proven(root, chapter, notes, Path(folder))
        then = _key(Path(folder) / commit, chapter, notes["parameters"])
    if then.digest == now.digest:
        notes |= {"key_before": notes.get("key_before", notes["key"]), "key": now.digest, "depends": now.noted()}
        notes.pop("ran_from", None)
        said = f"current: the sources of {commit[:12]}, which ran, mean what today's mean; it has today's key now"
    else:
        known = notes.get("depends", {}).get("definitions", {})
        if sorted(known.values()) != sorted(then.definitions.values()):  # noted otherwise, or not at all
            notes |= {"ran_from": {"commit": commit, **then.noted()}}
        said = f"stale since {commit[:12]}: {'; '.join(in_short(differences(then.noted(), now.noted())))}"
    if (text := as_text(seal(executed))) != path.read_text(encoding="utf-8"):
        write_atomic(path, text)
    return said


def _key(root: Path, chapter: str, parameters: Mapping[str, Any]) -> Key:
    library = root / "lib" / "descent"
    notebook = json.loads(notebook_path(root, chapter).read_text(encoding="utf-8"))
    return key_of(root, library if library.is_dir() else LIBRARY, chapter, counted_sources(notebook), parameters)


def _proven(root: Path, chapter: str, notes: Mapping[str, Any], folder: Path) -> str:
    """The commit whose own code gives the edition's key; its tree is left in `folder`, under its name."""
    wanted = {notes["key"], notes.get("key_before")}
    named = str(notes["provenance"].get("commit") or "")
    if not named:
        raise UnprovenError("it names no commit")
    for commit in _commits(root, named):
        tree = folder / commit
        archive = _git(root, "archive", commit)
        with tarfile.open(fileobj=io.BytesIO(archive)) as packed:
            packed.extractall(tree, filter="data")
        if _key_of_its_own(tree, chapter, notes["preset"]) in wanted:
            return commit
    later = ", or of those after it," if named.endswith("+") else ""
    raise UnprovenError(f"the code of {named}{later} does not give its key")


def _commits(root: Path, named: str) -> Iterator[str]:
    """The commit that is named; and where it had changes that were not committed, those that followed."""
    try:
        yield _git(root, "rev-parse", "--verify", "--quiet", f"{named.rstrip('+')}^{{commit}}").decode().strip()
    except UnprovenError as error:
        raise UnprovenError(f"commit {named} is not in this clone, or there is no git ({error})") from error
    if named.endswith("+"):
        range_ = f"{named.rstrip('+')}..HEAD"
        yield from _git(root, "rev-list", "--first-parent", "--reverse", range_).decode().split()[:LATER]


def _git(root: Path, *arguments: str) -> bytes:
    try:
        return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, check=True).stdout
    except OSError as error:
        raise UnprovenError(f"git: {error.strerror}") from error
    except subprocess.CalledProcessError as error:
        raise UnprovenError(f"git {arguments[0]}: {error.stderr.decode().strip() or error.returncode}") from error


def _key_of_its_own(tree: Path, chapter: str, preset: str) -> str:
    """The key that the tree's own code gives; empty where it gives none."""
    module = "descent_book.run.edition"
    if not (tree / "lib" / "descent_book").is_dir():  # before the machine was a package of its own
        module = "descent.edition"
    program = [sys.executable, "-c", _ASK, str(tree), module, chapter, preset]
    environment = {**os.environ, "PYTHONPATH": str(tree / "lib")}
    done = subprocess.run(program, cwd=tree, env=environment, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


@click.command(context_settings=HELP)
@click.option("--say", is_flag=True, help="Only say which published chapters are stale, and why.")
@ROOT_OPTION
@refusing()
def main(say: bool, root: str | None) -> None:
    """Give published chapters today's key where their sources mean the same, and say of the others what differs."""
    project = project_root(root)
    if say:
        click.echo(told(standing(project)))
        return
    published = [name for name in chapters(project) if (project / "book" / f"{name}.ipynb").is_file()]
    failed = False
    for chapter in published:
        try:
            click.echo(f"{chapter}: {rekey(project, chapter)}")
        except UnprovenError as error:
            click.echo(f"{chapter}: left as it is, for no commit is proven to be what ran: {error}")
        except (ValueError, KeyError, OSError) as error:
            click.echo(f"{chapter}: left as it is: {error}", err=True)
            failed = True
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
