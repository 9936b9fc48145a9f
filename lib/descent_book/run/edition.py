"""Run the chapters at a preset, in parallel, with progress; collect the scorecard; bind the book.

python -m descent_book.run.edition run --preset quick       every chapter of _toc.yml, at its defaults
python -m descent_book.run.edition build --edition quick    the HTML of what was run
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

import descent
from descent.checkout import ProjectError, project_root
from descent.repro.machine import cores
from descent_book.pages.build import INTRO, BuildError, build, intro_picture
from descent_book.run.chapter import (
    RefusedError,
    chapter_key,
    defaults,
    documented_parameters,
    nearest_choice,
    resolve,
)
from descent_book.run.notebook import bring_words, read_executed, with_checked_outputs
from descent_book.run.pool import run_jobs
from descent_book.run.project import NEUTRAL_PARAMETERS, RUNNER_PARAMETERS, chapters, edition_folder, notebook_path
from descent_book.run.worker import Job


def runner_notes(notebook: Path) -> dict[str, Any]:
    """What the runner noted in an executed notebook: key, preset, claims, seconds; empty where there is none.

    Raises:
        ValueError: the notebook is damaged.
    """
    try:
        found: dict[str, Any] = read_executed(notebook)["metadata"].get("descent", {})
    except OSError:
        return {}
    return found


def collect_scorecard(folder: Path, edition: str, names: Sequence[str]) -> dict[str, Any]:
    """The scorecard of an edition, from what the runner noted in its notebooks.

    Raises:
        ValueError: a notebook is damaged.
    """
    noted = {name: runner_notes(folder / f"{name}.ipynb") for name in names}
    keep = ("claims", "seconds", "provenance")
    return {"preset": edition, "chapters": {n: {k: note[k] for k in keep} for n, note in noted.items() if note}}


def scorecard_summary(scorecard: Mapping[str, Any]) -> str:
    """The scorecard as lines of text: chapter.claim, what was measured, the verdict; and the totals."""
    from descent.repro.claims import value_with_spread

    claims = [claim for chapter in scorecard["chapters"].values() for claim in chapter["claims"]]
    rows = [(claim["id"], value_with_spread(claim["measured"], claim["spread"]), claim["verdict"]) for claim in claims]
    widths = [max((len(row[i]) for row in rows), default=0) for i in (0, 1)]
    lines = [f"{name:<{widths[0]}}  {measured:>{widths[1]}}  {verdict}" for name, measured, verdict in rows]
    verdicts = [verdict for *_, verdict in rows]
    totals = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in sorted(set(verdicts), key=verdicts.count))
    return "\n".join([*lines, f"{len(rows)} claims at preset {scorecard['preset']}: {totals or 'none'}"])


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
    key = chapter_key(root, chapter, values, LIBRARY)
    return Job(
        chapter=chapter,
        notebook=notebook,
        inject={name: value for name, value in {**values, **places}.items() if value != own[name]},
        parameters=values,
        output=output / f"{chapter}.ipynb",
        results=Path(places.get("results_dir", results / "results" / chapter)),
        failed=root / "_build" / "failed" / f"{chapter}.ipynb",
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
            bring_words(job.notebook, job.output, current=True)
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
    from descent.repro.files import write_atomic, write_json

    names = []
    for name in chapters(root):
        try:
            runner_notes(folder / f"{name}.ipynb")
            names.append(name)
        except ValueError as error:
            click.echo(f"not in the scorecard: {error}", err=True)
    try:
        scorecard = collect_scorecard(folder, preset, names)
        write_json(root / "_build" / "scorecard.json", scorecard)
        if folder == edition_folder(root, "paper"):
            write_json(folder / "scorecard.json", scorecard)
            if (folder / f"{INTRO[0]}.ipynb").is_file():
                write_atomic(folder / "images" / "intro.png", intro_picture(folder))
    except OSError as error:
        click.echo(f"no scorecard of {folder}: {error}", err=True)
        return False
    click.echo(scorecard_summary(scorecard))
    return True


@main.command("build")
@click.option("--edition", type=click.Choice(["quick", "published"]), default="quick", show_default=True)
@click.option("--root", default=None, help="The project's folder, where it is not this package's checkout.")
def build_command(edition: str, root: str | None) -> None:
    """Bind the HTML book from executed chapters; nothing is executed."""
    from descent_book.run.rekey import standing

    try:
        found = project_root(root)
        preset = "paper" if edition == "published" else edition
        folder = edition_folder(found, preset)
        scorecard = collect_scorecard(folder, preset, chapters(found))
        known = {name: [row._asdict() for row in documented_parameters(found, name)] for name in chapters(found)}
        page = build(
            found, folder, chapters(found), {"scorecard": scorecard, "parameters": known, "standing": standing(found)}
        )
    except (BuildError, ProjectError, ValueError, OSError) as error:
        click.echo(f"not built: {error}", err=True)
        sys.exit(1)
    click.echo(scorecard_summary(scorecard))
    click.echo(f"open {page}")


@main.command("store")
@click.argument("chapter")
@click.option("--root", default=None, help="The project's folder, where it is not this package's checkout.")
def store_command(chapter: str, root: str | None) -> None:
    """Keep the outputs of the quick edition's checked cells in the chapter's source, for nbval to compare."""
    from descent.repro.files import write_json

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
    for job in plan(found, [], "paper", {}, None):
        try:
            changed = job.output.is_file() and bring_words(job.notebook, job.output, is_current(job))
            click.echo(f"{job.chapter}: {'brought up to its source' if changed else 'unchanged'}")
        except ValueError as error:
            click.echo(f"{job.chapter}: left as it is, {error}; make edition CHAPTER={job.chapter}")


if __name__ == "__main__":
    main()
