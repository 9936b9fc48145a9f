"""Run the chapters at a preset, in parallel, with progress; collect the scorecard; bind the book.

python -m descent.edition run --preset quick       every chapter of _toc.yml, at its defaults
python -m descent.edition build --edition quick    the HTML of what was run
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from descent.assembly import INTRO, BuildError, build, picture
from descent.chapters import RefusedError, cells, content_key, defaults, nearest, resolve
from descent.dependencies import files_behind
from descent.execution import Job
from descent.outputs import bring_words, read_executed, with_checked_outputs
from descent.parameters import documented
from descent.pool import cores, run_jobs
from descent.project import (
    NEUTRAL_PARAMETERS,
    RUNNER_PARAMETERS,
    ProjectError,
    chapters,
    edition_folder,
    notebook_path,
    project_root,
)
from descent.tally import collect, described, summary

QUICK_TIMEOUT = 300  # seconds a cell may take at `quick`, on a machine with other work; `--cell-timeout` changes it
TIMEOUT = 3600
LIBRARY = Path(__file__).parent


def plan(root: Path, names: Sequence[str], preset: str, given: Mapping[str, str], folder: Path | None) -> list[Job]:
    """One job for each chapter, every parameter validated.

    An edition with parameters of its own never takes the place of a preset's: it goes to `_build/editions/custom`.

    Raises:
        RefusedError: a chapter, preset or parameter is not valid; nothing has been run.
    """
    known = chapters(root)
    for name in names:
        if name not in known:
            raise RefusedError(f"no chapter {name!r}{nearest(name, known)}")
    chosen = [name for name in known if name in names or not names]
    if not chosen:
        raise RefusedError("_toc.yml names no chapter; expected a page that is a notebook in notebooks/")
    if "results_dir" in given and len(chosen) > 1:
        raise RefusedError("results_dir: chapters would overwrite each other; give it with --chapter NAME")
    output = folder or edition_folder(root, "custom" if set(given) - set(NEUTRAL_PARAMETERS) else preset)
    return [_job(root, chapter, preset, given, output) for chapter in chosen]


def _job(root: Path, chapter: str, preset: str, given: Mapping[str, str], output: Path) -> Job:
    notebook = notebook_path(root, chapter)
    values = resolve(root, chapter, preset, given)
    own = defaults(notebook)
    results = edition_folder(root, "published") if output == root / "book" else output
    places = {name: str(Path(values[name]).resolve()) for name in RUNNER_PARAMETERS if values.get(name)}
    sources = [cell["source"] for cell in cells(notebook) if cell["cell_type"] == "code"]
    behind, records = files_behind(sources, LIBRARY), root / "data" / "records"
    named = {path for path in records.glob("*") if any(f'"{path.name}"' in source for source in sources)}
    depends = [*behind, root / "requirements.txt", *sorted(named | {records / chapter})]
    if LIBRARY / "checkpoints.py" in behind:
        depends.append(root / "data" / "checkpoints")
    return Job(
        chapter=chapter,
        notebook=notebook,
        inject={name: value for name, value in {**values, **places}.items() if value != own[name]},
        parameters=values,
        output=output / f"{chapter}.ipynb",
        results=Path(places.get("results_dir", results / "results" / chapter)),
        failed=root / "_build" / "failed" / f"{chapter}.ipynb",
        key=content_key(notebook, values, [path for path in depends if path.exists()]),
        timeout=QUICK_TIMEOUT if values["preset"] == "quick" else TIMEOUT,
        cores=1,
        root=root,
    )


def is_current(job: Job) -> bool:
    """Whether the chapter's edition was made from the same sources and parameters, and no other place was asked for."""
    asked = any(job.parameters.get(name) for name in RUNNER_PARAMETERS)
    try:
        return described(job.output).get("key") == job.key and not asked
    except ValueError:  # damaged: it is made again
        return False


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Run the chapters and build the book."""


@main.command("run")
@click.option("--preset", default="quick", show_default=True, help="A named set of parameters.")
@click.option("--chapter", "names", multiple=True, help="Only this chapter; may be given again.")
@click.option("-p", "given", nargs=2, multiple=True, metavar="NAME VALUE", help="A parameter on top of the preset.")
@click.option("--force", is_flag=True, help="Run chapters that have not changed, too.")
@click.option(
    "--jobs", "limit", type=click.IntRange(1), default=None, help="Chapters at once; by default, one per core."
)
@click.option("--cell-timeout", "timeout", type=click.IntRange(1), default=None, help="Seconds one cell may take.")
@click.option("--output", type=click.Path(path_type=Path), default=None, help="Folder for the executed notebooks.")
@click.option("--root", default=None, help="The project's folder, where it is not this package's checkout.")
def run_command(preset: str, names: tuple[str, ...], given: tuple[tuple[str, str], ...], **options: Any) -> None:
    """Execute chapters, keep them, and print the scorecard."""
    try:
        root = project_root(options["root"])
        folder = options["output"].resolve() if options["output"] else None
        jobs = plan(root, names, preset, dict(given), folder)
    except (RefusedError, ProjectError) as error:
        click.echo(f"refused: {error}", err=True)
        sys.exit(2)
    if options["timeout"]:
        jobs = [replace(job, timeout=options["timeout"]) for job in jobs]
    try:
        sys.exit(carry_out(root, jobs, options["force"], options["limit"] or cores()))
    except KeyboardInterrupt:
        click.echo("interrupted: the chapters under way were ended; what was whole before is as it was", err=True)
        sys.exit(130)


def carry_out(root: Path, jobs: Sequence[Job], force: bool, limit: int) -> int:
    """Run what is not current, say what failed, merge and print the scorecard.

    Returns:
        The exit status: 1 when a chapter failed, else 0.
    """
    due = [job for job in jobs if force or not is_current(job)]
    for job in jobs:
        if job not in due:
            bring_words(job.notebook, job.output)
            click.echo(f"{job.chapter}: unchanged, not run again (--force, or make FORCE=1, runs it)")
    at_once = max(1, min(limit, len(due)))
    outcomes = run_jobs([replace(job, cores=max(1, cores() // at_once)) for job in due], at_once)
    failed = [outcome for outcome in outcomes if outcome.error]
    for outcome in outcomes:
        if not outcome.error:
            click.echo(f"{outcome.chapter}: {outcome.seconds:.0f} s")
    collected = _keep_scorecard(root, jobs[0].output.parent, str(jobs[0].parameters["preset"]))
    for outcome in failed:
        where = root / "_build" / "failed" / f"{outcome.chapter}.ipynb"
        kept = f" (kept: {where.relative_to(root)})" if where.is_file() else ""
        click.echo(f"FAILED {outcome.chapter}, {outcome.error}{kept}", err=True)
    return 0 if collected and not failed else 1


def _keep_scorecard(root: Path, folder: Path, preset: str) -> bool:
    """Merge and print the scorecard; whether it could be kept. Where not, the one of before stays.

    A damaged chapter is named and left out; the build refuses it.
    """
    from descent.records import write_atomic, write_json

    names = []
    for name in chapters(root):
        try:
            described(folder / f"{name}.ipynb")
            names.append(name)
        except ValueError as error:
            click.echo(f"not in the scorecard: {error}", err=True)
    try:
        scorecard = collect(folder, preset, names)
        write_json(root / "_build" / "scorecard.json", scorecard)
        if folder == edition_folder(root, "paper"):
            write_json(folder / "scorecard.json", scorecard)
            if (folder / f"{INTRO[0]}.ipynb").is_file():
                write_atomic(folder / "images" / "intro.png", picture(folder))
    except OSError as error:
        click.echo(f"no scorecard of {folder}: {error}", err=True)
        return False
    click.echo(summary(scorecard))
    return True


@main.command("build")
@click.option("--edition", type=click.Choice(["quick", "published"]), default="quick", show_default=True)
@click.option("--root", default=None, help="The project's folder, where it is not this package's checkout.")
def build_command(edition: str, root: str | None) -> None:
    """Bind the HTML book from executed chapters; nothing is executed."""
    try:
        found = project_root(root)
        preset = "paper" if edition == "published" else edition
        folder = edition_folder(found, preset)
        scorecard = collect(folder, preset, chapters(found))
        known = {name: [row._asdict() for row in documented(found, name)] for name in chapters(found)}
        page = build(found, folder, chapters(found), {"scorecard": scorecard, "parameters": known})
    except (BuildError, ProjectError, ValueError, OSError) as error:
        click.echo(f"not built: {error}", err=True)
        sys.exit(1)
    click.echo(summary(scorecard))
    click.echo(f"open {page}")


@main.command("store")
@click.argument("chapter")
@click.option("--root", default=None, help="The project's folder, where it is not this package's checkout.")
def store_command(chapter: str, root: str | None) -> None:
    """Keep the outputs of the quick edition's checked cells in the chapter's source, for nbval to compare."""
    from descent.records import write_json

    found = project_root(root)
    source, executed = notebook_path(found, chapter), edition_folder(found, "quick") / f"{chapter}.ipynb"
    if not (source.is_file() and executed.is_file()):
        click.echo(f"refused: {chapter!r} has no quick edition; make it with: make book", err=True)
        sys.exit(2)
    if not is_current(plan(found, [chapter], "quick", {}, None)[0]):
        click.echo(f"refused: the quick edition of {chapter!r} is of older code; make it with: make book", err=True)
        sys.exit(1)
    try:
        write_json(source, with_checked_outputs(json.loads(source.read_text("utf-8")), read_executed(executed)))
    except ValueError as error:
        click.echo(f"refused: {error}", err=True)
        sys.exit(1)


@main.command("words")
@click.option("--root", default=None, help="The project's folder, where it is not this package's checkout.")
def words_command(root: str | None) -> None:
    """Bring the published edition's text up to its sources, where their code is the code that was run."""
    found = project_root(root)
    for name in chapters(found):
        executed = edition_folder(found, "paper") / f"{name}.ipynb"
        try:
            changed = executed.is_file() and bring_words(notebook_path(found, name), executed)
            click.echo(f"{name}: {'brought up to its source' if changed else 'unchanged'}")
        except ValueError as error:
            click.echo(f"{name}: left as it is, {error}; make edition CHAPTER={name}")


if __name__ == "__main__":
    main()
