"""The environment is locked: every package by its version, every file by its hash, from whichever index it comes."""

import re
import tomllib

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from descent.checkout import project_root

ROOT = project_root()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NOT_HASHED = {"torch"}  # its CPU and CUDA builds have one version and different files: pinned in requirements.txt alone
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")
ADDRESS = re.compile(r"https?://[\w./-]+/(?:simple|whl)|--(?:extra-)?index-url|--find-links|--trusted-host|file://")


def locked(name: str) -> dict[str, list[tuple[Requirement, int]]]:
    """Package -> its requirements, one for each marker, with the count of their hashes."""
    found: dict[str, list[tuple[Requirement, int]]] = {}
    for line in (ROOT / name).read_text().replace("\\\n", " ").splitlines():
        stated = HASH.sub("", line.split("#")[0]).strip()
        if stated:
            requirement = Requirement(stated)
            found.setdefault(canonicalize_name(requirement.name), []).append((requirement, len(HASH.findall(line))))
    return found


LOCK, PINS = locked("requirements.lock"), locked("requirements.txt")
DIRECT = [
    *map(Requirement, PROJECT["dependencies"]),
    *(Requirement(each) for group in PROJECT["optional-dependencies"].values() for each in group),
]


def pin(requirement: Requirement) -> Version:
    (specifier,) = requirement.specifier
    assert specifier.operator == "==", requirement
    return Version(specifier.version)


@pytest.mark.promise("R9")
def test_every_file_that_is_installed_is_known_by_its_hash(record_property):
    counts = [count for rows in LOCK.values() for _, count in rows]
    assert min(counts) >= 1
    assert set(PINS) - set(LOCK) == NOT_HASHED
    record_property("packages locked by the hashes of their files", len(LOCK))
    record_property("packages pinned by version alone (torch, whose builds differ from index to index)", 1)


def test_every_requirement_is_pinned_to_one_version_for_one_machine():
    for known in (LOCK, PINS):
        for rows in known.values():
            assert all(pin(requirement) for requirement, _ in rows)
            for python in ("3.11.7", "3.12.3", "3.13.1"):
                machine = {**default_environment(), "python_version": python[:4], "python_full_version": python}
                assert sum(not each.marker or each.marker.evaluate(machine) for each, _ in rows) <= 1


def test_the_lock_has_the_versions_of_the_published_edition():
    both = set(LOCK) & set(PINS)
    assert {name: sorted(map(str, (each for each, _ in LOCK[name]))) for name in both} == {
        name: sorted(map(str, (each for each, _ in PINS[name]))) for name in both
    }


@pytest.mark.parametrize("requirement", DIRECT, ids=lambda requirement: requirement.name)
def test_what_pyproject_asks_for_is_in_the_lock_and_satisfies_it(requirement):
    name = canonicalize_name(requirement.name)
    versions = [pin(each) for each, _ in (LOCK | {"torch": PINS["torch"]})[name]]
    assert versions
    assert all(version in requirement.specifier for version in versions)
    assert [each.operator for each in requirement.specifier if each.operator == ">="] == [">="], "a lower bound"


@pytest.mark.parametrize("name", ["requirements.lock", "requirements.txt", "pyproject.toml", "Makefile"])
def test_no_index_is_named(name):
    assert ADDRESS.findall((ROOT / name).read_text()) == []


def test_the_checks_find_what_they_look_for(tmp_path, monkeypatch):
    assert ADDRESS.search("pip install --extra-index-url x")
    assert ADDRESS.search("at https://example.org/simple")
    with pytest.raises(AssertionError):
        pin(Requirement("numpy>=2"))
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "lock").write_text(
        "# words\na==1 \\\n    --hash=sha256:" + "0" * 64 + "\nb==2 ; python_version < '3.12'\n"
    )
    assert {name: [count for _, count in rows] for name, rows in locked("lock").items()} == {"a": [1], "b": [0]}
