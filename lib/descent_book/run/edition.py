"""Run the chapters at a preset, in parallel, with progress; collect the scorecard; bind the book.

python -m descent_book.run.edition run --preset quick       every chapter of _toc.yml, at its defaults
python -m descent_book.run.edition build --edition quick    the HTML of what was run
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

import descent
from descent.checkout import project_root
from descent.repro.files import check_writable, write_atomic, write_json
from descent.repro.machine import cores
from descent_book.pages.build import BuildError, build, intro_picture
from descent_book.run.chapter import Chapter, nearest_choice
from descent_book.run.notebook import bring_words, read_executed, runner_notes, with_checked_outputs
from descent_book.run.project import (
    HELP,
    INTRODUCTION,
    NEUTRAL_PARAMETERS,
    ROOT_OPTION,
    RUNNER_PARAMETERS,
    RefusedError,
    chapters,
    claims_folder,
    edition_folder,
    refusing,
)
from descent_book.run.worker import Job, run_jobs

QUICK_TIMEOUT = 300  # seconds a cell may take at `quick`, on a machine with other work; `--cell-timeout` changes it
TIMEOUT = 3600
LIBRARY = Path(descent.__file__).parent


def plan(root: Path, names: Sequence[str], preset: str, given: Mapping[str, str], folder: Path | None) -> list[Job]:
    """One job for each chapter, every parameter validated.

    An edition with parameters of its own never takes the place of a preset's: it goes to `_build/editions/custom`.

    Raises:
        RefusedError: a chapter, preset or parameter is not valid; nothing has been run.
    """
    known = chapters(root)
    for name in names:
        if name not in known:
            raise RefusedError(f"no chapter {name!r}{nearest_choice(name, known)}")
    chosen = [Chapter.read(root, name) for name in known if name in names or not names]
    if not chosen:
        raise RefusedError("_toc.yml names no chapter; expected a page that is a notebook in notebooks/")
    if "results_dir" in given and len(chosen) > 1:
        raise RefusedError("results_dir: chapters would overwrite each other; give it with --chapter NAME")
    output = folder or edition_folder(root, "custom" if set(given) - set(NEUTRAL_PARAMETERS) else preset)
    resolved = [(chapter, chapter.resolve(preset, given)) for chapter in chosen]  # all, before the first key is made
    return [_job(chapter, values, output) for chapter, values in resolved]


def _job(chapter: Chapter, values: Mapping[str, Any], output: Path) -> Job:
    root = chapter.root
    results = edition_folder(root, "published") if output == root / "book" else output
    places = {name: str(Path(values[name]).resolve()) for name in RUNNER_PARAMETERS if values.get(name)}
    key = chapter.key(values, LIBRARY)
    return Job(
        chapter=chapter.name,
        notebook=chapter.path,
        size=len(chapter.code),
        inject={name: value for name, value in {**values, **places}.items() if value != chapter.defaults[name]},
        parameters=values,
        output=output / f"{chapter.name}.ipynb",
        results=Path(places.get("results_dir", results / "results" / chapter.name)),
        key=key.digest,
        depends=key.noted(),
        timeout=QUICK_TIMEOUT if values["preset"] == "quick" else TIMEOUT,
        cores=1,
        root=root,
    )


def is_current(job: Job) -> bool:
    """Whether the chapter's edition was made from the same sources and parameters, and no other place was asked for."""
    asked = any(job.parameters.get(name) for name in RUNNER_PARAMETERS)
    try:
        return runner_notes(job.output).get("key") == job.key and not asked
    except ValueError:  # damaged: it is made again
        return False


def refuse_to_publish_what_is_not_committed(root: Path, due: Sequence[Job]) -> None:
    """The published edition names the commit that made it.

    Raises:
        RefusedError: a chapter would be published from files that no commit holds.
    """
    from descent.repro.records import uncommitted  # here, for it imports numpy

    published = [job.chapter for job in due if job.output.parent == root / "book"]
    if published and (changed := uncommitted(root)):
        said = f"{len(changed)} files are not committed, such as {changed[0]}"
        raise RefusedError(f"{', '.join(published)}: not published, {said}; commit them, or give --output FOLDER")


def refuse_what_could_not_be_kept(due: Sequence[Job]) -> None:
    """Say before the run what would fail after it.

    Raises:
        RefusedError: an edition, its record or its figures would go where nothing can be written.
    """
    places = [("output", job.output.parent) for job in due] + [("results_dir", job.results) for job in due]
    places += [("figures_dir", Path(job.parameters["figures_dir"])) for job in due if job.parameters.get("figures_dir")]
    try:
        for name, folder in dict.fromkeys(places):
            check_writable(name, folder)
    except ValueError as error:
        raise RefusedError(str(error)) from error


@click.group(context_settings=HELP)
def main() -> None:
    """Run the chapters and build the book."""


@main.command("run")
@click.option("--preset", default="quick", show_default=True, help="A named set of parameters.")
@click.option("--chapter", "names", multiple=True, help="Only this chapter; may be given again.")
@click.option("-p", "given", nargs=2, multiple=True, metavar="NAME VALUE", help="A parameter on top of the preset.")
@click.option("--force", is_flag=True, help="Run chapters that have not changed, too.")
@click.option("--jobs", "limit", type=click.IntRange(1), help="Chapters at once; by default, one per core.")
@click.option("--cell-timeout", "timeout", type=click.IntRange(1), help="Seconds one cell may take.")
@click.option("--output", type=click.Path(path_type=Path), help="Folder for the executed notebooks.")
@ROOT_OPTION
@refusing(RefusedError)
def run_command(preset: str, names: tuple[str, ...], given: tuple[tuple[str, str], ...], **options: Any) -> None:
    """Execute chapters, keep them, and print the scorecard."""
    root = project_root(options["root"])
    folder = options["output"].resolve() if options["output"] else None
    jobs = plan(root, names, preset, dict(given), folder)
    due = [job for job in jobs if options["force"] or not is_current(job)]
    refuse_to_publish_what_is_not_committed(root, due)
    refuse_what_could_not_be_kept(due)
    try:
        available = cores()
    except ValueError as error:
        raise RefusedError(str(error)) from error
    if options["timeout"]:
        jobs = [replace(job, timeout=options["timeout"]) for job in jobs]
    try:
        sys.exit(carry_out(root, jobs, options["force"], options["limit"] or available))
    except KeyboardInterrupt:
        click.echo("interrupted: the chapters under way were ended; what was whole before is as it was", err=True)
        sys.exit(130)


def carry_out(root: Path, jobs: Sequence[Job], force: bool, limit: int) -> int:
    """Run what is not current, name what failed, merge and print the scorecard; 1 when a chapter failed, else 0."""
    due = [job for job in jobs if force or not is_current(job)]
    for job in jobs:
        if job not in due:
            bring_words(Chapter.read(root, job.chapter).notebook, job.output, current=True)
            click.echo(f"{job.chapter}: unchanged, not run again (--force, or make FORCE=1, runs it)")
    at_once = max(1, min(limit, len(due)))
    outcomes = run_jobs([replace(job, cores=max(1, cores() // at_once)) for job in due], at_once)
    for outcome in outcomes:
        if not outcome.error:
            click.echo(f"{outcome.chapter}: {outcome.seconds:.0f} s")
    collected = _keep_scorecard(root, jobs[0].output.parent, str(jobs[0].parameters["preset"]))
    failed = {outcome.chapter: outcome.error for outcome in outcomes if outcome.error}
    for job in due:
        if job.chapter in failed:
            kept = f" (kept: {job.failed.relative_to(root)})" if job.failed.is_file() else ""
            click.echo(f"FAILED {job.chapter}, {failed[job.chapter]}{kept}", err=True)
    return 0 if collected and not failed else 1


def _keep_scorecard(root: Path, folder: Path, preset: str) -> bool:
    """Merge and print the scorecard; whether it could be kept. Where it could not, the old one stays.

    A damaged chapter is named and left out; the build refuses it.
    """
    from descent_book.run.scorecard import ChapterResult, EditionScorecard

    results = {}
    for name in chapters(root):
        try:
            if result := ChapterResult.of(folder / f"{name}.ipynb"):
                results[name] = result.judged(claims_folder(root), name)
        except ValueError as error:
            click.echo(f"not in the scorecard: {error}", err=True)
    scorecard = EditionScorecard(preset=preset, chapters=results)
    try:
        write_json(root / "_build" / "scorecard.json", scorecard.model_dump(mode="json"))
        if folder == edition_folder(root, "paper"):
            write_json(folder / "scorecard.json", scorecard.model_dump(mode="json"))
            if (folder / f"{INTRODUCTION[0]}.ipynb").is_file():
                write_atomic(folder / "images" / "intro.png", intro_picture(folder))
    except OSError as error:
        click.echo(f"no scorecard of {folder}: {error}", err=True)
        return False
    click.echo(scorecard.summary())
    return True


@main.command("build")
@click.option("--edition", type=click.Choice(["quick", "published"]), default="quick", show_default=True)
@ROOT_OPTION
@refusing(BuildError, ValueError, OSError, said="not built", status=1)
def build_command(edition: str, root: str | None) -> None:
    """Bind the HTML book from executed chapters; nothing is executed."""
    from descent_book.run.rekey import standing
    from descent_book.run.scorecard import EditionScorecard

    project = project_root(root)
    names = chapters(project)
    preset = "paper" if edition == "published" else edition
    folder = edition_folder(project, preset)
    scorecard = EditionScorecard.collect(folder, preset, names, claims_folder(project))
    known = {name: [row._asdict() for row in Chapter.read(project, name).parameters()] for name in names}
    data = {"scorecard": scorecard.model_dump(mode="json"), "parameters": known, "standing": standing(project)}
    page = build(project, folder, names, data)
    click.echo(scorecard.summary())
    click.echo(f"open {page}")


@main.command("store")
@click.argument("chapter")
@ROOT_OPTION
@refusing(RefusedError)
def store_command(chapter: str, root: str | None) -> None:
    """Keep the outputs of the quick edition's checked cells in the chapter's source, for nbval to compare."""
    project = project_root(root)
    executed = edition_folder(project, "quick") / f"{chapter}.ipynb"
    if chapter not in chapters(project) or not executed.is_file():
        raise RefusedError(f"{chapter!r} has no quick edition; make it with: make book")
    (job,) = plan(project, [chapter], "quick", {}, None)
    if not is_current(job):
        raise RefusedError(f"the quick edition of {chapter!r} is of older code; make it with: make book")
    source = Chapter.read(project, chapter)
    write_json(source.path, with_checked_outputs(source.notebook, read_executed(executed)))


@main.command("words")
@ROOT_OPTION
@refusing()
def words_command(root: str | None) -> None:
    """Bring the published edition's text up to its sources, where their code is the code that was run."""
    project = project_root(root)
    for job in plan(project, [], "paper", {}, None):
        try:
            source = Chapter.read(project, job.chapter).notebook
            changed = job.output.is_file() and bring_words(source, job.output, is_current(job))
            click.echo(f"{job.chapter}: {'brought up to its source' if changed else 'unchanged'}")
        except ValueError as error:
            click.echo(f"{job.chapter}: left as it is, {error}; make edition CHAPTER={job.chapter}")


if __name__ == "__main__":
    main()
