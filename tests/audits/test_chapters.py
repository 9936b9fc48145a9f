"""Every chapter at quick: without a network, within its memory, on other threads and instruction sets.

`-k saddles` chooses a chapter. On a machine of its own each run takes about a minute.
"""

import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from chapter_runs import CHAPTERS, begin, claims, memory, peak, stored_verdicts

from descent.repro.claims import registered_claims
from descent.repro.machine import cores
from descent_book.run.notebook import RELATIVE, alike, comparable, distance
from descent_book.run.scorecard import Measurement

MEMORY_GIB = 4.0
OTHERS = {
    "one thread": (1, {}),
    "two threads": (2, {}),
    "four threads": (4, {}),
    "no vector instructions": (2, {"ATEN_CPU_CAPABILITY": "default"}),
    "AVX2": (2, {"ATEN_CPU_CAPABILITY": "avx2"}),
}
# A network namespace of its own, in which only the loop that the kernel is talked to through is up.
OFFLINE = ("unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh")
REACHES = "import socket; socket.create_connection(('192.0.2.1', 80), 2)"
Note = Callable[[str, object], None]


def agrees(chapter: str, found: list[Measurement]) -> None:
    """Every verdict that the chapter's source keeps is the one that was found."""
    stored, judged = stored_verdicts(chapter), {claim.id.split(".", 1)[1]: claim.verdict for claim in found}
    assert stored, f"notebooks/{chapter}.ipynb keeps no outputs to compare with; make store CHAPTER={chapter}"
    assert {name: judged.get(name) for name in stored} == stored


@pytest.mark.promise("R16")
@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_chapter_needs_no_network(chapter: str, tmp_path: Path, record_property: Note) -> None:
    outside = subprocess.run([*OFFLINE, sys.executable, "-c", REACHES], capture_output=True, text=True)
    if "unreachable" not in outside.stderr:
        pytest.skip(f"no network namespace can be made here: {outside.stderr.strip()[-200:]}")
    found = claims(chapter, tmp_path, cores(), OFFLINE)
    agrees(chapter, found)
    judged = [claim for claim in found if claim.verdict != "not judged at this preset"]
    record_property(f"{chapter}: claims with a verdict, without a network", len(judged))


@pytest.mark.promise("R11")
@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_chapter_stays_within_its_memory(chapter: str, tmp_path: Path, record_property: Note) -> None:
    process = begin(chapter, tmp_path, cores())
    largest = peak(process) / 2**30
    said, _ = process.communicate()
    assert process.returncode == 0, said[-3000:]
    assert (tmp_path / "claims.json").is_file()
    record_property(f"{chapter}: peak resident memory of all its processes (GiB)", round(largest, 2))
    assert 0.1 < largest < MEMORY_GIB


def test_the_memory_of_processes_below_counts(tmp_path: Path) -> None:
    child = "x = bytearray(200 << 20); input()"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    process = subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE)
    while memory(psutil.Process(process.pid)) < 200 << 20:
        assert process.poll() is None
    process.communicate(b"\n")


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[Measurement]]:
    """The claims of a chapter as this machine judges them by itself; run once."""
    known: dict[str, list[Measurement]] = {}

    def of(chapter: str) -> list[Measurement]:
        if chapter not in known:
            known[chapter] = claims(chapter, tmp_path_factory.mktemp(chapter), cores())
        return known[chapter]

    return of


@pytest.mark.promise("R2")
@pytest.mark.parametrize("how", OTHERS)
@pytest.mark.parametrize("chapter", CHAPTERS)
def test_verdicts_are_the_same_on_other_threads_and_instructions(
    chapter: str, how: str, tmp_path: Path, reference: Callable[[str], list[Measurement]], record_property: Note
) -> None:
    threads, variables = OTHERS[how]
    told = {**os.environ, **variables}
    capability = "import torch; print(torch.backends.cpu.get_cpu_capability())"
    used = subprocess.run([sys.executable, "-c", capability], env=told, capture_output=True, text=True).stdout.strip()
    if variables and used.lower() != variables["ATEN_CPU_CAPABILITY"]:
        pytest.skip(f"this {platform.machine()} has no {how}; torch uses {used}")
    if threads == cores() and used == torch.backends.cpu.get_cpu_capability():
        pytest.skip("so runs the reference itself; that equal runs give equal bits is R1's")
    found, expected = claims(chapter, tmp_path, threads, **variables), reference(chapter)
    agrees(chapter, found)
    assert [(claim.id, claim.verdict) for claim in found] == [(each.id, each.verdict) for each in expected]
    both = alike(*(f"{platform.machine()} {name}" for name in (used, torch.backends.cpu.get_cpu_capability())))
    differences, compared = {}, {}
    for one, other in zip(found, expected, strict=True):
        if one.measured is None or other.measured is None:
            assert one.measured == other.measured
            continue
        region = registered_claims(chapter)[one.id.partition(".")[2]].region("quick")
        widths = [(each.high or 0) - (each.low or 0) for each in (one.measured, other.measured)]
        differences[one.id] = distance(one.measured.value, other.measured.value, max(widths), region)
        if comparable(one.verdict, both):
            compared[one.id] = differences[one.id]
    worst = max(differences, key=lambda name: differences[name])
    record_property(f"{chapter}, {how}: largest relative difference of a measured value", differences[worst])
    record_property(f"{chapter}, {how}: the claim of that value", worst)
    if not both:
        largest = max(compared.values(), default="none has one")
        record_property(f"{chapter}, {how}: largest of those with a verdict", largest)
    assert all(difference <= RELATIVE for difference in compared.values()), differences
