"""The workflows do what a person does at a terminal: make targets that exist, in bounded time, with fixed actions."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from descent import checkout

ROOT = checkout.project_root()
FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
EVERY = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
ACTION = re.compile(r"[\w.-]+/[\w./-]+@(v\d+|[0-9a-f]{40})")
TARGETS = set(re.findall(r"^([a-z][a-z-]*):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE))
RUNS = re.compile(r"(?:(?P<file>\.ci/run)|make (?P<target>[a-z-]+)(?: [A-Z]+=[^\s;|&]+)*)")


def read(path: Path) -> dict[str, Any]:
    """A workflow; YAML 1.1 reads its key `on` as true."""
    found: dict[Any, Any] = yaml.safe_load(path.read_text())
    return {"on" if key is True else key: value for key, value in found.items()}


def steps(path: Path) -> list[dict[str, Any]]:
    return [step for job in read(path)["jobs"].values() for step in job["steps"]]


def run_targets(path: Path) -> list[str]:
    """The make targets that a workflow's steps and `.ci/run` call; any other command is an error."""
    found = []
    for step in steps(path):
        if "run" in step:
            match = RUNS.fullmatch(re.sub(r"\$\{\{ [\w.]+ \}\}", "x", step["run"]).strip())
            assert match, f"{step['run']!r}: expected one make target or .ci/run"
            found += [match["target"]] if match["target"] else re.findall(r"^make ([a-z-]+)", CI_RUN, re.MULTILINE)
    return found


CI_RUN = (ROOT / ".ci" / "run").read_text()


def test_there_are_workflows_for_changes_for_the_page_and_for_what_changes_outside() -> None:
    assert {path.stem for path in FILES} == {"ci", "nightly", "pages", "weekly"}
    events = {path.stem: set(read(path)["on"]) for path in FILES}
    assert events["ci"] == {"push", "pull_request"}
    assert events["pages"] == {"push"}
    assert all("schedule" in events[name] for name in ("nightly", "weekly"))


@EVERY
def test_every_job_ends_and_may_only_read_unless_it_publishes(path: Path) -> None:
    workflow = read(path)
    writes = {name for name, right in workflow["permissions"].items() if right == "write"}
    assert writes == ({"pages", "id-token"} if path.stem == "pages" else set())
    for name, job in workflow["jobs"].items():
        assert 0 < job["timeout-minutes"] <= 350, name
        assert "continue-on-error" not in job, name


@EVERY
def test_every_step_is_a_fixed_action_or_a_target_that_exists(path: Path) -> None:
    for step in steps(path):
        assert ("uses" in step) != ("run" in step)
        assert "continue-on-error" not in step
        if "uses" in step:
            assert ACTION.fullmatch(step["uses"]), f"{step['uses']!r}: expected owner/name@v1"
    assert set(run_targets(path)) <= TARGETS
    assert run_targets(path)


def test_the_pythons_that_the_package_names_are_tested() -> None:
    assert read(ROOT / ".github/workflows/ci.yml")["jobs"]["test"]["strategy"]["matrix"]["python"] == [
        "3.11",
        "3.12",
        "3.13",
    ]


@pytest.mark.promise("R10")
def test_the_weekly_rebuild_runs_every_chapter_at_both_presets_without_a_cache() -> None:
    path = ROOT / ".github/workflows/weekly.yml"
    assert all("cache" not in step.get("with", {}) for step in steps(path))
    commands = [step["run"] for step in steps(path) if "run" in step]
    assert commands == ["make book FORCE=1", "make test", "make edition FORCE=1", "make advisories"]


def test_what_is_published_is_what_is_committed() -> None:
    assert run_targets(ROOT / ".github/workflows/pages.yml") == ["scripts", "html", "pdf", "html"]


@pytest.mark.parametrize("said", ["pip install x", "make book | tail", "make book; make test", "make Nothing"])
def test_another_command_would_be_found(said: str) -> None:
    assert not RUNS.fullmatch(said)


@pytest.mark.parametrize("said", ["actions/checkout@main", "actions/checkout", "owner/name@1.x"])
def test_an_action_that_may_change_would_be_found(said: str) -> None:
    assert not ACTION.fullmatch(said)
