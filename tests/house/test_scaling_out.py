"""The tables of the page "Scaling out" are those of the benchmark and of the arithmetic that they name."""

import json
import re
from math import ceil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "book" / "scaling_out.md").read_text()
SHARDS = 51


def rows(heading: str) -> list[list[str]]:
    """The cells of the table below a line."""
    below = PAGE.split(heading)[1].split("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in below.strip().splitlines()[1:]]


def test_the_measured_table_is_the_benchmarks() -> None:
    kept = json.loads((ROOT / "benchmarks" / "results.json").read_text())["benchmarks"]["sweeps"]["results"]
    figures = {row["variant"]: row["figures"] for row in kept}
    table = rows("| where | workers | seconds | times as fast |\n")
    assert len(table) == len(figures) == 4
    for where, workers, seconds, speedup in table:
        measured = figures[f"{where}, {workers} workers"]
        assert float(seconds) == pytest.approx(measured["seconds"], abs=0.05)
        assert float(speedup) == pytest.approx(measured["speed-up"], abs=0.005)
        assert measured["equal to the last bit"] == 1


def test_the_estimate_is_the_number_of_rounds() -> None:
    table = rows("| workers | rounds | times as fast, at most |\n")
    assert [int(row[0]) for row in table] == [4, 8, 16, 32, SHARDS]
    for workers, rounds, speedup in table:
        assert int(rounds) == ceil(SHARDS / int(workers))
        assert float(speedup) == pytest.approx(SHARDS / int(rounds), abs=0.051)
    assert re.search(r"\*\*estimate\*\*, not a measurement", PAGE)
